"""The main job: train contestants under the same rules on the user's data and rank them honestly.

This module and the settings import no torch; that happens when :func:`run` or :func:`make_plan` is called.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..registry import entries
from .settings import Settings
from .tracking import check_installed, parse

if TYPE_CHECKING:
    from ..tasks.base import Task
    from .plan import Plan

__all__ = ["Settings", "make_plan", "run"]


def run(
    settings: Settings,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    *,
    task: Task | None = None,
    started: float | None = None,
) -> dict[str, Any]:
    """Compare: train what is missing in ``settings.out``, then write leaderboard, report and ``best/``.

    Killed at any moment, the same call goes on where it was; under a step budget the result is the same to the bit.

    Args:
        on_event: called with what happens, for a display; see :mod:`foveate.compare.progress` for the events.
        task: the prepared task, if the caller has it already; None: it is prepared from ``settings.data``.
        started: ``time.monotonic()`` from which a time budget counts, such as the program's start; None: now.

    Returns:
        The leaderboard, as ``leaderboard.json`` holds it.

    Raises:
        FoveateError: the data, a name, an option or the folder is not possible, or a tracker is not installed; nothing
            of the user's was touched.
    """
    check_installed(parse(settings.track))
    _warm_up(settings)
    with _collector_resting():
        from . import runner

    return runner.run(settings, on_event, task=task, started=started)


def make_plan(settings: Settings, task: Task | None = None) -> Plan:
    """Which trials a comparison will run and how long they will take, from measuring every system for a moment.

    Nothing is written into ``settings.out``; what is done there already is counted as done.

    Raises:
        FoveateError: as :func:`run` does.
    """
    check_installed(parse(settings.track))
    _warm_up(settings)
    with _collector_resting():
        from . import plan

    return plan.make_plan(settings, task)


def _warm_up(settings: Settings) -> None:
    """Let the workers' fork server import torch and the contestants while this process imports torch itself."""
    from .pool import start_server

    tasks = [e for e in entries("task") if e.name == settings.task]
    names = set(settings.systems)
    for task in tasks:
        names |= {*task.spec.baselines, *(() if settings.systems else task.spec.shortlist)}
    systems = [e for kind in ("model", "mixer") for e in entries(kind) if e.name in names]
    start_server([e.module for e in (*tasks, *systems)])


@contextmanager
def _collector_resting() -> Iterator[None]:
    """Keep the garbage collector off while torch is imported: it would find nothing, in a quarter of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
