"""What tasks share that ask for tokens: batches, the model's call, the loss and what was right.

A batch holds ``x`` int64 ``(B, L)``, the tokens that are read; ``y`` int64 ``(B, L)``, the token that is asked for at
each place, or :data:`NOT_ASKED`; and, where documents share a sample, ``segments`` int64 ``(B, L)``, whose neighbours
with different numbers do not see each other.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .base import Batch

#: In place of a token that is not asked for.
NOT_ASKED = -100


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """The model's logits ``(B, L, vocabulary)`` for a batch."""
    return model(batch["x"], segments=batch["segments"]) if "segments" in batch else model(batch["x"])


def token_losses(logits: Tensor, y: Tensor) -> Tensor:
    """Nats of each token that is asked for, in float32 ``(B, L)``; 0 where none is."""
    losses = F.cross_entropy(logits.flatten(0, 1).float(), y.flatten(), ignore_index=NOT_ASKED, reduction="none")
    return losses.view_as(y)


def mean_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Mean nats per token that is asked for."""
    return F.cross_entropy(logits.flatten(0, 1).float(), y.flatten(), ignore_index=NOT_ASKED)


def right_answers(logits: Tensor, y: Tensor) -> Tensor:
    """Bool ``(B, L)``: the most likely token is the one that is asked for; False where none is."""
    return logits.argmax(-1) == y
