"""The Theta method (Assimakopoulos and Nikolopoulos, 2000), as statsmodels computes it: the classical baseline.

A window is adjusted for its season if its autocorrelation one season apart is significant at 90 %. The forecast of the
rest y[1 .. T] is the mean of two lines, its trend by least squares and simple exponential smoothing (with Hyndman and
Billah, 2003: smoothing with half the slope b as drift)::

    y[T + h] = l[T] + b / 2 * (h - 1 + 1/alpha - (1 - alpha)^T / alpha),      l[t] = alpha y[t] + (1 - alpha) l[t - 1]

and the season is added again. Every window of every variable is fitted anew: nothing is learned beforehand.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from ...errors import invalid, missing_extra
from ...registry import check_options, register
from ...spec import ModelSpec
from ..base import Model, check_series


@register("model", "theta")
class Theta(Model):
    """Theta: the mean of a trend line and exponential smoothing, on the seasonally adjusted window.

    The season is adjusted by differences, not by ratios: a window in standardised units has no level to be relative to.
    It takes two whole seasons; in a shorter window there is none.

    Args:
        seq_len: steps T of the input.
        pred_len: steps P to forecast.
        enc_in: variables C, each forecast by itself.
        season: steps of a season; 1: there is none.

    Raises:
        InvalidValue: a size below 1.
        MissingExtra: statsmodels is not installed.
    """

    spec = ModelSpec(
        reads="series",
        tasks=("forecast",),
        trains=False,
        baseline=True,
        compile=False,
        export=False,
        export_note="statsmodels fits it anew to every window, and there is no graph of that",
    )
    recipe: ClassVar[str] = "foveate.tasks.fit.ScoredInTime"
    untrained_share: ClassVar[float] = 1.0

    def __init__(self, seq_len: int, pred_len: int, enc_in: int, season: int = 1) -> None:
        super().__init__()
        for option, size in {"seq_len": seq_len, "pred_len": pred_len, "enc_in": enc_in, "season": season}.items():
            if size < 1:
                raise invalid(option, size, "it must be at least 1")
        try:
            from statsmodels.tsa.forecasting.theta import ThetaModel
        except ImportError:
            raise missing_extra("statsmodels", "series", "theta") from None
        self.seq_len, self.pred_len, self.enc_in = seq_len, pred_len, enc_in
        self.season = season if 2 * season <= seq_len else 1
        self._fit = ThetaModel

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        """The baseline for ``info`` (lookback, horizon, channels, season); ``season`` may be given as an option."""
        known = {"seq_len": info.lookback, "pred_len": info.horizon, "enc_in": info.channels}
        settings = {"season": info.season, **options, **known}
        check_options("theta", cls, settings)
        return cls(**settings)

    def forward(self, x: Tensor, marks: Tensor | None = None) -> Tensor:
        """Forecast; no gradient passes.

        Args:
            x: float ``(B, seq_len, enc_in)``.
            marks: time features; taken because every forecaster is given them, and not read.

        Returns:
            ``(B, pred_len, enc_in)``.

        Raises:
            InvalidValue: ``x`` has another shape.
            InvalidType: ``x`` is not floating point.
        """
        check_series("Theta", x, self.seq_len, self.enc_in)
        windows = x.detach().double().cpu().transpose(1, 2).flatten(0, 1).numpy()
        with warnings.catch_warnings():
            # A window that smoothing follows without any error has no likelihood to speak of; its forecast stands.
            warnings.simplefilter("ignore")
            forecasts = np.stack([self._forecast(window) for window in windows])
        y = torch.from_numpy(forecasts).unflatten(0, (x.shape[0], self.enc_in)).transpose(1, 2)
        return y.to(x.device, x.dtype)

    def _forecast(self, window: np.ndarray) -> np.ndarray:
        if window.min() == window.max():
            return np.repeat(window[-1], self.pred_len)
        fitted = self._fit(window, period=self.season, deseasonalize=self.season > 1, method="additive").fit()
        return fitted.forecast(self.pred_len).to_numpy()
