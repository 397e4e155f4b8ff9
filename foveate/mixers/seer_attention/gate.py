"""The gate of SeerAttention: which blocks of a causal attention are worth computing.

Gao et al. 2024 (arXiv 2410.13276, section 3.1). Queries and keys before their rotary embedding are pooled over blocks
of tokens, each head's pools go through a matrix of its own, and the products of what comes out, turned by the blocks'
positions, score every pair of blocks. With one pool of queries and a gate as wide as a head, queries are not projected,
and every head of queries has a matrix for the keys. The names of the parameters are those of the release.

:class:`BlockGrid` says which pairs of blocks there are; :class:`Selection` turns scores into a choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor, nn

from ...errors import InvalidValue, invalid
from ...ops.block_gate import (
    Pool,
    Rope,
    block_rope,
    blocks_from_ratio,
    blocks_from_threshold,
    causal_blocks,
    check_pools,
    gate_logits,
    pool_blocks,
    row_budget,
    turn_blocks,
)
from ..ssm import check_positive

Select = Literal["ratio", "threshold"]


class HeadLinear(nn.Module):
    """A matrix without bias for each head: ``(batch, heads, blocks, channels)`` to ``(..., width)``."""

    def __init__(self, heads: int, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(heads, channels, width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Heads of ``x`` may be fewer: neighbours then read the same one."""
        weight = self.weight.to(x.dtype).unflatten(0, (x.shape[1], -1))
        return (x[:, :, None] @ weight).flatten(1, 2)


class BlockGrid(NamedTuple):
    """Which blocks of keys each block of queries may read.

    Attributes:
        visible: bool ``(1 or batch, 1, rows, blocks)``.
        dense: bool ``(batch, rows)``: the last two rows of each document; None: the last two of all.
        counts: int64 ``(batch, rows)``: blocks of the row's document; None: ``blocks``.
    """

    visible: Tensor
    dense: Tensor | None = None
    counts: Tensor | None = None

    @classmethod
    def of(cls, rows: int, blocks: int, device: torch.device | str | None, documents: Tensor | None = None) -> Self:
        """The causal grid of the last ``rows`` of ``blocks``.

        Args:
            documents: int64 ``(batch, blocks)``: whose block it is, -1 for a block without real tokens; None: one
                document without gaps.
        """
        visible = causal_blocks(rows, blocks, device)
        if documents is None:
            return cls(visible)
        same = (documents[:, -rows:, None] == documents[:, None, :]) & (documents[:, None, :] >= 0)
        later = (same & ~visible[:, 0]).sum(-1)
        return cls((same[:, None] & visible), later < 2, same.sum(-1))


@dataclass(frozen=True)
class Selection:
    """A rule that chooses blocks.

    Args:
        select: "ratio": the best blocks of each row, so many that this share of the causal pairs is kept;
            "threshold": the blocks whose softmax over the row is above it.
        ratio: above 0 and at most 1.
        threshold: 0 keeps all that a softmax does not round away; useful ones are 5e-4 to 5e-3.
        last_block_dense: the last two rows read everything.

    Raises:
        InvalidValue: a value that is not legal.
    """

    select: Select = "ratio"
    ratio: float = 0.5
    threshold: float = 2e-3
    last_block_dense: bool = True

    def __post_init__(self) -> None:
        if self.select not in get_args(Select):
            raise invalid("select", self.select, f"it must be one of {', '.join(get_args(Select))}")
        row_budget(self.ratio, 1)
        if not isinstance(self.threshold, int | float) or not -1 <= self.threshold <= 1:
            raise invalid("threshold", self.threshold, "it must be at most 1, and at least -1")

    def keep(self, logits: Tensor, grid: BlockGrid) -> Tensor:
        """Bool in the shape of ``logits`` ``(batch, heads, rows, blocks)``; every row that may keeps a block."""
        options = {"last_block_dense": self.last_block_dense, "visible": grid.visible}
        options["dense_rows"] = grid.dense if self.last_block_dense else None
        if self.select == "threshold":
            return blocks_from_threshold(logits.float().softmax(-1), self.threshold, **options)
        return blocks_from_ratio(logits, self.ratio, counts=grid.counts, **options)

    def budget(self, blocks: int) -> int:
        """Blocks that a row without documents keeps at most, the dense ones left out."""
        return row_budget(self.ratio, blocks) if self.select == "ratio" else blocks


class AttnGate(nn.Module):
    """Scores of all pairs of blocks, from queries and keys before their rotary embedding.

    Args:
        head_dim: width of queries and keys.
        num_q_heads, num_k_heads: heads of queries and of keys; the second divides the first.
        block_size: tokens of a block.
        gate_dim: width of the gate, even.
        q_pool, k_pool: what queries and keys are pooled by: one to three of "max", "min" and "avg".
        force_double: queries have matrices too, also where they need none.
        rope_base: of the blocks' rotary embedding; None: they have none.

    Raises:
        InvalidValue: heads that do not divide, unknown pools, a block without tokens, an odd width.

    Attributes:
        aux_losses: the last loss of whoever trains it.
        kept: how many pairs of blocks were kept when it was last asked, and how many there were, if that was counted.
    """

    official_keys: ClassVar[dict[str, dict[str, str]]] = {"seerattention": {r"(mask_linear_[qk]\.weight)": r"\1"}}

    def __init__(
        self,
        *,
        head_dim: int,
        num_q_heads: int,
        num_k_heads: int,
        block_size: int = 64,
        gate_dim: int = 128,
        q_pool: Sequence[Pool] = ("avg",),
        k_pool: Sequence[Pool] = ("max", "min", "avg"),
        force_double: bool = False,
        rope_base: float | None = 10000.0,
    ) -> None:
        super().__init__()
        check_positive(head_dim=head_dim, num_q_heads=num_q_heads, num_k_heads=num_k_heads, block_size=block_size)
        if num_q_heads % num_k_heads:
            raise invalid("num_k_heads", num_k_heads, f"it must divide num_q_heads={num_q_heads}")
        if not isinstance(gate_dim, int) or gate_dim < 2 or gate_dim % 2:
            raise invalid("gate_dim", gate_dim, "RoPE turns channel pairs, so it must be a positive even number")
        if rope_base is not None and not rope_base > 0:
            raise invalid("rope_base", rope_base, "it must be positive, or None")
        self.q_pool, self.k_pool = check_pools("q_pool", q_pool), check_pools("k_pool", k_pool)
        self.head_dim, self.num_q_heads, self.num_k_heads = head_dim, num_q_heads, num_k_heads
        self.block_size, self.gate_dim, self.rope_base = block_size, gate_dim, rope_base
        self.doubled = force_double or len(self.q_pool) > 1 or gate_dim != head_dim
        channels = head_dim * len(self.k_pool)
        self.mask_linear_q = HeadLinear(num_q_heads, head_dim * len(self.q_pool), gate_dim) if self.doubled else None
        self.mask_linear_k = HeadLinear(num_k_heads if self.doubled else num_q_heads, channels, gate_dim)
        self.aux_losses: dict[str, Tensor] = {}
        self.kept: tuple[Tensor, Tensor] | None = None

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        *,
        block_mask: Tensor | None = None,
        block_rope: Rope | None = None,
        softmax: bool = True,
        mask: Tensor | None = None,
        q_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Scores of blocks.

        Args:
            q: ``(batch, q_heads, length, head_dim)``, not turned; with fewer queries than keys they are the last, and
                begin where a block does.
            k: ``(batch, k_heads, key_length, head_dim)``, not turned.
            block_mask: bool, broadcastable to ``(batch, q_heads, rows, blocks)``; None: causal.
            block_rope: cosines and sines ``(1 or batch, blocks, width)``; None: of ``rope_base``, at ``positions``.
            softmax: probabilities over blocks; False: logits.
            mask: bool ``(batch, key_length)``, True = a real token; others are in no pool.
            q_mask: bool ``(batch, length)``, the same of queries; None: as ``mask`` says.
            positions: int64 ``(blocks,)`` or ``(batch, blocks)`` of the blocks' first tokens; None: 0, B, 2 B, ...

        Returns:
            ``(batch, q_heads, rows, blocks)``.

        Raises:
            InvalidValue: shapes that do not fit.
        """
        self._check(q, k)
        past = k.shape[2] - q.shape[2]
        if q_mask is None and mask is not None:
            q_mask = mask[:, past:]
        pooled_q = self.pooled_queries(q, q_mask)
        pooled_k = self.pooled_keys(k, mask)
        rows, blocks = pooled_q.shape[2], pooled_k.shape[2]
        if block_rope is None and self.rope_base is not None:
            block_rope = self.rope(blocks, k.device) if positions is None else self.rope_at(positions)
        if block_rope is not None:
            pooled_q = turn_blocks(pooled_q, (block_rope[0][:, -rows:], block_rope[1][:, -rows:]))
            pooled_k = turn_blocks(pooled_k, block_rope)
        if block_mask is not None and (block_mask.ndim != 4 or block_mask.shape[-2:] != (rows, blocks)):
            shape = tuple(block_mask.shape)
            raise InvalidValue(
                f"block_mask has shape {shape}; (batch or 1, heads or 1, {rows}, {blocks}) is needed for {q.shape[2]} "
                f"queries and {k.shape[2]} keys in blocks of {self.block_size}."
            )
        logits = gate_logits(pooled_q, pooled_k, block_mask)
        return logits.softmax(-1) if softmax else logits

    def __getstate__(self) -> dict[str, Any]:
        # A loss hangs on its graph, which cannot be copied.
        return {**self.__dict__, "aux_losses": {}, "kept": None}

    def pooled_queries(self, q: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pooled and projected, not turned: ``(batch, q_heads, rows, gate_dim)``."""
        pooled = pool_blocks(q, self.block_size, self.q_pool, mask)
        return pooled if self.mask_linear_q is None else self.mask_linear_q(pooled)

    def pooled_keys(self, k: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pooled and projected, not turned: ``(batch, k_heads or q_heads, blocks, gate_dim)``."""
        return self.mask_linear_k(pool_blocks(k, self.block_size, self.k_pool, mask))

    def rope(self, blocks: int, device: torch.device | str | None = None) -> Rope:
        """The rotary embedding of so many blocks from the first token on."""
        return self.rope_at(torch.arange(blocks, device=device) * self.block_size)

    def rope_at(self, positions: Tensor) -> Rope:
        """The rotary embedding of blocks whose first tokens stand there."""
        assert self.rope_base is not None
        return block_rope(positions, self.gate_dim, self.rope_base)

    def flops(self, rows: int, blocks: int, batch: int = 1) -> int:
        """Matrix products of one call."""
        found = 2 * batch * self.num_q_heads * rows * blocks * self.gate_dim
        for linear, count in ((self.mask_linear_q, rows), (self.mask_linear_k, blocks)):
            found += 0 if linear is None else 2 * batch * count * linear.weight.numel()
        return found

    def _check(self, q: Tensor, k: Tensor) -> None:
        shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}"
        if q.ndim != 4 or k.ndim != 4 or q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1]:
            raise InvalidValue(f"q and k must be (batch, heads, length, {self.head_dim}) of one batch, not {shapes}.")
        if (q.shape[1], k.shape[1], q.shape[3]) != (self.num_q_heads, self.num_k_heads, self.head_dim):
            raise InvalidValue(
                f"{shapes} is not for this gate: it has {self.num_q_heads} heads of queries and {self.num_k_heads} of "
                f"keys, {self.head_dim} wide."
            )
        past = k.shape[2] - q.shape[2]
        if past < 0 or past % self.block_size:
            raise InvalidValue(
                f"{q.shape[2]} queries and {k.shape[2]} keys are not possible: queries are the last, and begin where a "
                f"block of {self.block_size} does."
            )
