"""
What the forms of attention by distance have in common: which tensors they take, and how heads are laid out.
"""
import functools

import torch

NARROW = 28.0  # |a|, |b| up to here: e^{3 NARROW} is a float32 number, so that no exponent needs a reference of its own


def check(a, b, v, same_length=False):
    """(key heads, query heads a key head) of a (B, nh, T), b (B, n_kv, T_all), v (B, n_kv, T_all, D).

    ValueError or TypeError where they do not go together. T <= T_all: the queries are those of the last T positions.
    """
    shapes = f"a is {tuple(a.shape)}, b is {tuple(b.shape)}, v is {tuple(v.shape)}"
    if a.dim() != 3 or b.dim() != 3 or v.dim() != 4:
        raise ValueError(f"a is (B, nh, T), b (B, n_kv, T), v (B, n_kv, T, D); {shapes}")
    if v.shape[:3] != b.shape or a.size(0) != b.size(0):
        raise ValueError(f"a, b and v have one batch size, b and v the same heads and positions; {shapes}")
    if b.size(1) == 0 or a.size(1) % b.size(1):
        raise ValueError(f"the number of query heads is a multiple of the number of key heads; {shapes}")
    if a.size(2) > b.size(2) or same_length and a.size(2) != b.size(2):
        raise ValueError(f"as many queries as keys{'' if same_length else ', or fewer'}; {shapes}")
    if not a.is_floating_point() or a.dtype != b.dtype or a.dtype.itemsize < 4:
        raise TypeError(f"a and b are both float32 or both float64, not {a.dtype} and {b.dtype}: 16 bits are too few for a distance")
    if not v.is_floating_point():
        raise TypeError(f"v is of a floating point dtype, not {v.dtype}")
    return b.size(1), a.size(1) // b.size(1)


def arithmetic(a, v):
    """The dtype of sums: float64 if an input is, else float32."""
    return torch.float64 if torch.float64 in (a.dtype, v.dtype) else torch.float32


def is_narrow(a, b):
    """Do products of e^{+-a} and e^{+-b} stay within float32?

    Where they do not (or an input is NaN), exponents are differences, taken in float64, and each query has a reference.
    """
    if a.numel() == 0:
        return True
    return bool(torch.maximum(a.abs().amax(), b.abs().amax()) <= NARROW)  # False for NaN


def age_weights(slope, B, T):
    """Logarithmic weights of keys, slope * position, float64: those of -slope * age but for a number of each query, which a softmax
    does not see. slope: (n_kv,) or None. -> (B n_kv, T) or None."""
    if slope is None:
        return None
    return (slope.double().unsqueeze(-1) * torch.arange(T, device=slope.device)).repeat(B, 1)


def exp_(exponent, dtype, most=None):
    """e^exponent in dtype; the argument may be overwritten. Not less than e^-80 (float64: e^-700): what is smaller is not seen beside a
    weight of 1, and numbers below the normal ones take a CPU 10 to 100 times as long. most: what the exponent is at most."""
    return exponent.to(dtype).clamp_(-700.0 if dtype == torch.float64 else -80.0, most).exp_()


def without_autocast(operator):
    """What an operator's arithmetic is made of stays in the dtypes that it chose."""
    @functools.wraps(operator)
    def in_own_dtypes(a, *others):
        with torch.autocast(a.device.type, enabled=False):
            return operator(a, *others)
    return in_own_dtypes
