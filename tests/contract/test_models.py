"""Every registered model, and the forecaster that MixerNet makes of every mixer, is held to its spec."""

from __future__ import annotations

import pytest

from foveate.registry import Entry, entries

from .checks import Check, checks_for
from .model_cases import EXAMPLES, ModelCase, of_mixer
from .verdicts import judge

MODELS = [
    (entry, task, one)
    for entry in entries("model")
    for task in entry.spec.tasks
    for one in checks_for("model", entry.spec)
]
MIXERS = [
    (entry, one)
    for entry in entries("mixer")
    if 1 in entry.spec.ranks
    for one in checks_for("model", of_mixer(entry.name, entry.spec).spec)
]


@pytest.mark.parametrize(("entry", "task", "one"), MODELS, ids=[f"{e.name}-{t}-{c.name}" for e, t, c in MODELS])
def test_model(entry: Entry, task: str, one: Check) -> None:
    assert task in EXAMPLES, f"model_cases.py has no example of the task {task!r}: without one nothing is tested"
    judge(one, ModelCase(entry.name, entry.load(), entry.spec, task))


@pytest.mark.parametrize(("entry", "one"), MIXERS, ids=[f"{e.name}-{c.name}" for e, c in MIXERS])
def test_mixer_as_a_model(entry: Entry, one: Check) -> None:
    judge(one, of_mixer(entry.name, entry.spec))


def test_every_task_has_an_example() -> None:
    missing = {task.name for task in entries("task")} - set(EXAMPLES)
    assert not missing, f"model_cases.py needs an example of {', '.join(sorted(missing))}"
