"""
Every kernel of kernels/ against geometry/ in float64: output and every gradient, at all widths of the tests, in all dtypes,
for curvatures of both signs and 0, with and without a limit, for one c, c per head and per row; at the ball's edge; rows that are
not contiguous. Memory is filled with NaN before it is handed out, so that a number that is not written shows.

An error is relative to the norm of what it is an error of. float32 rows: it has to be under a bound. 16 bits: under twice the
error of geometry/ in the same dtype, plus that bound.

Other jobs of this part compile the models that later parts time, for their caches on disk: the processors would idle.
"""

import math
import os
import time
from dataclasses import dataclass, field

import bench_kernels
import bench_model
import torch
from torch.nn import functional as F

import geometry
from gpu_parts import Job

WIDTHS = (1, 7, 64, 100, 123, 384, 768, 1000, 1024, 2048, 4096, 8192)
PER_HEAD = (64, 384)  # widths at which c per head is tried
CURVATURES = (-1.0, 0.0, 1e-6, 0.1, 1.0)
MAPS = ("mobius_add", "expmap", "add_exp_0", "add_exp", "logmap")
MIXED, ONE_C = "mixed, c per head", "mixed, one c a block"
REFERENCES = ("previous", "origin", "given")
EPS = 2.0**-23
LIMIT = 0.2
BOUND = 3e-5  # float32, relative; the tests' for the interpreter


def jobs(settings):
    import kernels  # noqa: F401 - where it cannot be imported, that is what this part says

    if settings.quick:
        return [
            Job("add_exp_0, float16", ("add_exp_0", "float16", (7,))),
            Job("log_layernorm, float32", ("log_layernorm", "float32", (3,))),
            Job("compile toy, baseline", ("toy", "baseline")),
        ]
    first = [("124M", arm) for arm in (MIXED, ONE_C, f"{MIXED}, triton")]  # those that take longest to compile
    others = [("124M", arm) for arm in ("baseline", f"{ONE_C}, triton", "flat", "smear")]
    others += [(shape, arm) for shape in ("350M", "large", "small", "text") for arm in (MIXED, f"{MIXED}, triton", "baseline")]
    checks = [
        Job(f"{name}, {dtype}, {widths[0]} to {widths[-1]} columns", (name, dtype, widths))
        for widths in (WIDTHS[6:], WIDTHS[:6])
        for name in (*MAPS, "log_layernorm")
        for dtype in ("float32", "bfloat16", "float16")
    ]
    before, after = ([Job(f"compile {shape}, {arm}", (shape, arm)) for shape, arm in pairs] for pairs in (first, others))
    return before + checks + after


def workers(settings):
    return 2 if settings.quick else max(1, min(14, (os.cpu_count() or 2) - 2))


def run(job, settings, record):
    if len(job.arguments) == 2:
        warm(*job.arguments, settings, record)
        return
    # torch fills what it hands out with NaN
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        name, dtype, widths = job.arguments
        for D in widths:
            check(name, dtype, D, settings, record)
    finally:
        torch.use_deterministic_algorithms(False)


def warm(shape, arm, settings, record):
    began = time.perf_counter()
    bench_model.compile_only(arm, shape, settings.device, "bfloat16", **(dict(backend="aot_eager") if settings.quick else {}))
    record(what="compile", shape=shape, arm=arm, seconds=time.perf_counter() - began)


# ----------------------------------------------------------------------------------------------------------------------


@dataclass
class Worst:
    """Of many comparisons, the one nearest to its bound, or farthest over it"""

    share: float = 0.0  # of its bound
    error: float = 0.0
    bound: float = 0.0
    where: str = ""
    count: int = 0
    broken: list = field(default_factory=list)

    def add(self, error, bound, where):
        self.count += 1
        share = error / bound
        if not math.isfinite(share):
            share = math.inf
        if share >= self.share:
            self.share, self.error, self.bound, self.where = share, error, bound, where
        if not share <= 1 and len(self.broken) < 5:
            self.broken.append(f"{where}: {error:.1e} over {bound:.1e}")


def check(name, dtype, D, settings, record):
    for what, cases in (("inside", inside), ("edge", edge), ("not contiguous", strided)):
        worst = Worst()
        for label, inputs, taken, f, exact, in_torch, bound in cases(name, getattr(torch, dtype), D, settings):
            compare(worst, label, inputs, taken, f, exact, in_torch, bound)
        if worst.count:
            record(
                what="correctness",
                op=name,
                dtype=dtype,
                D=D,
                rows=what,
                compared=worst.count,
                relative_error=worst.error,
                bound=worst.bound,
                share_of_bound=worst.share,
                worst=worst.where,
                ok=worst.share <= 1,
                broken=worst.broken,
            )


def compare(worst, label, inputs, taken, f, exact, in_torch, bound):
    rng = torch.Generator(inputs[0].device).manual_seed(7)
    inputs = [t.detach().requires_grad_() for t in inputs]
    with torch.no_grad():
        like = f(*inputs)
    g = torch.randn(like.shape, generator=rng, device=like.device).to(like.dtype)
    errors = bench_kernels.errors_of(f, exact, inputs, g, taken, floor=0.05)
    allowed = [0.0] * len(errors)
    if like.dtype != torch.float32:
        allowed = [2 * e for e in bench_kernels.errors_of(in_torch, exact, inputs, g, taken, floor=0.05)]
    for i, (error, more) in enumerate(zip(errors, allowed)):
        worst.add(error, bound + more, f"{label}, {f'gradient {i}' if i else 'output'}")


def points(count, shape, c, dtype, device, longest=0.6):
    """Within `longest` radii (of 1 at c = 0)"""
    rng = torch.Generator(device).manual_seed(shape[-1])
    size = longest / max(abs(c), 1e-2 if c else 1) ** 0.5
    found = []
    for _ in range(count):
        v = torch.randn(shape, generator=rng, device=device)
        found.append((F.normalize(v, dim=-1) * torch.rand((*shape[:-1], 1), generator=rng, device=device) * size).to(dtype))
    return found


def of_shape(c, kind, lead, device):
    """c as one number, one a head (the last of the leading dimensions) or one a row"""
    shape = {"one": (), "head": (lead[-1], 1), "row": (*lead, 1)}[kind]
    return c * torch.linspace(1, 0.5, math.prod(shape), device=device).reshape(shape)


def layer_norm_case(reference, kept):
    """(on the kernels, in PyTorch): LayerNorm(log_r(x)) of (x, [r,] c, weight, bias). kept: dtype of the result"""
    import kernels

    def on_kernels(x, *rest):
        r, (c, weight, bias) = rest[:-3], rest[-3:]
        return kernels.log_layernorm(x, c, weight, bias, reference, *(r or (None,)), kept)

    def in_pytorch(x, *rest):
        r, (c, weight, bias) = rest[:-3], rest[-3:]
        base = r[0] if r else x * 0 if reference == "origin" else F.pad(x, (0, 0, 0, 0, 1, -1))
        u = geometry.logmap(base, x, c).flatten(2)
        out = F.layer_norm(u.to(weight.dtype), weight.shape, weight, bias).view(x.shape)
        return out if out.dtype == torch.float64 else out.to(kept)

    return on_kernels, in_pytorch


def layer_norm_cases(dtype, D, settings, longest, bound, layout=lambda t: t):
    """A row is D numbers: one head, and where D is divisible by 4 also four"""
    device, T = settings.device, 2 if settings.quick else 21 if D < 2048 else 9
    for heads in (1, 4) if D % 4 == 0 and D <= 4096 else (1,):
        for reference in REFERENCES[:1] if settings.quick else REFERENCES:
            for c in (0.1,) if settings.quick else (-1.0, 0.1) if D > 200 else CURVATURES:
                if longest > 1 and c <= 0:
                    continue
                taken = 2 if reference == "given" else 1
                rows = [
                    layout(geometry.project(x, c) if longest > 1 else x)
                    for x in points(taken, (2, T, heads, D // heads), c, dtype, device, longest)
                ]
                kind = "head" if heads > 1 else "one"
                rng = torch.Generator(device).manual_seed(3)
                parameters = [torch.randn(D, generator=rng, device=device) for _ in range(2)]
                # float32 rows also with the result in the 16 bits of autocast, as models read them
                # (not in the interpreter, which truncates to bfloat16)
                as_models = dtype == torch.float32 and reference == "previous" and settings.cuda
                for kept in (dtype, torch.bfloat16) if as_models else (dtype,):
                    f, exact = layer_norm_case(reference, kept)
                    yield (
                        f"reference {reference}, {heads} heads, c = {c:g}, result {kept}",
                        [*rows, of_shape(c, kind, (2, T, heads), device), *parameters],
                        taken,
                        f,
                        exact,
                        exact,
                        bound,
                    )


def map_case(name, limit):
    import kernels

    more = {} if limit is None else dict(limit=limit)
    on_kernels, in_pytorch = getattr(kernels, name), getattr(geometry, name)
    return lambda *inputs: on_kernels(*inputs, **more), lambda *inputs: in_pytorch(*inputs, **more)


def inside(name, dtype, D, settings):
    if name == "log_layernorm":
        yield from layer_norm_cases(dtype, D, settings, 0.6, BOUND)
        return
    taken, n = bench_kernels.OPERATIONS[name], 2 if settings.quick else 33 if D < 2048 else 5
    for c in (-1.0,) if settings.quick else CURVATURES:
        inputs = points(taken, (n, 2, D), c, dtype, settings.device)
        for kind, limit in [("one", None), ("row", LIMIT), *([("head", None), ("head", LIMIT)] if D in PER_HEAD else [])]:
            f, exact = map_case(name, None if name == "logmap" else limit)
            yield (
                f"c = {c:g} ({kind}){'' if limit is None else ', limited'}",
                [*inputs, of_shape(c, kind, (n, 2), settings.device)],
                taken,
                f,
                exact,
                exact,
                BOUND,
            )


def edge(name, dtype, D, settings):
    """Errors grow as 1/(1 - c|x|^2), and on the sphere as |c||x|^2."""
    if name == "log_layernorm":
        if D > 7 and not settings.quick:
            yield from layer_norm_cases(dtype, D, settings, 30.0, BOUND + EPS * 2**13)
        return
    n = 4 if settings.quick else 16
    for c in (1.0,) if settings.quick else (1.0, 0.1, -1.0):
        x, y = (geometry.project(p, c) for p in points(2, (n, D), c, dtype, settings.device, 30.0))
        room = 1 - c * x.double().square().sum(-1)
        worst = max(1 / float(room.min()), float(room.max()))
        more = {
            "mobius_add": [y * 0.5],
            "add_exp_0": [y * 1e-3],
            "expmap": [y * 1e-4],
            "add_exp": [y * 0.5, y * 1e-4],
            "logmap": [y],
        }
        f, exact = map_case(name, None)
        inputs = [x, *more[name]]
        yield (
            f"c = {c:g}",
            [*inputs, torch.full((n, 1), c, device=settings.device)],
            len(inputs),
            f,
            exact,
            exact,
            BOUND + EPS * worst,
        )


def strided(name, dtype, D, settings):
    """Rows that are a slice of longer ones, or turned"""
    if not 1 < D <= 1024 or settings.quick:
        return
    if name == "log_layernorm":
        yield from layer_norm_cases(dtype, D, settings, 0.6, BOUND, lambda t: t.transpose(0, 1).contiguous().transpose(0, 1))
        return
    taken = bench_kernels.OPERATIONS[name]
    wide = points(1, (9, 3, 2 * D), 1.0, dtype, settings.device)[0]
    turned = points(1, (3, 9, D), 1.0, dtype, settings.device)[0].transpose(0, 1)
    f, exact = map_case(name, None)
    inputs = [wide[..., :D], turned, wide[..., D:]][:taken]
    yield "c per head", [*inputs, of_shape(-1.0, "head", (9, 3), settings.device)], taken, f, exact, exact, BOUND


def conclude(rows, settings):
    found = [row for row in rows if row.get("what") == "correctness"]
    compared = sum(row["compared"] for row in found)
    wrong = [row for row in found if not row["ok"]]
    missing = [row["job"] for row in rows if row.get("error") and "what" not in row and not row["job"].startswith("compile")]
    return [
        dict(
            what="all kernels",
            compared=compared,
            wrong=len(wrong),
            not_run=len(missing),
            ok=bool(found) and not wrong and not missing,
        )
    ]
