"""A task for reach: the colour of one marked pixel must be told at another one, more than 8 pixels away."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._stack import Stack, descend

#: Pixels along each axis, colours, and the distance along the longer axis that two marked pixels exceed.
SIDE, COLOURS, APART = 24, 4, 8


def pictures(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures of two marked pixels.

    Returns:
        ``(count, 24, 24, 5)``: the colour of the one that tells, and a mark on the one that asks; where the latter is,
        counted along rows; the colour.
    """
    tells = torch.randint(SIDE, (count, 2), generator=generator)
    away = (torch.arange(SIDE) - tells[..., None]).abs()  # (count, 2, side)
    distance = away[:, 0, :, None].maximum(away[:, 1, None])
    draw = torch.rand(count, SIDE, SIDE, generator=generator)
    asks = draw.masked_fill(distance <= APART, -1).flatten(1).argmax(1)
    colour = torch.randint(COLOURS, (count,), generator=generator)
    x, each = torch.zeros(count, SIDE**2, COLOURS + 1), torch.arange(count)
    x[each, tells[:, 0] * SIDE + tells[:, 1], colour] = 1
    x[each, asks, COLOURS] = 1
    return x.unflatten(1, (SIDE, SIDE)), asks, colour


def share_told(dim: int, mixers: list[nn.Module], seed: int, steps: int = 300, lr: float = 5e-3) -> float:
    """Share of colours that are right in 512 fresh pictures, after training the mixers, stacked, on batches of 16."""
    generator = torch.Generator().manual_seed(seed)
    stack, head = Stack(COLOURS + 1, dim, *mixers), nn.Linear(dim, COLOURS)

    def told(x: Tensor, asks: Tensor) -> Tensor:
        return head(stack(x).flatten(1, 2)[torch.arange(len(x)), asks])

    def loss() -> Tensor:
        x, asks, colour = pictures(16, generator)
        return F.cross_entropy(told(x, asks), colour)

    descend([*stack.parameters(), *head.parameters()], loss, steps, lr)
    with torch.no_grad():
        x, asks, colour = pictures(512, generator)
        return float((told(x, asks).argmax(-1) == colour).float().mean())
