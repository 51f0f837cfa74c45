"""The losses of a model on its fixed evaluation batches."""
import torch


@torch.no_grad()
def evaluate(model, loaders, eval_iters, autocast, parallel):
    """Mean loss of each split over its fixed evaluation batches, weighted by tokens. Each process takes its share of them."""
    model.eval()
    means = {}
    for split, loader in loaders.items():
        # sharded weights are gathered by all processes at once: where the batches do not divide evenly, the last of them
        # is read again, and not counted
        batches = list(loader.eval_batches(eval_iters, parallel.rank, parallel.world))
        rounds = -(-loader.num_eval_batches(eval_iters) // parallel.world)
        losses = []
        for i in range(rounds):
            x, y = batches[i] if i < len(batches) else next(loader.eval_batches(1))
            with autocast():
                losses.append(model(x, y)[1])
        losses = torch.stack(losses).tolist()  # here the host waits for the device, once
        sizes = [y.numel() for _, y in batches]
        total, tokens = parallel.sum(sum(loss * size for loss, size in zip(losses, sizes)), sum(sizes))
        means[split] = total / tokens
    model.train()
    return means
