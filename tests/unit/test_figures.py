"""Figures as people read them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from foveate.pages import figures


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.31239, "0.3124"), (12.345, "12.35"), (1234.5, "1,234"), (3.1e-7, "3.1e-7"), (0, "0"), (None, "–"),
     (math.nan, "–"), (2e12, "2e12"), (-0.5, "-0.5000"), (0.99999, "1.0000")],
)  # fmt: skip
def test_significant(value: Any, text: str):
    assert figures.significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (950, "950"), (999.7, "1000"), (1234, "1.23k"), (12_345, "12.3k"), (402_816, "403k"), (999_600, "1.00M"),
     (1.2e6, "1.20M"), (4.56e10, "45.6G"), (7e15, "7000T"), (2.5, "2.5"), (math.inf, "–")],
)  # fmt: skip
def test_count(value: Any, text: str):
    assert figures.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.012, "0.0120"),
        (0.41, "0.410"),
        (9.8, "9.80"),
        (12.34, "12.3"),
        (123.4, "123"),
        (12345, "12,345"),
        (None, "–"),
    ],
)
def test_milliseconds(value: Any, text: str):
    assert figures.milliseconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7800, "2 h 10 min"),
     (273_600, "3 d 4 h"), (None, "–")],
)  # fmt: skip
def test_duration(value: Any, text: str):
    assert figures.duration(value) == text


def test_clock():
    assert [figures.clock(v) for v in (7, 185, 7800, None)] == ["0:07", "3:05", "2:10:00", "-:--"]


def test_one_choice_of_decimals_for_a_column():
    assert figures.decimals_for([0.3124, 1.5, None, 0]) == 4
    assert figures.decimals_for([123.4]) == 1
    assert figures.decimals_for([1e-9]) == 6
    assert figures.decimals_for([]) == 3
    assert figures.fixed(1234.5678, 2) == "1,234.57"
    assert figures.fixed(math.nan, 2) == "–"


def test_sparklines():
    assert figures.sparkline([1, 2, 3, 4, 5, 6, 7, 8]) == "▁▂▃▄▅▆▇█"
    assert figures.sparkline([5, 5, None, math.nan]) == "▄▄"
    assert figures.sparkline([]) == ""
    assert figures.sparkline(list(range(100)), width=4) == "▁▃▆█"


def test_plain_text():
    assert figures.plain("a\n b\t\x1b[2Jc\u202e") == "a b �[2Jc�"
    short = figures.plain("acme.models.temporal:GatedFusionNet", 20)
    assert len(short) == 20
    assert short.startswith("acme.m")
    assert short.endswith("tedFusionNet")


def test_lists_in_english():
    assert figures.english_list([]) == ""
    assert figures.english_list(["a"]) == "a"
    assert figures.english_list(["a", "b"]) == "a and b"
    assert figures.english_list(["a", "b", "c"]) == "a, b and c"
    assert figures.english_list(["a", "b", "c", "d"], most=3) == "a, b and 2 others"


@pytest.mark.parametrize(
    ("metric", "shown"),
    [
        *[("mse", "MSE"), ("smape", "SMAPE"), ("auc_pr", "AUC PR"), ("macro_f1", "macro F1"), ("pinball", "pinball")],
        *[("bits_per_byte", "bits per byte"), ("accuracy_at_512", "accuracy at 512"), ("exact", "exact")],
        *[("dice", "Dice"), ("iou", "IoU"), ("log_loss", "log loss"), ("dice(left_kidney)", "Dice(left_kidney)")],
    ],
)
def test_metrics_are_headings(metric, shown):
    assert figures.metric_name(metric) == shown
