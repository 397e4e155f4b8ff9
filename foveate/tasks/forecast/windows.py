"""Windows over rows: as views for batches, and one at a time for people."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True, slots=True)
class WindowRows:
    """One window as rows.

    Attributes:
        series: its name.
        times: datetime64[us] ``(lookback + horizon,)``.
        values, observed: standardised float32 and bool, ``(lookback + horizon, channels)``.
        mean, scale: float64 ``(channels,)``.
    """

    series: str
    times: np.ndarray
    values: Tensor
    observed: Tensor
    mean: Tensor
    scale: Tensor


def runs(rows: Tensor, length: int) -> Tensor:
    """A view ``(R - length + 1, length * width)`` of contiguous ``(R, width)``: row i is rows i to i + length - 1."""
    width = rows.shape[1]
    return rows.as_strided((rows.shape[0] - length + 1, length * width), (width, 1))


def take(runs: Tensor, start: Tensor, length: int) -> Tensor:
    """The runs that begin at ``start`` (int64 ``(B,)``) as contiguous ``(B, length, width)``."""
    return runs.index_select(0, start).view(len(start), length, runs.shape[1] // length)
