"""Where did the first NaN or Inf arise? Repeats a step in eager mode and watches every operation, forward and backward."""
import os
import re
import traceback

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODELS = [REPOSITORY, *(os.path.join(REPOSITORY, package) for package in ("geometry", "kernels", "scalar_attention", "stereographic",
                                                                    "streams"))]


def _finite(value):
    return not (isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel()
                and not torch.isfinite(value).all())


def _line_of(frames):
    """The innermost of these (file, line, function), outermost first, that is a line of this project's models."""
    own = [f"{os.path.relpath(file, REPOSITORY)}:{line} in {function}" for file, line, function in frames
           if os.path.dirname(os.path.abspath(file)) in MODELS]
    return own[-1] if own else "torch"


class _Watch(TorchDispatchMode):
    """Keeps describe(operation) of the first operation that makes a non-finite number of finite ones."""

    def __init__(self, describe):
        super().__init__()
        self.describe, self.found = describe, None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if self.found is None and "empty" not in func.name():  # fresh memory may hold anything
            given = tree_leaves((args, kwargs or {}))
            meant = any(isinstance(a, float) and abs(a) == float("inf") for a in given)  # an Inf asked for, as in a mask
            if not meant and all(map(_finite, given)) and not all(map(_finite, tree_leaves(out))):
                self.found = self.describe(func.name().removeprefix("aten::"))
        return out


class _Modules:
    """Which module is running, and, by autograd's sequence numbers, which module a backward operation belongs to."""

    def __init__(self, model):
        self.running, self.spans, self.handles = [], [], []
        for name, module in model.named_modules():
            self.handles.append(module.register_forward_pre_hook(self._enter(name)))
            self.handles.append(module.register_forward_hook(self._leave, always_call=True))
        self.wrapped = []
        for i, block in enumerate(model.transformer.h):
            for method in getattr(block, "called_by_model", ()):
                setattr(block, method, self._within(f"transformer.h.{i}", getattr(block, method)))
                self.wrapped.append((block, method))

    def _enter(self, name):
        return lambda module, args: self.running.append((name, torch._C._autograd._get_sequence_nr()))

    def _within(self, name, method):
        """A block's method that runs outside of its forward()."""
        def run(*args, **kwargs):
            self._enter(name)(None, args)
            try:
                return method(*args, **kwargs)
            finally:
                self._leave(None, args, None)
        return run

    def _leave(self, module, args, out):
        name, first = self.running.pop()
        self.spans.append((first, torch._C._autograd._get_sequence_nr(), name))

    def remove(self):
        for handle in self.handles:
            handle.remove()
        for block, method in self.wrapped:
            delattr(block, method)  # the class's own again

    @staticmethod
    def spoken(name):
        match = re.match(r"transformer\.h\.(\d+)\.?(.*)", name)
        return f"block {match[1]}{', ' + match[2] if match[2] else ''}" if match else name or "the output head or the loss"

    def now(self):
        return self.spoken(self.running[-1][0] if self.running else "")

    def of(self, node):
        """The innermost module whose forward made this autograd node."""
        number = node._sequence_nr()
        inside = [(last - first, name) for first, last, name in self.spans if first <= number < last]
        return self.spoken(min(inside)[1] if inside else "")


def first_non_finite(model, batches, autocast, backward=True):
    """One line that names the block and the operation.

    model: not compiled, in the mode (train or eval) of what went wrong. batches: the micro-batches (x, y) of it; an iterator
    may seed each. autocast: a context manager factory, as in the step. Gradients are dropped. backward=False: an evaluation.
    """
    for name, p in model.named_parameters():
        if not torch.isfinite(p).all():
            return f"{_Modules.spoken(name)}: a parameter that the optimizer's last step made non-finite"

    modules = _Modules(model)

    def forward_op(operation):
        frames = ((f.filename, f.lineno, f.name) for f in traceback.extract_stack())
        return f"{modules.now()}: {operation} ({_line_of(frames)}, forward)"

    def backward_op(operation):
        node = torch._C._current_autograd_node()
        if node is None:
            return f"{operation} (backward)"
        # set_detect_anomaly keeps the stack of the forward operation, as text: '  File "model.py", line 7, in forward'
        text = "".join(node.metadata.get("traceback_", []))
        frames = re.findall(r'File "([^"]+)", line (\d+), in (\S+)', text)
        return f"{modules.of(node)}: {operation} ({_line_of(frames)}, backward)"

    try:
        with torch.autograd.set_detect_anomaly(True, check_nan=False):
            for x, y in batches:
                with _Watch(forward_op) as watch, autocast():
                    loss = model(x, y)[1]
                if watch.found is None and backward:
                    with _Watch(backward_op) as watch:
                        loss.backward()
                if watch.found is not None:
                    return watch.found
    finally:
        modules.remove()
        model.zero_grad(set_to_none=True)
    return "an operation that gave finite numbers when it was repeated in eager mode"
