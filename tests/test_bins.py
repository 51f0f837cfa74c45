"""scalar_attention/bins.py and kv_bins of model_tau.py: the error bound, its proof's extreme case, constant memory."""
import math

import pytest
import torch
from conftest import TINY
from running import one_line, run
from test_model_baseline import randomised
from test_model_tau import build

import sample
import scalar_attention
import train
from common.errors import UserError
from model_baseline import Cache
from scalar_attention import bins


def numbers(T, seed, nh=4, n_kv=2, D=3, dtype=torch.float64):
    """lambda of queries (2, nh, T) and keys (2, n_kv, T), values (2, n_kv, T, D)."""
    rng = torch.Generator().manual_seed(seed)
    return (torch.rand(2, nh, T, generator=rng, dtype=dtype), torch.rand(2, n_kv, T, generator=rng, dtype=dtype),
            torch.randn(2, n_kv, T, D, generator=rng, dtype=dtype))


def both(lambda_q, lambda_k, v, temperature, M):
    """Exact output and the bins', of T tokens that are read one by one from the first on. temperature: (n_kv,)."""
    group = lambda_q.size(1) // len(temperature)
    a, b = lambda_q / temperature.repeat_interleave(group).view(-1, 1), lambda_k / temperature.view(-1, 1)
    return scalar_attention.attend(a, b, v, "plain"), bins.read(bins.empty(b, v, M), a, b, v, temperature)[0]


@pytest.mark.parametrize("M", [1, 4, 64, 1000])
@pytest.mark.parametrize("temperature", [(0.01, 0.05), (0.3, 2.0)])
def test_the_bound_holds_for_every_head(M, temperature):
    for seed in range(3):
        lambda_q, lambda_k, v = numbers(60, seed)
        if seed == 1:  # keys at the ends of bins
            lambda_k = (lambda_k * M).floor() / M
        if seed == 2:  # and values that say on which side of the query they are
            lambda_q = lambda_q[:, :, :1].expand_as(lambda_q)
            lambda_k = ((lambda_k * M).floor() / M + 1e-12).clamp(max=1 - 1e-12)
            v = (lambda_k > lambda_q[:, ::2]).double().mul(2).sub(1).unsqueeze(-1)
        exact, found = both(lambda_q, lambda_k, v, torch.tensor(temperature, dtype=torch.float64), M)
        for head in range(4):
            keys = v[:, head // 2]
            off = (found - exact)[:, head].norm(dim=-1).max()
            bound = bins.error_bound(M, temperature[head // 2]) * keys.norm(dim=-1).max()
            assert off <= bound + 1e-12
            assert bound <= math.expm1(1 / (M * temperature[head // 2])) * keys.norm(dim=-1).max()
            assert off > 0


@pytest.mark.parametrize("M, ratio", [(4, 2), (10, 3), (50, 20)])
def test_the_bound_is_reached(M, ratio):
    """e^x = ratio, the query below all keys: one key at the upper end of bin 1 moves to it, `ratio` keys at the lower end of bin 2 away."""
    temperature = 1 / (2 * M * math.log(ratio))
    lambda_k = torch.tensor([2 / M - 1e-13] + ratio * [2 / M + 1e-13], dtype=torch.float64).view(1, 1, -1)
    v = torch.tensor([1.0] + ratio * [-1.0], dtype=torch.float64).view(1, 1, -1, 1)
    exact, found = both(torch.zeros_like(lambda_k), lambda_k, v, torch.tensor([temperature], dtype=torch.float64), M)
    assert (found - exact)[0, 0, -1].item() == pytest.approx(bins.error_bound(M, temperature), rel=1e-6)


def test_many_bins_come_near_the_exact_form_and_keys_at_centres_are_exact():
    lambda_q, lambda_k, v = numbers(30, 0)
    temperature = torch.tensor((0.05, 0.1), dtype=torch.float64)
    off = []
    for M in (30, 1000, 30_000):
        exact, found = both(lambda_q, lambda_k, v, temperature, M)
        off.append((found - exact).abs().max().item())
    assert off[1] < off[0] / 10 and off[2] < off[1] / 10  # the bound: 33 and 30 times
    assert off[2] <= 2 / 6000 * v.norm(dim=-1).max()
    exact, found = both(lambda_q, ((lambda_k * 16).floor() + 0.5) / 16, v, temperature, 16)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-12)


def test_ranges_dtypes_and_bad_numbers():
    """A temperature of 1e-6 overflows nothing; lambda = 1 is in the last bin; 16-bit values are summed in float32; NaN stays NaN."""
    lambda_q, lambda_k, v = (t.float() for t in numbers(50, 0))
    exact, found = both(lambda_q, ((lambda_k * 8).floor() + 0.5) / 8, v, torch.full((2,), 1e-6), 8)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)
    assert torch.equal(bins.add(bins.empty(lambda_k, v, 4), torch.ones(2, 2, 50), v, torch.ones(2))[..., -1],
                       torch.tensor([0.0, 0, 0, 50]).expand(2, 2, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = both(lambda_q, lambda_k, v.bfloat16(), torch.full((2,), 0.1), 8)[1]
    full = both(lambda_q, lambda_k, v.bfloat16().float(), torch.full((2,), 0.1), 8)[1]
    assert half.dtype == torch.bfloat16 and torch.equal(half, full.bfloat16())
    lambda_k[0, 0, 20] = math.nan
    _, found = both(lambda_q, lambda_k, v, torch.full((2,), 0.1), 8)
    assert found[0, :2, 20:].isnan().all() and found[:, :, :20].isfinite().all() and found[1].isfinite().all()


@pytest.mark.parametrize("options", [dict(), dict(position="rope", n_kv_head=1, value_residual="learned"), dict(laplacian="none")])
@torch.no_grad()
def test_a_cache_of_bins_gives_nearly_the_exact_logits_and_does_not_grow(options, tokens):
    net = randomised(build(**options), scale=0.05).double().eval()
    full, size, off = net(*tokens)[0], set(), {}
    for M in (1, 10 ** 4):
        net.config.kv_bins, cache, start = M, Cache(2), 0
        for n in (3, 1, 5, 2, 1):
            logits = net(tokens[0][:, start:start + n], cache=cache)[0]
            start += n
            off[M] = max(off.get(M, 0), (logits[:, 0] - full[:, start - 1]).abs().max().item())
            size.add((M, sum(t.nbytes for block in cache.blocks for t in block.values())))
            if n == 3:  # the prompt is read exactly
                torch.testing.assert_close(logits[:, 0], full[:, 2])
    heads = options.get("n_kv_head", 2)
    assert size == {(M, 2 * 3 * heads * M * (8 + 1) * 8) for M in off}
    assert off[10 ** 4] < 1e-3 and off[1] > 100 * off[10 ** 4]


@torch.no_grad()
def test_bins_beyond_block_size_are_exact_windows():
    """Where the text is longer than block_size every token is of a window that is read anew, a prompt."""
    net = randomised(build(kv_bins=1)).double().eval()
    prompt, taken = torch.arange(TINY["block_size"]).view(1, -1), {}
    for M in (0, 1):
        net.config.kv_bins, seen = M, []
        with net.register_forward_hook(lambda *call: seen.append(call[-1][0][:, -1])):
            for _ in net.generate(prompt, 5, temperature=0):
                pass
        taken[M] = torch.cat(seen)
    torch.testing.assert_close(taken[0], taken[1])


def test_how_tokens_are_cut_in_calls_changes_nothing_after_the_first(tokens):
    found = []
    for cut in ((4, 8), (4, 1, 3, 3, 1)):
        net, cache = randomised(build(kv_bins=3)).double().eval(), Cache(2)
        with torch.no_grad():
            for part in tokens[0].split(cut, 1):
                logits = net(part, cache=cache)[0]
        found.append(logits)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_training_knows_nothing_of_bins(tokens):
    assert torch.equal(build(kv_bins=1)(*tokens)[1], build()(*tokens)[1])
    with pytest.raises(UserError, match="kv_bins = -1"):
        build(kv_bins=-1)


def test_sample_takes_bins_and_says_the_bound(small_run, tmp_path, capsys):
    arguments = [f"--out_dir={tmp_path / 'run'}", "--start=the", "--max_new_tokens=10", "--device=cpu", "--kv_bins=8"]
    assert run(train.main, small_run + ["--model=tau", "--temperature=fixed", "--max_iters=2", "--eval_interval=2"], capsys)[0] == 0
    status, out, err = run(sample.main, arguments, capsys)
    assert status == 0 and out.startswith("the")
    assert f"kv_bins = 8: after the prompt, attention is off by at most {2 * math.tanh(1 / (4 * 8 * 0.05)):.2g} of" in err
    assert run(train.main, small_run + ["--model=baseline", "--overwrite=True", "--max_iters=2", "--eval_interval=2"], capsys)[0] == 0
    status, _, err = run(sample.main, arguments, capsys)
    assert status == 2
    one_line(err, "kv_bins", "'baseline'")
