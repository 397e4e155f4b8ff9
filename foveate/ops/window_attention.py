"""Sliding-window attention: causal softmax attention to the last ``window`` tokens and to sinks that all queries see.

Child et al., "Generating Long Sequences with Sparse Transformers" (2019, arXiv 1904.10509) and Beltagy et al.,
"Longformer" (2020, arXiv 2004.05150, section 3.1)::

    o_t = softmax(q_t [K_sinks | k_{t-w+1} ... k_t]^T scale) [V_sinks | v_{t-w+1} ... v_t]

The fast form cuts the sequence into blocks as long as the window, so that a query's keys lie in its own block and the
one before: time and memory are O(length * window), and the products are those of
:func:`~foveate.ops.softmax_attention.softmax_attention`, its native kernel included.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidType, InvalidValue, invalid
from ..registry import register
from .backend import choose
from .softmax_attention import reference as softmax_reference
from .softmax_attention import softmax_attention


@register("op", "window_attention", system="window_attention")
def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    *,
    sink_k: Tensor | None = None,
    sink_v: Tensor | None = None,
    segments: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Causal sliding-window attention.

    Args:
        q: ``(batch, heads, length, d)``.
        k: ``(batch, heads, key_length, d)``; the queries are the last ``length`` tokens of ``key_length``.
        v: ``(batch, heads, key_length, e)``.
        window: number of tokens that a query sees, its own among them.
        sink_k: ``(heads, sinks, d)``, keys that every query sees beside its window; None: there are none.
        sink_v: ``(heads, sinks, e)``, their values.
        segments: int64 ``(batch, key_length)``, the document of each key, from 0; a query sees its own document and the
            sinks. What has a negative number is seen by nobody.
        scale: factor on the products; None: ``1 / sqrt(d)``.

    Returns:
        ``(batch, heads, length, e)`` in the dtype of ``v``.

    Raises:
        InvalidValue: shapes do not fit, more queries than keys, or a window below 1.
        InvalidType: mixed dtypes, or segments that are not whole numbers.
    """
    _check(q, k, v, window, sink_k, sink_v, segments)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return choose(reference, blocked)(q, k, v, window, sink_k, sink_v, segments, scale)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    sink_k: Tensor | None,
    sink_v: Tensor | None,
    segments: Tensor | None,
    scale: float,
) -> Tensor:
    """The definition: a band of the whole matrix, in float32 (float64 for float64 input)."""
    length, keys = q.shape[2], k.shape[2]
    age = torch.arange(keys - length, keys, device=q.device)[:, None] - torch.arange(keys, device=q.device)
    visible = ((age >= 0) & (age < window))[None, None]
    if segments is not None:
        visible = visible & _same(segments[:, -length:], segments)
    if sink_k is not None and sink_v is not None:
        k, v = _before(sink_k, k), _before(sink_v, v)
        visible = F.pad(visible, (sink_k.shape[1], 0), value=True)
    return softmax_reference(q, k, v, False, visible, None, scale)


def blocked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    sink_k: Tensor | None,
    sink_v: Tensor | None,
    segments: Tensor | None,
    scale: float,
) -> Tensor:
    """The fast form; same arguments as :func:`reference`."""
    length = q.shape[2]
    reach = length + window - 1  # what no query sees is left out
    k, v = k[:, :, -reach:], v[:, :, -reach:]
    segments = None if segments is None else segments[:, -reach:]
    past = k.shape[2] - length
    if k.shape[2] <= window:
        return _whole(q, k, v, sink_k, sink_v, segments, scale)
    if segments is None and past not in (0, window - 1):  # a part of the first block's past is missing
        segments = torch.zeros(1, k.shape[2], dtype=torch.int64, device=q.device)
    blocks = -(-length // window)
    spare, missing = blocks * window - length, window - past
    q, k, v = F.pad(q, (0, 0, 0, spare)), F.pad(k, (0, 0, missing, spare)), F.pad(v, (0, 0, missing, spare))
    q, k, v = (x.unflatten(2, (-1, window)).transpose(1, 2) for x in (q, k, v))  # (batch, blocks, heads, window, width)
    band = window_band(window, q.device)[None, None]
    if segments is not None:
        numbers = F.pad(segments, (missing, spare), value=-1).unflatten(1, (-1, window))
        own, read = numbers[:, 1:], torch.cat([numbers[:, :-1], numbers[:, 1:]], 2)
        visible = band & _same(own.flatten(0, 1), read.flatten(0, 1))
        if segments.shape[0] != q.shape[0]:  # one document for all
            visible = visible.repeat(q.shape[0], 1, 1, 1)
        return _join([_blocks(q, k, v, sink_k, sink_v, visible, scale)], length)
    if past:
        return _join([_blocks(q, k, v, sink_k, sink_v, band, scale)], length)
    # Nothing stands before the first block: by itself, so that all others share one mask. Copied, for views would keep
    # whole sequences for the backward pass.
    own_q, own_k, own_v = (x.contiguous() for x in (q[:, 0], k[:, 1], v[:, 1]))
    first = _whole(own_q, own_k, own_v, sink_k, sink_v, None, scale)[:, None]
    rest = _blocks(q[:, 1:], k[:, 1:], v[:, 1:], sink_k, sink_v, band, scale)
    return _join([first, rest], length)


def window_band(window: int, device: torch.device | str | None = None) -> Tensor:
    """Bool ``(window, 2 * window)``: what each query of a block sees of the block before and of its own."""
    age = torch.arange(window, device=device)[:, None] + window - torch.arange(2 * window, device=device)
    return (age >= 0) & (age < window)


def window_flops(
    length: int, key_length: int, window: int, sinks: int, heads: int, key_width: int, value_width: int, batch: int = 1
) -> int:
    """FLOPs of the products of :func:`blocked`."""
    past = min(key_length - length, window - 1)
    if past + length <= window:
        pairs = length * (past + length + sinks)
    else:
        blocks = -(-length // window)
        pairs = blocks * window * (2 * window + sinks) - (0 if past else window**2)
    return 2 * batch * heads * pairs * (key_width + value_width)


def _whole(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink_k: Tensor | None,
    sink_v: Tensor | None,
    segments: Tensor | None,
    scale: float,
) -> Tensor:
    """All keys up to its own are in every query's window."""
    visible = None
    if segments is not None:
        visible = _same(segments[:, -q.shape[2] :], segments)
    if sink_k is not None and sink_v is not None:
        k, v = _before(sink_k, k), _before(sink_v, v)
        visible = None if visible is None else F.pad(visible, (sink_k.shape[1], 0), value=True)
    return softmax_attention(q, k, v, causal=True, mask=visible, scale=scale)


def _blocks(
    q: Tensor, k: Tensor, v: Tensor, sink_k: Tensor | None, sink_v: Tensor | None, visible: Tensor, scale: float
) -> Tensor:
    """Blocks ``(batch, blocks, heads, window, width)`` of queries read two of ``blocks + 1`` blocks of keys each."""
    pairs = []
    for x, sink in ((k, sink_k), (v, sink_v)):
        parts = [x[:, :-1], x[:, 1:]]
        if sink is not None:
            parts.insert(0, sink.to(x.dtype).expand(*q.shape[:2], -1, -1, -1))
        pairs.append(torch.cat(parts, 3).flatten(0, 1))
    if sink_k is not None:
        visible = F.pad(visible, (sink_k.shape[1], 0), value=True)
    o = softmax_attention(q.flatten(0, 1), *pairs, mask=visible, scale=scale)
    return o.unflatten(0, q.shape[:2])


def _join(parts: list[Tensor], length: int) -> Tensor:
    """``(batch, heads, length, width)`` of stretches of blocks; laid out so that putting heads together copies less."""
    o = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
    return o.transpose(2, 3).flatten(1, 2)[:, :length].transpose(1, 2)


def _same(own: Tensor, read: Tensor) -> Tensor:
    """Bool ``(batch, 1, queries, keys)``: of one document."""
    return ((own[:, :, None] == read[:, None, :]) & (read >= 0)[:, None, :])[:, None]


def _before(sink: Tensor, x: Tensor) -> Tensor:
    return torch.cat([sink.to(x.dtype).expand(x.shape[0], -1, -1, -1), x], 2)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    sink_k: Tensor | None,
    sink_v: Tensor | None,
    segments: Tensor | None,
) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not isinstance(window, int) or window < 1:
        raise invalid("window", window, "a positive whole number is needed")
    if not (q.ndim == k.ndim == v.ndim == 4):
        raise InvalidValue(f"q, k and v must have 4 axes (batch, heads, length, width), not {shapes}.")
    if q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3] or q.shape[-1] != k.shape[-1]:
        raise InvalidValue(f"q, k and v must agree in batch and heads, q and k in width, k and v in length: {shapes}.")
    if not 1 <= q.shape[2] <= k.shape[2]:
        raise InvalidValue(f"the queries are the last of the keys ({shapes}): at least one, and no more than keys.")
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise InvalidType(f"q, k and v must share one floating dtype, not {q.dtype}, {k.dtype}, {v.dtype}.")
    if (sink_k is None) != (sink_v is None):
        raise InvalidValue("sink_k and sink_v come together: one of them is missing.")
    if sink_k is not None and sink_v is not None:
        wanted = ((q.shape[1], sink_k.shape[-2], q.shape[3]), (q.shape[1], sink_k.shape[-2], v.shape[3]))
        if (tuple(sink_k.shape), tuple(sink_v.shape)) != wanted:
            raise InvalidValue(
                f"sink_k has shape {tuple(sink_k.shape)} and sink_v {tuple(sink_v.shape)}; "
                f"({q.shape[1]}, sinks, width) is needed, the widths {q.shape[3]} and {v.shape[3]}."
            )
    if segments is not None:
        if segments.is_floating_point() or segments.dtype == torch.bool:
            raise InvalidType(f"segments must be int64, not {segments.dtype}.")
        if segments.shape != (k.shape[0], k.shape[2]):
            raise InvalidValue(
                f"segments have shape {tuple(segments.shape)}; the keys need {(k.shape[0], k.shape[2])}."
            )
