"""Filling the gaps of a table: the same rows, nothing missing, in the user's units."""

from __future__ import annotations

from datetime import timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...errors import InvalidValue
from ..base import asked_at_once
from ..forecast.features import time_features
from ..forecast.protocol import statistics
from ..forecast.read import Series, clean
from ..forecast.source import read_source
from .package import Imputer

if TYPE_CHECKING:
    import pandas as pd


def predict(
    imputer: Imputer,
    source: str | Path | pd.DataFrame | None = None,
    *,
    time: str | None = None,
    id: str | None = None,
    batch_size: int = 256,
) -> pd.DataFrame:
    """Fill every gap of every series of a table; rows that the grid has and the table has not are added.

    A series is cut into windows of ``lookback`` rows, the last one ending with the series. A series that was not in
    the training data is scaled by its own rows.

    Args:
        source: path of a CSV or Parquet file, a DataFrame, or None for the embedded series. Every series needs at
            least ``lookback`` rows, the training data's columns, and its steps; other columns are not looked at.
        time, id: names of the time and id columns; default: as in the training data, or found.
        batch_size: windows at a time; one by one where a model's answer depends on the others of its batch.

    Returns:
        The id column if there is one, the time column, one float64 column per channel; measured values as they are.

    Raises:
        UnknownName: a column is not in the table.
        InvalidValue: the table cannot be read, a series is too short, or its steps are others than in training.
    """
    import pandas as pd

    info = imputer.info
    raw = read_source(source)
    time = imputer.time if time is None and imputer.time in raw.frame else time
    id = imputer.id if id is None and imputer.id in raw.frame else id
    step = {"freq": info.freq} if imputer.resampled else {"grid": info.freq} if imputer.regular else {}
    table = clean(raw, time=time, id=id, **step, columns=imputer.columns)
    for series in table.series:
        if len(series.times) < info.lookback:
            where = f"{table.label!r}, series {series.name!r}," if table.id else f"{table.label!r}"
            raise InvalidValue(f"{where} has {len(series.times)} rows: a window of the model has {info.lookback}.")
    imputer.eval()
    frames = []
    for series in table.series:
        values = _filled(imputer, series, batch_size)
        stamps = pd.DatetimeIndex(series.times)
        if table.zone is not None:
            stamps = stamps.tz_localize(timezone(timedelta(minutes=table.zone)))
        columns: dict[str, object] = {} if table.id is None else {table.id: [series.name] * len(stamps)}
        columns[table.time] = stamps
        frames.append(pd.DataFrame(columns | {c: values[:, i] for i, c in enumerate(imputer.columns)}))
    return pd.concat(frames, ignore_index=True)


def _filled(imputer: Imputer, series: Series, batch_size: int) -> np.ndarray:
    """The values of one series, float64 ``(rows, channels)``, without NaN."""
    rows, window = len(series.times), imputer.info.lookback
    starts = np.minimum(np.arange(0, rows, window), rows - window)
    at = starts[:, None] + np.arange(window)
    gaps = np.isnan(series.values[at]).any((1, 2))
    filled = series.values.copy()
    if not gaps.any():
        return filled
    if series.name in imputer.series:
        index = imputer.series.index(series.name)
        mean, scale = imputer.mean[index], imputer.scale[index]
    else:
        own = statistics(series.values)
        mean, scale = (torch.from_numpy(np.nan_to_num(s, nan=n)) for s, n in zip(own, (0.0, 1.0), strict=True))
    at = at[gaps]
    x = torch.from_numpy(series.values[at])
    marks = torch.from_numpy(time_features(series.times, imputer.info.freq)[at])
    device = imputer.mean.device
    scaler = (mean.to(device)[None], scale.to(device)[None])
    with torch.no_grad():
        parts = [
            imputer.rescaled(x[part].to(device), *scaler, marks[part].to(device)).cpu()
            for part in torch.arange(len(x)).split(asked_at_once(imputer.model, batch_size))
        ]
    # The last window overlaps the one before it; where both fill a value, the earlier one stands.
    for rows_of, values in reversed(list(zip(at, torch.cat(parts).numpy(), strict=True))):
        filled[rows_of] = values
    return filled
