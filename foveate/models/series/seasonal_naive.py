"""Seasonal naive forecasting: the baseline that every forecaster must beat (Hyndman & Athanasopoulos, FPP3, sec. 5.2).

With a season of s steps the forecast of step h is the last observation of the same phase::

    y[T + h] = x[T - s + (h mod s)],   h = 0, 1, ..., P - 1

With s = 1 it repeats the last value. Nothing is learned.
"""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor

from ...errors import invalid
from ...registry import check_options, register
from ...spec import ModelSpec
from ..base import Model, check_series


@register("model", "seasonal_naive")
class SeasonalNaive(Model):
    """Seasonal naive: repeats the last season.

    Where the window is shorter than a season, the whole window is repeated: the longest stretch there is.

    Args:
        seq_len: steps T of the input.
        pred_len: steps P to forecast.
        enc_in: variables C.
        season: steps of a season (24 for hourly data with a daily pattern).

    Raises:
        InvalidValue: a size below 1.
    """

    spec = ModelSpec(reads="series", tasks=("forecast",), trains=False, baseline=True, onnx=True)

    def __init__(self, seq_len: int, pred_len: int, enc_in: int, season: int = 1) -> None:
        super().__init__()
        for option, size in {"seq_len": seq_len, "pred_len": pred_len, "enc_in": enc_in, "season": season}.items():
            if size < 1:
                raise invalid(option, size, "it must be at least 1")
        self.seq_len, self.pred_len, self.enc_in = seq_len, pred_len, enc_in
        self.season = min(season, seq_len)

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        """The baseline for ``info`` (lookback, horizon, channels, season); ``season`` may be given as an option."""
        known = {"seq_len": info.lookback, "pred_len": info.horizon, "enc_in": info.channels}
        settings = {"season": info.season, **options, **known}
        check_options("seasonal_naive", cls, settings)
        return cls(**settings)

    def forward(self, x: Tensor, marks: Tensor | None = None) -> Tensor:
        """Forecast.

        Args:
            x: float ``(B, seq_len, enc_in)``.
            marks: time features; taken because every forecaster is given them, and not read.

        Returns:
            ``(B, pred_len, enc_in)``.

        Raises:
            InvalidValue: ``x`` has another shape.
            InvalidType: ``x`` is not floating point.
        """
        check_series(type(self).__name__, x, self.seq_len, self.enc_in)
        seasons = -(-self.pred_len // self.season)
        return x[:, self.seq_len - self.season :].repeat(1, seasons, 1)[:, : self.pred_len]


@register("model", "last_value", system="seasonal_naive")
class LastValue(SeasonalNaive):
    """Last value: repeats the last observation; seasonal naive with a season of one step.

    Args:
        seq_len, pred_len, enc_in: as in :class:`SeasonalNaive`.

    Raises:
        InvalidValue: a size below 1.
    """

    spec = ModelSpec(reads="series", tasks=("forecast",), trains=False, baseline=True, onnx=True)

    def __init__(self, seq_len: int, pred_len: int, enc_in: int) -> None:
        super().__init__(seq_len, pred_len, enc_in, season=1)

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        """The baseline for ``info`` (lookback, horizon, channels)."""
        settings = {**options, "seq_len": info.lookback, "pred_len": info.horizon, "enc_in": info.channels}
        check_options("last_value", cls, settings)
        return cls(**settings)
