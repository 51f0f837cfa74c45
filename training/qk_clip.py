"""
QK-clip: attention logits do not grow far beyond a limit, whatever the optimizer does (MuonClip; Kimi Team 2025, arXiv 2507.20534).

    S_h = the largest logit <q_i, k_j> / sqrt(hs) of head h over all pairs i >= j of a step's tokens
    where S_h > limit, after the update:   W_q and W_k of head h times sqrt(limit / S_h)

Queries and keys are scaled alike, so the logits of the next step are at most some `limit`. The optimizer's state stays as it is. What it
costs is one more product of queries and keys a block, and room for its result.
"""
import torch

from common.errors import UserError
from model_baseline import CausalSelfAttention
from training import onednn
from training.shards import placed_like

PLAIN = (torch.nn.Linear, onednn.Linear)


class QKClip:
    """Of one run. Before anything is compiled: attention then measures S_h in training (model_baseline.py)."""

    def __init__(self, model, limit):
        self.limit = limit
        self.layers = [module for module in model.modules() if isinstance(module, CausalSelfAttention)]
        # (of another attention, or on points, the logits are no products of what W_q and W_k give)
        if not self.layers or any(type(layer).attend is not CausalSelfAttention.attend or type(layer.c_attn) not in PLAIN
                                  for layer in self.layers):
            raise UserError("qk_clip: this model's attention has no products of queries and keys")
        if model.config.qk_norm:
            raise UserError("qk_clip has no effect with qk_norm = True, which keeps the weights' size from the logits; take one of them")
        if not all(p.requires_grad for layer in self.layers for p in layer.c_attn.parameters()):
            raise UserError("qk_clip scales queries and keys, and freeze keeps some of them (c_attn) as they are; take one of them")
        for layer in self.layers:
            layer.measure_logits(next(model.parameters()).device)
        self.found = None  # (layers, nh)

    @torch.no_grad()
    def after_update(self, largest_of_all, skipped):
        """After every step. largest_of_all: a tensor -> its maximum over all processes, in place. skipped: a tensor, (), more than 0 where
        no update was made (guard.py, float16); then weights stay as they are. Of the N runs of a stack: (N, 1), and N is in front of
        nh and of the weights' dimensions."""
        found = largest_of_all(torch.stack([layer.largest_logit for layer in self.layers]))  # (layers, nh)
        factor = torch.where(skipped > 0, 1.0, (self.limit / found.clamp(min=self.limit)).sqrt())
        for layer, of_heads in zip(self.layers, factor):
            for p in layer.c_attn.parameters():  # rows: of q, k and v, head after head
                q_k = of_heads.repeat_interleave(p.size(of_heads.dim() - 1) // (3 * layer.n_head), -1)
                rows = torch.cat((q_k, q_k, torch.ones_like(q_k)), -1)
                p.mul_(placed_like(rows.view(*rows.shape, *[1] * (p.dim() - rows.dim())).expand(p.shape), p, source=None))
            layer.largest_logit.zero_()
        if self.found is None:
            self.found = torch.empty_like(found)
        self.found.copy_(found)  # where a CUDA graph leaves it

    def numbers(self, run=...):
        """For metrics.jsonl, of the step that was made. run: which, of a stack."""
        found = self.found if run is ... else self.found[:, run]
        return {"qk_clip/largest_logit": found.max().item(), "qk_clip/clipped_heads": int((found > self.limit).sum().item())}
