"""Calendar features of time stamps, each scaled to [-0.5, 0.5].

The "timeF" set of Informer (Zhou et al. 2021, arXiv 2012.07436, its appendix B) as the Time-Series-Library uses it:
which features there are depends on the step, finest first.
"""

from __future__ import annotations

import numpy as np

from .frequency import DAY, HOUR, MINUTE, unit_of

#: Feature name to its greatest value counted from 0.
_SPANS = {
    "second": 59,
    "minute": 59,
    "hour": 23,
    "day_of_week": 6,
    "day_of_month": 30,
    "day_of_year": 365,
    "week": 52,
    "month": 11,
}


def feature_names(freq: str) -> tuple[str, ...]:
    """Calendar features for steps of ``freq``; none for years, in which no calendar repeats."""
    unit, count = unit_of(freq)
    if unit == "year":
        return ()
    if unit in ("quarter", "month"):
        return ("month",)
    if unit == "week":
        return ("day_of_month", "week")
    days = ("day_of_week", "day_of_month", "day_of_year")
    if unit == "business" or count >= DAY:
        return days
    if count >= HOUR:
        return ("hour", *days)
    if count >= MINUTE:
        return ("minute", "hour", *days)
    return ("second", "minute", "hour", *days)


def time_features(times: np.ndarray, freq: str) -> np.ndarray:
    """Calendar features of ``(rows,)`` datetime64[us] stamps.

    Returns:
        float32 ``(rows, marks)`` in [-0.5, 0.5], columns in the order of :func:`feature_names`.
    """
    import pandas as pd

    index = pd.DatetimeIndex(times)
    counted = {
        "second": lambda: index.second,
        "minute": lambda: index.minute,
        "hour": lambda: index.hour,
        "day_of_week": lambda: index.day_of_week,
        "day_of_month": lambda: index.day - 1,
        "day_of_year": lambda: index.day_of_year - 1,
        "week": lambda: index.isocalendar().week - 1,
        "month": lambda: index.month - 1,
    }
    names = feature_names(freq)
    out = np.empty((len(times), len(names)), dtype=np.float32)
    for i, name in enumerate(names):
        out[:, i] = np.asarray(counted[name](), dtype=np.float64) / _SPANS[name] - 0.5
    return out
