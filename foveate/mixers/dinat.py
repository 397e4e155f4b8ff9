"""Neighborhood attention as NAT and DiNAT use it: each token reads the K nearest ones along every axis, or spaced ones.

Hassani et al., "Neighborhood Attention Transformer" (CVPR 2023, arXiv 2204.07143) and Hassani and Shi, "Dilated
Neighborhood Attention Transformer" (2022, arXiv 2209.15001). With the window rule of
:mod:`foveate.ops.neighborhood_windows` and a learned bias by relative position,

    y_i = sum_{j in N(i)} softmax_j(q_i . k_j / sqrt(d) + B[(j - i) / dilation]) v_j

where N(i) are exactly K keys along each axis, ``dilation`` apart. Layers take turns: the nearest tokens, then spaced
ones, so that reach grows exponentially with depth at the cost of one window.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..errors import InvalidValue, invalid
from ..ops.neighborhood_windows import Axis, axes_of
from ..registry import register
from ..spec import Grid, MixerSpec, Order
from .layout import TokenLayout
from .neighborhood import NeighborhoodMixer, PerAxis, check_axes, check_rate, cut, filled_up, per_axis, window_weights


@register("mixer", "dinat")
class NeighborhoodAttention(NeighborhoodMixer):
    """Attention to a window around each token, dilated or not, with a bias by relative position.

    ``for_layer`` gives even layers the nearest tokens and odd ones ``dilation``; ``options_for`` the window and largest
    dilation that a grid has room for.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim``.
        causal: must be False; :class:`~foveate.mixers.faster_neighborhood_attention.FasterNeighborhoodAttention` has
            causal axes.
        rank: axes of the grids: 1, 2 or 3.
        window: keys that a token sees along each axis, odd with a bias; one number, or one per axis.
        dilation: distance of neighbouring keys; one number, or one per axis.
        rel_pos_bias: a learned bias by relative position, in units of the dilation.
        qkv_bias: the first projection has a bias.
        scale: factor on the products; None: ``1 / sqrt(dim / num_heads)``.
        pad_small: an axis shorter than window times dilation is filled up with zeros *before* the first projection, as
            natten did until 0.16: what is filled in is read as tokens whose keys and values are the projection's bias.
            False: such a grid is refused.
        attn_drop: share of weights dropped while training; they are then computed apart, window by window.
        proj_drop: share of outputs dropped while training.

    Raises:
        InvalidValue: heads that do not divide, an even window with a bias, or an option that is not legal.
    """

    spec = MixerSpec(
        ranks=(1, 2, 3), causal="never", masks=False, padding="as_published", order=Order(flops=1.0, memory=1.0)
    )
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "natten": {r"((?:qkv|proj)\.(?:weight|bias)|rpb)": r"\1"},
    }

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = False,
        rank: int = 2,
        window: PerAxis = 7,
        dilation: PerAxis = 1,
        rel_pos_bias: bool = True,
        qkv_bias: bool = True,
        scale: float | None = None,
        pad_small: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, causal=causal)
        if rank not in (1, 2, 3):
            raise invalid("rank", rank, "a grid has 1, 2 or 3 axes")
        check_axes(window, dilation, rank=rank)
        self.window, self.dilation, self.pad_small = per_axis(window, rank), per_axis(dilation, rank), pad_small
        if rel_pos_bias and any(w % 2 == 0 for w in self.window):
            raise invalid("window", window, "with rel_pos_bias it must be odd, for the bias has a middle")
        least = 1 if pad_small else max(w * d for w, d in zip(self.window, self.dilation, strict=True))
        padding = "as_published" if pad_small else "none"
        self.spec = replace(self.spec, ranks=(rank,), grid=Grid(minimum=least), padding=padding)
        self.build(num_heads, None, scale, qkv_bias, proj_drop)
        self.attn_drop = check_rate("attn_drop", attn_drop)
        self.rpb = None
        if rel_pos_bias:
            self.rpb = nn.Parameter(torch.empty(num_heads, *(2 * w - 1 for w in self.window)))
            nn.init.trunc_normal_(self.rpb, std=0.02, a=-2.0, b=2.0)

    @classmethod
    def options_for(cls, grid: tuple[int, ...]) -> dict[str, Any]:
        """The rank, a window of 7 or what a short axis has room for, and the largest dilation (axis / window)."""
        shortest = min(grid)
        window = max(3, min(7, shortest - 1 + shortest % 2))
        return {"rank": len(grid), "window": window, "dilation": max(1, shortest // window)}

    @classmethod
    def for_layer(cls, index: int, depth: int, dim: int, **options: Any) -> Self:
        """Even layers read the nearest tokens, odd ones those ``dilation`` apart."""
        return cls(dim, **(options if index % 2 else {**options, "dilation": 1}))

    def no_weight_decay(self) -> list[nn.Parameter]:
        """The position bias."""
        return [] if self.rpb is None else [self.rpb]

    def axes(self, grid: tuple[int, ...]) -> tuple[Axis, ...]:
        """Axes as long as window times dilation at least."""
        longer = tuple(max(n, w * d) for n, w, d in zip(grid, self.window, self.dilation, strict=True))
        if longer != tuple(grid) and not self.pad_small:
            raise InvalidValue(
                f"{type(self).__name__}: grid {tuple(grid)} is not possible: window {self.window} times dilation "
                f"{self.dilation} must not exceed an axis without pad_small."
            )
        return axes_of(longer, self.window, self.dilation)

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
        if not (self.training and self.attn_drop):
            return self.mix(x)
        grid = tuple(x.shape[1:-1])
        axes = self.axes(grid)
        q, k, v = self.heads_of(filled_up(x, axes))
        weights, seen = window_weights(q, k, axes, self.rpb, self.scale)
        weights = nn.functional.dropout(weights, self.attn_drop)
        y = (weights[..., None, :] @ v.flatten(2, -2)[:, :, seen])[..., 0, :].unflatten(2, q.shape[2:-1])
        return self.proj_drop(self.proj(cut(y.movedim(1, -2).flatten(-2), grid)))
