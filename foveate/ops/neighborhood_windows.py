"""Who sees whom in neighborhood attention.

Hassani et al., "Neighborhood Attention Transformer" (arXiv 2204.07143), "Dilated Neighborhood Attention Transformer"
(arXiv 2209.15001) and "Faster Neighborhood Attention" (arXiv 2403.04690); strides from "Generalized Neighborhood
Attention" (arXiv 2504.16922). Along one axis of n positions, a window of w reaches ``w // 2`` keys to the left and
``w // 2 + w % 2 - 1`` to the right of a centre. Where it would reach over an edge it is shifted, not cut: every query
sees exactly w keys.

- With a dilation d, positions that differ by a multiple of d are an axis of their own (their *residue*), and all that
  follows counts in it.
- With a stride s, the s neighbouring queries of a group share the window of their leader: the middle one (the right one
  of two), or the last position if the axis ends before.
- On a causal axis the leader is the last of its group, the window is the w keys up to it, those before the axis are cut
  off, and a query sees none after itself.

A key is seen if it is seen along every axis. A query always sees itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InvalidType, InvalidValue


class Axis(NamedTuple):
    """The window along one axis of ``size`` positions."""

    size: int
    window: int
    dilation: int
    stride: int
    causal: bool

    def length(self, residue: int) -> int:
        """How many positions are ``residue`` modulo the dilation."""
        return (self.size - residue + self.dilation - 1) // self.dilation

    def bounds(self, p: int, length: int) -> tuple[int, int]:
        """The first key that query p of a residue with ``length`` positions sees, and the one after the last."""
        group = p // self.stride * self.stride
        if self.causal:
            leader = min(group + self.stride - 1, length - 1)
            return max(leader - self.window + 1, 0), p + 1
        left, right = self.window // 2, self.window // 2 + self.window % 2 - 1
        centre = min(max(min(group + self.stride // 2, length - 1), left), length - 1 - right)
        return centre - left, centre + right + 1

    def table(self, residue: int, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """:meth:`bounds` of all positions of a residue, int64 ``(length,)`` each."""
        p = torch.arange(self.length(residue), device=device)
        last = len(p) - 1
        group = p // self.stride * self.stride
        if self.causal:
            leader = (group + self.stride - 1).clamp(max=last)
            return (leader - self.window + 1).clamp(min=0), p + 1
        left, right = self.window // 2, self.window // 2 + self.window % 2 - 1
        centre = (group + self.stride // 2).clamp(max=last).clamp(left, last - right)
        return centre - left, centre + right + 1

    def mask(self, device: torch.device | str | None = None) -> Tensor:
        """Bool ``(size, size)``: whether a query (row) sees a key (column)."""
        seen = torch.zeros(self.size, self.size, dtype=torch.bool, device=device)
        for residue in range(self.dilation):
            first, end = self.table(residue, device)
            key = torch.arange(len(first), device=device)
            here = slice(residue, None, self.dilation)
            seen[here, here] = (key >= first[:, None]) & (key < end[:, None])
        return seen


def axes_of(
    grid: tuple[int, ...],
    window: int | tuple[int, ...],
    dilation: int | tuple[int, ...] = 1,
    stride: int | tuple[int, ...] = 1,
    causal: bool | tuple[bool, ...] = False,
) -> tuple[Axis, ...]:
    """One :class:`Axis` for each of ``grid``; a single value is for all axes.

    Raises:
        InvalidValue: a rank that is not 1, 2 or 3; tuples of another length; a window below 2, larger than an axis or,
            dilated, than can be placed in it; a dilation below 1; a stride below 1 or above the window.
        InvalidType: sizes that are not whole numbers, a causal flag that is not a bool.
    """
    rank = len(grid)
    if rank not in (1, 2, 3):
        raise InvalidValue(f"the grid {grid} has {rank} axes: neighborhood attention knows 1, 2 or 3.")
    numbers = {"window": window, "dilation": dilation, "stride": stride}
    window, dilation, stride = (_per_axis(name, value, rank, int) for name, value in numbers.items())
    causal = _per_axis("causal", causal, rank, bool)
    for size, w, d, s in zip(grid, window, dilation, stride, strict=True):
        if w < 2:
            raise InvalidValue(f"window={window} is not possible: every axis needs at least 2.")
        if d < 1:
            raise InvalidValue(f"dilation={dilation} is not possible: every axis needs at least 1.")
        if not 1 <= s <= w:
            raise InvalidValue(f"stride={stride} is not possible: it must lie between 1 and the window, {window}.")
        if w * d > size:
            raise InvalidValue(
                f"window={window} with dilation={dilation} does not fit the grid {grid}: window times dilation must "
                f"not exceed an axis."
            )
    return tuple(Axis(*values) for values in zip(grid, window, dilation, stride, causal, strict=True))


def _per_axis(name: str, value: object, rank: int, kind: type) -> tuple:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank
    if len(values) != rank:
        raise InvalidValue(f"{name}={value!r} has {len(values)} entries: one value, or one per axis, here {rank}.")
    if not all(type(v) is kind for v in values):
        what = "True or False" if kind is bool else "a whole number"
        raise InvalidType(f"{name}={value!r} is not possible: it must be {what}, or one per axis.")
    return values


def neighborhood_mask(
    grid: tuple[int, ...],
    window: int | tuple[int, ...],
    *,
    dilation: int | tuple[int, ...] = 1,
    stride: int | tuple[int, ...] = 1,
    causal: bool | tuple[bool, ...] = False,
    device: torch.device | str | None = None,
) -> Tensor:
    """Which keys each query of a grid sees, as the matrix that dense attention would need.

    Args:
        grid: sizes of 1, 2 or 3 axes.
        window, dilation, stride, causal: as in :func:`~foveate.ops.neighborhood_attention.neighborhood_attention`.
        device: where to make it.

    Returns:
        Bool ``(positions, positions)``, the last axis of the grid fastest; True = seen.

    Raises:
        InvalidValue, InvalidType: as :func:`axes_of`.
    """
    mask = torch.ones(1, 1, dtype=torch.bool, device=device)
    for axis in axes_of(tuple(grid), window, dilation, stride, causal):
        size = len(mask) * axis.size
        mask = (mask[:, None, :, None] & axis.mask(device)[None, :, None, :]).reshape(size, size)
    return mask


class Box(NamedTuple):
    """Queries that are computed together, and the smallest box of keys that holds all that they see.

    Attributes:
        queries, keys: one slice per axis of the grid.
        seen: bool ``(queries, keys)``.
        distance: int64 ``(queries, keys)``: the number of a pair's bias, the last axis fastest; any where not seen.
    """

    queries: tuple[slice, ...]
    keys: tuple[slice, ...]
    seen: Tensor
    distance: Tensor


def boxes(axes: tuple[Axis, ...], edge: int, device: torch.device | str | None = None) -> Iterator[Box]:
    """Cut all queries into boxes of at most ``edge`` positions along each axis."""
    for place in itertools.product(*(list(pieces(axis, edge)) for axis in axes)):
        seen = torch.ones(1, 1, dtype=torch.bool, device=device)
        distance = torch.zeros(1, 1, dtype=torch.int64, device=device)
        queries, keys = [], []
        for axis, (residue, start, stop) in zip(axes, place, strict=True):
            first, end = (t[start:stop, None] for t in axis.table(residue, device))
            length, step = axis.length(residue), axis.dilation
            low, high = axis.bounds(start, length)[0], axis.bounds(stop - 1, length)[1]
            queries.append(slice(residue + step * start, residue + step * (stop - 1) + 1, step))
            keys.append(slice(residue + step * low, residue + step * (high - 1) + 1, step))
            key, query = torch.arange(low, high, device=device), torch.arange(start, stop, device=device)
            away = (key - query[:, None] + axis.window - 1).clamp(0, 2 * axis.window - 2)
            size = (len(seen) * (stop - start), seen.shape[1] * (high - low))
            here = (key >= first) & (key < end)
            seen = (seen[:, None, :, None] & here[None, :, None, :]).reshape(size)
            distance = (distance[:, None, :, None] * (2 * axis.window - 1) + away[None, :, None, :]).reshape(size)
        yield Box(tuple(queries), tuple(keys), seen, distance)


def pieces(axis: Axis, edge: int) -> Iterator[tuple[int, int, int]]:
    """Residue, first place in it and the one behind the last, of stretches of at most ``edge`` places."""
    for residue in range(axis.dilation):
        length = axis.length(residue)
        for start in range(0, length, edge):
            yield residue, start, min(length, start + edge)


def neighborhood_pairs(axes: tuple[Axis, ...]) -> int:
    """How many pairs of query and key see each other."""
    pairs = 1
    for axis in axes:
        bounds = [axis.bounds(p, n) for n in map(axis.length, range(axis.dilation)) for p in range(n)]
        pairs *= sum(end - first for first, end in bounds)
    return pairs
