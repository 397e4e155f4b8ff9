"""Quiet cores: pinning this process to some of them, and telling how busy the machine is with others' work."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from ..errors import InvalidValue, invalid

#: Percent of the machine that others may use before times mean nothing.
BUSY = 20.0
#: Seconds of looking before that is decided.
LOOK_SECONDS = 1.0
_TASKS = Path("/proc/self/task")


@contextmanager
def pinned(threads: int) -> Iterator[list[int]]:
    """Keep this process on as many cores as it has threads, the least busy ones; restored at the end.

    Yields:
        The cores; empty where the system cannot pin (macOS).

    Raises:
        InvalidValue: ``threads`` is not positive, or there are fewer cores.
    """
    if threads < 1:
        raise invalid("threads", threads, "at least one thread is needed")
    if not hasattr(os, "sched_setaffinity"):
        yield []
        return
    before = os.sched_getaffinity(0)
    if threads > len(before):
        raise invalid("threads", threads, f"this process may use {len(before)} cores")
    load = psutil.cpu_percent(interval=LOOK_SECONDS / 5, percpu=True)
    cores = sorted(sorted(before), key=lambda core: load[core] if core < len(load) else 0.0)[:threads]
    _move(set(cores))
    try:
        yield sorted(cores)
    finally:
        _move(before)


def _move(cores: set[int]) -> None:
    """All threads of this process: OpenMP's wait in a pool that may exist already."""
    tasks = [int(task.name) for task in _TASKS.iterdir()] if _TASKS.is_dir() else [0]
    for task in tasks:
        try:
            os.sched_setaffinity(task, cores)
        except ProcessLookupError:  # it has ended meanwhile
            continue


class Others:
    """How much of the machine others use, from its making on: all processor time less this process's own."""

    def __init__(self) -> None:
        self._before = self._now()

    def percent(self) -> float:
        """Percent of all cores, 0 to 100."""
        clock, used, own = (now - then for now, then in zip(self._now(), self._before, strict=True))
        return min(100.0, max(0.0, 100 * (used - own) / (clock * (psutil.cpu_count() or 1)))) if clock else 0.0

    @staticmethod
    def _now() -> tuple[float, float, float]:
        system = psutil.cpu_times()
        idle = system.idle + getattr(system, "iowait", 0.0) + getattr(system, "steal", 0.0)
        guests = getattr(system, "guest", 0.0) + getattr(system, "guest_nice", 0.0)  # counted in user time already
        own = time.process_time()
        return time.perf_counter(), sum(system) - idle - guests, own


def refuse_if_busy(allowed: float = BUSY) -> float:
    """Percent of the machine that others use now.

    Args:
        allowed: more than this is refused.

    Raises:
        InvalidValue: the machine is busy.
    """
    others = Others()
    time.sleep(LOOK_SECONDS)
    load = others.percent()
    if load > allowed:
        raise InvalidValue(
            f"the machine is {load:.0f} % busy with other work, so times would mean nothing: wait, or measure anyway "
            "with --busy."
        )
    return load
