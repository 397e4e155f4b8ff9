"""HiP attention as a layer: softmax attention to keys that a tree search finds, to a window and to the first ones.

"HiP Attention: Sparse Sub-Quadratic Attention with Hierarchical Attention Pruning" (arXiv 2406.09827). The
layer has the parameters of softmax attention: what is trained with one can be run with the other. The search is in
:mod:`foveate.ops.hip_search`.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import InvalidValue, invalid
from ...measure.cost import Cost, linear_flops
from ...ops.block_sparse_attention import BlockIndices
from ...ops.documents import document_numbers
from ...ops.hip_attention import attention_flops, hip_attention, hip_flops, hip_mask, listed_blocks
from ...ops.hip_search import HipSearch, Rows
from ...ops.positions import apply_rope
from ...ops.softmax_attention import softmax_attention
from ...registry import register
from ...spec import MixerSpec, Order
from ..base import Mixer, check_heads
from ..kv_cache import KVCache, capacity
from ..layout import TokenLayout
from ..parts import Linear
from ..ssm import Packing
from ..state import State, state
from .documents import read_documents

Position = Literal["rope", "none"]


@state
class HipState(State):
    """Keys and values of everything read, and what the open block of queries keeps.

    Attributes:
        cache: keys as they are compared, turned already.
        kept: int32 ``(batch, heads, most)``, numbers of blocks of keys, ascending.
        counts: int32 ``(batch, heads)``, how many there are.
    """

    cache: KVCache
    kept: Tensor
    counts: Tensor


@register("mixer", "hip_attention")
class HipAttention(Mixer):
    """Causal attention to about ``mask_k`` keys of any age, a window and sinks: O(T log T) time.

    The first of every ``block_size_q`` tokens searches, and the others read what it found. Masked tokens are taken out
    of the sequence. Of a layout, documents are read one by one, and positions go to RoPE. A stream keeps all keys and
    values, of which it reads few; samples whose lengths differ are then read one after another.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim``.
        causal: must be True.
        num_kv_heads: heads of keys and values, which must divide ``num_heads``; None: as many.
        mask_k: keys that a search keeps.
        block_size_q: tokens that share what is kept; decoding searches every so many steps.
        block_size_k: keys, or key groups, that are kept or dropped together.
        key_group: neighbouring keys that are scored by their smallest and largest entries; 1: by themselves.
        window: tokens up to its own that a token reads in any case; at least as many as a block has are read.
        num_sinks: first tokens that every token reads.
        representative: the block of keys that stands for a half of a node: the one in its "center" or its "first".
        head_group: neighbouring heads that share a budget.
        dense_queries: first tokens that read everything before them; None: all do, which is softmax attention.
        dense_layers: first layers of a network whose tokens all do, as in the published models: a layer by itself does
            not know its place, a network's layers do (:meth:`for_layer`).
        position: "rope", rotary embedding (rotate-half convention), or "none".
        rope_base: of the rotary embedding.
        bias: the four projections have biases.

    Raises:
        InvalidValue: ``causal=False``, heads that do not divide, or an option that is not legal.
    """

    spec = MixerSpec(
        ranks=(1,),
        causal="strict",
        bidirectional=False,
        streaming="exact",
        layout=True,
        segments=True,
        order=Order(flops=1.1, memory=1.0),
    )
    rows: ClassVar[Rows] = "first"

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = True,
        num_kv_heads: int | None = None,
        mask_k: int = 32,
        block_size_q: int = 8,
        block_size_k: int = 2,
        key_group: int = 1,
        window: int = 32,
        num_sinks: int = 4,
        representative: Literal["center", "first"] = "center",
        head_group: int = 1,
        dense_queries: int | None = 0,
        dense_layers: int = 0,
        position: Position = "rope",
        rope_base: float = 10000.0,
        bias: bool = True,
    ) -> None:
        super().__init__(dim, causal=causal)
        self.num_heads, self.head_dim = num_heads, check_heads(dim, num_heads)
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if not isinstance(self.num_kv_heads, int) or self.num_kv_heads < 1 or num_heads % self.num_kv_heads:
            raise invalid("num_kv_heads", num_kv_heads, f"it must divide num_heads={num_heads}")
        self.search = HipSearch(
            mask_k=mask_k,
            block_size_q=block_size_q,
            block_size_k=block_size_k,
            key_group=key_group,
            window=window,
            representative=representative,
            rows=self.rows,
            head_group=head_group,
        )
        if num_heads % head_group:
            raise invalid("head_group", head_group, f"it must divide num_heads={num_heads}")
        for name, value in (
            ("num_sinks", num_sinks),
            ("dense_queries", dense_queries or 0),
            ("dense_layers", dense_layers),
        ):
            if not isinstance(value, int) or value < 0:
                raise invalid(name, value, "a whole number, not negative, is needed")
        if position not in get_args(Position):
            raise invalid("position", position, f"it must be one of {', '.join(get_args(Position))}")
        if position == "rope" and self.head_dim % 2:
            raise invalid("position", position, f"RoPE turns channel pairs, and a head has {self.head_dim} channels")
        if not 0 < rope_base < math.inf:
            raise invalid("rope_base", rope_base, "it must be positive and finite")
        self.num_sinks, self.dense_queries = num_sinks, dense_queries
        self.position, self.rope_base = position, rope_base
        self.q_proj = Linear(dim, dim, bias=bias)
        self.k_proj = Linear(dim, self.num_kv_heads * self.head_dim, bias=bias)
        self.v_proj = Linear(dim, self.num_kv_heads * self.head_dim, bias=bias)
        self.out_proj = Linear(dim, dim, bias=bias)

    @classmethod
    def for_layer(cls, index: int, depth: int, dim: int, **options: Any) -> Self:
        """The first ``dense_layers`` layers read everything; all others are alike."""
        made = cls(dim, **options)
        if index < options.get("dense_layers", 0):
            made.dense_queries = None
        return made

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
            o = self._read(q, k, v, valid)
        else:
            o = read_documents(self._read, q, k, v, document_numbers(segments), valid)
        y = self.out_proj(o.transpose(1, 2).flatten(2))
        return y if packing is None else packing.unpack(y)

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> HipState:
        """Nothing read yet; keys and values will be in ``dtype`` (default: that of the weights)."""
        weight = self.k_proj.weight
        device = device or weight.device
        cache = KVCache.empty(batch_size, self.num_kv_heads, self.head_dim, device, dtype or weight.dtype)
        kept = torch.zeros(batch_size, self.num_heads, self.search.most, dtype=torch.int32, device=device)
        return HipState(cache, kept, kept[..., 0].clone())

    def prefill(self, x: Tensor, state: HipState, mask: Tensor | None = None) -> tuple[Tensor, HipState]:
        """Read ``(batch, length, dim)`` after ``state``; masked tokens are never seen and take no position."""
        self.check_stream(x, state, mask)
        x = x if mask is None else x.masked_fill(~mask[..., None], 0)
        q, k, v = self._project(x, state.cache.positions(x.shape[1], mask))
        cache = state.cache.extend(k, v, mask)
        keys, values = (buffer[:, :, : cache.length].to(q.dtype) for buffer in (cache.keys, cache.values))
        if cache.slots is None:
            o, kept = self._continue(q, keys, values, state.kept, state.counts)
        else:
            o, kept = self._one_by_one(q, keys, values, cache.positions_of_slots(), state, mask)
        y = self.out_proj(o.transpose(1, 2).flatten(2))
        return y if mask is None else y.masked_fill(~mask[..., None], 0), HipState(cache, *kept)

    def step(self, x_t: Tensor, state: HipState) -> tuple[Tensor, HipState]:
        """Read one token ``(batch, dim)``.

        Raises:
            InvalidValue: anything but one token per sample, or a state that does not fit.
        """
        self.check_step(x_t, state)
        y, state = self.prefill(x_t[:, None], state)
        return y[:, 0], state

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections, the products of the search, and those with all keys that are gathered for a block of queries."""
        n, dim, heads, kv = grid[0], self.dim, self.num_heads, self.num_kv_heads * self.head_dim
        dense = n if self.dense_queries is None else min(self._first_dense(), n)
        flops = 4 * batch * dim * dense**2  # a dense product does not spare what lies ahead
        kept = 0
        if dense < n:
            flops += hip_flops(self.search, n - dense, n, heads, self.head_dim, batch)
            flops += attention_flops(self.search, n - dense, n, self.num_sinks, heads, self.head_dim, batch)
            kept = (
                batch
                * -(-(n - dense) // self.search.block_size_q)
                * heads
                * (listed_blocks(self.search, n - dense, n) + 1)
            )
        # Saved: x, q, k, v, the heads' outputs and a copy of them to be merged, one number per row, and what is kept.
        saved = batch * n * (4 * dim + 2 * kv + heads) + kept
        saved += n * self.head_dim if self.position == "rope" else 0
        state_bytes = 8 * batch * (capacity(n) * kv + 1) + 8 + 4 * batch * heads * (self.search.most + 1)
        return Cost(
            flops=flops + linear_flops(batch * n, dim, 2 * dim + 2 * kv),
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * saved,
            state_bytes=state_bytes,
        )

    def _project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values in their heads, the first two turned."""
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.position == "rope":
            q, k = (apply_rope(m, positions, self.rope_base) for m in (q, k))
        return q, k, v

    def _first_dense(self) -> int:
        """Tokens that read everything: whole blocks of queries."""
        size = self.search.block_size_q
        return -(-(self.dense_queries or 0) // size) * size

    def _read(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, kept: BlockIndices | None = None) -> Tensor:
        """Attention of the last tokens; ``valid``: bool ``(batch, keys)``, False for padding behind the real ones."""
        if self.dense_queries is None:
            k, v = (m.repeat_interleave(self.num_heads // self.num_kv_heads, 1) for m in (k, v))
            return softmax_attention(q, k, v, causal=True)
        # Where the first query decides, padding comes too late to be seen.
        mask = valid if self.rows == "block" else None
        given = {"num_sinks": self.num_sinks, "dense_queries": self._first_dense(), "mask": mask, "kept": kept}
        return hip_attention(q, k, v, self.search, **given)

    def _continue(
        self, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, counts: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Attention of new tokens to all, and what the last block of queries keeps.

        Args:
            kept, counts: what the open block keeps.
        """
        length, keys, size = q.shape[2], k.shape[2], self.search.block_size_q
        if self.dense_queries is None:
            return self._read(q, k, v, None), (kept, counts)
        open_ = (keys - length) % size
        if length > 1:  # queries of the open block that are read already stand before the new ones
            q = F.pad(q, (0, 0, open_, 0))
        if open_ and open_ + length <= size:
            found = BlockIndices(kept[:, :, None], counts[:, :, None])
        else:
            found = hip_mask(q, k, self.search)
            width = self.search.most
            listed = F.pad(found.indices[..., :width], (0, max(0, width - found.indices.shape[-1])))
            found = BlockIndices(listed, found.counts)
            if open_:
                lists, numbers = found
                lists = torch.cat([kept[:, :, None], lists[:, :, 1:]], 2)
                found = BlockIndices(lists, torch.cat([counts[:, :, None], numbers[:, :, 1:]], 2))
        o = self._read(q, k, v, None, found)
        return o[:, :, -length:], (found.indices[:, :, -1].contiguous(), found.counts[:, :, -1].contiguous())

    def _one_by_one(
        self, q: Tensor, k: Tensor, v: Tensor, slots: Tensor, state: HipState, mask: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As :meth:`_continue`, for samples that have read different numbers of tokens (``slots`` -1: masked)."""
        outputs, lists, counts = [], [], []
        for sample in range(len(q)):
            new = slice(None) if mask is None else mask[sample]
            there = slots[sample] >= 0
            some_q, some_k, some_v = (
                q[sample : sample + 1, :, new],
                k[sample, :, there][None],
                v[sample, :, there][None],
            )
            one = slice(sample, sample + 1)
            o, kept = torch.zeros_like(q[one]), (state.kept[one], state.counts[one])
            if some_q.shape[2]:
                read, kept = self._continue(some_q, some_k, some_v, *kept)
                o = o.index_copy(2, torch.arange(q.shape[2], device=q.device)[new], read)
            outputs.append(o)
            lists.append(kept[0])
            counts.append(kept[1])
        return torch.cat(outputs), (torch.cat(lists), torch.cat(counts))

    def _check_state(self, given: Any, batch: int) -> None:
        super()._check_state(given, batch)
        if tuple(given.kept.shape) != (batch, self.num_heads, self.search.most):
            raise InvalidValue(
                f"{type(self).__name__}: kept of the state has shape {tuple(given.kept.shape)}; "
                f"({batch}, {self.num_heads}, {self.search.most}) is needed."
            )
