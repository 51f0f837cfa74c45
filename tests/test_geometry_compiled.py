"""geometry/ under torch.compile: traced whole, as exact as eager, fast loops; and on tensors without data."""

import pytest
import torch
from spaces import DTYPES, FUNCTIONS, generator, gradients, random_rows, relative
from torch._inductor.utils import run_and_get_code
from torch._subclasses.fake_tensor import FakeTensorMode

import geometry as G


def compiled_errors(f, rows, c, **options):
    """Differences of the compiled function from the eager one: output and gradients by all rows and c."""
    torch._dynamo.reset()
    eager_out, eager = gradients(f, rows, c, seed=1)
    out, grads = gradients(torch.compile(f, fullgraph=True, dynamic=False, **options), rows, c, seed=1)
    assert out.dtype == eager_out.dtype
    return [relative(got, expected) for got, expected in zip((out, *grads), (eager_out, *eager))]


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_function_is_traced_whole_and_agrees_with_eager(name):
    # the whole of torch.compile (graph capture, joint backward) but the generated code, which takes 10 s a function
    f, kinds = FUNCTIONS[name]
    rows = [row.half() for row in random_rows(kinds, (3, 2, 7), 1.0, generator(90))]  # float16: with _FiniteCast
    errors = compiled_errors(f, rows, torch.tensor([[0.9], [-0.9]]), backend="aot_eager")
    assert max(errors) < 1e-6, errors


@pytest.mark.exhaustive  # test_models.py has logmap in a whole block
def test_generated_code_agrees_with_eager():
    # one function, since each costs 10 s: logmap calls the most helpers
    rows = [row.float() for row in random_rows("pp", (3, 2, 7), 1.0, generator(91))]
    errors = compiled_errors(G.logmap, rows, torch.tensor([[0.9], [-0.9]]))
    assert max(errors) < 1e-5, errors


@pytest.mark.parametrize("shape, dtype", [((4096, 128), torch.float32), ((8, 64, 2, 64), torch.bfloat16)])
def test_generated_loops_start_their_threads_once(shape, dtype):
    """And not for every row, as Inductor's do where it makes fewer sums of a row than a vector register has lanes."""
    x, v = (torch.full(shape, 0.01, dtype=dtype, requires_grad=True) for _ in range(2))
    c = torch.full((shape[-2] if len(shape) > 2 else 1, 1), 0.9)
    compiled = torch.compile(G.add_exp_0, fullgraph=True, dynamic=False, options={"cpp.threads": 2})
    code = "".join(run_and_get_code(lambda: compiled(x, v, c).sum().backward())[1])
    indents = [len(line) - len(line.lstrip()) for line in code.splitlines() if line.strip() == "#pragma omp parallel num_threads(2)"]
    assert indents and max(indents) == 4, "a parallel region inside of a loop"


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_nothing_waits_for_the_device(name):
    # a fake tensor has no data: .item(), bool() and shapes that depend on values raise
    f, kinds = FUNCTIONS[name]
    for dtype in DTYPES:
        with FakeTensorMode():
            rows = [torch.randn(2, 3, 4, dtype=dtype, requires_grad=True) for _ in kinds]
            for c in (torch.randn(3, 1, requires_grad=True), 0.5):
                out = f(*rows, c)
                torch.autograd.grad(out.sum(), rows)
