"""From reconstructions to a score per step, from scores to alarms, and what alarms and scores are worth.

A step's score is the squared error of its reconstruction, averaged over what was measured and over the windows that
cover it. Published scores of anomaly detection are mostly F1 after *point adjustment*: one alarm anywhere inside a
marked stretch counts as finding all of it, which lifts even random alarms (Kim et al., AAAI 2022, arXiv 2109.05257).
Here it stands beside the plain F1, and neither decides.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def window_starts(rows: int, window: int, stride: int) -> np.ndarray:
    """First rows of windows ``stride`` apart, int64; the last one ends with the series."""
    starts = np.arange(0, rows - window + 1, stride, dtype=np.int64)
    return starts if starts[-1] == rows - window else np.append(starts, rows - window)


def step_scores(
    reconstruct: Callable[[Tensor], Tensor],
    values: Tensor,
    observed: Tensor,
    starts: Tensor,
    window: int,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The score of every row.

    Args:
        reconstruct: windows ``(B, window, channels)`` to the same shape.
        values: ``(rows, channels)``, standardised, without NaN.
        observed: bool like ``values``: measured.
        starts: int64, first rows of the windows.
        batch_size: windows at a time.
        device: where ``reconstruct`` computes.

    Returns:
        float64 ``(rows,)``, NaN where no window covers a row or nothing was measured in it.
    """
    total, count = (torch.zeros(len(values), dtype=torch.float64) for _ in range(2))
    for first in starts.split(batch_size):
        at = first[:, None] + torch.arange(window)
        x, seen = values[at].to(device), observed[at].to(device)
        error = (reconstruct(x).double() - x.double()).square().where(seen, 0).sum(-1) / seen.sum(-1).clamp_min(1)
        total.index_add_(0, at.flatten(), error.flatten().cpu())
        count.index_add_(0, at.flatten(), torch.ones(at.numel(), dtype=torch.float64))
    return (total / count).where(observed.any(-1) & (count > 0), torch.nan)


def alarm_threshold(scores: Tensor, ratio: float) -> float:
    """The score that the share ``ratio`` of these scores exceeds, between neighbours by linear interpolation."""
    return float(np.quantile(scores.numpy(), 1 - ratio))


def segments(marks: Tensor) -> list[tuple[int, int]]:
    """Stretches of True in bool ``(rows,)``, as (first, behind the last)."""
    edges = torch.diff(marks.int(), prepend=torch.zeros(1, dtype=torch.int32), append=torch.zeros(1, dtype=torch.int32))
    return list(zip((edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist(), strict=True))


def point_adjusted(alarms: Tensor, marks: Tensor) -> Tensor:
    """Alarms, bool ``(rows,)``, where one inside a marked stretch raises all of the stretch."""
    adjusted = alarms.clone()
    for first, end in segments(marks):
        adjusted[first:end] |= alarms[first:end].any()
    return adjusted


def precision_recall_f1(alarms: Tensor, marks: Tensor) -> tuple[float, float, float]:
    """Of alarms against marks, bool ``(rows,)``; a precision without any alarm is 0."""
    hits, raised, marked = (int(part.sum()) for part in (alarms & marks, alarms, marks))
    return hits / max(raised, 1), hits / max(marked, 1), 2 * hits / max(raised + marked, 1)


def precision_at_marks(scores: Tensor, marks: Tensor) -> Tensor:
    """What every step adds to the average precision, float64 ``(rows,)``: the mean is the area under the
    precision-recall curve.

    At a marked step, rows per mark times the precision of all alarms at its score or above; 0 elsewhere. Steps of equal
    score are raised together.

    Args:
        scores: finite, float64 ``(rows,)``.
        marks: bool ``(rows,)``, at least one True.
    """
    order = scores.argsort(descending=True)
    ranked = scores[order]
    # Of equal scores all count as raised: the number of scores at or above each, from the last of its equals.
    raised = len(scores) - torch.searchsorted(ranked.flip(0).contiguous(), ranked, right=False)
    hits = marks[order].double().cumsum(0)[raised - 1]
    parts = torch.empty_like(scores)
    parts[order] = hits / raised
    return parts.where(marks, 0) * (len(scores) / int(marks.sum()))


def area_under_roc(scores: Tensor, marks: Tensor) -> float:
    """Probability that a marked step has a higher score than another, ties half; NaN if all or none are marked."""
    usual = scores[~marks].sort().values
    found = scores[marks]
    if not len(usual) or not len(found):
        return float("nan")
    below, equal_or_below = (torch.searchsorted(usual, found, right=right).double() for right in (False, True))
    return float((below + equal_or_below).mean() / (2 * len(usual)))


def top_places(scores: Tensor, count: int, apart: int) -> list[int]:
    """Rows of the highest scores, highest first, at most ``count``, more than ``apart`` rows from each other."""
    left, places = scores.clone().nan_to_num(nan=-torch.inf), []
    while len(places) < count and bool((left > -torch.inf).any()):
        place = int(left.argmax())
        places.append(place)
        left[max(0, place - apart) : place + apart + 1] = -torch.inf
    return places


def share_found(scores: Tensor, marks: Tensor, tolerance: int) -> float:
    """Share of the marked stretches within ``tolerance`` rows of one of the highest places, of which there are as many.

    With one stretch this is the rule of the UCR anomaly archive: 1 if the highest score lies near it, else 0.

    Args:
        scores: float64 ``(rows,)``, NaN where there is none.
        marks: bool ``(rows,)``, at least one True.
        tolerance: rows.
    """
    marked = segments(marks)
    places = top_places(scores, len(marked), tolerance)
    near = [any(first - tolerance <= place < end + tolerance for place in places) for first, end in marked]
    return sum(near) / len(near)
