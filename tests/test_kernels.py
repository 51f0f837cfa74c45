"""
kernels.py and model_triton.py in Triton's interpreter against geometry.py in float64, and as machine code for GPUs that are not here.
conftest.py sets TRITON_INTERPRET=1 before Triton is imported; the ahead-of-time compilation is in a process of its own.
"""
import itertools
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import geometry as G
import kernels as K
import models
from errors import UserError
from test_model_baseline import randomised

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WIDTHS = (1, 7, 64, 100, 123, 384, 768, 1000)
CURVATURES = (-1.0, 0.0, 1e-6, 0.1, 1.0)
OPERATIONS = {"mobius_add": 2, "expmap": 2, "add_exp_0": 2, "add_exp": 3, "logmap": 2}  # -> how many rows each takes


def rows(shape, c, longest=0.6, seed=0):
    """Points within `longest` radii (of 1 at c = 0)."""
    rng = torch.Generator().manual_seed(seed)
    v = torch.randn(shape, generator=rng)
    size = torch.rand((*shape[:-1], 1), generator=rng) * longest
    return v / v.norm(dim=-1, keepdim=True).clamp(min=1e-6) * size / max(abs(c), 1e-2 if c else 1) ** 0.5


def several(name, shape, c, longest=0.6, seed=1):
    return [rows(shape, c, longest, seed + i) for i in range(OPERATIONS[name])]


def compare(name, inputs, g, bound, limit=None):
    """Output and every gradient of a kernel against float64, relative to each one's norm."""
    more = [] if limit is None else [torch.tensor(limit)]
    ours = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (*inputs, *more)]
    exact = [t.detach().double().requires_grad_() for t in ours]
    out, expected = getattr(K, name)(*ours), getattr(G, name)(*exact)
    out.backward(g)
    expected.backward(g.double())
    pairs = [("output", out, expected)] + [(f"gradient {i}", a.grad, b.grad) for i, (a, b) in enumerate(zip(ours, exact))]
    for what, a, b in pairs:
        assert torch.isfinite(a).all(), (name, what)
        # a gradient of c is a sum over rows that may cancel, and that of a row of one number over its limit is 0: relative to
        # what they are made of
        scale = b.norm() + (0 if what == "output" else float(g.norm()) * (0.05 if a.numel() > 1 else 1))
        assert (a.double() - b).norm() <= bound * scale, (name, what, float((a.double() - b).norm() / scale))


@pytest.mark.parametrize("D", WIDTHS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_outputs_and_gradients_against_float64(name, D):
    n = 3 if D < 500 else 2  # the interpreter takes its time for wide rows
    for c in CURVATURES:
        points = several(name, (n, 2, D), c)
        g = torch.randn(n, 2, D)
        compare(name, (*points, torch.tensor(c)), g, 3e-5)
        if name != "logmap":
            compare(name, (*points, torch.tensor(c)), g, 3e-5, limit=0.2)
        if c in (-1.0, 0.1) and D < 300:
            compare(name, (*points, torch.tensor([[c], [0.5 * c]])), g, 3e-5, limit=None if name == "logmap" else [[0.2], [1.0]])
            compare(name, (*points, torch.full((n, 1, 1), c)), g, 3e-5)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(OPERATIONS)), D=st.integers(1, 200), lead=st.lists(st.integers(1, 4), max_size=3),
       c=st.floats(-2, 2), kind=st.sampled_from(["one", "last", "all", "first"]), seed=st.integers(0, 1000))
def test_any_shape_and_any_way_to_give_c(name, D, lead, c, kind, seed):
    points = several(name, (*lead, D), c, 0.4, seed)
    shape = {"one": (), "last": (*lead[-1:], 1), "all": (*lead, 1), "first": (*lead[:1], *[1] * len(lead))}[kind]
    factor = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.5
    compare(name, (*points, c * factor), torch.randn(*lead, D), 2e-5)


@pytest.mark.parametrize("c", [1.0, 0.1, -1.0])
def test_rows_at_the_edge(c):
    """Projected points: errors grow as 1/(1 - c|x|^2), 2^13 at the float32 margin; on the sphere, far from the origin, as |c||x|^2."""
    x = G.project(rows((8, 32), c) * 100, c)
    y = G.project(rows((8, 32), c, seed=5) * 100, c)
    room = 1 - c * x.double().square().sum(-1)
    worst = max(1 / room.min().item(), room.max().item())  # 8,000; on the sphere 2,800
    each = torch.full((8, 1), c)  # for each row: a sum over rows may cancel
    g = torch.randn(8, 32, generator=torch.Generator().manual_seed(3))
    for name, *more in (("mobius_add", y * 0.5), ("add_exp_0", y * 1e-3), ("expmap", y * 1e-4), ("add_exp", y * 0.5, y * 1e-4),
                        ("logmap", y)):
        ours = [t.clone().requires_grad_() for t in (x, *more, each)]
        exact = [t.detach().double().requires_grad_() for t in ours]
        out, expected = getattr(K, name)(*ours), getattr(G, name)(*exact)
        out.backward(g)
        expected.backward(g.double())
        for what, a, b in [("output", out, expected), *((i, a.grad, b.grad) for i, (a, b) in enumerate(zip(ours, exact)))]:
            if (name, what, c) != ("expmap", 2, -1):  # there float64 has lost the digits of c's gradient, by the chain rule's terms
                assert (a.double() - b).norm() < 2.0 ** -23 * worst * b.norm(), (name, what)


@pytest.mark.parametrize("c, length, step", [
    (1, 0.5, 1e-2), (1, 0.5, 1e-4), (0.1, 1.5, 3e-3), (1e-6, 600, 6), (0, 1, 1e-3), (1, 0.99, 0.9), (-1, 1.5, 1), (-1, 10, 1e-1),
    (-1, 40, 30)])
def test_gradient_of_c_keeps_its_digits(c, length, step):
    """Where it is much smaller than what the chain rule adds it from: short vectors (it is of the order of their length, for
    the maps at x of its square), and far out on the sphere. For each row, relative to itself."""
    rng = torch.Generator().manual_seed(0)
    long = lambda size: F.normalize(torch.randn(8, 32, generator=rng), dim=-1) * size  # noqa: E731
    x, r, v, g = long(length), long(length), long(min(step, 20)), long(1)
    for name, *points in (("mobius_add", x, v), ("expmap", x, v), ("add_exp_0", x, v if c >= 0 else v / length), ("add_exp", x, r, v),
                          ("logmap", x, G.expmap(x, v, float(c)))):
        points = [G.project(p, float(c)) for p in points] if name != "expmap" else points
        for limit in (None, 0.5 * length) if name != "logmap" else (None,):
            more = {} if limit is None else dict(limit=limit)
            ours = torch.full((8, 1), float(c), requires_grad=True)
            exact = ours.detach().double().requires_grad_()
            getattr(K, name)(*points, ours, **more).backward(g)
            getattr(G, name)(*(t.double() for t in points), exact, **more).backward(g.double())
            condition = max(float(1 / (1 - c * p.square().sum(-1)).min()) for p in points if p is not v) if c > 0 else 1
            if c < 0 and name == "add_exp":  # exp_r(v) is rounded
                condition = 1 - c * length ** 2
            assert (ours.grad - exact.grad).norm() <= 2e-6 * condition * exact.grad.norm(), (name, limit)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OPERATIONS)
def test_16_bit_rows_err_at_most_twice_as_much_as_pytorch(name, dtype):
    for c in CURVATURES:
        for D in (7, 64, 100):
            points = [t.to(dtype) for t in several(name, (16, D), c)]
            g = torch.randn(16, D).to(dtype)
            results = []
            # the interpreter truncates to bfloat16, where a GPU rounds: so the kernel also runs on the same numbers in float32,
            # and what it gives is rounded here
            for f, cast in ((getattr(K, name), lambda t: t), (getattr(K, name), torch.Tensor.float), (getattr(G, name), lambda t: t),
                            (getattr(G, name), torch.Tensor.double)):
                leaves = [cast(t).clone().requires_grad_() for t in points]
                out = f(*leaves, torch.tensor(c))
                out.backward(cast(g))
                results.append([out.detach()] + [t.grad for t in leaves])
            truncation = 2.0 ** -7 if dtype == torch.bfloat16 else 1e-6  # an ulp more
            for stored, ours, theirs, exact in zip(*results):
                assert stored.dtype == dtype
                as_stored, error, allowed = ((t.to(dtype).double() - exact).norm() for t in (stored, ours, theirs))
                assert error <= 2 * allowed + 1e-6 * exact.norm(), (name, c, D)
                assert as_stored <= 2 * allowed + truncation * exact.norm(), (name, c, D)


@pytest.mark.parametrize("name", OPERATIONS)
def test_non_contiguous_rows_and_cotangents(name):
    whole = rows((4, 3, 2 * 10), 1.0)
    points = (whole[..., :10], rows((3, 4, 10), 1.0, seed=3).transpose(0, 1), whole[..., 10:])[:OPERATIONS[name]]
    compare(name, (*points, torch.tensor([[0.5], [1.0], [-1.0]])), torch.randn(10, 3, 4).permute(2, 1, 0), 1e-5)
    expanded = torch.randn(1, 1, 10).expand(4, 3, 10)
    compare(name, (*points, torch.tensor(0.7)), expanded, 1e-5)


def test_every_output_number_is_written(monkeypatch):
    """Outputs start as NaN: what a kernel leaves out shows."""
    real = torch.empty

    def poisoned(*args, **kwargs):
        tensor = real(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor
    monkeypatch.setattr(K.torch, "empty", poisoned)
    for D in (1, 7, 100):
        for name in OPERATIONS:
            compare(name, (*several(name, (5, D), 1.0, 0.4), torch.rand(5, 1)), torch.randn(5, D), 1e-5)
    x = rows((2, 13, 3, 5), 1.0).requires_grad_()
    K.log_layernorm(x, 1.0, torch.ones(15)).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_no_rows_and_too_long_rows():
    for name in OPERATIONS:
        x = torch.zeros(0, 8, requires_grad=True)
        getattr(K, name)(x, *[torch.zeros(0, 8)] * (OPERATIONS[name] - 1), 1.0).sum().backward()
        assert x.grad.shape == (0, 8)
    with pytest.raises(ValueError, match="at most 8192"):
        K.logmap(torch.zeros(1, 8193), torch.zeros(1, 8193), 1.0)
    with pytest.raises(TypeError, match="float64"):
        K.logmap(torch.zeros(1, 8, dtype=torch.float64), torch.zeros(1, 8), 1.0)


@pytest.mark.parametrize("c_shape", [(3, 1, 1), (3, 4, 1), (4, 1), (1, 1, 1, 1)])
def test_rows_take_the_shape_of_c_as_in_geometry(c_shape):
    rng = torch.Generator().manual_seed(0)
    points, c = [0.2 * torch.randn(1, 8, generator=rng) for _ in range(3)], torch.rand(c_shape, generator=rng)
    for name in OPERATIONS:
        ours = [t.clone().requires_grad_() for t in (*points[:OPERATIONS[name]], c)]
        exact = [t.detach().double().requires_grad_() for t in ours]
        out, expected = getattr(K, name)(*ours), getattr(G, name)(*exact)
        assert out.shape == expected.shape
        grads, wanted = (torch.autograd.grad(o.square().sum(), i) for o, i in ((out, ours), (expected, exact)))
        for a, b in zip((out, *grads), (expected, *wanted)):
            assert a.shape == b.shape and (a.double() - b).norm() <= 1e-5 * b.norm().clamp(min=0.1), (name, c_shape)


def test_a_c_that_is_not_one_number_a_row_is_refused():
    x = torch.zeros(3, 8)
    for c in (torch.ones(8), torch.ones(3, 8)):
        with pytest.raises(ValueError, match="one number a row"):
            K.logmap(x, x, c)
    with pytest.raises(ValueError, match="one number a row"):
        K.mobius_add(x, x, 1.0, torch.ones(8))
    for c in (torch.ones(5, 1), torch.ones(2, 1, 3, 2, 1)):
        with pytest.raises(ValueError, match="one number a head"):
            K.log_layernorm(torch.zeros(1, 3, 2, 4), c, torch.ones(8))


@pytest.mark.parametrize("c_shape", [(1, 2, 1), (1, 1, 2, 1), (1, 1, 1, 1), (1, 5, 1, 1), (3, 1, 2, 1)])
def test_log_layernorm_gives_the_gradient_of_c_in_any_shape(c_shape):
    rng = torch.Generator().manual_seed(0)
    x, g = 0.2 * torch.randn(3, 5, 2, 4, generator=rng), torch.randn(3, 5, 2, 4, generator=rng)
    c = torch.rand(c_shape, generator=rng).requires_grad_()
    exact = c.detach().double().requires_grad_()
    K.log_layernorm(x, c, torch.ones(8)).backward(g)
    u = G.log_previous(x.double(), exact).flatten(2)
    F.layer_norm(u, (8,)).view(x.shape).backward(g.double())
    assert c.grad.shape == c.shape and (c.grad - exact.grad).norm() <= 2e-5 * exact.grad.norm().clamp(min=0.05)


def test_a_model_whose_padded_rows_are_too_long_is_refused_at_once():
    config = models.CONFIGS["mixed"](**{**TINY, "n_layer": 1, "n_head": 5, "n_embd": 8000}, ops="triton")
    with pytest.raises(UserError, match="5 x 1600 numbers.* 16,384 .*--ops=torch"):
        models.build("mixed", config)


@pytest.mark.parametrize("reference, kind, shape", [
    *itertools.product(["previous", "origin", "given"], ["one", "head", "token", "both"], [(2, 5, 3, 5), (1, 9, 1, 32), (3, 1, 2, 4)]),
    ("previous", "head", (1, 2, 2, 1100))])  # padded to 4,096: the bias's gradient is summed outside of the kernel
def test_log_and_layernorm_in_one_kernel(reference, kind, shape):
    B, T, H, D = shape
    rng = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(size, generator=rng)  # noqa: E731
    size = 0.5 * max(D, 25) ** -0.5  # well inside of the ball
    x, r, g, weight, bias = draw(*shape) * size, draw(*shape) * size, draw(*shape), draw(H * D), draw(H * D)
    c = 0.4 * draw(*{"one": (), "head": (H, 1), "token": (B, T, 1, 1), "both": (B, T, H, 1)}[kind])
    ours = [t.clone().requires_grad_() for t in (x, c, weight, bias, r)]
    exact = [t.double().requires_grad_() for t in (x, c, weight, bias, r)]
    out = K.log_layernorm(*ours[:4], reference, ours[4] if reference == "given" else None)
    base = {"previous": F.pad(exact[0], (0, 0, 0, 0, 1, -1)), "origin": exact[0] * 0, "given": exact[4]}[reference]
    u = G.logmap(base, exact[0], exact[1]).flatten(2)
    expected = F.layer_norm(u, (H * D,), exact[2], exact[3]).view(shape)
    out.backward(g)
    expected.backward(g.double())
    pairs = [(out, expected)] + [(a.grad, b.grad) for a, b in zip(ours, exact) if a.grad is not None]
    assert len(pairs) == (6 if reference == "given" else 5)
    for i, (a, b) in enumerate(pairs):
        assert (a.double() - b).norm() <= 2e-5 * b.norm().clamp(min=0.01 * float(g.norm())), i


def test_gradients_of_c_are_the_same_bits_each_time():
    x, y = rows((300, 16), 1.0), rows((300, 16), 1.0, seed=1)
    grads = []
    for _ in range(3):
        c = torch.tensor(0.7, requires_grad=True)
        K.logmap(x, y, c).square().sum().backward()
        grads.append(c.grad)
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])


def exact_functions():
    import mpmath as mp
    tanc = lambda z: mp.tanh(mp.sqrt(z)) / mp.sqrt(z) if z > 0 else mp.tan(mp.sqrt(-z)) / mp.sqrt(-z) if z < 0 else mp.mpf(1)  # noqa: E731
    artanc = lambda z: mp.atanh(mp.sqrt(z)) / mp.sqrt(z) if z > 0 else mp.atan(mp.sqrt(-z)) / mp.sqrt(-z) if z < 0 else mp.mpf(1)  # noqa: E731
    return mp, tanc, artanc


def test_tanc_and_artanc_are_accurate_to_2_ulp():
    """Through kernels of their own, against mpmath; near the pole of tan relative to its condition number."""
    import triton
    import triton.language as tl

    @triton.jit
    def both(z_ptr, tanc_ptr, artanc_ptr, N: tl.constexpr):
        i = tl.arange(0, N)
        z = tl.load(z_ptr + i)
        tl.store(tanc_ptr + i, K._tanc(z)[0])
        tl.store(artanc_ptr + i, K._artanc(tl.minimum(z, 0.999), 1.0 - tl.minimum(z, 0.999)))
    mp, exact_tanc, exact_artanc = exact_functions()
    z = torch.cat((torch.linspace(-2.46, 2.46, 2048), torch.linspace(2.5, 1000, 1024), torch.linspace(-0.7, 0.7, 1024)))
    tanc, artanc = torch.empty_like(z), torch.empty_like(z)
    both[(1,)](z, tanc, artanc, z.numel())
    ulp = 2.0 ** -23
    for zi, k, q in list(zip(z.tolist(), tanc.tolist(), artanc.tolist()))[::7]:
        exact = exact_tanc(mp.mpf(zi))
        slope = (1 - mp.mpf(zi) * exact ** 2 - exact) / (2 * mp.mpf(zi)) if zi else 0
        condition = max(1, abs(float(slope * zi / exact)))
        assert abs(k / exact - 1) <= 2 * ulp * condition, (zi, k)
        capped = torch.tensor(zi).clamp(max=0.999).item()
        assert abs(q / exact_artanc(mp.mpf(capped)) - 1) <= 2 * ulp * max(1, 0.1 / (1 - capped)), (zi, q)


def test_operators_pass_opcheck():
    x, y, c = rows((4, 6), 1.0).requires_grad_(), rows((4, 6), 1.0, seed=1).requires_grad_(), torch.tensor(0.7, requires_grad=True)
    limit = torch.tensor(0.3, requires_grad=True)
    r = rows((4, 6), 1.0, seed=2).requires_grad_()
    for kind in K.KINDS:
        for bound in (None, limit):
            torch.library.opcheck(K._sum, (x, r if kind == "exp_r" else None, y, c, bound, kind))
    torch.library.opcheck(K._logmap, (x, y, c))
    tokens = rows((1, 3, 2, 4), 1.0).requires_grad_()
    weight = torch.ones(8, requires_grad=True)
    torch.library.opcheck(K._log_layernorm, (tokens, None, torch.rand(2, 1).requires_grad_(), weight, None, "previous", torch.float32))
    torch.library.opcheck(K._log_layernorm, (tokens, tokens.detach().clone(), c, weight, weight.detach().clone(), "given", torch.float32))


SMALL = {**TINY, "n_layer": 1}  # the interpreter takes 0.1 s a token and layer


@pytest.fixture
def few(tokens):
    """9 tokens: one more than a program of log_layernorm walks along."""
    return tuple(t[:1, :9] for t in tokens)


MODELS = [dict(), dict(per_head_curvature=False), dict(dynamic_curvature=True), dict(dynamic_curvature=True, per_head_curvature=False),
          dict(residual="transport", reference="mean"), dict(residual="reference", curvature_mode="tied", bias=True),
          dict(reference="origin", use_embedding_curvature=True, curvature_mode="fixed", curvature=-0.5)]


@pytest.mark.parametrize("options", MODELS)
def test_the_model_on_kernels_is_the_same_model(options, few):
    """Logits, loss, gradients and cached logits."""
    def build(ops):
        torch.manual_seed(1)
        return randomised(models.build("mixed", models.CONFIGS["mixed"](**SMALL, **options, ops=ops)), scale=0.05)
    plain, fast = build("torch"), build("triton")
    assert type(fast) is not type(plain)
    results = []
    for net in (plain, fast):
        logits, loss = net(*few)
        loss.backward()
        results.append((logits, dict(net.named_parameters())))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
    for key, p in results[0][1].items():
        torch.testing.assert_close(results[1][1][key].grad, p.grad, rtol=1e-3, atol=1e-5 * float(p.grad.abs().max()) + 1e-7, msg=key)
    a, b = (torch.cat([t for t in net.eval().generate(few[0][:, :3], 3, temperature=0)]) for net in (plain, fast))
    assert torch.equal(a, b)


def test_20_training_steps_with_the_kernels_follow_the_plain_ones(few):
    curves = []
    for ops in ("torch", "triton"):
        torch.manual_seed(1)
        net = models.build("mixed", models.CONFIGS["mixed"](**SMALL, ops=ops))
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = net(*(t[:, :5] for t in few))[1]
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert curves[0][-1] < 0.9 * curves[0][0]


def test_the_model_on_kernels_compiles_to_one_graph(few):
    torch._dynamo.reset()
    torch.manual_seed(1)
    net = randomised(models.build("mixed", models.CONFIGS["mixed"](**SMALL, ops="triton")))
    loss = torch.compile(net, fullgraph=True, backend="aot_eager")(*few)[1]
    loss.backward()
    torch.testing.assert_close(loss, net(*few)[1])


def test_triton_without_a_gpu_or_the_interpreter_is_one_line(small_run):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, os.path.join(ROOT, "train.py"), *small_run, "--model=mixed", "--ops=triton"],
                         capture_output=True, text=True, env=environment)
    assert run.returncode == 2 and "needs a CUDA GPU" in run.stderr and len(run.stderr.strip().splitlines()) == 1


def test_which_devices_are_accepted(monkeypatch):
    assert K.check_device("mps") is None and K.check_device("cuda") is None  # in the interpreter
    monkeypatch.setattr(K, "INTERPRETED", False)
    assert "TRITON_INTERPRET=1" in K.check_device("mps") and K.check_device("cuda") is None
    if not torch.cuda.is_available():  # "0 active drivers": what a driver that cannot be built looks like
        assert "Triton cannot build its launcher" in K.check_launcher()
        with pytest.raises(UserError, match="gcc, python3-dev"):
            models.build("mixed", models.CONFIGS["mixed"](**TINY, ops="triton"), "cuda")


def test_training_with_the_kernels_from_the_command_line(small_run):
    run = subprocess.run([sys.executable, os.path.join(ROOT, "train.py"), *small_run, "--model=mixed", "--ops=triton",
                          "--max_iters=2", "--eval_interval=2", "--block_size=8", "--eval_iters=1", "--batch_size=1", "--n_layer=1"],
                         capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert run.returncode == 0, run.stderr
    assert "ops: Triton kernels" in run.stdout and "final: val loss" in run.stdout


@pytest.mark.parametrize("sizes", [
    (('--dtype=["float32"]', "--width=[4096]"), ('--dtype=["bfloat16","float16"]', "--width=[64]")),
    pytest.param(([],), marks=pytest.mark.exhaustive)], ids=["some", "all"])
def test_machine_code_for_gpus_has_no_spills_and_the_passes_counted(sizes, tmp_path):
    """sm_80 and sm_90, every kernel: from the compiled artefact."""
    path = tmp_path / "code.json"
    environment = {**{k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    found = []
    for arguments in sizes:
        run = subprocess.run([sys.executable, os.path.join(ROOT, "bench", "machine_code.py"), *arguments, f"--json={path}"],
                             capture_output=True, text=True, env=environment)
        assert run.returncode == 0, run.stderr
        found += json.loads(path.read_text())
    assert {row["arch"] for row in found} == {80, 90} and {row["dtype"] for row in found} == {"float32", "bfloat16", "float16"}
    assert len({row["kernel"].split(",")[0] for row in found}) == 12
    for row in found:
        assert row["stack"] == 0 and row["local"] == 0, row
        assert row["atomics"] == 0 and row["loses_nan"] == 0, row  # sums in a fixed order; a NaN is stored as one
        for kind in ("loads", "stores"):
            if row[f"expected_{kind}"]:
                assert row[f"{kind}_16_bytes"] == row[f"expected_{kind}"], row
