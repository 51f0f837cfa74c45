"""
The models on the Triton kernels: `ops = 'triton'` of the mixed model, of the one with residual streams, of the one with attention
by distance.

The mixed model: the same with the same parameters as model.py, which it subclasses; two steps of a sub-layer run in kernels/:

    LayerNorm(log_r(x))                    one kernel, r = x_{t-1} made from the row before
    project(residual(x, r, v))             one kernel: x (+) exp_0(v), exp_x(v) or x (+) exp_r(v)

What stays in PyTorch, chosen here and nowhere else: the embedding's exp_0 and projection (once a step; with dynamic_curvature
the projections at each block's entry and of each reference point), parallel transport (residual 'transport') and gyro-midpoints
(reference 'mean', 'window', 'ema').

The model with streams subclasses model_mhc.py in the same way:

    LayerNorm(sum_j p_j x_j)               one kernel (token_shift = 'difference': in PyTorch, the difference is between the two)
    sum_j R_ij x_j + w_i y                 one kernel
    RMSNorm's factor, for dynamic 'mhc'    one kernel

In PyTorch: the maps from their logits, dynamic maps' products with x, how streams are made and brought together.

model_tau.py, too: attention over all pairs is one kernel, and two for its gradients. In PyTorch: lambda of queries and keys, and
attention to what a cache holds.
"""
import torch

import kernels
import model
import model_mhc
import model_tau
from common.errors import UserError
from kernels import scalar_attention as distance


def read_dtype(x):
    """In which the next matrix product reads its rows."""
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype


class Block(model.Block):

    maps = kernels

    def read(self, x, r, c, norm):
        tokens = x.unflatten(-1, (self.config.n_head if self.config.per_head_curvature else 1, -1))
        if not self.config.per_head_curvature and c.dim():
            c = c.unsqueeze(-2)  # (B, T, 1) -> (B, T, 1, 1)
        reference = "origin" if self.config.reference == "origin" else "previous" if r is None else "given"
        r = r.reshape(tokens.shape) if reference == "given" else None
        return kernels.log_layernorm(tokens, c, norm.weight, norm.bias, reference, r, read_dtype(x)).reshape(x.shape)


class GPT(model.GPT):
    block = Block
    compile_saving = dict(model.GPT.compile_saving, cuda=0.3)  # the geometry is one kernel already

    def __init__(self, config):
        heads = config.n_head if config.per_head_curvature else 1
        problem = kernels.check_row(heads, config.n_embd // heads)
        if problem:
            raise UserError(f"{problem}; use --ops=torch")
        super().__init__(config)


class StreamsBlock(model_mhc.Block):

    def read(self, x, p, norm, state, name):
        if self.difference:
            return super().read(x, p, norm, state, name)
        return kernels.read_layernorm(x, p, norm.weight, norm.bias, dtype=read_dtype(x))

    write = staticmethod(kernels.mix_write)


class StreamsGPT(model_mhc.GPT):
    block = StreamsBlock

    def __init__(self, config):
        problem = kernels.check_row(1, config.n_embd)
        if problem:
            raise UserError(f"{problem}; use --ops=torch")
        super().__init__(config)

    def make_connections(self, config):
        super().make_connections(config)
        self.hyper.rms_factor = kernels.rms_factor


class ScalarAttention(model_tau.ScalarAttention):

    def attend(self, a, b, v, state=None):
        return super().attend(a, b, v, state) if state is not None else distance.scalar_attention(a, b, v, self.slope)


class TauBlock(model_tau.Block):
    attention = ScalarAttention


class TauGPT(model_tau.GPT):
    block = TauBlock

    def __init__(self, config):
        if config.n_embd // config.n_head > distance.MAX_D:
            raise UserError(f"the kernels take values of at most {distance.MAX_D} numbers a head, and n_embd / n_head is "
                            f"{config.n_embd // config.n_head}; use --ops=torch")
        super().__init__(config)

    def attention_form(self):
        return "all pairs, in Triton kernels (ops = 'triton')"


GPTS = {"mixed": GPT, "mhc": StreamsGPT, "tau": TauGPT}
