"""Updates longer than half way round the sphere, in a sum with a limit: exp_0(v) is stopped just before the pole, 1e3 to 1e8 from the
origin, and the limit makes that a short row. Its gradients hold nothing of that length."""
import math

import pytest
import torch

import geometry as G
import kernels as K

LIMIT = math.tan(0.75)  # max_distance = 1.5 at c = -1


def exact(name, x, v, c, cap):
    """x (+) y or exp_x(v), at most LIMIT long, in homogeneous coordinates (y = tan(angle) u, times cos(angle)): no long row, float64."""
    xx, k = (x * x).sum(-1, keepdim=True), torch.sqrt(-c)
    length = v.norm(dim=-1, keepdim=True)
    angle = (k * length / (1 - c * xx if name == "expmap" else 1)).clamp(max=cap)
    u, sin, cos = v / length, torch.sin(angle), torch.cos(angle)
    xu = (x * u).sum(-1, keepdim=True)
    inner = 2 * c * xu * sin * cos / k
    out = ((cos**2 + inner - sin**2) * x + (1 - c * xx) * (sin * cos / k) * u) / (cos**2 + inner - c * xx * sin**2)
    norm = out.norm(dim=-1, keepdim=True)
    return torch.where(norm > LIMIT, out * (LIMIT / norm), out)


@pytest.mark.parametrize("name", ["expmap", "add_exp_0"])
@pytest.mark.parametrize("maps, scalars, dtype, bound", [(G, "auto", torch.float64, 1e-11), (G, "float32", torch.float32, 2e-4),
                                                         (K, "auto", torch.float32, 2e-4)], ids=["float64", "float32", "kernels"])
def test_gradients_of_updates_beyond_the_pole(name, maps, scalars, dtype, bound):
    g = torch.Generator().manual_seed(3)
    for far in (0.0, 1e-4, 0.1):  # of x from the origin; 0: where reference = 'origin' begins, and the first token of a text
        x, v, w = (torch.nn.functional.normalize(torch.randn(20, 4, generator=g, dtype=torch.float64), dim=-1) for _ in range(3))
        x, v = x * far, v * (1.7 + 4 * torch.rand(20, 1, generator=g, dtype=torch.float64))
        given = [t.to(dtype).requires_grad_() for t in (x, v, torch.full((20, 1), -1.0))]
        twins = [t.detach().double().requires_grad_() for t in given]
        G.use_row_scalars(scalars)
        try:
            out = getattr(maps, name)(*given, torch.tensor(LIMIT, dtype=dtype))
            ours = torch.autograd.grad((out * w.to(dtype)).sum(), given)
        finally:
            G.use_row_scalars("auto")
        expected = exact(name, *twins, 0.5 * math.pi - G.SPHERE_CAP[dtype])
        theirs = torch.autograd.grad((expected * w).sum(), twins)
        for what, a, b in zip(("output", "x", "v", "c"), (out, *ours), (expected, *theirs)):
            assert (a - b).norm() <= bound * (b.norm() + 1e-3), (far, what)
