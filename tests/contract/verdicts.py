"""From a check's result to a test's verdict, known failures considered."""

from __future__ import annotations

from typing import Any

import pytest

from .checking import Check
from .checks import run_check
from .known_failures import KNOWN_FAILURES


def judge(one: Check, case: Any) -> None:
    """Fail the test unless the check passes; a declared failure must fail."""
    result = run_check(one, case)
    reason = KNOWN_FAILURES.get((one.kind, case.name, one.name))
    if reason is None:
        assert result.status == "passed", f"{case.name} {result.status} {one.name}: {result.message}"
    elif result.status == "passed":
        pytest.fail(f"{case.name} passes {one.name}, though it is declared to fail: strike it from known_failures.py")
    else:
        pytest.xfail(f"{reason} ({result.message})")


def marks(one: Check, variant: bool = False, other_task: bool = False) -> list[pytest.MarkDecorator]:
    """The marks of a check's tests.

    Args:
        one: the check.
        variant: the instance has an option of its own.
        other_task: the model was tested on another task, from which it differs in its head: what takes seconds is
            asked again with ``-m slow`` alone.
    """
    nightly = one.nightly or (variant and one.variants_nightly) or (other_task and one.slow_start)
    return [pytest.mark.slow] if nightly else []
