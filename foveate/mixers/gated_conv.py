"""Gated convolution: a convolution whose output is gated by a second one.

Dauphin, Fan, Auli and Grangier, "Language Modeling with Gated Convolutional Networks" (ICML 2017, arXiv 1612.08083,
eq. 1). With filters W and V that are ``width`` tokens wide::

    y = (x * W + b) sigmoid(x * V + c)

The gate lets gradients pass through its linear half unhindered. What a token sees is fixed: ``width`` tokens, the last
ones of which it is the last itself (causal) or the middle one. No token is looked up by content: this is the baseline
that says whether attention is needed at all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import invalid
from ..measure.cost import Cost, linear_flops
from ..registry import register
from ..spec import MixerSpec
from .base import Mixer
from .layout import TokenLayout
from .ssm import Packing, check_positive
from .state import State, state


@state
class GatedConvState(State):
    """The last ``width - 1`` tokens, ``(batch, width - 1, dim)``, latest last; zeros before the first."""

    inputs: Tensor


@register("mixer", "gated_conv")
class GatedConv(Mixer):
    """A convolution over time with a gated linear unit.

    Masked tokens are taken out of the sequence, so that the tokens around a gap are neighbours. Before the beginning,
    and behind the end, there are zeros.

    Args:
        dim: channels of a token.
        causal: a token sees itself and the ``width - 1`` tokens before it; otherwise as many on both sides.
        width: tokens that a filter sees; odd unless causal.
        bias: both convolutions have biases.

    Raises:
        InvalidValue: a width that is not a positive whole number, or even without causality.
    """

    spec = MixerSpec(causal="strict", streaming="exact", padding="masked", onnx=True, dynamic_length=True)

    def __init__(self, dim: int, *, causal: bool = False, width: int = 5, bias: bool = True) -> None:
        super().__init__(dim, causal=causal)
        check_positive(width=width)
        if not causal and width % 2 == 0:
            raise invalid("width", width, "without causality the token is in the middle, so it must be odd")
        self.width = width
        self.conv = nn.Conv1d(dim, 2 * dim, width, bias=bias)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor:
        """Mix ``(batch, length, dim)``; see :class:`~foveate.mixers.Mixer`."""
        self.check_input(x, mask, context, layout)
        packing, x, _ = Packing.take_out(x, mask)
        before = self.width - 1 if self.causal else self.width // 2
        y = self._convolve(F.pad(x, (0, 0, before, self.width - 1 - before)))
        return y if packing is None else packing.unpack(y)

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> GatedConvState:
        """Zeros, on the device and in the dtype of the weights unless told.

        Raises:
            InvalidType: the mixer is not causal.
        """
        if not self.causal:
            raise self._no_streaming()
        weight = self.conv.weight
        shape = (batch_size, self.width - 1, self.dim)
        return GatedConvState(torch.zeros(shape, device=device or weight.device, dtype=dtype or weight.dtype))

    def prefill(self, x: Tensor, state: GatedConvState, mask: Tensor | None = None) -> tuple[Tensor, GatedConvState]:
        """Read ``(batch, length, dim)`` after ``state``; a masked token leaves the state as it is."""
        if not self.causal:
            raise self._no_streaming()
        self.check_stream(x, state, mask)
        packing, x, _ = Packing.take_out(x, mask)
        window = torch.cat((state.inputs.to(x.dtype), x), 1)
        y = self._convolve(window)
        if packing is None:
            return y, GatedConvState(window[:, x.shape[1] :])
        # The last inputs of each sample stand before what its masked tokens left behind it.
        last = packing.valid.sum(1, keepdim=True) + torch.arange(self.width - 1, device=x.device)
        inputs = window.gather(1, last.unsqueeze(-1).expand(-1, -1, self.dim))
        return packing.unpack(y), GatedConvState(inputs)

    def step(self, x_t: Tensor, state: GatedConvState) -> tuple[Tensor, GatedConvState]:
        """Read one token ``(batch, dim)``.

        Raises:
            InvalidValue: anything but one token per sample.
        """
        self.check_step(x_t, state)
        y, state = self.prefill(x_t[:, None], state)
        return y[:, 0], state

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """One dense convolution; saved are its padded input and both halves of its output."""
        tokens, d = batch * grid[0], self.dim
        return Cost(
            flops=linear_flops(tokens, self.width * d, 2 * d),
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * (3 * tokens + batch * (self.width - 1)) * d,
            state_bytes=4 * batch * (self.width - 1) * d if self.causal else 0,
        )

    def _convolve(self, window: Tensor) -> Tensor:
        """Outputs ``(batch, length, dim)`` of ``(batch, length + width - 1, dim)``."""
        return F.glu(self.conv(window.transpose(1, 2)), dim=1).transpose(1, 2)
