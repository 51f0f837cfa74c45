"""What test_second_device.py lets run in a process that has the second device: a check a name."""
import contextlib

import pytest
import test_models
import torch
from second_device import FULL_NAME, Graph, capture, waits
from test_stacked import CASES, batch, build

from model_baseline import Cache
from training.config import TrainConfig
from training.optimizer import make_optimizers
from training.stacked_step import stacked_step

DEVICE = torch.device(FULL_NAME)


def the_device_itself():
    """That the tests can fail: what a GPU refuses is refused, and a graph repeats what was captured."""
    x = torch.ones(3, device=DEVICE)
    for mixture in (lambda: x + torch.ones(3), lambda: torch.where(torch.ones(3) > 0, x, 0.0), lambda: torch.stack([x, torch.ones(3)]),
                    lambda: x[torch.tensor([0, 1])]):
        with pytest.raises(RuntimeError, match="two devices"):
            mixture()
    assert (x * torch.tensor(2.0)).device == DEVICE and (x.cpu() + torch.ones(3)).tolist() == [2, 2, 2]
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    before = sum(waits.values())
    assert x.sum().item() == 3 and x.tolist() == [1, 1, 1] and sum(waits.values()) == before + 2

    rate, number = 2.0, torch.zeros((), device=DEVICE)  # a number of the host's is captured, one of the device's is read
    graph = Graph()
    with capture(graph):
        number.add_(1)
        y = x.view(3, 1).t() * rate + number
    assert number.item() == 0
    rate = 5.0
    x.mul_(10)
    for n in (1, 2):
        graph.replay()
        assert y.tolist() == [[20 + n] * 3] and number.item() == n
    with capture(graph := Graph()):
        number.mul_(torch.full((), 3.0, device=DEVICE))  # its own
    graph.replay()
    assert number.item() == 6
    factor = torch.full((), 3.0, device=DEVICE)
    with capture(graph := Graph()):
        number.mul_(factor)
    del factor
    with pytest.raises(RuntimeError, match="is gone"):
        graph.replay()
    for reads in (lambda: x.sum().item(), lambda: x.cpu(), lambda: x.add_(torch.ones(1).to(DEVICE)), lambda: x.nonzero()):
        with pytest.raises(RuntimeError, match="cannot wait"), capture(Graph()):
            reads()


def models(which):
    """Logits, loss, gradients and what a cache gives are the CPU's, and every tensor is made on the device of the weights."""
    T = test_models
    some = T.BASELINES + T.BOUNDED + T.CONTROLS[::2] + T.TERMS[::3] + T.TAU[::3] + T.ALIBI[:1] + T.spread(T.GRID, 5) + T.STREAMS[::4]
    for name, options in some + T.VALUES[-1:] + T.MODERN[::2] + T.STEREOGRAPHIC if which == "some" else T.EVERY + T.ALIBI:
        expected, found = (outputs(T.build(name, options, n_layer=1 + ("value_residual" in options)).to(device), device)
                           for device in (torch.device("cpu"), DEVICE))
        for key, value in found.items():
            assert value.device == DEVICE, (name, options, key)
            torch.testing.assert_close(value.cpu(), expected[key], rtol=1e-4, atol=1e-5, msg=lambda m: f"{name} {options}, {key}: {m}")


def outputs(net, device):
    idx, targets = (part.to(device) for part in batch(3))
    logits, loss = net(idx, targets)
    loss.backward()
    found = {"logits": logits.detach(), "loss": loss.detach(), **{name: p.grad for name, p in net.named_parameters()}}
    cache = Cache(net.config.n_layer)
    with torch.no_grad():
        for part in (idx[:, :4], idx[:, 4:5]):
            found[f"{part.size(1)} tokens with a cache"] = net.eval()(part, cache=cache)[0]
    return found


def graphs(number, of):
    """Every `of`-th case from the number-th on: a stack's steps as CUDA graphs are its steps, to the bit. The rates rise and fall, and a
    run stands still from a step on that is a repeated one."""
    T = test_models
    every = CASES + T.TERMS + T.STREAMS + T.VALUES + T.MODERN
    for name, more in every[int(number)::int(of)]:
        if name != "tau":  # reads numbers in a step
            compare(name, more)


def graphs_of_muon():
    """Its momentum rises, and QK-clip."""
    for name, more in (("baseline", dict(bias=True)), ("mixed", dict(curvature_mode="random"))):
        compare(name, more, optimizer="muon", muon_momentum_warmup=5, grad_clip=0.5, qk_clip=0.05)


def compare(name, more, **options):
    expected, found = (stacked(name, more, graph, **options) for graph in (False, True))
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b), (name, more)


def stacked(name, more, graph, steps=5, **options):
    """The losses and norms of each step, then weights and moments."""
    settings = [TrainConfig(learning_rate=lr, muon_lr=2 * lr, warmup_iters=3, lr_decay_iters=4, max_iters=8, seed=n, **options)
                for n, lr in enumerate((1e-3, 1e-2))]
    template, *members = (build(name, more, seed, n_layer=1 + ("value_residual" in more)).to(DEVICE) for seed in range(3))
    optimizers = [make_optimizers(member, config, DEVICE.type) for member, config in zip(members, settings)]
    step = stacked_step(name, template, members, optimizers, settings, DEVICE, contextlib.nullcontext, micro_batches=2, graph=graph)
    seen = []
    for number in range(steps):
        for micro in range(2):
            step.backward(*(torch.cat([batch(100 * number + 10 * micro + n)[i] for n in range(2)]).to(DEVICE) for i in range(2)))
        if number == steps - 1:
            step.weights.gradients[1, 3] = float("nan")
        step.finish(number)
        losses, norms, first_bad = step.read()
        seen.append(torch.tensor([*losses, *norms]).nan_to_num(-1.0))
    assert first_bad == [-1, steps - 1]
    assert not graph or step._backward.graph.operations and step._finish.graph.operations
    return [*seen, step.weights.weights.cpu(), step.weights.first.cpu(), step.weights.second.cpu()]


def main(args):
    torch.manual_seed(0)
    globals()[args[0]](*args[1:])
