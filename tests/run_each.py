"""Started by torchrun, or forked: runs train.py's main for each command line of a JSON file, one after the other, in these processes."""
import inspect
import json
import pathlib
import sys

import torch
import torch.distributed as dist


def newton_schulz_in_float32():
    """Muon's iteration without its rounding to bf16, where a gradient's last float32 bit, which depends on the order of sums,
    turns into 1/256 of an element now and then."""
    text = inspect.getsource(torch.optim._muon._zeropower_via_newtonschulz)
    assert "grad.bfloat16()" in text
    names = dict(vars(torch.optim._muon))
    exec(text.replace("grad.bfloat16()", "grad.clone()"), names)
    return names["_zeropower_via_newtonschulz"]


def main(args):
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
    from test_guard import GpuGuard

    import train

    torch.optim._muon._zeropower_via_newtonschulz = newton_schulz_in_float32()
    # one process group for all of them: groups cannot be made anew in the same torchrun
    make, end = dist.init_process_group, dist.destroy_process_group
    dist.init_process_group = lambda *args, **kwargs: None if dist.is_initialized() else make(*args, **kwargs)
    dist.destroy_process_group = dist.barrier
    plain = train.Guard
    for argv in json.loads(pathlib.Path(args[0]).read_text()):
        train.Guard = GpuGuard if "--as_on_a_gpu" in argv else plain
        try:
            train.main([a for a in argv if a != "--as_on_a_gpu"])
        except SystemExit as stop:
            if stop.code:
                raise
    end()


if __name__ == "__main__":
    main(sys.argv[1:])
