"""Every registered mixer, plug-ins included, is held to its spec: one test for each check that the spec asks for."""

from __future__ import annotations

import pytest

from foveate.registry import Entry, entries

from .cases import MixerCase
from .checks import Check, checks_for
from .verdicts import judge

PAIRS = [(entry, one) for entry in entries("mixer") for one in checks_for("mixer", entry.spec)]


@pytest.mark.parametrize(("entry", "one"), PAIRS, ids=[f"{entry.name}-{one.name}" for entry, one in PAIRS])
def test_mixer(entry: Entry, one: Check) -> None:
    judge(one, MixerCase(entry.name, entry.load()))
