"""What the Theta method is exact for, and that it is the method that it says it is."""

from __future__ import annotations

import numpy as np
import torch

from ..models.series.theta import Theta
from . import Measurement, claim


@claim("theta", kind="exact", says="A season that repeats itself is continued without error, whatever its shape.")
def periodic_series_are_continued() -> Measurement:
    """Seasons 4 to 24, random shapes. Seen failing with the season off by one step and without any (3.2)."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for season in (4, 7, 12, 24):
        shape = torch.randn(3, season, 2, generator=generator, dtype=torch.float64)
        forecast = Theta(4 * season, season + 3, 2, season)(shape.repeat(1, 4, 1))
        worst = max(worst, float((forecast - shape.repeat(1, 2, 1)[:, : season + 3]).abs().max()))
    return Measurement.at_most(worst, 1e-6, "largest error on shapes of unit variance; at most")


@claim(
    "theta",
    kind="exact",
    says="It is simple exponential smoothing with half the slope of the trend line as drift (Hyndman and Billah 2003).",
)
def smoothing_with_half_the_slope() -> Measurement:
    """Twenty walks, smoothed here by hand. Seen failing with the whole slope as drift and without any (6.6)."""
    walks = np.random.default_rng(0).normal(size=(20, 60)).cumsum(axis=1) + 0.3 * np.arange(60)
    model, steps = Theta(60, 18, 1), np.arange(18)
    rates = np.linspace(1e-4, 0.9999, 10_000)
    worst = 0.0
    for walk in walks:
        level, error = np.full_like(rates, walk[0]), np.zeros_like(rates)
        for value in walk:
            error += (value - level) ** 2
            level += rates * (value - level)
        alpha, last = rates[error.argmin()], level[error.argmin()]
        slope = np.polyfit(np.arange(60), walk, 1)[0]
        formula = last + slope / 2 * (steps + (1 - (1 - alpha) ** 60) / alpha)
        forecast = model(torch.from_numpy(walk)[None, :, None])[0, :, 0].numpy()
        worst = max(worst, float(np.abs(forecast - formula).max()))
    return Measurement.at_most(
        worst, 0.02, "largest distance from that formula, on walks with steps of size 1; at most"
    )


@claim(
    "theta",
    kind="exact",
    says="Forecasts follow level and unit: that of a x + b is a times that of x, plus b.",
)
def follows_level_and_unit() -> Measurement:
    """Seen failing with the season taken as ratios (0.2)."""
    generator = torch.Generator().manual_seed(1)
    t = torch.arange(48, dtype=torch.float64)
    x = torch.randn(8, 48, 1, generator=generator, dtype=torch.float64) + (t * (2 * torch.pi / 12)).sin()[:, None] * 3
    model = Theta(48, 12, 1, 12)
    worst = max(float((model(a * x + b) / a - b / a - model(x)).abs().max()) for a, b in ((10.0, 300.0), (0.2, -5.0)))
    return Measurement.at_most(worst, 1e-4, "largest difference in units of the noise; at most")
