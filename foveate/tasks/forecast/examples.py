"""A few forecasts beside the truth, in the user's units, small enough for a report.

The JSON: ``{"time": name, "freq": alias, "windows": [{"series": name, "history_times": [...], "future_times": [...],
"targets": [{"name", "history", "truth", "prediction"}, ...]}, ...]}``; values are numbers with six significant digits,
null where nothing was measured (in a prediction: not finite); times are ISO 8601 texts. With quantiles the prediction
is the median, and a target has ``"bands": [{"levels": [low, high], "low": [...], "high": [...]}, ...]``, widest first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...models.quantiles import MEDIAN
from .times import stamp_texts

if TYPE_CHECKING:
    from .task import ForecastTask

_TARGETS = 2
_HISTORY = 192


class Examples:
    """Keeps the forecasts of the first, the middle and the last of ``size`` windows while they pass by."""

    def __init__(self, size: int) -> None:
        self._wanted = sorted({0, size // 2, size - 1})
        self._kept: dict[int, Tensor] = {}

    def keep(self, index: Tensor, predicted: Tensor) -> None:
        """Look at a batch of consecutive windows ``index`` with forecasts ``(B, horizon, channels)``, or of levels."""
        first, last = int(index[0]), int(index[-1])
        for window in self._wanted:
            if first <= window <= last:
                self._kept[window] = predicted[window - first].double().cpu()

    def finish(self, task: ForecastTask, split: str) -> dict[str, Any]:
        """The JSON values described above."""
        windows = [_window(task, split, window, predicted) for window, predicted in self._kept.items()]
        return {"time": task.layout["time"], "freq": task.info.freq, "windows": windows}


def _window(task: ForecastTask, split: str, window: int, predicted: Tensor) -> dict[str, Any]:
    info = task.info
    rows = task.rows(split, window)
    shown = min(info.lookback, max(_HISTORY, 2 * info.horizon))
    stamps = stamp_texts(rows.times, task.layout["zone"])
    targets = []
    for channel in info.targets[:_TARGETS]:
        mean, scale = float(rows.mean[channel]), float(rows.scale[channel])
        measured = (rows.values[:, channel].double() * scale + mean).tolist()
        measured = [v if seen else None for v, seen in zip(measured, rows.observed[:, channel].tolist(), strict=True)]
        forecast = predicted[:, channel] * scale + mean
        median = forecast[:, info.quantiles.index(MEDIAN)] if info.quantiles else forecast
        target = {
            "name": task.layout["columns"][channel],
            "history": _short(measured[info.lookback - shown : info.lookback]),
            "truth": _short(measured[info.lookback :]),
            "prediction": _short(median.tolist()),
        }
        if len(info.quantiles) > 1:
            target["bands"] = _bands(forecast, info.quantiles)
        targets.append(target)
    return {
        "series": rows.series,
        "history_times": stamps[info.lookback - shown : info.lookback],
        "future_times": stamps[info.lookback :],
        "targets": targets,
    }


def _bands(forecast: Tensor, levels: Sequence[float]) -> list[dict[str, Any]]:
    """The lowest level with the highest, the next with the next, from ``(horizon, levels)``."""
    pairs = [(i, len(levels) - 1 - i) for i in range(len(levels) // 2)]
    return [
        {
            "levels": [levels[i], levels[j]],
            "low": _short(forecast[:, i].tolist()),
            "high": _short(forecast[:, j].tolist()),
        }
        for i, j in pairs
    ]


def _short(values: list[float | None]) -> list[float | None]:
    return [None if v is None or not math.isfinite(v) else float(f"{v:.6g}") for v in values]
