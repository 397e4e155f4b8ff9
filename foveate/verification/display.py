"""The progress of a verification, a live picture in a terminal and plain lines anywhere else, and its tables."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..compare.display import bar
from ..pages.figures import NONE, clock, duration, english_list, plain, significant
from ..sources import Check

#: Frames a second: drawing must not disturb the checks that compare times.
FRAMES = 2.0
STYLES = {"holds": "green", "fails": "bold red", "error": "bold red", "not checked": "dim"}
#: The results as they are printed: what must not be overlooked is loud.
WORDS = {"holds": "holds", "fails": "FAILS", "error": "ERROR", "not checked": "not checked"}


class Display:
    """Shows events as they come. Use as a context manager, call :meth:`event` with each one.

    Args:
        console: where to write; default standard error, so that standard output stays free for results.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.total = 0
        self.begun = time.monotonic()
        self.running: dict[Check, float] = {}
        self.ended: list[tuple[Check, Mapping[str, Any]]] = []
        live = self.console.is_terminal and not self.console.is_dumb_terminal
        self._live = (
            Live(
                console=self.console,
                transient=True,
                get_renderable=self.frame,
                refresh_per_second=FRAMES,
                redirect_stdout=False,
            )
            if live
            else None
        )

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def event(self, event: Mapping[str, Any]) -> None:
        """Take in one event; see :func:`foveate.verification.verify`."""
        if event["type"] == "plan":
            self.total = len(event["checks"])
        elif event["type"] == "started":
            self.running[event["check"]] = time.monotonic()
        elif event["type"] == "ended":
            self.running.pop(event["check"], None)
            self.ended.append((event["check"], event["found"]))
            if self._live is None:
                number = f"[{len(self.ended):>{len(str(self.total))}}/{self.total}]"
                self.console.print(Text(f"{number} {_line(event['check'], event['found'])}"), soft_wrap=True)

    def frame(self) -> Group:
        """The picture now: how far, what runs, what failed."""
        width, now = self.console.width, time.monotonic()
        tail = f"  {len(self.ended)}/{self.total} claims  {clock(now - self.begun)} "
        done = len(self.ended) / max(1, self.total)
        if not self.total:
            return Group(Text(f" loading  {clock(now - self.begun)}", style="dim"))
        lines = [Text.assemble(" ", bar(done, max(10, width - len(tail) - 1), "green"), (tail, "bold"))]
        for check, since in list(self.running.items()):
            lines.append(Text(f"   {clock(now - since):>7}  {check.slug} {check.name} ({check.kind})", style="cyan"))
        failed = [(c, f) for c, f in list(self.ended) if f["result"] in ("fails", "error")]
        room = max(2, self.console.height - len(lines) - 2)
        lines += [Text(f" ✗ {_line(check, found)}", style="red") for check, found in failed[-room:]]
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        return Group(*lines)


def _line(check: Check, found: Mapping[str, Any]) -> str:
    said = plain(found["detail"]) if found["result"] in ("error", "not checked") else numbers(found)
    return f"{check.slug} {check.name}: {WORDS[found['result']]} after {duration(found['seconds'])}: {said}"


def numbers(found: Mapping[str, Any]) -> str:
    """Measured against threshold, in words."""
    return f"measured {number(found['value'])} against {number(found['threshold'])}"


def number(value: float | None) -> str:
    """A measured number or a threshold: counts in full, others to four digits."""
    if value is None or value == round(value):
        return NONE if value is None else f"{value:,.0f}" if abs(value) < 1e12 else significant(value)
    shown = significant(value)
    return shown.rstrip("0").rstrip(".") if "." in shown and "e" not in shown else shown


def tables(record: Mapping[str, Any]) -> Group:
    """A table for each system of a record: claimed against measured."""
    parts: list[Any] = []
    for slug, system in record["systems"].items():
        found = system["claims"].values()
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
        for header in ("result", "kind", "measured", "against", "claim, and how it was measured"):
            right = header in ("measured", "against")
            table.add_column(header, header_style="dim", justify="right" if right else "left", no_wrap=right)
        for entry in found:
            style = STYLES[entry["result"]]
            table.add_row(
                Text(WORDS[entry["result"]], style=style),
                entry["kind"],
                number(entry["value"]),
                number(entry["threshold"]),
                Text.assemble(plain(entry["says"]), "\n", (plain(entry["detail"]), "dim")),
            )
        parts += [Text.assemble((slug, "bold"), ": ", counted(entry["result"] for entry in found)), table, Text("")]
    return Group(*parts)


_COUNTED = {
    "fails": ("fails", "fail"),
    "error": ("ended in an error", "ended in an error"),
    "holds": ("holds", "hold"),
    "not checked": ("was not checked", "were not checked"),
}


def counted(results: Iterable[str]) -> str:
    """How many ended how, in words, the worst first: "1 fails, 9 hold and 1 was not checked"."""
    counts = Counter(results)
    ended = [(counts[result], words) for result, words in _COUNTED.items() if counts[result]]
    return english_list([f"{number} {words[number > 1]}" for number, words in ended])
