"""What the naive baselines are exact for: a forecast that repeats, and the scale against which MASE is measured."""

from __future__ import annotations

import torch

from ..models.series.seasonal_naive import LastValue, SeasonalNaive
from . import Measurement, claim


@claim(
    "seasonal_naive",
    kind="exact",
    says="A series that repeats itself every season is forecast without any error.",
)
def periodic_series_are_exact() -> Measurement:
    """Seasons 1 to 30, horizons to 70. Seen failing with the last season reversed and with a season off by one."""
    torch.manual_seed(0)
    worst = 0.0
    for season in range(1, 31):
        for horizon in (1, season, 70):
            series = torch.randn(2, season, 3).repeat(1, 140 // season + 1, 1)[:, : 60 + horizon]
            forecast = SeasonalNaive(60, horizon, 3, season)(series[:, :60])
            worst = max(worst, float((forecast - series[:, 60:]).abs().max()))
    return Measurement.at_most(worst, 0.0, "largest error; none allowed")


@claim(
    "seasonal_naive",
    kind="exact",
    says="On a random walk nothing beats the last value: its squared error at step h is h times that of one step.",
)
def last_value_error_grows_by_the_step() -> Measurement:
    """20,000 walks, 16 steps ahead. Seen failing with the first value in place of the last (off by 31)."""
    walks = torch.randn(20_000, 48, 1, generator=torch.Generator().manual_seed(0)).cumsum(1)
    error = (LastValue(32, 16, 1)(walks[:, :32]) - walks[:, 32:]).square().mean((0, 2))
    off = (error / torch.arange(1, 17) - 1).abs().max()
    return Measurement.at_most(off, 0.05, "largest relative distance of the error from h; at most")
