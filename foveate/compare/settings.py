"""Everything a comparison can be told, in one place.

A settings object is made of plain values: it is written into the comparison's folder as ``config.toml`` and can be read
back from one. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InvalidType, InvalidValue, invalid, unknown_name
from .tracking import parse

#: Steps of a trial when no budget of any kind is given.
DEFAULT_STEPS = 200

#: Settings that a folder's finished trials were made with: going on in the folder under other ones is refused.
RULES = (
    "task",
    "steps",
    "tokens",
    "budget",
    "learning_rates",
    "sweep_share",
    "batch_size",
    "patience",
    "validate_every",
    "threads",
    "preset",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How one system is trained, see :meth:`Settings.rules`.

    Attributes:
        steps: of a trial; None under a time budget.
        batch_size, learning_rates, patience, validate_every: as in :class:`Settings`.
        options: of the system.
        recipe: facts of the published recipe that it is trained by; {}: its own or the default one.
    """

    steps: int | None
    batch_size: int
    learning_rates: tuple[float, ...]
    patience: int
    validate_every: int | None
    options: Mapping[str, Any]
    recipe: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to compare, under which rules, and where to put it.

    Attributes:
        task: registered name of the task (or ``package.module:Class`` of a Task of your own).
        data: options of the task's reader, such as the file, horizon and lookback.
        systems: contestants: models, mixers, ``package.module:Class``, or "all"; none: the task's shortlist. The
            task's baselines always join.
        options: options of single systems: ``{"dlinear": {"kernel_size": 13}}``.
        out: the comparison's folder.
        steps: budget of each trial in optimiser steps; :data:`DEFAULT_STEPS` if no budget is given.
        tokens: budget of each trial in training tokens instead; all systems read the same number.
        budget: seconds for the whole comparison instead; all trials get the same time.
        seeds: trials per system, with the seeds 0, 1, ...; a system without training needs one.
        learning_rates: the grid that every system's sweep tries.
        sweep_share: each of them is tried with this share of a trial's budget (of steps: at least 20).
        batch_size: samples per step.
        patience: a trial ends early after so many validations without improvement; 0: never.
        validate_every: steps between validations; None: a rule by sizes.
        workers: trials running at once; None: as many as there are cores for.
        threads: torch threads of each.
        memory_limit: MiB of resident memory a worker may hold; None: its share of 80 % of what is free.
        checkpoint_every: least seconds between checkpoints of a trial; 0: after every step.
        retry_failed: run failed trials again from their start.
        preset: "published": systems with a published recipe for this data set, told by the file's name, are trained by
            it (sizes, optimiser, learning rate, batches, passes, early stopping), the others as ever; the data is
            divided officially. "published:NAME" names the data set. None: the same rules for all.
        recipes: what a preset made of it, system by system, filled in by :func:`foveate.compare.run`.
        refit: train the winner once more on all data before it is shipped, where the task can.
        track: where to follow the comparison besides its folder: "csv", "tensorboard" or "mlflow", each perhaps with a
            place (``mlflow:http://localhost:5000``), see ``docs/tracking.md``.

    Raises:
        InvalidValue, InvalidType: an illegal value; the message names it and says what is legal.
    """

    task: str
    data: Mapping[str, Any] = field(default_factory=dict)
    systems: Sequence[str] = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    out: str = "comparison"
    steps: int | None = None
    tokens: int | None = None
    budget: float | None = None
    seeds: int = 3
    learning_rates: Sequence[float] = (1e-3, 3e-3, 1e-2)
    sweep_share: float = 0.1
    batch_size: int = 32
    patience: int = 5
    validate_every: int | None = None
    workers: int | None = None
    threads: int = 1
    memory_limit: float | None = None
    checkpoint_every: float = 5.0
    retry_failed: bool = False
    preset: str | None = None
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    refit: bool = True
    track: Sequence[str] = ()

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("systems", tuple(self.systems.split(",") if isinstance(self.systems, str) else self.systems))
        put("track", tuple(map(str, parse(self.track))))
        put("learning_rates", tuple(float(rate) for rate in self.learning_rates))
        put("out", str(self.out))
        put("data", {k: str(v) if isinstance(v, Path) else v for k, v in self.data.items()})
        given = [name for name in ("steps", "tokens", "budget") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InvalidValue(f"{' and '.join(given)} cannot be given together: choose one budget.")
        if not given:
            put("steps", DEFAULT_STEPS)
        if self.preset is not None and self.preset.partition(":")[0] != "published":
            raise invalid("preset", self.preset, "it must be 'published' or 'published:NAME', NAME being a data set")
        if self.preset is not None and self.budget is not None:
            raise InvalidValue("preset and budget cannot be given together: a published recipe has its own length.")
        for name in ("steps", "tokens", "seeds", "batch_size", "validate_every", "workers", "threads"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise invalid(name, value, "a positive whole number is needed")
        for name in ("budget", "memory_limit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise invalid(name, value, "a positive number is needed")
        if not 0 < self.sweep_share <= 1:
            raise invalid("sweep_share", self.sweep_share, "it must lie in (0, 1]")
        for name in ("patience", "checkpoint_every"):
            if getattr(self, name) < 0:
                raise invalid(name, getattr(self, name), "it cannot be negative")
        rates = self.learning_rates
        if not rates or min(rates) <= 0 or len(set(rates)) < len(rates):
            raise invalid("learning_rates", list(rates), "different positive numbers are needed, at least one")

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values that JSON and TOML can hold; what is None is left out."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: _plain(v) for k, v in values.items() if v is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from plain values, such as a TOML file's.

        Raises:
            UnknownName: there is no such setting; the nearest ones are given.
            InvalidType: the task is missing.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise unknown_name("setting", name, known)
        if "task" not in values:
            raise InvalidType("the settings name no task: add one, such as task = 'forecast'.")
        return cls(**values)

    def trial_steps(self, sample_tokens: int) -> int | None:
        """Optimiser steps of a trial; None under a time budget.

        Args:
            sample_tokens: ``Task.sample_tokens``.
        """
        if self.tokens is None:
            return self.steps
        steps = self.tokens // (self.batch_size * sample_tokens)
        if steps < 1:
            need = self.batch_size * sample_tokens
            raise invalid("tokens", self.tokens, f"one batch alone has {need} tokens")
        return steps

    def rules(self, system: str, sample_tokens: int) -> Rules:
        """How one system is trained: by the recipe on record for it, else as all are.

        Args:
            system: its name.
            sample_tokens: ``Task.sample_tokens``.
        """
        facts, options = self.recipes.get(system), self.options.get(system, {})
        if facts is None:
            return Rules(
                steps=self.trial_steps(sample_tokens),
                batch_size=self.batch_size,
                learning_rates=tuple(self.learning_rates),
                patience=self.patience,
                validate_every=self.validate_every,
                options=options,
                recipe={},
            )
        return Rules(
            steps=facts["steps"],
            batch_size=facts["batch_size"],
            learning_rates=(facts["learning_rate"],),
            patience=facts["patience"],
            validate_every=facts["validate_every"],
            options={**facts["options"], **options},
            recipe=facts,
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def sweep_steps(steps: int, share: float) -> int:
    """Steps that each learning rate of the sweep is tried for."""
    return min(steps, max(20, round(share * steps)))
