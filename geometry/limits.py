"""Where points may be: how far inside the ball, how long in flat space, how close to the antipode on the sphere."""
import torch

# How far inside the ball project() keeps a row, relative to the radius. It must change the number in the dtype in
# which the row is stored (bfloat16(1 - 1e-5) is 1.0) and outlast the rounding of D components: at least one
# finfo.eps in 16 bits; in 32 and 64 bits more, so that what is computed from rows at the edge, which magnifies their
# rounding by 1/(1 - c|x|^2), keeps its digits.
BALL_MARGIN = {torch.float64: 2.0 ** -20, torch.float32: 2.0 ** -14, torch.float16: 2.0 ** -9,
               torch.bfloat16: 2.0 ** -7}

# What rounding can add to the norm of a shortened row, relatively; less than the margin. (float32: the factor by which a
# row of length 1e38 is shortened is a subnormal number with few bits.)
ROUNDING = {torch.float64: 2.0 ** -50, torch.float32: 2.0 ** -16, torch.float16: 2.0 ** -10, torch.bfloat16: 2.0 ** -8}

# On the sphere a half-angle this close to pi/2 (the antipode, where tan has its pole) is as far as points go.
SPHERE_CAP = {torch.float64: 2.0 ** -26, torch.float32: 2.0 ** -11, torch.float16: 2.0 ** -5,
              torch.bfloat16: 2.0 ** -4}

# How long a point may be where the ball is larger than that or space is flat: sums of two still fit the dtype, and cubes, of
# which the gradient of c is made, fit float64.
POINT_LIMIT = {torch.float64: 1e100, torch.float32: 1e30, torch.bfloat16: 1e30, torch.float16: 3e4}
POINT_LIMIT_FLOAT32 = 1e8  # where row scalars are float32 (geometry/float32.py), so that the gradient of c fits those;
TANGENT_LIMIT_FLOAT32 = 1e10  # and the longest component that a tangent vector keeps
