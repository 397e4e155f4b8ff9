"""Scales, ticks, placing of labels, and charts of awkward values."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import pytest

from foveate.pages.charts import Line, Point, forecast_panel, line_chart, scatter, strip, time_ticks
from foveate.pages.scales import Box, Scale, fit_scale, linear_ticks, log_ticks, place_labels, spread_apart


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 7.0), (0.3121, 0.3124), (1e5, 9e5), (-1e-7, 2e-7)])
def test_linear_ticks_are_round_and_inside(low: float, high: float):
    ticks = linear_ticks(low, high, 5)
    assert 3 <= len(ticks) <= 8
    assert all(low - 1e-9 * abs(low) <= t <= high + 1e-9 * abs(high) for t in ticks)
    texts = [text for _, text in Scale(low, high, 0, 1).ticks()]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(("low", "high"), [(0.01, 20.0), (0.28, 1.1), (1.0, 1e8), (3.1, 3.3), (1e-6, 1e-2)])
def test_log_ticks_are_few_different_and_inside(low: float, high: float):
    ticks = log_ticks(low, high, 5)
    assert 2 <= len(ticks) <= 8
    assert all(low * 0.999999 <= value <= high * 1.000001 for value, _ in ticks)
    assert len({text for _, text in ticks}) == len(ticks)


def test_scales_keep_their_ends():
    for log in (False, True):
        scale = fit_scale([2.0, 8.0], 100, 0, log=log)
        assert scale(scale.low) == pytest.approx(100)
        assert scale(scale.high) == pytest.approx(0)
        assert 0 < scale(8.0) < scale(2.0) < 100
    same = fit_scale([5.0, 5.0], 0, 100)
    assert 0 < same(5.0) < 100
    assert 0 < fit_scale([0.0], 0, 100)(0.0) < 100


@pytest.mark.parametrize(
    "wishes", [[10, 11, 12, 50], [0, 0, 0, 0], [100, 99, 98], [50], list(range(0, 100, 9)), [30, 90, 31, 89]]
)
def test_labels_are_spread_apart_in_order(wishes: list[float]):
    placed = spread_apart(wishes, 10, 0, 100)
    ordered = sorted(zip(wishes, placed, strict=True))
    assert all(b[1] - a[1] >= min(10, 100 / max(len(wishes) - 1, 1)) - 1e-9 for a, b in itertools.pairwise(ordered))
    assert all(-1e-9 <= p <= 100 + 1e-9 for p in placed)


def test_labels_with_room_stay_where_they_wish():
    assert spread_apart([10, 40, 80], 10, 0, 100) == [10, 40, 80]
    assert spread_apart([50, 50], 10, 0, 100) == [45, 55]


def test_point_labels_do_not_cover_each_other():
    points = [(100.0 + 3 * i, 100.0 + 9 * (i % 3)) for i in range(7)]
    frame = Box(0, 0, 540, 340)
    labels = [label for label in place_labels(points, ["softmax_attention"] * 7, frame, 13) if label]
    covered = sum(a.box.overlap(b.box) for a, b in itertools.combinations(labels, 2))
    assert covered == 0
    assert all(label.box.outside(frame) == 0 for label in labels)
    assert place_labels(points[:1], [""], frame, 13) == [None]


def numbers(drawing: str) -> list[float]:
    coordinates = re.findall(r' (?:x|y|cx|cy|x1|x2|y1|y2)="([^"]+)"', drawing)
    paths = re.findall(r' (?:d|points)="([^"]+)"', drawing)
    return [float(c) for c in coordinates] + [float(n) for p in paths for n in re.findall(r"-?[\d.]+", p)]


def words() -> dict[str, Any]:
    return {"title": "t", "description": "d", "x_label": "x", "y_label": "y"}


def test_lines_survive_gaps_infinities_and_zeros():
    lines = [
        Line("a", [(0, None), (1, 2.0), (2, math.inf), (3, 1.0), (4, math.nan)]),
        Line("b", [(0, 0.0), (4, 400.0)], tone=2),
        Line("c", []),
    ]
    for log in (None, True, False):
        drawing = line_chart(lines, **words(), log=log)
        assert all(math.isfinite(n) and -200 < n < 800 for n in numbers(drawing))
    assert line_chart([Line("a", [(0, None)])], **words()) == ""
    assert line_chart([], **words()) == ""
    assert 'd="M' in line_chart([Line("flat", [(0, 1.0)])], **words())


def test_a_missing_value_lifts_the_pen():
    drawing = line_chart([Line("a", [(0, 1.0), (1, None), (2, 2.0)])], **words())
    path = re.search(r'class="line tone-1" d="([^"]+)"', drawing)
    assert path is not None
    assert path[1].count("M") == 2


def test_the_front_is_drawn_through_its_points_and_worse_baselines_stand_at_the_edge():
    points = [
        Point("fast", 1.0, 0.40, front=True),
        Point("good", 10.0, 0.30, tone=2, front=True),
        Point("bad", 20.0, 0.35, tone=3),
        Point("naive", 0.5, 9.0, tone=0, front=True, baseline=True),
    ]
    drawing = scatter(points, **words())
    assert "naive ↑9.00" in drawing
    assert drawing.count('class="front"') == 1
    assert all(math.isfinite(n) and -50 < n < 600 for n in numbers(drawing))
    assert "naive ↓0.100" in scatter(
        [*points[:3], Point("naive", 0.5, -3.0 + 3.1, tone=0, baseline=True)], **words(), higher_is_better=True
    )
    assert scatter([], **words()) == ""


def test_costs_of_zero_stand_at_the_edge_of_a_logarithmic_axis():
    drawing = scatter([Point("none", 0.0, 1.0), Point("some", 1.0, 1.1), Point("many", 1e6, 1.2)], **words())
    assert "log scale" in drawing
    assert all(math.isfinite(n) and -50 < n < 600 for n in numbers(drawing))


def test_bands_of_a_forecast():
    low, high = [1.0, None, 2.0], [5.0, 6.0, math.nan]
    words: dict[str, Any] = {"title": "t", "description": "d", "tone": 3}
    drawing = forecast_panel([1, 2], [3, 3, 3], [3, 4, 4], [], **words, bands=[(low, high), ([None], [None])])
    (path,) = re.findall(r'<path class="band tone-3" d="([^"]*)"/>', drawing)
    assert (path[0], path[-1], path.count("L")) == ("M", "Z", 3), "around what is known, and closed"
    assert 'class="band' not in forecast_panel([1, 2], [3], [3], [], **words)


def test_forecast_panels():
    times = [f"2024-01-{d:02d}T00:00:00" for d in range(1, 11)]
    drawing = forecast_panel([1, None, 3, 4, 5, 6], [7, 8, 9, 9], [7, 7, 7, None], times, title="t", description="d")
    assert drawing.count("2024-01-") == 3
    assert all(math.isfinite(n) for n in numbers(drawing))
    assert forecast_panel([None], [None], [math.nan], [], title="t", description="d") == ""
    assert forecast_panel([], [1.0], [2.0], [], title="t", description="d")


def test_time_ticks_are_as_short_as_they_can_be_told():
    days = [f"2024-02-{d:02d}" for d in range(1, 5)]
    assert [t for _, t in time_ticks(days, 2, 4)] == ["2024-02-01", "2024-02-03", "2024-02-04"]
    hours = [f"2024-02-01T{h:02d}:00:00" for h in range(4)]
    assert [t for _, t in time_ticks(hours, 2, 4)] == ["02-01 00:00", "02-01 02:00", "02-01 03:00"]
    assert [t for _, t in time_ticks([], 2, 4)] == ["-1", "1", "2"]
    assert time_ticks([], 0, 0) == []


def test_strips_hold_values_outside_their_range():
    for value in (-5.0, 0.5, 99.0):
        assert all(0 <= n <= 100 for n in numbers(strip(value, 0.2, 0.0, 1.0, 1)))
    assert all(math.isfinite(n) for n in numbers(strip(1.0, None, 1.0, 1.0, 1)))
