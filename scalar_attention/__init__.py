"""
Causal attention by distance between scalars: o_i = sum_{j <= i} softmax_j(-|a_i - b_j|) v_j. A query and a key are one number each
(in model_tau.py: lambda / temperature). With a slope m, of each key head, -m (i - j) is added to the logits (ALiBi: Press et al. 2021).

    attend(a, b, v, form=None, slope=None)      a: (B, nh, T), b: (B, n_kv, T_all), v: (B, n_kv, T_all, D) -> (B, nh, T, D)
    choose(T, T_all)                the form that attend() takes: 'plain', 'tiled' or 'divide'

All forms are exact, take any range of a and b, sum in float32 (float64 if an input is) and treat a tie as |x| at 0: no gradient.

    plain     the T x T matrix                        a few new tokens after cached ones; twice differentiable; torch.func; tests
    tiled     all pairs, strip by strip               T < DIVIDE_FROM; new tokens after cached ones
    divide    T log T time, memory proportional to T  longer sequences

bins.py is not exact: constant work and memory a token, for generation. kernels/scalar_attention.py has the tiled form for
GPUs. Files, each importing only from those below it:

    plain.py, tiled.py, divide.py   the forms
    bins.py                         a cache of constant size
    sources.py                      sums over sources on a line, for targets on the line
    running.py                      running sums of weighted rows
    shapes.py                       which tensors go together, and when float32 is enough
"""
from geometry.transforms import transformed
from scalar_attention import divide, plain, tiled

DIVIDE_FROM = 1024  # measured: bench/bench_attention.py
PLAIN_UP_TO = 16  # so many new tokens after cached ones
FORMS = {"plain": plain.attend, "tiled": tiled.attend, "divide": divide.attend}
IN_WORDS = {"plain": "all pairs as one T x T matrix", "tiled": "all pairs, strip by strip", "divide": "divide and conquer, T log T"}


def choose(T, T_all=None):
    """The quickest form for T queries of the last of T_all positions (default: T); where torch.func is at work the one that it takes."""
    if transformed():
        return "plain"
    if T_all is not None and T_all != T:
        return "plain" if T <= PLAIN_UP_TO else "tiled"
    return "divide" if T >= DIVIDE_FROM else "tiled"


def attend(a, b, v, form=None, slope=None):
    """o_i = sum_j softmax_j(-|a_i - b_j| - slope (i - j)) v_j over the keys j up to the query's own position, by `form` (None: choose()).

    a: (B, nh, T), b: (B, n_kv, T_all), float32 or float64, of the last T and all T_all positions. v: (B, n_kv, T_all, D) of any
    floating point dtype. Query head h reads key head h // (nh / n_kv). -> (B, nh, T, D) in v's dtype. slope: (n_kv,), or None for 0,
    without gradient. ValueError, TypeError: shapes or dtypes that do not go together, or T < T_all with 'divide'.
    """
    return FORMS[form or choose(a.size(2), b.size(2))](a, b, v, slope)
