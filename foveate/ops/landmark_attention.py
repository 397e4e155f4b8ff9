"""Landmark attention: a softmax in two levels, in which a block's landmark decides about the block.

Mohtashami and Jaggi, "Random-Access Infinite Context Length for Transformers" (NeurIPS 2023, arXiv 2305.16300), section
3.1. A landmark token closes each block of text. For the scores ``s`` of a query in block ``o`` and the earlier blocks
``b``, with landmark ``L(b)``::

    p_j = exp(s_j) / sum of exp(s_i) over the tokens i of j's block that the query sees, landmarks left out
    g   = softmax over [ s_L(b) for the earlier blocks,  log(sum of exp(s_i) over the query's own block) ]
    w_j = p_j g_block(j),    w = 0 for landmarks themselves,    o = sum_j w_j v_j

The query's own block stands in the upper softmax with what its own tokens would have in one common softmax, so that
without landmarks this is softmax attention. A block that is closed by a landmark but has no token (two landmarks side
by side, or all tokens masked) still takes its share ``g``, which is then lost: rows sum to less than one there.

:func:`landmark_grouped_softmax` is the definition, by groups, as the authors' code has it;
:mod:`foveate.ops.landmark_tiles` the fast form.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidType, InvalidValue, invalid
from ..registry import register
from .backend import choose
from .handwritten import sum_dtype
from .landmark_tiles import KINDS, Softmax, tiled
from .softmax_attention import softmax_attention


@register("op", "landmark_grouped_softmax", system="landmark_attention")
def landmark_grouped_softmax(
    scores: Tensor,
    is_landmark: Tensor,
    *,
    causal: bool = True,
    visible: Tensor | None = None,
    group_dropout: float = 0.0,
) -> Tensor:
    """The weights of landmark attention, by its definition: landmarks may stand anywhere.

    Args:
        scores: ``(batch, heads, length, key_length)``, scaled products of queries and keys.
        is_landmark: bool ``(key_length,)`` or ``(batch, key_length)``: which keys are landmarks.
        causal: query i sees keys up to ``key_length - length + i``: the last query sees every key.
        visible: bool, broadcastable to the scores, True = seen; None: all that causality leaves.
        group_dropout: share of earlier blocks that a query does not look into (the others count more); for training.

    Returns:
        Weights in the shape of the scores, float32 (float64 for float64 scores). The columns of landmarks are zero, and
        rows sum to one, but for the share of blocks without a visible token, which is lost.

    Raises:
        InvalidValue: shapes do not fit, or a dropout outside [0, 1).
        InvalidType: masks that are not bool.
    """
    _check_scores(scores, is_landmark, visible)
    _check_share("group_dropout", group_dropout)
    scores = scores.to(sum_dtype(scores.dtype))
    landmark = is_landmark.expand(len(scores), -1)[:, None, None]
    # A key's block is the number of landmarks before it; a query's own block is its own key's, the last that it sees.
    block = landmark.cumsum(-1) - landmark.long()
    seen = torch.ones_like(scores, dtype=torch.bool) if visible is None else visible.expand_as(scores)
    if causal:
        last = torch.arange(scores.shape[3] - scores.shape[2], scores.shape[3], device=scores.device)
        seen = seen & (torch.arange(scores.shape[3], device=scores.device) <= last[:, None])
        own_block = block[..., last].transpose(-1, -2)
    else:
        own_block = block.expand_as(scores).where(seen, 0).amax(-1, keepdim=True)
    block = block.expand_as(scores)
    own = block == own_block
    seen = seen & ~(landmark & own)
    # Groups: the own block and all landmarks that are seen are the last one, every earlier block is one of its own.
    together = own | landmark
    groups = int(block.max()) + 2 if block.numel() else 2
    group = block.masked_fill(together, groups - 1)
    p = _softmax_by_group(scores.masked_fill(~seen, -math.inf), group, groups)
    gates = p.new_zeros(*p.shape[:-1], groups).scatter_add(-1, block, p * (landmark & seen))
    if group_dropout:
        gates = F.dropout(gates, group_dropout)
    return torch.where(own, p, p * gates.gather(-1, block)).masked_fill(~seen | landmark, 0.0)


def _softmax_by_group(scores: Tensor, group: Tensor, groups: int) -> Tensor:
    """Softmax over the keys of the same group along the last axis; a group without finite scores is zero."""
    shape = (*scores.shape[:-1], groups)
    with torch.no_grad():
        largest = scores.new_full(shape, -math.inf).scatter_reduce(-1, group, scores, "amax")
        largest = largest.masked_fill(largest.isinf(), 0.0)
    e = (scores - largest.gather(-1, group)).exp()
    total = e.new_zeros(shape).scatter_add(-1, group, e)
    return e / total.where(total > 0.5, 1.0).gather(-1, group)  # the largest score alone contributes 1


@register("op", "landmark_attention", system="landmark_attention")
def landmark_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block_size: int | None = None,
    is_landmark: Tensor | None = None,
    mask: Tensor | None = None,
    segments: Tensor | None = None,
    group_dropout: float = 0.0,
    softmax: Softmax = "grouped",
    scale: float | None = None,
) -> Tensor:
    """Causal attention of a sequence with landmarks in it to itself.

    Args:
        q, k: ``(batch, heads, length, d)``.
        v: ``(batch, heads, length, e)``.
        block_size: every ``block_size + 1``-th key is a landmark: the fast way to say where they stand.
        is_landmark: bool ``(length,)`` or ``(batch, length)``: they stand anywhere. Neither: there are none.
        mask: bool ``(batch, length)``, True = a key that may be seen.
        segments: int64 ``(batch, length)``: queries see keys of their own number only.
        group_dropout: of :func:`landmark_grouped_softmax`.
        softmax: "grouped"; "plain": one softmax in which earlier blocks' landmarks are keys as any other; "ignored":
            one softmax without landmarks. In all three a query does not see its own block's landmark.
        scale: factor on the products; None: ``1 / sqrt(d)``.

    Returns:
        ``(batch, heads, length, e)`` in the dtype of ``v``, summed in float32 (float64 for float64 inputs); rows of
        queries that see no key are zeros.

    Raises:
        InvalidValue: shapes that do not fit, an illegal option, or both ways to place landmarks.
        InvalidType: mixed dtypes, or masks that are not bool.
    """
    _check(q, k, v, block_size, is_landmark, mask, segments, softmax)
    _check_share("group_dropout", group_dropout)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if block_size is None and is_landmark is None:
        seen = None if mask is None else mask[:, None, None, :]
        if segments is not None:
            same = (segments[:, :, None] == segments[:, None, :])[:, None]
            seen = same if seen is None else seen & same
        return softmax_attention(q, k, v, causal=True, mask=seen, scale=scale)
    return choose(reference, tiled)(q, k, v, block_size, is_landmark, mask, segments, group_dropout, softmax, scale)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_size: int | None,
    is_landmark: Tensor | None,
    mask: Tensor | None,
    segments: Tensor | None,
    group_dropout: float,
    softmax: Softmax,
    scale: float,
) -> Tensor:
    """The definition, with a matrix of weights per head."""
    precise = sum_dtype(q.dtype)
    if is_landmark is None:
        assert block_size is not None
        is_landmark = torch.arange(q.shape[2], device=q.device) % (block_size + 1) == block_size
    scores = (q.to(precise) @ k.to(precise).transpose(-1, -2)) * scale
    visible = None if mask is None else mask[:, None, None, :]
    if segments is not None:
        same = (segments[:, :, None] == segments[:, None, :])[:, None]
        visible = same if visible is None else visible & same
    weights = landmark_weights(scores, is_landmark, softmax, visible=visible, group_dropout=group_dropout)
    return (weights @ v.to(precise)).to(v.dtype)


def landmark_weights(
    scores: Tensor,
    is_landmark: Tensor,
    softmax: Softmax,
    *,
    visible: Tensor | None = None,
    group_dropout: float = 0.0,
) -> Tensor:
    """The causal weights for each choice of ``softmax``; the other arguments are :func:`landmark_grouped_softmax`'s."""
    if softmax == "grouped":
        return landmark_grouped_softmax(scores, is_landmark, visible=visible, group_dropout=group_dropout)
    length = scores.shape[-1]
    last = torch.arange(length - scores.shape[-2], length, device=scores.device)  # the last that a query sees
    landmark = is_landmark.expand(len(scores), -1)
    seen = torch.arange(length, device=scores.device) <= last[:, None]
    if visible is not None:
        seen = seen & visible
    block = landmark.cumsum(-1) - landmark.long()
    hidden = (
        landmark[:, None, :] & (block[:, None, :] == block[:, last, None]) if softmax == "plain" else landmark[:, None]
    )
    seen = (seen & ~hidden[:, None]).expand_as(scores)
    empty = ~seen.any(-1, keepdim=True)
    return scores.masked_fill(~(seen | empty), -math.inf).softmax(-1).masked_fill(empty, 0.0)


def _check_share(name: str, share: float) -> None:
    if not 0 <= share < 1:
        raise invalid(name, share, "it must be in [0, 1)")


def _check_flags(name: str, flags: Tensor, batch: int, length: int) -> None:
    if flags.dtype != torch.bool:
        raise InvalidType(f"{name} must be bool, not {flags.dtype}.")
    if flags.shape not in ((length,), (batch, length)):
        raise InvalidValue(f"{name} has shape {tuple(flags.shape)}; ({length},) or ({batch}, {length}) is needed.")


def _check_scores(scores: Tensor, is_landmark: Tensor, visible: Tensor | None) -> None:
    if scores.ndim != 4 or not scores.is_floating_point():
        raise InvalidValue(
            f"scores are {scores.dtype} of shape {tuple(scores.shape)}; floating (batch, heads, length, key_length) is "
            f"needed."
        )
    if scores.shape[2] > scores.shape[3]:
        raise InvalidValue(f"scores have shape {tuple(scores.shape)}: more queries than keys; queries are the last.")
    _check_flags("is_landmark", is_landmark, scores.shape[0], scores.shape[3])
    if visible is not None and visible.dtype != torch.bool:
        raise InvalidType(f"visible must be bool (True = seen), not {visible.dtype}.")
    if visible is not None and (
        visible.ndim != 4 or any(a not in (1, b) for a, b in zip(visible.shape, scores.shape, strict=True))
    ):
        raise InvalidValue(f"visible has shape {tuple(visible.shape)}; it must broadcast to {tuple(scores.shape)}.")


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_size: int | None,
    is_landmark: Tensor | None,
    mask: Tensor | None,
    segments: Tensor | None,
    softmax: str,
) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not (q.ndim == k.ndim == v.ndim == 4) or q.shape != k.shape or k.shape[:3] != v.shape[:3] or q.shape[2] < 1:
        raise InvalidValue(f"q and k must be (batch, heads, length, d) and v (batch, heads, length, e), not {shapes}.")
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise InvalidType(f"q, k and v must share one floating dtype, not {q.dtype}, {k.dtype}, {v.dtype}.")
    if softmax not in KINDS:
        raise invalid("softmax", softmax, f"it must be one of {', '.join(KINDS)}")
    if block_size is not None and (not isinstance(block_size, int) or block_size < 1):
        raise invalid("block_size", block_size, "a positive whole number of tokens is needed")
    if block_size is not None and is_landmark is not None:
        raise InvalidValue("block_size and is_landmark both say where landmarks stand: give one of them.")
    if is_landmark is not None:
        _check_flags("is_landmark", is_landmark, q.shape[0], q.shape[2])
    if mask is not None:
        if mask.dtype != torch.bool:
            raise InvalidType(f"mask must be bool (True = visible), not {mask.dtype}.")
        if mask.shape != (q.shape[0], q.shape[2]):
            raise InvalidValue(f"mask has shape {tuple(mask.shape)}; ({q.shape[0]}, {q.shape[2]}) is needed.")
    if segments is not None and segments.shape != (q.shape[0], q.shape[2]):
        raise InvalidValue(f"segments have shape {tuple(segments.shape)}; ({q.shape[0]}, {q.shape[2]}) is needed.")
