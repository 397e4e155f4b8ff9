"""What scripts share that keep a section of a page between two marks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def write_section(page: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- end of name -->``."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def told(event: dict[str, Any]) -> None:
    """One line for each trial that ended, on the error stream."""
    if event["type"] in ("trial_done", "trial_failed", "trial_skipped"):
        print(event["type"], event["system"], event["seed"], event.get("reason") or "", file=sys.stderr, flush=True)
