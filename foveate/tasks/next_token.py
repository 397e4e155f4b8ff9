"""What tasks share that ask for tokens: batches, the model's call and the loss.

A batch holds ``x`` int64 ``(B, L)``, the tokens that are read; ``y`` int64 ``(B, L)``, the token that is asked for at
each place, or :data:`NOT_ASKED`; and, where documents share a sample, ``segments`` int64 ``(B, L)``, whose neighbours
with different numbers do not see each other.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InvalidValue
from .base import Batch

#: In place of a token that is not asked for.
NOT_ASKED = -100


def logits_of(model: nn.Module, batch: Batch, vocabulary: int) -> Tensor:
    """The model's logits ``(B, L, vocabulary)`` for a batch.

    Raises:
        InvalidValue: the model returned another shape.
    """
    logits = model(batch["x"], segments=batch["segments"]) if "segments" in batch else model(batch["x"])
    expected = (*batch["x"].shape, vocabulary)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InvalidValue(
            f"{type(model).__name__} returned {came}: logits are a tensor (batch, length, vocabulary) = {expected}."
        )
    return logits


def token_losses(logits: Tensor, y: Tensor) -> Tensor:
    """Nats of each token that is asked for, in float32 ``(B, L)``; 0 where none is."""
    losses = F.cross_entropy(logits.flatten(0, 1).float(), y.flatten(), ignore_index=NOT_ASKED, reduction="none")
    return losses.view_as(y)


def mean_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Mean nats per token that is asked for."""
    return F.cross_entropy(logits.flatten(0, 1).float(), y.flatten(), ignore_index=NOT_ASKED)
