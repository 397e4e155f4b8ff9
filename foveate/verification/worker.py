"""What a worker process does: one check, on one thread, with fixed seeds."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..claims import Measurement, claims_of
from ..compare.worker import output_to
from ..pages.figures import plain
from ..sources import Check

#: How the detail of a check begins that could not be made here.
NOT_MEASURED = "not measured"
_PACKAGE = Path(__file__).resolve().parents[1]


def work(claim: Check, config: dict[str, Any], send: Callable[[dict[str, Any]], None]) -> None:
    """Run a claim's check and send what it found; the entry point of every worker process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with output_to(Path(config["output"])):
        begun = time.perf_counter()
        try:
            found = _told(claim, _check(claim)())
        except Exception as error:
            found = failure(_sentence(error))
        found["seconds"] = time.perf_counter() - begun
    send(found)


def _check(claim: Check) -> Callable[[], Any]:
    return next(c.check for c in claims_of(claim.slug) if c.name == claim.name)


def failure(detail: str) -> dict[str, Any]:
    """What is on record of a check that came to no measurement."""
    return {"result": "error", "value": None, "threshold": None, "detail": detail, "seconds": 0.0}


def _told(claim: Check, found: Any) -> dict[str, Any]:
    if not isinstance(found, Measurement):
        return failure(f"the check returned {type(found).__name__}, no Measurement.")
    unchecked = claim.kind == "needs-pretrained" or found.detail.startswith(NOT_MEASURED)
    result = "not checked" if unchecked else "holds" if found.passed else "fails"
    numbers = {"value": found.value, "threshold": found.threshold}
    absent = [f"the {name} is {number}" for name, number in numbers.items() if not math.isfinite(number)]
    detail = found.detail + (f" ({', '.join(absent)})" if absent and not unchecked else "")
    known = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
    return {"result": result, **known, "detail": detail}


def _sentence(error: Exception) -> str:
    """The error on one line, with the last place of ours that it came through."""
    ours = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(_PACKAGE)]
    frames = [f for f in ours if Path(f.filename) != Path(__file__)]
    place = f" ({Path(frames[-1].filename).relative_to(_PACKAGE.parent)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {plain(error)}{place.replace(chr(92), '/')}"
