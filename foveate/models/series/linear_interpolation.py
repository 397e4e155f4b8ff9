"""Filling gaps without learning: straight lines between neighbours, or the last value carried forward.

For a gap between the observed steps a < t < b of a channel::

    linear:         x[t] = x[a] + (t - a) / (b - a) * (x[b] - x[a])
    carry forward:  x[t] = x[a]

Before the first observed step and behind the last one, the nearest observed value stands.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from ...errors import InvalidType, InvalidValue, invalid
from ...registry import check_options, register
from ...spec import ModelSpec
from ..base import Model, check_series


@register("model", "linear_interpolation")
class LinearInterpolation(Model):
    """Linear interpolation: every gap a straight line between the values beside it.

    Args:
        seq_len: steps T of the window.
        enc_in: variables C.

    Raises:
        InvalidValue: a size below 1.
    """

    spec = ModelSpec(
        reads="series",
        tasks=("impute",),
        trains=False,
        baseline=True,
        export_note="it takes a running maximum, which ONNX has not",
    )

    def __init__(self, seq_len: int, enc_in: int) -> None:
        super().__init__()
        for option, size in {"seq_len": seq_len, "enc_in": enc_in}.items():
            if size < 1:
                raise invalid(option, size, "it must be at least 1")
        self.seq_len, self.enc_in = seq_len, enc_in

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        """The baseline for ``info`` (lookback, channels)."""
        settings = {**options, "seq_len": info.lookback, "enc_in": info.channels}
        check_options(cls.__name__, cls, settings)
        return cls(**settings)

    def forward(self, x: Tensor, marks: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Fill a window.

        Args:
            x: float ``(B, seq_len, enc_in)``; what it holds where ``mask`` is False has no influence.
            marks: time features; taken because every imputer is given them, and not read.
            mask: bool like ``x``, True = observed; None: all is. A channel without any observed value becomes 0.

        Returns:
            ``(B, seq_len, enc_in)``.

        Raises:
            InvalidValue: ``x`` or ``mask`` has another shape.
            InvalidType: ``x`` is not floating point, ``mask`` is not bool.
        """
        name = type(self).__name__
        check_series(name, x, self.seq_len, self.enc_in)
        if mask is None:
            return x.clone()
        if mask.dtype != torch.bool:
            raise InvalidType(f"{name}: mask must be bool (True = observed), not {mask.dtype}.")
        if mask.shape != x.shape:
            raise InvalidValue(f"{name}: mask has shape {tuple(mask.shape)}; it must be {tuple(x.shape)}.")
        steps = torch.arange(self.seq_len, device=x.device)[:, None]
        before = torch.where(mask, steps, -1).cummax(1).values
        after = torch.where(mask, steps, self.seq_len).flip(1).cummin(1).values.flip(1)
        known = mask.any(1, keepdim=True)
        first = torch.where(before < 0, after, before).where(known, 0)
        last = torch.where(after >= self.seq_len, before, after).where(known, 0)
        x = torch.where(mask, x, 0)
        return self.between(x.gather(1, first), x.gather(1, last), (steps - first).to(x), (last - first).to(x))

    def between(self, left: Tensor, right: Tensor, distance: Tensor, width: Tensor) -> Tensor:
        """The value ``distance`` steps behind the left neighbour, the right one being ``width`` steps behind it."""
        return left + distance / width.clamp_min(1) * (right - left)


@register("model", "carry_forward", system="linear_interpolation")
class CarryForward(LinearInterpolation):
    """Last value carried forward: a gap repeats the value before it.

    Args:
        seq_len, enc_in: as in :class:`LinearInterpolation`.

    Raises:
        InvalidValue: a size below 1.
    """

    spec = ModelSpec(
        reads="series",
        tasks=("impute",),
        trains=False,
        baseline=True,
        export_note="it takes a running maximum, which ONNX has not",
    )

    def between(self, left: Tensor, right: Tensor, distance: Tensor, width: Tensor) -> Tensor:
        """The left neighbour; at the front of a window, where there is none, it is the right one already."""
        return left
