"""bench/float64_ops.py: what is counted, on operations whose counts are known, and that the float32 form has none."""
import float64_ops
import pytest
import torch
from float64_ops import DIVISION, FUNCTION, Counts

import geometry


def counted(f, *tensors):
    with Counts() as counts:
        f(*tensors)
    return tuple(counts.total[key] for key in ("float64", "conversions", "all"))


def test_counts_of_single_operations():
    wide, narrow = torch.ones(3, 4, dtype=torch.float64), torch.ones(3, 4)
    assert counted(lambda a: a + a, wide) == (12, 0, 12)
    assert counted(lambda a: a + a, narrow) == (0, 0, 12)
    assert counted(lambda a, b: a * b, wide, narrow) == (12, 12, 12)
    assert counted(lambda a: a.double(), narrow) == (0, 12, 0)
    assert counted(lambda a: a.float(), wide) == (0, 12, 0)
    assert counted(lambda a: a.half(), narrow) == (0, 0, 0)
    assert counted(lambda a: a.sum(-1), wide) == (12, 0, 12)
    assert counted(lambda a: torch.linalg.vector_norm(a, dim=-1, dtype=torch.float64), narrow) == (24, 12, 24)
    assert counted(lambda a: torch.addcmul(a, a, a), wide) == (24, 0, 24)
    assert counted(torch.reciprocal, wide) == (12 * DIVISION, 0, 12 * DIVISION)
    assert counted(torch.tanh, wide) == (12 * FUNCTION, 0, 12 * FUNCTION)
    assert counted(lambda a: a.view(4, 3).t().unsqueeze(0), wide) == (0, 0, 0)
    assert counted(lambda a: a @ a.t(), wide) == (2 * 3 * 4 * 3, 0, 0)
    assert counted(lambda a: a < 1, wide) == (12, 0, 12)


@pytest.fixture
def choice_is_put_back():
    yield
    geometry.use_row_scalars("auto")


def test_a_step(monkeypatch, choice_is_put_back):
    """Twice the layers, twice the float64 operations; none where row scalars are float32."""
    shapes = {n: (n, 2, 16, 8, 11) for n in (1, 2)}
    monkeypatch.setattr(float64_ops, "SHAPES", shapes)
    found = {n: float64_ops.eager(n, "float64") for n in shapes}
    (one, flops), (two, more) = found[1], found[2]
    assert one["float64"] > 0 and more > flops > 0
    per_layer = two["float64"] - one["float64"]
    assert 0.8 * one["float64"] < per_layer <= one["float64"]
    count = float64_ops.eager(1, "float32")[0]
    assert count["float64"] == count["conversions"] == 0 < count["all"]


@pytest.mark.exhaustive
def test_compiled_code_makes_fewer(monkeypatch, choice_is_put_back):
    monkeypatch.setattr(float64_ops, "SHAPES", {1: (1, 2, 16, 8, 11)})
    one, compiled = float64_ops.eager(1, "float64")[0], float64_ops.compiled(1, "float64")
    # (its forward pass alone has 0.56 of the eager step's)
    assert 0.7 * one["float64"] < compiled["float64"] < one["float64"] and 0 < compiled["conversions"] < one["conversions"]
