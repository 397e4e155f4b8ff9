"""Where the tokens of masked and packed sequences lie in blocks: padding behind, documents in blocks of their own.

A block that held tokens of two documents would let the choice for one depend on the other. So every document begins a
block of its own, and what masks hide is taken out: a document is then treated as if it stood alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops.documents import document_numbers, document_starts
from ..ssm import Packing


@dataclass(frozen=True)
class BlockSlots:
    """Moves tokens to the slots of their blocks, and back.

    Attributes:
        order: int64 ``(batch, slots)``: the token of each slot (meaningless where there is none).
        place: int64 ``(batch, length)``: the slot of each token (meaningless where it is masked).
        valid: bool ``(batch, slots)``: slots that hold a real token.
        mask: bool ``(batch, length)``, real tokens; None: all are.
        documents: int64 ``(batch, blocks)``: whose tokens a block holds, -1: nobody's.
        positions: int64 ``(slots,)`` or ``(batch, slots)``: each slot's number among the real tokens.
    """

    order: Tensor
    place: Tensor
    valid: Tensor
    mask: Tensor | None
    documents: Tensor
    positions: Tensor

    @classmethod
    def of(cls, mask: Tensor | None, segments: Tensor | None, block_size: int) -> Self:
        """The slots of a sequence with a mask, bool ``(batch, length)``, with segments, int64 likewise, or both."""
        if segments is None:
            assert mask is not None
            packing = Packing.of(mask)
            owners = _owners(packing.valid, None, block_size)
            here = torch.arange(mask.shape[1], device=mask.device)
            return cls(packing.order, packing.place, packing.valid, mask, owners, here)
        batch, length = segments.shape
        here = torch.arange(length, device=segments.device).expand(batch, -1)
        packing = None if mask is None else Packing.of(mask)
        if packing is not None:
            segments = segments.gather(1, packing.order)
        real = torch.ones_like(segments, dtype=torch.bool) if packing is None else packing.valid
        within = here - torch.where(document_starts(segments), here, 0).cummax(1).values
        block = ((within % block_size == 0) & real).cumsum(1) - 1
        slot = block * block_size + within % block_size
        slots = int(block.max() + 1) * block_size
        slot = torch.where(real, slot, slots)  # what is masked goes behind the last slot, which is cut off

        def spread(values: Tensor, fill: int) -> Tensor:
            empty = torch.full((batch, slots + 1), fill, dtype=values.dtype, device=values.device)
            return empty.scatter(1, slot, values)[:, :slots]

        order = spread(here if packing is None else packing.order, 0)
        valid = spread(real, 0)
        numbers = spread(document_numbers(segments), -1)
        place = slot if packing is None else slot.gather(1, packing.place)
        owners = _owners(valid, numbers, block_size)
        return cls(order, place.clamp(max=slots - 1), valid, mask, owners, spread(here, 0))

    def pack(self, x: Tensor) -> Tensor:
        """``(batch, length, dim)`` to ``(batch, slots, dim)``, zeros in slots without a token."""
        x = x.gather(1, self.order.unsqueeze(-1).expand(-1, -1, x.shape[2]))
        return x.masked_fill(~self.valid.unsqueeze(-1), 0)

    def unpack(self, y: Tensor) -> Tensor:
        """Back to the tokens' own places, zeros where they are masked."""
        y = y.gather(1, self.place.unsqueeze(-1).expand(-1, -1, y.shape[2]))
        return y if self.mask is None else y.masked_fill(~self.mask.unsqueeze(-1), 0)


def _owners(valid: Tensor, numbers: Tensor | None, block_size: int) -> Tensor:
    """int64 ``(batch, blocks)``: the number of a block's document, -1 where no slot of it is valid."""
    numbers = torch.where(valid, 0 if numbers is None else numbers, -1)
    spare = -numbers.shape[1] % block_size
    return F.pad(numbers, (0, spare), value=-1).unflatten(1, (-1, block_size)).amax(2)
