"""
A second device, 'gpu', whose tensors are kept and computed with on the CPU. As on a GPU, an operation takes no tensors of two devices, a
tensor gets there only where it is sent or made there, and code that asks for the CPU's own ways gets the others. Numbers are the CPU's to
rounding: so what a script computes here can be compared with what it computes there.

    Forked("second_device", ["train", *args, "--device=gpu"])     any script, in a process of its own: PyTorch keeps a device for good

    SECOND_DEVICE_WAITS=FILE    in its environment: for what the host waited, and how often (JSON)
    SECOND_DEVICE_IS_CUDA=1     in its environment: train.py and stacks do there what they do on CUDA alone. The device notes the first
                                bad step itself; a stack's step is captured as graphs, which are repeated here as on CUDA: the same
                                operations on the same memory, with no line of Python, and an error where that of others is gone by then

What it does not show: streams, pinned memory, kernels, what comes late because the host does not wait.
"""
import collections
import contextlib
import importlib
import json
import os
import pathlib
import sys
import threading
import traceback
import weakref

import torch
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME, FULL_NAME = "gpu", "gpu:0"
aten = torch.ops.aten
BETWEEN_DEVICES = (aten.copy_.default, aten._to_copy.default, aten._foreach_copy_.default)
READS = (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten._unique2.default, aten.masked_select.default)
capturing = []  # the Graph that is captured now, if any
waits = collections.Counter()  # for what the host has waited: operation -> how often; and 'sent', what it sent (where it may wait)


class Far(torch.Tensor):
    """A tensor of that device. near: where its numbers are."""

    @staticmethod
    def __new__(cls, near):
        return torch.Tensor._make_wrapper_subclass(cls, near.shape, strides=near.stride(), storage_offset=near.storage_offset(),
                                                   dtype=near.dtype, device=torch.device(FULL_NAME))

    def __init__(self, near):
        self.near = near

    def __repr__(self):
        return f"Far({self.near})"

    def tolist(self):
        waits["tolist"] += 1
        return self.near.tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert a tensor of the second device to numpy; use Tensor.cpu() first")

    __array__ = numpy

    @property
    def data(self):
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, other):
        torch.Tensor.data.__set__(self, other)
        self.near = other.near

    def untyped_storage(self):
        return self.near.untyped_storage()

    def data_ptr(self):
        return self.near.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


def near(value):
    return value.near if isinstance(value, Far) else value


def tensors_in(value):
    return [t for t in tree_leaves(value) if isinstance(t, torch.Tensor)]


def compute(func, args, kwargs):
    """An operation of PyTorch, on the CPU, after a look at where its tensors are. RuntimeError: on two devices. (Of autograd's own thread
    an exception would end the process without a word.)"""
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(numbers, device=...) makes a tensor on the CPU and sends it: in any thread
    try:
        return compute_there(func, args, kwargs)
    except Exception:
        if threading.current_thread() is not threading.main_thread():
            traceback.print_stack()
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        raise


def compute_there(func, args, kwargs):
    tensors = tensors_in((args, kwargs))
    far = [t for t in tensors if isinstance(t, Far)]
    if far and func not in BETWEEN_DEVICES and any(t.dim() > 0 for t in tensors if not isinstance(t, Far)):
        raise RuntimeError(f"{func} of tensors on two devices: {[(t.device.type, tuple(t.shape)) for t in tensors]}")
    asked = kwargs.get("device")
    target = args[0] if func is aten.copy_.default else far[0] if far else None  # where the result is
    result_is_far = torch.device(asked).type == NAME if asked is not None else isinstance(target, Far)
    given = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    if asked is not None:
        given["device"] = torch.device("cpu")
    if far and (func in READS or func in BETWEEN_DEVICES and not result_is_far):
        waits[str(func)] += 1
    if result_is_far and func in BETWEEN_DEVICES and not all(isinstance(t, Far) for t in tensors):
        waits["sent"] += 1
    args_near, given = tree_map(near, args), tree_map(near, given)
    if capturing:
        results = capturing[-1].compute(func, args_near, given, {isinstance(t, Far) for t in tensors} | {result_is_far})
    else:
        results = func(*args_near, **given)
    if torch.Tag.inplace_view in func.tags:  # squeeze_ and the like: the outer tensor has a shape, too
        with no_dispatch():
            func(*args, **kwargs)
    outer = {id(near(t)): t for t in tensors}  # what an operation in place, or with out=, gives back

    def placed(result):
        if not isinstance(result, torch.Tensor):
            return result
        return outer[id(result)] if id(result) in outer else Far(result) if result_is_far else result
    return tree_map(placed, results)


class SecondDevice(TorchDispatchMode):
    """With it, tensors can be made on the device, too."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


class Graph:
    """In the place of torch.cuda.CUDAGraph. Like it: what is captured has not been computed until it is repeated."""

    def __init__(self):
        self.operations = []
        self.refused = []  # what the host has to wait for
        self.own, self.results = {}, {}  # address -> a tensor whose memory is the graph's; id -> what an operation of it gave
        self.before = {}  # address -> (memory from outside that it writes, what was there)

    def compute(self, func, args, kwargs, devices):
        if func in READS or func in BETWEEN_DEVICES and len(devices) > 1:
            self.refused.append(f"{func}({', '.join(str(tuple(t.shape)) for t in tensors_in(args))})")
        given = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors_in((args, kwargs))}
        if func._schema.is_mutable:
            for address in given.keys() - self.own.keys() - self.before.keys():
                self.before[address] = given[address], given[address].clone()
        results = func(*args, **kwargs)
        made = [t if t.untyped_storage().data_ptr() not in given else None for t in tensors_in(results)]
        self.own.update((t.untyped_storage().data_ptr(), t) for t in made if t is not None)
        self.results.update((id(t), t) for t in tensors_in(results) if id(t) not in {id(own) for own in tensors_in((args, kwargs))})
        if func._schema.is_mutable or any(t is not None for t in made):  # (a view need not be made again)
            self.operations.append((func, *tree_map(self.kept, (args, kwargs)), made))
        return results

    def kept(self, value):
        """A graph keeps its own memory, and knows where that of others was."""
        return weakref.ref(value) if isinstance(value, torch.Tensor) and id(value) not in self.results else value

    def end(self):
        """RuntimeError: the host would have had to wait."""
        if self.refused:
            raise RuntimeError(f"in a graph, where the host cannot wait: {'; '.join(self.refused)}")
        for storage, numbers in self.before.values():
            storage.copy_(numbers)

    def replay(self):
        for func, args, kwargs, made in self.operations:
            args, kwargs = tree_map(there, (args, kwargs))
            for place, result in zip(made, tensors_in(func(*args, **kwargs)), strict=True):
                if place is not None:
                    place.copy_(result)


def there(value):
    """RuntimeError: memory that the graph reads is free, and may be another's by now."""
    if isinstance(value, weakref.ref) and value() is None:
        raise RuntimeError("a tensor that the graph reads, and did not make, is gone")
    return value() if isinstance(value, weakref.ref) else value


@contextlib.contextmanager
def capture(graph, capture_error_mode="global"):
    capturing.append(graph)
    try:
        yield
    finally:
        capturing.remove(graph)
    graph.end()


class _FusedAdamW(torch.optim.AdamW):
    def __init__(self, *args, **options):
        super().__init__(*args, **{**options, "fused": True})


class _Stream:
    def wait_stream(self, other):
        pass


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]


def install():
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    torch.__future__.set_swap_module_params_on_conversion(True)  # model.to(device) keeps tied weights tied, as it does for CUDA
    torch._C._set_only_lift_cpu_tensors(True)
    torch.Generator = type("Generator", (), {"__new__": lambda cls, device="cpu", of=torch.Generator: of("cpu")})


def main(args):
    """args: the script's name, then what it gets."""
    torch.set_num_threads(1)
    install()
    script = importlib.import_module(args[0])
    from training import guard, machine
    pick = machine.pick_device
    for module in [*sys.modules.values()]:
        if getattr(module, "pick_device", None) is pick:
            module.pick_device = lambda wanted: FULL_NAME if wanted in (NAME, "auto") else pick(wanted)
    if os.environ.get("SECOND_DEVICE_IS_CUDA"):
        from training import stacked
        guard.Guard.must_wait = lambda self, device_type, optimizers: not all(isinstance(o, torch.optim.AdamW) for o in optimizers)
        stacked.is_gpu = lambda device: device.startswith(NAME)
        torch.optim.AdamW = _FusedAdamW
        torch.cuda.Stream = torch.cuda.current_stream = _Stream
        torch.cuda.stream = lambda stream: contextlib.nullcontext()
        torch.cuda.CUDAGraph, torch.cuda.graph = Graph, capture
    try:
        with SecondDevice():
            script.main(args[1:])
    finally:
        if path := os.environ.get("SECOND_DEVICE_WAITS"):
            pathlib.Path(path).write_text(json.dumps(waits))
