"""Who takes part in a comparison, and the work that follows: sweeps and trials.

Every system gets one learning-rate sweep (the same grid and budget for all, scored on validation) and then one trial
per seed with the rate it chose. A trial needs its system's sweep, so the schedule puts the sweeps of all systems first,
then the trials seed by seed: a first whole picture comes early.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidType, InvalidValue, UnknownName, unknown_name
from ..measure.machine import usable_cores
from ..models.base import Model
from ..models.build import Contestant, network_options, resolve
from ..registry import check_options, entries, find, sizes
from ..spec import MixerSpec, ModelSpec, mixer_fits, model_fits
from ..tasks.base import Task
from .settings import Settings


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of work for a worker process.

    Attributes:
        kind: "sweep" (choose a system's learning rate), "trial", "refit" (train the winner on all data), "probe"
            (measure a system's speed), "latency" or "package".
        system: whom it is about; "" where it is about all.
        seed: of a trial, or of the one that won.
    """

    kind: str
    system: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        """The trial's name, which is also its folder's; a sweep belongs to its system's first trial."""
        return trial_name(self.system, self.seed)


def trial_name(system: str, seed: int) -> str:
    """The folder of a trial."""
    return f"{folder_name(system)}-seed{seed}"


def folder_name(system: str) -> str:
    """A system's name as a folder's: ``package.module:Class`` without the colon, which Windows refuses."""
    return system.replace(":", ".")


def task_class(name: str) -> type[Task]:
    """The Task of a registered name or of ``package.module:Class``.

    Raises:
        UnknownName: there is none of this name.
        InvalidType: the class is no Task.
    """
    if ":" not in name:
        return find(name, "task").load()
    module, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise UnknownName(f"task {name!r}: no module {module!r} here or among the installed packages.")
    found = getattr(importlib.import_module(module), attribute, None)
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise InvalidType(f"task {name!r} must be a subclass of foveate.tasks.base.Task.")
    return found


def prepare_task(settings: Settings) -> Task:
    """Read the user's data as the settings say.

    Raises:
        FoveateError: an option does not exist, or the data is not possible; see the task's ``prepare``.
    """
    prepare: Any = getattr(task_class(settings.task), "prepare")  # noqa: B009 (every task has its own options)
    check_options(settings.task, prepare, dict(settings.data))
    return prepare(**settings.data)


def fitting(task: Task) -> dict[str, str]:
    """Name to kind of everything registered that this task's data can be given to."""
    found = {}
    for entry in entries():
        spec = entry.spec
        fits_mixer = (
            isinstance(spec, MixerSpec) and entry.kind == "mixer" and mixer_fits(spec, task.spec, flattened=True)
        )
        # A model of the same name as a mixer comes later and wins: it is the complete published network.
        if fits_mixer or (isinstance(spec, ModelSpec) and model_fits(spec, task.spec, task.info.task)):
            found[entry.name] = entry.kind
    return found


def contestants(settings: Settings, task: Task) -> list[Contestant]:
    """Who takes part, baselines last, nobody twice.

    Raises:
        UnknownName: an unknown system, or options for one that does not take part; the nearest names are given.
        InvalidType: a system has no such option, or is neither a Model nor a Mixer.
        InvalidValue: nobody takes part.
    """
    known = fitting(task)
    names: list[str] = []
    for name in settings.systems or task.spec.shortlist:
        names += sorted(n for n in known if n not in task.spec.baselines) if name == "all" else [name.strip()]
    names = list(dict.fromkeys([*names, *task.spec.baselines]))
    if not names:
        raise InvalidValue("no system takes part: name at least one.")
    everything = {e.name for kind in ("model", "mixer") for e in entries(kind)}
    published = {e.configuration: e.name for e in sizes("model")}
    for name in names:
        of = published.get(name, name)
        if ":" not in name and of not in everything:
            raise unknown_name("system", name, [*known, *(s for s, of in published.items() if of in known), "all"])
        if ":" not in name and of not in known:
            raise InvalidValue(f"system {name!r} cannot do the task {task.info.task!r}: leave it out.")
    chosen = [resolve(name) for name in names]
    for name, options in settings.options.items():
        if name not in names:
            raise unknown_name("system", name, names, f"The options of {name!r} belong to no contestant.")
        _check_system_options(next(c for c in chosen if c.name == name), options, task.info.task)
    clash = [a for a in names for b in names if a != b and folder_name(a) == folder_name(b)]
    if clash:
        raise InvalidValue(f"{' and '.join(clash)} would share a folder: compare them apart.")
    return chosen


def _check_system_options(contestant: Contestant, options: Mapping[str, Any], task: str) -> None:
    """A wrong option is the user's slip, to be told at once; a wrong value shows when the model is built."""
    target, around = contestant.target, contestant.around(task)
    if around is not None:
        own = network_options(around)
        options = {k: v for k, v in options.items() if k not in own}
    check_options(contestant.name, target, dict(options), partial=True)


def trains(contestant: Contestant) -> bool:
    """Whether there is anything to train; mixers always train."""
    return getattr(contestant.target.spec, "trains", True)


def untrained_share(contestant: Contestant) -> float:
    """The share of a trial's time that is kept for it where there is nothing to train."""
    return getattr(contestant.target, "untrained_share", Model.untrained_share)


def sweeps(contestant: Contestant, settings: Settings) -> bool:
    """Whether a learning rate must be chosen for it."""
    return trains(contestant) and contestant.name not in settings.recipes and len(settings.learning_rates) > 1


def jobs(chosen: Sequence[Contestant], settings: Settings) -> list[Job]:
    """All work in order: sweeps first, then trials seed by seed; a system without training runs once."""
    work = [Job("sweep", c.name) for c in chosen if sweeps(c, settings)]
    for seed in range(settings.seeds):
        work += [Job("trial", c.name, seed) for c in chosen if seed == 0 or trains(c)]
    return work


def worker_count(settings: Settings) -> int:
    """Trials at once: as many as there are cores for, unless told."""
    return settings.workers or max(1, usable_cores() // settings.threads)
