"""Model cases: an example of every task, and a small model built for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from foveate.mixers import MixerSpec
from foveate.models.base import Model
from foveate.models.mixer_net import MixerNet
from foveate.spec import ModelSpec

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Example:
    """What a task looks like to a model.

    Attributes:
        info: ``Task.info``, tiny.
        others: further infos that a model of this task must bear (one channel, horizon above lookback).
        inputs: (info, batch, seed) to the arguments of a call.
        answer: (info, batch) to the shape of the answer.
        wrong: (info) to inputs that must be refused, with a word for each.
    """

    info: SimpleNamespace
    others: tuple[SimpleNamespace, ...]
    inputs: Callable[[SimpleNamespace, int, int], Inputs]
    answer: Callable[[SimpleNamespace, int], tuple[int, ...]]
    wrong: Callable[[SimpleNamespace], dict[str, Inputs]]


def _forecast_info(lookback: int, horizon: int, channels: int, season: int) -> SimpleNamespace:
    return SimpleNamespace(
        task="forecast",
        lookback=lookback,
        horizon=horizon,
        channels=channels,
        targets=tuple(range(channels)),
        season=season,
        freq="h",
        marks=4,
    )


def _forecast_inputs(info: SimpleNamespace, batch: int, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, info.lookback, info.channels, generator=generator)
    turn = torch.arange(info.lookback) * (2 * torch.pi / info.season)
    marks = torch.rand(batch, info.lookback, info.marks, generator=generator) - 0.5
    return (x + turn.sin()[:, None],), {"marks": marks}


def _forecast_wrong(info: SimpleNamespace) -> dict[str, Inputs]:
    (x,), _ = _forecast_inputs(info, 2, 0)
    return {
        "a window one step too short": ((x[:, 1:],), {}),
        "a channel too many": ((torch.cat([x, x[..., :1]], -1),), {}),
        "no batch axis": ((x[0],), {}),
        "whole numbers": ((x.long(),), {}),
    }


EXAMPLES: dict[str, Example] = {
    "forecast": Example(
        info=_forecast_info(32, 8, 3, 12),
        others=(_forecast_info(24, 30, 1, 24), _forecast_info(17, 1, 2, 1)),
        inputs=_forecast_inputs,
        answer=lambda info, batch: (batch, info.horizon, info.channels),
        wrong=_forecast_wrong,
    )
}


@dataclass(frozen=True)
class ModelCase:
    """A model under test, built for one of its tasks.

    Attributes:
        name: registered name.
        cls: the class.
        spec: its promises.
        task: the task.
        options: of ``for_task``.
    """

    name: str
    cls: type[Model]
    spec: ModelSpec
    task: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def example(self) -> Example:
        return EXAMPLES[self.task]

    def build(self, info: SimpleNamespace | None = None, seed: int = 0) -> Model:
        """An instance in eval mode; noise is added to its parameters, for those that start at zero hide faults."""
        torch.manual_seed(seed)
        model = self.cls.for_task(info or self.example.info, **self.options)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        return model.eval()

    def inputs(self, batch: int = 2, seed: int = 1, info: SimpleNamespace | None = None) -> Inputs:
        """Arguments of a call."""
        return self.example.inputs(info or self.example.info, batch, seed)

    def run(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Call the model."""
        args, kwargs = inputs
        return model(*args, **kwargs)


def map_inputs(function: Callable[[Tensor], Tensor], *several: Inputs) -> Inputs:
    """Apply a function to corresponding tensors of inputs."""
    args = tuple(function(*tensors) for tensors in zip(*(s[0] for s in several), strict=True))
    kwargs = {name: function(*(s[1][name] for s in several)) for name in several[0][1]}
    return args, kwargs


def of_mixer(name: str, spec: MixerSpec) -> ModelCase:
    """The forecaster that MixerNet makes of a mixer; what the mixer promises for itself is not tested twice."""
    promises = replace(
        MixerNet.spec,
        batch_independent=spec.batch_independent,
        deterministic=spec.deterministic,
        compile=False,
        export=False,
    )
    options = {"mixer": name, "dim": 16, "depth": 2, "num_heads": 2, "patch": 2, "dropout": 0.1}
    return ModelCase(f"MixerNet:{name}", MixerNet, promises, "forecast", options)
