"""Focal modulation: every token is multiplied by what filters of growing reach have gathered around it.

Yang et al., "Focal Modulation Networks" (NeurIPS 2022, arXiv 2203.11926), section 3. With ``q``, a context ``c_0`` and
gates ``g`` from one linear map of the tokens, and ``L`` levels,

    c_l = gelu(depthwise_l(c_{l-1})),   c_{L+1} = gelu(mean(c_L)),   y = W_out (q * W_h sum_l g_l c_l)

Context is gathered first and meets the query last, the reverse of attention: cost is linear in tokens. Filters of level
l are ``focal_window + focal_factor (l - 1)`` wide and have no biases, gates have no activation, as released.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import invalid
from ..measure.cost import Cost, linear_flops
from ..ops.activated import linear_activated
from ..ops.linear import linear
from ..registry import register
from ..spec import MixerSpec, Order
from .base import Mixer, grid_size
from .layout import TokenLayout
from .look import Look, check_query
from .parts import Conv2d, Linear, overwrites

_CONVOLUTIONS = (nn.Conv1d, Conv2d, nn.Conv3d)
#: Weights of linear maps by the names of releases and peers.
_MAPS = re.compile(r"(?:(?:^|modulation\.)(?:f|h|proj|projection_context)|mlp\.fc[12])\.weight$")


@register("mixer", "focalnet")
class FocalModulation(Mixer):
    """Modulation of each token by its surroundings at several scales and by the mean of the grid.

    Masked tokens are zeros to the filters, as what lies outside of the grid is, and do not count in the mean.

    Args:
        dim: channels of a token.
        causal: must be False: the mean sees everything.
        rank: axes of the grids: 1, 2 or 3.
        focal_window: width of the first level's filter, odd.
        focal_level: number of levels.
        focal_factor: by how much filters grow from level to level, even.
        bias: the maps in front of and behind the context have biases.
        proj_drop: share of outputs dropped while training.
        use_postln_in_modulation: LayerNorm before the last map.
        normalize_modulator: divide the gathered context by the number of levels, the mean counted.

    Raises:
        InvalidValue: an even filter, no level, or another option that is not legal.
    """

    spec = MixerSpec(ranks=(1, 2, 3), causal="never", order=Order(flops=1.0, memory=1.0), onnx=True)
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "FocalNet": {
            r"((?:f|h|proj|ln)\.(?:weight|bias))": r"\1",
            r"focal_layers\.(\d+)\.0\.weight": r"focal_layers.\1.weight",
        }
    }

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        rank: int = 2,
        focal_window: int = 3,
        focal_level: int = 2,
        focal_factor: int = 2,
        bias: bool = True,
        proj_drop: float = 0.0,
        use_postln_in_modulation: bool = False,
        normalize_modulator: bool = False,
    ) -> None:
        super().__init__(dim, causal=causal)
        if rank not in (1, 2, 3):
            raise invalid("rank", rank, "a grid has 1, 2 or 3 axes")
        if not isinstance(focal_window, int) or focal_window < 1 or focal_window % 2 == 0:
            raise invalid("focal_window", focal_window, "a positive odd number is needed")
        if not isinstance(focal_level, int) or focal_level < 1:
            raise invalid("focal_level", focal_level, "at least one level is needed")
        if not isinstance(focal_factor, int) or focal_factor < 0 or focal_factor % 2:
            raise invalid("focal_factor", focal_factor, "an even number is needed, so that all filters are odd")
        if not 0 <= proj_drop < 1:
            raise invalid("proj_drop", proj_drop, "it must be at least 0 and below 1")
        self.spec = replace(self.spec, ranks=(rank,))
        self.levels, self.normalize_modulator = focal_level, normalize_modulator
        self.kernel_sizes = tuple(focal_window + focal_factor * level for level in range(focal_level))
        self.f = Linear(dim, 2 * dim + focal_level + 1, bias=bias)
        self.h = Linear(dim, dim, bias=bias)
        self.focal_layers = nn.ModuleList(
            _CONVOLUTIONS[rank - 1](dim, dim, size, padding=size // 2, groups=dim, bias=False)
            for size in self.kernel_sizes
        )
        self.ln = nn.LayerNorm(dim) if use_postln_in_modulation else None
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    @classmethod
    def options_for(cls, grid: tuple[int, ...]) -> dict[str, Any]:
        """The grid's rank."""
        return {"rank": len(grid)}

    @property
    def reach(self) -> int:
        """Tokens along an axis that the last level's filters cover: ``1 + sum(k_l - 1)``."""
        return 1 + sum(size - 1 for size in self.kernel_sizes)

    def convert_official(self, state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """Linear maps that the release writes as convolutions of one pixel."""
        return {name: unfiltered(name, value) for name, value in state_dict.items()}

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
        x = x if mask is None else x.masked_fill(~mask[..., None], 0)
        queries, *others = self._first_maps()
        modulator, _ = self._modulator(x, mask, others)
        # Queries last, so that the pass over memory which adds their bias multiplies them too.
        y = linear_activated(x, *queries, times=modulator)
        y = self.proj_drop(self.proj(y if self.ln is None else self.ln(y)))
        return y if mask is None else y.masked_fill(~mask[..., None], 0)

    def look(self, x: Tensor, query: tuple[int, ...] | None = None) -> list[Look]:
        """The gate of every level, the mean's last, and how strongly each token is modulated (root mean square)."""
        self.check_input(x)
        check_query(type(self).__name__, query, tuple(x.shape[1:-1]))
        modulator, gates = self._modulator(x, None, self._first_maps()[1:])
        strength = modulator.square().mean(-1, keepdim=True).sqrt()
        return [
            Look("gate", gates.movedim(-1, 1), "gates: levels, then the mean"),
            Look("gate", strength.movedim(-1, 1), "strength of the modulator"),
        ]

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """The maps and the filters, borders included."""
        tokens, dim, levels = batch * grid_size(grid), self.dim, self.levels
        taps = sum(size ** len(grid) for size in self.kernel_sizes)
        # The input, query, context, gates; of each level what its activation reads and gives; what the maps read.
        saved = (6 + 2 * levels + (self.ln is not None)) * dim + levels + 1
        return Cost(
            flops=linear_flops(tokens, dim, 4 * dim + levels + 1) + 2 * tokens * dim * taps,
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * tokens * saved,
        )

    def _first_maps(self) -> list[tuple[Tensor, Tensor | None]]:
        """Weights and biases of queries, context and gates: rows of one map."""
        rows = self.dim, self.dim, self.levels + 1
        biases = (None,) * 3 if self.f.bias is None else self.f.bias.split(rows)
        return list(zip(self.f.weight.split(rows), biases, strict=True))

    def _modulator(
        self, x: Tensor, mask: Tensor | None, maps: list[tuple[Tensor, Tensor | None]]
    ) -> tuple[Tensor, Tensor]:
        """What queries are multiplied by, ``(batch, *grid, dim)``, and the gates ``(..., levels + 1)``."""
        # Products of their own, not one: filters want their channels to themselves in memory.
        axes = tuple(range(1, x.ndim - 1))
        context, gates = (linear(x, *given) for given in maps)
        gathered, add = None, Tensor.addcmul_ if overwrites() else torch.addcmul
        for level, layer in enumerate(self.focal_layers):
            if mask is not None:
                context = context.masked_fill(~mask[..., None], 0)
            context = _filtered(layer, context)
            gate = gates[..., level : level + 1]
            gathered = context * gate if gathered is None else add(gathered, context, gate)
        if mask is None:
            mean = context.mean(axes, keepdim=True)
        else:
            real = mask[..., None]
            mean = context.where(real, 0).sum(axes, keepdim=True) / real.sum(axes, keepdim=True).clamp(min=1)
        assert gathered is not None
        gathered = add(gathered, F.gelu(mean).to(gates.dtype), gates[..., self.levels :])
        if self.normalize_modulator:
            gathered = gathered / (self.levels + 1)
        return self.h(gathered), gates


def _filtered(layer: nn.Module, x: Tensor) -> Tensor:
    """``gelu(depthwise(x))``, channels last in and out."""
    x = x.movedim(-1, 1)
    y = layer(x, "gelu") if isinstance(layer, Conv2d) else F.gelu(layer(x))
    return y.movedim(1, -1)


def unfiltered(name: str, value: Tensor) -> Tensor:
    """The weight of a linear map that releases write as a filter of one pixel."""
    return value.flatten(1) if value.shape[2:] == (1, 1) and _MAPS.search(name) else value
