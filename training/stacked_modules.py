"""
N runs of one model as one: their sequences stand behind one another in the batch dimension, (N B, T, C), and only what has weights knows of
them. stack_modules() swaps that in a model, whichever it is; its forward pass, geometry, attention and loss stay as they are.

    Linear, Embedding, LayerNorm   weights (N, ...): a batch of N products; N tables; gains (N B, 1, C)
    all other parameters           PLACES: what the model's code reads is one value a sequence, a view (N B, 1, ...), as a value a token
                                   would be: `module.c` is (N B, 1, nh, 1) where it was (nh, 1)
    Dropout, attention's dropout   each run's numbers are those of its own generator (on a CPU, not compiled)
    the loss                       (N,): each run's own mean. The gradient of their sum is, for each run, that of its own loss

A module that is not here and has parameters of a new name needs a line in PLACES; stack_modules() says so.
"""
import torch
import torch.nn as nn
from torch.nn import functional as F

import model_baseline
import model_mhc
import model_stereographic
import model_tau
from common.errors import UserError
from stereographic import attention, head, layers
from streams import connections
from training.schedule import seed_micro_batch

# name of a parameter (s...) -> (number of its dimensions that stay in front of the batch, number of 1s behind it):
# (0, 1): (N B, 1, s...), one value a sequence where (B, T, s...) would be one a token
PLACES = {
    "c": (0, 1), "theta": (0, 1), "control_scale": (0, 1), "control_radius": (0, 1), "smear_lambda": (0, 1),  # with rows (B, T, ...)
    "control_write": (2, 1), "control_read": (1, 1), "control_likeness": (1, 1),  # of two sub-layers: of a head
    "value_mix": (1, 3),  # two numbers, with values (B, nh, T, hs)
    "log_temperature": (0, 0), "log_tau": (0, 0), "matrix": (0, 0), "scalar_weight": (0, 0),  # of key heads, before T
    "log_beta": (0, 0),
    "stream_embedding": (1, 1), "collapse": (0, 1), "res": (1, 1), "post": (1, 1),  # of streams (the last two AltUp's, a block in front)
}
# of streams/connections.py, one a sub-layer in front: 1s behind the batch
OF_CONNECTIONS = {"pre": 1, "res": 1, "post": 1, "gates": 1, "phi": 0, "gain": 1, "to_mix": 0, "to_write": 0}


class Runs:
    """How many there are, and the shape of what is read."""

    def __init__(self, number):
        self.number, self.batch = number, None  # batch: sequences of each, set by every forward pass
        self.random = None  # states of the CPU's generator, one a run; None: one stream of numbers for all

    def spread(self, p, front=0, ones=1):
        """(N, s...) -> (s[:front]..., N B, 1, ..., s[front:]...)"""
        p = p.movedim(0, front).unsqueeze(front + 1)
        p = p.expand(*p.shape[:front + 1], self.batch, *p.shape[front + 2:]).flatten(front, front + 1)
        return p.reshape(*p.shape[:front + 1], *[1] * ones, *p.shape[front + 1:]) if ones else p

    def seed(self, seeds, k, own):
        """Before micro-batch k. own: every run draws what it would draw alone."""
        self.random = [] if own else None
        for seed in seeds if own else seeds[:1]:
            seed_micro_batch(seed, k)
            if own:
                self.random.append(torch.get_rng_state())

    def drawing(self, function, *tensors):
        """function(*tensors), which draws random numbers, of each run's part by itself."""
        if self.random is None:
            return function(*tensors)
        parts = []
        for i, own in enumerate(zip(*(tensor.chunk(self.number) for tensor in tensors))):
            torch.set_rng_state(self.random[i])
            parts.append(function(*own))
            self.random[i] = torch.get_rng_state()
        return torch.cat(parts)


# ----------------------------------------------------------------------------------------------------------------------
# mixins: what a module of a kind does in a stack. `runs` is a class attribute of the class that stack_modules() makes

class StackedLinear:
    """weight (N, out, in), bias (N, out)."""

    def forward(self, x):
        return products(self, x, self.bias)


def products(layer, x, bias=None):
    """(N B, ..., in) -> (N B, ..., out)"""
    rows, weight = x.reshape(layer.runs.number, -1, x.size(-1)), layer.weight.transpose(1, 2)
    out = torch.bmm(rows, weight) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, weight)
    return out.view(*x.shape[:-1], -1)


class StackedEmbedding:
    """weight (N, V, C)."""

    def forward(self, idx):
        N, V, _ = self.weight.shape
        if idx.dim() == 1:  # positions: the same for all sequences
            return self.runs.spread(self.weight.index_select(1, idx), ones=0)
        table = torch.arange(0, N * V, V, device=idx.device).view(N, 1, 1)
        return F.embedding((idx.unflatten(0, (N, -1)) + table).flatten(0, 1), self.weight.flatten(0, 1))


class StackedLayerNorm:
    """weight and bias (N, C)."""

    def forward(self, x):
        x = F.layer_norm(x, x.shape[-1:], None, None, 1e-5) * self.runs.spread(self.weight)
        return x if self.bias is None else x + self.runs.spread(self.bias)


class StackedQueriesAndKeys:
    """Gains (N, m); rows (N B, ..., T, m)."""

    def normed(self, x, gain):
        return F.rms_norm(x, x.shape[-1:]) * self.runs.spread(gain.to(x.dtype), ones=x.dim() - 2)


class StackedDropout:

    def forward(self, x):
        draws = self.training and self.p > 0
        return self.runs.drawing(super().forward, x) if draws else super().forward(x)


class StackedAttention:

    own_buffers = ("largest_logit",)  # of QK-clip: (N, nh)

    def largest_of(self, logits):
        return logits.unflatten(0, (self.runs.number, -1)).amax((1, 3, 4))

    def attend(self, q, k, v):
        draws = self.training and self.dropout > 0
        return self.runs.drawing(super().attend, q, k, v) if draws else super().attend(q, k, v)


class StackedMobiusLinear:
    """weight (N, out, in), bias (N, out). Rows (N B, T, parts, nh, D)."""

    forward = layers.MobiusLinear.forward
    product = products

    def translation(self):
        return self.rows(self.runs.spread(self.bias))

    def c(self):
        c = super().c()
        return c.unsqueeze(2) if c.dim() > 2 else c  # for the parts


class StackedDistance:
    """beta (N B, nh); c, where it is learned, (N B, 1, nh, 1) or, of whole rows, (N B, 1, 1)."""

    def attend(self, q, k, v):
        fixed, dropout = self.curvature[0].c, self.dropout if self.training else 0.0
        own = (fixed.transpose(1, 2) if fixed.dim() == 4 else fixed.unsqueeze(-1),) if fixed.dim() > 2 else ()

        def attend(q, k, v, beta, c=fixed):
            return attention.attend(q, k, v, c, beta, dropout)
        return self.runs.drawing(attend, q, k, v, self.log_beta.exp()[..., None, None], *own)


class StackedHead:
    """weight (N, V, C), curvature (N,), offset (N, V), log_scale (N, 1). One run after the other: there is one head in a model."""

    def forward(self, h):
        N, c = self.runs.number, self.c()
        c = c.expand(N) if c is not None else None
        of_each = zip(h.chunk(N), self.weight, *([None] * N if t is None else t for t in (c, self.offset, self.log_scale)))
        return torch.cat([self.scaled(head.logits(self.kind, rows, weight, c, offset), scale)
                          for rows, weight, c, offset, scale in of_each])


class StackedConnections:
    """Maps are made once a run, (S, N, ...), and then spread: each reads like the map of a token."""

    def for_places(self):
        return [tuple(None if each is None else self.runs.spread(each, ones=0) for each in place) for place in super().for_places()]


class StackedStreamsBlock:
    at_once = property(lambda self: False)  # that is for maps that are one for all tokens


class StackedTau:
    """tau (N, n_kv) and what it is made of: of the batches of each run."""

    own_buffers = ("tau", "tau_steps", "tau_sum")

    def by_head(self, energies):
        return energies.unflatten(0, (self.runs.number, -1)).transpose(1, 2).flatten(2)  # (N, n_kv, B (G + 1) T)

    def current_tau(self):
        tau = super().current_tau()
        return tau if self.config.tau in ("learned", "fixed") else self.runs.spread(tau, ones=0)


class StackedGPT:

    def forward(self, idx, targets=None, cache=None):
        self.runs.batch = idx.size(0) // self.runs.number
        return super().forward(idx, targets, cache)

    def loss(self, logits, targets):
        """(N B, T, V), (N B, T) -> (N,)"""
        every = F.cross_entropy(logits.view(-1, logits.size(-1)), targets.reshape(-1), ignore_index=-1, reduction="none")
        return every.view(self.runs.number, -1).sum(-1) / (targets != -1).view(self.runs.number, -1).sum(-1)


KINDS = {
    layers.MobiusLinear: StackedMobiusLinear, nn.Linear: StackedLinear, nn.Embedding: StackedEmbedding,
    model_baseline.LayerNorm: StackedLayerNorm, nn.Dropout: StackedDropout,
    model_baseline.QueriesAndKeys: StackedQueriesAndKeys, head.Head: StackedHead,
    model_stereographic.DistanceAttention: StackedDistance, model_baseline.CausalSelfAttention: StackedAttention,
    model_tau.ScalarAttention: StackedTau, connections.Connections: StackedConnections, connections.HyperConnections: StackedConnections,
    model_mhc.Block: StackedStreamsBlock, model_baseline.GPT: StackedGPT,
}
OWN_WEIGHTS = (StackedLinear, StackedEmbedding, StackedLayerNorm, StackedQueriesAndKeys, StackedHead)  # these read them as they are


def presented(name, front, ones):
    """A property in the place of a parameter (N, s...): what the model's code reads."""
    def read(module):
        own = module._parameters[name]
        return None if own is None else module.runs.spread(own, front, ones + (own.dim() == 1))  # a number: (N B, 1, 1)
    return property(read)


def of_connections(name, ones):
    """The same in streams/connections.py: (S, N, 1..., s...), S sub-layers in front. What is frozen there, a buffer (S, s...), is the same
    for all runs."""
    def read(module):
        frozen = name in module._buffers
        own = module._buffers[name].unsqueeze(1) if frozen else module._parameters[name].movedim(0, 1)
        own = own.reshape(*own.shape[:2], *[1] * ones, *own.shape[2:])
        return own.expand(-1, module.runs.number, *own.shape[2:]) if frozen else own
    return property(read)


def properties(module, mixins, model_name):
    """name -> property, of the parameters that the module's code reads itself."""
    if any(mixin in OWN_WEIGHTS for mixin in mixins):
        return {}
    found = {}
    if StackedConnections in mixins:
        found = {name: of_connections(name, ones) for name, ones in OF_CONNECTIONS.items() if hasattr(module, name)}
    for name in module._parameters.keys() - found.keys():
        if name not in PLACES and module._parameters[name] is not None:
            raise UserError(f"model = {model_name!r} cannot be stacked: how {type(module).__module__}.{type(module).__name__} reads its "
                            f"parameter {name!r} is not in PLACES of training/stacked_modules.py")
        found[name] = presented(name, *PLACES.get(name, (0, 1)))
    return found


def own_buffers(module):
    """Names of those that each run has for itself."""
    tau = StackedTau.own_buffers if "tau_sum" in module._buffers else ()
    return (*tau, *(name for name in StackedAttention.own_buffers if name in module._buffers))


def stack_modules(model, number, model_name="model"):
    """Makes of a model, in place, one of `number` runs. Its parameters are (N, ...), empty: whoever has them fills them. -> Runs.
    Raises UserError where the model has something that cannot be stacked."""
    runs, stacked = Runs(number), {}
    swaps = []
    for module in model.modules():  # first: what cannot be stacked leaves the model as it is
        mixins = tuple(mixin for kind, mixin in KINDS.items() if isinstance(module, kind))
        swaps.append((module, mixins, properties(module, mixins, model_name)))
    for module, mixins, found in swaps:
        kind = type(module)
        for name, p in module._parameters.items():
            if p is not None:  # a tied one is one again
                module._parameters[name] = stacked.setdefault(id(p), nn.Parameter(p.new_empty(number, *p.shape), p.requires_grad))
        for name in own_buffers(module):
            module._buffers[name] = torch.stack([module._buffers[name]] * number)
        if mixins or found:
            module.__class__ = type(f"Stacked{kind.__name__}", (*mixins, kind), {"runs": runs, "__module__": kind.__module__, **found})
    return runs
