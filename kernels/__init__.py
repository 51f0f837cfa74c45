"""
Triton kernels, forward and backward, for the geometry of geometry/ and the residual streams of streams/, and the custom operators that
train with them. Of the streams: streams.py. Of the geometry:

    mobius_add(x, y, c, limit)   expmap(x, v, c, limit)   add_exp_0(x, v, c, limit)   add_exp(x, r, v, c, limit)
    logmap(x, y, c)
    log_layernorm(x, c, weight, bias, reference, r): LayerNorm(log_r(x)), the maps per head, LayerNorm over the whole row

They have the signatures, shapes and formulas of geometry/, and its derivatives, rearranged for float32. Rows:
float32, bfloat16 or float16, any number of them, D <= 8192. c (and limit): a number or a tensor of either sign or 0 that
broadcasts against (..., 1), e.g. one for all, per head or per token. Arithmetic is float32, so that errors grow as
eps/(1 - c|x|^2) near the edge, and on the sphere as eps |c||x|^2 far from the origin, where geometry/ sums in float64 (what
cancels in gradients has been cancelled on paper). Rows are squared in float32: points longer than 1e18
(c = 0, or a tiny c) give NaN or Inf, in gradients of c from 1e8 on, and geometry/ takes them up to 1e30; for |c| over 1e15
gradients of c lose digits. Tangent
vectors over 1e13 are shortened to that. Once differentiable.

Memory. A pass is one read or one write of all rows. The maps keep nothing but their inputs for the backward pass, which finds
its row scalars again from the rows that it reads anyway; log_layernorm keeps mean and 1/deviation, two numbers a token:

                                        forward                      backward
    mobius_add, expmap, add_exp_0       x, v -> out          3       g, x, v -> dx, dv        5
    add_exp                             x, r, v -> out       4       g, x, r, v -> dx, dr, dv 7
    logmap                              x, y -> out          3       g, x, y -> dx, dy        5
    log_layernorm, reference previous   x -> out             2 1/8   g, x -> dx               3 5/8
    log_layernorm, reference origin     x -> out             2       g, x -> dx               3 1/4
    log_layernorm, reference given      x, r -> out          3       g, x, r -> dx, dr        5 1/4
    for comparison, Euclidean:
    x + v                               x, v -> out          3       none (g is both gradients)
    LayerNorm                           x -> out             2       g, x -> dx               3

So what the curvature of a sub-layer costs in memory traffic is the backward of the sum: 5 passes in place of none (residual
'reference': 7, and one more forward).
Programs of log_layernorm walk along CHUNK tokens and keep the neighbouring row in registers; the row before the chunk (in
the backward pass, x and g after it) is read once more, and the backward pass writes and reads again a float32 row of partial
sums for LayerNorm's weight (and one for its bias): for CHUNK = 8 tokens 9 + 8 rows forward, 10 + 9 + 8 + 2 backward (the 2 are 4 of
rows of 16 bits). Padded rows of 4,096 numbers and more have the gradient of LayerNorm's bias summed by PyTorch, one pass more; at
8,192 the backward of log_layernorm spills registers, and where the head size is no multiple of 16 it does from 2,048 on, and
forward from 4,096. Rows are read where they are if they are evenly spaced (log_layernorm: if
they are contiguous), else copied first. The model gives the reference point as rows, not 'previous', where it needs them
anyway (residual 'reference' and 'transport') and with dynamic curvature, where it is projected.

Accesses are of 16 bytes a thread where the number of columns and the strides are multiples of 16, which is what Triton knows
of them, and a row has them for each thread of a warp (512 bytes; several rows of a map make a tile of 1,024 numbers or more).

Gradients of c and limit, and of LayerNorm's parameters, are written as one partial sum a program (or, where c differs from row
to row or from head to head, one number a row, 4 D^-1 of a pass for float32 rows) and added in a fixed order: no atomics, the same
bits each time.

On a machine without a GPU these run in Triton's interpreter (TRITON_INTERPRET=1 in the environment before the start).

Which file, each importing only from those below it; names with _ are for this package, its tests and bench/machine_code.py:

    streams.py             read_layernorm, mix_write and rms_factor, for residual streams: kernels, operators, functions
    layernorm.py           log_layernorm: kernels, operators, function
    scalar_attention.py    attention by distance between scalars (scalar_attention/), imported from there
    sums.py, logarithm.py  mobius_add, expmap, add_exp_0 and add_exp; logmap: formulas, kernels, operators, functions
    launch.py              what PyTorch does around a kernel: devices, tiles and threads, shapes, strides, dtypes
    rows.py                what kernels do with rows: reading, writing, dot products
    scalar_functions.py    tanc and artanc, and their slopes
"""
from kernels.launch import INTERPRETED, MAX_D, MOST_ROWS, check_device, check_launcher, tile
from kernels.layernorm import CHUNK, REFERENCES, check_row, log_layernorm, walk_back_options, walk_options
from kernels.logarithm import logmap
from kernels.streams import mix_write, read_layernorm, rms_factor
from kernels.sums import KINDS, add_exp, add_exp_0, expmap, mobius_add
