"""What both layers of the Routing Transformer share: projections, local heads, and the heads that are routed.

The released code's layer (Roy et al. 2021, arXiv 2003.05997): heads that are routed come first, local heads last, no
projection has a bias. Assignments are hard, so what they are made of is computed in float32 whatever the weights are
in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import invalid
from ...measure.cost import linear_flops
from ...ops.handwritten import sum_dtype
from ...ops.local_block_attention import local_block_attention, local_block_flops
from ...ops.positions import apply_rope
from ..base import Mixer, check_heads
from ..parts import Linear
from ..ssm import check_positive
from .online_kmeans import Centroids, Norm, OnlineKMeans

Position = Literal["none", "rope", "relative"]
Turn = Callable[[Tensor], Tensor]


class RoutedMixer(Mixer):
    """Base of the registered layers, which say how tokens are routed.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim``.
        causal: see the layers.
        local_heads: how many of the heads are local; None: half of them.
        num_clusters: centroids of each routed head.
        window: tokens that a routed query sees at most.
        block: places of a local block; None: ``window``.
        look_back: blocks that a local query sees before its own (and behind it, if not causal).
        share_qk: routed keys are the queries.
        norm: of what is routed, see :class:`~foveate.mixers.routing_transformer.OnlineKMeans`.
        position: "none", "rope" or "relative".
        max_relative: distances are clipped there.
        rope_base: of the rotary embedding.
        decay, commitment, centroids: of :class:`~foveate.mixers.routing_transformer.OnlineKMeans`, ``centroids`` as its
            rule.
    """

    routed_rel_k: Tensor | None
    routed_rel_v: Tensor | None
    local_rel_k: Tensor | None
    local_rel_v: Tensor | None

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        causal: bool,
        local_heads: int | None,
        num_clusters: int,
        window: int,
        block: int | None,
        look_back: int,
        share_qk: bool,
        norm: Norm,
        position: Position,
        max_relative: int,
        rope_base: float,
        decay: float,
        commitment: float,
        centroids: Centroids,
    ) -> None:
        super().__init__(dim, causal=causal)
        self.num_heads, self.head_dim = num_heads, check_heads(dim, num_heads)
        self.local_heads = num_heads // 2 if local_heads is None else local_heads
        if not isinstance(self.local_heads, int) or not 0 <= self.local_heads <= num_heads:
            raise invalid("local_heads", local_heads, f"a whole number, 0 ... num_heads={num_heads}, is needed")
        self.routed_heads = num_heads - self.local_heads
        self.block = window if block is None else block
        check_positive(num_clusters=num_clusters, window=window, block=self.block, max_relative=max_relative)
        if not isinstance(look_back, int) or look_back < 0:
            raise invalid("look_back", look_back, "a whole number, 0 or more, is needed")
        if position not in get_args(Position):
            raise invalid("position", position, f"it must be one of {', '.join(get_args(Position))}")
        if position == "rope" and self.head_dim % 2:
            raise invalid("position", position, f"RoPE turns channel pairs, and a head has {self.head_dim} channels")
        if not 0 < rope_base < math.inf:
            raise invalid("rope_base", rope_base, "it must be positive and finite")
        self.num_clusters, self.window, self.look_back = num_clusters, window, look_back
        self.share_qk, self.norm, self.position, self.rope_base = share_qk, norm, position, rope_base
        far, near = self.routed_heads * self.head_dim, self.local_heads * self.head_dim
        self.route_q = Linear(dim, far, bias=False) if far else None
        self.route_k = Linear(dim, far, bias=False) if far and not share_qk else None
        self.local_q = Linear(dim, near, bias=False) if near else None
        self.local_k = Linear(dim, near, bias=False) if near else None
        self.v_proj = Linear(dim, dim, bias=False)
        self.out_proj = Linear(dim, dim, bias=False)
        # Made even where no head is routed, so that options are looked at all the same.
        kmeans = OnlineKMeans(
            max(1, self.routed_heads), num_clusters, self.head_dim,
            decay=decay, commitment=commitment, norm=norm, rule=centroids,
        )  # fmt: skip
        self.kmeans = kmeans if far else None
        for heads, name in ((far, "routed_rel"), (near, "local_rel")):
            for what in "kv":
                table = None
                if heads and position == "relative":
                    table = nn.Parameter(torch.randn(2 * max_relative + 1, self.head_dim) * self.head_dim**-0.5)
                self.register_parameter(f"{name}_{what}", table)

    @classmethod
    def options_for(cls, grid: tuple[int, ...]) -> dict[str, Any]:
        """sqrt(n) clusters for n tokens, with sets of n over that many."""
        n = math.prod(grid)
        clusters = max(1, round(math.sqrt(n)))
        return {"num_clusters": clusters, "window": -(-n // clusters)}

    def no_weight_decay(self) -> list[nn.Parameter]:
        """Embeddings of distances."""
        tables = (self.routed_rel_k, self.routed_rel_v, self.local_rel_k, self.local_rel_v)
        return [table for table in tables if isinstance(table, nn.Parameter)]

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(-2, -3)

    def _values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of the routed heads and of the local ones."""
        routed, local = self._heads(self.v_proj(x)).split([self.routed_heads, self.local_heads], -3)
        return routed, local

    def _routed(self, projection: Linear, x: Tensor) -> Tensor:
        """Queries or keys of the routed heads, in float32 or float64."""
        wide = sum_dtype(x.dtype)
        if x.dtype == wide:
            return self._heads(projection(x))
        return self._heads(F.linear(x.to(wide), projection.weight.to(wide)))

    def _turner(self, positions: Tensor) -> Turn:
        """What rotary positions do to queries and keys."""
        if self.position != "rope":
            return lambda x: x
        return lambda x: apply_rope(x, positions, self.rope_base)

    def _local(self, x: Tensor, v: Tensor, turn: Turn, mask: Tensor | None, **where: Any) -> Tensor:
        """The local heads' outputs ``(batch, heads, length, head_dim)``."""
        assert self.local_q is not None
        assert self.local_k is not None
        q, k = turn(self._heads(self.local_q(x))), turn(self._heads(self.local_k(x)))
        return self._local_read(q, k, v, mask, **where)

    def _local_read(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **where: Any) -> Tensor:
        return local_block_attention(
            q, k, v, self.block, back=self.look_back, ahead=0 if self.causal else self.look_back,
            causal=self.causal, mask=mask, rel_k=self.local_rel_k, rel_v=self.local_rel_v, **where,
        )  # fmt: skip

    def _learn(self, given: list[Tensor], nearest: list[Tensor], mask: Tensor | None) -> None:
        """In training: the commitment loss of what was routed, which the centroids will follow."""
        self.aux_losses = {}
        if not self.training or self.kmeans is None:
            return
        losses = torch.stack([self.kmeans.loss(x, of, mask) for x, of in zip(given, nearest, strict=True)])
        # As released, queries and keys add up, also where they are the same; the peer takes the mean of both.
        self.aux_losses = {"commitment": losses.mean() * (2 if self.norm == "layernorm" else 1)}
        for x, of in zip(given, nearest, strict=True):
            self.kmeans.observe(x, of, mask)

    def _join(self, outputs: list[Tensor]) -> Tensor:
        o = torch.cat(outputs, -3) if len(outputs) > 1 else outputs[0]
        return self.out_proj(o.transpose(-2, -3).flatten(-2))

    def _projection_flops(self, tokens: int) -> int:
        far, near = self.routed_heads * self.head_dim, self.local_heads * self.head_dim
        return linear_flops(tokens, self.dim, (1 if self.share_qk else 2) * far + 2 * near + 2 * self.dim)

    def _score_flops(self, tokens: int) -> int:
        return linear_flops(tokens * self.routed_heads, self.head_dim, self.num_clusters)

    def _local_flops(self, n: int, batch: int) -> int:
        if not self.local_heads:
            return 0
        ahead = 0 if self.causal else self.look_back
        sizes = (self.local_heads, self.head_dim, self.head_dim, batch)
        return local_block_flops(n, self.block, self.look_back, ahead, *sizes, relative=self.position == "relative")

    def _local_saved(self, n: int, batch: int) -> int:
        """Numbers that the local heads keep for the backward pass."""
        if not self.local_heads:
            return 0
        block, around = (n, 1) if n <= self.block else (self.block, self.look_back * (1 if self.causal else 2) + 1)
        blocks = -(-n // block)
        rows, pairs = batch * self.local_heads, blocks * block * around * block
        width = blocks * block * self.head_dim
        # Queries, outputs, keys and values of every block, and what the softmax keeps.
        saved = rows * width * (2 + 2 * around)
        if self.position == "relative":
            return saved + 2 * rows * pairs + 2 * block * around * block * self.head_dim
        return saved + rows * blocks * block + (pairs if n > block and self.causal else 0)
