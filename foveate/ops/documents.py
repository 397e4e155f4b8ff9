"""Packed documents: where one ends and the next begins inside a sequence."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def document_starts(seq_idx: Tensor) -> Tensor:
    """Bool ``(batch, L)``: positions whose number differs from the one before; never the first position.

    Args:
        seq_idx: int ``(batch, L)``, the document that each position belongs to.
    """
    return F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))


def document_numbers(seq_idx: Tensor) -> Tensor:
    """int64 ``(batch, L)``: 0 for the first document, then counting up, so that a number never comes twice."""
    return document_starts(seq_idx).cumsum(1)
