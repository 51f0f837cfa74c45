"""
What tests/test_models.py checks on a sample because it takes long, here on every model and every combination of options: one graph
under torch.compile, 200 training steps in float32 and bf16, learned curvature that moves. Hours on 2 cores, so not part
of `make test`: `make test-all`.
"""
import pytest
import torch
from test_models import EVERY, GRID, build, check_learned_curvature, check_one_graph

pytestmark = pytest.mark.exhaustive


def name_of(case):
    return "-".join(str(v) for v in case[1].values())


@pytest.mark.parametrize("case", EVERY, ids=name_of)
def test_one_graph(case, tokens):
    check_one_graph(*case, tokens)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", EVERY, ids=name_of)
def test_200_steps(case, dtype, tokens):
    name, options = case
    net = build(name, options, n_layer=2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = net(*tokens)[1]
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in net.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("case", [case for case in GRID if case[1]["curvature_mode"] != "fixed"], ids=name_of)
def test_learned_curvature_moves_and_has_a_gradient(case, tokens):
    check_learned_curvature(*case, tokens)
