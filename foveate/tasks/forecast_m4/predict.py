"""Forecasting what follows every series of a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...errors import InvalidType
from ..base import asked_at_once
from .embedded import read_embedded
from .package import M4Forecaster
from .read import read_ragged

if TYPE_CHECKING:
    import pandas as pd


def predict(
    forecaster: M4Forecaster,
    source: str | Path | pd.DataFrame | None = None,
    *,
    time: str | None = None,
    id: str | None = None,
    batch_size: int = 256,
) -> pd.DataFrame:
    """Continue every series by ``forecaster.info.horizon`` steps.

    Args:
        source: a file in M4's layout, a DataFrame, or None for the embedded series. Of a series longer than the
            lookback the end is looked at; a shorter one is taken as it is.
        time: must be None: series have no time stamps.
        id: name of the id column; default: as in the training data, or the first.
        batch_size: series at a time; one by one where a model's answer depends on the others of its batch.

    Returns:
        One row per future step, series by series: the id, ``step`` from 1 on, and ``value`` in the user's units.

    Raises:
        InvalidType: a time column was named.
        InvalidValue: the source is not in this layout.
    """
    import pandas as pd

    if time is not None:
        raise InvalidType(f"time={time!r} is not possible: series in M4's layout have no time column; leave it out.")
    info = forecaster.info
    found = read_embedded() if source is None else read_ragged(source, id=id, usual=forecaster.id)
    windows = np.full((len(found.names), info.lookback, 1), np.nan)
    for window, values in zip(windows, found.values, strict=True):
        last = values[-info.lookback :]
        window[len(window) - len(last) :, 0] = last
    device = next((p.device for p in forecaster.parameters()), torch.device("cpu"))
    forecaster.eval()
    with torch.no_grad():
        batches = torch.from_numpy(windows).split(asked_at_once(forecaster.model, batch_size))
        parts = [forecaster(part.to(device)).cpu() for part in batches]
    return pd.DataFrame(
        {
            "id": np.repeat(found.names, info.horizon),
            "step": np.tile(np.arange(1, info.horizon + 1), len(found.names)),
            "value": torch.cat(parts).flatten().numpy(),
        }
    )
