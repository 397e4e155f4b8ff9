"""TokenLayout: what lies where in a token sequence, made once per network.

Most mixers need nothing but the grid. Some need to know absolute positions (packed or retrieved tokens), which document
a token belongs to (packing without leakage), or want tokens of their own between the grid's: landmarks after every
block, persistent memory in front, class tokens. Such a mixer answers ``plan_tokens(grid)`` with a layout; the network
widens its sequence with :meth:`TokenLayout.insert` before the first layer (the special tokens' embeddings are the
network's parameters), hands the layout to every layer, and takes the grid back with :meth:`TokenLayout.extract`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from ..errors import InvalidValue


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """Where every token of a sequence comes from.

    Attributes:
        grid: the network's token grid.
        source: int64 ``(length,)``: flat grid index of each slot, or ``-1 - r`` for a special token of role r; None
            when the sequence is the grid itself.
        roles: names of the special roles, in the order that ``source`` counts them ("landmark", "persistent", ...).
        role_sizes: number of distinct learned embeddings per role (their slots take them in turn).
        positions: int64 ``(length,)`` or ``(batch, length)``; None: 0, 1, 2, ...
        segments: int64 ``(batch, length)``: tokens of different segments must not influence each other.
        role_starts: how many slots of each role a stream took before these; empty: none.
    """

    grid: tuple[int, ...]
    source: Tensor | None = None
    roles: tuple[str, ...] = ()
    role_sizes: tuple[int, ...] = field(default=())
    positions: Tensor | None = None
    segments: Tensor | None = None
    role_starts: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Number of slots, special tokens included."""
        return math.prod(self.grid) if self.source is None else self.source.numel()

    @property
    def is_plain(self) -> bool:
        """True when the layout says nothing beyond the grid."""
        return self.source is None and self.positions is None and self.segments is None

    def role_mask(self, role: str) -> Tensor:
        """Bool ``(length,)``: the slots that hold a special token of this role."""
        if role not in self.roles or self.source is None:
            raise InvalidValue(f"role={role!r} is not in this layout: it has {', '.join(self.roles) or 'none'}.")
        return self.source == -1 - self.roles.index(role)

    def insert(self, x: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
        """Widen grid tokens ``(batch, *grid, dim)`` to ``(batch, length, dim)`` with the special tokens in place.

        Args:
            embeddings: per role ``(role_size, dim)``.
        """
        if self.source is None:
            return x
        # One gather from [grid tokens | embeddings by role]: shapes that depend on no data, for compile and export.
        flat = x.flatten(1, -2)
        table, index, start = [flat], self.source, flat.shape[1]
        for number, (role, size) in enumerate(zip(self.roles, self.role_sizes, strict=True)):
            here = self.source == -1 - number
            taken = self.role_starts[number] if self.role_starts else 0
            index = torch.where(here, start + (here.cumsum(0) - 1 + taken) % size, index)
            table.append(embeddings[role].to(flat).expand(flat.shape[0], -1, -1))
            start += size
        return torch.cat(table, 1).index_select(1, index.to(x.device))

    def extract(self, x: Tensor) -> Tensor:
        """Take the grid tokens ``(batch, *grid, dim)`` back out of ``(batch, length, dim)``."""
        if self.source is None:
            return x
        last = self.source.where(self.source >= 0, self.length)  # special tokens sort behind the grid's
        order = torch.argsort(last, stable=True)[: math.prod(self.grid)]
        return x.index_select(1, order.to(x.device)).unflatten(1, self.grid)

    def widen_mask(self, mask: Tensor | None) -> Tensor | None:
        """A mask of the grid's tokens for all slots: special tokens are real wherever they stand.

        Args:
            mask: bool ``(batch, *grid)``, True = a real token; None: all are.

        Returns:
            bool ``(batch, length)``, or the mask itself where the sequence is the grid.

        Raises:
            InvalidValue: a mask of another shape.
        """
        if mask is None or self.source is None:
            return mask
        if mask.shape[1:] != self.grid:
            legal = ", ".join(map(str, ("batch", *self.grid)))
            raise InvalidValue(f"mask has shape {tuple(mask.shape)}; it must be ({legal}).")
        source = self.source.to(mask.device)
        return mask.flatten(1).index_select(1, source.clamp(min=0)) | (source < 0)

    def with_segments(self, segments: Tensor) -> Self:
        """The same layout of packed documents: a special token belongs to the document of the token before it.

        Args:
            segments: int64 ``(batch, *grid)``.
        """
        segments = segments.flatten(1)
        if self.source is None:
            return replace(self, segments=segments)
        before = self.source.clamp(min=0).cummax(0).values
        return replace(self, segments=segments.index_select(1, before.to(segments.device)))

    def beyond(self, earlier: TokenLayout) -> TokenLayout:
        """The slots that this layout of a sequence has behind those of ``earlier``, the layout of its beginning."""
        read = math.prod(earlier.grid)
        grid = (math.prod(self.grid) - read,)
        if self.source is None or earlier.source is None:
            return TokenLayout(grid)
        source = self.source[earlier.length :]
        return TokenLayout(
            grid,
            torch.where(source >= 0, source - read, source),
            self.roles,
            self.role_sizes,
            role_starts=tuple(int(earlier.role_mask(role).sum()) for role in self.roles),
        )
