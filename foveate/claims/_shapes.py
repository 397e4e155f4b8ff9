"""Small pictures of shapes, for claims about classifiers: the shape is the class, its place and size are not."""

from __future__ import annotations

import colorsys

import torch
from torch import Tensor, nn

#: Kinds of shapes, and pixels along each side of a picture.
KINDS, SIDE = 10, 32
#: A hue for every class, all equally bright.
_COLOURS = torch.tensor([colorsys.hsv_to_rgb(i / KINDS, 0.8, 0.5) for i in range(KINDS)])


def _inside(u: Tensor, v: Tensor) -> Tensor:
    """Bool ``(KINDS, ...)``: whether the point ``(u, v)`` is in a disc, square, triangle, ring, cross, bar, half disc,
    frame, pair of dots, or angle, each about one unit from the middle to its end."""
    radius, edge = (u.square() + v.square()).sqrt(), torch.maximum(u.abs(), v.abs())
    bar = (u.abs() < 0.3) & (v.abs() < 1)
    corner = ((u + 0.7).abs() < 0.3) | ((v - 0.7).abs() < 0.3)
    shapes = (
        radius < 1,
        edge < 0.9,
        (v < 0.9) & (u.abs() < (v + 0.9) / 1.8),
        (radius < 1) & (radius > 0.55),
        bar | ((v.abs() < 0.3) & (u.abs() < 1)),
        bar,
        (radius < 1) & (v > 0),
        (edge < 0.9) & (edge > 0.5),
        ((u.abs() - 0.6).square() + v.square()).sqrt() < 0.4,
        corner & (edge < 1),
    )
    return torch.stack(shapes)


def shapes(
    samples: int, generator: torch.Generator, *, kinds: int = KINDS, noise: float = 0.3, biased: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Pictures of grey shapes on coloured grounds, somewhere, 5 to 9 pixels from the middle to the end.

    Args:
        samples: of them.
        generator: draws them.
        kinds: the first so many shapes, and colours of grounds.
        noise: standard deviation of what is added to every pixel.
        biased: share of the pictures whose ground has the colour of their class; others have any.

    Returns:
        ``(samples, 3, 32, 32)``, and the classes ``(samples,)``.
    """
    y = torch.randint(kinds, (samples,), generator=generator)
    size, row, column = (
        torch.rand(3, samples, 1, 1, generator=generator) * 4 + torch.tensor([5, 14, 14])[:, None, None, None]
    ).unbind()
    at = torch.arange(SIDE) + 0.5
    u, v = (at - column) / size, (at[:, None] - row) / size
    shape = _inside(u.expand(-1, SIDE, -1), v.expand(-1, -1, SIDE))[y, torch.arange(samples)]
    ground = torch.randint(kinds, (samples,), generator=generator)
    ground = torch.where(torch.rand(samples, generator=generator) < biased, y, ground)
    x = torch.where(shape[:, None], 0.9, _COLOURS[ground][:, :, None, None])
    return x + noise * torch.randn(x.shape, generator=generator), y


def accuracy(
    model: nn.Module,
    seed: int,
    *,
    steps: int,
    kinds: int = KINDS,
    noise: float = 0.3,
    biased: float = 0.0,
    lr: float = 2e-3,
) -> float:
    """On 1,024 fresh pictures with any grounds, after training on ``steps`` batches of 64."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps)
    for _ in range(steps):
        x, y = shapes(64, generator, kinds=kinds, noise=noise, biased=biased)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
        schedule.step()
    x, y = shapes(1024, generator, kinds=kinds, noise=noise)
    with torch.no_grad():
        return float((model.eval()(x).argmax(1) == y).float().mean())
