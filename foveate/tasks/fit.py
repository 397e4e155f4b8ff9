"""The recipe of systems that are fitted in one go: no gradients, no steps."""

from __future__ import annotations

import torch
from torch import nn

from .base import Recipe


class FitOnce(Recipe):
    """Hands the training samples, in their order and as one batch, to ``model.fit(batch)``: all of them, or as many as
    the model's ``fit_samples`` says, spread evenly."""

    def fit(self, model: nn.Module, seconds: float | None) -> None:
        size = self.task.size("train")
        count = min(size, getattr(model, "fit_samples", size))
        batch = self.task.batch("train", torch.arange(count) * size // count)
        model.fit(batch)  # type: ignore[operator]
