"""HiP attention: softmax attention to the blocks of keys that a tree search finds for each block of queries.

"HiP Attention: Sparse Sub-Quadratic Attention with Hierarchical Attention Pruning" (arXiv 2406.09827; ICLR 2025 under
another title). No parameters: keys of a trained model that lie side by side score alike, so that one of them can stand
for many, and log2(T / k) rounds of O(k) products find about the k best of T keys (:mod:`foveate.ops.hip_search`). Exact
attention to these, to a window and to sinks follows: O(T log T) time, O(T) memory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InvalidType, InvalidValue, invalid
from ..registry import register
from . import hip_search
from .backend import current_backend
from .block_sparse_attention import BlockIndices, block_sparse_attention
from .handwritten import sum_dtype
from .hip_search import HipSearch
from .softmax_attention import softmax_attention


@register("op", "hip_mask", system="hip_attention")
def hip_mask(
    q: Tensor,
    k: Tensor,
    search: HipSearch = HipSearch(),  # noqa: B008 (frozen)
    *,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> BlockIndices:
    """The blocks of keys that each block of queries keeps, without gradients.

    With key groups, those at the end of what may be searched are left out until they are complete.

    Args:
        q: ``(batch, heads, length, d)``; the queries are the last ``length`` of the keys.
        k: ``(batch, key_heads, key_length, d)``; key_heads divides heads, of which neighbours share one of keys.
        search: how to search; its defaults are the published ones of the code's first version, with the paper's
            representative.
        mask: bool ``(batch, key_length)``, True = a real token; padding decides nothing.
        generator: of "random" representatives; None: torch's global one.

    Returns:
        Numbers of blocks of ``search.block`` keys, int32 ``(batch, heads, query_blocks, at most search.most)``, and how
        many there are, for blocks of ``search.block_size_q`` queries.

    Raises:
        InvalidValue: shapes that do not fit, more queries than keys, heads that head groups do not divide, or inputs
            with gradients, "random" representatives and no generator: what was kept could not be found again.
        InvalidType: mixed dtypes, or a mask that is not bool.
    """
    _check(q, k, k, search, mask, generator)
    (batch, heads, length), keys = q.shape[:3], k.shape[2]
    q, k = q.detach(), k.detach()
    ranges = hip_search.plan(search, length, keys, mask, q.device)
    if not any(ranges.rounds) and mask is None:
        return _all_blocks(ranges, batch, heads)
    rows = hip_search.deciding_rows(search, length, q.device)
    shown_rows = shown_keys = None
    if mask is not None:
        shown_rows, shown_keys = mask[:, keys - length :][:, rows], hip_search.seen_units(search, mask)
    units = hip_search.units(search, k)
    found = hip_search.find(
        search, q[:, :, rows], units, ranges, shown_rows=shown_rows, shown_keys=shown_keys, generator=generator
    )
    return BlockIndices(*found)


@register("op", "hip_attention", system="hip_attention")
def hip_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    search: HipSearch = HipSearch(),  # noqa: B008 (frozen)
    *,
    num_sinks: int = 16,
    dense_queries: int = 0,
    scale: float | None = None,
    mask: Tensor | None = None,
    kept: BlockIndices | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Causal attention to the keys that :func:`hip_mask` keeps, to a window and to the first keys.

    A query reads the kept blocks as far as they are not later than it, the last ``search.reach`` keys up to its own
    (at least as many as a block of keys has), and the first ``num_sinks``. Gradients reach what was read; the search
    has none. If ``search.mask_k`` and the window cover everything, this is causal softmax attention.

    Args:
        q: ``(batch, heads, length, d)``; the queries are the last ``length`` of the keys.
        k: ``(batch, key_heads, key_length, d)``; key_heads divides heads, of which neighbours share one of keys.
        v: ``(batch, key_heads, key_length, e)``.
        search: how to search, see :class:`~foveate.ops.hip_search.HipSearch`.
        num_sinks: so many first keys are always read.
        dense_queries: queries that stand before this key read all keys up to their own.
        scale: factor on the products; None: ``1 / sqrt(d)``. The search needs none.
        mask: bool ``(batch, key_length)``, True = a real token.
        kept: what :func:`hip_mask` found, to be used again; None: search. For all queries, dense ones included.
        generator: of "random" representatives.

    Returns:
        ``(batch, heads, length, e)`` in the dtype of ``v``; zeros for a query that sees no real key.

    Raises:
        InvalidValue: as :func:`hip_mask`; a negative number of sinks or dense queries.
        InvalidType: mixed dtypes, or a mask that is not bool.
    """
    _check(q, k, v, search, mask, generator)
    for name, value in (("num_sinks", num_sinks), ("dense_queries", dense_queries)):
        if not isinstance(value, int) or value < 0:
            raise invalid(name, value, "a whole number, not negative, is needed")
    (length, keys), size = (q.shape[2], k.shape[2]), search.block_size_q
    before = keys - length
    dense = min(max(0, dense_queries - before), length)
    dense = min(-(-dense // size) * size, length)  # whole blocks of queries
    answers = []
    if dense:
        seen, group = before + dense, q.shape[1] // k.shape[1]
        some_k, some_v = (x[:, :, :seen].repeat_interleave(group, 1) for x in (k, v))
        visible = None if mask is None else mask[:, :seen]
        answers.append(softmax_attention(q[:, :, :dense], some_k, some_v, causal=True, mask=visible, scale=scale))
    if dense < length:
        q = q[:, :, dense:]
        if kept is None:
            kept = hip_mask(q, k, search, mask=mask, generator=generator)
        elif dense:
            kept = BlockIndices(*(x[:, :, dense // size :] for x in kept))
        if q.shape[2] == 1 and current_backend() != "reference":
            answers.append(_read_one(q, k, v, kept, search, num_sinks, mask, scale))
        else:
            given = {"window": search.reach, "sinks": num_sinks, "mask": mask, "scale": scale}
            answers.append(block_sparse_attention(q, k, v, kept, block_size=(size, search.block), **given))
    return answers[0] if len(answers) == 1 else torch.cat(answers, 2)


def _read_one(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kept: BlockIndices,
    search: HipSearch,
    num_sinks: int,
    mask: Tensor | None,
    scale: float | None,
) -> Tensor:
    """Attention of a single query: what is kept is gathered, sinks and window lie side by side in the cache already."""
    (batch, heads, _, d), (key_heads, keys) = q.shape, k.shape[1:3]
    near = min(search.reach, keys)
    first = min(num_sinks, keys - near)
    place = (kept.indices[:, :, 0, :, None] * search.block + torch.arange(search.block, device=q.device)).flatten(2)
    read = torch.arange(kept.indices.shape[-1], device=q.device) < kept.counts[:, :, 0, None]
    seen = read.repeat_interleave(search.block, -1) & (place >= first) & (place < keys - near)
    place = torch.where(seen, place, 0).long().expand(batch, heads, -1).reshape(batch, key_heads, -1, 1)
    seen = seen.expand(batch, heads, -1).reshape(batch, key_heads, heads // key_heads, -1)
    ends = [torch.cat([x[:, :, :first], x[:, :, keys - near :]], 2) for x in (k, v)]
    found = [x.gather(2, place.expand(-1, -1, -1, x.shape[3])).unflatten(2, (-1, seen.shape[3])) for x in (k, v)]
    q = q.reshape(batch, key_heads, -1, d)
    scores = [(found[0] @ q[..., None])[..., 0].masked_fill(~seen, -math.inf), q @ ends[0].transpose(-1, -2)]
    if mask is not None:
        real = mask.gather(1, place.flatten(1)).view(seen.shape)
        scores[0] = scores[0].masked_fill(~real, -math.inf)
        shown = torch.cat([mask[:, :first], mask[:, keys - near :]], 1)[:, None, None]
        scores[1] = scores[1].masked_fill(~shown, -math.inf)
    together = torch.cat(scores, -1) * (d**-0.5 if scale is None else scale)
    together = together.to(sum_dtype(q.dtype))
    empty = together.amax(-1, keepdim=True) == -math.inf
    weights = together.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0).to(v.dtype)
    some, rest = weights.split([seen.shape[3], ends[0].shape[2]], -1)
    return ((some[..., None, :] @ found[1])[..., 0, :] + rest @ ends[1]).reshape(batch, heads, 1, -1)


def reference(q: Tensor, k: Tensor, search: HipSearch) -> list[list[int]]:
    """The search as the paper tells it, one node after another, for one head ``(length, d)`` and ``(key_length, d)``.

    No padding, no head groups and nothing at random. Returns numbers of blocks for each block of queries.
    """
    (length, keys), m, size = (len(q), len(k)), search.nodes_kept, search.block_size_k
    extremes = [k]
    if search.key_group > 1:
        groups = k[: keys // search.key_group * search.key_group].unflatten(0, (-1, search.key_group))
        extremes = [groups.amin(1), groups.amax(1)]
    kept = []
    for start in range(0, length, search.block_size_q):
        limit, end = hip_search.ends(search, keys - length + start, min(search.block_size_q, length - start))
        limit, blocks = limit // search.key_group, hip_search.in_blocks(search, end)
        rows = q[start : start + search.block_size_q]
        picked = rows[search.query_stride - 1 :: search.query_stride]
        rows = rows[:1] if search.rows == "first" else picked if len(picked) else rows[-1:]
        if blocks <= m:
            kept.append(list(range(blocks)))
            continue
        if search.nodes == "even":
            nodes = [(blocks * j // m, blocks * (j + 1) // m) for j in range(m)]
        else:
            nodes = [(int(blocks / m * j), int(blocks / m * j) + int(blocks / m)) for j in range(m)]
        while any(b - a > 1 for a, b in nodes):
            halves = [half for a, b in nodes for half in ((a, a + (b - a) // 2), (a + (b - a) // 2, b))]
            scored = []
            for a, b in halves:
                if a < b:
                    block = (a + b) // 2 if search.representative == "center" else a
                    here = slice(block * size, min((block + 1) * size, limit))
                    scored.append((max(float((rows @ x[here].T).max()) for x in extremes), (a, b)))
            nodes = [node for _, node in sorted(scored, reverse=True)[:m]]
        kept.append(sorted(a for a, _ in nodes))
    return kept


def hip_flops(search: HipSearch, length: int, keys: int, heads: int, d: int, batch: int = 1) -> int:
    """Multiply-adds of the search, times two."""
    rounds = 0
    for start in range(0, length, search.block_size_q):
        _, end = hip_search.ends(search, keys - length + start, min(search.block_size_q, length - start))
        rounds += hip_search.rounds_for(hip_search.in_blocks(search, end), search.nodes_kept)
    candidates = 2 * search.most * search.block_size_k * (2 if search.key_group > 1 else 1)
    return 2 * batch * heads * rounds * candidates * search.deciding * d


def listed_blocks(search: HipSearch, length: int, keys: int) -> int:
    """Width of the lists that :func:`hip_mask` gives."""
    rows = length - (length - 1) // search.block_size_q * search.block_size_q
    _, end = hip_search.ends(search, keys - rows, rows)
    return max(1, min(search.most, hip_search.in_blocks(search, end)))


def attention_flops(search: HipSearch, length: int, keys: int, sinks: int, heads: int, d: int, batch: int = 1) -> int:
    """Multiply-adds of the attention, times two, with all keys that are gathered for a block of queries."""
    gathered = listed_blocks(search, length, keys) * search.block + min(sinks, keys)
    gathered += search.block_size_q + search.reach - 1
    return 4 * batch * heads * -(-length // search.block_size_q) * search.block_size_q * gathered * d


def _all_blocks(ranges: hip_search.Ranges, batch: int, heads: int) -> BlockIndices:
    """Every block that may be searched, where the budget holds them all."""
    counts = ranges.blocks.to(torch.int32)[:, None].expand(batch, heads, -1)
    numbers = torch.arange(max(1, ranges.widest), dtype=torch.int32, device=counts.device)
    return BlockIndices(numbers.expand(*counts.shape, -1), counts)


def _check(
    q: Tensor, k: Tensor, v: Tensor, search: HipSearch, mask: Tensor | None, generator: torch.Generator | None
) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not (q.ndim == k.ndim == v.ndim == 4):
        raise InvalidValue(f"q, k and v must have 4 axes (batch, heads, length, width), not {shapes}.")
    if q.shape[0] != k.shape[0] or k.shape[:3] != v.shape[:3] or q.shape[-1] != k.shape[-1] or q.shape[1] % k.shape[1]:
        raise InvalidValue(
            f"q, k and v must agree in batch, q and k in width, k and v in heads and length, and the heads of k must "
            f"divide those of q: {shapes}."
        )
    if q.shape[2] < 1 or q.shape[2] > k.shape[2]:
        raise InvalidValue(f"at least one query, and as many keys as queries or more, are needed: {shapes}.")
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise InvalidType(f"q, k and v must share one floating dtype, not {q.dtype}, {k.dtype}, {v.dtype}.")
    if q.shape[1] % search.head_group:
        raise invalid("head_group", search.head_group, f"it must divide the {q.shape[1]} heads")
    if mask is not None and mask.dtype != torch.bool:
        raise InvalidType(f"mask must be bool (True = a real token), not {mask.dtype}.")
    if mask is not None and tuple(mask.shape) != (q.shape[0], k.shape[2]):
        raise InvalidValue(f"mask has shape {tuple(mask.shape)}; for keys {(q.shape[0], k.shape[2])} is needed.")
    drawn = search.representative == "random" and generator is None
    if drawn and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        raise InvalidValue(
            "representative='random' needs a generator where gradients are wanted: without one the keys that were "
            "kept cannot be found again."
        )
