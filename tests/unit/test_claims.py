"""Every claim is a test; what trains, compares times or takes long runs with ``-m slow``."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

import foveate
import foveate.claims
from foveate.catalog.results import read_results
from foveate.claims import KINDS, Claim, Measurement, claim, claims_of
from foveate.sources import Check, scan_claims

ALL = claims_of()
FILES = sorted(Path(foveate.claims.__file__).parent.glob("*[!_].py"))


#: Seconds that each took when its published result was measured, and those from which on it is slow.
TOOK = {(slug, one.check): one.seconds for slug, system in read_results().items() for one in system.claims}
LONG = 2.0


def _marks(entry: Claim) -> list[pytest.MarkDecorator]:
    slow = entry.kind == "learned" or entry.timed or TOOK.get((entry.slug, entry.name), 0.0) > LONG
    return [pytest.mark.slow] if slow else []


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(c, id=f"{c.slug}-{c.name}", marks=_marks(c))
        for c in ALL
        if c.kind in ("exact", "scaling", "learned")
    ],
)
def test_claim_holds(entry):
    torch.manual_seed(0)
    found = entry.check()
    if found.detail.startswith("not measured"):
        pytest.skip(found.detail)
    assert found.passed, f"{entry.says}: measured {found.value}, against {found.threshold}. {found.detail}"


#: What a docstring must say: "Seen failing", perhaps what came (in brackets), and with what broken.
SEEN_FAILING = re.compile(r"\bSeen failing(?: \(.+?\))? (?:with|without|when|after|at|untrained)\b")


def described(entry: Check) -> str:
    """What is missing in a claim's words; "" if nothing is."""
    about = " ".join(entry.about.split())
    if not entry.says.endswith("."):
        return "its `says` does not end with a full stop"
    if not about:
        return "its check has no docstring"
    if entry.kind != "needs-pretrained" and not SEEN_FAILING.search(about):
        return "its docstring does not say how it was seen failing: 'Seen failing with the mechanism broken so.'"
    return ""


def test_every_claim_is_described_and_says_how_it_was_seen_failing():
    assert ALL, "no claims were found"
    found = {f"{entry.slug}.{entry.name}": described(entry) for file in FILES for entry in scan_claims(file)}
    assert not {name: missing for name, missing in found.items() if missing}


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({"says": "It is fast"}, "full stop"),
        ({"about": ""}, "no docstring"),
        ({"about": "Measures it."}, "seen failing"),
        ({"about": "Seen failing."}, "seen failing"),
        ({"about": "Not seen failing yet."}, "seen failing"),
        ({"about": "Seen failing (0.3)."}, "seen failing"),
        ({"about": "Two sizes. Seen failing (exp(-4)) with\n    one step left out."}, ""),
        ({"kind": "needs-pretrained", "about": "Nothing is measured."}, ""),
    ],
)
def test_what_a_description_lacks_is_named(change, missing):
    whole = Check("dlinear", "a", "exact", "It is fast.", about="Seen failing with a loop.")
    found = described(dataclasses.replace(whole, **change))
    assert missing in found
    assert bool(found) == bool(missing)


def test_claims_are_of_the_system_their_file_is_named_after():
    for file in FILES:
        found = {c.slug for c in scan_claims(file)}
        if file.name.startswith("_"):  # a part of a system's claims, or what several share
            assert all(file.stem.startswith(f"_{slug}_") for slug in found), f"{file.name} has claims of others"
            continue
        foveate.get_system(file.stem)  # a file of claims whose system has no record is named
        assert found == {file.stem}, f"{file.name} has claims of others, or none"


def test_names_of_checks_are_unique():
    names = [(c.slug, c.name) for file in FILES for c in scan_claims(file)]
    assert len(set(names)) == len(names), {name for name in names if names.count(name) > 1}


def test_a_second_check_of_the_same_name_is_refused(monkeypatch):
    monkeypatch.setattr(foveate.claims, "_claims", {})

    def register(make):
        return claim("toy", kind="exact", says="?")(make())

    def first():
        def check(): ...

        return check

    def second():
        def check(): ...

        return check

    register(first)
    register(first)  # its module imported anew
    with pytest.raises(ValueError, match="the claim 'check' of 'toy' is registered twice"):
        register(second)


def test_nan_never_passes():
    assert not Measurement.at_most(float("nan"), 1).passed
    assert not Measurement.at_least(float("nan"), 1).passed


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind='proved' is not a kind of claim: legal are " + ", ".join(KINDS)):
        claim("x", kind="proved", says="?")  # type: ignore[arg-type]
