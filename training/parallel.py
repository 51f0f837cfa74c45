"""
One run on several processes, started by torchrun: DDP or FSDP2, over nccl on GPUs and gloo on CPUs.

    torchrun --nproc-per-node=4 train.py config/train_fineweb_mixed.py                      DDP
    torchrun --nproc-per-node=4 train.py config/train_fineweb_mixed.py --parallel=fsdp      FSDP2

Both deal the micro-batches of a step out to the processes (rank r of W takes r, r + W, ...), so a run sees the same data
on any number of them. Without torchrun there is one process and every function here is the trivial one.

    DDP     whole weights and optimizer state on each; gradients averaged in the step's last backward pass
    FSDP2   weights, gradients and optimizer state in W shards; a block's weights are gathered when it runs. Parameters in
            the optimizer's group 'curvature' stay whole on each (a block reads its neighbour's c, and a scalar cannot be
            sharded)

With both Muon deals the matrices out to the processes (training/muon.py).
"""
import contextlib
import datetime
import os
import warnings

import torch
import torch.distributed as dist

from common import errors
from common.errors import UserError
from training.compiled import compile_parts, set_options
from training.optimizer import group_of

TIMEOUT = datetime.timedelta(minutes=30)  # of a collective: as long as the slowest step or checkpoint may take


class Parallel:
    """What of the run is this process: rank of world, and what the processes do together."""

    def __init__(self, kind, device):
        self.rank, self.world = 0, 1
        self.kind, self.device = "none", device
        self.launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ  # torchrun sets them
        if not self.launched:
            if kind == "fsdp":
                raise UserError("parallel = 'fsdp' is for several processes: torchrun --nproc-per-node=N train.py ...")
            return
        self.kind = kind
        try:
            self.rank, self.world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            local = int(os.environ.get("LOCAL_RANK", self.rank))
            on_node = int(os.environ.get("LOCAL_WORLD_SIZE", local + 1))
        except ValueError:
            raise UserError("RANK, WORLD_SIZE or LOCAL_RANK in the environment is not a number; start with torchrun, or unset "
                            "them") from None
        device_type = torch.device(device).type
        if device_type == "mps":
            raise UserError("several processes need CUDA GPUs or CPUs, not mps; use --device=cpu")
        if device_type == "cuda":
            if on_node > torch.cuda.device_count():  # said by all, as it is true of all
                raise UserError(f"this node has {torch.cuda.device_count()} GPUs and torchrun started {on_node} processes; "
                                "lower --nproc-per-node")
            self.device = f"cuda:{local}"
            torch.cuda.set_device(local)
        try:
            dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=TIMEOUT)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"the processes did not find each other: {str(error).splitlines()[0]}; start with torchrun") from None

    def describe(self):
        return f", {self.world} processes, {self.kind}" if self.launched else ""

    @property
    def main(self):
        return self.rank == 0

    # ------------------------------------------------------------------------------------------------------------------
    # the model

    def wrap(self, model, compiled):
        """Place a model on its device(s). -> (what the training step calls, what evaluation calls); `model` itself keeps its
        names, for checkpoints and optimizers."""
        self.whole = [p for name, p in model.named_parameters() if group_of(name, p) == "curvature"]
        if self.kind != "fsdp":
            model.to(self.device)
            eval_model = compile_parts(model) if compiled else model
            if self.kind == "none":
                return eval_model, eval_model
            if compiled:  # DDP's buckets are sent between the parts as they are; Dynamo would cut these at the buckets' bounds
                torch._dynamo.config.optimize_ddp = False
            ids = [torch.device(self.device)] if self.device.startswith("cuda") else None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # the new name of broadcast_buffers
                return torch.nn.parallel.DistributedDataParallel(
                    eval_model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True), eval_model
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method  # takes a second: only here
        # a block's result is a view of what its maps made; nothing is done to it in place
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        mesh = init_device_mesh(torch.device(self.device).type, (self.world,))
        for block in model.transformer.h:
            if compiled:  # FSDP's hooks between the blocks are not for the compiler
                set_options()
                block.compile(fullgraph=True, dynamic=False)
            fully_shard(block, mesh=mesh, ignored_params=set(self.whole))
        fully_shard(model, mesh=mesh, ignored_params=set(self.whole))
        register_fsdp_forward_method(model, "telemetry")
        model.to(self.device)  # the curvatures; the rest is there
        return model, model

    def accumulating(self, step_model, last):
        """Context of one micro-batch: gradients travel between processes in the last one of a step."""
        if self.kind == "ddp" and not last:
            return step_model.no_sync()
        if self.kind == "fsdp":
            step_model.set_requires_gradient_sync(last)
        return contextlib.nullcontext()

    def finish_gradients(self):
        """After the last micro-batch: what FSDP2 left."""
        if self.kind != "fsdp":
            return
        for p in self.whole:
            if p.grad is not None:  # of one that is frozen there is none
                dist.all_reduce(p.grad)
                p.grad /= self.world

    # ------------------------------------------------------------------------------------------------------------------
    # numbers and decisions

    def sum(self, *values):
        """Each number, added over all processes: a list of floats, the same on each. Waits for all."""
        if self.world == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(numbers)
        return numbers.tolist()

    def average(self, tensor):
        """The mean over all processes, in place, the same on each."""
        if self.world > 1:
            dist.all_reduce(tensor)
            tensor /= self.world
        return tensor

    def largest(self, tensor):
        """The maximum over all processes, in place, the same on each."""
        if self.world > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def on_main(self, work):
        """What work() returns on rank 0, which alone does it. Where it raises a UserError all processes stop: rank 0 with it,
        the others silently."""
        failed = result = None
        if self.main:
            try:
                result = work()
            except (UserError, OSError) as error:
                failed = error
        if self.world > 1:
            told = [getattr(failed, "status", 2) if failed else 0, result]
            dist.broadcast_object_list(told, src=0)
            if told[0] and not self.main:
                raise errors.AlreadySaid(told[0])
            result = told[1]
        if failed:
            raise failed
        return result

    @contextlib.contextmanager
    def watching(self):
        """Turns the failure of a collective, which is that of another process, into one line."""
        try:
            yield
        except RuntimeError as error:
            text = str(error)
            if self.world > 1 and (isinstance(error, dist.DistError) or "gloo" in text or "Connection" in text):
                raise UserError("another process of this run failed or was killed; its own line says why. ckpt/last is "
                                "whole: start again with --init_from=resume") from None
            raise

    def close(self):
        if self.launched and dist.is_initialized():
            dist.destroy_process_group()
