"""Classifying whole series: ``(B, T, C)``, with a mask ``(B, T)`` where they differ in length, to ``(B, classes)``."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from . import Example, Inputs


def info(lookback: int, channels: int, classes: int, padded: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        task="classify-series", lookback=lookback, channels=channels, classes=classes, padded=padded, marks=0
    )


def inputs(info: SimpleNamespace, batch: int, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, info.lookback, info.channels, generator=generator),), {}


def wrong(info: SimpleNamespace) -> dict[str, Inputs]:
    (x,), _ = inputs(info, 2, 0)
    return {
        "a sample one step too short": ((x[:, 1:],), {}),
        "a channel too many": ((torch.cat([x, x[..., :1]], -1),), {}),
        "no batch axis": ((x[0],), {}),
        "whole numbers": ((x.long(),), {}),
    }


EXAMPLE = Example(
    name="classify-series",
    info=info(24, 3, 4),
    others=(info(29, 1, 2), info(8, 5, 9)),
    inputs=inputs,
    answer=lambda info, batch: (batch, info.classes),
    wrong=wrong,
)
