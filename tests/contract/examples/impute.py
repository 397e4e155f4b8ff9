"""Imputation: windows ``(B, T, C)``, time features ``(B, T, M)`` and a mask ``(B, T, C)`` to ``(B, T, C)``."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from . import Example, Inputs


def info(lookback: int, channels: int) -> SimpleNamespace:
    return SimpleNamespace(
        task="impute",
        lookback=lookback,
        channels=channels,
        targets=tuple(range(channels)),
        freq="h",
        marks=4,
        mask_rate=0.25,
    )


def inputs(info: SimpleNamespace, batch: int, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, info.lookback, info.channels, generator=generator)
    marks = torch.rand(batch, info.lookback, info.marks, generator=generator) - 0.5
    mask = torch.rand(x.shape, generator=generator) > info.mask_rate
    mask[:, 0] = True  # every channel of a window shows something
    return (x, marks, mask), {}


def wrong(info: SimpleNamespace) -> dict[str, Inputs]:
    (x, marks, mask), _ = inputs(info, 2, 0)
    return {
        "a window one step too short": ((x[:, 1:], marks[:, 1:], mask[:, 1:]), {}),
        "a channel too many": ((torch.cat([x, x[..., :1]], -1), marks, torch.cat([mask, mask[..., :1]], -1)), {}),
        "no batch axis": ((x[0], marks[0], mask[0]), {}),
        "whole numbers": ((x.long(), marks, mask), {}),
        "a mask over steps": ((x, marks, mask[..., 0]), {}),
    }


EXAMPLE = Example(
    name="impute",
    info=info(32, 3),
    others=(info(17, 1), info(9, 2)),
    inputs=inputs,
    answer=lambda info, batch: (batch, info.lookback, info.channels),
    wrong=wrong,
)
