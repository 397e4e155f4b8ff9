"""Where tokens stand when every sample, and every document, must begin at the border of a chunk.

A memory that learns in chunks depends on where chunks begin. Masked tokens, packed documents and a stream that stopped
inside a chunk move that from sample to sample; a frame puts every token at its place in its chunk and leaves the rest
empty.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...ops.documents import document_starts


@dataclass(frozen=True, slots=True)
class Frame:
    """Places of tokens.

    Attributes:
        slots: int64 ``(batch, L)``: the place of each token; ``size`` for those that have none.
        size: number of places, a multiple of the chunk.
        valid: bool ``(batch, size)``: places that hold a token.
        starts: bool ``(batch, size / chunk)``: chunks that begin a document; None: nothing was packed.
    """

    slots: Tensor
    size: int
    valid: Tensor
    starts: Tensor | None

    @classmethod
    def of(cls, real: Tensor, chunk: int, phase: Tensor | None = None, segments: Tensor | None = None) -> Frame:
        """The frame of packed tokens.

        Args:
            real: bool ``(batch, L)``: real tokens, which stand first.
            chunk: tokens of a chunk.
            phase: int64 ``(batch,)``: tokens of the open chunk that were read before; None: none.
            segments: int ``(batch, L)``: documents; the number of places depends on them.
        """
        batch, length = real.shape
        slots, starts = torch.arange(length, device=real.device).expand(batch, -1), None
        longest = length
        if phase is not None:
            slots, longest = slots + phase[:, None], length + chunk - 1
        if segments is not None:
            begins = document_starts(segments) & real
            first = (slots * begins).cummax(1).values  # the first token of each token's document
            before = torch.cat([first[:, :1], first[:, :-1]], 1)
            slots = slots + (begins * ((before - slots) % chunk)).cumsum(1)
            longest = int(slots.max()) + 1
        size = -(-longest // chunk) * chunk
        slots = slots.where(real, size)
        valid = real.new_zeros(batch, size + 1).scatter(1, slots, True)[:, :size]
        if segments is not None:
            places = torch.where(begins, slots // chunk, size // chunk)
            starts = real.new_zeros(batch, size // chunk + 1).scatter(1, places, True)[:, :-1]
        return cls(slots, size, valid, starts)

    def place(self, x: Tensor) -> Tensor:
        """``(batch, L, channels)`` to ``(batch, size, channels)``, zeros where there is no token."""
        empty = x.new_zeros(x.shape[0], self.size + 1, x.shape[2])
        return empty.scatter(1, self.slots.unsqueeze(-1).expand_as(x), x)[:, : self.size]

    def take(self, y: Tensor) -> Tensor:
        """``(batch, size, channels)`` back to ``(batch, L, channels)``; what has no place gets something finite."""
        index = self.slots.clamp(max=self.size - 1).unsqueeze(-1)
        return y.gather(1, index.expand(-1, -1, y.shape[2]))
