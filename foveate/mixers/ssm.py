"""What Mamba and Mamba-2 share: the streaming state, sequences with gaps, and how step sizes are initialised."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidValue
from .state import State, state


@state
class SSMState(State):
    """Streaming state of a state-space mixer; its size does not depend on how much was read.

    Attributes:
        conv: ``(batch, channels, d_conv)``, the last inputs of the convolution, latest last.
        ssm: ``(batch, D, N)`` or ``(batch, H, P, N)``, float32.
    """

    conv: Tensor
    ssm: Tensor


@dataclass(frozen=True, slots=True)
class Packing:
    """Moves the real tokens of a masked sequence to its front, so that a gap is nowhere in the recurrence.

    Attributes:
        order: int64 ``(batch, L)``: which token comes to each place; real ones first, in their order.
        valid: bool ``(batch, L)``: places that hold a real token.
        place: int64 ``(batch, L)``: where each token went (meaningless for masked ones).
        mask: the mask itself.
    """

    order: Tensor
    valid: Tensor
    place: Tensor
    mask: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> Packing:
        """The packing of a mask, bool ``(batch, L)``, True = a real token."""
        order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)
        place = mask.cumsum(1) - 1
        valid = torch.arange(mask.shape[1], device=mask.device) <= place[:, -1:]
        return cls(order, valid, place.clamp(min=0), mask)

    def pack(self, x: Tensor) -> Tensor:
        """``(batch, L, dim)`` with its real tokens in front, zeros behind them."""
        x = x.gather(1, self.order.unsqueeze(-1).expand_as(x))
        return x.masked_fill(~self.valid.unsqueeze(-1), 0)

    def unpack(self, y: Tensor) -> Tensor:
        """Back to the tokens' own places, zeros where the mask is False."""
        y = y.gather(1, self.place.unsqueeze(-1).expand_as(y))
        return y.masked_fill(~self.mask.unsqueeze(-1), 0)

    def last(self, x: Tensor, before: Tensor | None, width: int) -> Tensor:
        """The last ``width`` real inputs, latest last.

        Args:
            x: ``(batch, L, channels)``, packed.
            before: ``(batch, channels, width)``, those before the sequence; None: zeros.

        Returns:
            ``(batch, channels, width)`` in x's dtype.
        """
        if before is None:
            before = x.new_zeros(x.shape[0], x.shape[2], width)
        history = torch.cat((before.to(x.dtype).transpose(1, 2), x), dim=1)
        index = self.valid.sum(1, keepdim=True) + torch.arange(width, device=x.device)
        return history.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[2])).transpose(1, 2).contiguous()


def step_size_bias(size: int, smallest: float, largest: float) -> Tensor:
    """Biases whose softplus is log-uniform between two step sizes, as published (``largest`` 0.1, ``smallest`` 1e-3).

    Returns:
        float32 ``(size,)``.

    Raises:
        InvalidValue: the bounds are not ``0 < smallest <= largest``.
    """
    if not 0 < smallest <= largest:
        raise InvalidValue(
            f"dt_min={smallest!r} and dt_max={largest!r} are not possible: 0 < dt_min <= dt_max is needed."
        )
    low, high = math.log(smallest), math.log(largest)
    dt = torch.exp(torch.rand(size) * (high - low) + low).clamp(min=1e-4)
    return dt + torch.log(-torch.expm1(-dt))  # the inverse of softplus


def check_positive(**options: int) -> None:
    """Refuse options that are not whole numbers above 0."""
    for name, value in options.items():
        if not isinstance(value, int) or value < 1:
            raise InvalidValue(f"{name}={value!r} is not possible: a positive whole number is needed.")


def check_token(name: str, x_t: Tensor, dim: int) -> None:
    """Refuse anything but one token per sample, ``(batch, dim)``."""
    if x_t.ndim != 2 or x_t.shape[1] != dim:
        raise InvalidValue(
            f"{name}: step takes one token, (batch, {dim}), not {tuple(x_t.shape)}; use prefill for more."
        )
