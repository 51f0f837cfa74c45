"""geometry.check: what it lets through and what it says, and GEOMETRY_CHECK=1, under which maps and models run in processes of
their own."""
import inspect
import os
import pathlib
import subprocess
import sys

import pytest
import torch
from conftest import TINY
from spaces import CURVATURES, DIMENSIONS, DTYPES, FUNCTIONS, extreme_rows, generator, limited, radius, random_rows, unit

import geometry as G
from geometry import checks

# ---- check ----------------------------------------

@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_as_project_leaves_them_at_the_edge_pass(dtype):
    for d in DIMENSIONS:
        rows = torch.cat((extreme_rows(d, dtype, seed=d), (unit(generator(d), 50, d) * 2e3).to(dtype)))
        smaller = (1e5, 1e12, 1e30) if dtype != torch.float16 else ()  # there are float16's last digits
        for c in (*CURVATURES, 1e-30, 1e4, *smaller):
            for each in (c, torch.tensor(c, dtype=torch.promote_types(dtype, torch.float32))):
                assert G.check(G.project(rows, each), each).dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["mobius_add", "expmap", "add_exp_0"])
def test_limited_sums_pass(name, dtype):
    for c in (5.0, 1.0, 1e-3, -1.0):
        ct = torch.tensor(c)
        x = G.project((unit(generator(1), 200, 7) * 3 * radius(c)).to(dtype), ct)
        v = (unit(generator(2), 200, 7) * torch.linspace(0, 5, 200)[:, None] * radius(c)).to(dtype)
        v = G.project(v, ct) if name == "mobius_add" else v
        G.check(limited(FUNCTIONS[name][0])(x, v, ct), ct)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_first_number_outside_is_refused(dtype):
    """The largest row of one number that is inside, and the next number of the dtype, 1."""
    inside = 1 - torch.finfo(dtype).eps / 2
    G.check(torch.tensor([[inside]], dtype=dtype), 1.0)
    with pytest.raises(ValueError, match=r"x: 1 of 1 rows"):
        G.check(torch.tensor([[1.0]], dtype=dtype), 1.0)


def test_the_message_says_how_many_rows_how_far_which_and_what_to_do():
    x = torch.zeros(2, 3, 4)
    x[0, 1, 0], x[1, 2, 3] = 1.5, -3.0
    with pytest.raises(ValueError) as error:
        G.check(x, torch.tensor(0.25), "embedding")
    message = str(error.value)
    assert message.startswith("embedding: 1 of 6 rows (the first: 1, 2) are not inside the ball, |x| sqrt(c) is up to 1.5 ")
    assert "geometry.project" in message and "\n" not in message
    with pytest.raises(ValueError, match="2 of 6 rows .the first: 0, 1. .* up to 3 "):
        G.check(x, 1.0)
    with pytest.raises(ValueError, match="1 of 1 rows are not inside"):
        G.check(x[1, 2], 1.0)


def test_every_row_has_its_own_c():
    x = torch.full((2, 3, 4), 0.3)  # |x| = 0.6
    c = torch.tensor([[1.0], [-9.0], [4.0]])
    with pytest.raises(ValueError, match=r"2 of 6 rows \(the first: 0, 2\)"):
        G.check(x, c)
    G.check(x[:, :2], c[:2])
    with pytest.raises(ValueError, match="1 of 3 rows"):  # c makes more rows of one
        G.check(x[0, :1], c)


def test_on_the_sphere_and_in_flat_space_any_finite_row_is_a_point():
    for dtype in DTYPES:
        for c in (0.0, -1.0):
            G.check(extreme_rows(7, dtype, seed=0), c)
            for bad in (float("nan"), float("inf"), -float("inf")):
                x = torch.zeros(3, 2, dtype=dtype)
                x[2, 1] = bad
                with pytest.raises(ValueError, match=r"1 of 3 rows \(the first: 2\) are not finite"):
                    G.check(x, c)
                with pytest.raises(ValueError, match="not finite"):
                    checks.check_tangent(x, c)


def test_lengths_do_not_overflow_or_underflow():
    G.check(torch.full((1, 4), 4e149, dtype=torch.float64), 1e-300)  # 0.8 of the radius
    with pytest.raises(ValueError, match="up to 1.2 "):
        G.check(torch.full((1, 4), 6e149, dtype=torch.float64), 1e-300)
    with pytest.raises(ValueError, match="up to 1.2 "):
        G.check(torch.full((1, 4), 6e-151, dtype=torch.float64), 1e300)


@pytest.mark.parametrize("x, c, match", [
    ([0.1], 1.0, "must be a tensor, not list"), (torch.zeros(2, 3, dtype=torch.int64), 1.0, "not int64"),
    (torch.tensor(0.5), 1.0, "a single number"), (torch.zeros(2, 3), torch.ones(2, 3), r"c of shape \(2, 3\)"),
    (torch.zeros(2, 4, 3), torch.ones(2, 1), r"c of shape \(2, 1\) does not fit rows of shape \(2, 4, 3\)"),
    (torch.zeros(2, 3), torch.tensor(float("nan")), "c is not finite"), (torch.zeros(2, 3), float("inf"), "c is not finite")])
def test_what_is_no_rows_or_no_curvature(x, c, match):
    for check in (G.check, checks.check_tangent):
        with pytest.raises(ValueError, match=match):
            check(x, c)


def test_rows_without_numbers_pass():
    G.check(torch.zeros(0, 3), 1.0)
    G.check(torch.zeros(2, 3, device="meta"), 1.0)


def test_check_in_compiled_code():
    """One graph, the same rows and gradients, the same message."""
    def f(x, c):
        return 2 * G.check(x, c, "mine")
    x = torch.full((2, 3), 0.1, requires_grad=True)
    for c in (1.0, torch.ones(1)):
        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        out = compiled(x, c)
        assert torch.equal(out, 2 * x)
        assert torch.equal(torch.autograd.grad(out.sum(), x)[0], torch.full((2, 3), 2.0))
        with pytest.raises(ValueError, match="mine: 2 of 2 rows"):
            compiled(10 * x.detach(), c)


# ---- GEOMETRY_CHECK, which is read at import ----------------------------------------

def run_with(setting, call):
    """call(), a function of this file, in a process with GEOMETRY_CHECK = setting."""
    code = f"import test_geometry_check as t; t.{call}(); print('done')"
    folder = pathlib.Path(__file__).resolve().parent
    path = f"{folder.parent}{os.pathsep}{folder}"
    environment = {**os.environ, "GEOMETRY_CHECK": setting, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0 and result.stdout.endswith("done\n"), result.stderr[-3000:]


MAPS = {**FUNCTIONS, "add_exp": (G.add_exp, "ppt"), "log_previous": (lambda x, c: G.log_previous(x[None], c), "p")}


def misuse_each_map():
    """In a process where checks are on: every map takes good rows, and refuses each of its rows in turn."""
    assert len(checks.ROWS) == len(MAPS) == 14
    for name, (f, kinds) in MAPS.items():
        rows = random_rows(kinds, (4, 3), 1.0, generator(3))
        for c in (1.0, torch.full((4, 1), 1.0)):
            assert f(*rows, c).isfinite().all()
            for i, kind in enumerate(kinds):
                for bad in (2.0, float("nan")) if kind == "p" else (float("inf"),):
                    wrong = [row.clone() for row in rows]
                    wrong[i][2] = bad
                    with pytest.raises(ValueError, match=name if name != "midpoint_of_two" else "gyromidpoint"):
                        f(*wrong, c)
    with pytest.raises(ValueError, match="expmap: x: "):  # keywords
        G.expmap(x=torch.ones(3), v=torch.ones(3), c=1.0, limit=torch.tensor(0.5))
    compiled = torch.compile(G.add_exp_0, fullgraph=True, backend="aot_eager")
    x = torch.full((2, 3), 0.1, requires_grad=True)
    torch.testing.assert_close(compiled(x, x, torch.ones(1)), G.add_exp_0.__wrapped__(x, x, torch.ones(1)))
    with pytest.raises(ValueError, match="add_exp_0: v: 1 of 2 rows"):
        compiled(x, torch.tensor([[0.0, 0, 0], [0, 0, float("nan")]]), torch.ones(1))


def maps_are_as_written():
    for name in checks.ROWS:
        f = getattr(G, name)
        assert not hasattr(f, "__wrapped__") and f.__name__ == name
        assert os.path.dirname(f.__code__.co_filename) == os.path.dirname(G.__file__)


def test_off_the_maps_are_the_functions_themselves(monkeypatch):
    for setting, on in (("", False), ("0", False), ("1", True), ("yes", True)):
        monkeypatch.setenv("GEOMETRY_CHECK", setting)
        assert checks.wanted() is on
    monkeypatch.delenv("GEOMETRY_CHECK")
    assert not checks.wanted()
    maps_are_as_written()


def test_every_public_map_is_checked():
    """Every public function of geometry/ that takes rows and c."""
    takes_c = {name for name, f in vars(G).items() if inspect.isfunction(f) and not name.startswith("_")
               and f.__module__.startswith("geometry.") and "c" in inspect.signature(f).parameters}
    assert takes_c - {"max_norm", "fits", "check"} == set(checks.ROWS)


def train_models():
    """Some steps of models with every option, some with rows at the edge of the ball, in float32 and under autocast; then what
    sampling and telemetry ask of the geometry."""
    from test_model_baseline import randomised
    from test_models import BASELINES, CONTROLS, GRID, build, spread

    from model_baseline import Cache

    assert hasattr(G.add_exp_0, "__wrapped__")
    rng = torch.Generator().manual_seed(0)
    idx, targets = (torch.randint(TINY["vocab_size"], (3, TINY["block_size"]), generator=rng) for _ in range(2))
    cases = [(name, {**options, "curvature": c}) for (name, options), c in zip(spread(GRID, 30), (1.0, 30.0, -1.0) * 10)]
    for i, (name, options) in enumerate(BASELINES + CONTROLS + cases):
        net = randomised(build(name, options)) if i % 2 else build(name, options)
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-2)
        for step in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=step == 2):
                net(idx, targets)[1].backward()
            optimizer.step()
        if name == "mixed":
            net.eval().geometry_stats(idx)
            with torch.no_grad():
                cache = Cache(net.config.n_layer)
                for part in (idx[:, :4], idx[:, 4:5]):
                    net(part, cache=cache)


def both():
    misuse_each_map()
    train_models()


def test_all_points_that_models_make_are_points_and_every_map_refuses_every_row_that_it_cannot_take():
    run_with("1", "both")
