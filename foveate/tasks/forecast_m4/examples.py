"""A few forecasts beside the truth, in the user's units, in the form that the forecast task gives; times are steps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from .task import ForecastM4Task

#: So many lookbacks of the past are shown.
_SHOWN = 2


def examples(task: ForecastM4Task, split: str, forecast: np.ndarray) -> dict[str, Any]:
    """The first, the middle and the last series with their forecasts.

    Args:
        forecast: ``(series, horizon)`` in the user's units.

    Returns:
        JSON values, see :mod:`foveate.tasks.forecast.examples`; the first step that is forecast is "step 1".
    """
    info, size = task.info, len(forecast)
    truth = task.batch(split, torch.arange(size))["y"][..., 0].tolist()
    windows = []
    for series in sorted({0, size // 2, size - 1}):
        past = task.past(split, series)[-_SHOWN * info.lookback :]
        target = {
            "name": "value",
            "history": _short(past.tolist()),
            "truth": _short(truth[series]),
            "prediction": _short(forecast[series].tolist()),
        }
        windows.append(
            {
                "series": task.layout["names"][series],
                "history_times": [f"step {i}" for i in range(1 - len(past), 1)],
                "future_times": [f"step {i}" for i in range(1, info.horizon + 1)],
                "targets": [target],
            }
        )
    return {"time": "step", "freq": info.freq, "windows": windows}


def _short(values: list[float]) -> list[float | None]:
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in values]
