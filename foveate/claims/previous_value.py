"""What the one-line anomaly scores are exact for."""

from __future__ import annotations

import math

import torch

from ..models.series.previous_value import PreviousValue
from ..tasks.detect_anomalies.scores import precision_at_marks, step_scores, window_starts
from . import Measurement, claim


@claim(
    "previous_value",
    kind="exact",
    says="On a series that changes slowly, jumps are told from all else: area under the precision-recall curve 1.",
)
def jumps_are_told_from_slow_change() -> Measurement:
    """Ten changes of level in a wave. Seen failing with the difference to the second value before (0.60)."""
    generator = torch.Generator().manual_seed(0)
    t = torch.arange(3000)
    series = torch.sin(2 * math.pi * t / 200) + 0.01 * torch.randn(3000, generator=generator)
    marks = torch.zeros(3000, dtype=torch.bool)
    for row in range(250, 3000, 275):
        series[row:] += 0.5 if row % 2 else -0.5
        marks[row] = True
    values = series[:, None].float()
    starts = torch.from_numpy(window_starts(3000, 100, 25))
    observed = torch.ones_like(values, dtype=torch.bool)
    scores = step_scores(PreviousValue(100, 1), values, observed, starts, 100, batch_size=64)
    area = precision_at_marks(scores, marks).mean()
    return Measurement.at_least(area, 1.0, "area under the precision-recall curve; no step may come before a jump")
