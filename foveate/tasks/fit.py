"""Recipes of systems without gradients and steps: fitted in one go, or anew to every window."""

from __future__ import annotations

import time

import torch
from torch import nn

from ..errors import InvalidValue
from .base import Recipe


class FitOnce(Recipe):
    """Hands the training samples, in their order and as one batch, to ``model.fit(batch)``: all of them, or as many as
    the model's ``fit_samples`` says, spread evenly."""

    def fit(self, model: nn.Module, seconds: float | None) -> None:
        size = self.task.size("train")
        count = min(size, getattr(model, "fit_samples", size))
        batch = self.task.batch("train", torch.arange(count) * size // count)
        model.fit(batch)  # type: ignore[operator]


class FitStream(Recipe):
    """Hands all training tokens to ``model.fit(batch)`` as one long sample where the task has them in a row (its
    ``stream``), else its samples as they are."""

    def fit(self, model: nn.Module, seconds: float | None) -> None:
        stream = getattr(self.task, "stream", None)
        batch = self.task.batch("train", torch.arange(self.task.size("train"))) if stream is None else stream("train")
        model.fit(batch)  # type: ignore[operator]


class ScoredInTime(Recipe):
    """For a system that is fitted to every window anew: refuses a time budget in which it cannot be scored."""

    def fit(self, model: nn.Module, seconds: float | None) -> None:
        if seconds is None:
            return
        windows = self.task.size("val") + self.task.size("test")
        tried = self.task.batch("val", torch.arange(min(8, self.task.size("val"))))
        self.task.apply(model, tried)  # the first call imports
        started = time.perf_counter()
        self.task.apply(model, tried)
        needed = (time.perf_counter() - started) / len(tried["x"]) * windows
        if needed > seconds:
            raise InvalidValue(
                f"{type(model).__name__} needs about {needed:.0f} seconds for {windows} windows and was given "
                f"{seconds:.0f}: take a larger budget, windows farther apart (stride), or leave it out."
            )
