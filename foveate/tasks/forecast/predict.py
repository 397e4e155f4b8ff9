"""Forecasting the future of a table of series: values in the user's units, with time stamps."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...errors import InvalidValue, unknown_name
from ..base import asked_at_once
from .covariates import Ahead, cover_horizon, encode_static, take_known, take_static
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
            With known covariates the rows of the horizon must be there too, their targets empty.
        time, id: names of the time and id columns; default: as in the training data, or found.
        batch_size: series at a time; one by one where a model's answer depends on the others of its batch.

    Returns:
        One row per future step (series by series): the id column if there is one, the time column (zoned if the
        source's times are), one float64 column per target in the user's units; with quantiles one per target and
        level, such as ``load_q0.1``.

    Raises:
        UnknownName: a column is not in the table, or a category was not in training.
        InvalidValue: the table cannot be read, a series is too short, its steps are others than in training, or
            covariates do not cover the horizon.
    """
    import pandas as pd

    info = forecaster.info
    table, ahead, static = _read(forecaster, source, time, id)
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
    parts: dict[str, Any] = {"x": past, "mean": mean, "scale": scale, "marks": marks}
    if forecaster.known:
        parts["known"], futures = _ahead(forecaster, table, ahead)
    else:
        futures = [future_times(s.times[-1], info.horizon, info.freq) for s in table.series]
    if forecaster.static:
        parts["static"] = static
    inputs = {name: torch.from_numpy(np.stack(part)) for name, part in parts.items()}
    device = forecaster.mean.device
    forecaster.eval()
    forecasts = []
    with torch.no_grad():
        for at in torch.arange(len(past)).split(asked_at_once(forecaster.model, batch_size)):
            forecasts.append(forecaster.rescaled(**{k: part[at].to(device) for k, part in inputs.items()}).cpu())
    values = torch.cat(forecasts)[:, :, list(info.targets)].flatten(0, 1).flatten(1).numpy()
    stamps = pd.DatetimeIndex(np.concatenate(futures))
    if table.zone is not None:
        stamps = stamps.tz_localize(timezone(timedelta(minutes=table.zone)))
    columns: dict[str, object] = {}
    if table.id is not None:
        columns[table.id] = np.repeat([s.name for s in table.series], info.horizon)
    columns[table.time] = stamps
    answers = [f"_q{level:g}" for level in info.quantiles] or [""]
    names = [forecaster.columns[channel] + answer for channel in info.targets for answer in answers]
    columns.update({name: values[:, i] for i, name in enumerate(names)})
    return pd.DataFrame(columns)


def _ahead(
    forecaster: Forecaster, table: SeriesTable, ahead: Mapping[str, Ahead]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The known columns over window and horizon, and the horizon's time stamps, by series."""
    info, usual = forecaster.info, forecaster.known_mean.cpu().double().numpy()
    found = [
        cover_horizon(ahead[s.name], forecaster.known, usual, info.lookback, info.horizon, table, s.name)
        for s in table.series
    ]
    return [known for known, _ in found], [times for _, times in found]


def _read(
    forecaster: Forecaster, source: str | Path | pd.DataFrame | None, time: str | None, id: str | None
) -> tuple[SeriesTable, dict[str, Ahead], np.ndarray | None]:
    """The table up to the last measured targets, what is known after them, and static features by series."""
    raw = read_source(source)
    names = {"time": time, "id": id}
    for role, usual in (("time", forecaster.time), ("id", forecaster.id)):
        if names[role] is None and usual in raw.frame:
            names[role] = usual
    freq = forecaster.info.freq
    step = {"freq": freq} if forecaster.resampled else {"grid": freq} if forecaster.regular else {}
    fixed = [code["column"] for code in forecaster.static]
    for name in fixed:
        if name not in raw.frame:
            raise unknown_name("column", name, raw.frame.columns, f"The file is {raw.label!r}.")
    raw, of_series = take_static(raw, names["id"], fixed) if fixed else (raw, {})
    table = clean(raw, **names, **step, columns=[*forecaster.columns, *forecaster.known])
    series = [s.name for s in table.series]
    static = encode_static(forecaster.static, of_series, series, table.label) if fixed else None
    if not forecaster.known:
        return table, {}, static
    targets = [forecaster.columns[channel] for channel in forecaster.info.targets]
    return *take_known(table, forecaster.known, targets), static


def _scaler(forecaster: Forecaster, name: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale, float64 ``(channels,)``: those of training, or of the rows of a series not seen there."""
    if name in forecaster.series:
        row = forecaster.series.index(name)
        return forecaster.mean[row].cpu().double().numpy(), forecaster.scale[row].cpu().double().numpy()
    mean, scale = statistics(values)
    return np.nan_to_num(mean, nan=0.0), np.nan_to_num(scale, nan=1.0)
