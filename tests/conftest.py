"""What all tests share."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(autouse=True, scope="module")
def what_stays_is_not_searched_for_garbage() -> None:
    """Thousands of tests, and what compilers remember, make millions of objects that stay to the end: looking through
    all of them again whenever garbage is collected took the later tests several times as long as alone."""
    gc.collect()
    gc.freeze()
