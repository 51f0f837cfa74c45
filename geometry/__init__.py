"""
Stereographic geometry of constant curvature in plain PyTorch: the reference that every other implementation is
checked against. Traceable by torch.compile (fullgraph), no host synchronisation, differentiable twice.

Convention. `c` is minus the sectional curvature, kappa = -c:
    c > 0  hyperbolic, the Poincare ball of radius 1/sqrt(c)        (Ganea, Becigneul, Hofmann 2018)
    c = 0  Euclidean
    c < 0  spherical, the stereographic projection of the sphere    (Bachmann, Becigneul, Ganea 2020)
Nothing is special about c = 0: every function is analytic in c there, so a learned curvature can change its sign.

Shapes. Points and tangent vectors are rows (..., D). `c` is a float or a tensor that broadcasts against (..., 1):
a scalar, one per head ((n_head, 1) for rows (..., n_head, head_size)) or one per token ((B, T, 1)). TypeError: it is a
boolean, a tensor of integers, or no number. ValueError: NaN or Inf, or a tensor whose last dimension is not 1. NaN within a
tensor is not looked for (it gives rows of NaN).

Dtypes. float32, bfloat16, float16, float64. Rows of the first three are computed in float32 (the last step of expmap and
mobius_add in float64, so that a float32 result is rounded once) and cast back at the end.
Dot products and the differences of nearly equal numbers that are made of them (A, M, N below) are float64, which costs
little beside reading the rows; they and the coefficients that follow from them are one number a row; a c that is given as
a Python number is not rounded to float32 first. Where there is no float64 (Apple's mps) or a slow one, use_row_scalars() has them
in float32 with compensation (float32.py; docs/float64.md has the accuracy of both): for c > 0 nearly as accurate, on the
sphere less so towards the antipode. There points in flat space are at most 1e8 long and tangent vectors 1e10, and c is float32.

Form. Textbooks write these operations with the Gram entries x.x, x.y, y.y, which cancel catastrophically for points
near each other or near the boundary. Here w = y + x or w = y - x is formed first, and every result is
beta (w + rho x): three squared norms (x.x, y.y, w.w), two row coefficients, one read of each row and one write
(tests/test_geometry.py compares both forms with 60 digits). The denominators are A B + c|w|^2: for c > 0 a sum of positive
numbers. Derivatives of the maps that models use are in closed form.

Domain. Points are inside the ball: project() puts them there, and the limit of a sum keeps them there. Any finite tangent
vector is accepted; on the sphere the exponential map stops just before the antipode (SPHERE_CAP). The antipode of the
origin is at infinity in this chart; sums that meet it give large but finite rows. For such inputs no result and no
derivative is NaN or Inf (floors under A, M and N; casts saturate). A point outside the ball is misuse, which the maps do
not notice: the result is finite and not the formula's. check(x, c) raises ValueError there, and with GEOMETRY_CHECK=1 in
the environment every map checks what it is given (checks.py; off in training: a check waits for the device).

Which file
    maps.py              the operations, as models call them: formulas, shapes, errors
    logarithms.py        the logarithm and its derivatives in closed form
    sums.py              the sums and theirs
    projection.py        rows kept inside the ball; limits.py: how far inside, for each dtype
    coefficients.py      conformal factors, denominators, coefficients: one number a row
    scalar_functions.py  tanc and artanc
    rows.py              dtypes, dot products
    float32.py           row scalars without float64, for GPUs on which that is slow
    flat.py              what a curved block does, in flat space: options of model_baseline.py
    inductor.py          what only makes the compiler's code for CPUs better
    transforms.py        torch.func: vmap, grad, jacrev, jvp, hessian of every map
    checks.py            are these rows points of the space?

References
    Ungar 2008, Analytic Hyperbolic Geometry and Albert Einstein's Special Theory of Relativity (gyrations)
    Ganea, Becigneul, Hofmann 2018, Hyperbolic Neural Networks, arXiv:1805.09112
    Bachmann, Becigneul, Ganea 2020, Constant Curvature Graph Convolutional Networks, arXiv:1911.05076
    Kochurov, Karimov, Kozlukov 2020, Geoopt: Riemannian Optimization in PyTorch, arXiv:2005.02819
"""
from geometry.checks import ROWS as _ROWS
from geometry.checks import check
from geometry.checks import checking as _checking
from geometry.checks import wanted as _wanted
from geometry.float32 import row_scalars, use_row_scalars
from geometry.limits import BALL_MARGIN, POINT_LIMIT, POINT_LIMIT_FLOAT32, ROUNDING, SPHERE_CAP, TANGENT_LIMIT_FLOAT32
from geometry.maps import (
    add_exp,
    add_exp_0,
    conformal_factor,
    dist,
    exp_0,
    expmap,
    gyration,
    gyromidpoint,
    log_0,
    log_previous,
    logmap,
    mobius_add,
    transport,
)
from geometry.projection import max_norm, project
from geometry.rows import fits, spread
from geometry.scalar_functions import artanc, tanc

if _wanted():
    globals().update({name: _checking(globals()[name]) for name in _ROWS})
