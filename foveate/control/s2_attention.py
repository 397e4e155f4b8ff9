"""S2-Attention in a decoder of transformers: every head reads its own shard of the context (arXiv 2407.17678).

Models are trained with it; put into a dense one it costs quality that more training brings back. Published models keep
every second layer dense: leave those out with ``layers``::

    control = S2Attention(block_size=64, local_blocks=16, vert_stride=8, layers=range(0, 32, 2))
    with control.attached(model):
        model.generate(**prompt)

The model's own cache keeps all keys; a step reads those of its shards. A cache that drops the others is in the mixer
(:mod:`foveate.mixers.s2_attention`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.block_sparse_attention import BlockIndices, block_sparse_attention
from ..ops.s2_pattern import LocalStride
from ..registry import register
from .decoder_call import DecoderCall, key_heads
from .decoders import DecoderAttention


@register("control", "s2_attention")
class S2Attention(DecoderAttention):
    """Causal attention to a window and to stripes of blocks, other ones in every head of keys and values.

    Blocks count real tokens, so that padding does not move them. Where only some heads are chosen, the shards are dealt
    among those.

    Args:
        block_size: tokens of a block.
        local_blocks: blocks of the window, the query's own among them.
        vert_stride: of earlier blocks a head reads one in so many; None: the number of sparse heads of keys and values,
            with which their union is the full context. A warning tells where it is not.
        homo_head: all heads have the same stripes.
        num_dense_heads: so many heads of keys and values, the last, read everything.
        head_sliding_step: shift between the stripes of neighbouring heads; None: as released, see
            :class:`~foveate.ops.s2_pattern.LocalStride`.
        head_sliding_offset: shift of all stripes.
        layers, heads: see :class:`~foveate.control.decoders.DecoderAttention`.

    Raises:
        InvalidValue: an option that is not legal; when attached: more dense heads than the model has.
    """

    def __init__(
        self,
        *,
        block_size: int = 64,
        local_blocks: int = 4,
        vert_stride: int | None = None,
        homo_head: bool = False,
        num_dense_heads: int = 0,
        head_sliding_step: int | None = None,
        head_sliding_offset: int = 0,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
    ) -> None:
        super().__init__(layers=layers, heads=heads)
        self.block_size, self.local_blocks, self.vert_stride = block_size, local_blocks, vert_stride
        self.homo_head, self.num_dense_heads = homo_head, num_dense_heads
        self.head_sliding_step, self.head_sliding_offset = head_sliding_step, head_sliding_offset
        many = max(1, num_dense_heads) if isinstance(num_dense_heads, int) else 1
        self.pattern(many, many)  # whatever cannot be for any number of heads is refused at once

    def pattern(self, num_heads: int, num_kv_heads: int) -> LocalStride:
        """The pattern for so many heads of queries, and of keys and values."""
        sparse = num_kv_heads - self.num_dense_heads if isinstance(self.num_dense_heads, int) else 1
        return LocalStride(
            num_heads=num_heads,
            block_size=self.block_size,
            local_blocks=self.local_blocks,
            vert_stride=max(1, sparse) if self.vert_stride is None else self.vert_stride,
            homo_head=self.homo_head,
            num_kv_heads=num_kv_heads,
            num_dense_heads=self.num_dense_heads,
            head_sliding_step=self.head_sliding_step,
            head_sliding_offset=self.head_sliding_offset,
        )

    def check(self, model: nn.Module) -> None:
        """Refuse what the base refuses and dense heads that the model lacks; tell what no head will read."""
        super().check(model)
        config: Any = model.config
        count = config.num_attention_heads
        groups = count // (getattr(config, "num_key_value_heads", None) or count)
        heads = tuple(range(count)) if self.heads is None else self.heads
        pattern = self.pattern(len(heads), len(key_heads(heads, groups)))
        if not pattern.covers():
            lost = pattern.vert_stride - len(set(pattern.residues))
            warnings.warn(
                f"{type(self).__name__}: {lost} of {pattern.vert_stride} blocks are on no head's stripes, and behind "
                f"the window of {self.local_blocks} blocks nobody reads them: take a vert_stride of at most the "
                f"{pattern.sparse_heads} sparse heads of keys and values, or a dense head.",
                stacklevel=4,
            )

    def attend(self, call: DecoderCall) -> Tensor:
        """Queries are read in the blocks of the pattern; a single one by itself."""
        (batch, heads, n, _), (kv_heads, keys) = call.q.shape, call.k.shape[1:3]
        pattern, size, device = self.pattern(heads, kv_heads), self.block_size, call.q.device
        q, k, v, mask = call.q, call.k, call.v, call.mask
        if mask is None:
            before = torch.full((1,), call.cached, device=device)
            offset, first, most = torch.zeros_like(before), call.cached // size, call.cached % size
        else:
            before = mask[:, : call.cached].sum(1)
            first, most = int((before // size).max()), int((before % size).max())
            offset = first - before // size  # so many empty blocks in front make all open blocks one column
            order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)
            slots = first * size + most + n
            place = torch.arange(slots, device=device) - (offset * size)[:, None]
            filled = (place >= 0) & (place < mask.sum(1, keepdim=True))
            index = order.gather(1, place.clamp(0, keys - 1))[:, None, :, None]
            k, v = (x.gather(2, index.expand(-1, kv_heads, -1, x.shape[3])) for x in (k, v))
            mask, keys = filled, slots
        # In front of the queries stand as many as the open block has tokens; a single query needs none.
        begun, single = before % size, n == 1
        rows = 1 if single else most + n
        number = torch.arange(rows, device=device)
        real = None if call.mask is None else call.mask[:, call.cached :]
        if not single:
            q = _placed(q, begun, real, rows)
        count = 1 if single else -(-rows // size)
        here = (before // size)[:, None] + torch.arange(count, device=device)
        columns = -(-keys // size)
        kept = self._kept(pattern, here, offset, columns, heads // kv_heads)
        shape = (1 if single else size, size)
        causal = not single or call.mask is None
        o = block_sparse_attention(q, k, v, kept, block_size=shape, causal=causal, mask=mask, scale=call.scale)
        assert isinstance(o, Tensor)
        if single:
            return o
        place = begun[:, None] + (number[:n] if real is None else (real.cumsum(1) - 1).clamp(min=0))
        return o.gather(2, place[:, None, :, None].expand(batch, heads, -1, o.shape[3]))

    def _kept(
        self, pattern: LocalStride, rows: Tensor, offset: Tensor, columns: int, group: int
    ) -> BlockIndices | Tensor:
        """What blocks of queries keep, for all heads; ``offset``: empty blocks in front of the keys, by sample."""
        if pattern.num_dense_heads:
            j = torch.arange(columns, device=rows.device) - offset[:, None]
            dense = (j[:, None] <= rows[..., None])[:, None].expand(-1, pattern.num_dense_heads, -1, -1)
            sparse = pattern.keeps(rows, j)
            return torch.cat([sparse, dense], 1).repeat_interleave(group, 1)
        found = pattern.indices(rows, columns)
        indices = found.indices + offset[:, None, None, None].to(torch.int32)
        return BlockIndices(*(x.repeat_interleave(group, 1) for x in (indices, found.counts)))


def _placed(q: Tensor, begun: Tensor, real: Tensor | None, rows: int) -> Tensor:
    """Queries behind as many rows as their open block has tokens, real ones in front of the others.

    Args:
        q: ``(batch, heads, n, head_dim)``.
        begun: int64 ``(batch or 1,)``.
        real: bool ``(batch, n)``; None: all.
        rows: of the result.
    """
    place = (torch.arange(rows, device=q.device) - begun[:, None]).clamp(0, q.shape[2] - 1)
    if real is not None:
        place = torch.argsort((~real).to(torch.uint8), dim=1, stable=True).gather(1, place)
    return q.gather(2, place[:, None, :, None].expand(q.shape[0], q.shape[1], -1, q.shape[3]))
