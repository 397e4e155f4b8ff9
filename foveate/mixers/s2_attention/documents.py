"""Packed documents in blocks: each one is moved to where a block begins, so that blocks keep documents apart."""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

from ...ops.documents import document_numbers, document_starts


class Documents(NamedTuple):
    """Where the tokens of packed documents go.

    Attributes:
        place: int64 ``(batch, length)``: the slot of each token.
        source: int64 ``(batch, slots)``: the token in each slot, meaningless where there is none.
        valid: bool ``(batch, slots)``.
        first: int64 ``(batch, blocks)``: the first block of the document that each block is of.
        blocks: int64 ``(batch, blocks)``: how many blocks that document has.
    """

    place: Tensor
    source: Tensor
    valid: Tensor
    first: Tensor
    blocks: Tensor

    @classmethod
    def of(cls, segments: Tensor, valid: Tensor | None, size: int) -> Self:
        """The plan of blocks of ``size`` tokens for segments ``(batch, length)``, tokens where ``valid``; None: all."""
        real = torch.ones_like(segments, dtype=torch.bool) if valid is None else valid
        numbers = document_numbers(torch.where(real, segments, -1))
        lengths = torch.zeros(len(numbers), int(numbers.max()) + 1, dtype=torch.int64, device=numbers.device)
        blocks = -(-lengths.scatter_add(1, numbers, torch.ones_like(numbers)) // size)
        first = blocks.cumsum(1) - blocks
        token = torch.arange(numbers.shape[1], device=numbers.device)
        starts = torch.where(document_starts(numbers), token, 0).cummax(1).values
        place = first.gather(1, numbers) * size + token - starts
        rows = int((first + blocks).max())
        none = torch.full((len(numbers), rows * size), -1, dtype=torch.int64, device=numbers.device)
        source = none.scatter(1, place, token.expand_as(place))
        filled = source >= 0
        source = source.clamp(min=0)
        # A block has a token in its first slot, or is one behind the last document of a sample.
        leads = source[:, ::size]
        of = numbers.gather(1, leads)
        return cls(place, source, filled & real.gather(1, source), first.gather(1, of), blocks.gather(1, of))

    def put(self, x: Tensor) -> Tensor:
        """``(batch, heads, length, width)`` in its slots, zeros where none is."""
        index = self.source[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
        return x.gather(2, index).masked_fill(~self.valid[:, None, :, None], 0)

    def take(self, x: Tensor) -> Tensor:
        """The way back of :meth:`put`."""
        return x.gather(2, self.place[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))

    def together(self, size: int) -> Tensor:
        """Bool ``(batch, 1, slots, slots)``: which slots are of one document, the second one with a token in it."""
        of = self.first.repeat_interleave(size, 1)
        return ((of[:, :, None] == of[:, None]) & self.valid[:, None])[:, None]
