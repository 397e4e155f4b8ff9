"""Dense attention with a local convolution: what BiFormer (arXiv 2303.08810) has where the map is small."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import invalid
from ...measure.cost import Cost, linear_flops
from ...ops.softmax_attention import softmax_attention
from ...registry import register
from ...spec import MixerSpec, Order
from ..base import Mixer, check_heads
from ..layout import TokenLayout
from ..parts import Linear
from .regions import Convolution, check_scale

Reads = Literal["input", "values"]


@register("mixer", "lepe_attention", system="biformer")
class LePEAttention(Mixer):
    """Softmax attention over the whole grid plus a depthwise convolution: ``y = (attention(x) + convolution) W_o``.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim``.
        causal: must be False.
        qkv_bias: queries, keys and values have biases.
        qk_scale: factor on the products; None: ``head_dim ** -0.5``.
        attn_drop, proj_drop: dropout of weights and outputs, in [0, 1).
        side_dwconv: edge of the convolution, odd; 0: none.
        lepe_reads: "input": the convolution reads the mixer's input (the released weights' form); "values": the
            values (the later one).
        rank: axes of the grid.

    Raises:
        InvalidValue: an option that is not legal.
    """

    spec = MixerSpec(ranks=(2,), order=Order(flops=2.0, memory=1.0))
    #: The released modules' names; those of the later form are convolutions of one place.
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "legacy": {r"((?:qkv|proj|lepe)\.(?:weight|bias))": r"\1"},
        "nchw": {r"((?:qkv|proj|lepe)\.(?:weight|bias))": r"\1"},
    }

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = False,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        side_dwconv: int = 5,
        lepe_reads: Reads = "input",
        rank: int = 2,
    ) -> None:
        super().__init__(dim, causal=causal)
        self.num_heads, self.head_dim = num_heads, check_heads(dim, num_heads)
        for option, value in (("attn_drop", attn_drop), ("proj_drop", proj_drop)):
            if not 0 <= value < 1:
                raise invalid(option, value, "it must be at least 0 and below 1")
        if lepe_reads not in get_args(Reads):
            raise invalid("lepe_reads", lepe_reads, f"it must be one of {', '.join(get_args(Reads))}")
        if rank not in (1, 2, 3):
            raise invalid("rank", rank, "it must be one of 1, 2, 3")
        self.scale, self.attn_drop, self.lepe_reads = (
            check_scale(qk_scale) or self.head_dim**-0.5,
            attn_drop,
            lepe_reads,
        )
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.lepe = Convolution(dim, side_dwconv, rank) if side_dwconv else None
        if rank != 2:
            self.spec = replace(self.spec, ranks=(rank,))

    def convert_official(self, state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """Convolutions of one place are linear layers."""
        pointwise = ("qkv.weight", "proj.weight")
        return {key: m.flatten(1) if key in pointwise else m for key, m in state_dict.items()}

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor:
        """Mix ``(batch, *grid, dim)``; see :class:`~foveate.mixers.Mixer`."""
        self.check_input(x, mask, context, layout)
        if mask is not None:
            x = x.where(mask[..., None], 0)
        qkv = self.qkv(x)
        q, k, v = qkv.flatten(1, -2).unflatten(-1, (3, self.num_heads, self.head_dim)).movedim(1, 3).unbind(1)
        if self.attn_drop and self.training:
            seen = None if mask is None else mask.flatten(1)[:, None, None]
            out = F.scaled_dot_product_attention(q, k, v, seen, self.attn_drop, scale=self.scale)
        else:
            out = softmax_attention(q, k, v, mask=None if mask is None else mask.flatten(1), scale=self.scale)
        y = out.transpose(1, 2).flatten(2).unflatten(1, x.shape[1:-1])
        if self.lepe is not None:
            read = x if self.lepe_reads == "input" else qkv[..., 2 * self.dim :]
            if mask is not None:
                read = read.where(mask[..., None], 0)
            y = y + self.lepe(read)
        y = self.proj_drop(self.proj(y))
        return y if mask is None else y.where(mask[..., None], 0)

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections, products of all pairs, the convolution."""
        n, dim = math.prod(grid), self.dim
        flops = linear_flops(batch * n, dim, 4 * dim) + 4 * batch * n * n * dim
        if self.lepe is not None:
            flops += 2 * batch * n * dim * self.lepe.weight[0].numel()
        copied = self.lepe is not None and self.lepe_reads == "values"
        return Cost(
            flops=flops,
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * batch * n * (6 * dim + self.num_heads + copied * dim),
        )
