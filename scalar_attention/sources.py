"""
Sums over sources on a line, for targets on the line: sum_s e^{-|y_t - x_s| + w_s + z_t} row_s, and the same with the sign of y_t - x_s.

Keys are the sources and queries the targets of attention; in the backward pass of its gradients they change places. The caller sees to it
that no exponent is above 0 by more than rounding. Two ways: dense() takes every pair, Sorted.sums() sorts. A target at a source
has the sign 0 to it.
"""
import torch
from torch.nn import functional as F

from scalar_attention.running import running_sums
from scalar_attention.shapes import exp_

SLAB = 2 ** 18  # pairs at a time: what dense() makes of them stays in a core's cache


class Sorted:
    """Sources in order, and each target's place among them. x: (N, n), y: (N, m)."""

    def __init__(self, x, y):
        self.x, self.order = x.sort(-1)
        self.y = y.contiguous()
        self.up_to = torch.searchsorted(self.x, self.y, right=True)  # (N, m): how many sources are at or left of the target

    def nearest(self, w=None):
        """Distance to the nearest source, less the source's w (N, n) if given, (N, m)."""
        n = self.x.size(-1)
        if w is not None:
            w = w.gather(-1, self.order)
            left = self.y - (self.x + w).cummax(-1).values.gather(-1, (self.up_to - 1).clamp_(min=0))
            right = -self.y - (w - self.x).flip(-1).cummax(-1).values.flip(-1).gather(-1, self.up_to.clamp(max=n - 1))
            return torch.minimum(left.masked_fill_(self.up_to == 0, float("inf")), right.masked_fill_(self.up_to == n, float("inf")))
        left = self.y - self.x.gather(-1, (self.up_to - 1).clamp_(min=0))
        right = self.x.gather(-1, self.up_to.clamp(max=n - 1)) - self.y
        return torch.minimum(left.abs_(), right.abs_())

    def sums(self, table, index, w, z, chunk, narrow, signed):
        """table: (rows, W); index: (N, n), which row a source has; w: (N, n) or None for 0; z: (N, m) or None.
        -> (N m, W), and with signs (N m, W) or None.

        Prefix sums over the sources sorted up and suffix sums over them sorted down, made apart. A target reads one row of each.
        """
        N, n = self.x.shape
        index = index.gather(-1, self.order)
        left, right = self.x, -self.x
        if w is not None:
            w = w.gather(-1, self.order)
            left, right = left + w, right + w
        u = torch.cat((left, right.flip(-1)))  # (2N, n)
        rows = table.index_select(0, torch.cat((index, index.flip(-1))).view(-1)).view(2 * N, n, -1)
        reference, sums = running_sums(u, rows, chunk, narrow)
        sums = sums.view(2 * N * n, -1)
        first = torch.arange(N, device=table.device).unsqueeze(-1) * n  # of each line's sums
        up, down = self.y, -self.y
        if z is not None:
            up, down = up - z, down - z

        def read(count, start, offset):
            """(row, weight) of the sum over the first `count` sources of a side."""
            place = (count - 1).clamp_(min=0)
            weight = exp_(reference[start:start + N].gather(-1, place) - offset, table.dtype, most=0.0).mul_(count > 0)
            return place.add_(first + start * n), weight

        def add(*sides):
            rows, weights = (torch.stack(part, -1).view(-1, 2) for part in zip(*sides))
            return F.embedding_bag(rows, sums, mode="sum", per_sample_weights=weights)

        from_right = read(n - self.up_to, N, down)
        total = add(read(self.up_to, 0, up), from_right)
        if not signed:
            return total, None
        strictly_left = torch.searchsorted(self.x, self.y)
        return total, add(read(strictly_left, 0, up), (from_right[0], -from_right[1]))


def dense(rows, x, y, w, z, mask_, narrow, signed):
    """The same by all pairs of a line. rows: (N, n, W), x and w: (N, n), y and z: (N, m), w and z may be None.
    mask_: sets to 0, in place, what in (N, m, n) is not wanted. -> (N, m, W) and with signs (N, m, W) or None."""
    N, n, W = rows.shape
    m = y.size(-1)
    total, with_sign = rows.new_empty(N, m, W), rows.new_empty(N, m, W) if signed else None
    step = max(1, SLAB // (n * m)) if rows.device.type == "cpu" else N
    for start in range(0, N, step):
        part = slice(start, start + step)
        y_part, x_part = y[part].unsqueeze(2), x[part].unsqueeze(1)
        w_part = None if w is None else w[part].unsqueeze(1)
        z_part = None if z is None else z[part].unsqueeze(2)
        weights = mask_(pair_weights(x_part, y_part, w_part, z_part, rows.dtype, narrow))
        torch.bmm(weights, rows[part], out=total[part])
        if signed:
            torch.bmm(weights.mul_(torch.sub(y_part, x_part).sign_()), rows[part], out=with_sign[part])
    return total, with_sign


def pair_weights(x, y, w, z, dtype, narrow):
    """e^{-|y - x| + w + z}. x and w: (N, 1, n), y and z: (N, m, 1); narrow: by min(e^y e^-x, e^-y e^x), without an exponential a pair."""
    if narrow:
        scale = 1.0 if w is None else torch.exp(w)
        up, down, at, to = (t.to(dtype) for t in (torch.exp(y), torch.exp(-y), torch.exp(x) * scale, torch.exp(-x) * scale))
        weights = up * to
        return torch.minimum(weights, down * at, out=weights) if z is None else torch.minimum(weights, down * at).mul_(z.exp().to(dtype))
    exponent = torch.sub(y, x).abs_().neg_()
    for more in (w, z):
        if more is not None:
            exponent += more
    return exp_(exponent, dtype)
