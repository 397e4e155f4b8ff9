"""Local-stride patterns of S2-Attention: which blocks of keys each head sees, and what follows from that.

Lin et al., "Efficient LLM Training and Serving with Heterogeneous Context Sharding among Attention Heads" (2024, arXiv
2407.17678); the released code is ``get_sparse_attn_mask`` of linxihui/dkernel. With blocks i of queries and j of keys,
head h (of keys and values) keeps in its causal form::

    j <= i  and  (i - j < local_blocks  or  (j + h step + offset) mod vert_stride == 0)

Stripes are at absolute places, so that a block which left the window is needed always or never again: what is never
needed leaves a cache. Heads are shifted against each other by ``step``; with ``vert_stride`` different shifts their
union is all of the past. The form for both directions measures stripes from the edge of the window instead, alike for
all heads::

    (max(0, i - j - left + 1) + max(0, j - i - right + 1)) mod vert_stride == 0
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import InvalidType, InvalidValue, invalid
from .block_sparse_attention import BlockIndices

VertPosition = Literal["absolute", "relative"]


@dataclass(frozen=True)
class LocalStride:
    """A local-stride pattern.

    Args:
        num_heads: heads of queries.
        block_size: tokens of a block.
        local_blocks: blocks of the window, the query's own among them; for both directions one number, or two for left
            and right.
        vert_stride: of the blocks outside of the window, one in so many is kept; 1: all.
        homo_head: all heads have the pattern of the first.
        num_kv_heads: heads of keys and values; neighbouring heads of queries share one, and its pattern. None: as many.
        num_dense_heads: so many heads, the last of keys and values, keep everything.
        head_sliding_step: shift of a head's stripes against those of the head before; None: 1, or where there are fewer
            heads of queries than ``vert_stride``, their quotient, rounded down.
        head_sliding_offset: shift of all stripes.
        vert_position_type: "absolute" or "relative" stripes; None: absolute if causal, else relative.
        causal: no later block is kept.

    Raises:
        InvalidValue: what cannot be: heads that do not divide, dense heads among equal ones, an empty window, ...
    """

    num_heads: int
    block_size: int = 64
    local_blocks: int | tuple[int, int] = 4
    vert_stride: int = 4
    homo_head: bool = False
    num_kv_heads: int | None = None
    num_dense_heads: int = 0
    head_sliding_step: int | None = None
    head_sliding_offset: int = 0
    vert_position_type: VertPosition | None = None
    causal: bool = True

    def __post_init__(self) -> None:
        for name in ("num_heads", "block_size", "vert_stride"):
            number = getattr(self, name)
            if not _whole(number) or number < 1:
                raise invalid(name, number, "a positive whole number is needed")
        if self.num_kv_heads is not None and not _divides(self.num_kv_heads, self.num_heads):
            raise invalid("num_kv_heads", self.num_kv_heads, f"it must divide num_heads={self.num_heads}")
        if not _whole(self.num_dense_heads) or not 0 <= self.num_dense_heads <= self.kv_heads:
            raise invalid("num_dense_heads", self.num_dense_heads, f"it must lie in 0 ... {self.kv_heads}")
        if self.homo_head and self.num_dense_heads:
            raise invalid("num_dense_heads", self.num_dense_heads, "with homo_head=True all heads are alike")
        if self.vert_position_type not in (None, *get_args(VertPosition)):
            raise invalid("vert_position_type", self.vert_position_type, "it must be 'absolute', 'relative' or None")
        for name, number in (("step", self.head_sliding_step), ("offset", self.head_sliding_offset)):
            if not _whole(number) and not (name == "step" and number is None):
                raise invalid(f"head_sliding_{name}", number, "a whole number is needed")
        self._check_window()

    def _check_window(self) -> None:
        local = self.local_blocks
        if self.causal and (not _whole(local) or local < 1):  # type: ignore[operator]
            raise invalid("local_blocks", local, "the window has at least the query's own block: 1 or more is needed")
        if not self.causal:
            two = isinstance(local, (tuple, list)) and len(local) == 2 and all(_whole(n) and n > 0 for n in local)
            if not two and not (_whole(local) and local >= 0):  # type: ignore[operator]
                raise invalid("local_blocks", local, "one number, 0 or more, or two positive ones are needed")

    # Heads ------------------------------------------------------------------------------------------------------------

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def sparse_heads(self) -> int:
        """Those of them that do not keep everything; they come first."""
        return self.kv_heads - self.num_dense_heads

    @property
    def absolute(self) -> bool:
        """Whether stripes are at absolute places."""
        return (self.vert_position_type or ("absolute" if self.causal else "relative")) == "absolute"

    @property
    def window(self) -> tuple[int, int]:
        """Blocks of the window to the left and to the right, each with the query's own."""
        if self.causal:
            return self.local_blocks, 1  # type: ignore[return-value]
        local = self.local_blocks
        return (local, local) if isinstance(local, int) else (local[0], local[1])

    @property
    def residues(self) -> tuple[int, ...]:
        """For each sparse head the ``j mod vert_stride`` of its stripes; meaningless where they are relative."""
        step = self.head_sliding_step
        step = max(1, self.vert_stride // self.num_heads) if step is None else step
        heads = [0] * self.sparse_heads if self.homo_head else range(self.sparse_heads)
        return tuple(-(h * step + self.head_sliding_offset) % self.vert_stride for h in heads)

    # What is kept -----------------------------------------------------------------------------------------------------

    def keeps(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Whether sparse heads keep blocks.

        Args:
            rows: whole numbers of blocks of queries, ``(..., rows)``.
            columns: of blocks of keys, ``(..., columns)``.

        Returns:
            bool ``(..., sparse_heads or 1, rows, columns)``; one plane where all sparse heads are alike.
        """
        i, j = rows[..., None, :, None], columns[..., None, None, :]
        left, right = self.window
        if self.absolute:
            residues = self.residues[:1] if self.homo_head else self.residues
            shift = torch.tensor(residues, dtype=torch.int64, device=rows.device)[:, None, None]
            kept = ((j - shift) % self.vert_stride == 0) | ((i - j < left) & (j - i < right))
        else:
            outside = (i - j - left + 1).clamp(min=0) + (j - i - right + 1).clamp(min=0)
            kept = outside % self.vert_stride == 0
        return kept & (j <= i) if self.causal else kept

    def blocks(
        self, rows: int, columns: int, first_row: int = 0, first_column: int = 0, device: torch.device | None = None
    ) -> Tensor:
        """The mask of blocks, bool ``(num_heads, rows, columns)``; one plane where all heads are alike."""
        i = torch.arange(first_row, first_row + rows, device=device)
        j = torch.arange(first_column, first_column + columns, device=device)
        kept = self.keeps(i, j)
        if self.homo_head or (not self.absolute and self.num_dense_heads in (0, self.kv_heads)):
            return kept[:1] if self.sparse_heads else self._all(i, j)
        each = [kept.expand(self.sparse_heads, -1, -1), self._all(i, j).expand(self.num_dense_heads, -1, -1)]
        return torch.cat(each).repeat_interleave(self.num_heads // self.kv_heads, 0)

    def _all(self, i: Tensor, j: Tensor) -> Tensor:
        """What a dense head keeps, bool ``(1, rows, columns)``."""
        return (j <= i[:, None])[None] if self.causal else torch.ones(1, len(i), len(j), dtype=torch.bool).to(i.device)

    def indices(self, rows: Tensor, blocks: int) -> BlockIndices:
        """What sparse heads keep, as lists that are made without a matrix of blocks.

        Args:
            rows: int64 ``(..., rows)``, numbers of blocks of queries.
            blocks: how many blocks of keys there are, from 0.

        Returns:
            int32 ``(..., sparse_heads, rows, most)``, ascending, and counts ``(..., sparse_heads, rows)``.

        Raises:
            InvalidType: the pattern is neither causal with absolute stripes nor relative: it has no short list.
        """
        rows = rows[..., None, :]
        left, right = self.window
        if self.absolute and self.causal:
            residue = torch.tensor(self.residues, dtype=torch.int64, device=rows.device)[:, None]
            stripes = ((rows - left - residue).div(self.vert_stride, rounding_mode="floor") + 1).clamp(min=0)
            start = (rows - left + 1).clamp(min=0)
            counts = stripes + rows - start + 1
            most = min(blocks, left + -(-max(0, blocks - left) // self.vert_stride))
            slot = torch.arange(most, device=rows.device)
            listed = torch.where(
                slot < stripes[..., None],
                residue[..., None] + slot * self.vert_stride,
                (start - stripes)[..., None] + slot,
            )
        elif not self.absolute:
            far = range(1 - blocks, 1 if self.causal else blocks)
            near = [j for j in far if (max(0, 1 - j - left) + max(0, j - right + 1)) % self.vert_stride == 0]
            away = torch.tensor(near, dtype=torch.int64, device=rows.device)
            first = torch.searchsorted(away, -rows.contiguous())
            counts = torch.searchsorted(away, blocks - rows.contiguous()) - first
            most = min(blocks, len(away))
            slot = (first[..., None] + torch.arange(most, device=rows.device)).clamp(max=len(away) - 1)
            listed = rows[..., None] + away[slot]
        else:
            raise InvalidType("absolute stripes for both directions have no short list of blocks: use blocks().")
        shape = (*listed.shape[:-3], self.sparse_heads, *listed.shape[-2:])
        return BlockIndices(listed.to(torch.int32).expand(shape), counts.to(torch.int32).expand(shape[:-1]))

    # What follows -----------------------------------------------------------------------------------------------------

    def covers(self, length: int | None = None) -> bool:
        """Whether every token sees all it may see in some head: the union of the shards is the full context.

        Args:
            length: tokens of the longest sequence; None: whatever the length.
        """
        if self.num_dense_heads or self.vert_stride == 1:
            return True
        blocks = None if length is None else -(-length // self.block_size)
        left, right = self.window
        if self.absolute:  # blocks that leave the window on either side, up to one stride: then they repeat
            reach = left if self.causal else min(left, right)
            beyond = self.vert_stride if blocks is None else min(max(blocks - reach, 0), self.vert_stride)
            asked = set(range(beyond))
            if not self.causal and blocks is not None:
                asked |= {j % self.vert_stride for j in range(max(right, blocks - self.vert_stride), blocks)}
            return asked <= set(self.residues)
        reach = max(left, right) + self.vert_stride
        limit = reach if blocks is None else min(blocks - 1, reach)
        away = torch.arange(-limit, 1 if self.causal else limit + 1)
        return bool(self.keeps(torch.zeros(1, dtype=torch.int64), away).all())

    def cached_blocks(self, length: int) -> list[int]:
        """For each head of keys and values, how many blocks of so many tokens a causal stream still needs."""
        blocks = -(-length // self.block_size)
        left, stride = self.window[0], self.vert_stride
        older = max(0, blocks - left)  # blocks that left the window of the last query
        sparse = [min(blocks, left) + len(range(residue, older, stride)) for residue in self.residues]
        return sparse + [blocks] * self.num_dense_heads

    def kept_pairs(self, length: int) -> list[int]:
        """For each head of keys and values of a causal pattern, pairs of tokens that see each other."""
        size, rows = self.block_size, torch.arange(-(-length // self.block_size))
        queries = (length - rows * size).clamp(max=size)
        whole = self.indices(rows, len(rows)).counts.long() - 1  # all but the block of the query itself
        pairs = (whole * queries * size + queries * (queries + 1) // 2).sum(-1).tolist()
        return pairs + [length * (length + 1) // 2] * self.num_dense_heads


def local_stride_block_mask(
    num_heads: int,
    seqlen: int,
    block_size: int = 64,
    local_blocks: int | tuple[int, int] = 4,
    vert_stride: int = 4,
    homo_head: bool = False,
    num_kv_heads: int | None = None,
    num_dense_heads: int = 0,
    head_sliding_step: int | None = None,
    head_sliding_offset: int = 0,
    past_len: int = 0,
    kv_seqlen: int | None = None,
    q_start_position: int | None = None,
    kv_start_position: int | None = None,
    vert_position_type: VertPosition | None = None,
    causal: bool = True,
    device: torch.device | None = None,
) -> Tensor:
    """The mask of blocks of a local-stride pattern, with the options of the released function.

    Args:
        num_heads, block_size, local_blocks, vert_stride, homo_head, num_kv_heads, num_dense_heads, head_sliding_step,
            head_sliding_offset, vert_position_type, causal: see :class:`LocalStride`.
        seqlen: number of queries, those before ``past_len`` included.
        past_len: queries that are left out, rounded up to whole blocks.
        kv_seqlen: number of keys; None: as many as queries.
        q_start_position, kv_start_position: place of the first query and of the first key in the whole sequence,
            multiples of ``block_size``.
        device: of the mask.

    Returns:
        bool ``(num_heads, query_blocks, key_blocks)``, True = kept; one plane where all heads are alike.

    Raises:
        InvalidValue: an option that is not legal.
    """
    pattern = LocalStride(
        num_heads=num_heads,
        block_size=block_size,
        local_blocks=local_blocks,
        vert_stride=vert_stride,
        homo_head=homo_head,
        num_kv_heads=num_kv_heads,
        num_dense_heads=num_dense_heads,
        head_sliding_step=head_sliding_step,
        head_sliding_offset=head_sliding_offset,
        vert_position_type=vert_position_type,
        causal=causal,
    )
    keys = seqlen if kv_seqlen is None else kv_seqlen
    for name, number, least in (("seqlen", seqlen, 1), ("kv_seqlen", keys, 1), ("past_len", past_len, 0)):
        if not _whole(number) or number < least:
            raise invalid(name, number, f"a whole number of at least {least} is needed")
    if past_len >= seqlen:
        raise invalid("past_len", past_len, f"there are {seqlen} queries, and one must be left")
    if past_len and q_start_position is not None:
        raise InvalidValue("past_len and q_start_position both say where queries begin: give one of them.")
    for name, place in (("q_start_position", q_start_position), ("kv_start_position", kv_start_position)):
        if place is not None and (not _whole(place) or place < 0 or place % block_size):
            raise invalid(name, place, f"sequences are cut between blocks, at multiples of {block_size}")
    first, start = (q_start_position or 0) // block_size, (kv_start_position or 0) // block_size
    kept = pattern.blocks(-(-seqlen // block_size), -(-keys // block_size), first, start, device)
    return kept[:, -(-past_len // block_size) :]


def to_csr(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Compressed rows of a mask of blocks, as the released kernels read them.

    Args:
        blocks: bool ``(heads, query_blocks, key_blocks)``.

    Returns:
        int32 ``(heads, query_blocks + 1)``, where each row begins, and int32 ``(heads, most)``, numbers of key blocks,
        -1 behind the last one of a head.
    """
    begins = torch.nn.functional.pad(blocks.sum(2).cumsum(1), (1, 0))
    columns = torch.full((len(blocks), int(begins.max())), -1, dtype=torch.int32, device=blocks.device)
    column = blocks.nonzero()[:, 2]
    place = torch.arange(columns.shape[1], device=blocks.device) < begins[:, -1:]
    columns[place] = column.to(torch.int32)
    return begins.to(torch.int32), columns


def is_kv_cache_efficient(blocks: Tensor, block_q: int = 1, block_k: int = 1) -> bool:
    """Whether a block of keys that lies behind the queries and is not needed is never needed again.

    Args:
        blocks: ``(heads, query_blocks, key_blocks)``, True or not 0 = kept.
        block_q, block_k: tokens of the blocks.
    """
    kept = blocks.bool()
    rows = torch.arange(kept.shape[1], device=kept.device)[1:, None]
    behind = rows * block_q >= torch.arange(1, kept.shape[2] + 1, device=kept.device) * block_k
    return not bool((kept[:, 1:] & ~kept[:, :-1] & behind).any())


def combine_attn_partitions(*parts: tuple[Tensor, Tensor], return_lse: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """Attention to all keys, of attention to parts of them.

    Args:
        parts: for each part the output ``(..., length, e)`` and the logarithm of its softmax's sum ``(..., length)``,
            -inf where a query sees none of its keys.
        return_lse: return the logarithm of the whole sum too.

    Returns:
        ``(..., length, e)`` in the dtype of the outputs, zeros where no part is seen.

    Raises:
        InvalidValue: no part, or shapes that do not fit.
    """
    if not parts or any(len(part) != 2 or part[0].shape[:-1] != part[1].shape for part in parts):
        shapes = ", ".join(str([tuple(x.shape) for x in part]) for part in parts) or "nothing"
        raise InvalidValue(f"parts are outputs (..., length, e) with sums (..., length), not {shapes}.")
    sums = torch.stack([lse for _, lse in parts])
    whole = sums.logsumexp(0)
    shares = (sums - whole.where(whole.isfinite(), torch.zeros_like(whole))).exp()
    out = sum(o * share[..., None].to(o.dtype) for (o, _), share in zip(parts, shares, strict=True))
    return (out, whole) if return_lse else out  # type: ignore[return-value]


def _whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def _divides(number: object, whole: int) -> bool:
    return isinstance(number, int) and number >= 1 and whole % number == 0
