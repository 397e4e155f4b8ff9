"""The gated convolution of MambaOut: a Mamba block without its state-space model.

Yu and Wang, "MambaOut: Do We Really Need Mamba for Vision?" (CVPR 2025, arXiv 2405.07992, eq. 2 and figure 1)::

    [g, i, c] = W1 x + b1          hidden, hidden - channels, channels
    y = W2 (act(g) [i, conv(c)]) + b2

A depthwise filter of ``kernel_size`` places along every axis mixes the last ``conv_ratio * dim`` of the inner channels;
the others pass, and a gate stands over all of them. Mamba has a selective scan behind that filter
(:mod:`foveate.mixers.mamba`); :meth:`GatedCNN.convolve` is where it would stand.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import InvalidValue, invalid
from ..measure.cost import Cost, linear_flops
from ..ops.activated import activate, linear_activated
from ..ops.linear import linear
from ..registry import register
from ..spec import MixerSpec
from .base import Mixer
from .layout import TokenLayout
from .parts import Conv2d, Linear, overwrites

Activation = Literal["gelu", "silu"]
_CONVOLUTIONS = (nn.Conv1d, Conv2d, nn.Conv3d)


@register("mixer", "mambaout")
class GatedCNN(Mixer):
    """Gate over a depthwise convolution of some of the inner channels.

    What a token sees is fixed: ``kernel_size`` places along every axis, itself in the middle; around the grid, and in
    place of masked tokens, there are zeros.

    Args:
        dim: channels of a token.
        causal: must be False.
        expansion_ratio: inner channels are ``int(expansion_ratio * dim)``.
        kernel_size: of the filter along every axis, odd.
        conv_ratio: channels that the filter mixes are ``int(conv_ratio * dim)``.
        activation: of the gate: "gelu" (exact) or "silu".
        rank: of the grid, 1 to 3; the official code has 2.

    Raises:
        InvalidValue: an even kernel, more channels to mix than there are, or another illegal option.
    """

    spec = MixerSpec(ranks=(1, 2, 3), padding="masked", onnx=True, dynamic_length=True)

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        expansion_ratio: float = 8 / 3,
        kernel_size: int = 7,
        conv_ratio: float = 1.0,
        activation: Activation = "gelu",
        rank: int = 2,
    ) -> None:
        super().__init__(dim, causal=causal)
        if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
            raise invalid("kernel_size", kernel_size, "a positive odd number is needed")
        if activation not in get_args(Activation):
            raise invalid("activation", activation, f"it must be one of {', '.join(get_args(Activation))}")
        if rank not in (1, 2, 3):
            raise invalid("rank", rank, "the grid has 1, 2 or 3 axes")
        for name, value in (("expansion_ratio", expansion_ratio), ("conv_ratio", conv_ratio)):
            if not 0 < value < math.inf:
                raise invalid(name, value, "it must be positive and finite")
        self.hidden, self.channels = int(expansion_ratio * dim), int(conv_ratio * dim)
        if not 1 <= self.channels <= self.hidden:
            raise invalid(
                "conv_ratio", conv_ratio, f"it must leave 1 to {self.hidden} channels to mix, not {self.channels}"
            )
        self.kernel_size, self.rank = kernel_size, rank
        self.activation: Activation = activation
        self.spec = replace(self.spec, ranks=(rank,))
        self.fc1 = Linear(dim, 2 * self.hidden)
        self.conv = _CONVOLUTIONS[rank - 1](
            self.channels, self.channels, kernel_size, padding=kernel_size // 2, groups=self.channels
        )
        self.fc2 = Linear(self.hidden, dim)

    @classmethod
    def options_for(cls, grid: tuple[int, ...]) -> dict[str, Any]:
        """The grid's rank."""
        return {"rank": len(grid)}

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
        fused = overwrites()
        weight, bias, passing = self.fc1.weight, self.fc1.bias, self.hidden - self.channels
        if fused:  # four passes over memory less: the filter wants its channels to themselves
            weights, biases = (m.split((self.hidden, passing, self.channels)) for m in (weight, bias))
            passed, mixed = (linear(x, weights[i], biases[i]) for i in (1, 2))
        else:
            gate, rest = self.fc1(x).chunk(2, -1)
            passed, mixed = rest.split((passing, self.channels), -1)
        if mask is not None:
            mixed = mixed.masked_fill(~mask[..., None], 0)
        mixed = self.convolve(mixed)
        if fused:
            gate = linear_activated(x, weights[0], biases[0], self.activation, times=(passed, mixed))
        else:
            gate = activate(gate, self.activation) * torch.cat([passed, mixed], -1)
        y = self.fc2(gate)
        return y if mask is None else y.masked_fill(~mask[..., None], 0)

    def convolve(self, x: Tensor) -> Tensor:
        """The filter over ``(batch, *grid, channels)``."""
        return self.conv(x.movedim(-1, 1)).movedim(1, -1)

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Both linear maps and the filter, borders included."""
        tokens, taps = batch * math.prod(grid), self.kernel_size**self.rank
        return Cost(
            flops=linear_flops(tokens, self.dim, 2 * self.hidden)
            + linear_flops(tokens, self.hidden, self.dim)
            + 2 * tokens * self.channels * taps,
            parameters=sum(p.numel() for p in self.parameters()),
            # The input, what comes out of the first map, the gate, what it is multiplied with, and their product.
            activation_bytes=4 * tokens * (self.dim + 2 * self.hidden + 3 * self.hidden),
        )


def attention_ratio(num_tokens: int, dim: int) -> float:
    """FLOPs of a transformer block that grow with the square of the tokens, over those that grow with their number.

    Such a block takes ``24 dim^2 n + 4 dim n^2`` FLOPs, and so the ratio is ``n / (6 dim)`` (section 3.2).

    Args:
        num_tokens: n.
        dim: channels of a token.

    Raises:
        InvalidValue: either is not a positive whole number.
    """
    for name, value in (("num_tokens", num_tokens), ("dim", dim)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidValue(f"{name}={value!r} is not possible: a positive whole number is needed.")
    return num_tokens / (6 * dim)


def is_long_sequence(num_tokens: int, dim: int) -> bool:
    """Whether a task is one of long sequences, for which the paper expects a state-space model to pay.

    Args:
        num_tokens: tokens of a sample.
        dim: channels of a token (384 for a ViT-S, whose border is 2,304 tokens; 768 for a ViT-B, with 4,608).

    Raises:
        InvalidValue: either is not a positive whole number.
    """
    return attention_ratio(num_tokens, dim) > 1
