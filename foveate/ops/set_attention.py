"""Attention inside many small sets at once, with learned embeddings of distances where they are wanted.

What routed and local heads share. Distances are those of Shaw et al., "Self-Attention with Relative Position
Representations" (2018, arXiv 1803.02155, eqs. 3 and 4): one vector for each clipped distance is added to the keys, and
one to the values::

    s_ij = scale q_i . (k_j + a_ij)        o_i = sum_j softmax(s_i)_j (v_j + b_ij)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .softmax_attention import causal_mask, softmax_attention


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    causal: bool = False,
    visible: Tensor | None = None,
    distances: Tensor | None = None,
    rel_k: Tensor | None = None,
    rel_v: Tensor | None = None,
) -> Tensor:
    """Softmax attention of every set to itself, or to keys of its own.

    Args:
        q: ``(rows, sets, length, d)``.
        k: ``(rows, sets, key_length, d)``.
        v: ``(rows, sets, key_length, e)``.
        scale: factor on the products.
        causal: place i sees places up to i; of keys that are more than queries the last ones are meant.
        visible: bool, broadcastable to ``(rows, sets, length, key_length)``.
        distances: int64 ``(length, key_length)``, clipped and counted from 0: which row of the tables a pair reads.
        rel_k: ``(distances, d)``, added to keys; None: no distances.
        rel_v: ``(distances, e)``, added to values.

    Returns:
        ``(rows, sets, length, e)``; zeros where nothing is seen.
    """
    if rel_k is None or rel_v is None or distances is None:
        return softmax_attention(q, k, v, causal=causal, mask=visible, scale=scale)
    shape = q.shape
    near = rel_k.to(q.dtype)[distances]  # (length, key_length, d)
    scores = q @ k.transpose(-1, -2)
    scores = scores + (q.flatten(0, 1).transpose(0, 1) @ near.transpose(1, 2)).transpose(0, 1).unflatten(0, shape[:2])
    scores = scores * scale
    if causal:
        ordered = causal_mask(q.shape[2], k.shape[2], q.device)[None, None]
        visible = ordered if visible is None else visible & ordered
    if visible is None:
        weights = scores.softmax(-1)
    else:
        empty = ~visible.any(-1, keepdim=True)
        weights = scores.masked_fill(~(visible | empty), -math.inf).softmax(-1).masked_fill(empty, 0.0)
    near = rel_v.to(v.dtype)[distances]
    moved = (weights.flatten(0, 1).transpose(0, 1) @ near).transpose(0, 1).unflatten(0, shape[:2])
    return weights @ v + moved


def attend_flops(sets: int, length: int, key_length: int, d: int, e: int, relative: bool) -> int:
    """FLOPs of the products of :func:`attend`, for so many sets in all."""
    return 2 * sets * length * key_length * (d + e) * (2 if relative else 1)


def clipped(distance: Tensor, rel_k: Tensor | None) -> Tensor | None:
    """Distances, key minus query, as rows of a table of ``2 m + 1`` distances; None without a table."""
    if rel_k is None:
        return None
    furthest = rel_k.shape[0] // 2
    return distance.clamp(-furthest, furthest) + furthest


def between(length: int, key_length: int, ahead: int, device: torch.device) -> Tensor:
    """int64 ``(length, key_length)``: places from queries to keys; ``ahead`` keys are behind the last query."""
    first = key_length - length - ahead
    return torch.arange(key_length, device=device) - torch.arange(first, first + length, device=device)[:, None]
