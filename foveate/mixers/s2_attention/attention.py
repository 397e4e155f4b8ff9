"""S2-Attention: every head reads its own shard of the context, and together they read all of it.

Lin et al., "Efficient LLM Training and Serving with Heterogeneous Context Sharding among Attention Heads" (2024, arXiv
2407.17678; kernels: linxihui/dkernel; trained so: Phi-3-small). A head reads a window of blocks and every
``vert_stride``-th block before it, and each head of keys and values other ones
(:mod:`foveate.ops.s2_pattern`)::

    keep(h, i, j) = j <= i and (i - j < local_blocks or (j + h) mod vert_stride == 0)

By default the stride is the number of those heads (at most 16), so that the union of their shards is the full context.
What no head of a stream will read again leaves its cache (:mod:`foveate.mixers.s2_attention.cache`).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ...errors import InvalidValue, invalid, unknown_name
from ...measure.cost import Cost, linear_flops
from ...ops.block_sparse_attention import BlockIndices, block_sparse_attention
from ...ops.positions import apply_rope
from ...ops.s2_pattern import LocalStride
from ...ops.softmax_attention import softmax_attention
from ...registry import register
from ...spec import MixerSpec, Order
from ..base import Mixer, check_heads
from ..kv_cache import KVCache, capacity
from ..layout import TokenLayout
from ..parts import Linear
from ..ssm import Packing
from .cache import S2State, ShardCache, counted, extended, read_on, settled, signature
from .documents import Documents

Position = Literal["rope", "none"]
#: The configuration of Phi-3-small's attention (7B, 32 layers, dense ones every second), for a ``dim`` of 4,096.
PUBLISHED = {
    "phi-3-small": {
        "num_heads": 32,
        "num_kv_heads": 8,
        "block_size": 64,
        "local_blocks": 16,
        "vert_stride": 8,
        "dense_every": 2,
        "rope_base": 1_000_000.0,
    }
}
#: The largest stride that is taken by itself.
LARGEST_STRIDE = 16


@register("mixer", "s2_attention")
class S2Attention(Mixer):
    """Attention to a window and to stripes of blocks, other ones in every head.

    Masked tokens are taken out of the sequence: blocks count real tokens. Of a layout, segments are kept apart, each
    document's blocks counted from its own beginning, and positions go to RoPE. With ``causal=False`` stripes are
    measured from the edge of the window and are alike in all heads, as released: their union is not the full context.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim``.
        causal: a token sees itself and earlier ones.
        num_kv_heads: heads of keys and values, which neighbouring heads of queries share; None: ``num_heads``.
        block_size: tokens of a block: a power of two of at least 16.
        small_blocks: any block size from 1 on is legal; the released kernels have none of them.
        local_blocks: blocks of the window, the query's own among them.
        vert_stride: of earlier blocks a head reads one in so many; None: the number of sparse heads of keys and values,
            at most 16, with which nothing is lost. A warning tells where a causal mixer's shards lose something.
        homo_head: all heads have the same stripes.
        num_dense_heads: so many heads of keys and values, the last, read everything.
        head_sliding_step: shift between the stripes of neighbouring heads; None: as released, see
            :class:`~foveate.ops.s2_pattern.LocalStride`.
        head_sliding_offset: shift of all stripes.
        dense_every: of a network's layers every so many-th reads everything, by :meth:`for_layer`; None: none does.
        layer: number of this layer, from 0, for ``dense_every``.
        position: "rope", rotary embedding (rotate-half convention), or "none".
        rope_base: of the rotary embedding.
        bias: the four projections have biases.

    Raises:
        InvalidValue: an option that is not legal.
    """

    spec = MixerSpec(
        ranks=(1,),
        causal="strict",
        streaming="exact",
        layout=True,
        segments=True,
        order=Order(flops=2.0, memory=1.0),
    )

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = True,
        num_kv_heads: int | None = None,
        block_size: int = 64,
        small_blocks: bool = False,
        local_blocks: int = 4,
        vert_stride: int | None = None,
        homo_head: bool = False,
        num_dense_heads: int = 0,
        head_sliding_step: int | None = None,
        head_sliding_offset: int = 0,
        dense_every: int | None = None,
        layer: int = 0,
        position: Position = "rope",
        rope_base: float = 10000.0,
        bias: bool = True,
    ) -> None:
        super().__init__(dim, causal=causal)
        self.num_heads, self.head_dim = num_heads, check_heads(dim, num_heads)
        if dense_every is not None and (not isinstance(dense_every, int) or dense_every < 1):
            raise invalid("dense_every", dense_every, "a positive whole number of layers is needed, or None")
        for option, number in (
            ("layer", layer),
            ("head_sliding_step", 0 if head_sliding_step is None else head_sliding_step),
            ("head_sliding_offset", head_sliding_offset),
        ):
            if not isinstance(number, int) or number < 0:
                raise invalid(option, number, "a whole number, 0 or more, is needed")
        small = small_blocks or not isinstance(block_size, int) or block_size < 1
        if not small and (block_size < 16 or block_size & (block_size - 1)):
            raise invalid("block_size", block_size, "it must be a power of two of at least 16, or small_blocks=True")
        if not isinstance(local_blocks, int) or local_blocks < 1:
            raise invalid("local_blocks", local_blocks, "the window has at least the query's own block: 1 or more")
        if position not in get_args(Position):
            raise invalid("position", position, f"it must be one of {', '.join(get_args(Position))}")
        if position == "rope" and self.head_dim % 2:
            raise invalid("position", position, f"RoPE turns channel pairs, and dim / num_heads is {self.head_dim}")
        if not 0 < rope_base < math.inf:
            raise invalid("rope_base", rope_base, "it must be positive and finite")
        pattern = LocalStride(
            num_heads=num_heads,
            block_size=block_size,
            local_blocks=local_blocks,
            vert_stride=1 if vert_stride is None else vert_stride,
            homo_head=homo_head,
            num_kv_heads=num_kv_heads,
            num_dense_heads=num_dense_heads,
            head_sliding_step=head_sliding_step,
            head_sliding_offset=head_sliding_offset,
            causal=causal,
        )
        if vert_stride is None:
            pattern = replace(pattern, vert_stride=min(LARGEST_STRIDE, max(1, pattern.sparse_heads)))
        self.dense = dense_every is not None and (layer + 1) % dense_every == 0
        if self.dense:
            pattern = replace(pattern, homo_head=False, num_dense_heads=pattern.kv_heads)
        self.pattern, self.position, self.rope_base = pattern, position, rope_base
        if causal and not pattern.covers():
            lost = pattern.vert_stride - len(set(pattern.residues))
            warnings.warn(
                f"{type(self).__name__}: {lost} of {pattern.vert_stride} blocks are on no head's stripes, and behind "
                f"the window of {local_blocks} blocks nobody reads them: take a vert_stride of at most the number of "
                f"sparse heads of keys and values, other shifts of the heads, or a dense head.",
                stacklevel=2,
            )
        self.kv_dim = pattern.kv_heads * self.head_dim
        self.q_proj = Linear(dim, dim, bias=bias)
        self.k_proj = Linear(dim, self.kv_dim, bias=bias)
        self.v_proj = Linear(dim, self.kv_dim, bias=bias)
        self.out_proj = Linear(dim, dim, bias=bias)

    @classmethod
    def of_size(cls, name: str, dim: int = 4096, **options: Any) -> S2Attention:
        """A published configuration, a key of :data:`PUBLISHED`; options replace its own.

        Raises:
            UnknownName: no such configuration.
        """
        if name not in PUBLISHED:
            raise unknown_name("published size", name, PUBLISHED)
        return cls(dim, **{**PUBLISHED[name], **options})

    @classmethod
    def options_for(cls, grid: tuple[int, ...]) -> dict[str, Any]:
        """Blocks of a 16th of the sequence, rounded down to a power of two, but 16 to 64 tokens."""
        return {"block_size": min(64, max(16, 1 << (max(1, grid[0] // 16).bit_length() - 1)))}

    @classmethod
    def for_layer(cls, index: int, depth: int, dim: int, **options: Any) -> S2Attention:
        """The layer with this number: dense or not, as ``dense_every`` says."""
        return cls(dim, **{"layer": index, **options})

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor:
        """Mix ``(batch, length, dim)``; see :class:`~foveate.mixers.Mixer`."""
        self.check_input(x, mask, context, layout)
        positions = None if layout is None else layout.positions
        segments = None if layout is None else layout.segments
        packing = None if mask is None else Packing.of(mask)
        if packing is not None:
            x = packing.pack(x)
            segments = None if segments is None else segments.gather(1, packing.order)
            positions = None if positions is None else positions.expand(x.shape[:2]).gather(1, packing.order)
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)
        q, k, v = self._project(x, positions)
        valid = None if packing is None else packing.valid
        if segments is None:
            o = self._attend(q, k, v, valid, None)
        else:
            documents = Documents.of(segments, valid, self.pattern.block_size)
            q, k, v = map(documents.put, (q, k, v))
            o = documents.take(self._attend(q, k, v, documents.valid, documents))
        y = self.out_proj(o.transpose(1, 2).flatten(2))
        return y if packing is None else packing.unpack(y)

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> S2State:
        """Nothing read yet; keys and values will be in ``dtype`` (default: that of the weights).

        Raises:
            InvalidType: the mixer is not causal.
        """
        if not self.causal:
            raise self._no_streaming()
        weight, pattern, sparse, dense = self.k_proj.weight, self.pattern, None, None
        device, dtype = device or weight.device, dtype or weight.dtype
        if pattern.sparse_heads:
            sparse = ShardCache.empty(pattern, batch_size, self.head_dim, device, dtype)
        if pattern.num_dense_heads:
            dense = KVCache.empty(batch_size, pattern.num_dense_heads, self.head_dim, device, dtype)
        return S2State(sparse, dense)

    def prefill(self, x: Tensor, state: S2State, mask: Tensor | None = None) -> tuple[Tensor, S2State]:
        """Read ``(batch, length, dim)`` after ``state``; masked tokens are taken out.

        Raises:
            InvalidValue: the state is not of this mixer or of another batch.
        """
        if not self.causal:
            raise self._no_streaming()
        self.check_stream(x, state, mask)
        packing = None if mask is None else Packing.of(mask)
        x = x if packing is None else packing.pack(x)
        q, k, v = self._project(x, self._following(state, x.shape[1]))
        cut, valid = self.pattern.sparse_heads, None if packing is None else packing.valid
        queries, sparse, dense, parts = cut * self._group, state.sparse, state.dense, []
        if sparse is not None:
            o, sparse = self._stream(q[:, :queries], k[:, :cut], v[:, :cut], sparse, valid)
            parts.append(o)
        if dense is not None:
            dense = dense.extend(k[:, cut:], v[:, cut:], valid)
            keys, values = (buffer[:, :, : dense.length].to(q.dtype) for buffer in (dense.keys, dense.values))
            seen = None if dense.slots is None else dense.slots >= 0
            parts.append(self._read_all(q[:, queries:], keys, values, seen))
        o = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        y = self.out_proj(o.transpose(1, 2).flatten(2))
        return y if packing is None else packing.unpack(y), S2State(sparse, dense)

    def step(self, x_t: Tensor, state: S2State) -> tuple[Tensor, S2State]:
        """Read one token ``(batch, dim)``.

        Raises:
            InvalidValue: anything but one token per sample, or a state that does not fit.
        """
        self.check_step(x_t, state)
        y, state = self.prefill(x_t[:, None], state)
        return y[:, 0], state

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections, the blocks that are kept, whole ones, and all pairs in dense heads."""
        n, dim, pattern = grid[0], self.dim, self.pattern
        blocks = -(-n // pattern.block_size)
        most = pattern.indices(torch.arange(blocks), blocks).indices.shape[-1] if pattern.sparse_heads else 0
        pairs = pattern.sparse_heads * self._group * blocks * most * pattern.block_size**2
        pairs += pattern.num_dense_heads * self._group * n * n
        # x, queries, keys, values, the heads' outputs and one number per row, of what RoPE turns a copy head by head.
        saved = 3 * dim + 2 * self.kv_dim + self.num_heads
        return Cost(
            flops=linear_flops(batch * n, dim, 2 * dim + 2 * self.kv_dim) + 4 * batch * pairs * self.head_dim,
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * batch * n * saved,
            state_bytes=self._state_bytes(n, batch) if self.causal else 0,
        )

    def _state_bytes(self, n: int, batch: int) -> int:
        pattern, width = self.pattern, 8 * self.head_dim
        held = pattern.num_dense_heads * (capacity(n) * width * batch) + 8 * batch * (pattern.num_dense_heads > 0)
        if pattern.sparse_heads:
            # A stream is ready for what comes next, whose window may begin one block later.
            slots = max(pattern.cached_blocks(n // pattern.block_size * pattern.block_size + 1)[: pattern.sparse_heads])
            held += batch * (pattern.sparse_heads * slots * pattern.block_size * width + 8)
        return held + 16

    # Parts ------------------------------------------------------------------------------------------------------------

    @property
    def _group(self) -> int:
        """Heads of queries that share one of keys and values."""
        return self.num_heads // self.pattern.kv_heads

    def _project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(batch, heads, length, head_dim)``, queries and keys turned."""
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.position == "rope":
            q, k = apply_rope(q, positions, self.rope_base), apply_rope(k, positions, self.rope_base)
        return q, k, v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, documents: Documents | None) -> Tensor:
        """The heads' outputs ``(batch, num_heads, length, head_dim)``.

        Args:
            valid: bool ``(batch, length)``; None: all. What is not valid stands behind what is, or behind its document.
        """
        cut, parts = self.pattern.sparse_heads, []
        queries = cut * self._group
        if cut:
            parts.append(self._shards(q[:, :queries], k[:, :cut], v[:, :cut], valid, documents))
        if queries < self.num_heads:
            seen = None if self.causal else valid
            if documents is not None:
                seen = documents.together(self.pattern.block_size)
            parts.append(self._read_all(q[:, queries:], k[:, cut:], v[:, cut:], seen))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _read_all(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
        """Dense heads."""
        if self._group > 1:
            k, v = k.repeat_interleave(self._group, 1), v.repeat_interleave(self._group, 1)
        return softmax_attention(q, k, v, causal=self.causal, mask=seen)

    def _shards(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, documents: Documents | None) -> Tensor:
        """Sparse heads; arguments as :meth:`_attend` has them."""
        pattern, size = self.pattern, self.pattern.block_size
        count = -(-q.shape[2] // size)
        if documents is None:
            found = pattern.indices(torch.arange(count, device="cpu"), count)
            found = BlockIndices(found.indices[None].to(q.device), found.counts[None].to(q.device))
        else:
            found = pattern.indices(torch.arange(count, device=q.device) - documents.first, count)
            if not self.causal:  # the document may end before the last block
                slot = torch.arange(found.indices.shape[-1], device=q.device)
                inside = (found.indices < documents.blocks[:, None, :, None]) & (slot < found.counts[..., None])
                found = found._replace(counts=inside.sum(-1, dtype=torch.int32))
            first = documents.first[:, None, :, None].to(torch.int32)
            found = found._replace(indices=found.indices + first)
        if pattern.homo_head or not pattern.absolute:
            found = BlockIndices(found.indices[:, :1], found.counts[:, :1])
        elif self._group > 1:
            found = BlockIndices(*(x.repeat_interleave(self._group, 1) for x in found))
        mask = None if self.causal else valid  # what is not valid comes too late to be seen
        o = block_sparse_attention(q, k, v, found, block_size=size, causal=self.causal, mask=mask)
        assert isinstance(o, Tensor)
        return o

    def _following(self, state: S2State, count: int) -> Tensor:
        """Positions of the next tokens: int64 ``(count,)``, or ``(batch, count)`` where samples differ."""
        held = state.sparse
        if held is None:
            return state.dense.positions(count, None)  # type: ignore[union-attr]
        following = torch.arange(count, device=held.position.device)
        return following + (held.read if held.read >= 0 else held.position[:, None])

    def _stream(
        self, q: Tensor, k: Tensor, v: Tensor, cache: ShardCache, valid: Tensor | None
    ) -> tuple[Tensor, ShardCache]:
        """Sparse heads of the next tokens, and the state after them."""
        pattern, counts = self.pattern, None if valid is None else valid.sum(1)
        if not cache.read:  # nothing was read
            return self._shards(q, k, v, None, None), settled(pattern, cache, k, v, counted(cache, k.shape[2], counts))
        keys, values, held, after = extended(pattern, cache, k, v, counts)
        if q.shape[2] > 1:
            return read_on(pattern, cache.places(), cache.begun(), q, keys, values, held), after
        q = q.unflatten(1, (pattern.sparse_heads, self._group)).squeeze(3)  # what a group asks are queries of one head
        o = softmax_attention(q, keys, values, mask=None if held is None else held[:, :, None])
        return o.flatten(1, 2).unsqueeze(2), after

    def _check_state(self, given: Any, batch: int) -> None:
        super()._check_state(given, batch)
        for name, made in (("sparse", self.pattern.sparse_heads), ("dense", self.pattern.num_dense_heads)):
            if (getattr(given, name) is None) == bool(made):
                raise InvalidValue(f"{type(self).__name__}: the state is of other {name} heads; here are {made}.")
        if given.sparse is not None and given.sparse.pattern != signature(self.pattern):
            raise InvalidValue(f"{type(self).__name__}: the state is of another pattern of blocks.")
