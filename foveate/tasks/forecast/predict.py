"""Forecasting the future of a table of series: values in the user's units, with time stamps."""

from __future__ import annotations

from datetime import timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...errors import InvalidValue
from ..base import asked_at_once
from .features import time_features
from .frequency import future_times
from .package import Forecaster
from .protocol import fill_from_past, statistics
from .read import SeriesTable, clean
from .source import read_source

if TYPE_CHECKING:
    import pandas as pd


def predict(
    forecaster: Forecaster,
    source: str | Path | pd.DataFrame | None = None,
    *,
    time: str | None = None,
    id: str | None = None,
    batch_size: int = 256,
) -> pd.DataFrame:
    """Continue every series of a table by ``forecaster.info.horizon`` steps.

    A series that was not in the training data is scaled by its own rows. Missing inputs take the last value before
    them, as in training.

    Args:
        source: path of a CSV or Parquet file, a DataFrame, or None for the embedded series. Every series needs at
            least ``lookback`` rows, the training data's columns, and its steps; other columns are not looked at.
        time, id: names of the time and id columns; default: as in the training data, or found.
        batch_size: series at a time; one by one where a model's answer depends on the others of its batch.

    Returns:
        One row per future step (series by series): the id column if there is one, the time column (zoned if the
        source's times are), one float64 column per target in the user's units.

    Raises:
        UnknownName: a column is not in the table.
        InvalidValue: the table cannot be read, a series is too short, or its steps are others than in training.
    """
    import pandas as pd

    info = forecaster.info
    table = _read(forecaster, source, time, id)
    for series in table.series:
        if len(series.times) < info.lookback:
            where = f"{table.label!r}, series {series.name!r}," if table.id else f"{table.label!r}"
            raise InvalidValue(f"{where} has {len(series.times)} rows: the forecast looks back over {info.lookback}.")
    scalers = [_scaler(forecaster, s.name, s.values) for s in table.series]
    past = [
        fill_from_past(s.values, mean)[-info.lookback :] for s, (mean, _) in zip(table.series, scalers, strict=True)
    ]
    marks = [time_features(s.times[-info.lookback :], info.freq) for s in table.series]
    mean, scale = zip(*scalers, strict=True)
    inputs = [torch.from_numpy(np.stack(parts)) for parts in (past, mean, scale, marks)]
    device = forecaster.mean.device
    forecaster.eval()
    forecasts = []
    with torch.no_grad():
        for at in torch.arange(len(past)).split(asked_at_once(forecaster.model, batch_size)):
            forecasts.append(forecaster.rescaled(*(part[at].to(device) for part in inputs)).cpu())
    values = torch.cat(forecasts)[:, :, list(info.targets)].flatten(0, 1).numpy()
    stamps = pd.DatetimeIndex(
        np.concatenate([future_times(s.times[-1], info.horizon, info.freq) for s in table.series])
    )
    if table.zone is not None:
        stamps = stamps.tz_localize(timezone(timedelta(minutes=table.zone)))
    columns: dict[str, object] = {}
    if table.id is not None:
        columns[table.id] = np.repeat([s.name for s in table.series], info.horizon)
    columns[table.time] = stamps
    columns.update({forecaster.columns[channel]: values[:, i] for i, channel in enumerate(info.targets)})
    return pd.DataFrame(columns)


def _read(
    forecaster: Forecaster, source: str | Path | pd.DataFrame | None, time: str | None, id: str | None
) -> SeriesTable:
    raw = read_source(source)
    names = {"time": time, "id": id}
    for role, usual in (("time", forecaster.time), ("id", forecaster.id)):
        if names[role] is None and usual in raw.frame:
            names[role] = usual
    freq = forecaster.info.freq
    step = {"freq": freq} if forecaster.resampled else {"grid": freq} if forecaster.regular else {}
    return clean(raw, **names, **step, columns=forecaster.columns)


def _scaler(forecaster: Forecaster, name: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale, float64 ``(channels,)``: those of training, or of the rows of a series not seen there."""
    if name in forecaster.series:
        row = forecaster.series.index(name)
        return forecaster.mean[row].cpu().double().numpy(), forecaster.scale[row].cpu().double().numpy()
    mean, scale = statistics(values)
    return np.nan_to_num(mean, nan=0.0), np.nan_to_num(scale, nan=1.0)
