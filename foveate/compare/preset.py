"""``--preset published``: who is trained by a published recipe, and what that recipe comes to on this data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ..mixers.base import Mixer
from ..models.build import Contestant
from ..tasks.base import Task
from ..tasks.known_data import SPLIT_BY_ROWS, known_data
from .settings import Settings


def with_official_split(settings: Settings) -> Settings:
    """The settings with the data set's official split, unless the user gave one.

    Raises:
        FoveateError: the preset's data set is unknown.
    """
    if settings.preset is None:
        return settings
    known, data = known_data(settings.preset, settings.data.get("source")), dict(settings.data)
    own = data.get("split") is not None or data.get("windows") is not None
    if known.split is None or own or settings.task not in SPLIT_BY_ROWS:
        return settings
    return dataclasses.replace(settings, data={**data, "split": known.split})


def with_recipes(settings: Settings, task: Task, chosen: Sequence[Contestant]) -> Settings:
    """The settings with the published recipe of every contestant that has one for this data set."""
    if settings.preset is None:
        return settings
    dataset = known_data(settings.preset, settings.data.get("source")).name
    found = {c.name: _recipe(c, task, dataset) for c in chosen}
    return dataclasses.replace(settings, recipes={name: facts for name, facts in found.items() if facts})


def _recipe(contestant: Contestant, task: Task, dataset: str) -> dict[str, Any] | None:
    """Facts of the recipe as plain values, with the steps it comes to; None where there is none."""
    target = contestant.target
    published = None if issubclass(target, Mixer) else target.published(task.info, dataset)
    if published is None:
        return None
    samples = task.size("train")
    batch_size = min(published.batch_size, samples)
    batches = samples // batch_size
    facts = {**dataclasses.asdict(published), "options": dict(published.options), "batch_size": batch_size}
    facts |= {"dataset": dataset, "steps": published.epochs * batches, "validate_every": batches}
    return {name: value for name, value in facts.items() if value is not None}
