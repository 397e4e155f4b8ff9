"""Models without a stream: the whole text is read again for every token, which is asked for and never silent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..mixers.state import State, state


@state
class ReadSoFar(State):
    """What was read, for a model that keeps nothing else.

    Attributes:
        tokens: int64 ``(batch, length)``.
        mask: bool ``(batch, length)``, True = a real token; None: all are.
    """

    tokens: Tensor
    mask: Tensor | None


class Recomputed:
    """The streaming protocol by calls of ``forward``: n tokens cost as much as all their beginnings together.

    Args:
        model: causal, from tokens ``(batch, length)`` to logits ``(batch, length, vocabulary)``.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> ReadSoFar:
        """Nothing read."""
        return ReadSoFar(torch.zeros(batch_size, 0, dtype=torch.int64, device=device), None)

    def prefill(self, x: Tensor, state: ReadSoFar, mask: Tensor | None = None) -> tuple[Tensor, ReadSoFar]:
        """Read token numbers ``(batch, n)`` after what was read; returns their logits and all that was read."""
        tokens = torch.cat([state.tokens, x], 1)
        if mask is not None or state.mask is not None:
            before = torch.ones_like(state.tokens, dtype=torch.bool) if state.mask is None else state.mask
            mask = torch.cat([before, torch.ones_like(x, dtype=torch.bool) if mask is None else mask], 1)
        logits = self.model(tokens) if mask is None else self.model(tokens, mask=mask)
        return logits[:, state.tokens.shape[1] :], ReadSoFar(tokens, mask)

    def step(self, x_t: Tensor, state: ReadSoFar) -> tuple[Tensor, ReadSoFar]:
        """Read one token number per sample ``(batch,)``."""
        logits, state = self.prefill(x_t[:, None], state)
        return logits[:, -1], state
