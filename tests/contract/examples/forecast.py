"""Forecasting: windows ``(B, T, C)`` with time features ``(B, T, M)`` to ``(B, horizon, C)``."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from . import Example, Inputs


def info(lookback: int, horizon: int, channels: int, season: int, marks: int = 4) -> SimpleNamespace:
    return SimpleNamespace(
        task="forecast",
        lookback=lookback,
        horizon=horizon,
        channels=channels,
        targets=tuple(range(channels)),
        season=season,
        freq="h",
        marks=marks,
    )


def inputs(info: SimpleNamespace, batch: int, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, info.lookback, info.channels, generator=generator)
    turn = torch.arange(info.lookback) * (2 * torch.pi / info.season)
    marks = torch.rand(batch, info.lookback, info.marks, generator=generator) - 0.5
    return (x + turn.sin()[:, None],), {"marks": marks}


def wrong(info: SimpleNamespace) -> dict[str, Inputs]:
    (x,), _ = inputs(info, 2, 0)
    return {
        "a window one step too short": ((x[:, 1:],), {}),
        "a channel too many": ((torch.cat([x, x[..., :1]], -1),), {}),
        "no batch axis": ((x[0],), {}),
        "whole numbers": ((x.long(),), {}),
    }


EXAMPLE = Example(
    name="forecast",
    info=info(32, 8, 3, 12),
    others=(info(24, 30, 1, 24), info(17, 1, 2, 1), info(12, 6, 1, 4, marks=0)),
    inputs=inputs,
    answer=lambda info, batch: (batch, info.horizon, info.channels),
    wrong=wrong,
)
