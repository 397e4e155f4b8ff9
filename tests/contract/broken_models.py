"""Models for testing the suite itself: one that keeps every promise, and some that each break one."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from foveate.models.base import Model, check_series
from foveate.spec import ModelSpec


class HonestModel(Model):
    """A linear map along time, standardised by window.

    Args:
        lookback, horizon: steps in and out.
        channels: variables.
    """

    breaks: ClassVar[set[str]] = set()
    spec = ModelSpec(reads="series", tasks=("forecast",))

    def __init__(self, lookback: int = 8, horizon: int = 4, channels: int = 1) -> None:
        super().__init__()
        self.lookback, self.channels = lookback, channels
        self.map = nn.Linear(lookback, horizon)

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        return cls(info.lookback, info.horizon, info.channels, **options)

    def deviation(self, x: Tensor) -> Tensor:
        return (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()

    def forward(self, x: Tensor, marks: Tensor | None = None) -> Tensor:
        check_series(type(self).__name__, x, self.lookback, self.channels)
        mean, deviation = x.mean(1, keepdim=True), self.deviation(x)
        return self.answer((x - mean) / deviation) * deviation + mean

    def answer(self, x: Tensor) -> Tensor:
        return self.map(x.transpose(1, 2)).transpose(1, 2)


class DividesByZero(HonestModel):
    """Standardises a constant window by its deviation."""

    breaks: ClassVar = {"a_constant_input_is_no_trouble"}

    def deviation(self, x: Tensor) -> Tensor:
        return x.std(1, keepdim=True)


class ReadsTheBatch(HonestModel):
    """Standardises by the deviation of the whole batch."""

    breaks: ClassVar = {"samples_do_not_see_each_other"}

    def deviation(self, x: Tensor) -> Tensor:
        return (x.var((0, 1), keepdim=True, unbiased=False) + 1e-5).sqrt()


class WarnsForNothing(HonestModel):
    """Says that samples see each other, though they do not."""

    breaks: ClassVar = {"samples_see_each_other_as_said"}
    spec = ModelSpec(reads="series", tasks=("forecast",), batch_independent=False)


class NeedsMarks(HonestModel):
    """Cannot do without time features."""

    breaks: ClassVar = {"inputs_with_names_are_optional"}

    def forward(self, x: Tensor, marks: Tensor | None = None) -> Tensor:
        return super().forward(x) + 0.1 * marks[:, :1].sum(-1, keepdim=True)  # type: ignore[index]


class AnswersTooMuch(HonestModel):
    """Returns the window in front of the forecast."""

    breaks: ClassVar = {"answers_in_the_tasks_shape", "inputs_with_names_are_optional"}
    breaks |= {"quantiles_never_cross", "covariates_are_heard"}

    def forward(self, x: Tensor, marks: Tensor | None = None) -> Tensor:
        return torch.cat([x, super().forward(x)], 1)


class ForgetsOnSaving(HonestModel):
    """Draws a number at birth that no checkpoint holds."""

    breaks: ClassVar = {"is_saved_and_loaded", "weights_are_all_it_keeps"}

    def __init__(self, lookback: int = 8, horizon: int = 4, channels: int = 1) -> None:
        super().__init__(lookback, horizon, channels)
        self.gain = float(torch.rand(()))

    def answer(self, x: Tensor) -> Tensor:
        return super().answer(x) * self.gain


class WontBeSaved(HonestModel):
    """Takes an option that has no form in JSON."""

    breaks: ClassVar = {"is_saved_and_loaded"}

    def __init__(
        self, lookback: int = 8, horizon: int = 4, channels: int = 1, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(lookback, horizon, channels)

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        return cls(info.lookback, info.horizon, info.channels, torch.float32)


class SavesWhatItLikes(HonestModel):
    """Puts other options on record than it was made with."""

    breaks: ClassVar = {"is_saved_and_loaded"}

    def __init__(self, lookback: int = 8, horizon: int = 4, channels: int = 1, gain: float = 1.0) -> None:
        super().__init__(lookback, horizon, channels)
        self._options["gain"] = 2.0 * gain


class DropsWhenItShouldNot(HonestModel):
    """Dropout in eval mode."""

    breaks: ClassVar = {"two_calls_give_the_same_bits", "samples_do_not_see_each_other", "is_saved_and_loaded"}
    breaks |= {"weights_are_all_it_keeps", "compiles_as_one_graph", "exports", "covariates_are_heard"}

    def answer(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().answer(x), 0.5, training=True)


class LearnsInPart(HonestModel):
    """Has a layer that nothing passes through."""

    breaks: ClassVar = {"every_parameter_learns"}

    def __init__(self, lookback: int = 8, horizon: int = 4, channels: int = 1) -> None:
        super().__init__(lookback, horizon, channels)
        self.spare = nn.Linear(2, 2)


class LearnsAsABaseline(HonestModel):
    """A trivial reference with parameters."""

    breaks: ClassVar = {"a_baseline_has_no_parameters", "has_nothing_to_learn"}
    spec = ModelSpec(reads="series", tasks=("forecast",), baseline=True, trains=False)


class TakesAnything(HonestModel):
    """Checks nothing."""

    breaks: ClassVar = {"refuses_inputs_that_do_not_fit"}

    def forward(self, x: Tensor, marks: Tensor | None = None) -> Tensor:
        deviation = self.deviation(x)
        return self.answer((x - x.mean(1, keepdim=True)) / deviation) * deviation + x.mean(1, keepdim=True)


class RoundsHalfway(HonestModel):
    """Falls back to float32 inside."""

    breaks: ClassVar = {"double_precision_agrees"}

    def forward(self, x: Tensor, marks: Tensor | None = None) -> Tensor:
        return super().forward(x).float()


class WritesIntoItsInput(HonestModel):
    """Writes into the time features that it was given."""

    breaks: ClassVar = {"does_not_change_its_input"}

    def forward(self, x: Tensor, marks: Tensor | None = None) -> Tensor:
        if marks is not None:
            marks.zero_()
        return super().forward(x)


class OwnQuantiles(HonestModel):
    """Keeps the promise of quantiles of its own: the median, and steps of one on both sides."""

    spec = ModelSpec(reads="series", tasks=("forecast",), quantiles=True)

    def __init__(self, lookback: int = 8, horizon: int = 4, channels: int = 1, levels: int = 0) -> None:
        super().__init__(lookback, horizon, channels)
        self.steps = nn.Parameter(torch.arange(float(levels))) if levels else None

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        levels = len(getattr(info, "quantiles", ()))
        return cls(info.lookback, info.horizon, info.channels, levels, **options)

    def forward(self, x: Tensor, marks: Tensor | None = None) -> Tensor:
        y = super().forward(x)
        return y if self.steps is None else y[..., None] + self.ordered(self.steps)

    def ordered(self, steps: Tensor) -> Tensor:
        return steps.abs().cumsum(0)


class CrossesQuantiles(OwnQuantiles):
    """Leaves it to training that its quantiles are in order."""

    breaks: ClassVar = {"quantiles_never_cross"}

    def ordered(self, steps: Tensor) -> Tensor:
        return steps


class SaysItHasQuantiles(HonestModel):
    """Promises quantiles and answers one number."""

    breaks: ClassVar = {"quantiles_never_cross"}
    spec = ModelSpec(reads="series", tasks=("forecast",), quantiles=True)


class OwnCovariates(HonestModel):
    """Keeps the promise of covariates of its own: adds the sum of those of each step and of the series."""

    spec = ModelSpec(reads="series", tasks=("forecast",), covariates=True)

    def forward(
        self, x: Tensor, marks: Tensor | None = None, known: Tensor | None = None, static: Tensor | None = None
    ) -> Tensor:
        y = super().forward(x)
        if known is not None:
            y = y + known[:, self.lookback :].sum(-1, keepdim=True)
        return y if static is None else y + static.sum(-1)[:, None, None]


class IgnoresCovariates(OwnCovariates):
    """Takes covariates and does not look at them."""

    breaks: ClassVar = {"covariates_are_heard"}

    def forward(
        self, x: Tensor, marks: Tensor | None = None, known: Tensor | None = None, static: Tensor | None = None
    ) -> Tensor:
        return super().forward(x)
