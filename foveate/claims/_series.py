"""Real series that learned claims of several systems are measured on; no claims in here.

Files are looked for in ``$FOVEATE_DATA``, by default ``../shared/data`` beside the repository. They are not part of the
project (ETTh1 is CC BY-ND 4.0: github.com/zhouhaoyi/ETDataset).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ._data import VARIABLE, data_file, not_measured

__all__ = ["ETTH1_BORDERS", "VARIABLE", "Windows", "data_file", "etth1", "not_measured"]

#: First row of the training, validation and test months, and the end: 12, 4 and 4 months of 30 days, hourly.
ETTH1_BORDERS = (0, 8640, 11520, 14400)


@dataclass(frozen=True, slots=True)
class Windows:
    """All windows of one split, one per step.

    Attributes:
        values: ``(rows, channels)``, standardised by the training rows.
        marks: ``(rows, 4)``: hour, weekday, day of month, day of year in [-0.5, 0.5].
        starts: first row of every window.
        length: steps of a window.
    """

    values: Tensor
    marks: Tensor
    starts: Tensor
    length: int

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Values ``(B, length, channels)`` and marks ``(B, length, 4)`` of the windows ``index``."""
        rows = self.starts[index][:, None] + torch.arange(self.length)
        return self.values[rows], self.marks[rows]


def etth1(file: Path, lookback: int, horizon: int) -> tuple[Windows, Windows, Windows]:
    """ETTh1 in the protocol of Informer and its successors: training, validation and test windows.

    A window has ``lookback + horizon`` steps; what is forecast lies inside the split, what is looked back at may not.
    """
    import pandas as pd

    table = pd.read_csv(file, parse_dates=["date"])
    values = torch.from_numpy(table.drop(columns="date").to_numpy("float64"))
    values = (values - values[:8640].mean(0)) / values[:8640].std(0, unbiased=False)
    when = table["date"].dt
    marks = torch.stack(
        [
            torch.from_numpy(column.to_numpy("float64")) / span - 0.5
            for column, span in (
                (when.hour, 23),
                (when.day_of_week, 6),
                (when.day - 1, 30),
                (when.day_of_year - 1, 365),
            )
        ],
        dim=1,
    )
    splits = []
    for first, end in itertools.pairwise(ETTH1_BORDERS):
        starts = torch.arange(max(first - lookback, 0), end - lookback - horizon + 1)
        splits.append(Windows(values.float(), marks.float(), starts, lookback + horizon))
    return splits[0], splits[1], splits[2]
