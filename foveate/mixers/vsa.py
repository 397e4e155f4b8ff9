"""Varied-size window attention (Zhang et al., "VSA", ECCV 2022, arXiv 2204.08446, section 3.2).

Queries stand in windows of ``w`` by ``w``. For every window and head, a layer on the window's mean predicts a scale and
an offset along each axis; keys and values are read from that rectangle, still ``w`` by ``w`` of them::

    p_j = centre + t_j (1 + scale) + offset,    t_j = j - (w - 1) / 2,    j = 0 .. w - 1
    y   = softmax(q K^T / sqrt(d) + bias) V,    K, V: bilinear samples at p; zeros outside of the map, which are seen

With scales and offsets of zero this is attention in plain windows. The bias goes by places in the window, not by where
the samples come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidValue, invalid
from ..measure.cost import Cost, linear_flops
from ..ops.handwritten import sum_dtype
from ..ops.sample_at import sample_at
from ..ops.shifted_window_attention import shifted_window_attention
from ..registry import register
from ..spec import Grid, MixerSpec
from .base import Mixer, check_heads
from .layout import TokenLayout
from .look import Look, check_query
from .parts import Linear
from .swin import position_index

Form = Literal["classification", "detection"]


class _Plan(NamedTuple):
    """A grid's padding; x comes second in all of these, as in a grid.

    Attributes:
        grid, padded: sizes.
        before: how much of the padding stands in front.
        count: windows along each axis.
    """

    grid: tuple[int, int]
    padded: tuple[int, int]
    before: tuple[int, int]
    count: tuple[int, int]

    @property
    def pads(self) -> tuple[int, ...]:
        """For :func:`torch.nn.functional.pad` of ``(..., height, width, channels)``."""
        (height, width), (top, left) = self.grid, self.before
        return (0, 0, left, self.padded[1] - width - left, top, self.padded[0] - height - top)


@register("mixer", "vsa")
class VariedSizeWindowAttention(Mixer):
    """Attention in windows whose keys are read from rectangles that are learned, one for each window and head.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim`` and ``out_dim``.
        causal: must be False.
        out_dim: channels of the output; None: ``dim``.
        window_size: places of a window along each axis.
        qkv_bias: queries, keys and values have biases.
        qk_scale: factor on the products; None: ``(dim / num_heads) ** -0.5``.
        proj_drop: dropout of the output, in [0, 1).
        zero_init: rectangles begin as the windows, as the paper has it; False: anywhere, as in the release, which
            never calls the method that sets them.
        form: where windows do not divide the grid. "classification": it is padded behind its ends, and offsets are in
            units of the windows that fit along their own axis. "detection": on all sides, and, as released, in units of
            the windows along the other axis, which is the same for square maps.

    Raises:
        InvalidValue: an option that is not legal.
    """

    spec = MixerSpec(ranks=(2,), grid=Grid(minimum=7), masks=False, padding="as_published")
    #: The released module's names; its linear layers are convolutions of one place.
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "ViTAE-VSA": {
            r"sampling_offsets\.2\.(weight|bias)": r"offsets.\1",
            r"sampling_scales\.2\.(weight|bias)": r"scales.\1",
            r"(qkv|proj)\.(weight|bias)": r"\1.\2",
            r"relative_position_bias_table": "relative_position_bias_table",
            r"relative_position_index": "",
        },
    }

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = False,
        out_dim: int | None = None,
        window_size: int = 7,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        zero_init: bool = True,
        form: Form = "classification",
    ) -> None:
        super().__init__(dim, causal=causal)
        self.out_dim = dim if out_dim is None else out_dim
        if not isinstance(self.out_dim, int) or self.out_dim < 1:
            raise invalid("out_dim", out_dim, "a positive whole number is needed")
        self.num_heads, self.head_dim = num_heads, check_heads(self.out_dim, num_heads)
        if not isinstance(window_size, int) or window_size < 1:
            raise invalid("window_size", window_size, "a positive whole number is needed")
        if form not in get_args(Form):
            raise invalid("form", form, f"it must be one of {', '.join(get_args(Form))}")
        if qk_scale is not None and not 0 < qk_scale < math.inf:
            raise invalid("qk_scale", qk_scale, "it must be positive and finite")
        if not 0 <= proj_drop < 1:
            raise invalid("proj_drop", proj_drop, "it must be at least 0 and below 1")
        self.window_size, self.form = window_size, form
        self.scale = qk_scale or check_heads(dim, num_heads) ** -0.5
        self.offsets = Linear(dim, 2 * num_heads)
        self.scales = Linear(dim, 2 * num_heads)
        self.qkv = Linear(dim, 3 * self.out_dim, bias=qkv_bias)
        self.proj = Linear(self.out_dim, self.out_dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        index = position_index((window_size, window_size)).view(window_size**2, window_size**2)
        self.register_buffer("relative_position_index", index, persistent=False)
        if zero_init:
            self.reset_windows()
        if window_size != 7:
            self.spec = replace(self.spec, grid=Grid(minimum=max(2, window_size)))

    relative_position_index: Tensor

    def reset_windows(self) -> None:
        """Make all rectangles the windows themselves."""
        for layer in (self.offsets, self.scales):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def no_weight_decay(self) -> list[nn.Parameter]:
        """The table of biases."""
        return [self.relative_position_bias_table]

    @classmethod
    def options_for(cls, grid: tuple[int, ...]) -> dict[str, Any]:
        """Windows of 7 or 5, whichever needs less padding; smaller ones for grids that these do not fit into."""
        legal = [size for size in (5, 7) if size <= min(grid)] or [min(grid)]
        return {"window_size": min(legal, key=lambda size: math.prod(-(-length // size) * size for length in grid))}

    def convert_official(self, state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """Convolutions of one place are linear layers."""
        return {key: m.flatten(1) if m.ndim == 4 else m for key, m in state_dict.items()}

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor:
        """Mix ``(batch, height, width, dim)``; see :class:`~foveate.mixers.Mixer`."""
        self.check_input(x, mask, context, layout)
        plan = self._plan((x.shape[1], x.shape[2]))
        fractions = self._fractions(x, plan)
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        q, kv = qkv[:, :, :, 0].movedim(3, 1), qkv[:, :, :, 1:].flatten(3, 4).movedim(3, 1)
        fractions = torch.cat([fractions, fractions], 1)
        if torch.is_grad_enabled() and fractions.requires_grad:
            k, v = _sampled_as_released(kv, fractions, plan).chunk(2, 1)
        else:
            k, v = sample_at(kv, _pixels(fractions, plan)).chunk(2, 1)
        if plan.padded != plan.grid:
            q = F.pad(q, plan.pads)
        y = shifted_window_attention(q, k, v, self.window_size, bias=self._bias(), scale=self.scale)
        y = y.movedim(1, -2).flatten(-2)
        if plan.padded != plan.grid:
            y = y.narrow(1, plan.before[0], plan.grid[0]).narrow(2, plan.before[1], plan.grid[1])
        return self.proj_drop(self.proj(y))

    def windows(self, x: Tensor) -> Tensor:
        """The rectangles that ``x`` ``(batch, height, width, dim)`` is read from.

        Returns:
            ``(batch, heads, vertical windows, horizontal windows, 4)``: x0, y0, x1, y1, the outer edges of the samples
            in units of the grid, where 0 is the edge of the first token.
        """
        self.check_input(x)
        plan = self._plan((x.shape[1], x.shape[2]))
        points = _pixels(self._fractions(x, plan), plan)
        points = points.unflatten(3, (plan.count[1], -1)).unflatten(2, (plan.count[0], -1))
        corners = points[:, :, :, [0, -1], :, :][..., [0, -1], :]  # (batch, heads, nh, 2, nw, 2, 2)
        first, last = corners[:, :, :, 0, :, 0], corners[:, :, :, 1, :, 1]
        middle = (first + last) / 2
        # Samples stand for squares as wide as the distance between them.
        half = (last - first) / 2 * (self.window_size / max(1, self.window_size - 1))
        half = half if self.window_size > 1 else torch.full_like(half, 0.5)
        edges = torch.cat([middle - half, middle + half], -1) + 0.5
        return torch.cat([edges[..., :2].minimum(edges[..., 2:]), edges[..., :2].maximum(edges[..., 2:])], -1)

    def look(self, x: Tensor, query: tuple[int, ...] | None = None) -> list[Look]:
        """The rectangles of all windows, or of the query's."""
        self.check_input(x)
        plan = self._plan((x.shape[1], x.shape[2]))
        place = check_query(type(self).__name__, query, plan.grid)
        boxes = self.windows(x)
        if place is not None:
            row, column = ((i + plan.before[axis]) // self.window_size for axis, i in enumerate(place))
            boxes = boxes[:, :, row : row + 1, column : column + 1]
        return [Look("boxes", boxes.flatten(2, 3), "learned windows")]

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections, the layers of scales and offsets, products in windows; sampling is no product of matrices."""
        plan = self._plan((grid[0], grid[1]))
        n, tokens, windows = math.prod(grid), math.prod(plan.padded), math.prod(plan.count)
        flops = linear_flops(batch * n, self.dim, 3 * self.out_dim) + linear_flops(
            batch * n, self.out_dim, self.out_dim
        )
        flops += 2 * linear_flops(batch * windows, self.dim, 2 * self.num_heads)
        flops += 4 * batch * tokens * self.window_size**2 * self.out_dim
        # What is projected, also padded; keys and values that are sampled, and where; the windows, weights, outputs.
        kept = n * self.dim + (tokens * self.dim if plan.padded != plan.grid else 0)
        kept += tokens * (2 * self.out_dim + 4 * self.num_heads)
        kept += tokens * (4 * self.out_dim + self.num_heads * self.window_size**2) + windows * 2 * self.dim
        return Cost(
            flops=flops,
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * batch * kept + 4 * self.num_heads * self.window_size**4,
        )

    def check_input(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> None:
        """Refuse what the spec does not promise; see :class:`~foveate.mixers.Mixer`.

        Raises:
            InvalidValue: also for a grid that is smaller than a window, for which offsets have no unit.
        """
        super().check_input(x, mask, context, layout)
        if min(x.shape[1:3]) < max(2, self.window_size):
            raise InvalidValue(
                f"{type(self).__name__}: grid {tuple(x.shape[1:3])} is not possible: every axis must be at least "
                f"{max(2, self.window_size)}, the size of a window."
            )

    def _bias(self) -> Tensor:
        """``(heads, w^2, w^2)``."""
        return self.relative_position_bias_table[self.relative_position_index].movedim(-1, 0)

    def _plan(self, grid: tuple[int, int]) -> _Plan:
        count = tuple(-(-length // self.window_size) for length in grid)
        padded = tuple(n * self.window_size for n in count)
        spare = (padded[0] - grid[0], padded[1] - grid[1])
        before = (spare[0] // 2, spare[1] // 2) if self.form == "detection" else (0, 0)
        return _Plan(grid, (padded[0], padded[1]), before, (count[0], count[1]))

    def _fractions(self, x: Tensor, plan: _Plan) -> Tensor:
        """Where each head reads: ``(batch, heads, *padded, 2)``, x then y, from -1 to 1 over the padded map.

        Computed in the release's order, see :func:`_sampled_as_released`.
        """
        size, real = self.window_size, sum_dtype(x.dtype)
        if plan.padded != plan.grid:
            x = F.pad(x, plan.pads)
        means = F.leaky_relu(F.avg_pool2d(x.movedim(-1, 1), size).movedim(1, -1))
        scale, offset = (
            layer(means).to(real).unflatten(-1, (self.num_heads, 2)).movedim(3, 1)
            for layer in (self.scales, self.offsets)
        )  # (batch, heads, nh, nw, 2)
        fits = [length // size for length in plan.grid]
        units = fits if self.form == "detection" else fits[::-1]  # of x, of y
        lines = []
        for which, axis in ((0, 1), (1, 0)):  # x runs along the grid's second axis
            length = plan.padded[axis]
            line = torch.linspace(-1, 1, length, device=x.device, dtype=real)
            step = (torch.arange(size, device=x.device) * 2 * size / size).to(real) / (length - 1)
            step = step - step.mean()
            if self.form == "detection":
                base = line.view(-1, size)
            else:
                spread = line.expand(size, length) if which == 0 else line[:, None].expand(length, size)
                base = F.avg_pool2d(spread[None, None], size).flatten()[:, None] + step
            base = base if which == 0 else base[:, None]  # (nw, w) or (nh, 1, w)
            lines.append(base + step * scale[..., which, None] + (offset[..., which] / units[which])[..., None])
        across, down = lines[0][:, :, :, None], lines[1].movedim(-1, 3)[..., None]
        across, down = torch.broadcast_tensors(across, down)  # (batch, heads, nh, w, nw, w)
        return torch.stack([across, down], -1).flatten(4, 5).flatten(2, 3)


def _pixels(fractions: Tensor, plan: _Plan) -> Tensor:
    """Places of the map, from the middle of the first one, by fractions of the padded map."""
    half = fractions.new_tensor([(length - 1) / 2 for length in reversed(plan.padded)])
    return (fractions + 1) * half - fractions.new_tensor(plan.before[::-1])


def _sampled_as_released(kv: Tensor, fractions: Tensor, plan: _Plan) -> Tensor:
    """``(batch, heads, *grid, d)`` at ``(batch, heads, *padded, 2)``, for training.

    Where a rectangle is the window itself, samples lie on places of the map, and rounding decides between which two of
    them a gradient is taken. So the padded map is sampled by the same function as in the release.
    """
    padded = F.pad(kv, plan.pads) if plan.padded != plan.grid else kv
    read = padded.flatten(0, 1).movedim(-1, 1).to(fractions.dtype)
    y = F.grid_sample(read, fractions.flatten(0, 1), mode="bilinear", padding_mode="zeros", align_corners=True)
    return y.movedim(1, -1).unflatten(0, kv.shape[:2]).to(kv.dtype)
