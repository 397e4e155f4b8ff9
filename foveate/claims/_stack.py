"""Mixers stacked plainly, and a plain training: for claims about what a mechanism can learn."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


class Stack(nn.Module):
    """``x + mixer(norm(x))`` for each mixer, over features ``(batch, *grid, features)`` that a linear layer widens."""

    def __init__(self, features: int, dim: int, *mixers: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(features, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in mixers)
        self.mixers = nn.ModuleList(mixers)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, *grid, dim)``."""
        x = self.embed(x)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + mixer(norm(x))
        return self.norm(x)


def descend(parameters: Iterable[nn.Parameter], loss: Callable[[], Tensor], steps: int, lr: float) -> None:
    """Adam's steps on ``loss()``, which draws its own batch each time."""
    optimiser = torch.optim.Adam(parameters, lr)
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
