"""
What connects the streams with each sub-layer: H_pre reads them, H_res mixes them, H_post writes to them.

mHC, of sub-layer l, from logits a, b, z (z: of doubly_stochastic.py):

    p = softmax(a / tau)  or  sigmoid(a / tau)         H_pre (n)
    R = doubly stochastic matrix of z / tau            H_res (n, n)
    w = 2 sigmoid(b / tau)  or  n softmax(b / tau)     H_post (n); mean 1 where all b are alike

An optimizer like Adam moves a logit by its learning rate in a step: tau = 0.1 makes that a tenth, as curvature_lr_mult does for
curvatures. (With the papers' tau = 1 and a rate for matrices, the maps hardly move in a short run.)

static: the logits are parameters. dynamic: logits + gates * (phi . RMSNorm(x_1 ... x_n)), of every token, gates from 0.01.

HC has no constraints: p, R, w are parameters themselves; dynamic adds gate * tanh(phi . RMSNorm(x_j)) of each stream (the paper's
algorithm 2, with RMSNorm as in the package hyper-connections).

The parameters of all S = 2 n_layer sub-layers are together in a few tensors: static maps are made once a step, all at once.
"""
import math

import torch
from torch import nn

from streams import doubly_stochastic, mixing

GATE = 0.01  # starting value of the dynamic part's gates


def starts_to_read(config, place):
    """p (n) at the start. spread: more of stream `place` mod n, so that streams are told apart from the first step; uniform: 1/n."""
    n = config.hc_num_streams
    p = torch.full((n,), 1 / n, dtype=torch.float64)
    if config.hc == "mhc" and config.hc_start != "uniform" and n > 1:
        p *= 0.5
        p[place % n] += 0.5
    return p


class Connections(nn.Module):
    """mHC: parameters res (S, k), pre (S, n), post (S, n); dynamic: phi (S, n + k + n, n C) and gates (S, 3)."""

    rms_factor = staticmethod(mixing.rms_factor)

    def __init__(self, config, places):
        super().__init__()
        self.config, n = config, config.hc_num_streams
        self.sizes = [n, doubly_stochastic.number_of_logits(config.hc_res, n), n]  # pre, res, post
        self.frozen = {"none": (), "res": ("res",), "pre+post": ("pre", "post")}[config.hc_freeze]
        for name, size in zip(("pre", "res", "post"), self.sizes):
            logits = torch.empty(places, size)
            if name in self.frozen:
                self.register_buffer(name, logits, persistent=False)
            else:
                setattr(self, name, nn.Parameter(logits))
        if config.hc_maps == "dynamic":
            self.phi = nn.Parameter(torch.empty(places, sum(self.sizes), n * config.n_embd))
            self.gates = nn.Parameter(torch.empty(places, 3))

    @torch.no_grad()
    def reset(self):
        """phi is drawn by the model (N(0, 0.02))."""
        for place in range(self.pre.size(0)):
            p = starts_to_read(self.config, place)
            if "pre" in self.frozen:
                p = torch.full_like(p, 1 / len(p))
            # a sigmoid does not reach 1, which n = 1 asks for
            self.pre[place] = self.config.hc_tau * (p.log() if self.config.hc_pre == "softmax" else torch.logit(p.clamp(max=1 - 1e-6)))
        self.res[:] = doubly_stochastic.starting_logits(self.config.hc_num_streams, self.config)
        self.post.zero_()
        if self.config.hc_maps == "dynamic":
            self.gates.fill_(GATE)

    def constrained(self, pre, res, post):
        """Logits -> p, R or None (the identity), w."""
        config, n = self.config, self.config.hc_num_streams
        pre, post = pre / config.hc_tau, post / config.hc_tau
        p = torch.softmax(pre, -1) if config.hc_pre == "softmax" else torch.sigmoid(pre)
        w = n * torch.softmax(post, -1) if config.hc_post == "softmax" else 2 * torch.sigmoid(post)
        return p, None if "res" in self.frozen else doubly_stochastic.matrix(res, n, config), w

    def for_places(self):
        """What maps() takes, of every sub-layer: p, R, w if they are static; else logits, phi, gates."""
        with torch.autocast(self.pre.device.type, enabled=False):
            if self.config.hc_maps == "dynamic":
                return list(zip(torch.cat((self.pre, self.res, self.post), -1).unbind(), self.phi.unbind(), self.gates.unbind()))
            p, mix, w = self.constrained(self.pre, self.res, self.post)
            return list(zip(p.unbind(), [None] * len(p) if mix is None else mix.unbind(), w.unbind()))

    def maps(self, x, *own):
        """p, R, w of the sub-layer that reads x (n, B, T, C): (n), (n, n) or None, (n); dynamic: of every token, (B, T, ...)."""
        if self.config.hc_maps == "static":
            return own
        logits, phi, gates = own
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(phi.dtype)
            # RMSNorm divides the sums by one number a token: after them
            own = "knc" if phi.dim() == 2 else "bknc"  # one a sequence
            found = torch.einsum(f"nbtc,{own}->btk", x, phi.unflatten(-1, (x.size(0), -1)))
            found = found * self.rms_factor(x).unsqueeze(-1)
            each = [base + gate.unsqueeze(-1) * part for base, gate, part in
                    zip(logits.split(self.sizes, -1), gates.unbind(-1), found.split(self.sizes, -1))]
            for i, name in enumerate(("pre", "res", "post")):
                if name in self.frozen:
                    each[i] = logits.split(self.sizes, -1)[i]
            p, mix, w = self.constrained(*each)
            tokens = x.shape[1:3]
            return (p.expand(*tokens, -1), None if mix is None else mix.expand(*tokens, -1, -1), w.expand(*tokens, -1))


class HyperConnections(nn.Module):
    """HC: parameters pre (S, n), res (S, n, n), post (S, n); dynamic: gain (S, C) of RMSNorm, to_mix (S, C, 1 + n), to_write (S, C),
    gates (S, 2). At the start sub-layer l reads stream l mod n, R is the identity, w = 1: n copies of the baseline."""

    def __init__(self, config, places):
        super().__init__()
        self.config, n, C = config, config.hc_num_streams, config.n_embd
        self.pre, self.res, self.post = (nn.Parameter(torch.empty(places, *shape)) for shape in ((n,), (n, n), (n,)))
        if config.hc_maps == "dynamic":
            self.gain, self.to_write = nn.Parameter(torch.empty(places, C)), nn.Parameter(torch.empty(places, C))
            self.to_mix = nn.Parameter(torch.empty(places, C, 1 + n))
            self.gates = nn.Parameter(torch.empty(places, 2))

    @torch.no_grad()
    def reset(self):
        n = self.config.hc_num_streams
        for place in range(self.pre.size(0)):
            self.pre[place] = torch.eye(n)[place % n]
        self.res[:] = torch.eye(n)
        self.post.fill_(1)
        if self.config.hc_maps == "dynamic":
            self.gain.fill_(1)
            for p in (self.to_mix, self.to_write):
                nn.init.zeros_(p)
            self.gates.fill_(GATE)

    def for_places(self):
        parameters = [self.pre, self.res, self.post]
        if self.config.hc_maps == "dynamic":
            parameters += [self.gain, self.to_mix, self.to_write, self.gates]
        return list(zip(*(p.unbind() for p in parameters)))

    def maps(self, x, pre, res, post, gain=None, to_mix=None, to_write=None, gates=None):
        """As Connections.maps()."""
        if self.config.hc_maps == "static":
            return pre, res, post
        with torch.autocast(x.device.type, enabled=False):
            x = nn.functional.normalize(x.to(gain.dtype), dim=-1) * (math.sqrt(x.size(-1)) * gain)  # (n, B, T, C)
            of_mix, of_write = gates.unbind(-1)
            mix = of_mix[..., None, None] * torch.tanh(x @ to_mix).permute(1, 2, 3, 0)  # (B, T, 1 + n, n): row i of what stream j gives
            # (one a sequence: a batch of products)
            written = x @ to_write if to_write.dim() == 1 else (x @ to_write.unsqueeze(-1)).squeeze(-1)
            return pre + mix[:, :, 0], res + mix[:, :, 1:], post + of_write.unsqueeze(-1) * torch.tanh(written).permute(1, 2, 0)
