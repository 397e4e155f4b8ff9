"""The tree search of HiP attention: for each block of queries, the blocks of keys that are likely to score highest.

"HiP Attention" (arXiv 2406.09827, section 3): the keys that a block of queries may see are cut into m nodes. In every
round each node is split in two halves, each half is scored by one representative block of keys, and the m best of all
2m halves are the next nodes, until a node is a block: log2(T / k) rounds of O(k) products. Every key is in a node at
first.

All query blocks that need as many rounds are searched together, some at a time: what is held at once does not grow with
the sequence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import invalid

Representative = Literal["center", "first", "random"]
Rows = Literal["block", "first"]
Nodes = Literal["even", "draft"]

#: Numbers of representative keys, and of their products, that are held at once, about.
HELD = 2**21


@dataclass(frozen=True, kw_only=True)
class HipSearch:
    """How the search goes.

    Attributes:
        mask_k: keys that the search keeps for each query.
        block_size_q: neighbouring queries that share what is kept.
        block_size_k: keys, or key groups, of a block: they are kept or dropped together.
        key_group: so many neighbouring keys are scored by their smallest and largest entries in each channel; 1: by
            themselves. A kept block is then ``block_size_k * key_group`` keys.
        window: so many keys up to a query's own are read whatever is found; they are not searched.
        representative: which block stands for a half: the one in its "center" (the paper), its "first" one or one at
            "random" (the code's first version).
        rows: which queries of a block decide by the largest of their scores: all of the "block", as for a prompt, which
            lets later queries decide for earlier ones; or the "first" alone, as for decoding that searches anew every
            ``block_size_q`` steps, which is strictly causal.
        query_stride: of a block's queries one in so many decides, the last of each stride.
        nodes: how long the first nodes are: "even" covers every block of keys; "draft" is the code of version 1.1, in
            which all have the length of the shortest, so that a few blocks may lie between them.
        head_group: so many neighbouring heads share what they keep: ``head_group * mask_k`` keys, wherever scores are
            highest.

    Raises:
        InvalidValue: a number that is not positive, a budget that is not a multiple of a block or below two of them, or
            a choice that does not exist.
    """

    mask_k: int = 512
    block_size_q: int = 32
    block_size_k: int = 2
    key_group: int = 1
    window: int = 128
    representative: Representative = "center"
    rows: Rows = "block"
    query_stride: int = 1
    nodes: Nodes = "even"
    head_group: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (not isinstance(value, int) or value < (field.name != "window")):
                legal = "a whole number, not negative" if field.name == "window" else "a positive whole number"
                raise invalid(field.name, value, f"{legal}, is needed")
        for name, legal in (
            ("representative", get_args(Representative)),
            ("rows", get_args(Rows)),
            ("nodes", get_args(Nodes)),
        ):
            if getattr(self, name) not in legal:
                raise invalid(name, getattr(self, name), f"legal are {', '.join(legal)}")
        if self.mask_k % self.block or self.mask_k < 2 * self.block:
            raise invalid("mask_k", self.mask_k, f"a multiple of a block's {self.block} keys, two or more, is needed")
        if self.query_stride > self.block_size_q:
            raise invalid("query_stride", self.query_stride, f"a block has {self.block_size_q} queries")

    @property
    def block(self) -> int:
        """Keys that are kept or dropped together."""
        return self.block_size_k * self.key_group

    @property
    def nodes_kept(self) -> int:
        """Blocks of keys that are kept for each block of queries, m."""
        return self.mask_k // self.block

    @property
    def most(self) -> int:
        """Blocks that one head may keep."""
        return self.nodes_kept * self.head_group

    @property
    def reach(self) -> int:
        """Keys up to its own that a query reads: the window, but no fewer than are not searched or than its block's."""
        least = max(self.window, self.block, self.block_size_q if self.rows == "first" else 1)
        return least + self.key_group - 1

    @property
    def deciding(self) -> int:
        """Queries of a block that are scored."""
        return 1 if self.rows == "first" else max(1, self.block_size_q // self.query_stride)


class Ranges(NamedTuple):
    """What each block of queries may search, int64 ``(1 or batch, query_blocks)``, in blocks of keys.

    Attributes:
        first: the first block that is searched.
        blocks: how many are.
        limit: keys (or key groups) from this one on must not be looked at.
        rounds: for each block of queries, how often nodes have to be halved, at most.
        widest: the most blocks that any may search.
    """

    first: Tensor
    blocks: Tensor
    limit: Tensor
    rounds: list[int]
    widest: int


def rounds_for(blocks: int, nodes: int) -> int:
    """How often ``nodes`` nodes that hold ``blocks`` blocks are halved until each is one block."""
    return math.ceil(math.log2(-(-blocks // nodes))) if blocks > nodes else 0


def ends(search: HipSearch, first_row: int, rows: int) -> tuple[int, int]:
    """(limit, end) in keys for a block of queries that begins at key ``first_row`` and has ``rows`` rows.

    Keys from ``limit`` on must not be looked at; those from ``end`` on are not searched.
    """
    if search.rows == "first":
        limit = first_row + 1
        end = min(limit, first_row + search.block_size_q - search.window)
    else:
        limit = first_row + rows
        end = limit - search.window
    return limit, max(end, 0)


def in_blocks(search: HipSearch, end: int) -> int:
    """How many blocks are searched for keys before ``end``: incomplete key groups are not."""
    return -(-(end // search.key_group) // search.block_size_k)


def plan(search: HipSearch, length: int, keys: int, mask: Tensor | None, device: torch.device) -> Ranges:
    """The ranges of the last ``length`` of ``keys`` keys as queries.

    Args:
        mask: bool ``(batch, keys)``, True = a real token: padding in front is not searched, and a block of queries
            ends with its last real one. None: all are.
    """
    starts = range(0, length, search.block_size_q)
    found = [ends(search, keys - length + at, min(search.block_size_q, length - at)) for at in starts]
    counts = [in_blocks(search, end) for _, end in found]
    rounds = [rounds_for(count, search.nodes_kept) for count in counts]
    limit, end = (torch.tensor(x, dtype=torch.int64, device=device)[None] for x in zip(*found, strict=True))
    first = torch.zeros_like(limit)
    if mask is not None:
        place = torch.arange(keys - length + 1, keys + 1, device=device) * mask[:, keys - length :]
        place = F.pad(place, (0, -length % search.block_size_q))
        last = place.unflatten(1, (-1, search.block_size_q)).amax(2)  # 0 where no query is real
        limit = last if search.rows == "block" else torch.where(last > 0, limit, 0)
        end = torch.where(last > 0, end, 0) if search.rows == "first" else (limit - search.window).clamp(min=0)
        first = (mask.long().argmax(1) // search.block)[:, None].expand(-1, len(counts))
    blocks = (end // search.key_group + search.block_size_k - 1) // search.block_size_k
    return Ranges(first, (blocks - first).clamp(min=0), limit // search.key_group, rounds, max(counts))


def deciding_rows(search: HipSearch, length: int, device: torch.device) -> Tensor:
    """int64 ``(query_blocks, deciding)``: which queries decide; in an incomplete block some stand twice."""
    starts = torch.arange(0, length, search.block_size_q, device=device)[:, None]
    if search.rows == "first":
        return starts
    rows = (length - starts).clamp(max=search.block_size_q)
    strides = rows // search.query_stride
    number = torch.minimum(torch.arange(search.deciding, device=device), (strides - 1).clamp(min=0))
    chosen = (number + 1) * search.query_stride - 1
    return starts + torch.where(strides > 0, chosen, rows - 1)


def units(search: HipSearch, k: Tensor) -> Tensor:
    """What is scored of each block of keys: ``(batch, key_heads, blocks, keys or extremes, d)``, zeros at the end."""
    if search.key_group > 1:
        whole = k.shape[2] // search.key_group * search.key_group
        groups = k[:, :, :whole].unflatten(2, (-1, search.key_group))
        k = torch.stack([groups.amin(3), groups.amax(3)], 3)
    else:
        k = k.unsqueeze(3)
    missing = -k.shape[2] % search.block_size_k
    k = F.pad(k, (0, 0, 0, 0, 0, missing)) if missing else k
    return k.unflatten(2, (-1, search.block_size_k)).flatten(3, 4)


def seen_units(search: HipSearch, mask: Tensor) -> Tensor:
    """Bool ``(batch, blocks, block_size_k)``: keys, or key groups without a masked key."""
    if search.key_group > 1:
        whole = mask.shape[1] // search.key_group * search.key_group
        mask = mask[:, :whole].unflatten(1, (-1, search.key_group)).all(2)
    return F.pad(mask, (0, -mask.shape[1] % search.block_size_k)).unflatten(1, (-1, search.block_size_k))


def _stretches(rounds: list[int], held: int) -> Iterator[tuple[slice, int]]:
    """Neighbouring query blocks that need as many rounds, no more of them at once than may be held."""
    at_once = len(rounds) if torch.compiler.is_compiling() else max(1, HELD // held)
    start = 0
    while start < len(rounds):
        stop = start
        while stop < len(rounds) and stop < start + at_once and rounds[stop] == rounds[start]:
            stop += 1
        yield slice(start, stop), rounds[start]
        start = stop


@torch.no_grad()
def find(
    search: HipSearch,
    q: Tensor,
    k: Tensor,
    ranges: Ranges,
    *,
    shown_rows: Tensor | None = None,
    shown_keys: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Search.

    Args:
        q: ``(batch, heads, query_blocks, deciding, d)``, the queries that decide.
        k: ``(batch, key_heads, blocks, keys, d)``, of :func:`units`.
        ranges: where to look.
        shown_rows: bool ``(batch, query_blocks, deciding)``, queries that count; None: all.
        shown_keys: bool ``(batch, blocks, block_size_k)``, of :func:`seen_units`; None: all count.
        generator: for "random" representatives.

    Returns:
        int32 ``(batch, heads, query_blocks, most)``, ascending numbers of blocks, and counts, int32 ``(batch, heads,
        query_blocks)``; behind the first counts stands the number of all blocks.
    """
    batch, heads = q.shape[:2]
    width = max(1, min(search.most, ranges.widest))
    held = batch * heads * 2 * search.most * k.shape[3] * (q.shape[4] + q.shape[3])
    indices, counts = [], []
    for stretch, rounds in _stretches(ranges.rounds, held):
        first, blocks = ranges.first[:, stretch], ranges.blocks[:, stretch]
        start, size = _first_nodes(search, first, blocks, heads)
        start, size = (x.expand(batch, heads, -1, -1) for x in (start, size))
        limit = ranges.limit[:, stretch]
        rows = None if shown_rows is None else shown_rows[:, stretch]
        for _ in range(rounds):
            half = size // 2
            start, size = torch.cat([start, start + half], -1), torch.cat([half, size - half], -1)
            scores = _scores(search, q[:, :, stretch], k, start, size, limit, rows, shown_keys, generator)
            chosen = _best(search, scores.masked_fill_(size < 1, -math.inf))
            start, size = start.gather(-1, chosen), size.gather(-1, chosen)
            if search.head_group > 1:  # a place that was chosen because there was nothing better
                size = size * scores.gather(-1, chosen).isfinite()
        found = start.where(size > 0, k.shape[2]).sort(-1).values[..., :width]
        indices.append(F.pad(found, (0, width - found.shape[-1]), value=k.shape[2]))
        counts.append((found < k.shape[2]).sum(-1))
    return torch.cat(indices, 2).to(torch.int32), torch.cat(counts, 2).to(torch.int32)


def _first_nodes(search: HipSearch, first: Tensor, blocks: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """First block and length of each node, int64 ``(1 or batch, 1 or heads, query_blocks, most)``; 0: there is none."""
    m, blocks = search.nodes_kept, blocks[:, None, :, None]
    number = torch.arange(m, device=blocks.device)
    if search.nodes == "even":
        start = blocks * number // m
        size = blocks * (number + 1) // m - start
    else:  # in double precision, as the draft has it; heads of a group have lengths of their own
        each = blocks.double() / m
        start = (each * number).long()
        head = torch.arange(heads, device=blocks.device).remainder(search.head_group)[:, None, None]
        size = torch.minimum(blocks, (each * (head + 1)).long()) - (each * head).long()
        size = size.expand(-1, -1, -1, m)
    few = blocks <= m
    start, size = torch.where(few, number, start), torch.where(few, (number < blocks).long(), size)
    start, size = torch.broadcast_tensors(start + first[:, None, :, None], size)
    spare = search.most - m
    return (F.pad(start, (0, spare)), F.pad(size, (0, spare))) if spare else (start, size)


def _scores(
    search: HipSearch,
    q: Tensor,
    k: Tensor,
    start: Tensor,
    size: Tensor,
    limit: Tensor,
    rows: Tensor | None,
    shown: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """The largest product of each candidate's representative, ``(batch, heads, query_blocks, candidates)``."""
    if search.representative == "center":
        block = start + size // 2
    elif search.representative == "first":
        block = start
    else:
        drawn = torch.rand(size.shape, device="cpu" if generator is None else generator.device, generator=generator)
        block = start + (drawn.to(size.device) * size).long()
    block = block.clamp(max=k.shape[2] - 1)
    (batch, heads, stretch), (key_heads, blocks, keys) = q.shape[:3], k.shape[1:4]
    samples = torch.arange(batch, device=q.device)[:, None, None, None]
    head = torch.arange(heads, device=q.device)[:, None, None] // (heads // key_heads)
    place = ((samples * key_heads + head) * blocks + block).flatten()
    taken = k.reshape(-1, keys * k.shape[4]).index_select(0, place).view(batch * heads * stretch, -1, k.shape[4])
    products = torch.bmm(taken, q.flatten(0, 2).transpose(1, 2)).view(batch, heads, stretch, -1, keys, q.shape[3])
    lowest = torch.finfo(products.dtype).min
    if rows is not None:
        products = products.masked_fill(~rows[:, None, :, None, None, :], lowest)
    best = products.amax(-1)
    extremes = keys // search.block_size_k
    each = torch.arange(keys, device=q.device) // extremes
    hidden = block[..., None] * search.block_size_k + each >= limit[:, None, :, None, None]
    if shown is not None:
        place = (samples * blocks + block).flatten()
        seen = shown.reshape(-1, search.block_size_k).index_select(0, place).view(*block.shape, -1)
        hidden = hidden | ~seen.repeat_interleave(extremes, -1)
    return best.masked_fill_(hidden, lowest).amax(-1)


def _best(search: HipSearch, scores: Tensor) -> Tensor:
    """int64 ``(batch, heads, query_blocks, most)``: the best candidates of each head, those of its group counted in.

    What a head keeps less than it may is marked in ``scores`` by -inf.
    """
    if search.head_group == 1:
        return scores.topk(search.most, -1, sorted=False).indices
    together = scores.unflatten(1, (-1, search.head_group)).transpose(2, 3).flatten(3)
    chosen = together.topk(search.most, -1, sorted=False).indices
    kept = torch.zeros_like(together, dtype=torch.bool).scatter_(-1, chosen, True)
    kept = kept.unflatten(3, (search.head_group, -1)).transpose(2, 3).flatten(1, 2)
    scores.masked_fill_(~kept, -math.inf)
    return scores.topk(search.most, -1, sorted=False).indices
