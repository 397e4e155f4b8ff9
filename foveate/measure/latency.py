"""How long one call of each of several systems takes, measured side by side.

Timing one system after the other compares the machine's moods: clocks, caches and neighbours drift over seconds. Here
the systems take turns in short slices, so that a drift hits all of them alike and the medians stay comparable. Only
single calls are timed; nothing else runs meanwhile in this process (the garbage collector included).
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import invalid

#: Slices per system. More would follow a drift more closely, but leave fewer warm calls in a slice.
ROUNDS = 12
#: Every system is timed at least this often, however slow it is.
MINIMUM_CALLS = 3


@dataclass(frozen=True, slots=True)
class Latency:
    """Times of single calls, in milliseconds.

    Attributes:
        median: half of the calls were faster.
        low, high: a tenth of the calls were faster than ``low``, a tenth slower than ``high``.
        calls: number of calls timed.
    """

    median: float
    low: float
    high: float
    calls: int

    def as_json(self) -> dict[str, float]:
        """The form in ``leaderboard.json``: median, low and high."""
        return {"median": self.median, "low": self.low, "high": self.high}


def quantile(ordered: list[float], q: float) -> float:
    """The quantile ``q`` in [0, 1] of values in ascending order, linear between neighbours."""
    place = q * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def measure_latency(
    calls: Mapping[str, Callable[[], Any]],
    *,
    seconds: float = 0.3,
    threads: int = 1,
    warmup: int = 3,
    minimum: int = MINIMUM_CALLS,
) -> dict[str, Latency]:
    """Time the calls interleaved, without gradients: :func:`measure_times`, summarised."""
    times = measure_times(calls, seconds=seconds, threads=threads, warmup=warmup, minimum=minimum)
    return {name: _summary(durations) for name, durations in times.items()}


def measure_times(
    calls: Mapping[str, Callable[[], Any]],
    *,
    seconds: float = 0.3,
    threads: int = 1,
    warmup: int = 3,
    minimum: int = MINIMUM_CALLS,
) -> dict[str, list[float]]:
    """Time the calls interleaved, without gradients.

    Args:
        calls: name to a function of no arguments that runs one sample through one system (in eval mode).
        seconds: time given to each system; a system that is too slow for ``minimum`` calls in it takes longer.
        threads: torch threads during the measurement; the number before is restored.
        warmup: calls of each system before anything is timed.
        minimum: every system is timed at least this often, however slow it is.

    Returns:
        The same names with the seconds of wall clock of each timed call, in order.

    Raises:
        InvalidValue: ``seconds``, ``threads`` or ``minimum`` is not positive, or ``warmup`` is negative.
    """
    if seconds <= 0:
        raise invalid("seconds", seconds, "the time for each system must be positive")
    if threads < 1:
        raise invalid("threads", threads, "at least one thread is needed")
    if minimum < 1:
        raise invalid("minimum", minimum, "every system is called at least once")
    if warmup < 0:
        raise invalid("warmup", warmup, "the number of calls before timing cannot be negative")
    threads_before, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(threads)
    gc.collect()
    gc.disable()
    try:
        with torch.inference_mode():
            for call in calls.values():
                for _ in range(warmup):
                    call()
            return _take_turns(calls, seconds, minimum)
    finally:
        torch.set_num_threads(threads_before)
        if collecting:
            gc.enable()


def _take_turns(calls: Mapping[str, Callable[[], Any]], seconds: float, minimum: int) -> dict[str, list[float]]:
    """Seconds of every timed call by name."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    used = dict.fromkeys(calls, 0.0)
    for turn in range(ROUNDS):
        allowed = seconds * (turn + 1) / ROUNDS
        for name in times:
            if used[name] >= allowed and len(times[name]) >= minimum:
                continue  # a slow system has already used the time of this slice
            slice_times = _slice(calls[name], allowed - used[name])
            used[name] += sum(slice_times)
            # The first call of a slice finds the caches full of another system: it is not what a user would see.
            times[name] += slice_times[1:] if len(slice_times) > 1 else slice_times
    return times


def _slice(call: Callable[[], Any], seconds: float) -> list[float]:
    """Durations of consecutive calls, at least one, until ``seconds`` have gone by."""
    durations = []
    begin = before = time.perf_counter()
    while not durations or before - begin < seconds:
        call()
        now = time.perf_counter()
        durations.append(now - before)
        before = now
    return durations


def _summary(durations: list[float]) -> Latency:
    ordered = sorted(1e3 * d for d in durations)
    return Latency(statistics.median(ordered), quantile(ordered, 0.1), quantile(ordered, 0.9), len(ordered))
