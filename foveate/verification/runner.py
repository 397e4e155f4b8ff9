"""Run checks: as many at once as there are cores, each in a process of its own, those that compare times alone."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..claims import KINDS
from ..compare.pool import Ended, Pool
from ..sources import Check
from .worker import NOT_MEASURED, failure, work

LEFT_OUT = f"{NOT_MEASURED}: the check compares times, which needs a quiet machine, and was left out."
Found = dict[str, Any]


def run(
    checks: Sequence[Check],
    with_timed: bool,
    workers: int | None,
    timeout: float,
    progress: Callable[[dict[str, Any]], None],
) -> Iterator[tuple[Check, Found]]:
    """Each check with what it found, as they end: quick kinds first, those that compare times last.

    Args:
        checks: what to run.
        with_timed: False: checks that compare times end at once, as not checked.
        workers: at once; None: one for each core.
        timeout: seconds that each may take.
        progress: see :func:`foveate.verification.verify`.
    """
    waiting = sorted(checks, key=lambda c: (c.timed and with_timed, KINDS.index(c.kind)))
    progress({"type": "plan", "checks": waiting})
    for check in [c for c in waiting if c.timed and not with_timed]:
        waiting.remove(check)
        found = failure(LEFT_OUT) | {"result": "not checked"}
        progress({"type": "ended", "check": check, "found": found})
        yield check, found
    if not waiting:
        return
    from ..measure.machine import usable_cores

    told: dict[Check, Found] = {}
    begun: dict[Check, float] = {}
    with (
        tempfile.TemporaryDirectory(prefix="foveate-") as folder,
        Pool(
            work,
            workers=min(workers or usable_cores(), len(waiting)),
            memory_limit=math.inf,  # a check may need what it needs; the system says if that is too much
            on_event=told.__setitem__,
            time_limit=timeout,
        ) as pool,
    ):
        outputs = {check: Path(folder) / str(number) for number, check in enumerate(waiting)}
        while waiting or begun:
            while waiting and pool.free and not (begun and waiting[0].timed):
                check = waiting.pop(0)
                begun[check] = time.monotonic()
                progress({"type": "started", "check": check})
                pool.submit(check, {"output": str(outputs[check])})
            for ended in pool.wait():
                check, seconds = ended.job, time.monotonic() - begun.pop(ended.job)
                found = told.get(check) or failure(_reason(ended, outputs[check])) | {"seconds": seconds}
                progress({"type": "ended", "check": check, "found": found})
                yield check, found


def _reason(ended: Ended, output: Path) -> str:
    """Why a worker ended without a result, with its last words."""
    said = output.read_text(encoding="utf-8", errors="replace").strip() if output.exists() else ""
    last = f" It said: {said.splitlines()[-1][:200]}" if said else ""
    return (ended.error or "the worker ended without a result.") + last
