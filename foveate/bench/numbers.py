"""Figures out of timed calls: medians, quartiles, and ratios with their uncertainty."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from typing import Any

from ..measure.latency import quantile

#: Resamples of the bootstrap, and the share of them that an interval of a ratio holds.
RESAMPLES, INSIDE = 400, 0.9


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles in milliseconds, and the number of calls."""
    ordered = sorted(1e3 * s for s in seconds)
    return {
        "median_ms": statistics.median(ordered),
        "low_ms": quantile(ordered, 0.25),
        "high_ms": quantile(ordered, 0.75),
        "calls": len(ordered),
    }


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> tuple[float, float, float]:
    """How many times as long as ours: the ratio of medians, with the ends of its 90 % bootstrap interval.

    Resampling is seeded: the same times give the same interval.
    """
    draw = random.Random(0)

    def median(times: Sequence[float]) -> float:
        return statistics.median(draw.choices(times, k=len(times)))

    # A median of a hundred calls is as sure as one of thousands, and resampling them all would take minutes.
    theirs, ours = _thinned(theirs), _thinned(ours)
    ratios = sorted(median(theirs) / median(ours) for _ in range(RESAMPLES))
    middle = statistics.median(theirs) / statistics.median(ours)
    return middle, quantile(ratios, (1 - INSIDE) / 2), quantile(ratios, (1 + INSIDE) / 2)


def _thinned(times: Sequence[float], most: int = 200) -> Sequence[float]:
    """Every n-th time, in order, so that a drift stays in."""
    return times[:: -(-len(times) // most)] if len(times) > most else times
