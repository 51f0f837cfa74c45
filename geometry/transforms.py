"""torch.func and forward mode: vmap, grad, jacrev, jvp, jvp of grad, ... of the maps.

Derivatives in closed form are autograd Functions of the plain kind, which these transforms do not take. Each is the derivative of an
expression of ordinary operations that is written out beside it, for derivatives of derivatives. Where a transform is at work that
expression stands for the Function; its accuracy is that of create_graph=True. (In compiled code the Functions stay.)
"""
import torch
from torch.autograd import forward_ad


def transformed():
    """Is a transform of torch.func, or forward mode, at work?"""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def apply(function, expression, *inputs):
    """function.apply(*inputs), or expression(*inputs), the same numbers by ordinary operations."""
    return expression(*inputs) if transformed() else function.apply(*inputs)


def first(f):
    """f without the row scalars that it keeps for a derivative in closed form."""
    return lambda *inputs: f(*inputs)[0]
