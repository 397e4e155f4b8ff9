"""DaViT's two attentions: channels as tokens, and windows of places as tokens.

Ding et al., "DaViT: Dual Attention Vision Transformers" (ECCV 2022, arXiv 2204.03645, sections 3.1 and 3.2). In a group
of ``c`` channels, one per head, the attention matrix is made by channels that have the whole grid as their features::

    A = softmax(k^T v / sqrt(c))    (c, c), along the last axis
    o = q A^T

These are the roles of the released classifiers; the paper, and Florence-2's encoder (arXiv 2311.06242), have
``A = softmax(q^T k / sqrt(n))`` over ``n`` places and ``o = v A^T``. The cost is linear in places and the matrix has
the same size on every grid. The windows are those of Swin without shifts, biases and masks: DaViT sends nothing across
their borders but by channels.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import invalid
from ..measure.cost import Cost, linear_flops
from ..ops.shifted_window_attention import shifted_window_attention
from ..ops.shifted_windows import Axis
from ..registry import register
from ..spec import MixerSpec
from .base import Mixer, check_heads
from .layout import TokenLayout
from .look import Look, check_query
from .parts import Linear
from .ssm import check_positive
from .windows import by_kernels

Scores = Literal["kv", "qk"]


@register("mixer", "davit")
class ChannelAttention(Mixer):
    """Attention between the channels of a group: every output depends on every place, at linear cost.

    Masked tokens are left out of the scores. Without positions of its own it treats places alike: permuted places give
    permuted outputs.

    Args:
        dim: channels of a token.
        num_heads: groups; must divide ``dim``.
        causal: must be False.
        qkv_bias: the first projection has a bias.
        scores: "kv": keys and values make the matrix, which mixes queries, as in the released classifiers; "qk":
            queries and keys make it, scaled by the number of places, as in Florence-2.

    Raises:
        InvalidValue: heads that do not divide, or other scores.
    """

    spec = MixerSpec(ranks=(1, 2, 3), onnx=True, dynamic_length=True)

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = False,
        qkv_bias: bool = True,
        scores: Scores = "kv",
    ) -> None:
        super().__init__(dim, causal=causal)
        self.num_heads, self.head_dim = num_heads, check_heads(dim, num_heads)
        if scores not in get_args(Scores):
            raise invalid("scores", scores, f"it must be one of {', '.join(get_args(Scores))}")
        self.scores = scores
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)

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
        flat = None if mask is None else mask.flatten(1)
        first, second, mixed = self._parts(x)
        y = mixed @ self._matrix(first, second, flat).mT
        y = self.proj(y.transpose(1, 2).reshape(x.shape))
        return y if mask is None else y.masked_fill(~mask[..., None], 0)

    def attention(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The matrix ``A`` of ``x`` ``(batch, *grid, dim)``: ``(batch, heads, c, c)``, rows sum to 1."""
        self.check_input(x, mask)
        first, second, _ = self._parts(x)
        return self._matrix(first, second, None if mask is None else mask.flatten(1))

    def look(self, x: Tensor, query: tuple[int, ...] | None = None) -> list[Look]:
        """Every place's share in the groups' scores, by the norms of what it adds; all queries read the same."""
        self.check_input(x)
        grid = tuple(x.shape[1:-1])
        check_query(type(self).__name__, query, grid)
        first, second, _ = self._parts(x)
        share = first.norm(dim=-1) * second.norm(dim=-1)
        share = share / share.sum(-1, keepdim=True).clamp_min(1e-12)
        return [Look("weights", share.unflatten(-1, grid), "share in the channels' scores")]

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections, the scores' products over all places, and the mixing of channels at every place."""
        tokens, dim = batch * math.prod(grid), self.dim
        return Cost(
            flops=linear_flops(tokens, dim, 4 * dim) + 4 * tokens * dim * self.head_dim,
            parameters=sum(p.numel() for p in self.parameters()),
            # The input, the projections and the copies of them that are multiplied, the heads' outputs; the matrix.
            activation_bytes=4 * (tokens * 5 * dim + 2 * batch * dim * self.head_dim),
        )

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(batch, heads, places, c)`` each: the two that make the matrix, and what it mixes."""
        q, k, v = self.qkv(x.flatten(1, -2)).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        return (k, v, q) if self.scores == "kv" else (q, k, v)

    def _matrix(self, first: Tensor, second: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            first = first.masked_fill(~mask[:, None, :, None], 0)
        scores = first.mT @ second
        if self.scores == "kv":
            scores = scores * self.head_dim**-0.5
        elif mask is None:
            scores = scores * first.shape[2] ** -0.5
        else:
            scores = scores * mask.sum(1).clamp_min(1).to(scores.dtype).rsqrt()[:, None, None, None]
        return torch.softmax(scores, -1)


@register("mixer", "davit_window", system="davit")
class WindowAttention(Mixer):
    """Attention inside windows that do not overlap, without biases, shifts and masks.

    Grids that the window does not divide are padded behind their ends as the official code does: a padded place is a
    token of zeros before the projection, so its key and value are the projection's bias, and the tokens of its window
    see it.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim``.
        causal: must be False.
        window: places of a window along every axis.
        qkv_bias: the first projection has a bias.

    Raises:
        InvalidValue: heads that do not divide, or a window that is no positive whole number.
    """

    spec = MixerSpec(ranks=(1, 2, 3), masks=False, padding="as_published", onnx=True)

    def __init__(
        self, dim: int, *, num_heads: int = 8, causal: bool = False, window: int = 7, qkv_bias: bool = True
    ) -> None:
        super().__init__(dim, causal=causal)
        self.num_heads, self.head_dim = num_heads, check_heads(dim, num_heads)
        check_positive(window=window)
        self.window = window
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)

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
        axes = tuple(Axis(size, self.window, 0) for size in x.shape[1:-1])
        y = by_kernels(x, self.qkv, self.proj, axes, self.num_heads)
        if y is not None:
            return y
        q, k, v = self._heads(x)
        pad_k = pad_v = None
        if self.qkv.bias is not None:
            _, pad_k, pad_v = self.qkv.bias.unflatten(0, (3, self.num_heads, self.head_dim)).unbind()
        y = shifted_window_attention(q, k, v, self.window, pad_k=pad_k, pad_v=pad_v)
        return self.proj(y.movedim(1, -2).flatten(-2))

    def look(self, x: Tensor, query: tuple[int, ...] | None = None) -> list[Look]:
        """What the query reads inside its window (without a query: that of the grid's middle); padding is left out."""
        self.check_input(x)
        grid = tuple(x.shape[1:-1])
        place = check_query(type(self).__name__, query, grid) or tuple(n // 2 for n in grid)
        inside = [slice(i // self.window * self.window, (i // self.window + 1) * self.window) for i in place]
        q, k, _ = (m.detach() for m in self._heads(x))
        seen = k[(slice(None), slice(None), *inside)]
        scores = (q[(slice(None), slice(None), *place)].flatten(2)[..., None, :] @ seen.flatten(2, -2).mT)[..., 0, :]
        weights = torch.softmax(scores * self.head_dim**-0.5, -1)
        whole = weights.new_zeros(k.shape[:-1])
        whole[(slice(None), slice(None), *inside)] = weights.unflatten(-1, seen.shape[2:-1])
        return [Look("weights", whole, "attention inside the window")]

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections of the grid, and the products of all windows, padding included."""
        tokens, dim = batch * math.prod(grid), self.dim
        padded = batch * math.prod(-(-size // self.window) * self.window for size in grid)
        pairs = padded * self.window ** len(grid)
        copies = 3 if len(grid) > 1 or padded > tokens or batch > 1 else 0
        return Cost(
            flops=linear_flops(tokens, dim, 4 * dim) + 4 * pairs * dim,
            parameters=sum(p.numel() for p in self.parameters()),
            # The input, the projections cut into windows, the heads' outputs there and on the grid, a number per row.
            activation_bytes=4 * (tokens * 2 * dim + padded * (1 + max(3, copies)) * dim + padded * self.num_heads),
        )

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views ``(batch, heads, *grid, c)`` of the projections."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).movedim(-2, 1).unbind(-2)
        return q, k, v
