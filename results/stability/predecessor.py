"""
Why did the predecessor diverge? Its formulas, put right one at a time, trained at c = 1 under AdamW and Muon. An experiment, not a model.

    python results/stability/predecessor.py --out=results/stability/predecessor.csv          half an hour of one thread

The block is the published one, x <- x (+) exp_r(F(LN(log_r(x)))) with r_t = x_{t-1} and one c for the row. Its faults:

    lambda      the conformal factor is 2 / (1 + c|x|^2), the sphere's, beside the ball's Mobius addition
    tanh        the exponential map's argument is sqrt(c lambda |v|^2 / 2) in place of sqrt(c) lambda |v| / 2
    outside     points are not kept in the ball: embeddings are used as they are, and artanh is clamped at 1 - 1e-5
    gram        Mobius addition by x.x, x.y and y.y, which cancels for near points, in place of the difference form

Each row: the faults that are in, the optimizer, its rate; the first step with a NaN or an Inf, the loss at the start and at the end (mean
of 20 batches), and over all steps the largest |x| sqrt(c), the share of rows outside the ball, and the largest gradient norm.
"""
import argparse
import csv
import math
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

import torch

import geometry
import model_baseline
from training.config import TrainConfig
from training.dataloader import Loader, load_meta
from training.optimizer import make_optimizers, set_lr
from training.schedule import lr_at

C = 1.0
FAULTS = ("lambda", "tanh", "outside", "gram")
SMALL = 1e-15
COLUMNS = ("faults", "optimizer", "lr", "seed", "first_bad_step", "start", "end", "largest_norm", "outside_share", "largest_gradient")


def gram_add(x, y):
    xx, yy, xy = (x * x).sum(-1, keepdim=True), (y * y).sum(-1, keepdim=True), (x * y).sum(-1, keepdim=True)
    return ((1 + 2 * C * xy + C * yy) * x + (1 - C * xx) * y) / (1 + 2 * C * xy + C * C * xx * yy + SMALL)


def difference_add(x, y):
    """The same by x + y, which is small where near points cancel. As it stands, for points outside the ball, too."""
    near = x + y
    nn, inside_x, inside_y = ((near * near).sum(-1, keepdim=True), *(1 - C * (row * row).sum(-1, keepdim=True) for row in (x, y)))
    return (inside_x * near + C * nn * x) / (inside_x * inside_y + C * nn + SMALL)


class Maps:

    def __init__(self, faults):
        self.faults = faults

    def add(self, x, y):
        return (gram_add if "gram" in self.faults else difference_add)(x, y)

    def factor(self, x):
        sign = 1 if "lambda" in self.faults else -1
        down = 1 + sign * C * (x * x).sum(-1, keepdim=True)
        return 2 / (down if "outside" in self.faults else down.clamp(min=1e-5))

    def exp(self, x, v):
        size = v.norm(dim=-1, keepdim=True) + SMALL
        factor = self.factor(x)
        inner = (C * factor * size ** 2 / 2).sqrt() if "tanh" in self.faults else math.sqrt(C) * factor * size / 2
        return self.add(x, torch.tanh(inner) * v / (math.sqrt(C) * size))

    def log(self, x, y):
        d = self.add(-x, y)
        size = d.norm(dim=-1, keepdim=True) + SMALL
        return 2 / (math.sqrt(C) * self.factor(x)) * torch.atanh((math.sqrt(C) * size).clamp(max=1 - 1e-5)) * d / size

    def keep(self, x):
        return x if "outside" in self.faults else geometry.project(x, C)


class Block(model_baseline.Block):

    maps = None  # set by GPT
    seen = None  # the largest norm and the share outside, of every step

    def update(self, x, sublayers, state=None):
        x = self.maps.keep(x)
        for _, norm, layer in sublayers:
            r = model_baseline.previous_token(x)
            v = layer(norm(self.maps.log(r, x)), state)
            x = self.maps.keep(self.maps.add(x, self.maps.exp(r, v)))
            size = x.detach().norm(dim=-1) * math.sqrt(C)
            self.seen.append((size.max().item(), (size >= 1).float().mean().item()))
        return x


class GPT(model_baseline.GPT):

    def make_block(self, config, index):
        return Block(config, index)


def train(faults, optimizer, lr, seed, steps, data_dir):
    folder = os.path.join(data_dir, "shakespeare_char")
    meta = load_meta(folder)
    keys = {"learning_rate": lr} if optimizer == "adamw" else {"learning_rate": 3e-3, "muon_lr": lr}
    config = TrainConfig(optimizer=optimizer, max_iters=steps, warmup_iters=20, batch_size=4, seed=seed, num_workers=0, **keys)
    torch.manual_seed(seed)
    model = GPT(model_baseline.BaselineConfig(vocab_size=meta["vocab_size"], block_size=64, n_layer=2, n_head=2, n_embd=64))
    seen = []
    for block in model.transformer.h:
        block.maps, block.seen = Maps(faults), seen
    optimizers = make_optimizers(model, config, "cpu")
    loader = Loader(folder, "train", meta, config.batch_size, 64, seed, "cpu", 0)
    losses, largest, bad = [], 0.0, None
    for step in range(steps):
        set_lr(optimizers, lr_at(step, config))
        loss = model(*loader.batch(step))[1]
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            bad = step
            break
        losses.append(loss.item())
        largest = max(largest, norm.item())
        for each in optimizers:
            each.step()
            each.zero_grad()
    start, end = (sum(part) / len(part) if part else math.nan for part in (losses[:1], losses[-20:]))
    finite = [(a, b) for a, b in seen if math.isfinite(a)]
    return {"faults": "+".join(faults) or "none", "optimizer": optimizer, "lr": lr, "seed": seed, "first_bad_step": bad,
            "start": round(start, 4), "end": round(end, 4), "largest_norm": f"{max((a for a, _ in finite), default=math.nan):.4g}",
            "outside_share": round(sum(b for _, b in finite) / max(len(finite), 1), 4), "largest_gradient": f"{largest:.4g}"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="a CSV file; rows that it has are not run again")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337])
    parser.add_argument("--data_dir", default=os.path.join(ROOT, "data"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = set()
    if os.path.exists(options.out):
        with open(options.out, newline="") as f:
            done = {(row["faults"], row["optimizer"], float(row["lr"]), int(row["seed"])) for row in csv.DictReader(f)}
    sets = [FAULTS, *(tuple(f for f in FAULTS if f != fixed) for fixed in FAULTS), *((f,) for f in FAULTS), ()]
    for seed in options.seeds:
        for faults in sets:
            for optimizer in ("adamw", "muon"):
                for lr in (1e-3, 1e-2, 3e-2):
                    if ("+".join(faults) or "none", optimizer, lr, seed) in done:
                        continue
                    row = train(faults, optimizer, lr, seed, options.steps, options.data_dir)
                    new = not os.path.exists(options.out)
                    with open(options.out, "a", newline="") as f:
                        writer = csv.DictWriter(f, COLUMNS)
                        if new:
                            writer.writeheader()
                        writer.writerow(row)
                    print(*(f"{key} {row[key]}" for key in COLUMNS), sep="  ", flush=True)


if __name__ == "__main__":
    main()
