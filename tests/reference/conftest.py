"""Finds the recorded cases; how to write an adapter for a system is said in ``cases.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import cases


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per adapter and recorded file; an adapter without any gives one skipped test that says why."""
    for fixture, ending, function in (("case_file", "safetensors", "run"), ("json_file", "json", "answers")):
        if fixture not in metafunc.fixturenames:
            continue
        root = cases.root()
        parameters = []
        for slug, adapter in cases.adapters().items():
            if f"\ndef {function}(" not in adapter.read_text(encoding="utf-8"):
                continue
            files = sorted((root / slug).glob(f"*.{ending}"))
            parameters += [pytest.param(adapter, file, id=f"{slug}-{file.stem}") for file in files]
            if not files:
                why = f"no recorded vectors in {root / slug}: set {cases.VARIABLE} to their folder"
                parameters.append(pytest.param(adapter, None, id=slug, marks=pytest.mark.skip(reason=why)))
        metafunc.parametrize(("adapter_file", fixture), parameters)
