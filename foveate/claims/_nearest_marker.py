"""A task for near and far at once: every place of a map tells the colour of the marker that is nearest to it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._stack import Stack, descend

#: Places along each axis, markers of a map, colours.
SIDE, MARKERS, COLOURS = 16, 4, 4


def maps(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Maps and the colour of the nearest marker.

    Returns:
        ``(count, 16, 16, 4)``, a marker's colour or zeros; colours ``(count, 16, 16)``, -1 where two are as near.
    """
    at = torch.rand(count, SIDE**2, generator=generator).topk(MARKERS, -1).indices
    colours = torch.randint(COLOURS, (count, MARKERS), generator=generator)
    x = torch.zeros(count, SIDE**2, COLOURS)
    x[torch.arange(count)[:, None], at] = F.one_hot(colours, COLOURS).float()
    place = torch.arange(SIDE**2)[:, None]
    down, across = place // SIDE - at[:, None] // SIDE, place % SIDE - at[:, None] % SIDE
    distances, order = (down**2 + across**2).sort(-1)
    tie = distances[..., 0] == distances[..., 1]
    wanted = colours.gather(1, order[..., 0]).masked_fill(tie, -1)
    return x.unflatten(1, (SIDE, SIDE)), wanted.unflatten(1, (SIDE, SIDE))


def share_of_nearest(dim: int, mixers: list[nn.Module], seed: int, steps: int = 200, lr: float = 5e-3) -> float:
    """Share of places that are right on 256 fresh maps, after training the mixers, stacked, on batches of 32."""
    generator = torch.Generator().manual_seed(seed)
    stack, head = Stack(COLOURS, dim, *mixers), nn.Linear(dim, COLOURS)

    def loss() -> Tensor:
        x, wanted = maps(32, generator)
        return F.cross_entropy(head(stack(x)).flatten(0, 2), wanted.flatten(), ignore_index=-1)

    descend([*stack.parameters(), *head.parameters()], loss, steps, lr)
    with torch.no_grad():
        x, wanted = maps(256, generator)
        return float((head(stack(x)).argmax(-1) == wanted)[wanted >= 0].float().mean())
