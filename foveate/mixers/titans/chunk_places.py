"""Where tokens stand in the chunks of titans-pytorch's memory, and what a stream keeps of an open chunk."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ssm import Packing
from ..state import State, state
from .frame import Frame


@state
class ChunkMemoryState(State):
    """Streaming state; its size does not depend on how much was read.

    Attributes:
        pending: ``(batch, chunk - 1, dim)``, tokens of the open chunk, from its first on; zeros behind them. With views
            of their own for queries, keys and values three times as wide.
        memory: the weights after the last complete chunk, ``(batch, heads, ...)`` each, float32.
        momentum: the momenta, ``(batch, heads, orders, ...)`` each; None without momentum.
        base: the weights at which gradients are taken.
        count: int64 ``(batch,)``, tokens read.
        lead: ``(batch, dim)``, the last token of the last complete chunk, where the network mixes tokens; else None.
    """

    pending: Tensor
    memory: tuple[Tensor, ...]
    momentum: tuple[Tensor, ...] | None
    base: tuple[Tensor, ...]
    count: Tensor
    lead: Tensor | None = None


@dataclass(frozen=True)
class ChunkPlaces:
    """A sequence in whole chunks.

    Attributes:
        tokens: ``(batch, chunks * chunk, channels)``, zeros where there is no token.
        valid: bool ``(batch, chunks * chunk)``: places that hold a token; None: all.
        starts: bool ``(batch, chunks)``: chunks that begin a document; None: nothing was packed.
        frame, packing: how tokens came to their places; None: they stand where they stood.
        length: tokens of the sequence.
        chunk: tokens of a chunk.
    """

    tokens: Tensor
    valid: Tensor | None
    starts: Tensor | None
    frame: Frame | None
    packing: Packing | None
    length: int
    chunk: int

    @classmethod
    def of(
        cls,
        x: Tensor,
        mask: Tensor | None,
        segments: Tensor | None,
        past: ChunkMemoryState | None,
        chunk: int,
        every: int,
    ) -> ChunkPlaces:
        """The places of ``(batch, length, channels)``.

        Args:
            mask: bool ``(batch, length)``: masked tokens get no place.
            segments: int ``(batch, length)``: documents, which begin at the border of ``every`` chunks.
            past: what was read before, of whose open chunk these tokens are the rest.
        """
        batch, length = x.shape[:2]
        packing, x, segments = Packing.take_out(x, mask, segments)
        if packing is None and segments is None and past is None:
            tokens, valid = F.pad(x, (0, 0, 0, -length % chunk)), None
            if length % chunk:
                valid = (torch.arange(tokens.shape[1], device=x.device) < length).expand(batch, -1)
            return cls(tokens, valid, None, None, None, length, chunk)
        real = torch.ones_like(x[..., 0], dtype=torch.bool) if packing is None else packing.valid
        phase = None if past is None else past.count % chunk
        unit, starts = chunk if past is not None else chunk * every, None
        frame = Frame.of(real, unit, phase, segments)
        tokens, valid = frame.place(x), frame.valid
        if frame.starts is not None:
            starts = F.pad(frame.starts.unsqueeze(-1), (0, unit // chunk - 1)).flatten(1)
        if past is not None and phase is not None:
            tokens = tokens + F.pad(past.pending.to(x.dtype), (0, 0, 0, frame.size - chunk + 1))
            valid = valid | (torch.arange(frame.size, device=x.device) < phase[:, None])
        return cls(tokens, valid, starts, frame, packing, length, chunk)

    @property
    def chunks(self) -> int:
        """Their number."""
        return self.tokens.shape[1] // self.chunk

    @property
    def complete(self) -> Tensor | None:
        """Bool ``(batch, chunks)``: chunks that are full; None: all."""
        return None if self.valid is None else self.valid[:, self.chunk - 1 :: self.chunk]

    def rebased(self, past: ChunkMemoryState | None, every: int) -> Tensor:
        """Bool ``(batch, groups)``: whether ``every`` chunks are full; after ``past`` chunk by chunk, by its count."""
        done, device = self.complete, self.tokens.device
        if done is None:
            done = torch.ones(self.tokens.shape[0], self.chunks, dtype=torch.bool, device=device)
        if past is None:
            return F.pad(done, (0, -self.chunks % every))[:, every - 1 :: every]
        number = past.count[:, None] // self.chunk + torch.arange(1, self.chunks + 1, device=device)
        return done & (number % every == 0)

    def back(self, y: Tensor) -> Tensor:
        """``(batch, chunks * chunk, channels)`` back to where tokens stood, ``(batch, length, channels)``."""
        y = y[:, : self.length] if self.frame is None else self.frame.take(y)
        return y if self.packing is None else self.packing.unpack(y)

    def rest(self) -> Tensor:
        """The tokens of the open chunk, see :class:`ChunkMemoryState`; of a stream only."""
        total = self._total()
        places = total // self.chunk * self.chunk + torch.arange(self.chunk - 1, device=total.device)
        index = places.clamp(max=self.tokens.shape[1] - 1).unsqueeze(-1).expand(-1, -1, self.tokens.shape[2])
        return self.tokens.gather(1, index).masked_fill((places >= total).unsqueeze(-1), 0)

    def lead(self, x: Tensor, before: Tensor) -> Tensor:
        """The last of the full chunks' tokens ``x``, ``before`` where there is none; of a stream only."""
        last = self._total() // self.chunk * self.chunk - 1
        index = last.clamp(min=0).unsqueeze(-1).expand(-1, -1, x.shape[2])
        return x.gather(1, index)[:, 0].where(last >= 0, before)

    def _total(self) -> Tensor:
        assert self.valid is not None
        return self.valid.sum(1, keepdim=True)
