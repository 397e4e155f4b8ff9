"""Neighborhood attention in boxes: the fast form of :mod:`foveate.ops.neighborhood_attention` in aten operations.

A box of neighbouring queries sees little more than a box of keys: one dense product of the two, under a small mask, is
what a CPU or GPU does well, and with one box at a time memory grows with neither the number of pairs nor the window.
The backward pass makes each box's weights again from the saved log-sum-exps (arXiv 2403.04690, section 3)::

    dV = P^T dO,    dS = P (dO V^T - rowsum(dO O) + dlse),    dQ = dS K scale,    dK = dS^T Q scale
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .handwritten import Results, handwritten, sum_dtype
from .neighborhood_windows import Axis, Box, boxes, pieces

#: The arguments of the fast forms, native or not.
ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? bias, int[] window, int[] dilation, int[] stride, bool[] causal, float scale"
)
#: Positions of a box along each axis, by the rank of the grid.
EDGE = {1: 64, 2: 8, 3: 4}


def boxed_pairs(axes: tuple[Axis, ...]) -> int:
    """Pairs of query and key that the boxes compute, seen or not: one head's products, by which FLOPs are told."""
    edge, pairs = EDGE[len(axes)], 1
    for axis in axes:
        along = 0
        for residue, start, stop in pieces(axis, edge):
            n = axis.length(residue)
            along += (stop - start) * (axis.bounds(stop - 1, n)[1] - axis.bounds(start, n)[0])
        pairs *= along
    return pairs


def _axes(q: Tensor, window: list[int], dilation: list[int], stride: list[int], causal: list[bool]) -> tuple[Axis, ...]:
    return tuple(Axis(*values) for values in zip(q.shape[2:-1], window, dilation, stride, causal, strict=True))


def _lines(m: Tensor, places: tuple[slice, ...], key_heads: int) -> Tensor:
    """A box of a tensor, as ``(batch, key_heads, tokens of all heads of a group, width)`` in the precision of sums."""
    m = m[(slice(None), slice(None), *places)].to(sum_dtype(m.dtype))
    return m.flatten(2, -2).unflatten(1, (key_heads, -1)).flatten(2, 3)


def _put(to: Tensor, places: tuple[slice, ...], lines: Tensor) -> None:
    """Add what :func:`_lines` would read."""
    here = to[(slice(None), slice(None), *places)]
    group = to.shape[1] // lines.shape[1]
    here += lines.unflatten(2, (group, -1)).flatten(1, 2).view(here.shape)


def _scores(lines: Tensor, keys: Tensor, bias: Tensor | None, box: Box, scale: float) -> Tensor:
    """Scores ``(batch, key_heads, group, queries, keys)`` of a box, -inf where nothing is seen."""
    queries = len(box.distance)
    scores = (lines @ keys.mT).unflatten(2, (-1, queries)) * scale
    if bias is not None:
        here = bias.to(scores.dtype).flatten(1)[:, box.distance]
        scores = scores + here.unflatten(0, (scores.shape[1], scores.shape[2]))
    return scores.masked_fill(~box.seen, -math.inf)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    window: list[int],
    dilation: list[int],
    stride: list[int],
    causal: list[bool],
    scale: float,
) -> tuple[Tensor, Tensor]:
    out, lse = (m.zero_() for m in shapes_of(q, k, v, bias, window, dilation, stride, causal, scale))
    heads = k.shape[1]
    for box in boxes(_axes(q, window, dilation, stride, causal), EDGE[q.ndim - 3], q.device):
        keys, values = (_lines(m, box.keys, heads) for m in (k, v))
        scores = _scores(_lines(q, box.queries, heads), keys, bias, box, scale)
        sums = scores.logsumexp(-1, keepdim=True)
        weights = torch.exp(scores - sums)
        _put(out, box.queries, (weights.flatten(2, 3) @ values).to(out.dtype))
        _put(lse.unsqueeze(-1), box.queries, sums.flatten(2, 3))
    return out, lse


def _backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    window: list[int],
    dilation: list[int],
    stride: list[int],
    causal: list[bool],
    scale: float,
    out: Tensor,
    lse: Tensor,
) -> Results:
    real, heads = sum_dtype(q.dtype), k.shape[1]
    grad_q, grad_k, grad_v = (torch.zeros(m.shape, dtype=real, device=m.device) for m in (q, k, v))
    grad_bias = None if bias is None else torch.zeros(bias.shape, dtype=real, device=bias.device).flatten(1)
    delta = (grad_out.to(real) * out.to(real)).sum(-1, keepdim=True) - grad_lse.unsqueeze(-1)
    for box in boxes(_axes(q, window, dilation, stride, causal), EDGE[q.ndim - 3], q.device):
        keys, values = (_lines(m, box.keys, heads) for m in (k, v))
        lines, grads, deltas = (_lines(m, box.queries, heads) for m in (q, grad_out, delta))
        sums = _lines(lse.unsqueeze(-1), box.queries, heads)
        weights = torch.exp(_scores(lines, keys, bias, box, scale).flatten(2, 3) - sums)
        _put(grad_v, box.keys, weights.mT @ grads)
        slopes = weights * (grads @ values.mT - deltas)
        if grad_bias is not None:
            pairs = slopes.unflatten(2, (-1, len(box.distance))).sum(0).flatten(0, 1)
            grad_bias.index_add_(1, box.distance.flatten(), pairs.flatten(1))
        _put(grad_q, box.queries, (slopes @ keys) * scale)
        _put(grad_k, box.keys, (slopes.mT @ lines) * scale)
    return grad_q, grad_k, grad_v, None if bias is None or grad_bias is None else grad_bias.view(bias.shape)


def shapes_of(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    window: list[int],
    dilation: list[int],
    stride: list[int],
    causal: list[bool],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Empty results. Heads lie behind the grid in memory, where a mixer joins them without a copy."""
    batch, heads, *grid, _ = q.shape
    out = torch.empty(batch, *grid, heads, v.shape[-1], dtype=q.dtype, device=q.device).movedim(-2, 1)
    return out, torch.empty(batch, heads, *grid, dtype=sum_dtype(q.dtype), device=q.device)


#: ``(out, lse)`` of :func:`foveate.ops.neighborhood_attention.neighborhood_attention`, without extra keys; window,
#: dilation, stride and causality are lists with an entry per axis.
neighborhood_boxes = handwritten(
    "neighborhood_attention",
    ARGUMENTS,
    outputs=2,
    extras=0,
    forward=_forward,
    backward=_backward,
    shapes=shapes_of,
    reads_outputs=True,
)
