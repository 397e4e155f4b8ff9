"""A task for reach: the colour of one marked pixel must be told at others, all of them more than 8 pixels away."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._stack import Stack, descend

#: Pixels along each axis, colours, the distance along the longer axis that is exceeded, and pixels that ask.
SIDE, COLOURS, APART, ASKS = 24, 4, 8, 4


def pictures(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures of one pixel that tells and four that ask.

    Returns:
        ``(count, 24, 24, 5)``: the colour of the pixel that tells, and a mark on those that ask; where the latter are,
        ``(count, 4)``, counted along rows; the colour, ``(count,)``.
    """
    tells = torch.randint(SIDE, (count, 2), generator=generator)
    away = (torch.arange(SIDE) - tells[..., None]).abs()  # (count, 2, side)
    distance = away[:, 0, :, None].maximum(away[:, 1, None])
    draw = torch.rand(count, SIDE, SIDE, generator=generator)
    asks = draw.masked_fill(distance <= APART, -1).flatten(1).topk(ASKS, -1).indices
    colour = torch.randint(COLOURS, (count,), generator=generator)
    x, each = torch.zeros(count, SIDE**2, COLOURS + 1), torch.arange(count)
    x[each, tells[:, 0] * SIDE + tells[:, 1], colour] = 1
    x[each[:, None], asks, COLOURS] = 1
    return x.unflatten(1, (SIDE, SIDE)), asks, colour


def share_told(dim: int, mixers: list[nn.Module], seed: int, steps: int = 250, lr: float = 5e-3) -> float:
    """Share of colours that are right in 256 fresh pictures, after training the mixers, stacked, on batches of 8."""
    generator = torch.Generator().manual_seed(seed)
    stack, head = Stack(COLOURS + 1, dim, *mixers), nn.Linear(dim, COLOURS)

    def told(x: Tensor, asks: Tensor) -> Tensor:
        return head(stack(x).flatten(1, 2)[torch.arange(len(x))[:, None], asks])

    def loss() -> Tensor:
        x, asks, colour = pictures(8, generator)
        return F.cross_entropy(told(x, asks).flatten(0, 1), colour.repeat_interleave(ASKS))

    descend([*stack.parameters(), *head.parameters()], loss, steps, lr)
    with torch.no_grad():
        x, asks, colour = pictures(256, generator)
        return float((told(x, asks).argmax(-1) == colour[:, None]).float().mean())
