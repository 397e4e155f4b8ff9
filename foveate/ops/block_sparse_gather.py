"""The torch form of block-sparse attention: the kept keys of a few query blocks at a time, gathered side by side.

Three kinds of keys stand in a row for each query block: those of its kept blocks, then the sinks and the window's as
far as no kept block has them. The backward pass, by hand, gathers again and keeps queries, keys, values, outputs and
the logarithms of sums; what it finds is added to where it was gathered from.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .handwritten import Results, handwritten, sum_dtype
from .native import through_autograd

#: Numbers (gathered keys and values, and scores) that are computed at once, about: what stays in a processor's cache.
CACHED = 2**20


def listed(blocks: Tensor, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Ascending numbers of kept blocks, int32 ``(..., rows, most)``, and how many there are, int32 ``(..., rows)``."""
    counts = blocks.sum(-1, dtype=torch.int32)
    if most is None:
        most = blocks.shape[-1] if torch.compiler.is_compiling() or blocks.is_meta else max(1, int(counts.max()))
    order = torch.argsort((~blocks).to(torch.uint8), stable=True, dim=-1)[..., :most]
    return order.to(torch.int32), counts.clamp(max=most)


def marked(indices: Tensor, counts: Tensor, key_blocks: int) -> Tensor:
    """The bool matrix of lists of blocks."""
    read = torch.arange(indices.shape[-1], device=indices.device) < counts[..., None]
    there = torch.zeros(*counts.shape, key_blocks + 1, dtype=torch.bool, device=indices.device)
    return there.scatter(-1, torch.where(read, indices, key_blocks).long(), True)[..., :-1]


class _Plan(NamedTuple):
    """What all tiles of a call share.

    Attributes:
        indices, counts: of kept blocks, ``(batch or 1, heads or 1, query_blocks[, most])``.
        group: heads of queries that are computed in one product, for they share keys and blocks.
        heads: for each of the products, its head of keys.
    """

    indices: Tensor
    counts: Tensor
    mask: Tensor | None
    bias: Tensor
    batch: int
    length: int
    keys: int
    key_heads: int
    group: int
    heads: Tensor
    block_q: int
    block_k: int
    causal: bool
    window: int
    sinks: int
    scale: float
    sigmoid: bool


class _Tile(NamedTuple):
    """A stretch of query blocks.

    Attributes:
        rows: which queries.
        numbers: int64 ``(batch or 1, heads or 1, query_blocks, most)``, kept blocks; 0 where there is none.
        places: int64 ``(batch, products, query_blocks, gathered)``, rows of flattened keys.
        seen: bool, broadcastable to ``(batch, products, query_blocks, group, block_q, gathered)``.
    """

    rows: slice
    numbers: Tensor
    places: Tensor
    seen: Tensor


def _plan(
    q: Tensor, k: Tensor, blocks: Tensor, counts: Tensor | None, mask: Tensor | None, bias: Tensor, *rest: Any
) -> _Plan:
    block_q, block_k, causal, window, sinks, scale, sigmoid, _ = rest
    (batch, heads, length), (key_heads, keys) = q.shape[:3], k.shape[1:3]
    last = (torch.arange(blocks.shape[2], device=q.device) + 1).mul(block_q).clamp(max=length) + (keys - length - 1)
    if counts is None:
        if causal:  # what lies behind all queries of a block is not gathered
            first = torch.arange(blocks.shape[3], device=q.device) * block_k
            blocks = blocks & (first <= last[:, None])
        indices, many = listed(blocks)
    else:
        indices, many = blocks, counts
        if causal:
            read = torch.arange(indices.shape[3], device=q.device) < counts[..., None]
            many = (read & (indices.long() * block_k <= last[:, None])).sum(-1)
    group = heads // key_heads if indices.shape[1] == 1 else 1
    each = torch.arange(heads // group, device=q.device) // (heads // key_heads // group)
    bias = bias.to(sum_dtype(q.dtype)).expand(heads).view(heads // group, 1, group, 1, 1)
    given = (mask, bias, batch, length, keys, key_heads, group, each)
    return _Plan(indices, many, *given, block_q, block_k, causal, window, sinks, scale, sigmoid)


def _tiles(plan: _Plan, width: int) -> list[slice]:
    """Stretches of query blocks; ``width``: of keys and values together."""
    blocks = plan.indices.shape[2]
    if torch.compiler.is_compiling() or plan.counts.is_meta:
        return [slice(0, blocks)]
    more = plan.sinks + (plan.block_q + plan.window if plan.window else 0)
    gathered = plan.counts.amax((0, 1)).mul(plan.block_k).add(more).tolist()
    each = plan.batch * len(plan.heads) * (width + 2 * plan.group * plan.block_q)
    tiles, start = [], 0
    while start < blocks:
        stop, most = start, 0
        while stop < blocks:
            most = max(most, gathered[stop])
            if stop > start and (stop + 1 - start) * most * each > CACHED:
                break
            stop += 1
        tiles.append(slice(start, stop))
        start = stop
    return tiles


def _tile(plan: _Plan, blocks: slice) -> _Tile:
    device, keys = plan.indices.device, plan.keys
    counts = plan.counts[:, :, blocks, None]
    most = plan.indices.shape[3] if torch.compiler.is_compiling() or counts.is_meta else max(1, int(counts.max()))
    read = torch.arange(most, device=device) < counts
    numbers = plan.indices[:, :, blocks, :most].long()
    sorted_numbers = torch.where(read, numbers, 2**62).contiguous()
    numbers = torch.where(read, numbers, 0)

    def kept(place: Tensor) -> Tensor:
        """Whether keys ``(query_blocks, n)`` lie in kept blocks."""
        wanted = (place // plan.block_k).expand(*counts.shape[:3], -1).contiguous()
        at = torch.searchsorted(sorted_numbers, wanted).clamp(max=most - 1)
        return sorted_numbers.gather(-1, at) == wanted

    inside = numbers[..., None] * plan.block_k + torch.arange(plan.block_k, device=device)
    there = [inside.flatten(-2)]
    open_ = [(read[..., None] & (inside < keys)).flatten(-2)]
    first = torch.arange(blocks.start, blocks.stop, device=device)[:, None] * plan.block_q + (keys - plan.length)
    if plan.sinks:
        sinks = torch.arange(min(plan.sinks, keys), device=device).expand(len(first), -1)
        there.append(sinks.expand(*counts.shape[:3], -1))
        open_.append(~kept(sinks))
    here = first + torch.arange(plan.block_q, device=device)
    near = 0
    if plan.window:
        near = plan.block_q + plan.window - 1
        stretch = first - plan.window + 1 + torch.arange(near, device=device)
        there.append(stretch.expand(*counts.shape[:3], -1))
        open_.append((stretch >= plan.sinks) & (stretch < keys) & ~kept(stretch))
    place, seen = torch.cat(there, -1), torch.cat(open_, -1)
    place = torch.where(seen, place, 0)
    if plan.mask is not None:
        mask = plan.mask[:, None, None].expand(-1, *place.shape[1:3], -1)
        seen = seen & mask.gather(-1, place.expand(plan.batch, -1, -1, -1))
    seen, ahead = seen[..., None, :], place[..., None, :]
    if plan.causal:
        seen = seen & (ahead <= here[..., None])
    if blocks.stop * plan.block_q > plan.length:  # queries that are not there
        seen = seen & (here < keys)[..., None]
    if near:
        age = here[..., None] - ahead[..., -near:]
        far = (age < 0) | (age >= plan.window)
        seen = seen.expand(torch.broadcast_shapes(seen.shape, (*far.shape[:-1], 1))).clone()
        seen[..., -near:] &= ~far
    samples = torch.arange(plan.batch, device=device).view(-1, 1, 1, 1)
    base = (samples * plan.key_heads + plan.heads.view(-1, 1, 1)) * keys
    rows = slice(blocks.start * plan.block_q, blocks.stop * plan.block_q)
    return _Tile(rows, numbers, base + place, seen.unsqueeze(3))


def _rows(x: Tensor, plan: _Plan, tile: _Tile, real: torch.dtype) -> Tensor:
    """``(batch, products, query_blocks, group * block_q, width)`` of ``(batch, heads, length, width)``."""
    x = x[:, :, tile.rows].to(real)
    x = F.pad(x, (0, 0, 0, tile.rows.stop - tile.rows.start - x.shape[2]))
    x = x.unflatten(1, (len(plan.heads), plan.group)).unflatten(3, (-1, plan.block_q))
    return x.transpose(2, 3).flatten(3, 4)


def _numbers(x: Tensor, plan: _Plan, tile: _Tile, real: torch.dtype) -> Tensor:
    """As :func:`_rows`, of ``(batch, heads, length)``."""
    return _rows(x[..., None], plan, tile, real)[..., 0]


def _put(to: Tensor, x: Tensor, plan: _Plan, tile: _Tile) -> None:
    """The way back of :func:`_rows`."""
    x = x.unflatten(3, (plan.group, plan.block_q)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    to[:, :, tile.rows] = x[:, :, : to.shape[2] - tile.rows.start].to(to.dtype)


def _scores(q: Tensor, k: Tensor, plan: _Plan, tile: _Tile) -> Tensor:
    """``(batch, products, query_blocks, group, block_q, gathered)``, -inf where nothing is seen."""
    scores = (q @ k.transpose(-1, -2)).mul_(plan.scale).unflatten(3, (plan.group, plan.block_q))
    if plan.sigmoid:
        scores += plan.bias
    return scores.masked_fill_(~tile.seen, -math.inf)


def _forward(q: Tensor, k: Tensor, v: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    plan, real = _plan(q, k, *given), sum_dtype(q.dtype)
    out, lse, largest = (torch.zeros_like(m) for m in shapes(q, k, v, *given))
    flat_k, flat_v = (x.reshape(-1, x.shape[-1]) for x in (k, v))
    for blocks in _tiles(plan, q.shape[3] + v.shape[3]):
        tile = _tile(plan, blocks)
        p = _scores(_rows(q, plan, tile, real), flat_k[tile.places].to(real), plan, tile)
        if plan.sigmoid:
            p = p.sigmoid_()
        else:
            most = p.amax(-1, keepdim=True)
            p = p.sub_(most.masked_fill(most == -math.inf, 0.0)).exp_()
            total = p.sum(-1, keepdim=True)
            p = p.div_(total.masked_fill(total == 0, 1.0))
            _put(lse[..., None], (most + total.log()).flatten(3, 4), plan, tile)
            if largest.numel():
                n = tile.numbers.shape[-1]
                of_blocks = p[..., : n * plan.block_k].unflatten(-1, (n, plan.block_k)).amax((4, 6)).transpose(2, 3)
                numbers = tile.numbers.unsqueeze(2).expand(plan.batch, len(plan.heads), plan.group, -1, -1)
                part = largest[:, :, blocks]
                part.scatter_reduce_(3, numbers.flatten(1, 2), of_blocks.flatten(1, 2), "amax")
        _put(out, p.flatten(3, 4) @ flat_v[tile.places].to(real), plan, tile)
    return out, lse, largest


def _backward(
    grad: Tensor, grad_lse: Tensor, grad_largest: Tensor, q: Tensor, k: Tensor, v: Tensor, *more: Any
) -> Results:
    *given, out, lse, _ = more
    if torch.is_grad_enabled():  # to be differentiated once more: by what autograd sees through
        return through_definition(grad, grad_lse, q, k, v, *given)
    plan, real = _plan(q, k, *given), sum_dtype(q.dtype)
    flat_k, flat_v = (x.reshape(-1, x.shape[-1]) for x in (k, v))
    grad_q = torch.zeros_like(q, dtype=real)
    grad_k, grad_v = (torch.zeros_like(x, dtype=real) for x in (flat_k, flat_v))
    grad_bias = torch.zeros(q.shape[1], dtype=real, device=q.device)
    for blocks in _tiles(plan, q.shape[3] + v.shape[3]):
        tile = _tile(plan, blocks)
        rows, pull, keys = _rows(q, plan, tile, real), _rows(grad, plan, tile, real), flat_k[tile.places].to(real)
        scores = _scores(rows, keys, plan, tile)
        inner = pull @ flat_v[tile.places].to(real).transpose(-1, -2)
        if plan.sigmoid:
            p = scores.sigmoid_().flatten(3, 4)
            inner = torch.ops.aten.sigmoid_backward(inner, p)
            grad_bias += inner.unflatten(3, (plan.group, -1)).sum((0, 2, 4, 5)).flatten()
        else:
            base = _numbers(lse, plan, tile, real).unsqueeze(-1)
            p = scores.flatten(3, 4).sub_(base.masked_fill(base == -math.inf, 0.0)).exp_()
            along = (pull * _rows(out, plan, tile, real)).sum(-1) - _numbers(grad_lse, plan, tile, real)
            inner = inner.sub_(along[..., None]).mul_(p)
        _put(grad_q, inner @ keys, plan, tile)
        where = tile.places.flatten()
        grad_k.index_add_(0, where, (inner.transpose(-1, -2) @ rows).flatten(0, -2))
        grad_v.index_add_(0, where, (p.transpose(-1, -2) @ pull).flatten(0, -2))
    bias = given[3]
    grad_bias = grad_bias.sum().expand(bias.shape) if bias.numel() == 1 else grad_bias
    return grad_q * plan.scale, (grad_k * plan.scale).view(k.shape), grad_v.view(v.shape), None, None, None, grad_bias


def through_definition(grad: Tensor, grad_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *given: Any) -> Results:
    """Gradients that can be differentiated once more; arguments as ``reference`` has them, behind two gradients."""
    from .block_sparse_attention import reference  # which imports this file

    blocks, counts, mask, bias, *rest = given
    sigmoid = rest[6]

    def definition(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        o, lse, _ = reference(q, k, v, blocks, counts, mask, bias, *rest)
        return (o,) if sigmoid else (o, lse)

    gradients = (grad,) if sigmoid else (grad, grad_lse)
    *found, of_bias = through_autograd(definition, (q, k, v, bias), gradients)
    return *found, None, None, None, of_bias


def shapes(q: Tensor, k: Tensor, v: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the results; arguments as ``reference`` has them."""
    real, (blocks, *_) = sum_dtype(q.dtype), given
    *_, block_k, _, _, _, _, sigmoid, block_max = given
    lse = torch.empty(q.shape[:3] if not sigmoid else (0,), dtype=real, device=q.device)
    shape = (*q.shape[:2], blocks.shape[2], -(-k.shape[2] // block_k)) if block_max else (0,)
    return (
        torch.empty((*q.shape[:3], v.shape[3]), dtype=v.dtype, device=v.device),
        lse,
        torch.empty(shape, dtype=real, device=q.device),
    )


def visible_pairs(
    q: Tensor,
    k: Tensor,
    blocks: Tensor,
    counts: Tensor | None,
    mask: Tensor | None,
    block_q: int,
    block_k: int,
    causal: bool,
    window: int,
    sinks: int,
) -> int:
    """How many pairs of all samples and heads see each other; arguments as ``reference`` has them."""
    plan = _plan(
        q, k, blocks, counts, mask, q.new_zeros(()), block_q, block_k, causal, window, sinks, 1.0, False, False
    )
    pairs = 0
    for stretch in _tiles(plan, 0):
        seen = _tile(plan, stretch).seen.expand(plan.batch, len(plan.heads), -1, plan.group, block_q, -1)
        pairs += int(seen.transpose(2, 3).flatten(3, 4)[..., : plan.length - stretch.start * block_q, :].sum())
    return pairs


#: As :func:`foveate.ops.block_sparse_attention.reference`.
gathered = handwritten(
    "block_sparse_attention",
    "Tensor q, Tensor k, Tensor v, Tensor blocks, Tensor? counts, Tensor? mask, Tensor bias, int block_q, int block_k, "
    "bool causal, int window, int sinks, float scale, bool sigmoid, bool block_max",
    outputs=3,
    extras=0,
    forward=_forward,
    backward=_backward,
    shapes=shapes,
    reads_outputs=True,
)
