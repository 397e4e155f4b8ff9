"""Windows of attention over volumes that shrink to small maps, as in Swin UNETR.

Hatamizadeh et al., "Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors in MRI Images" (BrainLes
2021, arXiv 2201.01266). The layer is Swin's (:class:`~foveate.mixers.swin.ShiftedWindows`) but for maps that a window
covers: along each such axis the window is as long as the map and does not shift, and its ``n`` tokens take the biases
of the first ``n`` slots of the full window::

    B[i, j] = table[position_i - position_j],    i, j < n numbered in the full window

so that a pair of a smaller window reads the bias of another difference, unless the window lost its first axis alone.
Published weights were trained so.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from ..measure.cost import Cost, linear_flops
from ..ops.shifted_window_attention import dropped, shifted_window_attention
from ..registry import register
from ..spec import MixerSpec
from .base import grid_size
from .layout import TokenLayout
from .neighborhood import check_rate
from .swin import ShiftedWindows


@register("mixer", "swin_unetr")
class ShrinkingWindows(ShiftedWindows):
    """Attention in shifted windows of which no axis is longer than the map's.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim``.
        causal: must be False.
        window: tokens of a window along each axis: a tuple, whose length is the rank of the grids, or one number, for
            grids of rank 3.
        shift: places by which the grid is rolled, below the window: a tuple or one number. :meth:`for_layer` gives
            every second layer half a window.
        qkv_bias: the first projection has a bias.
        attn_drop: share of weights dropped while training; they are then computed apart, window by window.
        proj_drop: dropout behind the last projection.

    Raises:
        InvalidValue: heads that do not divide, a window, shift or rate that is not possible.
        InvalidType: a window or shift that is no whole number.
    """

    spec = MixerSpec(ranks=(1, 2, 3), masks=False, padding="as_published")

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = False,
        window: int | tuple[int, ...] = 7,
        shift: int | tuple[int, ...] = 0,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        window = (window,) * 3 if isinstance(window, int) else tuple(window)
        super().__init__(
            dim, num_heads=num_heads, causal=causal, window=window, shift=shift, qkv_bias=qkv_bias, always_shift=True
        )
        self.attn_drop = check_rate("attn_drop", attn_drop)
        self.proj_drop = nn.Dropout(check_rate("proj_drop", proj_drop))

    @classmethod
    def options_for(cls, grid: tuple[int, ...]) -> dict[str, Any]:
        """The published window of 7 along every axis."""
        return {"window": (7,) * len(grid)}

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor:
        """Mix ``(batch, *grid, dim)``; see :class:`~foveate.mixers.Mixer`."""
        return self.proj_drop(super().forward(x, mask=mask, context=context, layout=layout))

    def window_on(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens of a window along each axis of this grid."""
        return tuple(min(w, size) for w, size in zip(self.window, grid, strict=True))

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections of the grid, and products of the padded windows."""
        n, dim, window = batch * grid_size(grid), self.dim, self.window_on(grid)
        tokens = math.prod(window)
        padded = batch * math.prod(-(-size // w) * w for size, w in zip(grid, window, strict=True))
        # As of the full windows, but for the index of biases, which is cut.
        saved = 2 * n * dim + padded * (3 * dim + self.num_heads * tokens) + 2 * tokens**2
        return Cost(
            flops=linear_flops(n, dim, 4 * dim) + 4 * padded * tokens * dim,
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * saved,
        )

    def _by_kernels(self, x: Tensor) -> Tensor | None:
        return None if self.training and self.attn_drop else super()._by_kernels(x)

    def _read(self, x: Tensor, values: Tensor | None = None) -> Tensor:
        """``(batch, heads, *grid, head_dim)``: what windows read of ``x``, or of other values (padding has zeros)."""
        grid = tuple(x.shape[1:-1])
        window, shift = self.window_on(grid), self._shift(grid)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).movedim(-2, 1).unbind(-2)
        pad_k = pad_v = None
        if self.qkv.bias is not None and any(size % w for size, w in zip(grid, window, strict=True)):
            _, pad_k, pad_v = self.qkv.bias.view(3, self.num_heads, self.head_dim)
        if values is not None:
            v, pad_v = values, None
        given: dict[str, Any] = {"shift": shift, "bias": self.bias_on(window), "pad_k": pad_k, "pad_v": pad_v}
        if self.training and self.attn_drop:
            return dropped(q, k, v, window, self.attn_drop, **given)
        return shifted_window_attention(q, k, v, window, **given)

    def index_on(self, window: tuple[int, ...]) -> Tensor:
        """Rows of the table of biases for all pairs of a window on a map: those of the full window's first slots."""
        full, n = math.prod(self.window), math.prod(window)
        return self.relative_position_index.view(full, full)[:n, :n]

    def _shift(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """No shift along axes that a window covers."""
        pairs = zip(grid, self.window, self.shift, strict=True)
        return tuple(0 if size <= w else shift for size, w, shift in pairs)
