"""Cutting a map into regions, and joining regions to a map."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import invalid
from ...ops.activated import conv2d_activated


def to_regions(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """``(batch, *grid, channels)`` to ``(batch, regions, *size, channels)``, row by row; sizes divide the grid."""
    rank = len(size)
    shape = [n for length, edge in zip(x.shape[1:-1], size, strict=True) for n in (length // edge, edge)]
    x = x.reshape(x.shape[0], *shape, x.shape[-1])
    order = [0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1]
    return x.permute(order).flatten(1, rank)


def from_regions(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """The way back of :func:`to_regions`: ``(batch, regions, *size, channels)`` to ``(batch, *grid, channels)``."""
    rank, size = len(grid), x.shape[2:-1]
    x = x.unflatten(1, [length // edge for length, edge in zip(grid, size, strict=True)])
    order = [0, *(axis for i in range(rank) for axis in (1 + i, 1 + rank + i)), 2 * rank + 1]
    return x.permute(order).reshape(x.shape[0], *grid, x.shape[-1])


def pad_to(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Zeros behind ``(batch, *grid, channels)`` up to this grid."""
    missing = [n - length for n, length in zip(grid, x.shape[1:-1], strict=True)]
    if not any(missing):
        return x
    return F.pad(x, (0, 0, *(n for more in reversed(missing) for n in (0, more))))


def crop(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """The beginning of ``(batch, *larger, channels)``, a view."""
    for axis, length in enumerate(grid, 1):
        x = x.narrow(axis, 0, length)
    return x


def filled(grid: tuple[int, ...], size: tuple[int, ...], device: torch.device) -> Tensor:
    """How many places of each region lie inside the grid, the last regions being cut off: ``(regions,)``."""
    found = torch.ones(1, device=device)
    for length, edge in zip(grid, size, strict=True):
        starts = torch.arange(0, length, edge, device=device)
        found = (found[:, None] * (length - starts).clamp(max=edge)).flatten()
    return found


def best_regions(grid: tuple[int, ...], topk: int = 4, whole: bool = False) -> int:
    """Regions along each axis for which routing and attention make the fewest products (section 3.3 of the paper).

    Args:
        grid: places of the map; those that are padded are counted.
        topk: regions that each region reads.
        whole: regions have ``grid // count`` places, so that there may be more of them.
    """
    fewest = (math.inf, 1)
    for count in range(1, max(grid) + 1):
        size = [max(1, length // count) if whole else -(-length // count) for length in grid]
        regions = math.prod(-(-length // edge) if whole else count for length, edge in zip(grid, size, strict=True))
        products = 2 * regions * math.prod(size) ** 2 * min(topk, regions) + regions**2
        if count ** len(grid) >= min(topk, max(grid) ** len(grid)):
            fewest = min(fewest, (products, count))
    return fewest[1]


def check_scale(scale: float | None) -> float | None:
    """Refuse a factor on products that is not positive and finite; None is one."""
    if scale is not None and not 0 < scale < math.inf:
        raise invalid("qk_scale", scale, "it must be positive and finite")
    return scale


class Convolution(torch.nn.Module):
    """A depthwise convolution over ``(batch, *grid, channels)``, zeros outside of the grid, same shape.

    ``weight`` is ``(channels, 1, *kernel)`` and ``bias`` ``(channels,)``, as those of a PyTorch convolution.

    Args:
        channels: of the map.
        kernel: its edge, an odd number.
        rank: axes of the grid.
    """

    def __init__(self, channels: int, kernel: int, rank: int) -> None:
        super().__init__()
        if not isinstance(kernel, int) or kernel < 1 or kernel % 2 == 0:
            raise invalid("side_dwconv", kernel, "an odd number, or 0 for none, is needed")
        self.weight = torch.nn.Parameter(torch.empty(channels, 1, *(kernel,) * rank))
        self.bias = torch.nn.Parameter(torch.empty(channels))
        bound = 1 / math.sqrt(kernel**rank)
        torch.nn.init.uniform_(self.weight, -bound, bound)
        torch.nn.init.uniform_(self.bias, -bound, bound)
        self.padding = kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, *grid, channels)``, same shape."""
        channels, p = x.shape[-1], self.padding
        x = x.movedim(-1, 1)
        if x.ndim == 4:
            y = conv2d_activated(x, self.weight, self.bias, "none", padding=(p, p), groups=channels)
        else:
            convolve = F.conv1d if x.ndim == 3 else F.conv3d
            y = convolve(x, self.weight, self.bias, padding=p, groups=channels)
        return y.movedim(1, -1)
