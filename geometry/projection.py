"""Rows kept inside the ball."""
import math

import torch

from geometry.float32 import wide_on
from geometry.limits import BALL_MARGIN, POINT_LIMIT, POINT_LIMIT_FLOAT32, ROUNDING, SPHERE_CAP
from geometry.rows import _cast, _dot, _finite_cast, _prepare, _scale, _squarable, as_curvature


def max_norm(c, dtype):
    """The largest norm that project() leaves to a row of this storage dtype: (1 - margin)/sqrt(c) for c > 0,
    cot(cap)/sqrt(-c) for c < 0, and at most POINT_LIMIT, also at c = 0. c: tensor, any shape -> the same shape, wide; or a number.
    TypeError, ValueError: it is no curvature."""
    c = as_curvature(c, torch.float64, "cpu", of_rows=False)  # of any shape
    wide = torch.float64 if dtype == torch.float64 else wide_on(c.device)
    c = c if c.dtype == wide else _finite_cast(c, wide)
    radius = torch.rsqrt(c.abs().clamp(min=torch.finfo(c.dtype).tiny))
    sphere = radius / math.tan(SPHERE_CAP[dtype])
    longest = POINT_LIMIT[dtype] if wide == torch.float64 else min(POINT_LIMIT[dtype], POINT_LIMIT_FLOAT32)
    return torch.where(c > 0, (1 - BALL_MARGIN[dtype]) * radius, sphere).clamp(max=longest)


def project(x, c, limit=None):
    """The row, shortened to max_norm(c, x.dtype) where it is longer; rows inside are unchanged bit for bit.
    (..., D) -> points (..., D). The margin is that of the dtype in which the row is stored. limit: max_norm(c, x.dtype), for
    whoever has it."""
    c, stored, x = _prepare(c, x)
    x = _squarable(x)
    norm2 = _dot(x, x)
    bound = max_norm(c, stored) if limit is None else limit.to(norm2.dtype)
    # shortened rows come out a rounding error longer than bound; they count as inside, so that projecting twice is the
    # same as projecting once. (So written, a NaN in c or in the row is one in the result.)
    outside = ~(norm2 <= (bound * (1 + ROUNDING[stored])).square())
    shrink = torch.where(outside, bound, 1.0) * torch.rsqrt(torch.where(outside, norm2, 1.0))
    # a row of length 1e38 has a factor that float32 holds with few bits: rounded down, so that it ends inside
    shrink = (shrink - 2.0 ** -149).clamp(min=0)
    return _cast(_scale(shrink, x), stored)
