"""Mixers that each break their word on cost, options or tools; ``breaks`` names the checks that must notice."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn

from foveate.errors import InvalidValue
from foveate.measure.cost import linear_flops
from foveate.mixers import Grid, MixerSpec
from foveate.mixers.base import grid_size
from foveate.mixers.look import Look, check_query

from .honest import QUADRATIC, Honest, Plain


class WrongFlops(Plain):
    """Forgets one projection."""

    breaks: ClassVar = {"flops_are_those_counted"}

    def cost(self, grid, batch=1):
        cost = super().cost(grid, batch)
        return replace(cost, flops=cost.flops - linear_flops(batch * grid_size(grid), self.dim, self.dim))


class WrongMemory(Plain):
    """Forgets half of the attention weights."""

    breaks: ClassVar = {"activation_bytes_are_near_those_kept"}

    def cost(self, grid, batch=1):
        cost = super().cost(grid, batch)
        return replace(cost, activation_bytes=cost.activation_bytes // 2)


class WrongParameters(Plain):
    """Counts no biases."""

    breaks: ClassVar = {"parameters_are_those_counted"}

    def cost(self, grid, batch=1):
        cost = super().cost(grid, batch)
        return replace(cost, parameters=cost.parameters - 4 * self.dim)


class WrongOrder(Plain):
    """Claims to be linear."""

    breaks: ClassVar = {"flops_grow_as_claimed", "memory_grows_as_claimed"}
    spec = MixerSpec()


class Secretive(Plain):
    """Takes what its spec says it does not, and refuses in words that name nothing."""

    breaks: ClassVar = {
        "refuses_other_ranks",
        "refuses_other_widths",
        "refuses_a_mask",
        "refuses_a_context",
        "refuses_a_layout",
        "refuses_segments",
    }
    spec = MixerSpec(masks=False, order=QUADRATIC)

    def check_input(self, x, mask=None, context=None, layout=None):
        if x.ndim != 3 or x.shape[-1] != self.dim:
            raise InvalidValue("bad input")


class TakesAnyMask(Plain):
    """Accepts masks of numbers."""

    breaks: ClassVar = {"refuses_masks_that_do_not_fit"}

    def forward(self, x, *, mask=None, context=None, layout=None):
        mask = mask if mask is None else mask.bool()
        return super().forward(x, mask=mask, context=context, layout=layout)


class WrongGradient(Plain):
    """Cuts the graph at the keys."""

    breaks: ClassVar = {"gradients_are_right", "every_parameter_learns"}

    def _attend(self, q, k, v, distance, visible):
        return super()._attend(q, k.detach(), v, distance, visible)


class UnusedParameter(Plain):
    """Has a parameter that does nothing."""

    breaks: ClassVar = {"every_parameter_learns"}

    def __init__(self, dim: int, *, num_heads: int = 8, causal: bool = False) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.unused = nn.Parameter(torch.ones(dim))

    def cost(self, grid, batch=1):
        cost = super().cost(grid, batch)
        return replace(cost, parameters=cost.parameters + self.dim)


class GraphBreaks(Plain):
    """Asks a tensor for a number in the middle."""

    breaks: ClassVar = {"compiles_as_one_graph", "exports", "exports_strictly"}

    def forward(self, x, *, mask=None, context=None, layout=None):
        if not x.is_meta and x.sum().item() > 1e9:
            return x
        return super().forward(x, mask=mask, context=context, layout=layout)


class PromisesInSecret(Plain):
    """Its class says no to every export, and its instances say yes."""

    breaks: ClassVar = {"refuses_export", "refuses_onnx", "refuses_any_length"}
    spec = MixerSpec(export=False, order=QUADRATIC)

    def __init__(self, dim: int, *, num_heads: int = 8, causal: bool = False) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.spec = replace(self.spec, export=True, onnx=True, dynamic_length=True)


class OneLengthOnly(Plain):
    """Promises files for every length, and bends its graph to the length of the example."""

    breaks: ClassVar = {"exports", "exports_to_onnx"}
    spec = MixerSpec(onnx=True, dynamic_length=True, order=QUADRATIC)

    def forward(self, x, *, mask=None, context=None, layout=None):
        y = super().forward(x, mask=mask, context=context, layout=layout)
        return torch.stack([y[:, i] for i in range(y.shape[1])], 1)


class RunningMaximum(Plain):
    """Promises ONNX, which has no running maximum."""

    breaks: ClassVar = {"exports_to_onnx"}
    spec = MixerSpec(onnx=True, order=QUADRATIC)

    def forward(self, x, *, mask=None, context=None, layout=None):
        y = super().forward(x, mask=mask, context=context, layout=layout)
        return y + 0 * y.detach().cummax(1).values


class LaxGrid(Plain):
    """Says multiples of 4 and takes anything."""

    breaks: ClassVar = {"refuses_other_grids"}
    spec = MixerSpec(grid=Grid(multiple_of=4), order=QUADRATIC)

    def check_input(self, x, mask=None, context=None, layout=None):
        if x.shape[1] % 4 == 0 or x.ndim != 3:
            super().check_input(x, mask, context, layout)


class NotSaved(Plain):
    """Keeps a weight where no state dict sees it."""

    breaks: ClassVar = {"weights_survive_safetensors"}

    def __init__(self, dim: int, *, num_heads: int = 8, causal: bool = False) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.gain = float(torch.rand((), device="cpu"))

    def _close(self, y, mask):
        return super()._close(y, mask) * self.gain


class LaxOptions(Honest):
    """Takes any slope."""

    breaks: ClassVar = {"refuses_illegal_options"}

    def __init__(self, dim: int, *, num_heads: int = 8, causal: bool = False, slope: float = 0.1) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.slope = slope


class CausalSilently(Plain):
    """Has no causal form and takes ``causal=True``."""

    breaks: ClassVar = {"refuses_causal"}

    def __init__(self, dim: int, *, num_heads: int = 8, causal: bool = False) -> None:
        super().__init__(dim, num_heads=num_heads, causal=False)
        self.causal = causal


class OptionsByPosition(Plain):
    """Takes heads by position."""

    breaks: ClassVar = {"its_signature_follows_the_contract"}

    def __init__(self, dim: int, num_heads: int = 8, *, causal: bool = False) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)


class ReadsTwice(Plain):
    """Shows weights that sum to 2."""

    breaks: ClassVar = {"looks_are_legal"}

    def look(self, x, query=None):
        self.check_input(x)
        check_query(type(self).__name__, query, tuple(x.shape[1:-1]))
        return [Look("weights", torch.full((x.shape[0], 1, x.shape[1]), 2 / x.shape[1]), "attention")]


class LayersDiffer(Plain):
    """Widens its last layer."""

    breaks: ClassVar = {"builds_for_every_layer"}

    @classmethod
    def for_layer(cls, index, depth, dim, **options):
        return cls(dim * (1 + (index == depth - 1)), **options)


class NeedsNumbers(Plain):
    """Leaves torch in the middle, which neither shapes nor types survive."""

    breaks: ClassVar = {"works_on_meta", "flops_are_those_counted", "flops_grow_as_claimed"}

    def forward(self, x, *, mask=None, context=None, layout=None):
        if x.detach().double().sum().tolist() > 1e9:
            return x
        return super().forward(x, mask=mask, context=context, layout=layout)
