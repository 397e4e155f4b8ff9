"""How the learning rate moves: over a share of the budget, or from one pass over the data to the next."""

from __future__ import annotations

import math
from collections.abc import Callable

#: Share of a stage in which the learning rate climbs to its peak.
WARM_UP = 0.05


def learning_rate_factor(fraction: float) -> float:
    """Share of the peak learning rate after ``fraction`` of the stage: linear warm-up under half a cosine."""
    # Not from 0: the first step would be lost.
    ramp = min(1.0, max(fraction, WARM_UP / 25) / WARM_UP)
    return ramp * 0.5 * (1.0 + math.cos(math.pi * min(fraction, 1.0)))


def halved(epoch: int) -> float:
    """``type1`` of Informer and Time-Series-Library: two passes at the full rate, then half of it after each."""
    return 0.5 ** max(0, epoch - 1)


def tenth_off(epoch: int) -> float:
    """``type3`` of PatchTST: four passes at the full rate, then a tenth less after each."""
    return 0.9 ** max(0, epoch - 3)


def constant(epoch: int) -> float:
    """The same rate throughout."""
    return 1.0


#: Schedules that a published recipe can name: pass over the data, from 0 on, to share of the peak learning rate.
BY_EPOCH: dict[str, Callable[[int], float]] = {"halved": halved, "tenth_off": tenth_off, "constant": constant}
