"""The recipe of a system that is trained as its authors trained it, from plain values on record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .base import Progress, Recipe, Task
from .schedules import BY_EPOCH

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "radam": torch.optim.RAdam}


class PublishedRecipe(Recipe):
    """Optimiser, schedule by passes, clipping and early stopping as published; losses and hooks as ever.

    Of equal validations the last one counts, as in the early stopping of Informer and its successors.

    Args:
        task: as ever.
        facts: what a comparison has on record of a :class:`~foveate.models.published.Published`.
    """

    ties_gain = True

    def __init__(self, task: Task, facts: Mapping[str, Any]) -> None:
        super().__init__(task)
        self.clip_norm = facts.get("clip_norm")
        self.optimizer = OPTIMIZERS[facts["optimizer"]]
        self.by_epoch = BY_EPOCH[facts["schedule"]]

    def optimizers(self, model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
        """One optimiser for everything, without weight decay."""
        params = [p for p in model.parameters() if p.requires_grad]
        return [self.optimizer(params, lr=lr)]  # type: ignore[call-arg]

    def schedule(self, fraction: float, progress: Progress) -> float:
        """By the number of passes over the data that are done."""
        return self.by_epoch(progress.epoch)

    def scored_at_once(self, batch_size: int) -> int:
        """As many as in a training step, as published."""
        return batch_size
