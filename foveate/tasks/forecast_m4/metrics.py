"""The measures of the M4 competition, and Naive2, the forecast that OWA measures against.

Definitions: Makridakis, Spiliotis and Assimakopoulos, *The M4 Competition: 100,000 time series and 61 forecasting
methods*, International Journal of Forecasting 36 (2020), and its benchmarks in R::

    sMAPE = 200 mean |y - f| / (|y| + |f|)
    MASE  = mean |y - f| / mean |x[t] - x[t - season]|
    OWA   = (sMAPE / sMAPE of Naive2 + MASE / MASE of Naive2) / 2        (of the averages over series)

Naive2 is the last value of the seasonally adjusted series, times the seasonal indices.
"""

from __future__ import annotations

import numpy as np

#: Of the standard normal distribution, for a test at 90 %.
_CRITICAL = 1.645


def smape(truth: np.ndarray, forecast: np.ndarray) -> np.ndarray:
    """sMAPE of every series in percent: ``(S, horizon)`` twice to ``(S,)``; where both are zero, the error is 0."""
    size = np.abs(truth) + np.abs(forecast)
    return 200 * np.divide(np.abs(truth - forecast), size, out=np.zeros_like(size), where=size > 0).mean(axis=1)


def naive_error(values: np.ndarray, season: int) -> float:
    """Mean absolute change over a season; NaN where it is zero or the series has no two values a season apart."""
    change = np.abs(values[season:] - values[:-season])
    return float(change.mean()) if change.any() else float("nan")


def mase(truth: np.ndarray, forecast: np.ndarray, divisor: np.ndarray) -> float:
    """MASE, averaged over series: ``(S, horizon)`` twice and :func:`naive_error` ``(S,)``, NaN ones left out."""
    defined = ~np.isnan(divisor)
    errors = np.abs(truth - forecast).mean(axis=1)[defined] / divisor[defined]
    return float(errors.mean()) if defined.any() else float("nan")


def owa(smape: float, mase: float, naive2_smape: float | None, naive2_mase: float | None) -> float:
    """Overall weighted average; NaN where Naive2 makes no error or its MASE is undefined."""
    if not naive2_smape or not naive2_mase:
        return float("nan")
    return (smape / naive2_smape + mase / naive2_mase) / 2


def is_seasonal(values: np.ndarray, season: int) -> bool:
    """Whether the autocorrelation one season apart is significant at 90 %, by Bartlett's variance of it.

    Never for a season of one step, for fewer than three seasons, or for a constant.
    """
    if season == 1 or len(values) < 3 * season:
        return False
    around = values - values.mean()
    power = around @ around
    if power == 0:
        return False
    correlations = [around[lag:] @ around[:-lag] / power for lag in range(1, season + 1)]
    limit = _CRITICAL * np.sqrt((1 + 2 * np.square(correlations[:-1]).sum()) / len(values))
    return bool(abs(correlations[-1]) > limit)


def seasonal_indices(values: np.ndarray, season: int) -> np.ndarray:
    """Multiplicative indices ``(season,)`` by classical decomposition; the first belongs to the phase of ``values[0]``.

    The trend is a centred moving average over one season, half weight on both ends of an even one. The ratios to it are
    averaged by phase, and divided by their mean.
    """
    weights = np.ones(season) if season % 2 else np.array([0.5, *np.ones(season - 1), 0.5])
    trend = np.convolve(values, weights / season, "valid")
    first = len(weights) // 2
    ratios = values[first : first + len(trend)] / trend
    phases = np.arange(first, first + len(trend)) % season
    means = np.array([ratios[phases == phase].mean() for phase in range(season)])
    return means / means.mean()


def naive2(values: np.ndarray, horizon: int, season: int) -> np.ndarray:
    """Forecast ``(horizon,)``: the last value, seasonally adjusted if the series is seasonal.

    Where a value is not positive ratios mean nothing, and nothing is adjusted (M4 has no such series).
    """
    if not is_seasonal(values, season) or values.min() <= 0:
        return np.repeat(values[-1], horizon)
    indices = seasonal_indices(values, season)
    phases = np.arange(len(values) - 1, len(values) + horizon) % season
    return values[-1] / indices[phases[0]] * indices[phases[1:]]
