"""The later form of BiFormer's routed attention: zeros behind the projection, means of what is there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from ...registry import register
from ...spec import MixerSpec, Order
from .regions import best_regions, filled, pad_to, to_regions
from .routing import BiLevelRoutingAttention


@register("mixer", "regional_routing_attention", system="biformer")
class RegionalRoutingAttention(BiLevelRoutingAttention):
    """:class:`BiLevelRoutingAttention` as the release's ``bra_nchw`` has it; equal where ``n_win`` divides the grid.

    Regions have ``grid // n_win`` places along each axis, at least one, so that there may be more than ``n_win``. What
    they lack at the ends are zeros behind the projection, which are seen (their score is 0) but not counted in the
    means; the convolution reads the map as it is.

    Args:
        dim, num_heads, causal, n_win, topk, qk_scale, side_dwconv, rank: see :class:`BiLevelRoutingAttention`.

    Raises:
        InvalidValue: an option that is not legal.
    """

    spec = MixerSpec(ranks=(2,), masks=False, padding="as_published", order=Order(flops=1.2))
    #: The released module's names; its linear layers are convolutions of one place.
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "bra_nchw": {
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
        qk_scale: float | None = None,
        side_dwconv: int = 3,
        rank: int = 2,
    ) -> None:
        super().__init__(
            dim,
            num_heads=num_heads,
            causal=causal,
            n_win=n_win,
            topk=topk,
            qk_scale=qk_scale,
            side_dwconv=side_dwconv,
            rank=rank,
        )

    @classmethod
    def options_for(cls, grid: tuple[int, ...]) -> dict[str, Any]:
        """As many regions as make the fewest products at this size, see :func:`best_regions`."""
        count = best_regions(grid, whole=True)
        return {"n_win": count, **({"topk": count ** len(grid)} if count ** len(grid) < 4 else {})}

    def convert_official(self, state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """Convolutions of one place are linear layers."""
        pointwise = ("qkv_linear.weight", "output_linear.weight")
        return {key: m.flatten(1) if key in pointwise else m for key, m in state_dict.items()}

    def _projected(self, n: int, tokens: int) -> int:
        return n

    def _plan(self, grid: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        size = tuple(max(1, length // self.n_win) for length in grid)
        padded = tuple(-(-length // edge) * edge for length, edge in zip(grid, size, strict=True))
        return padded, size

    def _project(self, x: Tensor, padded: tuple[int, ...], size: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        qkv = self.qkv(x)
        lepe = None if self.lepe is None else self.lepe(qkv[..., 2 * self.qk_dim :])
        return to_regions(pad_to(qkv, padded), size), lepe

    def _means(self, x: Tensor, grid: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
        means = super()._means(x, grid, size)
        if not any(length % edge for length, edge in zip(grid, size, strict=True)):
            return means
        return means * (math.prod(size) / filled(grid, size, x.device).to(means.dtype))[:, None]
