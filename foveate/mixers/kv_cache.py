"""The streaming state of softmax attention: keys and values of everything read."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from .state import State, shared, state


def capacity(length: int) -> int:
    """Slots of a buffer for this many tokens: a power of two, so that growing copies each token about once."""
    return 1 << (length - 1).bit_length() if length else 0


def token_positions(mask: Tensor) -> Tensor:
    """int64 ``(batch, length)``: each real token's number among the real ones, from 0; meaningless for masked ones."""
    return (mask.cumsum(1) - 1).clamp(min=0)


@state
class KVCache(State):
    """Keys and values of all tokens read, in buffers that double when they are full.

    A state is a value: :meth:`extend` writes into free slots of the buffers, and only the state that it returns knows
    of them. Two futures of one state cannot have the same slots: the second one copies the buffers first. While
    gradients are recorded every call copies, for the backward pass needs what was there.

    Attributes:
        keys, values: ``(batch, heads, capacity, head_dim)``.
        slots: int64 ``(batch, length)``: the position of the token in each slot, -1 for a masked one; None as long as
            no mask was given: slot i then holds position i.
        position: int64 ``(batch,)``: number of real tokens read, which is the next token's position.
        written: int64 scalar on the CPU, shared by all states on the same buffers: slots taken so far; -1: all.
        length: number of slots that this state knows of.
    """

    keys: Tensor
    values: Tensor
    slots: Tensor | None
    position: Tensor
    written: Tensor = shared()
    length: int = 0

    @classmethod
    def empty(
        cls,
        batch_size: int,
        heads: int,
        head_dim: int | tuple[int, int],
        device: torch.device | str | None,
        dtype: torch.dtype,
    ) -> Self:
        """The state before the first token.

        Args:
            head_dim: width of a head; (that of keys, that of values) where they differ.
        """
        widths = head_dim if isinstance(head_dim, tuple) else (head_dim, head_dim)
        keys, values = (torch.zeros(batch_size, heads, 0, w, device=device, dtype=dtype) for w in widths)
        position = torch.zeros(batch_size, device=device, dtype=torch.int64)
        return cls(keys, values, None, position, torch.zeros((), device="cpu", dtype=torch.int64), 0)

    def positions(self, count: int, mask: Tensor | None) -> Tensor:
        """Positions of the next ``count`` tokens: int64 ``(count,)``, or ``(batch, count)`` where samples differ."""
        if mask is not None:
            return self.position[:, None] + token_positions(mask)
        following = torch.arange(count, device=self.position.device)
        return following + (self.length if self.slots is None else self.position[:, None])

    def extend(self, keys: Tensor, values: Tensor, mask: Tensor | None) -> Self:
        """The state after further tokens.

        Args:
            keys, values: ``(batch, heads, n, head_dim)``.
            mask: bool ``(batch, n)``, True = a real token; None: all are.
        """
        n, recording = keys.shape[2], torch.is_grad_enabled()
        length = self.length + n
        free = not recording and length <= self.keys.shape[2] and int(self.written) == self.length
        slots = self.slots
        if slots is not None or mask is not None:
            past = self.positions_of_slots().expand(len(self.position), -1)
            new = self.positions(n, mask).expand(len(self.position), -1)
            slots = torch.cat([past, new if mask is None else new.masked_fill(~mask, -1)], 1)
        return type(self)(
            keys=self._append(self.keys, keys, free),
            values=self._append(self.values, values, free),
            slots=slots,
            position=self.position + (n if mask is None else mask.sum(1)),
            written=self.written.fill_(length) if free else torch.full_like(self.written, -1 if recording else length),
            length=length,
        )

    def positions_of_slots(self) -> Tensor:
        """int64 ``(length,)`` or ``(batch, length)``: positions of what was read, -1 where it was masked."""
        return torch.arange(self.length, device=self.position.device) if self.slots is None else self.slots

    def _append(self, buffer: Tensor, new: Tensor, free: bool) -> Tensor:
        new, end = new.to(buffer.dtype), self.length + new.shape[2]
        if free:
            buffer[:, :, self.length : end] = new
            return buffer
        spare = new.new_zeros(*new.shape[:2], capacity(end) - end, new.shape[3])
        return torch.cat([buffer[:, :, : self.length], new, spare], 2)
