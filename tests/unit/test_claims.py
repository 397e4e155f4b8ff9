"""Every claim is a test; what trains for long, or compares times, runs with ``-m slow``."""

from __future__ import annotations

import pytest
import torch

from foveate.claims import KINDS, Claim, Measurement, claim, claims_of

ALL = claims_of()


def _marks(entry: Claim) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if entry.kind == "learned" or entry.timed else []


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


def test_every_claim_is_described_and_says_how_it_was_seen_failing():
    assert ALL, "no claims were found"
    for entry in ALL:
        assert entry.says.endswith("."), entry
        assert entry.check.__doc__, f"{entry.slug}.{entry.name} has no docstring"


def test_nan_never_passes():
    assert not Measurement.at_most(float("nan"), 1).passed
    assert not Measurement.at_least(float("nan"), 1).passed


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind='proved' is not a kind of claim: legal are " + ", ".join(KINDS)):
        claim("x", kind="proved", says="?")  # type: ignore[arg-type]
