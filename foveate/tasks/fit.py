"""The recipe of systems that are fitted in one go: no gradients, no steps."""

from __future__ import annotations

import torch
from torch import nn

from .base import Recipe


class FitOnce(Recipe):
    """Hands all training samples, in their order and as one batch, to ``model.fit(batch)``."""

    def fit(self, model: nn.Module, seconds: float | None) -> None:
        batch = self.task.batch("train", torch.arange(self.task.size("train")))
        model.fit(batch)  # type: ignore[operator]
