"""All rows of prepared series as training rows, for the model that is shipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from .protocol import fill_from_past, standardise, statistics


def whole_series(
    tensors: Mapping[str, Tensor], lookback: int, horizon: int, targets: Sequence[int]
) -> dict[str, Tensor]:
    """Scale by the statistics of all rows, and begin a training window at every row that has one.

    The user's values are taken back from the standardised ones, to the accuracy of float32. Gaps are filled anew.

    Args:
        tensors: what :class:`~foveate.tasks.forecast.protocol.Prepared` holds, as tensors.
        lookback: rows of a window before its truth; 0 where the truth is the window itself.
        horizon: rows of its truth.
        targets: the scored channels: a window without any measured value of them in its truth is left out.

    Returns:
        The same tensors with other ``values``, ``mean``, ``scale`` and ``train``.
    """
    names = ("values", "observed", "mean", "scale", "offsets")
    values, observed, mean, scale, offsets = (tensors[name].numpy() for name in names)
    seen = np.concatenate([[0], np.cumsum(observed[:, list(targets)].any(axis=1))])
    parts, means, scales, starts = [], [], [], []
    for series, (first, end) in enumerate(pairwise(offsets.tolist())):
        rows = slice(first, end)
        raw = np.where(observed[rows], values[rows] * scale[series] + mean[series], np.nan)
        centre, spread = statistics(raw)
        # A column that this series never measured, or that never varies in it, is not scaled.
        centre, spread = np.nan_to_num(centre, nan=0.0), np.nan_to_num(spread, nan=1.0)
        parts.append(fill_from_past(standardise(raw, centre, spread)))
        means.append(centre)
        scales.append(spread)
        origin = np.arange(first + lookback, end - horizon + 1, dtype=np.int64)
        starts.append(origin[seen[origin + horizon] > seen[origin]] - lookback)
    made = {
        "values": np.concatenate(parts),
        "mean": np.stack(means),
        "scale": np.stack(scales),
        "train": np.concatenate(starts),
    }
    return {**tensors, **{name: torch.from_numpy(array) for name, array in made.items()}}
