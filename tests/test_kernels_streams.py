"""
kernels/streams.py in Triton's interpreter against streams/mixing.py and PyTorch's LayerNorm in float64, against Liger's kernels, and as
machine code for GPUs that are not here; the model on them.
"""
import itertools

import pytest
import torch
from compiled_kernels import check_machine_code, machine_code
from conftest import TINY
from test_model_baseline import randomised
from torch.nn import functional as F

import kernels as K
import models
from common.errors import UserError
from kernels import streams
from streams import mixing
from training.compiled import compile_parts

SHAPES = [(n, 2, 3, C) for n, C in ((1, 7), (2, 64), (3, 100), (4, 384), (8, 24))]


def inputs(shape, token=(), seed=0, dtype=torch.float32, y_dtype=None):
    """x, y, p, R, w, weight, bias. token: of p, R, w those that differ from token to token. p is not near 0, where LayerNorm magnifies
    rounding."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(size, generator=rng)
    n, B, T, C = shape
    lead = lambda name: (B, T) if name in token else ()
    x, y, p = draw(*shape).to(dtype), draw(B, T, C).to(y_dtype or dtype), 0.3 + torch.rand((*lead("p"), n), generator=rng)
    return [x, y, p, draw(*lead("R"), n, n), draw(*lead("w"), n), 1 + 0.3 * draw(C), draw(C)]


def gradients(function, given, cotangent):
    """[value, gradients of those that are given]"""
    leaves = [t if t is None else t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in given]
    out = function(*leaves)
    return [out, *torch.autograd.grad(out, [t for t in leaves if t is not None], cotangent.to(out.dtype))]


def plain_read(x, p, weight, bias):
    return F.layer_norm(mixing.read(x, p), weight.shape, weight, bias, 1e-5)


CASES = {"read": (K.read_layernorm, plain_read, (0, 2, 5, 6)), "write": (K.mix_write, mixing.write, (0, 1, 3, 4)),
         "rms": (K.rms_factor, mixing.rms_factor, (0,))}  # kernel, in PyTorch, which inputs()


def compare(name, given, bound, cotangent=None):
    """Value and gradients against float64, relative to each one's norm."""
    kernel, plain, used = CASES[name]
    given = [given[i] for i in used]
    if cotangent is None:
        shape = given[0].shape[1:-1] if name == "rms" else given[0].shape[1:] if name == "read" else given[0].shape
        cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(9)).to(given[0].dtype)
    ours = gradients(kernel, given, cotangent)
    exact = gradients(plain, [None if t is None else t.double() for t in given], cotangent)
    assert len(ours) == len(exact)
    for i, (a, b) in enumerate(zip(ours, exact)):
        assert torch.isfinite(a).all() and a.shape == b.shape
        # gradients are sums over tokens or columns, which may cancel: p's with n = 1, all of LayerNorm's where a row is one number
        small = float(cotangent.norm()) * (0 if i == 0 else 0.05 if given[0].size(-1) > 1 and given[0].size(0) > 1 else 1)
        scale = float(b.detach().norm()) + small
        assert float((a.double() - b).detach().norm()) <= bound * scale, (name, i, float((a.double() - b).norm()) / scale)
    return ours


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("token", [(), ("p", "R", "w")], ids=["static", "per token"])
def test_values_and_gradients_against_float64(shape, token):
    given = inputs(shape, token)
    for name in CASES:
        compare(name, given, 2e-6)
    given[3] = given[6] = None  # R is the identity; no bias
    compare("read", given, 2e-6)
    dx = compare("write", given, 2e-6)[1]
    assert torch.equal(dx, torch.randn(shape, generator=torch.Generator().manual_seed(9)))  # the cotangent itself


@pytest.mark.parametrize("token", [("R",), ("w",)])
def test_only_one_of_the_maps_per_token(token):
    compare("write", inputs((3, 2, 3, 20), token), 2e-6)


@pytest.mark.parametrize("C", [1, 1000, 1040, 4096, 8192])
def test_widths(C):
    """Of 1,040 and more the backward pass of a write, and from 4,096 on the forward, has several programs a row."""
    for token in ((), ("p", "R", "w")):
        given = inputs((2, 1, 3 if C < 4096 else 1, C), token)
        for name in CASES:
            compare(name, given, 3e-6)


def test_more_tokens_than_a_program_has():
    """Rows of 16 numbers: 64 in a tile, 512 of a program of read_layernorm's backward."""
    for token in ((), ("p", "R", "w")):
        given = inputs((2, 3, 199, 16), token)
        for name in CASES:
            compare(name, given, 3e-6)


def test_too_long_rows_are_refused_and_mix_write_takes_any():
    x, y, p, R, w, weight, _ = inputs((2, 1, 1, 8193))
    for call in (lambda: K.read_layernorm(x, p, weight), lambda: K.rms_factor(x)):
        with pytest.raises(ValueError, match="at most 8192"):
            call()
    torch.testing.assert_close(K.mix_write(x, y, R, w), mixing.write(x, y, R, w))
    with pytest.raises(UserError, match="1 x 8200 numbers.*--ops=torch"):
        models.build("mhc", models.CONFIGS["mhc"](**{**TINY, "n_embd": 8200}, ops="triton"))


def test_rows_that_are_not_contiguous():
    given = inputs((3, 2, 4, 10), ("p", "R", "w"))
    turned = lambda t, i, j: t.transpose(i, j).contiguous().transpose(i, j)
    given = [turned(given[0], 0, 2), turned(given[1], 0, 2), turned(given[2], 0, 1), turned(given[3], 2, 3), turned(given[4], 0, 2),
             torch.randn(20)[::2], given[6]]
    assert not any(t.is_contiguous() for t in given[:6])
    for name in CASES:
        compare(name, given, 2e-6)
    compare("write", given, 2e-6, torch.randn(10, 4, 2, 3).permute(3, 2, 1, 0))
    compare("write", given, 2e-6, torch.randn(1, 1, 1, 10).expand(3, 2, 4, 10))
    compare("read", given, 2e-6, torch.randn(10, 4, 2).permute(2, 1, 0))
    frozen = [t.expand(2, 4, *t.shape) for t in inputs((3, 2, 4, 10))[2:5]]  # a map that is not learned, for every token
    compare("write", [*given[:2], *frozen, *given[5:]], 2e-6)


@pytest.mark.parametrize("dtype, ulp", [(torch.bfloat16, 2.0 ** -7), (torch.float16, 2.0 ** -10)])
def test_16_bit_rows(dtype, ulp):
    """Stored numbers are off by an ulp at most (the interpreter truncates to bfloat16), sums are float32."""
    for token, y_dtype in (((), dtype), (("p", "R", "w"), dtype), ((), torch.float32)):
        given = inputs((4, 2, 3, 40), token, dtype=dtype, y_dtype=y_dtype)
        for name in CASES:
            values = compare(name, given, ulp)
            assert values[1].dtype == dtype and (name != "write" or values[2].dtype == y_dtype)
            assert all(g.dtype == torch.float32 for g in values[2:] if g.shape != given[1].shape)
    given = inputs((4, 2, 3, 40))
    out = K.read_layernorm(given[0], given[2], given[5], given[6], dtype=dtype)  # as autocast's next matrix product reads it
    torch.testing.assert_close(out.float(), plain_read(given[0], *given[2:3], *given[5:]), rtol=ulp, atol=1e-4)
    assert out.dtype == dtype
    x, y, p, R, w, weight, bias = inputs((4, 2, 3, 40), dtype=torch.float32)
    mixed = K.mix_write(x, y.to(dtype), R, w)  # float32 streams, what a layer gives under autocast
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, mixing.write(x, y.to(dtype), R, w), rtol=1e-5, atol=1e-5)


def test_float16_saturates_and_nan_stays():
    x, y, _, R, w, _, _ = inputs((2, 1, 2, 8), dtype=torch.float16)
    out = K.mix_write(x, y, 1e6 * R, w)
    assert torch.isfinite(out).all() and out.abs().max() == 65504
    x[0, 0, 0, 0] = float("nan")
    assert K.mix_write(x, y, R, w)[:, 0, 0, 0].isnan().all() and K.rms_factor(x)[0, 0].isnan()


def test_no_tokens():
    for shape, token in itertools.product(((3, 0, 4, 8), (3, 2, 0, 8)), ((), ("p", "R", "w"))):
        given = inputs(shape, token)
        for name in CASES:
            _, *grads = compare(name, given, 1e-6)
            assert not any(g.any() for g in grads)


def test_what_does_not_fit_is_refused():
    """The kernels would read, and write, beyond the smaller one."""
    x, y, p, R, w, weight, bias = inputs((3, 2, 4, 8), ("p", "R", "w"))
    for call in (lambda: K.read_layernorm(x, p[:1], weight), lambda: K.read_layernorm(x, p[0, 0, :2], weight),
                 lambda: K.read_layernorm(x, p, weight[:4]), lambda: K.read_layernorm(x, p, weight, bias[:4]),
                 lambda: K.mix_write(x, y[:1], R, w), lambda: K.mix_write(x, y, R[:1], w), lambda: K.mix_write(x, y, R, w[:, :1]),
                 lambda: K.mix_write(x, y, R[..., :2], w)):
        with pytest.raises(ValueError, match="has shape"):
            call()
    for call in (lambda: K.read_layernorm(x.double(), p, weight), lambda: K.mix_write(x.double(), y, R, w),
                 lambda: K.mix_write(x, y.double(), R, w), lambda: K.rms_factor(x.double())):
        with pytest.raises(TypeError, match="float64"):
            call()


def test_every_output_number_is_written(monkeypatch):
    """Outputs start as NaN: what a kernel leaves out shows."""
    real = torch.empty

    def poisoned(*args, **kwargs):
        tensor = real(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor
    monkeypatch.setattr(torch, "empty", poisoned)
    for (n, C), token in itertools.product(((1, 1), (3, 7), (2, 100), (2, 1100)), ((), ("p", "R", "w"))):
        given = inputs((n, 1, 5, C), token)
        for name in CASES:
            compare(name, given, 3e-6)


def test_the_same_bits_each_time():
    given = inputs((2, 1, 140, 16))
    for name in CASES:
        runs = [compare(name, given, 3e-6) for _ in range(2)]
        assert all(torch.equal(a, b) for a, b in zip(*runs))


def test_arithmetic_is_float32_whatever_the_default_dtype_is():
    given = inputs((2, 1, 3, 8))
    results = []
    for default in (torch.float32, torch.bfloat16, torch.float64):
        torch.set_default_dtype(default)
        try:
            ones = torch.ones(2, 1, 3, 8, dtype=torch.float32)
            each = dict(write=ones, read=ones[0], rms=ones[0, ..., 0])
            results.append([t for name, (kernel, _, used) in CASES.items()
                            for t in gradients(kernel, [given[i] for i in used], each[name])])
        finally:
            torch.set_default_dtype(torch.float32)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_operators_pass_opcheck():
    x, y, p, R, w, weight, bias = (t.requires_grad_() for t in inputs((2, 1, 2, 5), ("p",)))
    torch.library.opcheck(streams._read, (x, p, weight, bias, 1e-5, torch.float32))
    torch.library.opcheck(streams._write, (x, y, R, w))
    torch.library.opcheck(streams._write, (x, y, None, w))
    torch.library.opcheck(streams._rms, (x, 1e-6))
    # the backward operators themselves; strides and 16 bits
    x, y, p, R, w, weight = (t.detach() for t in (x, y, p, R, w, weight))
    turned = torch.randn(5, 2, 1, 2).permute(3, 2, 1, 0)
    torch.library.opcheck(streams._read_grad, (turned[0], x, p, weight, torch.rand(2), torch.rand(2), True))
    torch.library.opcheck(streams._read_grad, (turned[0], x, w, weight, torch.rand(2), torch.rand(2), False))
    for mix in (R, R.expand(1, 2, 2, 2), None):
        torch.library.opcheck(streams._write_grad, (turned, x, y.bfloat16(), mix, w))
    torch.library.opcheck(streams._rms_grad, (torch.rand(1, 2), turned, torch.rand(1, 2)))


def test_functions_compile_to_one_graph():
    for token in ((), ("p", "R", "w")):
        x, y, p, R, w, weight, bias = inputs((2, 1, 3, 6), token)

        def step(x, y, p, R, w, weight, bias):
            return K.mix_write(x, K.read_layernorm(x, p, weight, bias) + y, R, w) * K.rms_factor(x).unsqueeze(-1)
        torch._dynamo.reset()
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        for a, b in zip(*(gradients(f, (x, y, p, R, w, weight, bias), torch.ones_like(x)) for f in (step, compiled))):
            torch.testing.assert_close(a, b)


def test_equal_to_liger_kernels():
    """liger-kernel 0.8.5's mHC kernels, in the interpreter. Theirs: streams behind tokens (..., n, C), all maps per token, products for
    the maps' gradients added by atomics; no LayerNorm behind the read and no static maps; streams a power of two; y in float32. Their R is
    ours, not its transpose. RMSNorm's factor comes with their product of x and phi (n C, n^2 + 2 n)."""
    from liger_kernel.ops.mhc import LigerMHCPostResFunction, LigerMHCPreFunction, mhc_mm_norm_fwd
    n, B, T, C = 4, 2, 3, 20
    x, y, p, R, w, weight, _ = inputs((n, B, T, C), ("p", "R", "w"))
    inside = lambda x: x.permute(1, 2, 0, 3).contiguous()  # (B, T, n, C)
    theirs_read = lambda x, p, weight: F.layer_norm(LigerMHCPreFunction.apply(inside(x), p), (C,), weight)
    theirs_write = lambda x, y, R, w: LigerMHCPostResFunction.apply(inside(x), y, w, R).permute(2, 0, 1, 3)
    for ours, theirs, given in ((K.read_layernorm, theirs_read, (x, p, weight)), (K.mix_write, theirs_write, (x, y, R, w))):
        cotangent = torch.randn(ours(*given).shape, generator=torch.Generator().manual_seed(3))
        for a, b in zip(gradients(ours, given, cotangent), gradients(theirs, given, cotangent), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    _, factor = mhc_mm_norm_fwd(inside(x).view(B * T, n * C), torch.randn(n * C, n * n + 2 * n), 1e-6)
    torch.testing.assert_close(K.rms_factor(x).flatten(), factor)


# ----------------------------------------------------------------------------------------------------------------------
# the model

SMALL = {**TINY, "n_layer": 1, "hc_num_streams": 3}
MODELS = [dict(), dict(hc_maps="dynamic", hc_num_streams=2, bias=True), dict(hc="hc"), dict(hc="hc", hc_maps="dynamic"),
          dict(hc_freeze="res"), dict(hc_freeze="pre+post", hc_maps="dynamic"), dict(token_shift="difference", n_layer=2)]


@pytest.fixture
def few(tokens):
    return tuple(t[:2, :7] for t in tokens)


def built(options, ops):
    torch.manual_seed(1)
    return randomised(models.build("mhc", models.CONFIGS["mhc"](**{**SMALL, **options}, ops=ops)), scale=0.05)


@pytest.mark.parametrize("options", MODELS, ids=str)
def test_the_model_on_kernels_is_the_same_model(options, few):
    """Logits, loss, gradients and cached logits."""
    plain, fast = built(options, "torch"), built(options, "triton")
    assert type(fast) is not type(plain)
    results = []
    for net in (plain, fast):
        logits, loss = net(*few)
        loss.backward()
        results.append((logits, dict(net.named_parameters())))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
    assert list(results[0][1]) == list(results[1][1])
    for key, p in results[0][1].items():
        torch.testing.assert_close(results[1][1][key].grad, p.grad, rtol=1e-3, atol=1e-5 * float(p.grad.abs().max()) + 1e-7, msg=key)
    a, b = (torch.cat(list(net.eval().generate(few[0][:, :3], 3, temperature=0))) for net in (plain, fast))
    assert torch.equal(a, b)


def test_the_kernels_run_in_the_model(few, monkeypatch):
    """Each as often as a sub-layer asks for it: else the test above compares PyTorch with itself."""
    called = []
    for name, operator in (("read", streams._read), ("write", streams._write), ("rms", streams._rms)):
        monkeypatch.setattr(streams, f"_{name}", lambda *args, name=name, operator=operator: called.append(name) or operator(*args))
    with torch.no_grad():
        built(dict(hc_maps="dynamic", n_layer=2), "triton")(*few)
    # in each block: write for the MLP's input, and both writes again for what leaves the block
    assert {name: called.count(name) for name in called} == {"read": 4, "write": 6, "rms": 4}


def test_the_model_on_kernels_compiles_to_one_graph(few):
    """Under autocast, as a GPU trains."""
    torch._dynamo.reset()
    net, few = built(dict(hc_maps="dynamic", hc_num_streams=2), "triton"), tuple(t[:1, :2] for t in few)
    with torch.autocast("cpu", torch.bfloat16):
        loss, expected = compile_parts(net, backend="aot_eager")(*few)[1], net(*few)[1]
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=0)


def test_ops_triton_where_there_are_no_connections_is_refused():
    for hc in ("none", "altup"):
        with pytest.raises(UserError, match="'hc' or 'mhc', not"):
            models.CONFIGS["mhc"](**TINY, hc=hc, ops="triton")


# ----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("sizes", [
    (('--dtype=["float32"]', "--width=[64]", "--arch=[80]", '--kernel=["streams"]'),
     ('--dtype=["bfloat16"]', "--width=[768]", "--arch=[90]", '--kernel=["streams"]'),
     ('--dtype=["float16"]', "--width=[64]", "--arch=[90]", '--kernel=["streams"]'),
     ('--dtype=["float16"]', "--width=[1024]", "--arch=[90]", '--kernel=["streams read backward, n = 8, per"]'),
     ('--dtype=["float32"]', "--width=[100]", "--arch=[80]", '--kernel=["streams read backward","streams write forward"]')),
    pytest.param(([f'--kernel=["streams {name}"]'] for name in ("read", "write", "rms")), marks=pytest.mark.exhaustive)],
    ids=["some", "all"])
def test_machine_code_for_gpus_has_no_spills_and_the_passes_counted(sizes, tmp_path):
    kernels = {f"streams {name} {way}" for name in ("read", "write", "rms") for way in ("forward", "backward")}
    found = machine_code(list(sizes), tmp_path)
    for what, values in (("dtype", ("float32", "bfloat16", "float16")), ("arch", (80, 90))):
        assert {(row["kernel"], row[what]) for row in found} >= set(itertools.product(kernels, values))
    assert check_machine_code(found) >= kernels
