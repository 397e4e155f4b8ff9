"""Scores, alarms and what they are worth: against definitions by hand and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foveate.tasks.detect_anomalies.scores import (
    alarm_threshold,
    area_under_roc,
    point_adjusted,
    precision_at_marks,
    precision_recall_f1,
    segments,
    share_found,
    step_scores,
    top_places,
    window_starts,
)


def drawn(seed, rows=200, ties=False):
    """Random scores and marks in stretches."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows, generator=generator, dtype=torch.float64)
    scores = (scores * 7).round() if ties else scores
    marks = torch.zeros(rows, dtype=torch.bool)
    for at in torch.randint(0, rows - 9, (4,), generator=generator).tolist():
        marks[at : at + 9] = True
    return scores, marks


def test_windows_cover_everything_and_the_last_one_ends_with_the_series():
    assert window_starts(10, 4, 3).tolist() == [0, 3, 6]
    assert window_starts(11, 4, 3).tolist() == [0, 3, 6, 7]
    assert window_starts(4, 4, 2).tolist() == [0]


def test_a_score_is_the_mean_error_over_windows_and_measured_values():
    values = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]])
    observed = torch.ones(4, 2, dtype=torch.bool)
    observed[1, 1] = observed[3] = False
    starts = torch.tensor([0, 1])
    # The first window is answered by zeros, the second by its truth plus one.
    answers = [torch.zeros(1, 3, 2), values[1:][None] + 1]
    scores = step_scores(lambda x: answers.pop(0), values, observed, starts, 3, batch_size=1)
    assert scores.dtype == torch.float64
    assert scores[:3].tolist() == [(1 + 100) / 2, (4 + 1) / 2, (9 + 900) / 2 / 2 + 1 / 2]
    assert scores[3].isnan()
    alone = step_scores(lambda x: x * 0, values, observed, starts[1:], 3, batch_size=1)
    assert alone[0].isnan()
    assert alone[1] == 4


def test_the_threshold_leaves_the_share_above_it():
    scores = torch.arange(1000, dtype=torch.float64).flip(0)
    assert int((scores > alarm_threshold(scores, 0.01)).sum()) == 10
    assert alarm_threshold(torch.tensor([0.0, 1.0], dtype=torch.float64), 0.25) == 0.75


def test_segments():
    marks = torch.tensor([1, 1, 0, 1, 0, 0, 1], dtype=torch.bool)
    assert segments(marks) == [(0, 2), (3, 4), (6, 7)]
    assert segments(~torch.ones(3, dtype=torch.bool)) == []


def test_point_adjustment_by_hand():
    marks = torch.tensor([0, 1, 1, 1, 0, 1, 1, 0], dtype=torch.bool)
    alarms = torch.tensor([1, 0, 0, 1, 0, 0, 0, 0], dtype=torch.bool)
    assert point_adjusted(alarms, marks).tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert alarms.tolist() == [1, 0, 0, 1, 0, 0, 0, 0]
    assert precision_recall_f1(alarms, marks) == (0.5, 0.2, 2 / 7)
    assert precision_recall_f1(point_adjusted(alarms, marks), marks) == (0.75, 0.6, 6 / 9)
    nothing = torch.zeros(8, dtype=torch.bool)
    assert precision_recall_f1(nothing, marks) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("seed", range(20))
def test_adjusting_only_adds_hits(seed):
    scores, marks = drawn(seed)
    alarms = scores > 0.9
    raw, adjusted = precision_recall_f1(alarms, marks), precision_recall_f1(point_adjusted(alarms, marks), marks)
    assert all(a >= r for a, r in zip(adjusted, raw, strict=True))


def brute_average_precision(scores, marks):
    total = 0.0
    for score in scores[marks].tolist():
        raised = scores >= score
        total += float(marks[raised].double().mean())
    return total / int(marks.sum())


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_areas_are_their_definitions(seed, ties):
    scores, marks = drawn(seed, ties=ties)
    parts = precision_at_marks(scores, marks)
    assert float(parts.mean()) == pytest.approx(brute_average_precision(scores, marks), abs=1e-12)
    assert not parts[~marks].any()
    pairs = scores[marks][:, None] - scores[~marks][None]
    wins = (pairs > 0).double() + (pairs == 0).double() / 2
    assert area_under_roc(scores, marks) == pytest.approx(float(wins.mean()), abs=1e-12)


def test_areas_at_their_ends():
    marks = torch.tensor([0, 0, 1, 1], dtype=torch.bool)
    rising = torch.arange(4, dtype=torch.float64)
    assert float(precision_at_marks(rising, marks).mean()) == 1
    assert area_under_roc(rising, marks) == 1
    assert area_under_roc(-rising, marks) == 0
    assert float(precision_at_marks(torch.zeros(4).double(), marks).mean()) == 0.5
    assert area_under_roc(torch.zeros(4).double(), marks) == 0.5
    assert np.isnan(area_under_roc(rising, ~torch.zeros(4, dtype=torch.bool)))


def test_places_keep_apart_and_nan_is_none():
    scores = torch.tensor([1.0, 9.0, 8.0, torch.nan, 7.0, 2.0]).double()
    assert top_places(scores, 3, 1) == [1, 4]  # what is left lies beside these two
    assert top_places(scores, 2, 0) == [1, 2]
    assert top_places(scores, 9, 2) == [1, 4]


def test_one_stretch_follows_the_rule_of_the_archive():
    marks = torch.zeros(1000, dtype=torch.bool)
    marks[500:512] = True
    for place, found in ((399, 0), (400, 1), (505, 1), (611, 1), (612, 0)):
        scores = torch.zeros(1000, dtype=torch.float64)
        scores[place] = 1
        assert share_found(scores, marks, 100) == found, place


def test_several_stretches_have_as_many_places():
    marks = torch.zeros(100, dtype=torch.bool)
    marks[10:12] = marks[50:52] = True
    scores = torch.zeros(100, dtype=torch.float64)
    scores[11], scores[12], scores[55] = 5, 4, 3
    assert share_found(scores, marks, 5) == 1  # the second place is not the neighbour of the first
    scores[90] = 3.5
    assert share_found(scores, marks, 5) == 0.5  # and there is no third
