"""Model cases: a small model built for an example (see ``examples/``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from foveate.mixers import MixerSpec
from foveate.models.base import Model
from foveate.models.build import network_for, network_options
from foveate.models.language.language_model import LanguageModel
from foveate.registry import Entry, entries
from foveate.spec import ModelSpec

from .examples import Example, Inputs, all_examples

EXAMPLES = all_examples()


@dataclass(frozen=True)
class ModelCase:
    """A model under test, built for one of its tasks.

    Attributes:
        name: registered name.
        cls: the class.
        spec: its promises.
        task: name of the example: a task, or what it reads if it is built for none.
        options: of ``for_task`` or the constructor.
    """

    name: str
    cls: type[Model]
    spec: ModelSpec
    task: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def of_mixer(self) -> bool:
        """Whether a network around a mixer is tested, see :func:`of_mixer`."""
        return self.cls.named_by_mixer

    @property
    def example(self) -> Example:
        return EXAMPLES[self.task]

    def build(self, info: SimpleNamespace | None = None, seed: int = 0) -> Model:
        """An instance in eval mode; noise is added to its parameters, for those that start at zero hide faults."""
        torch.manual_seed(seed)
        model = self.example.build(self.cls, info or self.example.info, self.options)
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


def map_inputs(function: Callable[..., Tensor], *several: Inputs) -> Inputs:
    """Apply a function to corresponding tensors of inputs."""
    args = tuple(function(*tensors) for tensors in zip(*(s[0] for s in several), strict=True))
    kwargs = {name: function(*(s[1][name] for s in several)) for name in several[0][1]}
    return args, kwargs


def examples_of(spec: ModelSpec) -> tuple[str, ...]:
    """Names of the examples that a model is tested on: its tasks, or what it reads if it is built for none."""
    return spec.tasks or (spec.reads,)


def of_mixer(name: str, spec: MixerSpec, task: str) -> ModelCase:
    """The model that a network makes of a mixer; what the mixer promises for itself is not tested twice."""
    around = network_for(task)
    promises = replace(
        around.spec,
        streaming=spec.streaming if around.spec.streaming != "no" else "no",
        batch_independent=spec.batch_independent,
        deterministic=spec.deterministic,
        compile=False,
        export=False,
        onnx=False,
    )
    options = {"mixer": name, "dim": 16, "depth": 2, "num_heads": 2, "patch": 2, "dropout": 0.1}
    own = network_options(around) | {"mixer"}
    return ModelCase(
        f"{around.__name__}:{name}", around, promises, task, {k: v for k, v in options.items() if k in own}
    )


#: Tasks on which networks are tried around every mixer; on the others, around one of each kind of promises.
_AROUND_ALL = ("forecast", "language")


def mixers_of(task: str) -> list[Entry]:
    """Mixers that the task's network is tried around: what differs by task is the network, not what stands in it."""
    causal = network_for(task) is LanguageModel
    fitting = [e for e in entries("mixer") if 1 in e.spec.ranks and (not causal or e.spec.causal == "strict")]
    if task in _AROUND_ALL:
        return fitting
    kinds = {
        (len(s.ranks), s.masks, s.layout, s.bidirectional, s.padding, s.grid): e for e in fitting for s in (e.spec,)
    }
    return list(kinds.values())
