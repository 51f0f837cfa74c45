"""
Where should the streams be in one tensor, in front (n, B T, C) or behind the tokens (B T, n, C)? One write and one read of n streams
with static maps, forward and backward, in each layout.

    python bench/bench_streams.py                    3,072 tokens, n = 4, C = 384
    python bench/bench_streams.py --tokens=12288 --threads=1

Forms: matrix products, or sums written out, by autograd in both layouts; and streams/mixing.py, which the models use: streams in front,
sums written out when compiled, matrix products when eager, and the gradient of the maps by a matrix product in both. They take turns,
a call each; the table gives median times in ms. All are compared with each other first.
"""
import os
import statistics
import sys
import time
from dataclasses import dataclass

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import torch

import configurator
from common.errors import UserError, exit_cleanly
from streams import mixing


@dataclass
class BenchConfig:
    tokens: int = 3072  # B T
    streams: int = 4  # n
    width: int = 384  # C
    rounds: int = 15  # timed calls of each
    threads: int = 2  # CPU threads

    def __post_init__(self):
        if min(self.tokens, self.streams, self.width, self.rounds, self.threads) < 1:
            raise UserError("tokens, streams, width, rounds and threads must be at least 1")


def behind_products(x, y, mix, w, p):
    out = mix @ x + y.unsqueeze(1) * w[:, None]  # (tokens, n, C)
    return out, p @ out


def behind_sums(x, y, mix, w, p):
    n = len(w)
    out = torch.stack([sum(x[:, j] * mix[i, j] for j in range(n)) + y * w[i] for i in range(n)], 1)
    return out, sum(out[:, j] * p[j] for j in range(n))


def front_products(x, y, mix, w, p):
    out = (mix @ x.flatten(1)).view(x.shape) + y * w[:, None, None]  # (n, tokens, C)
    return out, (p @ out.flatten(1)).view(y.shape)


def front_sums(x, y, mix, w, p):
    n = len(w)
    out = torch.stack([sum(x[j] * mix[i, j] for j in range(n)) + y * w[i] for i in range(n)])
    return out, sum(out[j] * p[j] for j in range(n))


def models_own(x, y, mix, w, p):
    out = mixing.write(x.unsqueeze(1), y.unsqueeze(0), mix, w)
    return out.squeeze(1), mixing.read(out, p).squeeze(0)


FORMS = {"behind, products": behind_products, "behind, sums": behind_sums, "in front, products": front_products,
         "in front, sums": front_sums, "in front, streams/mixing.py": models_own}


def call(form, values, gradients, backward):
    """One call: (written, read), and the gradients of all five inputs if asked for."""
    if not backward:
        with torch.no_grad():
            return form(*values)
    leaves = [v.detach().requires_grad_() for v in values]
    out = form(*leaves)
    return (*out, *torch.autograd.grad(out, leaves, gradients))


@exit_cleanly
def main(argv):
    config, _ = configurator.resolve(argv, BenchConfig, script_doc=__doc__)
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    n, tokens, C = config.streams, config.tokens, config.width
    x, y, g, h = torch.randn(n, tokens, C), torch.randn(tokens, C), torch.randn(n, tokens, C), torch.randn(tokens, C)
    maps = torch.softmax(torch.randn(n, n), -1), torch.rand(n), torch.softmax(torch.randn(n), 0)
    calls, expected = {}, None
    for name, form in FORMS.items():
        turn = (lambda t: t.transpose(0, 1).contiguous()) if name.startswith("behind") else (lambda t: t)
        values, gradients = (turn(x), y, *maps), (turn(g), h)
        for how in ("eager", "compiled"):
            torch._dynamo.reset()
            run = torch.compile(form, fullgraph=True, dynamic=False) if how == "compiled" else form
            written, read, dx, *rest = call(run, values, gradients, True)
            call(run, values, gradients, False)
            found = [turn(written) if name.startswith("behind") else written, read, turn(dx) if name.startswith("behind") else dx, *rest]
            expected = expected or found
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())
            for backward in (False, True):
                calls[name, how, backward] = (run, values, gradients, backward)
    times = {key: [] for key in calls}
    for _ in range(config.rounds):
        for key, given in calls.items():
            began = time.perf_counter()
            call(*given)
            times[key].append(1000 * (time.perf_counter() - began))
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {config.threads} threads: {tokens:,} tokens, n = {n}, "
          f"C = {C}; median of {config.rounds}, ms")
    print(f"  {'':30}{'eager':>10}{'+ backward':>12}{'compiled':>10}{'+ backward':>12}")
    for name in FORMS:
        print(f"  {name:30}" + "".join(f"{statistics.median(times[name, how, backward]):{12 if backward else 10}.1f}"
                                       for how in ("eager", "compiled") for backward in (False, True)))
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
