"""
Tensors that may be in shards (FSDP2's DTensors). Collective: every process calls these in the same order.
"""
import torch


def named_parameters(model):
    """name -> parameter, in its shards if it has any: a forward pass that no backward pass followed leaves the weights of
    FSDP2's outermost module gathered, as other tensors than those that the optimizer knows."""
    if hasattr(model, "reshard"):
        model.reshard()
    return dict(model.named_parameters())


def in_shards(tensor):
    """Is it a DTensor? (Asked without importing torch.distributed.tensor, which takes a second.)"""
    return hasattr(tensor, "full_tensor")


def full(tensor):
    """The whole of a tensor, gathered if it is in shards."""
    return tensor.full_tensor() if in_shards(tensor) else tensor


def placed_like(tensor, parameter, source=0):
    """A whole tensor, placed as `parameter` is: in its shards, on its device. source: the process whose numbers shards are of; None:
    they are the same on all, and nothing is sent."""
    if in_shards(parameter) and tensor.shape == parameter.shape:
        from torch.distributed.tensor import distribute_tensor
        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=source)
    return tensor.to(parameter.device)


def _by_placement(parameters):
    """Lists of parameters whose gradients are placed alike: torch's functions do not take a mixture."""
    kinds = {}
    for p in parameters:
        if p.grad is not None:
            kinds.setdefault(str(p.grad.placements) if in_shards(p.grad) else "plain", []).append(p)
    return list(kinds.values())


def gradient_norm(parameters):
    """Global L2 norm of the gradients, sharded or not. -> tensor of shape (), the same on each process."""
    norms = [full(torch.nn.utils.get_total_norm([p.grad for p in alike])) for alike in _by_placement(parameters)]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def clip_gradients(parameters, max_norm, norm):
    """Gradients times min(1, max_norm / norm), as torch.nn.utils.clip_grad_norm_ does."""
    for alike in _by_placement(parameters):
        torch.nn.utils.clip_grads_with_norm_(alike, max_norm, norm)
