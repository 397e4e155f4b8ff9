"""Windows of a grid: how it is padded, shifted and cut, and which tokens of a window see each other.

Liu et al., arXiv 2103.14030 (Swin) for windows that are blocks and for their shifts, arXiv 2204.01697 (MaxViT) for
windows that are dilated grids. An axis of a grid is padded behind its end to a multiple of its window. A shift rolls
the padded axis by so many places towards its beginning; what comes round the edge into the last window was not its
neighbour before, so the last window falls into two regions, which do not see each other.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InvalidType, InvalidValue

#: Legal values of ``partition`` and of ``padding``.
PARTITIONS, PADDINGS = ("blocks", "grid"), ("tokens", "masked")


class Axis(NamedTuple):
    """One axis of a grid: its places, the window along it, and the places by which it is shifted."""

    size: int
    window: int
    shift: int

    @property
    def count(self) -> int:
        """Windows along the axis."""
        return -(-self.size // self.window)

    @property
    def padded(self) -> int:
        """Places with padding."""
        return self.count * self.window


def axes_of(
    grid: tuple[int, ...], window: int | tuple[int, ...], shift: int | tuple[int, ...], partition: str
) -> tuple[Axis, ...]:
    """One :class:`Axis` for each of ``grid``; a single value is for all axes.

    Raises:
        InvalidValue: tuples of another length, a window below 1, a shift that is negative or not below the window, a
            partition that does not exist, a grid that is shifted.
        InvalidType: sizes that are not whole numbers.
    """
    if partition not in PARTITIONS:
        raise InvalidValue(f"partition={partition!r} is not possible: legal are {', '.join(PARTITIONS)}.")
    windows, shifts = (_per_axis(name, each, len(grid)) for name, each in (("window", window), ("shift", shift)))
    if min(windows) < 1:
        raise InvalidValue(f"window={window} is not possible: every axis needs at least 1.")
    if any(not 0 <= s < w for s, w in zip(shifts, windows, strict=True)):
        raise InvalidValue(f"shift={shift} is not possible: it must be at least 0 and below the window, {windows}.")
    if partition == "grid" and any(shifts):
        raise InvalidValue(f"shift={shift} is not possible with partition='grid': only blocks are shifted.")
    return tuple(itertools.starmap(Axis, zip(grid, windows, shifts, strict=True)))


def _per_axis(name: str, value: int | tuple[int, ...], rank: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank
    if any(isinstance(v, bool) or not isinstance(v, int) for v in values):
        raise InvalidType(f"{name}={value!r} is not possible: a whole number, or one for each axis, is needed.")
    if len(values) != rank:
        raise InvalidValue(f"{name}={value!r} has {len(values)} entries: one for each axis of the grid, here {rank}.")
    return values


def to_windows(x: Tensor, axes: tuple[Axis, ...], partition: str) -> Tensor:
    """Cut a padded grid: ``(batch, heads, *padded, d)`` to ``(batch, windows, heads, tokens, d)``."""
    rank, blocks = len(axes), partition == "blocks"
    for i, axis in enumerate(axes):
        x = x.unflatten(2 + 2 * i, (axis.count, axis.window) if blocks else (axis.window, axis.count))
    number, place = (2, 3) if blocks else (3, 2)
    order = (*range(number, number + 2 * rank, 2), 1, *range(place, place + 2 * rank, 2))
    x = x.permute(0, *order, -1)
    return x.flatten(rank + 2, -2).flatten(1, rank)


def from_windows(x: Tensor, axes: tuple[Axis, ...], partition: str) -> Tensor:
    """The way back: ``(batch, windows, heads, tokens, e)`` to ``(batch, *padded, heads, e)``."""
    rank = len(axes)
    x = x.unflatten(3, [axis.window for axis in axes]).unflatten(1, [axis.count for axis in axes])
    pairs = [(1 + i, 2 + rank + i) if partition == "blocks" else (2 + rank + i, 1 + i) for i in range(rank)]
    x = x.permute(0, *itertools.chain(*pairs), 1 + rank, -1)
    for i in range(rank):
        x = x.flatten(1 + i, 2 + i)
    return x


def regions(axes: tuple[Axis, ...], device: torch.device) -> Tensor:
    """A number for every place of the padded and shifted grid, ``(*padded)`` int64.

    Places of one window that have the same number were neighbours before the shift.
    """
    numbers = torch.zeros((), dtype=torch.int64, device=device)
    for axis in axes:
        came_round = torch.arange(axis.padded, device=device) >= axis.padded - axis.shift
        numbers = numbers.unsqueeze(-1) * 2 + came_round
    return numbers


def real_places(axes: tuple[Axis, ...], device: torch.device) -> Tensor:
    """Bool ``(*padded)``, before the shift: the places that are not padding."""
    real = torch.ones((), dtype=torch.bool, device=device)
    for axis in axes:
        real = real.unsqueeze(-1) & (torch.arange(axis.padded, device=device) < axis.size)
    return real


def window_mask(
    axes: tuple[Axis, ...], partition: str, padding: str, device: torch.device | str | None = None
) -> Tensor | None:
    """Bool ``(windows, tokens, tokens)``: which keys (last axis) each query of a window sees; None: all.

    Args:
        axes: of the grid, from :func:`axes_of`.
        partition: "blocks" or "grid".
        padding: "tokens": padding is seen like other tokens; "masked": by nobody but itself.
        device: of the mask.
    """
    masked = padding == "masked" and any(axis.padded > axis.size for axis in axes)
    if not masked and not any(axis.shift for axis in axes):
        return None
    device = torch.get_default_device() if device is None else torch.device(device)

    def cut(x: Tensor) -> Tensor:
        return to_windows(x[None, None, ..., None], axes, partition)[0, :, 0, :, 0]

    region = cut(regions(axes, device))
    seen = region[:, :, None] == region[:, None, :]
    if masked:
        shifts = [-axis.shift for axis in axes]
        real = cut(real_places(axes, device).roll(shifts, list(range(len(axes)))))
        # A row without a key would be no number, and its gradient neither.
        own = torch.eye(real.shape[1], dtype=torch.bool, device=device)
        seen = seen & (real[:, None, :] | own)
    return seen
