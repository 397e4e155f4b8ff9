"""Contestants: from a name to a model for a task.

A name is a registered model, one of its published sizes, a registered mixer (which a network makes into a model: see
:func:`network`), or ``package.module:Class``, a Model or Mixer subclass of the user's.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import InvalidType, UnknownName
from ..mixers.base import Mixer
from ..registry import check_options, entries, find
from .base import Model
from .language.language_model import LanguageModel
from .mixer_net import MixerNet
from .outlook import with_outlook
from .vision.backbone import Backbone
from .vision.segmenter import Segmenter


@dataclass(frozen=True, slots=True)
class Contestant:
    """Something that can be built for a task.

    Attributes:
        name: as the user gave it.
        kind: "model", "mixer", or "custom" for the user's own class.
        target: the Model or Mixer subclass.
        configuration: the published size of the model, if the name is that of one.
    """

    name: str
    kind: str
    target: type[Model] | type[Mixer]
    configuration: str = ""

    @property
    def baseline(self) -> bool:
        """True for a trivial reference that is always among the contestants."""
        return getattr(self.target.spec, "baseline", False)

    @property
    def recipe(self) -> str:
        """Dotted path of the recipe that trains it."""
        return self.target.recipe if issubclass(self.target, Model) else Model.recipe

    def build(self, info: Any, options: dict[str, Any]) -> nn.Module:
        """Build it for ``info`` (``Task.info``); options of a mixer go to its network, the rest to the mixer.

        Where a forecast has covariates or quantiles, the model comes inside :class:`~foveate.models.outlook.Outlook`.

        Raises:
            InvalidType: it cannot do this task, or an option does not exist.
            InvalidValue: the data or an option does not fit.
        """
        return with_outlook(self._build(info, options), info)

    def around(self, task: str) -> type[Model] | None:
        """The network that makes it into a model for this task (``info.task``); None: it is one."""
        if issubclass(self.target, Mixer):
            return network_for(task)
        segments = task in Segmenter.spec.tasks and task not in self.target.spec.tasks
        return Segmenter if segments and issubclass(self.target, Backbone) else None

    def _build(self, info: Any, options: dict[str, Any]) -> Model:
        around = self.around(info.task)
        if around is not None:
            own = {k: v for k, v in options.items() if k in network_options(around)}
            rest = {k: v for k, v in options.items() if k not in own}
            inside, what = self.target if self.kind == "custom" else self.name, around.made_of
            if self.configuration:
                own["configuration"] = self.configuration
            return around.for_task(info, **{what: inside, f"{what}_options": rest}, **own)
        if not issubclass(self.target, Model) or info.task not in self.target.spec.tasks:
            raise InvalidType(f"{self.name!r} cannot do the task {info.task!r}: it does {_listed(self.target)}.")
        check_options(self.name, self.target, options, partial=True)
        size = {"configuration": self.configuration} if self.configuration else {}
        return self.target.for_task(info, **size, **options)


def network(reads: str) -> type[Model]:
    """The network that makes a mixer into a model for this kind of input."""
    return LanguageModel if reads == "tokens" else MixerNet


def network_for(task: str) -> type[Model]:
    """The network that makes a mixer into a model for this task (``info.task``)."""
    return LanguageModel if task in LanguageModel.spec.tasks else MixerNet


def network_options(around: type[Model]) -> set[str]:
    """Options that are the network's own; all others are those of the mixer or backbone inside."""
    inside = around.made_of
    return set(inspect.signature(around.__init__).parameters) - {"self", inside, f"{inside}_options"}


def _listed(target: type[Model] | type[Mixer]) -> str:
    return ", ".join(getattr(target.spec, "tasks", ())) or "no task of foveate's"


def resolve(name: str) -> Contestant:
    """The contestant of this name.

    Raises:
        UnknownName: nothing registered has the name, or the module or class does not exist.
        InvalidType: the class is neither a Model nor a Mixer.
    """
    if ":" in name:
        return Contestant(name, "custom", _import(name))
    known = {e.name: e.kind for e in (*entries("mixer"), *entries("model"))}
    entry = find(name, known.get(name))
    return Contestant(name, entry.kind, entry.load(), entry.configuration)


def _import(name: str) -> type[Model] | type[Mixer]:
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise UnknownName(f"{name!r}: no module {error.name!r} here or among the installed packages.") from error
    target = getattr(module, attribute, None)
    if target is None:
        raise UnknownName(f"{name!r}: the module {module_name!r} has no {attribute!r}.")
    if not (isinstance(target, type) and issubclass(target, Model | Mixer)):
        raise InvalidType(f"{name!r} must be a subclass of foveate.models.Model or foveate.mixers.Mixer.")
    return target
