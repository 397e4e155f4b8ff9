"""Neighborhood attention in Triton; what it is stands in :mod:`foveate.ops.neighborhood_attention`.

A program owns a tile of neighbouring queries of one head and of one residue of the dilations, and walks through the box
of keys that they see, tile by tile, with the exact rule as a mask and a running softmax. The backward pass makes the
weights again from the saved log-sum-exps: queries walk through their keys once more, keys walk through the box of
queries that may see them, and each number of the bias through all queries. Nothing is added up by two programs, so that
results do not depend on the order in which they run. Grids have three axes here; those that are missing have one
position.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..handwritten import Results, handwritten, sum_dtype
from ..neighborhood_boxes import ARGUMENTS, shapes_of
from . import power_of_two, precision, takes
from .neighborhood_tiles import keys_of, my_tiles, pair_along, queries_of, rows, scores_of, tile_at, within

#: The grid's axes; those that a grid has not, from the first on, have one position.
AXES = ("t", "y", "x")
#: Positions of a tile, fewer where heads are wide: a tile has at most so many bytes.
TILE, TILE_BYTES = 64, 16384
#: Bytes of the widest row whose tiles fit the shared memory of a GPU, at least 16 positions at a time.
WIDEST = 1024
_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def fits(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernel takes these: real numbers on the device of the kernels, heads not too wide."""
    narrow = power_of_two(max(q.shape[-1], v.shape[-1])) * sum_dtype(q.dtype).itemsize <= WIDEST
    return q.dtype in _TYPES and narrow and takes(q, k, v, bias)


@triton.jit
def _forward_kernel(
    q, k, v, bias, scale, out, lse, heads, group, width, value_width,
    t_size, t_window, t_dilation, t_stride, y_size, y_window, y_dilation, y_stride,
    x_size, x_window, x_dilation, x_stride,
    q_batch, q_head, q_t_axis, q_y_axis, q_x_axis, q_column,
    k_batch, k_head, k_t_axis, k_y_axis, k_x_axis, k_column,
    v_batch, v_head, v_t_axis, v_y_axis, v_x_axis, v_column,
    CAUSAL_T: tl.constexpr, CAUSAL_Y: tl.constexpr, CAUSAL_X: tl.constexpr,
    EDGE_T: tl.constexpr, EDGE_Y: tl.constexpr, EDGE_X: tl.constexpr,
    WIDTH: tl.constexpr, VALUES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    TILE: tl.constexpr = EDGE_T * EDGE_Y * EDGE_X
    line, tile_t, tile_y, tile_x = my_tiles(
        t_size, t_dilation, y_size, y_dilation, x_size, x_dilation, EDGE_T, EDGE_Y, EDGE_X
    )
    sample, head = line // heads, line % heads
    t_residue, t_length, t_start = tile_at(tile_t, t_size, t_dilation, EDGE_T)
    y_residue, y_length, y_start = tile_at(tile_y, y_size, y_dilation, EDGE_Y)
    x_residue, x_length, x_start = tile_at(tile_x, x_size, x_dilation, EDGE_X)
    i = tl.arange(0, TILE)
    i_t, i_y, i_x = i // (EDGE_Y * EDGE_X), i // EDGE_X % EDGE_Y, i % EDGE_X
    q_t, q_y, q_x = t_start + i_t, y_start + i_y, x_start + i_x
    inside = within(q_t, q_y, q_x, t_length, y_length, x_length)
    d, e = tl.arange(0, WIDTH), tl.arange(0, VALUES)
    d_mask, e_mask = d < width, e < value_width
    factor = tl.load(scale)
    real = factor.dtype
    row_t, row_y, row_x = t_residue + t_dilation * q_t, y_residue + y_dilation * q_y, x_residue + x_dilation * q_x
    qs = rows(
        q + sample * q_batch + head * q_head, row_t, row_y, row_x, inside, d, d_mask,
        q_t_axis, q_y_axis, q_x_axis, q_column,
    ).to(real)  # fmt: skip
    keys, values = sample * k_batch + head // group * k_head, sample * v_batch + head // group * v_head
    t_low, t_high = keys_of(t_start, t_length, t_window, t_stride, CAUSAL_T, EDGE_T)
    y_low, y_high = keys_of(y_start, y_length, y_window, y_stride, CAUSAL_Y, EDGE_Y)
    x_low, x_high = keys_of(x_start, x_length, x_window, x_stride, CAUSAL_X, EDGE_X)
    steps_t, steps_y = tl.cdiv(t_high - t_low, EDGE_T), tl.cdiv(y_high - y_low, EDGE_Y)
    steps_x = tl.cdiv(x_high - x_low, EDGE_X)
    most = tl.zeros((TILE,), dtype=real) - float("inf")
    total = tl.zeros((TILE,), dtype=real)
    sums = tl.zeros((TILE, VALUES), dtype=real)
    for step in range(steps_t * steps_y * steps_x):
        k_t = t_low + step // (steps_y * steps_x) * EDGE_T + i_t
        k_y, k_x = y_low + step // steps_x % steps_y * EDGE_Y + i_y, x_low + step % steps_x * EDGE_X + i_x
        near = within(k_t, k_y, k_x, t_high, y_high, x_high)
        row_t, row_y, row_x = t_residue + t_dilation * k_t, y_residue + y_dilation * k_y, x_residue + x_dilation * k_x
        ks = rows(k + keys, row_t, row_y, row_x, near, d, d_mask, k_t_axis, k_y_axis, k_x_axis, k_column).to(real)
        vs = rows(v + values, row_t, row_y, row_x, near, e, e_mask, v_t_axis, v_y_axis, v_x_axis, v_column).to(real)
        scores = scores_of(
            qs, ks, bias, factor, head, inside, q_t, q_y, q_x, k_t, k_y, k_x,
            t_length, t_window, t_stride, y_length, y_window, y_stride, x_length, x_window, x_stride,
            CAUSAL_T, CAUSAL_Y, CAUSAL_X, PRECISION,
        )  # fmt: skip
        now = tl.maximum(most, tl.max(scores, axis=1))
        still = tl.where(now == float("-inf"), 0.0, now)  # nothing seen yet: all weights are 0
        weights = tl.exp(scores - still[:, None])
        before = tl.exp(most - still)
        total = total * before + tl.sum(weights, axis=1)
        sums = sums * before[:, None] + tl.dot(weights, vs, input_precision=PRECISION)
        most = now
    total = tl.where(inside, total, 1.0)
    row_t, row_y, row_x = t_residue + t_dilation * q_t, y_residue + y_dilation * q_y, x_residue + x_dilation * q_x
    place = (row_t.to(tl.int64) * y_size + row_y) * x_size + row_x
    tl.store(lse + line * t_size * y_size * x_size + place, most + tl.log(total), mask=inside)
    place = ((sample * t_size * y_size * x_size + place) * heads + head)[:, None] * value_width + e[None, :]
    sums = (sums / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + place, sums, mask=inside[:, None] & e_mask[None, :])


@triton.jit
def _queries_kernel(
    grad_out, q, k, v, bias, scale, lse, delta, grad_q, heads, group, width, value_width,
    t_size, t_window, t_dilation, t_stride, y_size, y_window, y_dilation, y_stride,
    x_size, x_window, x_dilation, x_stride,
    q_batch, q_head, q_t_axis, q_y_axis, q_x_axis, q_column,
    k_batch, k_head, k_t_axis, k_y_axis, k_x_axis, k_column,
    v_batch, v_head, v_t_axis, v_y_axis, v_x_axis, v_column,
    CAUSAL_T: tl.constexpr, CAUSAL_Y: tl.constexpr, CAUSAL_X: tl.constexpr,
    EDGE_T: tl.constexpr, EDGE_Y: tl.constexpr, EDGE_X: tl.constexpr,
    WIDTH: tl.constexpr, VALUES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    TILE: tl.constexpr = EDGE_T * EDGE_Y * EDGE_X
    line, tile_t, tile_y, tile_x = my_tiles(
        t_size, t_dilation, y_size, y_dilation, x_size, x_dilation, EDGE_T, EDGE_Y, EDGE_X
    )
    sample, head = line // heads, line % heads
    t_residue, t_length, t_start = tile_at(tile_t, t_size, t_dilation, EDGE_T)
    y_residue, y_length, y_start = tile_at(tile_y, y_size, y_dilation, EDGE_Y)
    x_residue, x_length, x_start = tile_at(tile_x, x_size, x_dilation, EDGE_X)
    i = tl.arange(0, TILE)
    i_t, i_y, i_x = i // (EDGE_Y * EDGE_X), i // EDGE_X % EDGE_Y, i % EDGE_X
    q_t, q_y, q_x = t_start + i_t, y_start + i_y, x_start + i_x
    inside = within(q_t, q_y, q_x, t_length, y_length, x_length)
    d, e = tl.arange(0, WIDTH), tl.arange(0, VALUES)
    d_mask, e_mask = d < width, e < value_width
    factor = tl.load(scale)
    real = factor.dtype
    row_t, row_y, row_x = t_residue + t_dilation * q_t, y_residue + y_dilation * q_y, x_residue + x_dilation * q_x
    qs = rows(
        q + sample * q_batch + head * q_head, row_t, row_y, row_x, inside, d, d_mask,
        q_t_axis, q_y_axis, q_x_axis, q_column,
    ).to(real)  # fmt: skip
    row = line * t_size * y_size * x_size + (row_t.to(tl.int64) * y_size + row_y) * x_size + row_x
    e_place, e_inside = row[:, None] * value_width + e[None, :], inside[:, None] & e_mask[None, :]
    go = tl.load(grad_out + e_place, mask=e_inside, other=0.0).to(real)
    sums = tl.load(lse + row, mask=inside, other=0.0)
    less = tl.load(delta + row, mask=inside, other=0.0)
    keys, values = sample * k_batch + head // group * k_head, sample * v_batch + head // group * v_head
    t_low, t_high = keys_of(t_start, t_length, t_window, t_stride, CAUSAL_T, EDGE_T)
    y_low, y_high = keys_of(y_start, y_length, y_window, y_stride, CAUSAL_Y, EDGE_Y)
    x_low, x_high = keys_of(x_start, x_length, x_window, x_stride, CAUSAL_X, EDGE_X)
    steps_t, steps_y = tl.cdiv(t_high - t_low, EDGE_T), tl.cdiv(y_high - y_low, EDGE_Y)
    steps_x = tl.cdiv(x_high - x_low, EDGE_X)
    gq = tl.zeros((TILE, WIDTH), dtype=real)
    for step in range(steps_t * steps_y * steps_x):
        k_t = t_low + step // (steps_y * steps_x) * EDGE_T + i_t
        k_y, k_x = y_low + step // steps_x % steps_y * EDGE_Y + i_y, x_low + step % steps_x * EDGE_X + i_x
        near = within(k_t, k_y, k_x, t_high, y_high, x_high)
        row_t, row_y, row_x = t_residue + t_dilation * k_t, y_residue + y_dilation * k_y, x_residue + x_dilation * k_x
        ks = rows(k + keys, row_t, row_y, row_x, near, d, d_mask, k_t_axis, k_y_axis, k_x_axis, k_column).to(real)
        vs = rows(v + values, row_t, row_y, row_x, near, e, e_mask, v_t_axis, v_y_axis, v_x_axis, v_column).to(real)
        scores = scores_of(
            qs, ks, bias, factor, head, inside, q_t, q_y, q_x, k_t, k_y, k_x,
            t_length, t_window, t_stride, y_length, y_window, y_stride, x_length, x_window, x_stride,
            CAUSAL_T, CAUSAL_Y, CAUSAL_X, PRECISION,
        )  # fmt: skip
        weights = tl.exp(scores - sums[:, None])
        slopes = weights * (tl.dot(go, tl.trans(vs), input_precision=PRECISION) - less[:, None])
        gq += tl.dot(slopes, ks, input_precision=PRECISION)
    place = row[:, None] * width + d[None, :]
    tl.store(grad_q + place, (gq * factor).to(grad_q.dtype.element_ty), mask=inside[:, None] & d_mask[None, :])


@triton.jit
def _keys_kernel(
    grad_out, q, k, v, bias, scale, lse, delta, grad_k, grad_v, heads, group, width, value_width,
    t_size, t_window, t_dilation, t_stride, y_size, y_window, y_dilation, y_stride,
    x_size, x_window, x_dilation, x_stride,
    q_batch, q_head, q_t_axis, q_y_axis, q_x_axis, q_column,
    k_batch, k_head, k_t_axis, k_y_axis, k_x_axis, k_column,
    v_batch, v_head, v_t_axis, v_y_axis, v_x_axis, v_column,
    CAUSAL_T: tl.constexpr, CAUSAL_Y: tl.constexpr, CAUSAL_X: tl.constexpr,
    EDGE_T: tl.constexpr, EDGE_Y: tl.constexpr, EDGE_X: tl.constexpr,
    WIDTH: tl.constexpr, VALUES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    TILE: tl.constexpr = EDGE_T * EDGE_Y * EDGE_X
    line, tile_t, tile_y, tile_x = my_tiles(
        t_size, t_dilation, y_size, y_dilation, x_size, x_dilation, EDGE_T, EDGE_Y, EDGE_X
    )
    sample, key_head = line // (heads // group), line % (heads // group)
    t_residue, t_length, t_start = tile_at(tile_t, t_size, t_dilation, EDGE_T)
    y_residue, y_length, y_start = tile_at(tile_y, y_size, y_dilation, EDGE_Y)
    x_residue, x_length, x_start = tile_at(tile_x, x_size, x_dilation, EDGE_X)
    i = tl.arange(0, TILE)
    i_t, i_y, i_x = i // (EDGE_Y * EDGE_X), i // EDGE_X % EDGE_Y, i % EDGE_X
    k_t, k_y, k_x = t_start + i_t, y_start + i_y, x_start + i_x
    inside = within(k_t, k_y, k_x, t_length, y_length, x_length)
    d, e = tl.arange(0, WIDTH), tl.arange(0, VALUES)
    d_mask, e_mask = d < width, e < value_width
    factor = tl.load(scale)
    real = factor.dtype
    row_t, row_y, row_x = t_residue + t_dilation * k_t, y_residue + y_dilation * k_y, x_residue + x_dilation * k_x
    ks = rows(
        k + sample * k_batch + key_head * k_head, row_t, row_y, row_x, inside, d, d_mask,
        k_t_axis, k_y_axis, k_x_axis, k_column,
    ).to(real)  # fmt: skip
    vs = rows(
        v + sample * v_batch + key_head * v_head, row_t, row_y, row_x, inside, e, e_mask,
        v_t_axis, v_y_axis, v_x_axis, v_column,
    ).to(real)  # fmt: skip
    place = line * t_size * y_size * x_size + (row_t.to(tl.int64) * y_size + row_y) * x_size + row_x
    t_low, t_high = queries_of(t_start, t_length, t_window, t_stride, CAUSAL_T, EDGE_T)
    y_low, y_high = queries_of(y_start, y_length, y_window, y_stride, CAUSAL_Y, EDGE_Y)
    x_low, x_high = queries_of(x_start, x_length, x_window, x_stride, CAUSAL_X, EDGE_X)
    steps_t, steps_y = tl.cdiv(t_high - t_low, EDGE_T), tl.cdiv(y_high - y_low, EDGE_Y)
    steps_x = tl.cdiv(x_high - x_low, EDGE_X)
    steps = steps_t * steps_y * steps_x
    gk = tl.zeros((TILE, WIDTH), dtype=real)
    gv = tl.zeros((TILE, VALUES), dtype=real)
    for visit in range(steps * group):
        head = key_head * group + visit // steps
        step = visit % steps
        q_t = t_low + step // (steps_y * steps_x) * EDGE_T + i_t
        q_y, q_x = y_low + step // steps_x % steps_y * EDGE_Y + i_y, x_low + step % steps_x * EDGE_X + i_x
        near = within(q_t, q_y, q_x, t_high, y_high, x_high)
        row_t, row_y, row_x = t_residue + t_dilation * q_t, y_residue + y_dilation * q_y, x_residue + x_dilation * q_x
        qs = rows(
            q + sample * q_batch + head * q_head, row_t, row_y, row_x, near, d, d_mask,
            q_t_axis, q_y_axis, q_x_axis, q_column,
        ).to(real)  # fmt: skip
        row = (sample * heads + head) * t_size * y_size * x_size
        row += (row_t.to(tl.int64) * y_size + row_y) * x_size + row_x
        go = tl.load(
            grad_out + row[:, None] * value_width + e[None, :], mask=near[:, None] & e_mask[None, :], other=0.0
        ).to(real)
        sums = tl.load(lse + row, mask=near, other=0.0)
        less = tl.load(delta + row, mask=near, other=0.0)
        scores = scores_of(
            qs, ks, bias, factor, head, near, q_t, q_y, q_x, k_t, k_y, k_x,
            t_length, t_window, t_stride, y_length, y_window, y_stride, x_length, x_window, x_stride,
            CAUSAL_T, CAUSAL_Y, CAUSAL_X, PRECISION,
        )  # fmt: skip
        weights = tl.exp(scores - sums[:, None])
        gv += tl.dot(tl.trans(weights), go, input_precision=PRECISION)
        slopes = weights * (tl.dot(go, tl.trans(vs), input_precision=PRECISION) - less[:, None])
        gk += tl.dot(tl.trans(slopes), qs, input_precision=PRECISION)
    gk_place, gv_place = place[:, None] * width + d[None, :], place[:, None] * value_width + e[None, :]
    tl.store(grad_k + gk_place, (gk * factor).to(grad_k.dtype.element_ty), mask=inside[:, None] & d_mask[None, :])
    tl.store(grad_v + gv_place, gv.to(grad_v.dtype.element_ty), mask=inside[:, None] & e_mask[None, :])


@triton.jit
def _bias_kernel(
    grad_out, q, k, v, bias, scale, lse, delta, grad_bias, heads, group, width, value_width,
    t_size, t_window, t_dilation, t_stride, y_size, y_window, y_dilation, y_stride,
    x_size, x_window, x_dilation, x_stride,
    q_batch, q_head, q_t_axis, q_y_axis, q_x_axis, q_column,
    k_batch, k_head, k_t_axis, k_y_axis, k_x_axis, k_column,
    v_batch, v_head, v_t_axis, v_y_axis, v_x_axis, v_column,
    CAUSAL_T: tl.constexpr, CAUSAL_Y: tl.constexpr, CAUSAL_X: tl.constexpr,
    EDGE_T: tl.constexpr, EDGE_Y: tl.constexpr, EDGE_X: tl.constexpr,
    WIDTH: tl.constexpr, VALUES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    TILE: tl.constexpr = EDGE_T * EDGE_Y * EDGE_X
    bins_y, bins_x = 2 * y_window - 1, 2 * x_window - 1
    bins = (2 * t_window - 1) * bins_y * bins_x
    line, number = (tl.program_id(0) // bins).to(tl.int64), tl.program_id(0) % bins
    sample, head = line // heads, line % heads
    away_t = number // (bins_y * bins_x) - t_window + 1
    away_y, away_x = number // bins_x % bins_y - y_window + 1, number % bins_x - x_window + 1
    d, e = tl.arange(0, WIDTH), tl.arange(0, VALUES)
    d_mask, e_mask = d < width, e < value_width
    factor = tl.load(scale)
    own = tl.load(bias + head * bins + number)
    keys, values = sample * k_batch + head // group * k_head, sample * v_batch + head // group * v_head
    total = tl.zeros((TILE,), dtype=factor.dtype)
    for chunk in range(tl.cdiv(t_size * y_size * x_size, TILE)):
        place = chunk * TILE + tl.arange(0, TILE)
        row_t, row_y, row_x = place // (y_size * x_size), place // x_size % y_size, place % x_size
        inside = row_t < t_size
        near = inside & pair_along(row_t, away_t, t_size, t_window, t_dilation, t_stride, CAUSAL_T)
        near &= pair_along(row_y, away_y, y_size, y_window, y_dilation, y_stride, CAUSAL_Y)
        near &= pair_along(row_x, away_x, x_size, x_window, x_dilation, x_stride, CAUSAL_X)
        qs = rows(
            q + sample * q_batch + head * q_head, row_t, row_y, row_x, near, d, d_mask,
            q_t_axis, q_y_axis, q_x_axis, q_column,
        ).to(factor.dtype)  # fmt: skip
        row = line * t_size * y_size * x_size + place
        go = tl.load(
            grad_out + row[:, None] * value_width + e[None, :], mask=near[:, None] & e_mask[None, :], other=0.0
        ).to(factor.dtype)
        row_t, row_y, row_x = row_t + t_dilation * away_t, row_y + y_dilation * away_y, row_x + x_dilation * away_x
        ks = rows(k + keys, row_t, row_y, row_x, near, d, d_mask, k_t_axis, k_y_axis, k_x_axis, k_column)
        vs = rows(v + values, row_t, row_y, row_x, near, e, e_mask, v_t_axis, v_y_axis, v_x_axis, v_column)
        scores = tl.sum(qs * ks.to(factor.dtype), axis=1) * factor + own
        weights = tl.where(near, tl.exp(scores - tl.load(lse + row, mask=near, other=0.0)), 0.0)
        slopes = tl.sum(go * vs.to(factor.dtype), axis=1) - tl.load(delta + row, mask=near, other=0.0)
        total += weights * slopes
    tl.store(grad_bias + line * bins + number, tl.sum(total, axis=0))


def _inputs(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, window: list[int], dilation: list[int], stride: list[int],
    causal: list[bool], scale: float,
) -> tuple[dict[str, Tensor | None], dict[str, int | bool | str]]:  # fmt: skip
    """Tensors by name as the kernels take them, and sizes, strides and flags."""
    real, grid = sum_dtype(q.dtype), q.shape[2:-1]
    tensors = {"q": q, "k": k, "v": v, "bias": None if bias is None else bias.to(real).contiguous()}
    tensors["scale"] = q.new_full((1,), scale, dtype=real)  # a number would be rounded to float32
    sizes: dict[str, int | bool | str] = {"heads": q.shape[1], "group": q.shape[1] // k.shape[1]}
    sizes |= {"width": q.shape[-1], "value_width": v.shape[-1], "PRECISION": precision(q.dtype)}
    missing = 3 - len(grid)
    axes = [(1, 1, 1, 1, False)] * missing + list(zip(grid, window, dilation, stride, causal, strict=True))
    for name, (size, w, d, s, c) in zip(AXES, axes, strict=True):
        sizes |= {f"{name}_size": size, f"{name}_window": w, f"{name}_dilation": d, f"{name}_stride": s}
        sizes[f"CAUSAL_{name.upper()}"] = c
    for name, m in (("q", q), ("k", k), ("v", v)):
        batch, head, *places, column = m.stride()
        sizes |= {f"{name}_batch": batch, f"{name}_head": head, f"{name}_column": column}
        sizes |= {f"{name}_{axis}_axis": p for axis, p in zip(AXES, [0] * missing + places, strict=True)}
    # Products have at least 16 rows and columns.
    sizes |= {"WIDTH": max(16, power_of_two(q.shape[-1])), "VALUES": max(16, power_of_two(v.shape[-1]))}
    widest = max(sizes["WIDTH"], sizes["VALUES"]) * real.itemsize
    edges = edges_of([-(-size // d) for size, _, d, _, _ in axes], min(TILE, TILE_BYTES // widest))
    return tensors, sizes | {f"EDGE_{name.upper()}": e for name, e in zip(AXES, edges, strict=True)} | {"num_stages": 1}


def edges_of(lengths: list[int], tile: int) -> list[int]:
    """The edges of a tile of so many positions, powers of two: alike, but not much longer than a short axis."""
    left, edges = tile.bit_length() - 1, []
    for place, length in enumerate(lengths):
        here = left if place == 2 else min(left // (3 - place), power_of_two(length).bit_length() - 1)
        edges.append(1 << here)
        left -= here
    return edges


def _tiles(sizes: dict[str, int | bool | str]) -> int:
    per_residue = (-(-sizes[f"{a}_size"] // sizes[f"{a}_dilation"]) for a in AXES)
    tiles = (triton.cdiv(length, sizes[f"EDGE_{a.upper()}"]) for a, length in zip(AXES, per_residue, strict=True))
    return math.prod(sizes[f"{a}_dilation"] * n for a, n in zip(AXES, tiles, strict=True))


def _forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, window: list[int], dilation: list[int], stride: list[int],
    causal: list[bool], scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    tensors, sizes = _inputs(q, k, v, bias, window, dilation, stride, causal, scale)
    out, lse = shapes_of(q, k, v, bias, window, dilation, stride, causal, scale)
    _forward_kernel[(q.shape[0] * q.shape[1] * _tiles(sizes),)](**tensors, out=out, lse=lse, **sizes)
    return out, lse


def _backward(
    grad_out: Tensor, grad_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, window: list[int],
    dilation: list[int], stride: list[int], causal: list[bool], scale: float, out: Tensor, lse: Tensor,
) -> Results:  # fmt: skip
    tensors, sizes = _inputs(q, k, v, bias, window, dilation, stride, causal, scale)
    tensors |= {"grad_out": grad_out.contiguous(), "lse": lse.contiguous()}
    tensors["delta"] = ((grad_out.to(lse.dtype) * out.to(lse.dtype)).sum(-1) - grad_lse).contiguous()
    grad_q, grad_k, grad_v = (torch.empty(m.shape, dtype=m.dtype, device=m.device) for m in (q, k, v))
    lines, tiles = q.shape[0] * q.shape[1], _tiles(sizes)
    _queries_kernel[(lines * tiles,)](**tensors, grad_q=grad_q, **sizes)
    _keys_kernel[(k.shape[0] * k.shape[1] * tiles,)](**tensors, grad_k=grad_k, grad_v=grad_v, **sizes)
    if bias is None:
        return grad_q, grad_k, grad_v, None
    grad_bias = torch.empty((q.shape[0], *bias.shape), dtype=lse.dtype, device=q.device)
    _bias_kernel[(q.shape[0] * bias.numel(),)](**tensors, grad_bias=grad_bias, **sizes)
    return grad_q, grad_k, grad_v, grad_bias.sum(0)


#: As :func:`foveate.ops.neighborhood_boxes.neighborhood_boxes`, for what :func:`fits`.
neighborhood_attention_triton = handwritten(
    "neighborhood_attention_triton",
    ARGUMENTS,
    outputs=2,
    extras=0,
    forward=_forward,
    backward=_backward,
    shapes=shapes_of,
    reads_outputs=True,
)
