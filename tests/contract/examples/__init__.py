"""Examples: what a task, or a kind of input, looks like to a model. One file each; adding one is all it takes."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from foveate.models.base import Model

Inputs = tuple[tuple[Any, ...], dict[str, Any]]

#: Tiny values of options that networks commonly have, for models that no task builds.
TINY = {"dim": 16, "depth": 2, "num_heads": 2}


@dataclass(frozen=True)
class Example:
    """One example.

    Attributes:
        name: the task's registered name, or what the model reads, for models that are built for no task.
        info: ``Task.info``, tiny, or the options of the constructor.
        others: further infos that a model must bear (one channel, horizon above lookback).
        inputs: (info, batch, seed) to the arguments of a call; those with names are optional.
        answer: (info, batch) to the shape of the answer.
        wrong: (info) to inputs that must be refused, by a description.
        stream: number of steps along axis 1 of the first input and of the answer; 0: it cannot be streamed.
    """

    name: str
    info: SimpleNamespace
    inputs: Callable[[SimpleNamespace, int, int], Inputs]
    answer: Callable[[SimpleNamespace, int], tuple[int, ...]]
    wrong: Callable[[SimpleNamespace], dict[str, Inputs]]
    others: tuple[SimpleNamespace, ...] = ()
    stream: int = 0

    def build(self, cls: type[Model], info: SimpleNamespace, options: dict[str, Any]) -> Model:
        """A model for ``info``: through its task, or by its constructor."""
        if hasattr(info, "task"):
            return cls.for_task(info, **options)
        known = inspect.signature(cls).parameters
        return cls(**{**{k: v for k, v in TINY.items() if k in known}, **vars(info), **options})


def all_examples() -> dict[str, Example]:
    """Every example of this folder by name."""
    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    return {module.EXAMPLE.name: module.EXAMPLE for module in modules}
