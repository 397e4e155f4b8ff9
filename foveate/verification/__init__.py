"""Measuring claims: each check in a process of its own, results merged into a file, a page made of the file.

``foveate.verify()`` and ``foveate verify`` are this. The checks themselves are in :mod:`foveate.claims`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..catalog.results import RESULTS as RESULTS  # how a check can end
from ..claims import KINDS
from ..errors import InvalidValue, unknown_name
from ..registry import get_system, list_systems
from ..sources import Check

#: Seconds that a check may take.
TIMEOUT = 1800.0

Event = dict[str, Any]


def choose(
    slugs: Sequence[str] | str | None = None, kinds: Sequence[str] | None = None, timed: bool | None = None
) -> list[Check]:
    """The claims of these systems and kinds.

    Args:
        slugs: systems; None: all.
        kinds: None: all.
        timed: True: only checks that compare times; False: only the others.

    Raises:
        UnknownName: no such system or kind; the nearest names are given.
    """
    slugs = [slugs] if isinstance(slugs, str) else list_systems() if slugs is None else slugs
    for kind in kinds or ():
        if kind not in KINDS:
            raise unknown_name("kind of claim", kind, KINDS)
    found = [check for slug in dict.fromkeys(slugs) for check in get_system(slug).checks]
    return [c for c in found if (not kinds or c.kind in kinds) and timed in (None, c.timed)]


def verify(
    slugs: Sequence[str] | str | None = None,
    kinds: Sequence[str] | None = None,
    *,
    timed: bool | None = None,
    missing: bool = False,
    workers: int | None = None,
    timeout: float = TIMEOUT,
    out: str | Path | None = None,
    progress: Callable[[Event], None] | None = None,
) -> dict[str, Any]:
    """Measure claims.

    Args:
        slugs: systems; None: all.
        kinds: "exact", "scaling", "learned", "needs-pretrained"; None: all.
        timed: True: only checks that compare times; False: those are put down as not checked; None: all, those that
            compare times alone and after all others.
        missing: leave out what ``out`` holds already, measured on the present sources.
        workers: checks at once, each on one thread; None: one for each core.
        timeout: seconds that a check may take.
        out: file that the results are merged into, after every check; see :mod:`foveate.verification.results`.
        progress: told what happens, as dicts: "type" is "plan" (with "checks"), "started" or "ended" (with "check", a
            :class:`~foveate.sources.Check`, and "found").

    Returns:
        What was measured now, in the form of the file. ``["systems"][slug]["claims"][name]`` has "says", "kind",
        "result" (one of :data:`RESULTS`), "value" and "threshold" (None where there is no number), "detail",
        "seconds" and "run", the index of ``["runs"]``, which has "date", "foveate", "machine" and "versions".

    Raises:
        UnknownName: no such system or kind; the nearest names are given.
        InvalidValue: ``out`` cannot be written or is not a file of results, or ``workers`` or ``timeout`` is not
            positive.
    """
    if workers is not None and workers < 1:
        raise InvalidValue(f"workers={workers} is not possible: at least one check must run.")
    if not timeout > 0:
        raise InvalidValue(f"timeout={timeout} is not possible: a check needs some seconds.")
    if missing and out is None:
        raise InvalidValue("missing=True is not possible without out: that file says what is there already.")
    chosen = choose(slugs, kinds, timed or None)
    file = None if out is None else Path(out)
    from . import results

    if file is not None:
        results.check_target(file)
    if not chosen:
        return results.empty()
    from ..compare.pool import start_server

    start_server()  # it imports torch while this process does
    from . import runner

    known = {slug: [check.name for check in get_system(slug).checks] for slug in list_systems()}
    now = results.Now({claim.slug for claim in chosen})
    if missing and file is not None:
        chosen = [claim for claim in chosen if not now.has(results.read(file), claim)]
    for claim, found in runner.run(chosen, timed is not False, workers, timeout, progress or (lambda event: None)):
        now.add(claim, found)
        if file is not None:
            results.merge_into(file, now.record(), known)
    return now.record()
