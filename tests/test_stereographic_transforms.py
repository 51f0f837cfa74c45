"""torch.func, forward mode and second derivatives of what stereographic/ adds to geometry/: attention by distance and heads."""
import mpmath as mp
import pytest
import torch
from test_geometry_transforms import differences
from test_stereographic import HEAD_CASES, normal, rows_and_tokens
from torch.func import grad, hessian, jacfwd, jacrev, vmap

import stereographic
from stereographic.head import logits
from stereographic.hyperplanes import arsinc_written_out

CASES = [("attention", c) for c in (-0.5, 0.0, 1e-3, 1.0)] + HEAD_CASES


def piece(name, c):
    """A function, and its inputs, float64."""
    c = torch.tensor(c, dtype=torch.float64)
    if name == "attention":
        q, k, v = (normal(1, 1, 3, 2, seed=seed, scale=0.4) for seed in range(3))
        k[..., 1, :] = q[..., 1, :]  # a distance of 0
        return stereographic.attend, (q, k, v, c.reshape(1, 1), torch.tensor([0.7], dtype=torch.float64))
    h, w, r = rows_and_tokens()
    return (lambda h, w, c, r: logits(name, h, w, c, r)), (h, w, c, r)


@pytest.mark.parametrize("dtype, first, second", [(torch.float64, 1e-14, 1e-11), (torch.float32, 1e-5, 1e-3)])
def test_the_function_of_a_distance_and_its_derivatives_against_60_digits(dtype, first, second):
    numbers = [-0.99, -0.5, -0.11, -0.099, -1e-3, -1e-9, 0.0, 1e-9, 1e-3, 0.099, 0.11, 1.0, 50.0]
    z = torch.tensor(numbers, dtype=dtype)
    function = lambda t: mp.asinh(mp.sqrt(t)) / mp.sqrt(t)
    f, slope, bend = arsinc_written_out(z), vmap(grad(arsinc_written_out))(z), vmap(grad(grad(arsinc_written_out)))(z)
    with mp.workdps(60):
        for found, n, tolerance in ((f, 0, first), (slope, 1, 100 * first), (bend, 2, second)):
            points = [mp.mpf(v) if v else mp.mpf(10) ** -20 for v in z.tolist()]
            exact = [float(mp.re(mp.taylor(function, point, n)[n] * mp.factorial(n))) for point in points]
            torch.testing.assert_close(found.double(), torch.tensor(exact, dtype=torch.float64), rtol=tolerance, atol=0)


@pytest.mark.parametrize("name, c", CASES)
def test_transforms_of_the_pieces(name, c):
    f, inputs = piece(name, c)
    every = tuple(range(len(inputs)))
    value = f(*inputs)
    by_closed_form = torch.autograd.functional.jacobian(f, inputs)
    for jacobian in (jacrev, jacfwd):
        for found, expected in zip(jacobian(f, every)(*inputs), by_closed_form):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    stack = [torch.stack((t, t.flip(0) if t.dim() > 1 else t)) for t in inputs]
    torch.testing.assert_close(vmap(f)(*stack)[0], value)
    torch.testing.assert_close(vmap(f)(*stack)[1], f(*[t[1] for t in stack]))


@pytest.mark.parametrize("name, c", CASES)
def test_second_derivatives_are_differences_of_first_ones(name, c):
    f, inputs = piece(name, c)

    def loss(*inputs):
        return f(*inputs).square().sum()
    for i in range(len(inputs)):
        if name.startswith("lorentz") and c == i - 2 == 0:
            continue  # these take |c|
        expected = differences(lambda *args: grad(loss, i)(*args), inputs, i)
        torch.testing.assert_close(hessian(loss, i)(*inputs), expected, rtol=1e-5, atol=1e-6)
        leaf = inputs[i].clone().requires_grad_()  # and by create_graph, without a transform
        (slope,) = torch.autograd.grad(loss(*inputs[:i], leaf, *inputs[i + 1:]), leaf, create_graph=True)
        (found,) = torch.autograd.grad(slope.square().sum(), leaf)
        flat = slope.detach().reshape(-1)
        torch.testing.assert_close(found.reshape(-1), 2 * expected.reshape(flat.numel(), -1).T @ flat, rtol=1e-4, atol=1e-5)


def test_closed_forms_are_used_where_no_transform_is_at_work():
    (f, inputs), (head, others) = piece("attention", 0.5), piece("lorentz", 0.5)
    q, h = (t[0].requires_grad_() for t in (inputs, others))
    names = {node.name() for y in (f(q, *inputs[1:]), head(h, *others[1:])) for node in nodes(y.grad_fn)}
    assert {"_HalfDistance2Backward", "_HyperplanesBackward"} <= names


def nodes(root):
    seen, todo = set(), [root]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [child for child, _ in node.next_functions]
    return seen
