"""Bi-level routing attention (Zhu et al., "BiFormer", 2023, arXiv 2303.08810, section 3.2).

The map is cut into ``n_win`` regions along each axis. With the mean query and the mean key of each region, ``q_r`` and
``k_r``::

    routes  = the topk largest of each row of  s q_r k_r^T        (no gradient)
    y       = (softmax(s q K^T) V + convolution(v)) W_o,          K, V: the tokens of a region's routes, side by side

``s`` is ``1 / sqrt(width of all queries)``, not that of a head: released weights want it so.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import invalid
from ...measure.cost import Cost, linear_flops
from ...ops.handwritten import sum_dtype
from ...ops.routed_region_attention import routed_region_attention
from ...registry import register
from ...spec import MixerSpec, Order
from ..base import Mixer, check_heads, check_key_width
from ..layout import TokenLayout
from ..look import Look, check_query
from ..parts import Linear
from .regions import Convolution, best_regions, check_scale, crop, from_regions, pad_to, to_regions

Down = Literal["identity", "avgpool", "maxpool", "ada_avgpool", "ada_maxpool"]
Projections = Literal["qkvo", "qkv"]
Route = Literal["hard", "soft", "differentiable", "learned"]


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

    A grid that ``n_win`` does not divide is padded behind its ends before the projection, as the released weights' code
    does with ``auto_pad``: padded places are tokens like others, which are seen and counted in the means.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim`` and ``qk_dim``.
        causal: must be False.
        n_win: regions along each axis.
        topk: regions that each region reads; at most all of them.
        qk_dim: width of all queries; None: ``dim``.
        qk_scale: factor on the products; None: ``qk_dim ** -0.5``.
        kv_downsample_mode: "identity"; "avgpool" or "maxpool" of ``kv_downsample_ratio`` places (or all there are)
            along each axis of a region; "ada_avgpool" or "ada_maxpool" to ``kv_per_win`` places along each axis.
        kv_downsample_ratio: see there.
        kv_per_win: see there.
        param_attention: "qkvo", with a projection of the output, or "qkv", without.
        routing: "hard", the published one: routes decide what is read, without gradients; "soft": keys and values of a
            route are also multiplied by its weight, for which they are copied for each route; "differentiable": with
            gradients through these weights; "learned": and with a linear layer on the regions' means. The release
            says soft_routing, diff_routing and param_routing, each with those before it.
        side_dwconv: edge of the local convolution, odd; 0: none.
        rank: axes of the grid.

    Raises:
        InvalidValue: an option that is not legal, or more routes than regions.
    """

    #: Routing and attention grow as n^(4/3) at the best number of regions, projections as n.
    spec = MixerSpec(ranks=(2,), masks=False, padding="as_published", order=Order(flops=1.2))
    #: The released module's names.
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "bra_legacy": {
            r"qkv\.qkv\.(weight|bias)": r"qkv.\1",
            r"wo\.(weight|bias)": r"wo.\1",
            r"lepe\.(weight|bias)": r"lepe.\1",
            r"router\.emb\.(weight|bias)": r"router.\1",
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
        routing: Route = "hard",
        side_dwconv: int = 3,
        rank: int = 2,
    ) -> None:
        super().__init__(dim, causal=causal)
        check_heads(dim, num_heads)
        self.num_heads, self.qk_dim = num_heads, check_key_width(qk_dim, dim, num_heads)
        for option, value, legal in (
            ("kv_downsample_mode", kv_downsample_mode, get_args(Down)),
            ("param_attention", param_attention, get_args(Projections)),
            ("routing", routing, get_args(Route)),
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
        self.n_win, self.topk, self.rank, self.routing = n_win, topk, rank, routing
        self.scale = check_scale(qk_scale) or self.qk_dim**-0.5
        self.down, self.ratio, self.per_win = kv_downsample_mode, kv_downsample_ratio, kv_per_win
        self.qkv = Linear(dim, 2 * self.qk_dim + dim)
        self.wo = Linear(dim, dim) if param_attention == "qkvo" else nn.Identity()
        self.router = Linear(self.qk_dim, self.qk_dim) if routing == "learned" else nn.Identity()
        self.lepe = Convolution(dim, side_dwconv, rank) if side_dwconv else None
        if rank != 2:
            self.spec = replace(self.spec, ranks=(rank,))
        if routing != "hard":  # copies of keys, and the weights of all pairs
            self.spec = replace(self.spec, order=Order(flops=1.2, memory=1.2))

    @classmethod
    def options_for(cls, grid: tuple[int, ...]) -> dict[str, Any]:
        """As many regions as make the fewest products at this size, see :func:`best_regions`."""
        count = best_regions(grid)
        return {"n_win": count, **({"topk": count ** len(grid)} if count ** len(grid) < 4 else {})}

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
        return self._mix(x, with_attention=False)[0]

    def forward_with_routing(self, x: Tensor) -> tuple[Tensor, Routing]:
        """:meth:`forward`, and where each region read; the attention's weights are computed by the definition."""
        self.check_input(x)
        return self._mix(x, with_attention=True)

    def route(self, x: Tensor) -> Routing:
        """Where each region of ``x`` ``(batch, *grid, dim)`` reads."""
        self.check_input(x)
        padded, size = self._plan(tuple(x.shape[1:-1]))
        return self._routing(x, self._project(x, padded, size)[0], padded, size)

    def region_of(self, grid: tuple[int, ...]) -> Tensor:
        """The number of each place's region, int64 ``grid``."""
        padded, size = self._plan(grid)
        number = torch.zeros((1,) * self.rank, dtype=torch.int64)
        for axis, (length, edge) in enumerate(zip(padded, size, strict=True)):
            shape = [-1 if i == axis else 1 for i in range(self.rank)]
            number = number * (length // edge) + (torch.arange(length) // edge).view(shape)
        return crop(number[None, ..., None], grid)[0, ..., 0]

    def look(self, x: Tensor, query: tuple[int, ...] | None = None) -> list[Look]:
        """The regions that the query's region is routed to, and, where nothing is padded or pooled, what is read."""
        self.check_input(x)
        grid = tuple(x.shape[1:-1])
        place = check_query(type(self).__name__, query, grid) or tuple(length // 2 for length in grid)
        padded, size = self._plan(grid)
        with torch.no_grad():
            _, found = self.forward_with_routing(x)
            region = self.region_of(grid).to(x.device)
            routes = found.routes[:, int(region[place])]
            visible = (region == routes.view(*routes.shape, *[1] * len(grid))).any(1, keepdim=True)
            looks = [Look("visible", visible, "routed regions")]
            if padded != grid or self.down != "identity" or found.attention is None:
                return looks
            if query is None:
                read = found.attention.mean(3) / found.routes.shape[1]
            else:
                inside = 0
                for position, edge in zip(place, size, strict=True):
                    inside = inside * edge + position % edge
                read = torch.zeros_like(found.attention[:, :, :, 0])
                read[:, :, int(region[place])] = found.attention[:, :, int(region[place]), inside]
            keys = read.unflatten(-1, (-1, math.prod(size)))  # (batch, heads, regions, topk, m)
            total = torch.zeros_like(keys[:, :, :, 0])
            total.scatter_add_(2, found.routes[:, None, :, :, None].expand_as(keys).flatten(2, 3), keys.flatten(2, 3))
            weights = from_regions(total.movedim(1, -1).unflatten(2, size), grid).movedim(-1, 1)
        return [*looks, Look("weights", weights, "routed attention")]

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections, products of regions' means and of routed tokens, the convolution."""
        padded, size = self._plan(grid)
        n, tokens = math.prod(grid), math.prod(padded)
        regions, pooled, projected = tokens // math.prod(size), self._pooled_places(size), self._projected(n, tokens)
        flops = linear_flops(batch * projected, self.dim, 2 * self.qk_dim + self.dim)
        flops += linear_flops(batch * n, self.dim, self.dim) if isinstance(self.wo, Linear) else 0
        flops += 2 * linear_flops(batch * regions, self.qk_dim, self.qk_dim) if isinstance(self.router, Linear) else 0
        flops += 2 * batch * regions**2 * self.qk_dim
        flops += 2 * batch * tokens * min(self.topk, regions) * pooled * (self.qk_dim + self.dim)
        if self.lepe is not None:
            flops += 2 * batch * projected * self.lepe.weight.numel()
        return Cost(
            flops=flops,
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * self._saved(n, tokens, regions, pooled, batch),
        )

    def _saved(self, n: int, tokens: int, regions: int, pooled: int, batch: int) -> int:
        """Numbers that are kept for the backward pass."""
        projected, wide = self._projected(n, tokens), self.qk_dim + self.dim
        kept = projected * self.dim  # what is projected, what the convolution and the last projection read
        kept += projected * self.dim if self.lepe is not None else 0
        kept += n * self.dim if isinstance(self.wo, Linear) else 0
        if self.down != "identity":
            kept += regions * pooled * wide * (3 if self.down.endswith("maxpool") else 1)
        if self.routing == "hard":  # queries, keys and values, the attention's outputs and sums
            kept += tokens * (wide + self.qk_dim) + tokens * (self.dim + self.num_heads)
        else:  # scaled queries, keys and values of each route, weighted and, with gradients, as they were; the weights
            routed = min(self.topk, regions) * pooled
            kept += tokens * self.qk_dim + tokens * routed * self.num_heads
            kept += regions * routed * wide * (1 if self.routing == "soft" else 2)
        return batch * kept

    def _mix(self, x: Tensor, with_attention: bool) -> tuple[Tensor, Routing]:
        grid = tuple(x.shape[1:-1])
        padded, size = self._plan(grid)
        qkv, lepe = self._project(x, padded, size)
        found = self._routing(x, qkv, padded, size)
        q, kv = qkv.split([self.qk_dim, self.qk_dim + self.dim], -1)
        k, v = self._pooled(kv).split([self.qk_dim, self.dim], -1)
        q, k, v = (m.flatten(2, -2).unflatten(-1, (self.num_heads, -1)).movedim(-2, 1) for m in (q, k, v))
        result = routed_region_attention(
            q,
            k,
            v,
            found.routes,
            weights=None if self.routing == "hard" else found.weights,
            scale=self.scale,
            return_attention=with_attention,
        )
        out, attention = result if isinstance(result, tuple) else (result, None)
        y = crop(from_regions(out.movedim(1, -2).flatten(-2).unflatten(2, size), padded), grid)
        y = self.wo(y if lepe is None else y + lepe)
        return y, found._replace(attention=attention)

    def _projected(self, n: int, tokens: int) -> int:
        """How many of n tokens, ``tokens`` with padding, are projected."""
        return tokens

    def _plan(self, grid: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The padded grid, and the size of a region."""
        size = tuple(-(-length // self.n_win) for length in grid)
        return tuple(edge * self.n_win for edge in size), size

    def _project(self, x: Tensor, padded: tuple[int, ...], size: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        """Queries, keys and values ``(batch, regions, *size, width)``, and the convolution of the values."""
        qkv = self.qkv(to_regions(pad_to(x, padded), size))
        if self.lepe is None:
            return qkv, None
        values = from_regions(qkv[..., 2 * self.qk_dim :], padded)
        return qkv, crop(self.lepe(values), tuple(x.shape[1:-1]))

    def _means(self, x: Tensor, grid: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
        """``(batch, regions, *size, width)`` to ``(batch, regions, width)``, at least in float32."""
        return x.flatten(2, -2).mean(2, dtype=sum_dtype(x.dtype))

    def _routing(self, x: Tensor, qkv: Tensor, padded: tuple[int, ...], size: tuple[int, ...]) -> Routing:
        """The routes of ``x``, whose projection is ``(batch, regions, *size, channels)``."""
        grid, width = tuple(x.shape[1:-1]), 2 * self.qk_dim
        if qkv.dtype in (torch.bfloat16, torch.float16):  # rounded projections would route otherwise
            weight, bias = self.qkv.weight[:width].float(), self.qkv.bias[:width].float()
            means = F.linear(self._means(to_regions(pad_to(x, padded), size), grid, size), weight, bias)
        else:
            means = self._means(qkv[..., :width], grid, size)
        means = means.detach() if self.routing in ("hard", "soft") else means
        pair = means.split(self.qk_dim, -1)
        if isinstance(self.router, Linear):
            pair = [F.linear(m, self.router.weight.to(m.dtype), self.router.bias.to(m.dtype)) for m in pair]
        q, k = pair
        best, routes = torch.topk((q * self.scale) @ k.mT, min(self.topk, k.shape[1]), -1)
        return Routing(best.softmax(-1).to(qkv.dtype), routes)

    def _pooled(self, kv: Tensor) -> Tensor:
        """Keys and values ``(batch, regions, *size, channels)`` pooled inside each region."""
        if self.down == "identity":
            return kv
        pools = {
            "avgpool": (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
            "maxpool": (F.max_pool1d, F.max_pool2d, F.max_pool3d),
            "ada_avgpool": (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
            "ada_maxpool": (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
        }
        size = kv.shape[2:-1]
        places: Any = self.per_win if self.down.startswith("ada") else tuple(min(self.ratio, edge) for edge in size)
        y = pools[self.down][self.rank - 1](kv.flatten(0, 1).movedim(-1, 1), places)
        return y.movedim(1, -1).unflatten(0, kv.shape[:2])

    def _pooled_places(self, size: tuple[int, ...]) -> int:
        if self.down == "identity":
            return math.prod(size)
        if self.down.startswith("ada"):
            return self.per_win**self.rank
        return math.prod(edge // min(self.ratio, edge) for edge in size)
