"""
A step of all runs of a stack, in tensors alone: no number is read off the device in between, so that a GPU can repeat it as a CUDA graph.

From its first bad step on (a loss or a gradient norm that is NaN or Inf) a run stands still. The host reads which, and when, as it likes:
the weights are then still those of before that step.
"""
import gc

import torch

from training.compiled import compile_parts
from training.qk_clip import QKClip
from training.stacked_modules import stack_modules
from training.stacked_optimizer import StackedWeights


class Captured:
    """function(*tensors) -> None, as a CUDA graph: called some times, which makes what it needs, then captured once and repeated."""

    WARM_UP = 3

    def __init__(self, function):
        self.function, self.calls, self.graph, self.side = function, 0, None, None

    def __call__(self, *given):
        if self.calls < self.WARM_UP:
            self.calls += 1
            # as torch.cuda.graph asks for; one for all calls, since a stream does not get the memory that another one has freed
            self.side = self.side or torch.cuda.Stream()
            self.side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.side):
                self.function(*given)
            torch.cuda.current_stream().wait_stream(self.side)
            return
        if self.graph is None:
            self.given, self.graph = [tensor.clone() for tensor in given], torch.cuda.CUDAGraph()
            # nothing is computed here. thread_local: the loader's threads may pin memory meanwhile
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.function(*self.given)
        for own, new in zip(self.given, given):
            own.copy_(new)
        self.graph.replay()


def free_memory(device):
    """After the last use of a Step, which refers to itself: memory of its graphs is free once the collector has been there."""
    gc.collect()
    if str(device).startswith("cuda"):
        torch.cuda.empty_cache()


class Step:

    def __init__(self, model, runs, weights, autocast, grad_clip, micro_batches, graph, start, qk_clip=None):
        """micro_batches: in a step. graph: as CUDA graphs. start: the first step's number. qk_clip: a QKClip of this model, or None."""
        self.model, self.runs, self.weights, self.autocast = model, runs, weights, autocast
        self.grad_clip, self.micro_batches, self.qk_clip = grad_clip, micro_batches, qk_clip
        device, N = weights.weights.device, runs.number
        self.loss, self.norms, self.shown = (weights.weights.new_zeros(N) for _ in range(3))
        self.going = torch.ones(N, dtype=torch.bool, device=device)
        self.number = torch.tensor(start, device=device)
        self.first_bad = torch.full((N,), -1, device=device)  # the step
        self._backward, self._finish = (Captured(f) if graph else f for f in (self._of_micro_batch, self._of_step))

    def backward(self, x, y):
        """Of a micro-batch: its gradients are added to those of the step."""
        self._backward(x, y)

    def _of_micro_batch(self, x, y):
        with self.autocast():
            loss = self.model(x, y)[1] / self.micro_batches  # (N,)
        loss.sum().backward()
        self.loss.add_(loss.detach())

    def finish(self, step):
        """After the last micro-batch: the update."""
        self._finish(self.weights.factors(step).to(self.loss.device, non_blocking=True))

    @torch.no_grad()
    def _of_step(self, factors):
        self.model.end_of_step(lambda tensor: tensor)
        self.norms.copy_(self.weights.norms())
        good = torch.isfinite(self.norms) & torch.isfinite(self.loss)
        self.first_bad.copy_(torch.where(good | ~self.going, self.first_bad, self.number))
        self.going.logical_and_(good)
        if self.grad_clip:
            self.weights.clip(self.grad_clip, self.norms)
        self.weights.update(factors, self.going)
        if self.qk_clip:
            self.qk_clip.after_update(lambda tensor: tensor, ~self.going.unsqueeze(-1))
        self.shown.copy_(self.loss)
        self.loss.zero_()
        self.number.add_(1)

    def read(self):
        """Of the last step, (losses, gradient norms), and of each run its first bad step or -1: lists. Waits for the device."""
        return self.shown.tolist(), self.norms.tolist(), self.first_bad.tolist()


def stacked_step(name, model, members, optimizers, configs, device, autocast, compiled=False, micro_batches=1, graph=False, start=0):
    """The Step of runs with these models, optimizers and configurations. model: one like theirs, which becomes the stack. name: of the
    model. compiled: by torch.compile. The others: of Step."""
    clip = QKClip(model, configs[0].qk_clip) if configs[0].qk_clip is not None else None
    runs = stack_modules(model, len(members), name)
    model.activation_checkpointing = configs[0].activation_checkpointing
    model.to(device).train()
    weights = StackedWeights(model, members, optimizers, configs, device)
    model = compile_parts(model) if compiled else model
    return Step(model, runs, weights, autocast, configs[0].grad_clip, micro_batches, graph, start, clip)
