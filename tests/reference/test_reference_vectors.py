"""Every recorded case of official code, values and gradients, through its system's adapter."""

from __future__ import annotations

from pathlib import Path

import cases
import pytest
import torch


def test_official_vectors(adapter_file: Path, case_file: Path) -> None:
    adapter = cases.load_adapter(adapter_file)
    case = cases.Case.load(case_file)
    torch.manual_seed(0)
    outputs, grads = adapter.run(case)
    tolerance = getattr(adapter, "TOLERANCE", cases.DEFAULT_TOLERANCE)
    assert tolerance <= cases.DEFAULT_TOLERANCE
    wrong = cases.mismatches("output", case.outputs, outputs, tolerance)
    wrong += cases.mismatches("gradient", case.grads, grads, tolerance)
    assert not wrong, f"{case.slug}/{case.name} ({case.official_class}): " + "; ".join(wrong)


def test_official_scores(adapter_file: Path, json_file: Path) -> None:
    wrong = cases.disagreements(cases.load_adapter(adapter_file), json_file)
    assert not wrong, "; ".join(wrong)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "did not return it"),
        ({"y": torch.ones(1, 2)}, "shape (1, 2), recorded (2,)"),
        ({"y": torch.tensor([1.0, 100.02])}, "differs by 2.00e-04"),
        ({"y": torch.tensor([float("nan"), 100.0])}, "differs by nan"),
    ],
)
def test_comparison_can_fail(given: dict[str, torch.Tensor], says: str) -> None:
    recorded = {"y": torch.tensor([1.0, 100.0])}
    found = cases.mismatches("output", recorded, given, 1e-4)
    assert len(found) == 1
    assert says in found[0]
    assert not cases.mismatches("output", recorded, {"y": recorded["y"] + 1e-3, "extra": torch.ones(1)}, 1e-4)


def test_integers_must_be_equal() -> None:
    recorded = {"i": torch.tensor([1, 2, 3])}
    assert "1 of 3" in cases.mismatches("output", recorded, {"i": torch.tensor([1, 2, 4])}, 1e-4)[0]
