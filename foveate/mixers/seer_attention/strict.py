"""SeerAttention-R as a layer: every token chooses for itself which blocks of the past it reads.

Gao et al., "SeerAttention-R: Sparse Attention Adaptation for Long Reasoning" (2025, arXiv 2506.08889), the gate for
decoding. Queries are not pooled over time; the heads that share keys share a choice, by the mean of their queries. Keys
of a block are pooled and projected once it is full, and kept: a step asks these, and reads the best blocks and the open
one. Since nothing of a token's choice comes later, the layer is strictly causal, and a stream is exact.

In training attention is dense and the gate learns each token's own map over the full blocks before it. The release
scores the open block too, which is kept in any case; here it is left out of the gate's softmax.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...errors import invalid
from ...measure.cost import Cost, linear_flops
from ...ops.block_gate import Pool, block_rope, gate_kl_loss, gate_logits, pool_blocks, turn_blocks
from ...ops.block_sparse_attention import BlockIndices, block_sparse_attention
from ...ops.pooled_attention_target import pooled_attention_target
from ...registry import register
from ...spec import MixerSpec, Order
from ..kv_cache import KVCache, capacity
from ..layout import TokenLayout
from ..state import State, state
from .gate import HeadLinear
from .prompt import SeerAttention
from .slots import BlockSlots


@state
class StrictSeerState(State):
    """Streaming state of :class:`StrictSeerAttention`.

    Attributes:
        cache: turned keys, and values, of everything read.
        pooled: ``(batch, kv_heads, full blocks, gate_dim)``: what the gate knows of them; empty where masked tokens
            were read, for blocks then begin elsewhere in every sample and are pooled anew.
    """

    cache: KVCache
    pooled: Tensor


class TokenGate(nn.Module):
    """The gate's two projections, named as in the release.

    Args:
        head_dim, kv_heads: of the attention.
        gate_dim: width of the gate.
        pools: of the keys.
    """

    def __init__(self, head_dim: int, kv_heads: int, gate_dim: int, pools: tuple[Pool, ...]) -> None:
        super().__init__()
        self.pools = pools
        self.attngate_linear_q = HeadLinear(kv_heads, head_dim, gate_dim)
        self.attngate_linear_k = HeadLinear(kv_heads, head_dim * len(pools), gate_dim)

    def queries(self, q: Tensor) -> Tensor:
        """``(batch, heads, length, head_dim)``, not turned, to ``(batch, kv_heads, length, gate_dim)``."""
        heads = self.attngate_linear_q.weight.shape[0]
        return self.attngate_linear_q(q.unflatten(1, (heads, -1)).mean(2))

    def keys(self, k: Tensor, block_size: int, mask: Tensor | None = None) -> Tensor:
        """``(batch, kv_heads, length, head_dim)``, not turned, to ``(batch, kv_heads, blocks, gate_dim)``."""
        return self.attngate_linear_k(pool_blocks(k, block_size, self.pools, mask))


@register("mixer", "strict_seer_attention", system="seer_attention")
class StrictSeerAttention(SeerAttention):
    """Causal attention of each token to the open block and to the full blocks that a gate chooses for it.

    What is not said here is as in :class:`SeerAttention`: masks, documents, training.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim``.
        num_kv_heads: heads of keys and values, which divides ``num_heads``; None: as many.
        causal: must be True.
        block_size: tokens of a block.
        top_k: full blocks that a token reads, at most.
        gate_dim: width of the gate, even; None: that of a head.
        k_pool: what the gate pools keys by.
        gate_loss: factor of the gate's loss.
        rope_base: of the rotary embeddings of tokens and blocks.
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
        order=Order(flops=1.0, memory=1.0),
    )

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        num_kv_heads: int | None = None,
        causal: bool = True,
        block_size: int = 64,
        top_k: int = 4,
        gate_dim: int | None = None,
        k_pool: Sequence[Pool] = ("max", "min", "avg"),
        gate_loss: float = 10.0,
        rope_base: float = 10000.0,
        bias: bool = True,
    ) -> None:
        super().__init__(
            dim,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            causal=causal,
            block_size=block_size,
            gate_dim=gate_dim,
            k_pool=k_pool,
            gate_loss=gate_loss,
            rope_base=rope_base,
            bias=bias,
        )
        if not isinstance(top_k, int) or top_k < 1:
            raise invalid("top_k", top_k, "a positive whole number of blocks is needed")
        self.top_k, self.gate_dim = top_k, self.attn_gate.gate_dim
        pools = self.attn_gate.k_pool
        self.attn_gate = TokenGate(self.head_dim, self.num_kv_heads, self.gate_dim, pools)  # type: ignore[assignment]

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
        self.aux_losses = {}
        positions = None if layout is None else layout.positions
        segments = None if layout is None else layout.segments
        slots = None
        if mask is not None or segments is not None:
            slots = BlockSlots.of(mask, segments, self.block_size)
            x = slots.pack(x)
            positions = None if positions is None else positions.expand(x.shape[0], -1).gather(1, slots.order)
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device) if slots is None else slots.positions
        q, k, v = self._project(x)
        turned = self._turn(q, positions, x.dtype), self._turn(k, positions, x.dtype)
        y = self._read_slots(q, k, *turned, v, positions, slots)
        return y if slots is None else slots.unpack(y)

    def init_state(  # type: ignore[override]
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> StrictSeerState:
        """Nothing read yet; keys, values and pools will be in ``dtype`` (default: that of the weights)."""
        cache = super().init_state(batch_size, device, dtype)
        return StrictSeerState(cache, cache.keys.new_zeros(batch_size, self.num_kv_heads, 0, self.gate_dim))

    def prefill(  # type: ignore[override]
        self, x: Tensor, state: StrictSeerState, mask: Tensor | None = None
    ) -> tuple[Tensor, StrictSeerState]:
        """Read ``(batch, length, dim)`` after ``state``; masked tokens are taken out."""
        self.check_stream(x, state, mask)
        x = x if mask is None else x.masked_fill(~mask[..., None], 0)
        (q, k, v), past, count = self._project(x), state.cache, x.shape[1]
        new = past.positions(count, mask)
        turned, size = self._turn(q, new, x.dtype), self.block_size
        cache = past.extend(self._turn(k, new), v, mask)
        keys, values = (buffer[:, :, : cache.length].to(x.dtype) for buffer in (cache.keys, cache.values))
        if cache.slots is not None:
            y = self._read_packed(q, turned, keys, values, cache.slots)
            y = y if mask is None else y.masked_fill(~mask[..., None], 0)
            return y, StrictSeerState(cache, state.pooled[:, :, :0])
        done, full = past.length // size, cache.length // size
        pooled = state.pooled
        if full > done:  # blocks that are full now
            places = torch.arange(done * size, full * size, device=x.device)
            fresh = self._turn(keys[:, :, done * size : full * size].to(q.dtype), -places)
            added = turn_blocks(self._gate.keys(fresh, size), self._rope(places[::size]))
            pooled = torch.cat([pooled, added.to(pooled.dtype)], 2)
        own = new // size
        logits = self._scores(q, new, pooled.to(q.dtype), torch.arange(full, device=x.device) < own[:, None])
        o = self._attend(turned, keys, values, logits, own.expand(x.shape[0], -1), None)
        return self._merge(o), StrictSeerState(cache, pooled)

    def step(self, x_t: Tensor, state: StrictSeerState) -> tuple[Tensor, StrictSeerState]:  # type: ignore[override]
        """Read one token ``(batch, dim)``.

        Raises:
            InvalidValue: anything but one token per sample, or a state that does not fit.
        """
        self.check_step(x_t, state)
        y, state = self.prefill(x_t[:, None], state)
        return y[:, 0], state

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections, the gate, and the products with the blocks that a token reads."""
        n, dim, kv, size = grid[0], self.dim, self.num_kv_heads * self.head_dim, self.block_size
        blocks = -(-n // size)
        gate = 2 * batch * n * self._gate.attngate_linear_q.weight.numel()
        gate += 2 * batch * blocks * self._gate.attngate_linear_k.weight.numel()
        gate += 2 * batch * self.num_kv_heads * n * blocks * self.gate_dim
        pairs = n * size * min(self.top_k + 1, blocks)
        saved = batch * n * (4 * dim + 2 * kv + self.num_heads) + 2 * n * self.head_dim
        full = batch * (n // size) * self.num_kv_heads * self.gate_dim
        return Cost(
            flops=linear_flops(batch * n, dim, 2 * dim + 2 * kv) + gate + 4 * batch * pairs * dim,
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * saved + 4 * batch * self.num_heads * n * min(self.top_k + 1, blocks),
            state_bytes=4 * batch * (2 * capacity(n) * kv + 2) + 8 + 4 * full,
        )

    @property
    def _gate(self) -> TokenGate:
        return self.attn_gate  # type: ignore[return-value]

    def _rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return block_rope(positions, self.gate_dim, self.rope_base)

    def _scores(self, q: Tensor, positions: Tensor, pooled: Tensor, earlier: Tensor) -> Tensor:
        """Logits ``(batch, kv_heads, length, full blocks)`` of plain queries and of turned pools of full blocks."""
        asked = turn_blocks(self._gate.queries(q), self._rope(positions))
        earlier = earlier[None, None] if earlier.ndim == 2 else earlier[:, None]
        return gate_logits(asked, pooled, earlier)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, logits: Tensor, own: Tensor, mask: Tensor | None, causal: bool = True
    ) -> Tensor:
        """Attention to the best blocks and to each token's own.

        Args:
            logits: ``(batch, kv_heads, length, blocks)``, the smallest number where a block is not to be read.
            own: int64 ``(batch, length)``: number of the block that a token is in.
        """
        blocks = -(-k.shape[2] // self.block_size)
        few = min(self.top_k, logits.shape[-1])
        score, best = logits.topk(few, -1) if few else (logits, logits.long())
        chosen = score > torch.finfo(logits.dtype).min
        own = own[:, None, :, None].expand(-1, logits.shape[1], -1, 1)
        # Numbers ascend: the best in their order, then the own one, which is later than all of them.
        listed = torch.cat([torch.where(chosen, best, blocks), own], -1).sort(-1).values
        width = min(self.top_k + 1, blocks)
        indices = listed[..., :width].to(torch.int32)
        counts = (chosen.sum(-1) + 1).clamp(max=width).to(torch.int32)
        group = self.num_heads // self.num_kv_heads
        kept = BlockIndices(*(t.repeat_interleave(group, 1).contiguous() for t in (indices, counts)))
        options = {"block_size": (1, self.block_size), "causal": causal, "mask": mask}
        return block_sparse_attention(q, k, v, kept, **options)  # type: ignore[arg-type, return-value]

    def _read_slots(
        self,
        q: Tensor,
        k: Tensor,
        turned_q: Tensor,
        turned_k: Tensor,
        v: Tensor,
        positions: Tensor,
        slots: BlockSlots | None,
    ) -> Tensor:
        """Outputs ``(batch, length, dim)`` of a whole sequence, whose documents begin blocks of their own."""
        size, length = self.block_size, q.shape[2]
        blocks = -(-length // size)
        valid = None if slots is None else slots.valid
        own = torch.arange(length, device=q.device) // size
        earlier = torch.arange(blocks, device=q.device) < own[:, None]
        if slots is not None:
            rows = slots.documents.gather(1, own.expand(q.shape[0], -1))
            earlier = earlier & (rows[:, :, None] == slots.documents[:, None, :]) & (rows >= 0)[:, :, None]
        firsts = positions[..., ::size]
        with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):  # a hard choice has no gradient
            plain_q, plain_k = q.detach(), k.detach()
            pooled = turn_blocks(self._gate.keys(plain_k, size, valid), self._rope(firsts))
            logits = self._scores(plain_q, positions, pooled, earlier)
        if not self.training:
            return self._merge(self._attend(turned_q, turned_k, v, logits, own.expand(q.shape[0], -1), valid))
        seen = earlier | (torch.arange(blocks, device=q.device) == own[:, None])
        seen, group = (seen[None, None] if seen.ndim == 2 else seen[:, None]), self.num_heads // self.num_kv_heads
        o = block_sparse_attention(turned_q, turned_k, v, seen[:, :, ::size], block_size=size, mask=valid)
        target = pooled_attention_target(turned_q, turned_k, block_size=(1, size), mask=valid, visible=seen)
        target = target.unflatten(1, (-1, group)).amax(2)  # of heads that share a choice
        target = target * (earlier[None, None] if earlier.ndim == 2 else earlier[:, None])
        total = target.sum(-1, keepdim=True)
        self.aux_losses = {"gate": self.gate_loss * gate_kl_loss(logits, target / total.where(total > 0, 1.0))}
        return self._merge(o)  # type: ignore[arg-type]

    def _read_packed(self, q: Tensor, turned: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> Tensor:
        """The last tokens of a stream with gaps: what was read is moved together, so that blocks count real tokens.

        Args:
            slots: int64 ``(batch, keys)``: positions, -1 for masked tokens.
        """
        real, count, size = slots >= 0, q.shape[2], self.block_size
        packed = BlockSlots.of(real, None, size)

        def together(t: Tensor) -> Tensor:
            return packed.pack(t.transpose(1, 2).flatten(2)).unflatten(2, (t.shape[1], -1)).transpose(1, 2)

        keys, values = together(keys), together(values)
        places = packed.positions
        plain = self._turn(keys.to(q.dtype), -places)
        pooled = turn_blocks(self._gate.keys(plain, size, packed.valid), self._rope(places[::size]))
        asked = slots[:, -count:].clamp(min=0)
        own = asked // size
        blocks = torch.arange(pooled.shape[2], device=q.device)
        logits = self._scores(q, asked, pooled, blocks < own[..., None])
        if count == 1:  # the last token of its sample: what is behind it is nobody's
            return self._merge(self._attend(turned, keys, values, logits, own, packed.valid, causal=False))
        # Each query goes where its key is; the others of these rows are nobody's.
        where, wide = asked[:, None, :, None], turned.new_zeros(*turned.shape[:2], keys.shape[2] + 1, turned.shape[3])
        where = where.masked_fill(~real[:, None, -count:, None], keys.shape[2])
        wide = wide.scatter(2, where.expand_as(turned), turned)[:, :, :-1]
        low = torch.finfo(logits.dtype).min
        rows = logits.new_full((*logits.shape[:2], keys.shape[2] + 1, logits.shape[3]), low)
        rows = rows.scatter(2, where.expand_as(logits), logits)[:, :, :-1]
        every = (places // size).expand(q.shape[0], -1)
        o = self._attend(wide, keys, values, rows, every, packed.valid)
        back = asked[:, None, :, None].expand(-1, o.shape[1], -1, o.shape[3])
        return self._merge(o.gather(2, back))
