"""What the tests of geometry/ share: its functions with their oracles, rows in every space, relative errors, gradients."""
import math

import mpmath as mp
import oracle as O
import torch
from hypothesis import settings
from hypothesis import strategies as st

import geometry as G

torch.set_num_threads(1)

DIMENSIONS = (1, 2, 7, 32, 123, 384)
CURVATURES = (10.0, 1.0, 0.1, 1e-3, 1e-6, 1e-12, 0.0, -1e-12, -1e-6, -1e-3, -0.1, -1.0, -10.0)
GRADCHECK_CURVATURES = (-1.0, -1e-3, 0.0, 1e-3, 1.0)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def midpoint_of_two(x, y, c):
    """gyromidpoint as a function of rows like the others, weights 1 : 2."""
    weights = torch.tensor([[1.0, 2.0]], device=x.device)
    c = c[..., None] if isinstance(c, torch.Tensor) else c
    return G.gyromidpoint(torch.stack((x, y), dim=-2), weights, c).squeeze(-2)


def limited(f):
    """f with the projection that models ask for; the limit depends on c as well."""
    return lambda *rows_and_c: f(*rows_and_c, limit=G.max_norm(rows_and_c[-1], rows_and_c[0].dtype))


# every public function of rows, and what its rows are: p a point, t a tangent vector, f a row that may be anything
FUNCTIONS = {
    "mobius_add": (G.mobius_add, "pp"), "expmap": (G.expmap, "pt"), "add_exp_0": (G.add_exp_0, "pt"), "logmap": (G.logmap, "pp"),
    "exp_0": (G.exp_0, "t"),
    "log_0": (G.log_0, "p"), "dist": (G.dist, "pp"), "gyration": (G.gyration, "ppt"),
    "transport": (G.transport, "ppt"), "project": (G.project, "f"), "conformal_factor": (G.conformal_factor, "p"),
    "midpoint_of_two": (midpoint_of_two, "pp"),
}

# what models make of them
USED = {
    "add_exp": (G.add_exp, "ppt"), "log_previous": (lambda x, c: G.log_previous(x[None], c)[0], "p"),
    **{f"{name}, limited": (limited(f), kinds) for name, f, kinds in (
        ("mobius_add", G.mobius_add, "pp"), ("expmap", G.expmap, "pt"), ("add_exp_0", G.add_exp_0, "pt"), ("add_exp", G.add_exp, "ppt"))},
}

ORACLES = {
    "mobius_add": O.mobius_add, "expmap": O.expmap, "add_exp_0": lambda x, v, c: O.mobius_add(x, O.exp_0(v, c), c),
    "logmap": O.logmap, "exp_0": O.exp_0, "log_0": O.log_0,
    "dist": lambda x, y, c: [O.dist(x, y, c)], "gyration": O.gyration, "transport": O.transport,
    "conformal_factor": lambda x, c: [O.conformal(x, c)],
    "midpoint_of_two": lambda x, y, c: O.gyromidpoint((x, y), (1, 2), c),
}


def radius(c):
    """The length that c sets; at c = 0 there is none and 1 does."""
    return 1 / math.sqrt(abs(c)) if c else 1.0


def generator(seed):
    return torch.Generator().manual_seed(seed)


def unit(rng, *shape):
    v = torch.randn(*shape, dtype=torch.float64, generator=rng)
    return v / v.norm(dim=-1, keepdim=True)


def random_rows(kinds, shape, c, rng):
    """float64 rows of moderate size: points within 0.7 radii, tangent vectors that do not reach the antipode."""
    longest = {"p": 0.7, "t": 0.5, "f": 2.0}
    lengths = (torch.rand(*shape[:-1], 1, dtype=torch.float64, generator=rng) for _ in kinds)
    return [unit(rng, *shape) * length * longest[kind] * radius(c) for kind, length in zip(kinds, lengths)]


def within(y, limit, c):
    """y, shortened to `limit` ball radii where c > 0 and it is longer."""
    return y * min(1.0, limit * radius(c) / float(y.norm())) if c > 0 else y


def exactly(c):
    """c as a float32 scalar and that same number for the oracle."""
    c = torch.tensor(c)
    return c, mp.mpf(c.item())


def neighbours(seed, near_inverse=False):
    """(c, x, y) in float32 over all curvatures, norms up to 0.999 and gaps from 1e-6 to 1 (in ball radii), through all
    dimensions. near_inverse: y = -x + gap."""
    rng = generator(seed)
    turn = seed
    for c in CURVATURES:
        for fraction in (0.0, 0.5, 0.9, 0.99, 0.999):
            for gap in (1e-6, 1e-4, 1e-2, 0.1, 1.0):
                d = DIMENSIONS[turn % len(DIMENSIONS)]
                turn += 1
                x = unit(rng, d) * fraction * radius(c)
                y = (-x if near_inverse else x) + unit(rng, d) * gap * radius(c)
                x, y = x.float(), within(y, 0.999, c).float()
                if not torch.equal(x, y):
                    yield c, x, y


def within_bound(cases):
    """Of (error, bound, description): the case that uses up most of its bound is below it."""
    error, bound, description = max(cases, key=lambda case: case[0] / case[1])
    assert error <= bound, f"error {error:.2e} exceeds {bound:.2e} at {description}"


def relative(got, expected):
    """Relative distance of two tensors as whole tensors, in float64."""
    got, expected = got.detach().double(), expected.detach().double()
    return float((got - expected).norm() / expected.norm().clamp(min=1e-300))


def rows_error(got, expected, floor=0.0):
    """The largest relative distance of two rows."""
    difference = (got.double() - expected.double()).norm(dim=-1)
    return float((difference / expected.double().norm(dim=-1).clamp(min=max(floor, 1e-300))).max())


def gradients(f, rows, c, seed):
    """Output and gradients by all rows and c of a float tensor c, for the random cotangent of this seed."""
    rows = [row.detach().clone().requires_grad_() for row in rows]
    c = c.detach().clone().requires_grad_()
    out = f(*rows, c)
    cotangent = torch.randn(out.shape, generator=generator(seed), dtype=torch.float64)
    return out.detach(), torch.autograd.grad(out, [*rows, c], cotangent.to(out.dtype))


def expmap_case(c, x, v):
    ct, cm = exactly(c)
    error = O.relative_error(G.expmap(x, v, ct), O.expmap(O.row(x), O.row(v), cm))
    return error, 2e-6, (c, x.norm(), v.norm(), len(x))


def half_angle(c, x, v):
    """sqrt|c| lambda_x |v| / 2: beyond pi/2 on the sphere SPHERE_CAP ends the exponential map, by design."""
    return math.sqrt(abs(c)) * float(v.double().norm()) / (1 - c * float(x.double().square().sum()))


curvatures = st.sampled_from(CURVATURES) | st.builds(
    lambda sign, exponent: sign * 10.0 ** exponent, st.sampled_from((1, -1)), st.floats(-12, 1))


@st.composite
def spaces(draw, kinds):
    """c of either sign or 0 and float64 rows of one shape."""
    c = draw(curvatures)
    shape = draw(st.sampled_from(((5, 123), (3, 4, 7), (6, 1), (2,), (1, 1, 32))))
    return c, random_rows(kinds, shape, c, generator(draw(st.integers(0, 2 ** 32))))


laws = settings(deadline=None, max_examples=50, derandomize=True)


def extreme_rows(d, dtype, seed):
    """Rows from 0 over everything between to finfo.max in every component, stored in dtype."""
    rng = generator(seed)
    largest = torch.finfo(dtype).max
    g = torch.randn(1, d, dtype=torch.float64, generator=rng)
    other = torch.randn(1, d, dtype=torch.float64, generator=rng) * 1e3
    scales = (0.0, 1e-30, 1e-8, 0.1, 1.0, 1e3, -1e3, 1e12, 1e38, float("inf"))
    rows = [(g * s).nan_to_num(0.0) if s != float("inf") else g.sign() * largest for s in scales]
    return torch.cat([*rows, other]).clamp(-largest, largest).to(dtype)


def check_finite(name, rows, c, seed):
    """Forward and backward of one function over all pairs of rows, points being projected first."""
    f, kinds = {**FUNCTIONS, **USED}[name]
    n = len(rows)
    first, second = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    picks = (first.flatten(), second.flatten(), first.flatten().flip(0))
    c = torch.tensor(c, dtype=torch.promote_types(rows.dtype, torch.float32))
    points = G.project(rows, c)
    assert points.isfinite().all(), ("project", c, rows.dtype)
    picks = picks if len(kinds) > 1 else (torch.arange(n),)
    arguments = [(points if kind == "p" else rows)[pick] for kind, pick in zip(kinds, picks)]
    if name == "midpoint_of_two":
        arguments = [points[pick] for pick in picks[:2]]
    out, grads = gradients(f, arguments, c, seed)
    assert out.isfinite().all(), (name, c, rows.dtype, (~out.isfinite()).any(-1).nonzero().flatten().tolist()[:4])
    for k, grad in enumerate(grads):
        assert grad.isfinite().all(), (name, f"gradient {k}", c, rows.dtype, (~grad.isfinite()).nonzero()[:3].tolist())
