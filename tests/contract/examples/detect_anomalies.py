"""Anomaly detection: windows ``(B, T, C)`` to their reconstructions ``(B, T, C)``."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from . import Example, Inputs


def info(lookback: int, channels: int) -> SimpleNamespace:
    return SimpleNamespace(task="detect-anomalies", lookback=lookback, channels=channels, marks=0)


def inputs(info: SimpleNamespace, batch: int, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, info.lookback, info.channels, generator=generator),), {}


def wrong(info: SimpleNamespace) -> dict[str, Inputs]:
    (x,), _ = inputs(info, 2, 0)
    return {
        "a window one step too short": ((x[:, 1:],), {}),
        "a channel too many": ((torch.cat([x, x[..., :1]], -1),), {}),
        "no batch axis": ((x[0],), {}),
        "whole numbers": ((x.long(),), {}),
    }


EXAMPLE = Example(
    name="detect-anomalies",
    info=info(32, 3),
    others=(info(17, 1), info(9, 2)),
    inputs=inputs,
    answer=lambda info, batch: (batch, info.lookback, info.channels),
    wrong=wrong,
)
