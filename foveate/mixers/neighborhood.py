"""What the layers of neighborhood attention share: projections, axes, and the way into the op and back.

The rule of who sees whom stands in :mod:`foveate.ops.neighborhood_windows`. A layer says through
:meth:`NeighborhoodMixer.axes` how the axes of a grid are windowed; an axis may be longer there than in the grid: it is
filled up with zeros behind its end, before the projection, and cut again after attention.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import invalid
from ..measure.cost import Cost, linear_flops
from ..ops.neighborhood_attention import neighborhood_attention
from ..ops.neighborhood_boxes import boxed_pairs
from ..ops.neighborhood_windows import Axis, axes_of, neighborhood_pairs
from .base import Mixer, check_heads, grid_size
from .look import Look, check_query
from .parts import Linear

PerAxis = int | tuple[int, ...]
PerAxisFlag = bool | tuple[bool, ...]


class NeighborhoodMixer(Mixer):
    """Queries, keys and values in one projection, attention to neighbours, and a projection behind it.

    A subclass calls :meth:`build` in its constructor and implements :meth:`axes`.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float | None
    #: Relative position bias ``(heads, 2 window - 1, ...)``; None: there is none.
    rpb: nn.Parameter | None

    def build(
        self, num_heads: int, num_kv_heads: int | None, scale: float | None, qkv_bias: bool, proj_drop: float
    ) -> None:
        """Make the projections ``qkv`` (queries, keys, values; then heads; then channels) and ``proj``.

        Raises:
            InvalidValue: heads that do not divide, a scale that is zero or not finite, a rate outside of [0, 1).
        """
        self.num_heads, self.head_dim = num_heads, check_heads(self.dim, num_heads)
        kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if not isinstance(kv_heads, int) or kv_heads < 1 or num_heads % kv_heads:
            raise invalid("num_kv_heads", num_kv_heads, f"it must divide num_heads={num_heads}")
        if scale is not None and (not math.isfinite(scale) or not scale):
            raise invalid("scale", scale, "a finite number other than 0 is needed, or None for 1 / sqrt(head width)")
        self.num_kv_heads, self.scale = kv_heads, scale
        self.kv_dim = kv_heads * self.head_dim
        self.qkv = Linear(self.dim, self.dim + 2 * self.kv_dim, bias=qkv_bias)
        self.proj = Linear(self.dim, self.dim)
        self.proj_drop = nn.Dropout(check_rate("proj_drop", proj_drop))

    def axes(self, grid: tuple[int, ...]) -> tuple[Axis, ...]:
        """How each axis of a grid is windowed."""
        raise NotImplementedError

    def mix(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """The whole layer.

        Args:
            x: ``(batch, *grid, dim)``.
            extra: ``(batch or 1, n, dim)``, tokens that every token reads besides its neighbours.
        """
        grid = tuple(x.shape[1:-1])
        axes = self.axes(grid)
        x = filled_up(x, axes)
        q, k, v = self.heads_of(x)
        extra_k, extra_v = (None, None) if extra is None else self.keys_of(extra, len(x))
        y = self.attend(q, k, v, axes, extra_k, extra_v)
        y = y.movedim(1, -2).flatten(-2)
        return self.proj_drop(self.proj(cut(y, grid)))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, axes: tuple[Axis, ...], extra_k: Tensor | None, extra_v: Tensor | None
    ) -> Tensor:
        """Attention of heads ``(batch, heads, *grid, head_dim)``, laid out channels last in memory."""
        _, window, dilation, stride, causal = zip(*axes, strict=True)
        found = neighborhood_attention(
            q,
            k,
            v,
            window,
            dilation=dilation,
            stride=stride,
            causal=causal,
            bias=self.rpb,
            scale=self.scale,
            extra_k=extra_k,
            extra_v=extra_v,
        )
        assert isinstance(found, Tensor)
        return found

    def heads_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``(batch, heads, *grid, head_dim)`` of tokens, views of one tensor."""
        parts = self.qkv(x).split((self.dim, self.kv_dim, self.kv_dim), -1)
        q, k, v = (m.unflatten(-1, (-1, self.head_dim)).movedim(-2, 1) for m in parts)
        return q, k, v

    def keys_of(self, extra: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Keys and values ``(batch, kv_heads, n, head_dim)`` of tokens without a place."""
        bias = None if self.qkv.bias is None else self.qkv.bias[self.dim :]
        both = F.linear(extra, self.qkv.weight[self.dim :], bias).expand(batch, -1, -1)
        k, v = (m.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for m in both.chunk(2, -1))
        return k, v

    def look(self, x: Tensor, query: tuple[int, ...] | None = None) -> list[Look]:
        """What a token reads of its window, and the window; of tokens with a place alone.

        What a small grid is filled up with is left out, and the weights of the others sum to 1.
        """
        self.check_input(x)
        grid = tuple(x.shape[1:-1])
        query = check_query(type(self).__name__, query, grid)
        shown = query or tuple(n // 2 for n in grid)
        return [
            Look("weights", self._weights(x, query), "attention to neighbours"),
            Look("visible", self._weights(x, shown) > 0, "the window"),
        ]

    @torch.inference_mode(False)
    def _weights(self, x: Tensor, query: tuple[int, ...] | None) -> Tensor:
        """``(batch, heads, *grid)``: weights of a query, or the mean over all.

        A weight is the derivative of an output in the value that it weighs, whatever the window.
        """
        grid, group = tuple(x.shape[1:-1]), self.num_heads // self.num_kv_heads
        axes = self.axes(grid)
        with torch.no_grad():
            q, k, v = self.heads_of(filled_up(x.clone(), axes))
        k = k.repeat_interleave(group, 1)
        values = torch.zeros_like(v[..., :1]).repeat_interleave(group, 1).requires_grad_()
        with torch.enable_grad():
            read = cut(self.attend(q, k, values, axes, None, None).movedim(1, -2), grid)[..., 0]
            read = read.flatten(1, -2).mean(1) if query is None else read[(slice(None), *query)]
            (weights,) = torch.autograd.grad(read.sum(), values)
        weights = cut(weights[..., 0].movedim(1, -1), grid).movedim(-1, 1)
        return weights / weights.flatten(2).sum(-1).clamp(min=1e-30).view(*weights.shape[:2], *(1,) * len(grid))

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections, and the boxes of pairs that the op's torch form computes."""
        axes, dim = self.axes(tuple(grid)), self.dim
        tokens, filled = batch * grid_size(grid), batch * math.prod(axis.size for axis in axes)
        padding = filled != tokens
        flops = linear_flops(filled, dim, dim + 2 * self.kv_dim) + linear_flops(tokens, dim, dim)
        flops += 4 * batch * dim * boxed_pairs(axes)
        saved = filled * (dim + 2 * self.kv_dim + dim + self.num_heads)  # q, k, v, output and log-sum-exps
        saved += filled * dim + padding * tokens * dim  # what the projections read; the second reads the op's output
        return Cost(flops=flops, parameters=sum(p.numel() for p in self.parameters()), activation_bytes=4 * saved)

    def visible_flops(self, grid: tuple[int, ...], batch: int = 1) -> int:
        """FLOPs of :meth:`cost` without those on pairs that do not see each other, which no publication counts."""
        axes = self.axes(tuple(grid))
        masked = boxed_pairs(axes) - neighborhood_pairs(axes)
        return self.cost(grid, batch).flops - 4 * batch * self.dim * masked


def filled_up(x: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """``(batch, *grid, dim)`` with zeros behind the end of every axis that is longer in ``axes``."""
    behind = [axis.size - size for axis, size in zip(axes, x.shape[1:-1], strict=True)]
    if not any(behind):
        return x
    return F.pad(x, [0, 0, *(n for missing in reversed(behind) for n in (0, missing))])


def cut(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """The beginning of every axis of ``(batch, *larger, dim)``."""
    for axis, size in enumerate(grid, 1):
        if x.shape[axis] != size:
            x = x.narrow(axis, 0, size)
    return x


def check_axes(
    window: PerAxis, dilation: PerAxis = 1, stride: PerAxis = 1, causal: PerAxisFlag = False, rank: int | None = None
) -> tuple[int, ...]:
    """Legal ranks of a grid for these, where a tuple has one entry per axis.

    Args:
        rank: the one that is asked for; None: any.

    Raises:
        InvalidValue, InvalidType: as :func:`~foveate.ops.neighborhood_windows.axes_of`, whatever the grid.
    """
    lengths = [len(value) for value in (window, dilation, stride, causal) if isinstance(value, (tuple, list))]
    fixed = rank or (lengths[0] if lengths else None)
    axes_of((2**40,) * (fixed or 1), window, dilation, stride, causal)
    return (1, 2, 3) if fixed is None else (fixed,)


def check_rate(option: str, rate: float) -> float:
    """A dropout's rate; refuses what is not in [0, 1)."""
    if not 0 <= rate < 1:
        raise invalid(option, rate, "it must be at least 0 and below 1")
    return float(rate)


def per_axis(value: PerAxis | PerAxisFlag, rank: int) -> tuple:
    """One entry for each axis."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank


def window_weights(
    q: Tensor, k: Tensor, axes: tuple[Axis, ...], bias: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Softmax weights of every query's window, apart: for dropout on them and for pictures.

    Args:
        q, k: ``(batch, heads, *grid, d)``, as many heads each; no axis causal.

    Returns:
        Weights ``(batch, heads, queries, keys)`` and which keys a query sees, int64 ``(queries, keys)``.
    """
    seen = distance = torch.zeros(1, 1, dtype=torch.int64, device=q.device)
    for axis in axes:
        keys = axis.mask(q.device).nonzero()[:, 1].view(axis.size, axis.window)
        away = (keys - torch.arange(axis.size, device=q.device)[:, None]) // axis.dilation + axis.window - 1
        size = (len(seen) * axis.size, seen.shape[1] * axis.window)
        seen = (seen[:, None, :, None] * axis.size + keys[None, :, None, :]).reshape(size)
        distance = (distance[:, None, :, None] * (2 * axis.window - 1) + away[None, :, None, :]).reshape(size)
    keys = k.flatten(2, -2)[:, :, seen]
    scores = (q.flatten(2, -2)[..., None, :] @ keys.mT)[..., 0, :] * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias.flatten(1)[:, distance].to(scores.dtype)
    return scores.softmax(-1), seen
