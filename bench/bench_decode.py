"""
Tokens a second of generation with a cache: the baseline, model_tau.py with its exact cache, and with bins of lambda in its place.

    python bench/bench_decode.py                       6 x 384, T = 128 to 16,384, 256 bins, 2 threads
    python bench/bench_decode.py --quick=True          1 x 64, T = 128 and 512: to try the script
    python bench/bench_decode.py --sizes='[4096]' --n_layer=1 --threads=1

A token is one call of the model with a cache that holds T - 1 of them, without drawing. Models take turns, a token each. The table has the
least wall time and the least CPU time (of all threads): where cores are shared, that is nearest to what the code takes. Weights are
random: time does not depend on them. Caches that grow are copied at each token (torch.cat). The bytes of the caches are measured, and
must be what they should: (D + 1) / (2 D) of the baseline's keys and values for the exact cache, M (D + 1) float32 numbers a key head for
M bins.
"""
import os
import sys
import time
from dataclasses import dataclass, field

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import torch

import configurator
import models
from common.errors import UserError, exit_cleanly
from model_baseline import Cache

ARMS = {"baseline": "baseline", "tau, exact": "tau", "tau, bins": "tau"}


@dataclass
class BenchConfig:
    sizes: list[int] = field(default_factory=lambda: [128, 512, 2048, 8192, 16384])  # T: tokens in the cache with the new one
    n_layer: int = 6  # blocks
    n_head: int = 6  # heads
    n_embd: int = 384  # width
    bins: int = 256  # M
    rounds: int = 20  # timed tokens of each
    threads: int = 2  # CPU threads
    quick: bool = False  # 1 x 64 with one head, T = 128 and 512, 3 rounds: in place of those above

    def __post_init__(self):
        if self.quick:
            self.sizes, self.n_layer, self.n_head, self.n_embd, self.rounds = [128, 512], 1, 1, 64, 3
        if not self.sizes or min(self.sizes) < 2:
            raise UserError("sizes needs at least one entry, each at least 2")
        if min(self.bins, self.rounds, self.threads) < 1:
            raise UserError("bins, rounds and threads must be at least 1")


def make_model(arm, config):
    name = ARMS[arm]
    options = dict(kv_bins=config.bins) if arm == "tau, bins" else {}
    torch.manual_seed(0)
    return models.build(name, models.CONFIGS[name](vocab_size=65, block_size=max(config.sizes), n_layer=config.n_layer,
                                                   n_head=config.n_head, n_embd=config.n_embd, **options)).eval()


def filled(model, length):
    """A cache that holds so many tokens."""
    cache = Cache(model.config.n_layer)
    model(torch.randint(65, (1, length), generator=torch.Generator().manual_seed(1)), cache=cache)
    return cache


def copy_of(cache):
    """Another one with the same tensors: a model replaces them and changes none."""
    again = Cache(len(cache.blocks))
    again.length, again.embedding, again.blocks = cache.length, dict(cache.embedding), [dict(block) for block in cache.blocks]
    return again


def size_of(cache):
    """Bytes that it keeps. A tensor may be a view of one that is larger (a prompt's values are part of its queries, keys and values)
    until the next token is appended; counted are its own numbers."""
    return sum(t.nbytes for block in cache.blocks for t in block.values())


def expected_bytes(arm, T, config):
    D = config.n_embd // config.n_head
    numbers = {"baseline": 2 * D * T, "tau, exact": (D + 1) * T, "tau, bins": (D + 1) * config.bins}[arm]
    return 4 * config.n_layer * config.n_head * numbers


@torch.inference_mode()
def measure(T, nets, config):
    """arm -> (milliseconds, CPU milliseconds, bytes) of the T-th token."""
    caches = {arm: filled(net, T - 1) for arm, net in nets.items()}
    token, taken, size = torch.zeros(1, 1, dtype=torch.int64), {arm: [] for arm in nets}, {}
    for turn in range(config.rounds + 1):
        for arm, net in nets.items():
            cache = copy_of(caches[arm])
            began = time.perf_counter(), time.process_time()
            net(token, cache=cache)
            ended = time.perf_counter(), time.process_time()
            size[arm] = size_of(cache)
            if turn:  # the first warms up
                taken[arm].append([1000 * (end - start) for start, end in zip(began, ended)])
    return {arm: (*(min(column) for column in zip(*taken[arm])), size[arm]) for arm in nets}


@exit_cleanly
def main(argv):
    config, _ = configurator.resolve(argv, BenchConfig, script_doc=__doc__)
    torch.set_num_threads(config.threads)
    nets = {arm: make_model(arm, config) for arm in ARMS}
    print(f"{config.n_layer} x {config.n_embd}, heads of {config.n_embd // config.n_head}, float32, {config.threads} threads, least of "
          f"{config.rounds} tokens, torch {torch.__version__}; {config.bins} bins: attention is off by at most "
          f"{nets['tau, bins'].bins_error():.2g} of its largest value vector")
    print(f"{'T':>7} {'arm':12}{'tokens/s':>10}{'ratio':>8}{'by CPU time':>13}{'cache bytes':>14}{'ratio':>8}")
    for T in config.sizes:
        found = measure(T, nets, config)
        first = found["baseline"]
        for arm, (ms, cpu_ms, size) in found.items():
            print(f"{T:>7} {arm:12}{1000 / ms:>10.1f}{first[0] / ms:>8.2f}{first[1] / cpu_ms:>13.2f}{size:>14,}{size / first[2]:>8.4f}",
                  flush=True)
            if size != expected_bytes(arm, T, config):
                raise UserError(f"the cache of {arm} has {size:,} bytes at T = {T:,}, and should have {expected_bytes(arm, T, config):,}")
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
