"""Anomaly scores without learning: the step from the value before, or the distance from the training mean.

Written as reconstructions, so that they are scored like all others, by ``(y - x)^2``::

    previous value:  y[t] = x[t - 1]        training mean:  y[t] = 0   (windows are standardised by the training rows)

On many published benchmarks such one-liners do as well as deep networks (Wu & Keogh, TKDE 2021, arXiv 2009.13807).
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from ...errors import invalid
from ...registry import check_options, register
from ...spec import ModelSpec
from ..base import Model, check_series


@register("model", "previous_value")
class PreviousValue(Model):
    """Previous value: every step is expected to be as the one before it; a jump is unusual.

    The first step of a window is compared with the second.

    Args:
        seq_len: steps T of the window.
        enc_in: variables C.

    Raises:
        InvalidValue: fewer than two steps, or no variable.
    """

    spec = ModelSpec(reads="series", tasks=("detect-anomalies",), trains=False, baseline=True, onnx=True)

    def __init__(self, seq_len: int, enc_in: int) -> None:
        super().__init__()
        for option, size, least in (("seq_len", seq_len, 2), ("enc_in", enc_in, 1)):
            if size < least:
                raise invalid(option, size, f"it must be at least {least}")
        self.seq_len, self.enc_in = seq_len, enc_in

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        """The baseline for ``info`` (lookback, channels)."""
        settings = {**options, "seq_len": info.lookback, "enc_in": info.channels}
        check_options(cls.__name__, cls, settings)
        return cls(**settings)

    def forward(self, x: Tensor) -> Tensor:
        """What every step of float ``(B, seq_len, enc_in)`` is expected to be, of the same shape.

        Raises:
            InvalidValue: ``x`` has another shape.
            InvalidType: ``x`` is not floating point.
        """
        check_series(type(self).__name__, x, self.seq_len, self.enc_in)
        return self.expected(x)

    def expected(self, x: Tensor) -> Tensor:
        """The value before, ``(B, seq_len, enc_in)``."""
        return torch.cat([x[:, 1:2], x[:, :-1]], 1)


@register("model", "training_mean", system="previous_value")
class TrainingMean(PreviousValue):
    """Training mean: every step is expected to be the mean of the training rows; what is far from it is unusual.

    Args:
        seq_len, enc_in: as in :class:`PreviousValue`.

    Raises:
        InvalidValue: fewer than two steps, or no variable.
    """

    spec = ModelSpec(reads="series", tasks=("detect-anomalies",), trains=False, baseline=True, onnx=True)

    def expected(self, x: Tensor) -> Tensor:
        """Zeros, which is what standardising makes of the mean."""
        return torch.zeros_like(x)
