"""Classifying images: ``(B, C, H, W)`` to ``(B, classes)``."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from . import Example, Inputs


def info(size: tuple[int, int], channels: int, classes: int) -> SimpleNamespace:
    return SimpleNamespace(task="classify-images", size=size, channels=channels, classes=classes)


def inputs(info: SimpleNamespace, batch: int, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, info.channels, *info.size, generator=generator),), {}


def wrong(info: SimpleNamespace) -> dict[str, Inputs]:
    (x,), _ = inputs(info, 2, 0)
    return {
        "a channel too many": ((torch.cat([x, x[:, :1]], 1),), {}),
        "no batch axis": ((x[0],), {}),
        "whole numbers": ((x.long(),), {}),
    }


EXAMPLE = Example(
    name="classify-images",
    info=info((32, 32), 3, 4),
    others=(info((28, 36), 1, 2), info((33, 29), 3, 10)),
    inputs=inputs,
    answer=lambda info, batch: (batch, info.classes),
    wrong=wrong,
)
