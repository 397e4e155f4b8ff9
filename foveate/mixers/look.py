"""What a mixer attends to, as data: weights, what is visible, boxes, trees and gates over its grid.

A mixer that can tell defines :meth:`foveate.mixers.Mixer.look`; ``foveate look`` and
:func:`foveate.analysis.look` make pictures of the answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import InvalidType, InvalidValue, invalid

LookKind = Literal["weights", "visible", "boxes", "tree", "gate"]

#: Axes of the values of each kind in words, and how many of them there are besides those of the grid.
_AXES = {
    "weights": ("(batch, heads, *grid)", 2),
    "visible": ("(batch, heads or 1, *grid)", 2),
    "boxes": ("(batch, heads, boxes, 4)", 4),
    "tree": ("(batch, tokens)", 2),
    "gate": ("(batch, channels or 1, *grid)", 2),
}


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """One thing that a mixer tells about how it read its input.

    ======== ========== ========================== ==================================================================
    kind     dtype      values                     meaning
    ======== ========== ========================== ==================================================================
    weights  float      ``(B, heads, *grid)``      What the query reads from every place: not negative, sums to 1 (to
                                                   0 where it reads nothing, to less where padding is read).
    visible  bool       ``(B, heads or 1, *grid)`` What the query may read.
    boxes    float      ``(B, heads, n, 4)``       Rectangles that are read from: x0, y0, x1, y1 in units of the grid,
                                                   0 the first token's outer edge. Without a query: all of them.
    tree     int64      ``(B, tokens)``            The parent of every token of the grid, row after row; -1: a root.
    gate     float      ``(B, C or 1, *grid)``     A factor for every place.
    ======== ========== ========================== ==================================================================

    Without a query, what is told is that of the grid's middle, or of all queries together, as the mixer says.

    Args:
        kind: what is told.
        values: as in the table; no gradient hangs on them.
        label: a few words for people ("attention", "routed regions").

    Raises:
        InvalidValue: an unknown kind, or a shape that is not the kind's.
        InvalidType: a dtype that is not the kind's.
    """

    kind: LookKind
    values: Tensor
    label: str

    def __post_init__(self) -> None:
        if self.kind not in get_args(LookKind):
            raise invalid("kind", self.kind, f"legal are {', '.join(get_args(LookKind))}")
        axes, fixed = _AXES[self.kind]
        shape = tuple(self.values.shape)
        exact = self.kind in ("boxes", "tree")
        if len(shape) != fixed if exact else not fixed < len(shape) <= fixed + 3:
            raise InvalidValue(f"Look: values of kind {self.kind!r} have shape {shape}; they must be {axes}.")
        if self.kind == "boxes" and shape[-1] != 4:
            raise InvalidValue(f"Look: values of kind 'boxes' have shape {shape}; they must be {axes}.")
        wanted = {"visible": "bool", "tree": "int64"}.get(self.kind, "floating point")
        legal = {"bool": self.values.dtype == torch.bool, "int64": self.values.dtype == torch.int64}
        if not legal.get(wanted, self.values.is_floating_point()):
            raise InvalidType(f"Look: values of kind {self.kind!r} must be {wanted}, not {self.values.dtype}.")
        object.__setattr__(self, "values", self.values.detach())


def check_query(name: str, query: tuple[int, ...] | None, grid: tuple[int, ...]) -> tuple[int, ...] | None:
    """The query as plain numbers; refuses a place that is not on the grid. Call it first in ``look``.

    Args:
        name: of the mixer, for the sentence.
        query: a place, or None.
        grid: of the tokens.

    Raises:
        InvalidValue: another rank, or outside of the grid.
    """
    if query is None:
        return None
    place = tuple(int(i) for i in query)
    if len(place) != len(grid) or any(not 0 <= i < n for i, n in zip(place, grid, strict=True)):
        raise InvalidValue(f"{name}: query={place} is not on the grid {tuple(grid)}.")
    return place


def flat_place(place: tuple[int, ...], grid: tuple[int, ...]) -> int:
    """The number of a place of the grid, row after row."""
    number = 0
    for i, size in zip(place, grid, strict=True):
        number = number * size + i
    return number


def read_weights(read: Callable[[Tensor], Tensor], like: Tensor, query: int | tuple[int, ...] | None) -> Tensor:
    """The weights of an attention that is computed without making them, in memory that grows linearly.

    What is read is a sum of values with the weights as factors, so the weights are its derivatives.

    Args:
        read: values ``(batch, heads, *grid, 1)`` to what is read of them, linear in them.
        like: gives batch, heads, grid and dtype: ``(batch, heads, *grid, any)``.
        query: whose weights, by its place; None: the mean over all queries.

    Returns:
        ``(batch, heads, *grid)``.
    """
    with torch.enable_grad():
        values = torch.ones_like(like[..., :1], memory_format=torch.contiguous_format).requires_grad_()
        given = read(values)[..., 0]
        place = query if isinstance(query, tuple) or query is None else (query,)
        total = given.flatten(2).mean(-1) if place is None else given[(slice(None), slice(None), *place)]
        (weights,) = torch.autograd.grad(total.sum(), values)
    return weights[..., 0].detach()
