"""model_tau.py, scalar_attention/laplacian.py and data/laplacian.py: lambda, its graphs, its statistics, its cache."""
import mpmath
import numpy as np
import pytest
import torch
from conftest import TINY
from running import one_line, process, run
from test_model_baseline import randomised

import model_tau
import models
import scalar_attention
import train
from common.errors import UserError
from data import laplacian as corpus
from model_baseline import Cache, rotate
from scalar_attention import laplacian
from training.compiled import compile_parts


def build(seed=1, **options):
    torch.manual_seed(seed)
    return models.build("tau", models.CONFIGS["tau"](**{**TINY, **options}))


def vectors(n, m, dtype=torch.float64, seed=0):
    return torch.randn(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def some_graph(m, seed=0):
    return torch.from_numpy(corpus.laplacian(vectors(50, m, seed=seed).numpy() + 0.3, k=3))


def matrices(m):
    factor = vectors(m, m, seed=3) / m ** 0.5
    return {"chain": (None, laplacian.chain(m)), "matrix": (some_graph(m),) * 2, "factor": (factor, laplacian.laplacian_of(factor))}


@pytest.mark.parametrize("kind", ["chain", "matrix", "factor"])
def test_lambda_against_60_digits(kind):
    m, tau = 12, 0.7
    given, L = matrices(m)[kind]
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        x = torch.cat((vectors(20, m), vectors(5, m) * 1e-3, 1 + 1e-3 * vectors(5, m))).to(dtype)
        found = laplacian.roughness(x, tau, kind, None if given is None else given.to(dtype))
        exact_L = L if given is None else laplacian.laplacian_of(given.to(dtype).double()) if kind == "factor" else given.to(dtype).double()
        with mpmath.workdps(60):
            for row, value in zip(x.tolist(), found.tolist()):
                energy = sum(mpmath.mpf(a) * mpmath.mpf(w) * mpmath.mpf(b) for a, weights in zip(row, exact_L.tolist())
                             for w, b in zip(weights, row)) / sum(mpmath.mpf(a) ** 2 for a in row)
                assert abs(value - energy / (energy + tau)) < bound


@pytest.mark.parametrize("kind", ["chain", "matrix", "factor"])
def test_properties_of_lambda(kind):
    m = 10
    given, L = matrices(m)[kind]
    x = vectors(50, m)
    found = laplacian.roughness(x, 0.5, kind, given)
    for c in (-1.0, 1e-6, 1e6):
        assert (laplacian.roughness(c * x, 0.5, kind, given) - found).abs().max() < 1e-12
    assert ((found >= 0) & (found < 1)).all() and found.std() > 0.01
    assert not laplacian.roughness(torch.zeros(1, m, dtype=x.dtype), 0.5, kind, given).any()
    assert laplacian.roughness(torch.full((1, m), 3.0, dtype=x.dtype), 0.5, kind, given).abs().max() < 1e-12
    order = torch.randperm(m, generator=torch.Generator().manual_seed(0))  # nodes renamed: the same graph
    assert (laplacian.roughness(x[:, order], 0.5, "matrix", L[order][:, order]) - found).abs().max() < 1e-12


def test_every_laplacian_is_one():
    for _, L in matrices(9).values():
        corpus.checked(L.numpy(), "L")
    assert torch.equal(laplacian.chain(3), torch.tensor([[1, -1, 0], [-1, 2, -1], [0, -1, 1]], dtype=torch.float64))


def test_the_graph_of_a_corpus():
    """By hand, for four features; a link that either end wants is there."""
    X = vectors(30, 4).numpy()
    unit = X / np.linalg.norm(X, axis=0)
    distance = 1 - np.maximum(unit.T @ unit, 0)
    for graph, weight in (("knn", lambda d: 1 / (1 + (d / 0.4) ** 3)), ("gaussian", lambda d: np.exp(-d * d / (2 * 0.4 ** 2)))):
        L = corpus.laplacian(X, graph, k=3, sigma=0.4, p=3.0)
        expected = -weight(distance)
        np.fill_diagonal(expected, 0)
        np.fill_diagonal(expected, -expected.sum(1))
        assert np.abs(L - expected).max() < 1e-12
    sparse = corpus.laplacian(vectors(30, 20).numpy() + 0.5, k=2)
    assert ((sparse < 0).sum(1) >= 2).all() and (sparse < 0).sum() < 20 * 19 / 2


def test_controls_of_the_graph():
    """Shuffled: the same columns, in other orders. Rotated: the same eigenvalues and a constant vector of no roughness, other entries."""
    X = vectors(30, 6).numpy() + 0.5
    mixed = corpus.shuffled(X, 3)
    assert np.array_equal(np.sort(mixed, 0), np.sort(X, 0)) and not np.array_equal(mixed, X)
    assert np.array_equal(mixed, corpus.shuffled(X, 3)) and not np.array_equal(mixed, corpus.shuffled(X, 4))
    assert np.linalg.matrix_rank(np.argsort(np.argsort(mixed, 0), 0) - np.argsort(np.argsort(X, 0), 0)) > 1  # no common order
    L = corpus.laplacian(X, k=2)
    turned = corpus.rotated(L, 3)
    np.testing.assert_allclose(np.linalg.eigvalsh(turned), np.linalg.eigvalsh(L), atol=1e-12)
    assert np.abs(turned.sum(1)).max() < 1e-12 and np.abs(turned - L).max() > 0.1 and np.abs(turned - corpus.rotated(L, 4)).max() > 0.1


def test_the_projections_can_undo_a_turn_of_the_graph(tmp_path, tokens):
    """L and Q L Q^T are one model: what attention can compute depends on L's eigenvalues alone."""
    L = corpus.laplacian(vectors(30, 8).numpy() + 0.5, k=3)
    turned = corpus.rotated(L, 0)
    Q = torch.from_numpy(np.linalg.eigh(turned)[1] @ np.linalg.eigh(L)[1].T)
    for name, matrix in (("L", L), ("turned", turned)):
        np.save(tmp_path / f"{name}.npy", matrix)
    a, b = (randomised(build(laplacian="corpus", laplacian_file=str(tmp_path / f"{name}.npy"))).double() for name in ("L", "turned"))
    before = b(*tokens)[0]
    with torch.no_grad():
        for block in b.transformer.h:
            w = block.attn.c_attn.weight[:2 * TINY["n_embd"]].view(-1, 8, TINY["n_embd"])  # heads of queries and keys
            w.copy_(Q @ w)
            block.attn.matrix.copy_(torch.from_numpy(turned))
        for block in a.transformer.h:
            block.attn.matrix.copy_(torch.from_numpy(L))  # buffers are float32
    torch.testing.assert_close(b(*tokens)[0], a(*tokens)[0], rtol=1e-10, atol=1e-10)
    assert (before - a(*tokens)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("change, message", [
    (lambda X: X * np.nan, "NaN"), (lambda X: X * [[1, 1, 1, 0]], "feature 3 is 0"), (lambda X: X[0], "items, features"),
    (lambda X: np.block([[X[:, :2], 0 * X[:, :2]], [0 * X[:, :2], X[:, :2]]]), "2 pieces")])
def test_bad_features_are_one_line(change, message):
    with pytest.raises(UserError, match=message):
        corpus.laplacian(change(np.abs(vectors(9, 4).numpy())), k=2, eps=0.9)


@pytest.mark.parametrize("change, message", [
    (lambda L: L[:, :2], "square"), (lambda L: L * np.nan, "NaN"), (lambda L: L + np.triu(np.ones(4), 1), "symmetric"),
    (lambda L: L + np.eye(4), "sum to 0"), (lambda L: -L, "negative eigenvalue"), (lambda L: L * 0, "4 pieces")])
def test_what_is_no_laplacian_is_one_line(change, message):
    with pytest.raises(UserError, match=message):
        corpus.checked(change(laplacian.chain(4).numpy()), "L")


def test_from_the_command_line_to_a_trained_model(small_run, tmp_path, capsys):
    """A baseline's embeddings -> L of each head -> a model of it, which samples after its training. And what goes wrong is one line."""
    source, L = tmp_path / "run", tmp_path / "L.npy"
    first = run(train.main, [*small_run, "--model=baseline", "--max_iters=2", "--eval_interval=2"], capsys)
    assert first[0] == 0 and "\nattention: " not in first[1], first
    made = process(["data/laplacian.py", f"--source={source}", f"--out={L}", "--heads=2", "--k=3"])  # by itself: it finds its imports
    assert made.returncode == 0 and "2 x 8 features" in made.stdout, made.stderr
    assert np.load(L).shape == (2, 8, 8)
    for control, said in (("shuffled", "links"), ("rotated", "no graph")):
        other = tmp_path / f"{control}.npy"
        made = run(corpus.main, [f"--source={source}", f"--out={other}", "--heads=2", "--k=3", f"--control={control}"], capsys)
        assert made[0] == 0 and said in made[1], made
        assert np.abs(np.load(other) - np.load(L)).max() > 0.01
    of_a_corpus = [*small_run, "--model=tau", "--laplacian=corpus", "--overwrite=True"]
    second = run(train.main, [*of_a_corpus, f"--laplacian_file={L}", "--tau=median"], capsys)
    assert second[0] == 0 and "final: val loss" in second[1], second
    assert second[1].count("\nattention: all pairs, strip by strip (T = 16; divide and conquer from 1,024 on)\n") == 1
    for main, bad in ((train.main, [*of_a_corpus, "--laplacian_file=none.npy"]), (corpus.main, [f"--source={tmp_path}", f"--out={L}x"]),
                      (corpus.main, [f"--out={L}x"]), (corpus.main, [f"--source={source}", f"--out={L}x", "--heads=3"])):
        status, _, err = run(main, bad, capsys)
        assert status == 2
        one_line(err)
    assert not (tmp_path / "L.npyx").exists()


@pytest.mark.parametrize("options, message", [
    (dict(tau_start=0.0), "tau_start"), (dict(temperature_start=-1.0), "temperature_start"), (dict(n_kv_head=3), "n_kv_head"),
    (dict(laplacian="corpus"), "laplacian_file"), (dict(laplacian_file="L.npy"), "laplacian_file"), (dict(manifold_dim=1), "at least 2"),
    (dict(manifold_dim=5, position="rope"), "even"), (dict(kv_bins=3, position="alibi"), "kv_bins")])
def test_configurations_that_cannot_work_are_one_line(options, message):
    with pytest.raises(UserError, match=message):
        build(**options)


@pytest.mark.parametrize("options, said", [
    (dict(block_size=1023), "all pairs, strip by strip (T = 1,023; divide and conquer from 1,024 on)"),
    (dict(block_size=1024), "divide and conquer, T log T (T = 1,024; divide and conquer from 1,024 on)"),
    (dict(attention_form="divide"), "divide and conquer, T log T (attention_form = 'divide')"),
    (dict(attention_form="plain", block_size=2048), "all pairs as one T x T matrix (attention_form = 'plain')")])
def test_a_model_says_which_form_it_takes_and_takes_it(options, said, monkeypatch):
    net, taken = build(**options), []
    assert net.attention_form() == said
    for form, words in scalar_attention.IN_WORDS.items():
        monkeypatch.setitem(scalar_attention.FORMS, form, lambda a, b, v, slope, words=words: taken.append(words) or v)
    net(torch.zeros(1, net.config.block_size, dtype=torch.int64))
    assert set(taken) == {said.rpartition(" (")[0]}


@pytest.mark.parametrize("options", [dict(), dict(laplacian="learned", laplacian_per_head=True, n_kv_head=1), dict(laplacian="none")])
def test_every_form_gives_the_same_gradients(options, tokens):
    """Of weights, temperature, tau and a learned L: against the plain form."""
    found = {}
    for form in ("plain", "tiled", "divide"):
        for dtype in (torch.float64, torch.float32):
            net = randomised(build(attention_form=form, **options)).to(dtype)
            net(*tokens)[1].backward()
            found[form, dtype] = {name: p.grad for name, p in net.named_parameters()}
    for (form, dtype), gradients in found.items():
        for name, gradient in gradients.items():
            exact = found["plain", dtype][name]  # of the same scalars: rounded ones have other signs where two all but coincide
            assert exact.norm() > 0
            assert (gradient - exact).norm() <= (1e-9 if dtype == torch.float64 else 1e-4) * exact.norm(), (form, dtype, name)


@pytest.mark.parametrize("options", [dict(), dict(tau="median"), dict(tau="mean", position="rope"), dict(laplacian="learned"),
                                     dict(laplacian="none", qk_norm=True), dict(n_kv_head=1, manifold_dim=6)])
def test_queries_and_keys_have_gradients_on_every_path(options, tokens):
    net = build(**options)
    net(*tokens)[1].backward()
    for block in net.transformer.h:
        for part in block.attn.c_attn.weight.grad.split(block.attn.sizes):
            assert torch.isfinite(part).all() and part.abs().max() > 0


def test_the_attention_is_its_definition(tokens):
    net = randomised(build(n_kv_head=1, tau="fixed")).double()
    attention, x = net.transformer.h[0].attn, torch.randn(2, 9, 16, dtype=torch.float64)
    q, k, v = attention.c_attn(x).split(attention.sizes, 2)
    L, temperature = laplacian.chain(8), attention.log_temperature.exp().item()

    def lam(vector):
        e = vector @ L @ vector / (vector @ vector)
        return e / (e + 2.0)
    out = torch.zeros(2, 9, 16, dtype=torch.float64)
    for sequence in range(2):
        for head in range(2):
            for i in range(9):
                query = lam(q[sequence, i, 8 * head:8 * head + 8])
                weights = torch.softmax(torch.stack([-(query - lam(k[sequence, j])).abs() / temperature for j in range(i + 1)]), 0)
                out[sequence, i, 8 * head:8 * head + 8] = weights @ v[sequence, :i + 1]
    torch.testing.assert_close(attention(x), attention.c_proj(out))


@pytest.mark.parametrize("n_kv_head", [0, 1])
def test_alibi_subtracts_slope_times_age(n_kv_head, tokens):
    """The slopes of ALiBi's paper, for two key heads and for one; without position embeddings."""
    net = randomised(build(position="alibi", n_kv_head=n_kv_head)).double()
    attention, x = net.transformer.h[0].attn, torch.randn(2, 9, 16, dtype=torch.float64)
    slopes = [1 / 16, 1 / 256] if n_kv_head == 0 else [1 / 256]
    assert attention.slope.tolist() == slopes and "transformer.wpe.weight" not in net.state_dict() and attention.state_dict().keys() == \
        build().transformer.h[0].attn.state_dict().keys()
    a, b, v = attention.scalars(x)
    out = torch.zeros(2, 9, 16, dtype=torch.float64)
    for head in range(2):
        key = head * len(slopes) // 2
        for i in range(9):
            logits = torch.stack([-(a[:, head, i] - b[:, key, j]).abs() - slopes[key] * (i - j) for j in range(i + 1)], -1)
            out[:, i, 8 * head:8 * head + 8] = (logits.softmax(-1).unsqueeze(-1) * v[:, key, :i + 1]).sum(1)
    torch.testing.assert_close(attention(x), attention.c_proj(out))
    before = net.geometry_stats(tokens[0])["block0"]
    attention.slope.fill_(1e4)  # telemetry knows of it
    after = net.geometry_stats(tokens[0])["block0"]
    assert before["entropy_head1"] > 0.1 and after["entropy_head1"] < 1e-6 and after["largest_head1"] > 1 - 1e-6


@pytest.mark.parametrize("statistic", ["median", "mean"])
def test_tau_of_training_batches_is_of_earlier_steps_and_ends(statistic, monkeypatch):
    monkeypatch.setattr(model_tau, "TAU_STEPS", 3)
    net = build(tau=statistic, n_layer=1)
    attention = net.transformer.h[0].attn
    batches = [torch.randint(37, (3, 12), generator=torch.Generator().manual_seed(i)) for i in range(12)]
    seen, used = [], []
    for i, batch in enumerate(batches):
        before = net.eval()(batch, batch)[1]  # what is not training leaves it as it is
        q, k, _ = attention.c_attn(net.transformer.h[0].ln_1(net.embed(batch))).split(attention.sizes, 2)
        x = torch.stack((q, k), 2).unflatten(-1, (2, 8)).permute(3, 0, 1, 2, 4).flatten(1, 3)
        e = laplacian.energy(x, "chain")
        net.train()(batch, batch)
        used.append(attention.tau.clone())
        seen.append(e.median(-1).values if statistic == "median" else e.mean(-1))
        if i % 2:  # two batches a step
            net.end_of_step(lambda tensor: tensor)
        with torch.no_grad():
            assert torch.isfinite(before)
    assert torch.equal(torch.stack(used[:2]), torch.full((2, 2), 2.0))
    for i in range(2, 12):
        torch.testing.assert_close(used[i], torch.stack(seen[:min(i // 2, 3) * 2]).mean(0))
    kept = {name.rpartition(".")[2] for name in net.state_dict()}
    assert {"tau", "tau_steps"} <= kept and not {"tau_sum", "tau_seen"} & kept  # a checkpoint is of a step's end


def test_a_step_that_overflows_leaves_tau_as_it_is(tokens):
    net = build(tau="mean", n_layer=1)
    attention = net.transformer.h[0].attn
    net(*tokens)
    attention.tau_sum[1] = float("nan")
    net.end_of_step(lambda tensor: tensor)
    assert attention.tau.tolist() == [2.0, 2.0] and attention.tau_steps == 0
    net(*tokens)
    net.end_of_step(lambda tensor: tensor)
    assert torch.isfinite(attention.tau).all() and (attention.tau != 2).all() and attention.tau_steps == 1
    net.end_of_step(lambda tensor: tensor)  # nothing has been seen
    assert attention.tau_steps == 1


def test_recomputed_blocks_have_the_same_gradients(tokens):
    found = []
    for recompute in (False, True):
        net = build(tau="median")
        net.activation_checkpointing = recompute
        for _ in range(2):
            net.zero_grad()
            net(*tokens)[1].backward()
            net.end_of_step(lambda tensor: tensor)
        found.append([p.grad for p in net.parameters()] + [block.attn.tau for block in net.transformer.h])
    assert all(torch.equal(a, b) for a, b in zip(*found))


@pytest.mark.parametrize("dtype, share", [(torch.float32, (8 + 1) / (2 * 8)), (torch.bfloat16, (2 * 8 + 4) / (4 * 8))])
def test_a_cache_has_the_bytes_that_it_should(dtype, share, tokens):
    """Values, and one float32 number a key, against keys and values."""
    def kept(name):
        torch.manual_seed(0)
        net = models.build(name, models.CONFIGS[name](**TINY)).eval()
        cache = Cache(2)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            for part in tokens[0].split((7, 1, 4), 1):
                net(part, cache=cache)
        return sum(t.nbytes for block in cache.blocks for t in block.values())
    assert kept("tau") == share * kept("baseline")


def test_rotation_is_multiplication_by_complex_numbers():
    x = vectors(5, 8).view(1, 5, 8)
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones(5, 4, dtype=torch.float64), torch.outer(
        torch.arange(3, 8, dtype=torch.float64), 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)))
    torch.testing.assert_close(rotate(x, 3), torch.cat((turned.real, turned.imag), -1))


def test_rotated_models_have_no_position_embeddings(tokens):
    net, plain = build(position="rope"), build()
    assert "transformer.wpe.weight" not in dict(net.named_parameters()) and net.num_params() == plain.num_params()
    assert net.flops_per_token() < models.build("baseline", models.CONFIGS["baseline"](**TINY)).flops_per_token()


@pytest.mark.parametrize("options", [dict(tau="median"), dict(laplacian="learned", position="rope", qk_norm=True)])
def test_compiled_models_train_the_same(options, tokens):
    losses = []
    for compiled in (False, True):
        net = build(**options)
        step = compile_parts(net, backend="aot_eager") if compiled else net
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss = step(*tokens)[1]
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    torch.testing.assert_close(losses[:3], losses[3:])


def test_telemetry(tokens):
    stats = build().geometry_stats(tokens[0])
    assert set(stats) == {"block0", "block1"}
    for values in stats.values():
        assert 0 <= values["lambda_q10"] <= values["lambda_q50"] <= values["lambda_q90"] < 1
        for head in range(2):
            assert 0 <= values[f"entropy_head{head}"] <= np.log(12) and 1 / 12 <= values[f"largest_head{head}"] <= 1
