"""SeerAttention: causal attention that skips the blocks which a learned gate calls unimportant.

Gao et al., "SeerAttention: Learning Intrinsic Sparse Attention in Your LLMs" (2024, arXiv 2410.13276). Beside the
attention stands a gate (:mod:`foveate.mixers.seer_attention.gate`) that scores pairs of blocks from pooled queries and
keys. In training attention is dense and the gate learns to predict its map, pooled by blocks
(:mod:`foveate.ops.pooled_attention_target`); afterwards only the pairs that the gate chooses are computed. The choice
is hard, so the gate learns from the map alone. Single tokens of a stream read everything, as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import invalid
from ...measure.cost import Cost, linear_flops
from ...ops.block_gate import Pool, gate_kl_loss
from ...ops.block_sparse_attention import block_sparse_attention, blocks_to_indices
from ...ops.handwritten import sum_dtype
from ...ops.linear import linear
from ...ops.pooled_attention_target import normalised, pooled_attention_target
from ...ops.positions import apply_rope
from ...ops.softmax_attention import softmax_attention
from ...registry import register
from ...spec import MixerSpec, Order
from ..base import Mixer, check_heads
from ..kv_cache import KVCache, capacity
from ..layout import TokenLayout
from ..parts import Linear
from .gate import AttnGate, BlockGrid, Select, Selection
from .slots import BlockSlots

Training = Literal["dense", "sparse"]


@register("mixer", "seer_attention")
class SeerAttention(Mixer):
    """Causal block-sparse attention behind a distilled gate.

    In training mode ``aux_losses["gate"]`` has ``gate_loss`` times the divergence of the gate from the pooled map; its
    gradients reach the gate alone. In evaluation mode a block of queries reads the blocks that the gate chooses for it:
    which ones they are depends on all tokens of the block, later ones included.

    Masked tokens are taken out of the sequence: blocks count real tokens. Of a layout, segments begin blocks of their
    own, and each is what it would be alone; positions go to the rotary embeddings. A stream counts blocks from its
    first token: pieces that end where a block does give what one piece gives, but for ``last_block_dense``, which
    speaks of each piece's end, and for the budget, which follows what has been read; a single token reads everything.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim``.
        num_kv_heads: heads of keys and values, which divides ``num_heads``; None: as many.
        causal: must be True.
        block_size: tokens of a block.
        gate_dim: width of the gate, even; None: that of a head.
        q_pool, k_pool: what the gate pools queries and keys by: one to three of "max", "min" and "avg".
        force_double: see :class:`~foveate.mixers.seer_attention.gate.AttnGate`.
        select, ratio, threshold, last_block_dense: see :class:`~foveate.mixers.seer_attention.gate.Selection`.
        training: attention in training mode: "dense", or "sparse" as in evaluation, for fine-tuning under the gate.
        gate_loss: factor of the gate's loss.
        rope_base: of the rotary embeddings of tokens and blocks.
        bias: the four projections have biases.

    Raises:
        InvalidValue: ``causal=False``, heads that do not divide, or an option that is not legal.
    """

    spec = MixerSpec(
        ranks=(1,),
        causal="values",
        bidirectional=False,
        streaming="own",
        layout=True,
        segments=True,
        order=Order(flops=2.0, memory=1.0),
    )

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        num_kv_heads: int | None = None,
        causal: bool = True,
        block_size: int = 64,
        gate_dim: int | None = None,
        q_pool: Sequence[Pool] = ("avg",),
        k_pool: Sequence[Pool] = ("max", "min", "avg"),
        force_double: bool = False,
        select: Select = "ratio",
        ratio: float = 0.5,
        threshold: float = 2e-3,
        last_block_dense: bool = True,
        training: Training = "dense",
        gate_loss: float = 10.0,
        rope_base: float = 10000.0,
        bias: bool = True,
    ) -> None:
        super().__init__(dim, causal=causal)
        self.num_heads, self.head_dim = num_heads, check_heads(dim, num_heads)
        kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if not isinstance(kv_heads, int) or kv_heads < 1 or num_heads % kv_heads:
            raise invalid("num_kv_heads", num_kv_heads, f"it must divide num_heads={num_heads}")
        if self.head_dim % 2:
            raise invalid("num_heads", num_heads, f"RoPE turns channel pairs, and a head has {self.head_dim} channels")
        if training not in get_args(Training):
            raise invalid("training", training, f"it must be one of {', '.join(get_args(Training))}")
        for name, value, least in (("gate_loss", gate_loss, 0.0), ("rope_base", rope_base, math.ulp(0.0))):
            if not least <= value < math.inf:
                raise invalid(name, value, "it must be positive and finite" if least else "it must be finite and >= 0")
        self.num_kv_heads, self.block_size, self.rope_base = kv_heads, block_size, rope_base
        self.train_form, self.gate_loss = training, gate_loss
        self.selection = Selection(select, ratio, threshold, last_block_dense)
        self.q_proj = Linear(dim, dim, bias=bias)
        self.k_proj = Linear(dim, kv_heads * self.head_dim, bias=bias)
        self.v_proj = Linear(dim, kv_heads * self.head_dim, bias=bias)
        self.out_proj = Linear(dim, dim, bias=bias)
        self.attn_gate = AttnGate(
            head_dim=self.head_dim,
            num_q_heads=num_heads,
            num_k_heads=kv_heads,
            block_size=block_size,
            gate_dim=self.head_dim if gate_dim is None else gate_dim,
            q_pool=q_pool,
            k_pool=k_pool,
            force_double=force_double,
            rope_base=rope_base,
        )

    @classmethod
    def options_for(cls, grid: tuple[int, ...]) -> dict[str, int]:
        """Blocks of 64 tokens from 1,024 on, as published; shorter sequences have about sixteen, of at least 2."""
        tokens = max(1, math.prod(grid))
        return {"block_size": min(64, max(2, 1 << max(0, tokens.bit_length() - 5)))}

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
        valid, documents = (None, None) if slots is None else (slots.valid, slots.documents)
        y = self._read(q, k, *turned, v, valid, None, positions, documents)
        return y if slots is None else slots.unpack(y)

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> KVCache:
        """An empty cache that will hold turned keys, and values, in ``dtype`` (default: that of the weights)."""
        weight = self.k_proj.weight
        return KVCache.empty(
            batch_size, self.num_kv_heads, self.head_dim, device or weight.device, dtype or weight.dtype
        )

    def prefill(self, x: Tensor, state: KVCache, mask: Tensor | None = None) -> tuple[Tensor, KVCache]:
        """Read ``(batch, length, dim)`` after ``state``; masked tokens are taken out. One token reads everything."""
        self.check_stream(x, state, mask)
        slots = None if mask is None else BlockSlots.of(mask, None, self.block_size)
        x = x if slots is None else slots.pack(x)
        q, k, v = self._project(x)
        new = state.positions(x.shape[1], None if slots is None else slots.valid)
        turned, past = self._turn(q, new, x.dtype), state.length
        state = state.extend(self._turn(k, new), v, None if slots is None else slots.valid)
        keys, values = (buffer[:, :, : state.length].to(x.dtype) for buffer in (state.keys, state.values))
        places = state.positions_of_slots()
        valid = None if state.slots is None else places >= 0
        if x.shape[1] == 1:
            y = self._read_all(turned, keys, values, valid)
            return y if slots is None else slots.unpack(y), state
        places = places.clamp(min=0)
        plain = self._turn(keys.to(q.dtype), -places) if past else k
        extra = past % self.block_size  # the open block's queries are gone: its row begins with nobody
        asks = None
        if extra:
            q, turned = (F.pad(t, (0, 0, extra, 0)) for t in (q, turned))
            asks = torch.ones(x.shape[0], q.shape[2], dtype=torch.bool, device=x.device)
            asks = asks if valid is None else valid[:, past - extra :].clone()
            asks[:, :extra] = False
        y = self._read(q, plain, turned, keys, values, valid, asks, places, None)[:, extra:]
        return y if slots is None else slots.unpack(y), state

    def step(self, x_t: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        """Read one token ``(batch, dim)``, which reads everything.

        Raises:
            InvalidValue: anything but one token per sample, or a state that does not fit.
        """
        self.check_step(x_t, state)
        y, state = self.prefill(x_t[:, None], state)
        return y[:, 0], state

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections, the gate, and the products of the blocks that are kept in evaluation mode.

        With a threshold, which may keep anything, all blocks are counted. Rows are counted whole, also where causality
        leaves less of them.
        """
        n, dim, kv = grid[0], self.dim, self.num_kv_heads * self.head_dim
        blocks, budget = -(-n // self.block_size), self._static_budget(-(-n // self.block_size))
        pairs = self.block_size**2 * blocks * (blocks if budget is None else 0)
        if budget is not None:
            dense = min(2, blocks) if self.selection.last_block_dense else 0
            pairs = self.block_size**2 * (dense * blocks + (blocks - dense) * min(budget, blocks - dense))
        flops = linear_flops(batch * n, dim, 2 * dim + 2 * kv) + self.attn_gate.flops(blocks, blocks, batch)
        saved = batch * n * (4 * dim + 2 * kv + self.num_heads) + 2 * n * self.head_dim
        return Cost(
            flops=flops + 4 * batch * pairs * dim,
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * saved,
            state_bytes=4 * batch * (2 * capacity(n) * kv + 2) + 8,
        )

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Heads of queries and keys, in float32 at least, for a choice should not hang on roundings; and of values."""
        precise, found = sum_dtype(x.dtype), []
        for layer in (self.q_proj, self.k_proj):
            bias = None if layer.bias is None else layer.bias.to(precise)
            found.append(linear(x.to(precise), layer.weight.to(precise), bias))
        return tuple(y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for y in (*found, self.v_proj(x)))

    def _turn(self, x: Tensor, positions: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return apply_rope(x, positions, self.rope_base).to(x.dtype if dtype is None else dtype)

    def _static_budget(self, blocks: int) -> int | None:
        """Blocks that a row keeps at most where that is known before scores are; None: where it is not."""
        return self.selection.budget(blocks) if self.selection.select == "ratio" else None

    def _read(
        self,
        q: Tensor,
        k: Tensor,
        turned_q: Tensor,
        turned_k: Tensor,
        v: Tensor,
        valid: Tensor | None,
        asks: Tensor | None,
        positions: Tensor,
        documents: Tensor | None,
    ) -> Tensor:
        """Outputs ``(batch, length, dim)`` of queries that begin where a block does.

        Args:
            valid: bool ``(batch, keys)``, real tokens; None: all.
            asks: bool ``(batch, length)``, queries that are pooled; None: as ``valid``.
            positions: int64 ``(keys,)`` or ``(batch, keys)``.
            documents: int64 ``(batch, blocks)``; None: as ``valid`` has them.
        """
        size, gate = self.block_size, self.attn_gate
        rows, blocks = -(-q.shape[2] // size), -(-k.shape[2] // size)
        firsts = positions[..., ::size]
        if valid is not None:  # of a block that begins with nobody, the first token that is there
            spare = blocks * size - k.shape[2]
            there = F.pad(valid, (0, spare)).unflatten(1, (blocks, size))
            places = F.pad(positions.expand(valid.shape[0], -1), (0, spare)).unflatten(1, (blocks, size))
            firsts = places.masked_fill(~there, torch.iinfo(torch.int64).max).amin(2).masked_fill(~there.any(2), 0)
            documents = torch.where(there.any(2), 0, -1) if documents is None else documents
        grid = BlockGrid.of(rows, blocks, q.device, documents)
        options = {"block_mask": grid.visible, "softmax": False, "mask": valid, "q_mask": asks, "positions": firsts}
        rest = {"block_size": size, "mask": valid}
        if not self.training:
            with torch.no_grad():  # a hard choice has no gradient
                kept = self.selection.keep(gate(q, k, **options), grid)
            return self._merge(self._sparse(turned_q, turned_k, v, kept, grid, rest))
        logits = gate(q.detach(), k.detach(), **options)
        if self.train_form == "dense":
            o, largest = block_sparse_attention(turned_q, turned_k, v, grid.visible, return_block_max=True, **rest)  # type: ignore[arg-type]
            target = normalised(largest)
        else:
            o = self._sparse(turned_q, turned_k, v, self.selection.keep(logits.detach(), grid), grid, rest)
            target = pooled_attention_target(turned_q, turned_k, visible=grid.visible, **rest)  # type: ignore[arg-type]
        self.aux_losses = {"gate": self.gate_loss * gate_kl_loss(logits, target)}
        return self._merge(o)

    def _sparse(self, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, grid: BlockGrid, rest: dict) -> Tensor:
        """The blocks that are kept; where every row keeps as many, lists of known length, dense rows apart."""
        rows, blocks = kept.shape[2:]
        budget = self._static_budget(blocks)
        if budget is None or grid.dense is not None:
            return block_sparse_attention(q, k, v, kept, **rest)  # type: ignore[return-value]
        dense = min(2, rows) if self.selection.last_block_dense else 0
        cut, found = (rows - dense) * self.block_size, []
        if cut:
            behind = k.shape[2] - max(0, q.shape[2] - cut)  # no later key is seen
            few = blocks_to_indices(kept[:, :, : rows - dense, : blocks - dense], min(budget, blocks - dense))
            first = {**rest, "mask": None if rest["mask"] is None else rest["mask"][:, :behind]}
            found.append(block_sparse_attention(q[:, :, :cut], k[:, :, :behind], v[:, :, :behind], few, **first))
        if dense:
            found.append(block_sparse_attention(q[:, :, cut:], k, v, grid.visible[:, :, rows - dense :], **rest))
        return torch.cat(found, 2) if len(found) > 1 else found[0]

    def _read_all(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> Tensor:
        """One query of each head to all keys: the heads of a group are queries of one head of keys."""
        grouped = q.view(q.shape[0], self.num_kv_heads, -1, self.head_dim)
        o = softmax_attention(grouped, k, v, mask=None if valid is None else valid[:, None, None, :])
        return self._merge(o.reshape(q.shape))

    def _merge(self, o: Tensor) -> Tensor:
        return self.out_proj(o.transpose(1, 2).flatten(2))
