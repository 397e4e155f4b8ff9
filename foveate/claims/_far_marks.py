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


def marks_on_a_map(
    samples: int, side: int, far: bool, generator: torch.Generator, edge: int = 1
) -> tuple[Tensor, Tensor]:
    """Two squares of 1 or -1, in the upper and lower quarter of a map or side by side; 1 where they are alike.

    Args:
        samples: of them.
        side: places along each side of a map.
        far: whether they are far from each other.
        generator: draws them.
        edge: places along each side of a square.
    """
    marks = torch.randint(0, 2, (samples, 2), generator=generator) * 2 - 1
    quarter = side // 4
    rows = torch.randint(0, (quarter if far else side) - edge + 1, (samples, 2), generator=generator)
    columns = torch.randint(0, side - edge + 1, (samples, 2), generator=generator)
    if far:
        rows[:, 1] += side - quarter
    else:
        columns[:, 0] = torch.randint(0, side - 2 * edge + 1, (samples,), generator=generator)
        rows[:, 1], columns[:, 1] = rows[:, 0], columns[:, 0] + edge
    at = torch.arange(side)
    down, across = (((m[..., None] <= at) & (at < m[..., None] + edge)).float() for m in (rows, columns))
    x = torch.einsum("bm,bmh,bmw->bhw", marks.float(), down, across)
    return x[..., None], (marks[:, 0] == marks[:, 1]).long()


def accuracy(
    model: nn.Module,
    seed: int,
    *,
    side: int = 12,
    steps: int = 400,
    far: bool = True,
    edge: int = 1,
    lr: float = 3e-3,
) -> float:
    """On 512 fresh maps, after training on ``steps`` batches of 64."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr)
    for _ in range(steps):
        x, y = marks_on_a_map(64, side, far, generator, edge)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    x, y = marks_on_a_map(512, side, far, generator, edge)
    with torch.no_grad():
        return float((model.eval()(x).argmax(1) == y).float().mean())
