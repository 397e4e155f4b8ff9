"""Local attention in blocks: a token reads its own block and so many before it (and behind it).

The local heads of the Routing Transformer (Roy et al. 2021, arXiv 2003.05997, section 4), as the released code and
the PyTorch peer have them: with blocks of b places, a query at position p sees keys of the blocks ``p // b - back``
to ``p // b + ahead``, and only up to itself where it is causal: between ``back b + 1`` and ``(back + 1) b`` tokens.
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
from .set_attention import attend, attend_flops, between, clipped


@register("op", "local_block_attention", system="routing_transformer")
def local_block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block: int,
    *,
    back: int = 1,
    ahead: int = 0,
    causal: bool = True,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    segments: Tensor | None = None,
    scale: float | None = None,
    rel_k: Tensor | None = None,
    rel_v: Tensor | None = None,
) -> Tensor:
    """Attention to the own block and its neighbours.

    Args:
        q: ``(batch, heads, length, d)``.
        k: ``(batch, heads, key_length, d)``; the queries are the last ``length`` tokens of ``key_length``.
        v: ``(batch, heads, key_length, e)``.
        block: places of a block.
        back: blocks that are seen before the own one.
        ahead: blocks that are seen behind it.
        causal: a query sees keys up to its own place; then nothing is ahead.
        mask: bool ``(batch, key_length)``, True = a real token; others are seen by nobody.
        positions: int64 ``(1 or batch, key_length)``, from 0 in every document, by which blocks are counted; None: the
            places themselves. Only with ``causal``, and needed where queries are fewer than keys.
        segments: int64 ``(1 or batch, key_length)``, the document of each token; a query sees its own. Needs positions.
        scale: factor on the products; None: ``1 / sqrt(d)``.
        rel_k: ``(2 m + 1, d)``, embeddings of distances, clipped at m, added to keys; None: none.
        rel_v: ``(2 m + 1, e)``, added to values.

    Returns:
        ``(batch, heads, length, e)`` in the dtype of ``v``; zeros for queries that see nothing.

    Raises:
        InvalidValue: shapes do not fit, a size that is not possible, or arguments that exclude each other.
        InvalidType: mixed dtypes.
    """
    _check(q, k, v, block, back, ahead, causal, positions, segments)
    if (rel_k is None) != (rel_v is None):
        raise InvalidValue("rel_k and rel_v come together: one of them is missing.")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    form = choose(reference, blocked if positions is None else placed)
    return form(q, k, v, block, back, ahead, causal, mask, positions, segments, scale, rel_k, rel_v)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block: int,
    back: int,
    ahead: int,
    causal: bool,
    mask: Tensor | None,
    positions: Tensor | None,
    segments: Tensor | None,
    scale: float,
    rel_k: Tensor | None,
    rel_v: Tensor | None,
) -> Tensor:
    """The definition: the whole matrix, in float32 (float64 for float64 input)."""
    precise, length, keys = sum_dtype(q.dtype), q.shape[2], k.shape[2]
    token = torch.arange(keys, device=q.device)
    number = (token[None] if positions is None else positions) // block
    gap = number[:, -length:, None] - number[:, None, :]
    visible = (gap <= back) & (gap >= -ahead)
    distance = token - token[-length:, None]
    if causal:
        visible = visible & (distance <= 0)
    if segments is not None:
        visible = visible & (segments[:, -length:, None] == segments[:, None, :])
    if mask is not None:
        visible = visible & mask[:, None, :]
    visible = visible[:, None]
    scores = q.to(precise) @ k.to(precise).transpose(-1, -2)
    row = clipped(distance, rel_k)
    if rel_k is not None and row is not None:
        scores = scores + torch.einsum("bhld,lkd->bhlk", q.to(precise), rel_k.to(precise)[row])
    empty = ~visible.any(-1, keepdim=True)
    weights = (scores * scale).masked_fill(~(visible | empty), -math.inf).softmax(-1).masked_fill(empty, 0.0)
    o = weights @ v.to(precise)
    if rel_v is not None and row is not None:
        o = o + torch.einsum("bhlk,lke->bhle", weights, rel_v.to(precise)[row])
    return o.to(v.dtype)


def blocked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block: int,
    back: int,
    ahead: int,
    causal: bool,
    mask: Tensor | None,
    positions: Tensor | None,
    segments: Tensor | None,
    scale: float,
    rel_k: Tensor | None,
    rel_v: Tensor | None,
) -> Tensor:
    """The fast form where places are positions; same arguments as :func:`reference`."""
    length = q.shape[2]
    if length <= block:
        block, back, ahead = length, 0, 0
    blocks = -(-length // block)
    queries = _cut(q, block, blocks, 0, 0)
    keys, values = (_neighbours(_cut(x, block, blocks, back, ahead), blocks, back + 1 + ahead) for x in (k, v))
    distance = between(block, keys.shape[2], ahead * block, q.device)
    visible = None
    if length > block or mask is not None:
        reach = torch.arange(-back * block, (1 + ahead) * block, device=q.device)
        reach = reach + torch.arange(blocks, device=q.device)[:, None] * block
        visible = ((reach >= 0) & (reach < length))[None, :, None, :]
        if causal:
            visible, causal = visible & (distance <= 0), False
    if mask is not None:
        rows = mask[:, None].expand(-1, q.shape[1], -1).flatten(0, 1)[..., None]
        real = F.pad(rows, (0, 0, back * block, (blocks + ahead) * block - length))
        real = _neighbours(real.unflatten(1, (-1, block)), blocks, back + 1 + ahead)
        visible = real.transpose(2, 3) if visible is None else visible & real.transpose(2, 3)
    o = attend(
        queries, keys, values, scale=scale, causal=causal, visible=visible,
        distances=clipped(distance, rel_k), rel_k=rel_k, rel_v=rel_v,
    )  # fmt: skip
    return o.flatten(1, 2)[:, :length].unflatten(0, q.shape[:2])


def placed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block: int,
    back: int,
    ahead: int,
    causal: bool,
    mask: Tensor | None,
    positions: Tensor | None,
    segments: Tensor | None,
    scale: float,
    rel_k: Tensor | None,
    rel_v: Tensor | None,
) -> Tensor:
    """The fast form where positions are given; same arguments as :func:`reference`.

    Queries are cut where they stand, and read as far back as the rule can reach from there.
    """
    assert positions is not None
    length, (batch, heads) = q.shape[2], q.shape[:2]
    chunk = min(block, length)
    chunks, reach = -(-length // chunk), _reach(block, back, chunk, length)
    keep = min(k.shape[2], length + reach)
    k, v = k[:, :, -keep:], v[:, :, -keep:]
    missing, spare = length + reach - keep, chunks * chunk - length
    queries = _cut(q, chunk, chunks, 0, 0)
    keys, values = (_windows(F.pad(x.flatten(0, 1), (0, 0, missing, spare)), chunk, reach, chunks) for x in (k, v))
    tables = [positions, torch.zeros_like(positions) if segments is None else segments]
    if mask is not None:
        tables.append(mask.long())
    at, number, *real = (
        _windows(F.pad(x[:, -keep:], (missing, spare), value=-1)[..., None], chunk, reach, chunks)[..., 0]
        for x in torch.broadcast_tensors(*tables)
    )
    distance = between(chunk, chunk + reach, 0, q.device)
    first = (at[:, :, reach:] // block - back) * block  # the first position that each query sees
    visible = (distance <= 0) & (at[:, :, None, :] >= first[..., None])
    visible = visible & (number[:, :, None, :] == number[:, :, reach:, None])
    if real:
        visible = visible & (real[0] > 0)[:, :, None, :]
    if visible.shape[0] != 1:
        visible = visible[:, None].expand(-1, heads, -1, -1, -1).flatten(0, 1)
    o = attend(
        queries, keys, values, scale=scale, visible=visible,
        distances=clipped(distance, rel_k), rel_k=rel_k, rel_v=rel_v,
    )  # fmt: skip
    return o.flatten(1, 2)[:, :length].unflatten(0, (batch, heads))


def local_block_flops(
    length: int, block: int, back: int, ahead: int, heads: int, d: int, e: int, batch: int = 1, relative: bool = False
) -> int:
    """FLOPs of the products of :func:`blocked`."""
    if length <= block:
        block, back, ahead = length, 0, 0
    sets = batch * heads * -(-length // block)
    return attend_flops(sets, block, (back + 1 + ahead) * block, d, e, relative)


def _reach(block: int, back: int, chunk: int, length: int) -> int:
    """Tokens before a chunk that its queries may see; a multiple of the chunk where there are several."""
    longest = (back + 1) * block - 1
    return longest if length <= chunk else -(-longest // chunk) * chunk


def _cut(x: Tensor, block: int, blocks: int, back: int, ahead: int) -> Tensor:
    """``(rows, back + blocks + ahead, block, width)`` of ``(batch, heads, length, width)``, zeros around it."""
    spare = (blocks + ahead) * block - x.shape[2]
    return F.pad(x.flatten(0, 1), (0, 0, back * block, spare)).unflatten(1, (-1, block))


def _neighbours(x: Tensor, blocks: int, count: int) -> Tensor:
    """``(rows, blocks, count * block, width)``: every block with those behind it."""
    return torch.cat([x[:, i : i + blocks] for i in range(count)], 2) if count > 1 else x


def _windows(x: Tensor, chunk: int, reach: int, chunks: int) -> Tensor:
    """``(rows, chunks, reach + chunk, width)`` of ``(rows, reach + chunks * chunk, width)``."""
    if chunks == 1:
        return x[:, None]
    return _neighbours(x.unflatten(1, (-1, chunk)), chunks, reach // chunk + 1)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block: int,
    back: int,
    ahead: int,
    causal: bool,
    positions: Tensor | None,
    segments: Tensor | None,
) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not isinstance(block, int) or block < 1:
        raise invalid("block", block, "a positive whole number is needed")
    for name, count in (("back", back), ("ahead", ahead)):
        if not isinstance(count, int) or count < 0:
            raise invalid(name, count, "a whole number, 0 or more, is needed")
    if causal and ahead:
        raise invalid("ahead", ahead, "nothing is ahead where causal=True")
    if not (q.ndim == k.ndim == v.ndim == 4):
        raise InvalidValue(f"q, k and v must have 4 axes (batch, heads, length, width), not {shapes}.")
    if q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3] or q.shape[-1] != k.shape[-1]:
        raise InvalidValue(f"q, k and v must agree in batch and heads, q and k in width, k and v in length: {shapes}.")
    if not 1 <= q.shape[2] <= k.shape[2]:
        raise InvalidValue(f"the queries are the last of the keys ({shapes}): at least one, and no more than keys.")
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise InvalidType(f"q, k and v must share one floating dtype, not {q.dtype}, {k.dtype}, {v.dtype}.")
    if positions is None and (segments is not None or q.shape[2] != k.shape[2]):
        raise InvalidValue("positions are needed with segments, and where queries are fewer than keys.")
    if positions is not None:
        if not causal:
            raise InvalidValue("positions go with causal=True only.")
        if positions.ndim != 2 or positions.shape[1] != k.shape[2] or positions.shape[0] not in (1, k.shape[0]):
            raise InvalidValue(
                f"positions have shape {tuple(positions.shape)}; (1 or {k.shape[0]}, {k.shape[2]}) is needed."
            )
