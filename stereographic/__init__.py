"""
Pieces of a transformer in spaces of constant curvature, for model_stereographic.py. Conventions and maps: geometry/.

    hyperplanes.py  asinh(sqrt z)/sqrt z, and logits by distance to hyperplanes
    head.py         the language-model head: logits of a row and all tokens
    attention.py    attention by geodesic distance, values averaged by their gyro-midpoint
    layers.py       linear maps with a gyro-translation for a bias

Everything is analytic in c through c = 0, where it is its Euclidean twin, and finite for finite inputs. Derivatives are in closed form
and of first order: no torch.func, no second derivatives.
"""
from stereographic.attention import attend, half_distance2, statistics
from stereographic.head import HEADS, Head
from stereographic.layers import MobiusLinear, edge_share, point, translate
