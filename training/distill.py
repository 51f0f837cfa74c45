"""
Training that learns from another run: its logits (Hinton et al. 2015, arXiv 1503.02531), and the rows of its layers, block by block.

    loss = distill_text cross-entropy of the text
         + distill_logits T^2 KL(teacher || student), both at temperature T = distill_temperature, mean over tokens
         + distill_layers_weight mean over blocks of |u_s - u_t|^2 / C,  u = row / rms(row)

distill_layers says which rows: 'hidden', the residual stream after a block; 'attention', what attention adds to it. They are compared in
direction: rows of a ball cannot be as long as those of a flat space. After distill_steps steps the text alone is left, so one config is a
ladder: start from the teacher's weights (init_from), align the layers, go on with the text (config/demo_convert.py).

The teacher is a run of this project, of any model, with the same tokens. It is read without dropout, on the same batches.
"""
import fnmatch

import torch
from torch.nn import functional as F

from common.errors import UserError
from training import checkpoint
from training.dataloader import tokenizer_of


def freeze(model, patterns):
    """Parameters whose names match are not trained. -> how many numbers that are. Raises UserError."""
    names = dict(model.named_parameters())
    for pattern in patterns:
        matching = fnmatch.filter(names, pattern)
        if not matching:
            raise UserError(f"freeze: no parameter is called {pattern!r}; one is {next(iter(names))!r}")
        for name in matching:
            names[name].requires_grad_(False)
    if not any(p.requires_grad for p in names.values()):
        raise UserError("freeze leaves nothing to be trained")
    return sum(p.numel() for p in names.values() if not p.requires_grad)


class Listener:
    """The logits of a model's last forward pass and, if wanted, a row of each block."""

    def __init__(self, model, layers, training):
        self.model, self.training = model, training
        self.rows, self.logits = [], None
        model.transformer.wte.register_forward_pre_hook(lambda *_: self.rows.clear())  # also of a block that was computed again
        model.lm_head.register_forward_hook(self.hear_logits)
        for block in model.transformer.h if layers != "none" else ():
            (block.register_forward_hook(self.hear_stream) if layers == "hidden" else
             block.attn.register_forward_hook(self.hear_attention))

    def wanted(self):
        return torch.is_grad_enabled() if self.training else True

    def hear_logits(self, module, given, logits):
        if self.wanted():
            self.logits = logits

    def hear_stream(self, module, given, made):  # or several streams, as one row
        if self.wanted():
            self.rows.append(self.model.one_row(made[0] if isinstance(made, tuple) else made))

    def hear_attention(self, module, given, made):
        if self.wanted():
            self.rows.append(made[0] if isinstance(made, tuple) else made)

    def take(self):
        """(logits, rows); they are not kept."""
        logits, rows = self.logits, list(self.rows)
        self.logits = None
        self.rows.clear()
        return logits, rows


class Lessons:

    def __init__(self, config, model, meta, device):
        self.config = config
        source = config.distill_from
        which = checkpoint.best_or_last(source)
        self.teacher, theirs = checkpoint.load_model(source, which, device)
        self.teacher.requires_grad_(False)
        ours, its = model.config, self.teacher.config
        if (theirs.get("tokenizer") or {}) != tokenizer_of(meta) or its.vocab_size != ours.vocab_size:
            raise UserError(f"distill_from = '{source}' has other tokens than dataset = '{config.dataset}'")
        if its.block_size < ours.block_size:
            raise UserError(f"distill_from = '{source}' has block_size = {its.block_size}, and {ours.block_size} are read here")
        for key in ("n_layer", "n_embd") if config.distill_layers != "none" else ():
            if getattr(its, key) != getattr(ours, key):
                raise UserError(f"distill_layers needs {key} = {getattr(its, key)}, as distill_from = '{source}' has it")
        self.pupil, self.tutor = Listener(model, config.distill_layers, True), Listener(self.teacher, config.distill_layers, False)
        self.name, self.said = f"{source} ({theirs['model']}, checkpoint '{which}')", {}

    def going_on(self, step):
        return self.config.distill_steps is None or step < self.config.distill_steps

    def loss(self, text, idx, step):
        """What is minimised in this step. text: the model's own cross-entropy on idx (B, T), whose forward pass has just been made."""
        mine, rows = self.pupil.take()
        self.said = {}
        if not self.going_on(step):
            return text
        config = self.config
        total = config.distill_text * text
        with torch.no_grad():
            self.teacher(idx, idx)
        its, its_rows = self.tutor.take()
        with torch.autocast(idx.device.type, enabled=False):
            if config.distill_logits:
                T = config.distill_temperature
                mine, its = (torch.log_softmax(logits.float() / T, -1) for logits in (mine, its))
                kl = T * T * F.kl_div(mine, its, reduction="sum", log_target=True) / idx.numel()
                total, self.said["distill_logits"] = total + config.distill_logits * kl, kl.detach()
            if config.distill_layers != "none":
                apart = torch.stack([(unit(a) - unit(b)).square().mean() for a, b in zip(rows, its_rows, strict=True)]).mean()
                total, self.said["distill_layers"] = total + config.distill_layers_weight * apart, apart.detach()
        return total

    def numbers(self):
        """Of the last micro-batch, for metrics.jsonl. Waits for a GPU."""
        return {name: value.item() for name, value in self.said.items()}


def unit(row):
    return F.rms_norm(row.float(), row.shape[-1:], eps=1e-12)
