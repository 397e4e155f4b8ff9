"""Counting published sizes: what rounds to a printed number is equal to it, and what differs is found."""

from __future__ import annotations

import math

import pytest

from foveate.models.vision.table import Counted, Row, count, difference, rows, worst_difference


@pytest.mark.parametrize(
    ("counted", "printed", "expected"),
    [
        (28.49, 28, 0.0),
        (28.51, 28, 0.51 / 28),
        (28.49, 28.0, 0.49 / 28),
        (4.55, 4.5, 0.0),
        (4.4, 4.5, 0.1 / 4.5),
        (7.0, None, 0.0),
    ],
)
def test_a_difference_is_what_rounding_does_not_explain(counted, printed, expected):
    assert math.isclose(difference(counted, printed), expected, abs_tol=1e-12)


def test_a_row_says_what_differs():
    row = Row("tiny", 224, Counted(30_000_000, 4_500_000_000), 28.3, 4.5)
    assert row.differences == (pytest.approx(1.7 / 28.3), 0.0)


def test_counting_asks_for_a_model_of_images():
    with pytest.raises(TypeError, match="'timesnet' cannot be counted by pixels: it reads series"):
        count("timesnet")
    with pytest.raises(LookupError, match="unknown model 'no_such"):
        rows("no_such")
    assert math.isnan(worst_difference("timesnet")[0])
