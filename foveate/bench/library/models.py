"""Every registered forecaster, through one generic case: 8 windows of 7 channels, 96 steps ahead."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import torch

from ...measure.counted import count_cost
from ...ops.backend import backend
from ...registry import Entry, entries
from ..cases import Problem, case

LOOKBACKS = (96, 192, 384, 768)
BATCH, CHANNELS, HORIZON, MARKS = 8, 7, 96, 4


def forecaster(entry: Entry, lookback: int) -> Problem:
    """A model that reads ``lookback`` steps."""
    info = SimpleNamespace(
        task="forecast", lookback=lookback, horizon=HORIZON, channels=CHANNELS, targets=tuple(range(CHANNELS)),
        season=24, freq="h", marks=MARKS,
    )  # fmt: skip
    model = entry.load().for_task(info).eval()
    inputs = {"x": torch.randn(BATCH, lookback, CHANNELS), "marks": torch.rand(BATCH, lookback, MARKS) - 0.5}
    with backend("torch"):
        cost = count_cost(model, **inputs)
    return Problem(inputs=inputs, ours=model, module=model, sizes={"lookback": lookback}, cost=cost)


for _entry in entries("model"):
    if "forecast" in _entry.spec.tasks and _entry.spec.trains:
        case(_entry.name, kind="model", about="forecast of 7 channels, batch 8", sizes=LOOKBACKS, unit="steps")(
            functools.partial(forecaster, _entry)
        )
