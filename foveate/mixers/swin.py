"""Swin's attention: windows that shift from layer to layer, with a learned bias for every relative position.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (ICCV 2021, arXiv 2103.14030,
section 3.2). Inside a window of ``n`` tokens::

    o = softmax(q k^T / sqrt(d) + B) v      B[i, j] = table[position i - position j]

Every second layer rolls the grid by half a window first, so that tokens on both sides of a border meet; what comes
round the edge does not see its new neighbours. The cost is linear in tokens. Grids that the window does not divide are
padded behind their ends with tokens of zeros, which real tokens see, as in the released code.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..errors import invalid
from ..measure.cost import Cost, linear_flops
from ..ops.shifted_window_attention import Biases, shifted_window_attention
from ..ops.shifted_windows import Axis, axes_of, window_mask
from ..registry import register
from ..spec import MixerSpec
from .base import Mixer, check_heads, grid_size
from .layout import TokenLayout
from .look import Look, check_query, read_weights
from .parts import Linear
from .windows import by_kernels


@register("mixer", "swin")
class ShiftedWindows(Mixer):
    """Attention inside windows, shifted in every second layer, with relative position biases.

    The table of biases has as many axes as the window. The shift is left out on grids that are no larger than a window
    along some axis, as the released code does.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim``.
        causal: must be False.
        window: tokens of a window along each axis: a tuple, whose length is the rank of the grids, or one number, for
            grids of rank 2.
        shift: places by which the grid is rolled, below the window: a tuple or one number. :meth:`for_layer` gives
            every second layer half a window.
        qkv_bias: the first projection has a bias.
        always_shift: the shift is kept on small grids too.
        pad_first: the grid is padded before it is rolled, as in the release and in transformers; False: afterwards, as
            in timm. The same where the window divides the grid.

    Raises:
        InvalidValue: heads that do not divide, a window or shift that is not possible.
        InvalidType: a window or shift that is no whole number.
    """

    spec = MixerSpec(ranks=(1, 2, 3), masks=False, padding="as_published")

    relative_position_index: Tensor

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = False,
        window: int | tuple[int, ...] = 7,
        shift: int | tuple[int, ...] = 0,
        qkv_bias: bool = True,
        always_shift: bool = False,
        pad_first: bool = True,
    ) -> None:
        super().__init__(dim, causal=causal)
        self.num_heads, self.head_dim = num_heads, check_heads(dim, num_heads)
        given = (window, window) if isinstance(window, int) else tuple(window)
        if len(given) not in (1, 2, 3):
            raise invalid("window", window, "it must have 1, 2 or 3 entries, one for each axis of the grid")
        axes = axes_of(given, given, shift if isinstance(shift, int) else tuple(shift), "blocks")
        self.window, self.shift = given, tuple(axis.shift for axis in axes)
        self.always_shift, self.pad_first = always_shift, pad_first
        self.spec = replace(self.spec, ranks=(len(given),))
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        entries = math.prod(2 * w - 1 for w in given)
        self.relative_position_bias_table = nn.Parameter(torch.empty(entries, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", position_index(given), persistent=False)

    @classmethod
    def options_for(cls, grid: tuple[int, ...]) -> dict[str, Any]:
        """The published window of 7, cut to the grid."""
        return {"window": tuple(min(7, size) for size in grid)}

    @classmethod
    def for_layer(cls, index: int, depth: int, dim: int, **options: Any) -> Self:
        """Every second layer is shifted by half a window."""
        window = options.get("window", 7)
        half = window // 2 if isinstance(window, int) else tuple(w // 2 for w in window)
        return cls(dim, **{"shift": half if index % 2 else 0, **options})

    def no_weight_decay(self) -> set[str]:
        """The table of biases."""
        return {"relative_position_bias_table"}

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
        y = self._by_kernels(x)
        return self.proj(self._read(x).movedim(1, -2).flatten(-2)) if y is None else y

    def window_on(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens of a window along each axis of this grid."""
        return self.window

    def index_on(self, window: tuple[int, ...]) -> Tensor:
        """Rows of the table of biases for all pairs of such a window's ``n`` tokens, ``(n, n)``."""
        n = math.prod(window)
        return self.relative_position_index.view(n, n)

    def bias_on(self, window: tuple[int, ...]) -> Tensor:
        """The biases of all pairs of such a window, ``(heads, n, n)``."""
        index = self.index_on(window)
        return self.relative_position_bias_table[index.reshape(-1)].view(*index.shape, -1).permute(2, 0, 1)

    def look(self, x: Tensor, query: tuple[int, ...] | None = None) -> list[Look]:
        """What a place reads (without its share of padding), and what it may read: the part of its window it sees."""
        self.check_input(x)
        grid, x = tuple(x.shape[1:-1]), x.detach()
        place = check_query(type(self).__name__, query, grid)
        like = x.new_ones(x.shape[0], self.num_heads, *grid, 1)
        weights = read_weights(lambda values: self._read(x, values), like, place)
        weights = weights / weights.sum(tuple(range(2, weights.ndim)), keepdim=True)
        middle = place or tuple(size // 2 for size in grid)
        seen = read_weights(lambda values: self._read(torch.zeros_like(x), values), like, middle)[:, :1] > 0
        return [Look("weights", weights, "attention"), Look("visible", seen, "window")]

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections of the grid, and products of the padded windows."""
        n, dim = batch * grid_size(grid), self.dim
        tokens = math.prod(self.window)
        padded = batch * math.prod(-(-size // w) * w for size, w in zip(grid, self.window, strict=True))
        # The input, windows of the projections, the weights (for the biases' gradient), the output of the grid; and the
        # index of the biases, in 8 bytes.
        saved = 2 * n * dim + padded * (3 * dim + self.num_heads * tokens) + 2 * tokens**2
        return Cost(
            flops=linear_flops(n, dim, 4 * dim) + 4 * padded * tokens * dim,
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * saved,
        )

    def _by_kernels(self, x: Tensor) -> Tensor | None:
        """The layer where nothing is differentiated; None where kernels do not take this."""
        grid = tuple(x.shape[1:-1])
        window, shift = self.window_on(grid), self._shift(grid)
        axes = tuple(Axis(*each) for each in zip(grid, window, shift, strict=True))
        if not self.pad_first and any(shift) and any(axis.padded > axis.size for axis in axes):
            return None
        biases = Biases(self.relative_position_bias_table, self.index_on(window))
        return by_kernels(x, self.qkv, self.proj, axes, self.num_heads, biases)

    def _read(self, x: Tensor, values: Tensor | None = None) -> Tensor:
        """``(batch, heads, *grid, head_dim)``: what windows read of ``x``, or of other values (padding has zeros)."""
        grid = tuple(x.shape[1:-1])
        shift = self._shift(grid)
        padded = any(size % w for size, w in zip(grid, self.window, strict=True))
        late = padded and any(shift) and not self.pad_first
        if late:
            x = x.roll([-s for s in shift], list(range(1, x.ndim - 1)))
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).movedim(-2, 1).unbind(-2)
        v = v if values is None else values.roll([-s for s in shift], list(range(2, 2 + len(grid)))) if late else values
        pad_k = pad_v = None
        if padded and self.qkv.bias is not None:
            _, pad_k, pad_v = self.qkv.bias.view(3, self.num_heads, self.head_dim)
        pad_v = pad_v if values is None else None
        bias = self.bias_on(self.window)
        if late:
            bias = _masked(bias, grid, self.window, shift)
        rolled = (0,) * len(grid) if late else shift
        y = shifted_window_attention(q, k, v, self.window, shift=rolled, bias=bias, pad_k=pad_k, pad_v=pad_v)
        return y.roll(list(shift), list(range(2, y.ndim - 1))) if late else y

    def _shift(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        small = any(size <= w for size, w in zip(grid, self.window, strict=True))
        return (0,) * len(grid) if small and not self.always_shift else self.shift


def _masked(bias: Tensor, grid: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]) -> Tensor:
    """Biases ``(windows, heads, n, n)`` that keep apart what timm keeps apart: it counts from the padded grid's end."""
    axes = [Axis(-(-size // w) * w, w, s) for size, w, s in zip(grid, window, shift, strict=True)]
    seen = window_mask(tuple(axes), "blocks", "tokens", bias.device)
    return bias if seen is None else bias.where(seen[:, None], -math.inf)


def position_index(window: tuple[int, ...]) -> Tensor:
    """Int64 ``(n * n,)``: the row of the table for each pair of a window's places, both in row-major order."""
    places = torch.stack(torch.meshgrid([torch.arange(w) for w in window], indexing="ij")).flatten(1)
    number = torch.zeros((), dtype=torch.int64)
    for place, w in zip(places, window, strict=True):
        number = number * (2 * w - 1) + (place[:, None] - place[None, :] + w - 1)
    return number.flatten()
