"""
Parameter groups and optimizers. Every parameter is in exactly one group (asserted).

    matrices    2-D weights of the blocks             weight decay; Muon's, if asked for
    embeddings  token (= output head) and position    weight decay
    vectors     biases, LayerNorm gains               no weight decay
                (and what connects streams in model_mhc.py)
    curvature   learned c and what predicts it        no weight decay, lr * curvature_lr_mult, never Muon's
                (and what stands for it in model_controls.py and model_terms.py)

AdamW with the first three is nanoGPT's grouping. Muon (torch.optim.Muon; Jordan et al. 2024) takes `matrices` alone.
"""
import torch

from common.errors import UserError
from training.config import FIRST_MOMENTUM
from training.muon import DistributedMuon, Muon


def group_of(name, p):
    if "curvature" in name or "control_" in name:
        return "curvature"
    if p.dim() < 2 or name.startswith("hyper."):
        return "vectors"
    in_block = name.startswith("transformer.h.") and p.dim() == 2
    return "matrices" if in_block else "embeddings"


def parameter_groups(model):
    """group name -> list of (name, parameter). A tied parameter counts once, under its first name."""
    groups = {"matrices": [], "embeddings": [], "vectors": [], "curvature": []}
    for name, p in model.named_parameters():
        if p.requires_grad:
            groups[group_of(name, p)].append((name, p))
    grouped = [id(p) for members in groups.values() for _, p in members]
    wanted = {id(p) for p in model.parameters() if p.requires_grad}
    assert len(grouped) == len(set(grouped)) and set(grouped) == wanted, "a parameter is in no group or in two"
    return groups


def make_optimizers(model, config, device_type, parallel=None):
    """A list of optimizers: AdamW, AdamW for the curvatures if there are any, Muon if asked for. Each group carries lr_ratio:
    its lr over the schedule's. parallel: of several processes, to which Muon's matrices are dealt out. The curvatures have an
    optimizer of their own because they stay whole where FSDP2 cuts the others in shards, and GradScaler does not take a mixture.
    UserError: Muon has no matrix to train."""
    adamw, curvature, muon = [], [], []
    for kind, members in parameter_groups(model).items():
        if not members:
            continue
        params = [p for _, p in members]
        decay = config.weight_decay if kind in ("matrices", "embeddings") else 0.0
        if kind == "matrices" and config.optimizer == "muon":
            muon.append(dict(params=params, weight_decay=decay, lr_ratio=config.muon_lr / config.learning_rate))
        elif kind == "curvature":
            curvature.append(dict(params=params, weight_decay=decay, lr_ratio=config.curvature_lr_mult))
        else:
            adamw.append(dict(params=params, weight_decay=decay, lr_ratio=1.0))
    if config.optimizer == "muon" and not muon:
        raise UserError("optimizer = 'muon' trains the matrices of blocks, and freeze keeps them all as they are; use --optimizer=adamw")
    # fused: one kernel for all parameters
    optimizers = [torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2),
                                    fused=device_type in ("cuda", "cpu", "mps")) for groups in (adamw, curvature) if groups]
    if muon:
        options = dict(lr=config.muon_lr, momentum=config.muon_momentum, nesterov=True, ns_steps=config.muon_ns_steps,
                       adjust_lr_fn=config.muon_adjust_lr)
        several = parallel is not None and parallel.launched
        optimizers.append(DistributedMuon(muon, parallel.rank, parallel.world, **options) if several else Muon(muon, **options))
    set_lr(optimizers, config.learning_rate)
    return optimizers


def set_lr(optimizers, lr):
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_ratio"]


def momentum_at(step, config):
    """Muon's at this step: muon_momentum, after a linear rise (Jordan et al., modded-nanogpt)."""
    if not config.muon_momentum_warmup:
        return config.muon_momentum
    start, share = min(FIRST_MOMENTUM, config.muon_momentum), min(step / config.muon_momentum_warmup, 1.0)
    return start + (config.muon_momentum - start) * share


def set_momentum(optimizers, config, step):
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.Muon):
            for group in optimizer.param_groups:
                group["momentum"] = momentum_at(step, config)
