"""Bi-level routing attention (Zhu et al., "BiFormer", 2023, arXiv 2303.08810, section 3.2).

The map is cut into ``n_win`` regions along each axis. With the mean query and the mean key of each region, ``q_r`` and
``k_r``::

    routes  = the topk largest of each row of  s q_r k_r^T        (no gradient)
    y       = (softmax(s q K^T) V + convolution(v)) W_o,          K, V: the tokens of a region's routes, side by side

``s`` is ``1 / sqrt(width of all queries)``, not that of a head: released weights want it so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InvalidValue, invalid
from ...measure.cost import Cost, linear_flops
from ...ops.routed_region_attention import routed_region_attention
from ...registry import register
from ...spec import Grid, MixerSpec, Order
from ..base import Mixer, check_heads, check_key_width
from ..layout import TokenLayout
from ..parts import Linear
from .regions import Convolution, crop, filled, from_regions, pad_to, to_regions

Form = Literal["legacy", "nchw"]
Down = Literal["identity", "avgpool", "maxpool", "ada_avgpool", "ada_maxpool"]
Projections = Literal["qkvo", "qkv"]


class Routing(NamedTuple):
    """Where each region reads.

    Attributes:
        weights: ``(batch, regions, topk)``, softmax over the routes of a region.
        routes: int64 ``(batch, regions, topk)``, best first; regions are counted row by row.
        attention: ``(batch, heads, regions, n, topk * m)``: weights of each region's n tokens over the m of each
            route; None where nobody asked.
    """

    weights: Tensor
    routes: Tensor
    attention: Tensor | None = None


@register("mixer", "biformer")
class BiLevelRoutingAttention(Mixer):
    """Each region of the map attends to the tokens of the ``topk`` regions most like it.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim`` and ``qk_dim``.
        causal: must be False.
        n_win: regions along each axis.
        topk: regions that each region reads; at most all of them.
        qk_dim: width of all queries; None: ``dim``.
        qk_scale: factor on the products; None: ``qk_dim ** -0.5``.
        kv_downsample_mode: "identity"; "avgpool" or "maxpool" of ``kv_downsample_ratio`` places along each axis of a
            region; "ada_avgpool" or "ada_maxpool" to ``kv_per_win`` places along each axis.
        kv_downsample_ratio: see there.
        kv_per_win: see there.
        param_attention: "qkvo", with a projection of the output, or "qkv", without.
        param_routing: a linear layer on the regions' means; needs ``diff_routing``.
        diff_routing: gradients pass through the means; needs ``soft_routing``, for without it nothing depends on them.
        soft_routing: keys and values of a route are multiplied by its weight. They are copied for each route.
        side_dwconv: edge of the local convolution, odd; 0: none.
        auto_pad: grids that ``n_win`` does not divide are padded; False: they are refused.
        form: "legacy", that of the released weights: padding comes before the projection, so that padded places are
            tokens of the bias, counted in the means, and the convolution sees them. "nchw", the later one: regions
            have ``grid // n_win`` places, zeros are padded behind the projection and not counted in the means; there
            is neither pooling, soft routing, ``qk_dim`` nor a choice of projections. Equal where ``n_win`` divides.
        rank: axes of the grid.

    Raises:
        InvalidValue: an option that is not legal, or options that do not go together.
    """

    spec = MixerSpec(ranks=(2,), masks=False, padding="as_published", order=Order(flops=1.33, memory=1.0))
    #: The released modules' names, of both forms.
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "legacy": {
            r"qkv\.qkv\.(weight|bias)": r"qkv.\1",
            r"wo\.(weight|bias)": r"wo.\1",
            r"lepe\.(weight|bias)": r"lepe.\1",
            r"router\.emb\.(weight|bias)": r"router.\1",
        },
        "nchw": {
            r"qkv_linear\.(weight|bias)": r"qkv.\1",
            r"output_linear\.(weight|bias)": r"wo.\1",
            r"lepe\.(weight|bias)": r"lepe.\1",
        },
    }

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = False,
        n_win: int = 7,
        topk: int = 4,
        qk_dim: int | None = None,
        qk_scale: float | None = None,
        kv_downsample_mode: Down = "identity",
        kv_downsample_ratio: int = 4,
        kv_per_win: int = 4,
        param_attention: Projections = "qkvo",
        param_routing: bool = False,
        diff_routing: bool = False,
        soft_routing: bool = False,
        side_dwconv: int = 3,
        auto_pad: bool = True,
        form: Form = "legacy",
        rank: int = 2,
    ) -> None:
        super().__init__(dim, causal=causal)
        check_heads(dim, num_heads)
        self.num_heads, self.qk_dim = num_heads, check_key_width(qk_dim, dim, num_heads)
        for option, value, legal in (
            ("kv_downsample_mode", kv_downsample_mode, get_args(Down)),
            ("param_attention", param_attention, get_args(Projections)),
            ("form", form, get_args(Form)),
            ("rank", rank, (1, 2, 3)),
        ):
            if value not in legal:
                raise invalid(option, value, f"it must be one of {', '.join(map(str, legal))}")
        for option, value in (
            ("n_win", n_win),
            ("topk", topk),
            ("kv_downsample_ratio", kv_downsample_ratio),
            ("kv_per_win", kv_per_win),
        ):
            if not isinstance(value, int) or value < 1:
                raise invalid(option, value, "a positive whole number is needed")
        if topk > n_win**rank:
            raise invalid("topk", topk, f"there are {n_win**rank} regions, n_win={n_win} along each axis")
        if param_routing and not diff_routing:
            raise invalid("param_routing", True, "its layer learns through diff_routing=True alone")
        if diff_routing and not soft_routing:
            raise invalid("diff_routing", True, "differentiable routing is soft: it needs soft_routing=True")
        if form == "nchw" and (kv_downsample_mode != "identity" or soft_routing or param_attention != "qkvo"):
            raise invalid("form", form, "it has no pooling, no soft routing and all projections; use 'legacy'")
        if form == "nchw" and self.qk_dim != dim:
            raise invalid("qk_dim", qk_dim, f"form='nchw' has queries as wide as tokens, {dim}")
        self.n_win, self.topk, self.rank, self.form, self.auto_pad = n_win, topk, rank, form, auto_pad
        self.scale = qk_scale or self.qk_dim**-0.5
        self.down, self.ratio, self.per_win = kv_downsample_mode, kv_downsample_ratio, kv_per_win
        self.diff_routing, self.soft_routing = diff_routing, soft_routing
        self.qkv = Linear(dim, 2 * self.qk_dim + dim)
        self.wo = Linear(dim, dim) if param_attention == "qkvo" else nn.Identity()
        self.router = Linear(self.qk_dim, self.qk_dim) if param_routing else nn.Identity()
        self.lepe = Convolution(dim, side_dwconv, rank) if side_dwconv else None
        legal = Grid(minimum=n_win) if form == "nchw" else Grid()
        if not auto_pad:
            legal = Grid(minimum=n_win, multiple_of=n_win)
        padding = "as_published" if auto_pad else "none"
        if (rank, legal, padding) != (2, Grid(), "as_published"):
            self.spec = replace(self.spec, ranks=(rank,), grid=legal, padding=padding)

    @classmethod
    def options_for(cls, grid: tuple[int, ...]) -> dict[str, Any]:
        """As many regions as make the fewest products at this size, padding counted (the paper's section 3.3)."""
        rank, fewest = len(grid), (math.inf, 1)
        for count in range(1, max(grid) + 1):
            tokens, regions = math.prod(-(-length // count) * count for length in grid), count**rank
            products = 2 * tokens * min(4, regions) * tokens // regions + regions**2
            fewest = min(fewest, (products, count))
        return {"n_win": fewest[1], "topk": min(4, fewest[1] ** rank), **({} if rank == 2 else {"rank": rank})}

    def convert_official(self, state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """Convolutions of one place are linear layers."""
        pointwise = ("qkv_linear.weight", "output_linear.weight")
        return {key: m.flatten(1) if key in pointwise else m for key, m in state_dict.items()}

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        layout: TokenLayout | None = None,
        return_routing: bool = False,
    ) -> Tensor | tuple[Tensor, Routing]:  # type: ignore[override]
        """Mix ``(batch, *grid, dim)``; see :class:`~foveate.mixers.Mixer`.

        Args:
            return_routing: return a :class:`Routing` too; its attention is computed by the definition.
        """
        self.check_input(x, mask, context, layout)
        grid = tuple(x.shape[1:-1])
        padded, size = self._plan(grid)
        if self.form == "legacy":
            qkv = self.qkv(to_regions(pad_to(x, padded), size))
            values = qkv[..., 2 * self.qk_dim :]
            lepe = None if self.lepe is None else crop(self.lepe(from_regions(values, padded)), grid)
        else:
            qkv = self.qkv(x)
            lepe = None if self.lepe is None else self.lepe(qkv[..., 2 * self.qk_dim :])
            qkv = to_regions(pad_to(qkv, padded), size)
        routing = self._routing(qkv, grid, size)
        q, kv = qkv.split([self.qk_dim, self.qk_dim + self.dim], -1)
        k, v = self._pooled(kv).split([self.qk_dim, self.dim], -1)
        result = routed_region_attention(
            *(self._heads(m) for m in (q, k, v)),
            routing.routes,
            weights=routing.weights if self.soft_routing else None,
            scale=self.scale,
            return_attention=return_routing,
        )
        out, attention = result if isinstance(result, tuple) else (result, None)
        y = crop(from_regions(out.movedim(1, -2).flatten(-2).unflatten(2, size), padded), grid)
        y = self.wo(y if lepe is None else y + lepe)
        return (y, routing._replace(attention=attention)) if return_routing else y

    def route(self, x: Tensor) -> Routing:
        """Where each region of ``x`` ``(batch, *grid, dim)`` reads."""
        self.check_input(x)
        grid = tuple(x.shape[1:-1])
        padded, size = self._plan(grid)
        if self.form == "legacy":
            qkv = self.qkv(to_regions(pad_to(x, padded), size))
        else:
            qkv = to_regions(pad_to(self.qkv(x), padded), size)
        return self._routing(qkv, grid, size)

    def region_of(self, grid: tuple[int, ...]) -> Tensor:
        """The number of each place's region, int64 ``grid``."""
        padded, size = self._plan(grid)
        number = torch.zeros((1,) * self.rank, dtype=torch.int64)
        for axis, (length, edge) in enumerate(zip(padded, size, strict=True)):
            shape = [-1 if i == axis else 1 for i in range(self.rank)]
            number = number * (length // edge) + (torch.arange(length) // edge).view(shape)
        return crop(number[None, ..., None], grid)[0, ..., 0]

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections, products of regions' means and of routed tokens, the convolution."""
        padded, size = self._plan(grid)
        n, tokens, each = math.prod(grid), math.prod(padded), math.prod(size)
        regions, pooled = tokens // each, self._pooled_places(size)
        projected = tokens if self.form == "legacy" else n
        wide = 2 * self.qk_dim + self.dim
        flops = linear_flops(batch * projected, self.dim, wide)
        flops += linear_flops(batch * n, self.dim, self.dim) if isinstance(self.wo, Linear) else 0
        flops += 2 * batch * regions**2 * self.qk_dim
        flops += 2 * linear_flops(batch * regions, self.qk_dim, self.qk_dim) if isinstance(self.router, Linear) else 0
        pairs = batch * tokens * self.topk * pooled
        flops += 2 * pairs * (self.qk_dim + self.dim)
        if self.lepe is not None:
            flops += 2 * batch * projected * self.lepe.weight[0].numel() * self.dim
        return Cost(
            flops=flops,
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * self._saved(n, tokens, regions, pooled, batch),
        )

    def _saved(self, n: int, tokens: int, regions: int, pooled: int, batch: int) -> int:
        """Numbers that are kept for the backward pass."""
        projected = tokens if self.form == "legacy" else n
        # What is projected, its projection, the attention's outputs and sums, what is projected at the end.
        kept = projected * self.dim + tokens * (2 * self.qk_dim + self.dim) + tokens * (self.dim + self.num_heads)
        kept += n * self.dim if isinstance(self.wo, Linear) else 0
        kept += projected * self.dim if self.lepe is not None else 0
        if self.form == "nchw" and tokens != n:
            kept += n * (2 * self.qk_dim + self.dim)
        if self.down != "identity":
            kept += regions * pooled * (self.qk_dim + self.dim)
        if self.down.endswith("maxpool"):
            kept += 2 * regions * pooled * (self.qk_dim + self.dim)
        if self.soft_routing:
            kept += regions * self.topk * pooled * 2 * (self.qk_dim + self.dim)
            kept += tokens * self.topk * pooled * self.num_heads
        return batch * kept

    def _plan(self, grid: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The padded grid, and the size of a region."""
        if self.form == "legacy":
            size = tuple(-(-length // self.n_win) for length in grid)
        else:
            size = tuple(length // self.n_win for length in grid)
        return tuple(-(-length // edge) * edge if self.form == "nchw" else edge * self.n_win
                     for length, edge in zip(grid, size, strict=True)), size  # fmt: skip

    def _routing(self, qkv: Tensor, grid: tuple[int, ...], size: tuple[int, ...]) -> Routing:
        """The routes by ``(batch, regions, *size, channels)``."""
        means = qkv[..., : 2 * self.qk_dim]
        means = means if self.diff_routing else means.detach()
        means = means.flatten(2, -2).mean(2)
        if self.form == "nchw" and any(length % edge for length, edge in zip(grid, size, strict=True)):
            real = filled(grid, size, qkv.device).to(means.dtype)
            means = means * (math.prod(size) / real)[:, None]
        q, k = (self.router(m) for m in means.split(self.qk_dim, -1))
        best, routes = torch.topk((q * self.scale) @ k.mT, self.topk, -1)
        return Routing(best.softmax(-1), routes)

    def _pooled(self, kv: Tensor) -> Tensor:
        """Keys and values ``(batch, regions, *size, channels)`` pooled inside each region."""
        if self.down == "identity" or (not self.down.startswith("ada") and self.ratio == 1):
            return kv
        pools = {
            "avgpool": (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
            "maxpool": (F.max_pool1d, F.max_pool2d, F.max_pool3d),
            "ada_avgpool": (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
            "ada_maxpool": (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
        }
        places = self.per_win if self.down.startswith("ada") else self.ratio
        size = kv.shape[2:-1]
        if not self.down.startswith("ada") and min(size) < places:
            raise InvalidValue(
                f"{type(self).__name__}: regions of {tuple(size)} places are smaller than kv_downsample_ratio="
                f"{places}; use fewer regions or a smaller ratio."
            )
        y = pools[self.down][self.rank - 1](kv.flatten(0, 1).movedim(-1, 1), places)
        return y.movedim(1, -1).unflatten(0, kv.shape[:2])

    def _pooled_places(self, size: tuple[int, ...]) -> int:
        if self.down == "identity":
            return math.prod(size)
        if self.down.startswith("ada"):
            return self.per_win**self.rank
        return math.prod(edge // self.ratio for edge in size)

    def _heads(self, x: Tensor) -> Tensor:
        """``(batch, regions, *size, channels)`` to ``(batch, heads, regions, n, width)``, a view."""
        return x.flatten(2, -2).unflatten(-1, (self.num_heads, -1)).movedim(-2, 1)
