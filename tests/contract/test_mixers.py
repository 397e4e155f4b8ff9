"""Every registered mixer, plug-ins included, is held to its spec: one test for each check that the spec asks for.

A spec promises for every choice of the options: each other value of a ``Literal`` option and of a bool is a case too.
"""

from __future__ import annotations

import typing

import pytest

from foveate.registry import Entry, entries

from .cases import MixerCase, variants
from .checks import Check, checks_for
from .verdicts import judge, marks

MIXERS = entries("mixer")
PAIRS = [
    pytest.param(entry, one, id=f"{entry.name}-{one.name}", marks=marks(one))
    for entry in MIXERS
    for one in checks_for("mixer", entry.spec)
]
VARIANTS = [
    pytest.param(case, one, id=f"{case.name}-{one.name}", marks=marks(one, variant=True))
    for entry in MIXERS
    for case in variants(MixerCase(entry.name, entry.load()))
    for one in checks_for("mixer", case.spec)
    if not (one.once or one.slow_start)
]


@pytest.mark.parametrize(("entry", "one"), PAIRS)
def test_mixer(entry: Entry, one: Check) -> None:
    judge(one, MixerCase(entry.name, entry.load()))


@pytest.mark.parametrize(("case", "one"), VARIANTS)
def test_variant(case: MixerCase, one: Check) -> None:
    judge(one, case)


@pytest.mark.parametrize("entry", MIXERS, ids=lambda entry: entry.name)
def test_choices_are_listed_in_the_type(entry: Entry) -> None:
    hints = typing.get_type_hints(entry.load().__init__)
    bare = [name for name, hint in hints.items() if str in (hint, *typing.get_args(hint))]
    assert not bare, f"{', '.join(bare)}: a str is a choice: list the legal values in a Literal, and each is tested"
