"""Started by torchrun: runs train.py's main for each command line of a JSON file, one after the other, in these processes."""
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import torch.distributed as dist  # noqa: E402

import train  # noqa: E402

# one process group for all of them: groups cannot be made anew in the same torchrun
make, end = dist.init_process_group, dist.destroy_process_group
dist.init_process_group = lambda *args, **kwargs: None if dist.is_initialized() else make(*args, **kwargs)
dist.destroy_process_group = dist.barrier

for argv in json.loads(pathlib.Path(sys.argv[1]).read_text()):
    try:
        train.main(argv)
    except SystemExit as stop:
        if stop.code:
            raise
end()
