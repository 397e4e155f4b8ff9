"""What the kernels of neighborhood attention share: the rule along an axis, tiles of a grid, and scores under the mask.

The rule is that of :mod:`foveate.ops.neighborhood_windows`, for tiles of positions at once; all of it counts positions
of a residue of the dilation.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def bounds(p, length, window, stride, CAUSAL: tl.constexpr):
    """The first key that query p of a residue sees along one axis, and the one after the last."""
    group = p // stride * stride
    if CAUSAL:
        leader = tl.minimum(group + stride - 1, length - 1)
        first = tl.maximum(leader - window + 1, 0)
        end = p + 1
    else:
        left = window // 2
        leader = tl.minimum(group + stride // 2, length - 1)
        first = tl.minimum(tl.maximum(leader, left), length - window + left) - left
        end = first + window
    return first, end


@triton.jit
def keys_of(start, length, window, stride, CAUSAL: tl.constexpr, EDGE: tl.constexpr):
    """The keys that the queries of a tile see along one axis: none if there are no queries."""
    low, _ = bounds(start, length, window, stride, CAUSAL)
    _, high = bounds(tl.minimum(start + EDGE, length) - 1, length, window, stride, CAUSAL)
    return low, tl.where(start < length, high, low)


@triton.jit
def queries_of(start, length, window, stride, CAUSAL: tl.constexpr, EDGE: tl.constexpr):
    """All queries that see a key of a tile along one axis, and perhaps a few more."""
    last = tl.minimum(start + EDGE, length) - 1
    if CAUSAL:
        low = start
        high = last + window
    else:
        left = window // 2
        # A leader is less than a stride away from its followers; windows at the edges are those of the queries there.
        low = tl.where(start < window, 0, start - (window - left - 1) - stride // 2)
        high = tl.where(last >= length - window, length, last + left + stride - stride // 2)
    high = tl.minimum(high, length)
    return tl.maximum(low, 0), tl.where(start < length, high, low)


@triton.jit
def tile_at(tile, size, dilation, EDGE: tl.constexpr):
    """Where a tile lies along one axis: its residue, the residue's positions, and the first of them in the tile."""
    per_residue = tl.cdiv(tl.cdiv(size, dilation), EDGE)
    residue = tile // per_residue
    return residue, (size - residue + dilation - 1) // dilation, tile % per_residue * EDGE


@triton.jit
def my_tiles(
    t_size, t_dilation, y_size, y_dilation, x_size, x_dilation,
    EDGE_T: tl.constexpr, EDGE_Y: tl.constexpr, EDGE_X: tl.constexpr,
):  # fmt: skip
    """What this program owns: its line (a head of a sample), and its tile along each axis."""
    tiles_t = t_dilation * tl.cdiv(tl.cdiv(t_size, t_dilation), EDGE_T)
    tiles_y = y_dilation * tl.cdiv(tl.cdiv(y_size, y_dilation), EDGE_Y)
    tiles_x = x_dilation * tl.cdiv(tl.cdiv(x_size, x_dilation), EDGE_X)
    tile = tl.program_id(0)
    line = tile // (tiles_t * tiles_y * tiles_x)
    return line.to(tl.int64), tile // (tiles_y * tiles_x) % tiles_t, tile // tiles_x % tiles_y, tile % tiles_x


@triton.jit
def within(t, y, x, t_end, y_end, x_end):
    return (t < t_end) & (y < y_end) & (x < x_end)


@triton.jit
def is_seen(key, first, end):
    return (key >= first) & (key < end)


@triton.jit
def pair_along(row, away, size, window, dilation, stride, CAUSAL: tl.constexpr):
    """Whether a query at a row of the grid sees along one axis the key that is so far away in its residue."""
    p, length = row // dilation, (size - row % dilation + dilation - 1) // dilation
    first, end = bounds(p, length, window, stride, CAUSAL)
    return is_seen(p + away, first, end)


@triton.jit
def rows(base, t, y, x, inside, c, c_mask, t_stride, y_stride, x_stride, column_stride):
    """Rows of one head at positions of the grid, zeros outside."""
    place = t.to(tl.int64) * t_stride + y.to(tl.int64) * y_stride + x.to(tl.int64) * x_stride  # may pass 2^31
    place = place[:, None] + c[None, :].to(tl.int64) * column_stride
    return tl.load(base + place, mask=inside[:, None] & c_mask[None, :], other=0.0)


@triton.jit
def bias_of(bias, head, seen, away_t, away_y, away_x, t_window, y_window, x_window):
    """The bias of pairs, by key minus query along each axis."""
    bins_y, bins_x = 2 * y_window - 1, 2 * x_window - 1
    bins = (2 * t_window - 1) * bins_y * bins_x
    place = ((away_t + t_window - 1) * bins_y + away_y + y_window - 1) * bins_x + away_x + x_window - 1
    return tl.load(bias + head * bins + place, mask=seen, other=0.0)


@triton.jit
def scores_of(
    qs, ks, bias, factor, head, q_inside, q_t, q_y, q_x, k_t, k_y, k_x,
    t_length, t_window, t_stride, y_length, y_window, y_stride, x_length, x_window, x_stride,
    CAUSAL_T: tl.constexpr, CAUSAL_Y: tl.constexpr, CAUSAL_X: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores of a tile of queries with a tile of keys, -inf where a key is not seen."""
    first_t, end_t = bounds(q_t, t_length, t_window, t_stride, CAUSAL_T)
    first_y, end_y = bounds(q_y, y_length, y_window, y_stride, CAUSAL_Y)
    first_x, end_x = bounds(q_x, x_length, x_window, x_stride, CAUSAL_X)
    seen = q_inside[:, None] & is_seen(k_t[None, :], first_t[:, None], end_t[:, None])
    seen &= is_seen(k_y[None, :], first_y[:, None], end_y[:, None])
    seen &= is_seen(k_x[None, :], first_x[:, None], end_x[:, None])
    scores = tl.dot(qs, tl.trans(ks), input_precision=PRECISION) * factor
    if bias is not None:
        away_t, away_y, away_x = k_t[None, :] - q_t[:, None], k_y[None, :] - q_y[:, None], k_x[None, :] - q_x[:, None]
        scores += bias_of(bias, head, seen, away_t, away_y, away_x, t_window, y_window, x_window)
    return tl.where(seen, scores, float("-inf"))
