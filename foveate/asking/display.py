"""The progress of asking: a live line in a terminal, a line now and then anywhere else."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..pages import figures
from .asked import Outcome
from .run import Summary

#: Seconds between plain lines.
PLAIN_EVERY = 10.0
#: Failures that are told as they come.
MOST_FAILURES = 10


class Display:
    """Shows how far a run is: rate, time left, failures. Use as a context manager; call :meth:`event`.

    Args:
        title: what is asked.
        console: where to write; default standard error, so that standard output stays free for results.
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.title = figures.plain(title)
        self.console = console or Console(stderr=True)
        self.live: Progress | None = None
        self._begun = self._told = time.monotonic()

    def __enter__(self) -> Display:
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self.live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}", markup=False),
                TimeRemainingColumn(),
                TextColumn("{task.fields[failed]}", style="red", markup=False),
                console=self.console,
                transient=True,
                refresh_per_second=2,
            )
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def event(self, summary: Summary, outcome: Outcome | None) -> None:
        """Take in the beginning of a run, or what came of a question."""
        failed = len(summary.failures)
        if outcome is not None and outcome.response is None and failed <= MOST_FAILURES:
            self._print(f"failed: {outcome.id}: {outcome.reason}", "yellow")
            if failed == MOST_FAILURES:
                self._print("further failures are told at the end", "yellow")
        if outcome is None:
            self._begun = self._told = time.monotonic()
            before = f", {summary.before} answered before" if summary.before else ""
            self._print(f"{self.title}: {summary.total:,} questions{before}")
        if self.live is not None:
            if not self.live.task_ids:
                self.live.add_task(self.title, total=summary.total, rate="", failed="")
            self.live.update(
                self.live.task_ids[0],
                completed=summary.before + summary.answered + failed,
                rate=self._rate(summary),
                failed=f"{failed} failed" if failed else "",
            )
        elif outcome is not None and time.monotonic() - self._told >= PLAIN_EVERY:
            self._told = time.monotonic()
            self._print(self._line(summary))

    def _rate(self, summary: Summary) -> str:
        seconds = time.monotonic() - self._begun
        done = summary.answered + len(summary.failures)
        return f"{60 * done / seconds:.0f}/min" if done and seconds > 0 else ""

    def _line(self, summary: Summary) -> str:
        done, seconds = summary.answered + len(summary.failures), time.monotonic() - self._begun
        left = (summary.left - len(summary.failures)) * seconds / done if done else None
        parts = [f"[{summary.before + done}/{summary.total}]", self._rate(summary)]
        parts += [f"{figures.duration(left)} left"] if left else []
        parts += [f"{len(summary.failures)} failed"] if summary.failures else []
        return " ".join(part for part in parts if part)

    def _print(self, line: str, style: str = "") -> None:
        self.console.print(Text(figures.plain(line), style=style), soft_wrap=True)
