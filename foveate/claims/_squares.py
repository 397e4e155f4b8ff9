"""A task for windows that must fit what they look at: the middle of a square tells how large the square is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._stack import Stack, descend

#: Classes of size, and the pixels of a token along each axis.
SIZES, PATCH = 4, 2


def squares(count: int, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures of one bright square, of 3 to 20 pixels a side where the picture has 32; larger with a larger picture.

    Returns:
        Patches ``(count, side / 2, side / 2, 4)``; the patch of the square's middle, counted along rows; the class of
        its size, 0 to 3, all as wide.
    """
    least, most = 3 * side // 32, 20 * side // 32
    edge = torch.randint(least, most + 1, (count,), generator=generator)
    first = (torch.rand(count, 2, generator=generator) * (side - edge[:, None] + 1)).long()
    pixel = torch.arange(side)
    inside = (pixel >= first[..., None]) & (pixel < (first + edge[:, None])[..., None])  # (count, 2, side)
    x = (inside[:, 0, :, None] & inside[:, 1, None]).float()
    x = x.unflatten(2, (-1, PATCH)).unflatten(1, (-1, PATCH)).movedim(2, 3).flatten(3)
    middle = (first + edge[:, None] // 2) // PATCH
    return x, middle[:, 0] * (side // PATCH) + middle[:, 1], (edge - least) * SIZES // (most - least + 1)


def share_sized(dim: int, mixers: list[nn.Module], side: int, seed: int, steps: int = 300, lr: float = 5e-3) -> float:
    """Share of sizes that are right in 512 fresh pictures, after training the mixers, stacked, on batches of 16."""
    generator = torch.Generator().manual_seed(seed)
    stack = Stack(PATCH**2, dim, *mixers)
    head = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, SIZES))

    def sized(x: Tensor, middle: Tensor) -> Tensor:
        return head(stack(x).flatten(1, 2)[torch.arange(len(x)), middle])

    def loss() -> Tensor:
        x, middle, size = squares(16, side, generator)
        return F.cross_entropy(sized(x, middle), size)

    descend([*stack.parameters(), *head.parameters()], loss, steps, lr)
    with torch.no_grad():
        x, middle, size = squares(512, side, generator)
        return float((sized(x, middle).argmax(-1) == size).float().mean())
