"""Orders in which the places of a map are read one after the other, for scans over images.

VMamba (Liu et al., arXiv 2401.10166, "cross-scan") reads rows and columns, each from both ends. The serpentine orders
turn round at the end of each row or column instead of jumping back, so that neighbours in the order are neighbours on
the map (LaMamba-Diff, arXiv 2408.02615).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..selective_block import Scan

#: VMamba's four orders, in the order of its weights.
CROSS_SCAN = ("rows", "columns", "rows_backward", "columns_backward")

_Step = Callable[[Tensor, tuple[int, ...]], Tensor]


def _rows(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    return x


def _columns(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    return x.unflatten(1, grid).transpose(1, 2).flatten(1, 2)


def _columns_back(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    return _columns(x, grid[::-1])


def _serpentine_rows(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Every second row from right to left; doing it twice undoes it."""
    x = x.unflatten(1, grid)
    odd = torch.arange(grid[0], device=x.device) % 2 == 1
    return torch.where(odd.view(-1, *[1] * (x.ndim - 2)), x.flip(2), x).flatten(1, 2)


def _serpentine_columns(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """The first column from the bottom up, the next one down."""
    return _serpentine_rows(_columns(x.unflatten(1, grid).flip(1).flatten(1, 2), grid), grid[::-1])


def _serpentine_columns_back(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    return _columns_back(_serpentine_rows(x, grid[::-1]), grid).unflatten(1, grid).flip(1).flatten(1, 2)


def _both_ways(name: str, take: _Step, back: _Step) -> dict[str, Scan]:
    """An order and its reverse."""
    return {
        name: (take, back),
        f"{name}_backward": (lambda x, grid: take(x, grid).flip(1), lambda x, grid: back(x.flip(1), grid)),
    }


#: Orders by name: ``(x, grid)`` to x in that order and back, for ``(batch, height * width, ...)``, which come row by
#: row. One more entry is one more legal name in ``scans`` of :class:`~foveate.mixers.mamba_mixer.GridTokenMixer`.
GRID_SCANS: dict[str, Scan] = {
    **_both_ways("rows", _rows, _rows),
    **_both_ways("columns", _columns, _columns_back),
    **_both_ways("serpentine_rows", _serpentine_rows, _serpentine_rows),
    **_both_ways("serpentine_columns", _serpentine_columns, _serpentine_columns_back),
}
