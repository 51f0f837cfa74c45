"""
Are these rows points of the space? geometry.check, and GEOMETRY_CHECK=1, which makes every map of geometry/ ask that.

    x = geometry.check(x, c)                 ValueError, in one line, if a row of x is no point of the space of curvature c
    GEOMETRY_CHECK=1 python train.py ...     every map checks every point and every tangent vector that it is given

The maps themselves do not look: looking makes a GPU wait for the CPU. Outside the ball their formulas mean nothing and still give
finite numbers. GEOMETRY_CHECK is read once, when geometry/ is imported; empty and 0 are off. Off, the maps are not wrapped and
cost nothing. On, each check reads its rows once more, in float64. In compiled code a check is an operator of its own, with the
same message: graphs stay whole, but what Inductor would fuse across it is not fused. The kernels of kernels/ do not check.
"""
import functools
import inspect
import os

import torch

from geometry.rows import as_curvature

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # of rows

# The arguments of each map that are rows, by what they must be: p a point, t a tangent vector (any finite row).
ROWS = {
    "conformal_factor": dict(x="p"), "mobius_add": dict(x="p", y="p"), "expmap": dict(x="p", v="t"),
    "add_exp_0": dict(x="p", v="t"), "add_exp": dict(x="p", r="p", v="t"), "logmap": dict(x="p", y="p"),
    "log_previous": dict(x="p"),
    "exp_0": dict(v="t"), "log_0": dict(x="p"), "dist": dict(x="p", y="p"), "gyration": dict(x="p", y="p", v="t"),
    "transport": dict(x="p", y="p", v="t"), "project": dict(x="t"), "gyromidpoint": dict(x="p"),
}


def wanted():
    """Does the environment ask for checks everywhere?"""
    return os.environ.get("GEOMETRY_CHECK", "") not in ("", "0")


def check(x, c, name="x"):
    """x itself, if its rows are points of the space of curvature c: finite, and for c > 0 inside the ball, |x| sqrt(c) < 1.

    x: (..., D), float32, bfloat16, float16 or float64. c: a number or a tensor that broadcasts against (..., 1). name: what the
    message calls x. Rows as project() and limited sums leave them pass, in every dtype (float16: for c up to 1e4; a smaller ball
    is made of its subnormal numbers). Lengths are taken in float64.
    ValueError: a row is not a point, the dtype is another one, c is not finite or does not broadcast. TypeError: c is no number. It
    waits for the device.
    """
    return _check(x, c, name, True)


def check_tangent(v, c, name="v"):
    """v itself, if its rows are finite. Otherwise as check()."""
    return _check(v, c, name, False)


def _check(x, c, name, points):
    _check_form(x, c, name)
    if not torch.compiler.is_compiling():
        _check_values(x, c, name, points)
        return x
    if not isinstance(c, torch.Tensor):
        c = torch.full((), c, dtype=torch.float32 if x.device.type == "mps" else torch.float64, device=x.device)
    return _check_in_graph(x, c.detach(), name, points)


def _check_form(x, c, name):
    """What can be said without looking at the numbers."""
    if not isinstance(x, torch.Tensor):
        raise ValueError(f"{name}: rows must be a tensor, not {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise ValueError(f"{name}: rows must be float32, bfloat16, float16 or float64, not {str(x.dtype).removeprefix('torch.')}")
    if x.dim() == 0:
        raise ValueError(f"{name}: rows have the shape (..., D), this is a single number")
    if not isinstance(c, float):  # (of a float it is said below whether it is finite)
        as_curvature(c, torch.float64, "cpu")
    if isinstance(c, torch.Tensor):
        each = (*x.shape[:-1], 1)
        last = c.shape[-1] if c.dim() else 1
        if last != 1 or any(a != b and 1 not in (a, b) for a, b in zip(reversed(c.shape), reversed(each))):
            raise ValueError(f"{name}: c of shape {tuple(c.shape)} does not fit rows of shape {tuple(x.shape)}: it must "
                             f"broadcast against {each}, one number a row")


@torch.no_grad()
def _check_values(x, c, name, points):
    if x.is_meta or not x.numel():  # no numbers to look at
        return
    device = "cpu" if x.device.type == "mps" else x.device  # mps has no float64
    c = c.detach().to(device).double() if isinstance(c, torch.Tensor) else torch.full((), c, dtype=torch.float64, device=device)
    x = x.detach().to(device).double()
    if not c.isfinite().all():
        raise ValueError(f"{name}: c is not finite")
    finite = x.isfinite().all(-1, keepdim=True)
    if not finite.all():
        raise ValueError(f"{name}: {_rows_where(~finite)} not finite")
    if points:
        largest = x.abs().amax(-1, keepdim=True).clamp(min=1e-300)
        length = largest * (x / largest).norm(dim=-1, keepdim=True)  # no square overflows
        reach = length * c.clamp(min=0).sqrt()
        outside = reach >= 1
        if outside.any():
            raise ValueError(f"{name}: {_rows_where(outside)} not inside the ball, |x| sqrt(c) is up to "
                             f"{reach.max().item():.9g} and must be below 1; geometry.project(x, c) puts rows inside, and "
                             f"limit = geometry.max_norm(c, dtype) keeps a sum there")


def _rows_where(bad):
    """bad: (..., 1), with at least one True"""
    bad = bad.squeeze(-1)
    first = bad.nonzero()[0].tolist()
    index = f" (the first: {', '.join(map(str, first))})" if first else ""
    return f"{int(bad.sum())} of {bad.numel()} rows{index} are"


@torch.library.custom_op("geometry::check", mutates_args=())
def _check_in_graph(x: torch.Tensor, c: torch.Tensor, name: str, points: bool) -> torch.Tensor:
    """A copy of x, so that what reads it comes after the check."""
    _check_values(x, c, name, points)
    return x.clone()


@_check_in_graph.register_fake
def _(x, c, name, points):
    return torch.empty_like(x)


_check_in_graph.register_autograd(lambda ctx, grad: (grad, None, None, None))


def checking(f):
    """The map f with checks of its rows."""
    kinds, names = ROWS[f.__name__], tuple(inspect.signature(f).parameters)

    @functools.wraps(f)
    def checked(*args, **kwargs):
        given = dict(zip(names, args))
        given.update(kwargs)
        for name, kind in kinds.items():
            given[name] = _check(given[name], given["c"], f"{f.__name__}: {name}", kind == "p")
        return f(**given)

    return checked
