"""Segmenting: images ``(B, C, H, W)`` or volumes ``(B, C, D, H, W)`` to logits ``(B, classes, *size)``."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from . import Example, Inputs


def info(size: tuple[int, ...], channels: int, classes: int) -> SimpleNamespace:
    return SimpleNamespace(task="segment", size=size, channels=channels, classes=classes)


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
    name="segment",
    info=info((32, 32), 3, 4),
    others=(info((64, 32), 1, 2),),
    inputs=inputs,
    answer=lambda info, batch: (batch, info.classes, *info.size),
    wrong=wrong,
)
