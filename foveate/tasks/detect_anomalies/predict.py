"""Scores and alarms for every step of a new series."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...errors import InvalidType, InvalidValue
from ..base import asked_at_once
from ..forecast.protocol import fill_from_past, standardise
from .embedded import read_embedded
from .package import AnomalyDetector
from .read import read_recording
from .scores import step_scores, window_starts

if TYPE_CHECKING:
    import pandas as pd


def predict(
    detector: AnomalyDetector,
    source: str | Path | pd.DataFrame | None = None,
    *,
    time: str | None = None,
    id: str | None = None,
    batch_size: int = 256,
) -> pd.DataFrame:
    """Score every step of a series; marks in it are not needed and not looked at.

    Args:
        source: as in training: path of a CSV, Parquet or ``.npz`` file, a DataFrame, or None for the test part of the
            embedded series. It needs the training data's columns; others are not looked at.
        time: name of the time column; default: as in the training data, or found.
        id: refused: a table holds one series.
        batch_size: windows at a time; one by one, as for the threshold, where a model's answer depends on the others of
            its batch.

    Returns:
        One row per row of the source: its time as it stands there (its number from 0, as ``row``, without a time
        column), ``score`` (NaN where nothing was measured) and ``is_anomaly``, 1 where the score exceeds the threshold.

    Raises:
        InvalidType: ``id`` is given.
        UnknownName, InvalidValue: the source cannot be read, has other channels, or is shorter than a window.
    """
    import pandas as pd

    info = detector.info
    if id is not None:
        raise InvalidType(f"id={id!r} is not possible: this model reads one series per table; predict them one by one.")
    if source is None:
        embedded = read_embedded()
        found = embedded.test or embedded
    else:
        found = read_recording(source, time=time, marked=False, channels=detector.columns, usual_time=detector.time)
    if found.values.shape[1] != info.channels:
        raise InvalidValue(f"{found.label!r} has {found.values.shape[1]} channels; the model reads {info.channels}.")
    rows = len(found.values)
    if rows < info.lookback:
        raise InvalidValue(f"{found.label!r} has {rows} rows: a window of the model has {info.lookback}.")
    mean, scale = (part.double().cpu().numpy() for part in (detector.mean, detector.scale))
    scaled = standardise(found.values, mean, scale)
    detector.eval()
    with torch.no_grad():
        scores = step_scores(
            detector.model,
            torch.from_numpy(fill_from_past(scaled)),
            torch.from_numpy(~np.isnan(scaled)),
            torch.from_numpy(window_starts(rows, info.lookback, detector.stride)),
            info.lookback,
            asked_at_once(detector.model, batch_size),
            detector.mean.device,
        ).numpy()
    stamps = np.arange(rows) if found.times is None else found.times
    alarms = (scores > float(detector.threshold)).astype(np.int64)
    return pd.DataFrame({found.time or "row": stamps, "score": scores, "is_anomaly": alarms})
