"""Every registered model, and what a network makes of every mixer, is held to its spec."""

from __future__ import annotations

import pytest

from foveate.models.language.language_model import LanguageModel
from foveate.models.mixer_net import MixerNet
from foveate.registry import Entry, entries

from .checks import Check, checks_for
from .model_cases import EXAMPLES, ModelCase, examples_of, mixers_of, of_mixer
from .verdicts import judge, marks

MODELS = [
    pytest.param(entry, example, one, id=f"{entry.name}-{example}-{one.name}", marks=marks(one, other_task=number > 0))
    for entry in entries("model")
    for number, example in enumerate(examples_of(entry.spec))
    if example in EXAMPLES
    for one in checks_for("model", entry.spec)
]
MIXERS = [
    pytest.param(entry, task, one, id=f"{entry.name}-{task}-{one.name}", marks=marks(one))
    for task in (*MixerNet.spec.tasks, *LanguageModel.spec.tasks)
    if task in EXAMPLES
    for entry in mixers_of(task)
    for one in checks_for("model", of_mixer(entry.name, entry.spec, task).spec)
]


@pytest.mark.parametrize(("entry", "example", "one"), MODELS)
def test_model(entry: Entry, example: str, one: Check) -> None:
    judge(one, ModelCase(entry.name, entry.load(), entry.spec, example))


@pytest.mark.parametrize(("entry", "task", "one"), MIXERS)
def test_mixer_as_a_model(entry: Entry, task: str, one: Check) -> None:
    judge(one, of_mixer(entry.name, entry.spec, task))


def test_everything_has_an_example() -> None:
    needed = {e.spec.models_of or e.name for e in entries("task")} | set(MixerNet.spec.tasks)
    needed.update(name for e in entries("model") for name in examples_of(e.spec))
    missing = ", ".join(sorted(needed - set(EXAMPLES)))
    assert not missing, f"tests/contract/examples has no file for {missing}: without an example nothing is tested"
