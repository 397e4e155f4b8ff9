"""Two marks on an empty map, far from each other: are they alike? For claims about who can see whom."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Marks(nn.Module):
    """Blocks over ``(B, H, W, dim)`` tokens, and a readout of their mean: marks meet in the blocks or not at all."""

    def __init__(self, dim: int, *blocks: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(1, dim)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x)).mean((1, 2)))


def marks_on_a_map(samples: int, side: int, far: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two marks of 1 or -1, in the upper and lower third of a map or side by side; 1 where they are alike."""
    marks = torch.randint(0, 2, (samples, 2), generator=generator) * 2 - 1
    x, each = torch.zeros(samples, side, side, 1), torch.arange(samples)
    if not far:
        row, column = (torch.randint(0, side - 1, (samples,), generator=generator) for _ in range(2))
        x[each, row, column, 0], x[each, row, column + 1, 0] = marks[:, 0].float(), marks[:, 1].float()
        return x, (marks[:, 0] == marks[:, 1]).long()
    for i, first in enumerate((0, side - side // 3)):
        row = torch.randint(first, first + side // 3, (samples,), generator=generator)
        column = torch.randint(0, side, (samples,), generator=generator)
        x[each, row, column, 0] = marks[:, i].float()
    return x, (marks[:, 0] == marks[:, 1]).long()


def accuracy(model: nn.Module, seed: int, *, side: int = 12, steps: int = 400, far: bool = True) -> float:
    """On 512 fresh maps, after training on ``steps`` batches of 64."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        x, y = marks_on_a_map(64, side, far, generator)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    x, y = marks_on_a_map(512, side, far, generator)
    with torch.no_grad():
        return float((model.eval()(x).argmax(1) == y).float().mean())
