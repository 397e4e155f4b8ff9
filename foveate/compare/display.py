"""The progress of a comparison: a live picture in a terminal, plain lines anywhere else.

Drawing must not disturb what is being measured. A frame is drawn at most twice a second, and no sooner than two hundred
times what the last frame cost, so the display takes at most half a per cent of one core whatever the terminal.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..pages import figures
from .progress import Event, Progress, Trial

#: Seconds between frames, at least, and how many times the cost of a frame.
FRAME_EVERY, FRAME_COSTS = 0.5, 200.0
#: Finished lines of the standings that are always shown, however low the terminal.
FEWEST_STANDINGS = 3


class Display:
    """Shows events as they come. Use as a context manager, call :meth:`event` with each one (from any thread).

    Args:
        title: what is being compared, such as "forecast · prices.csv".
        primary: name of the deciding metric.
        higher_is_better: its direction.
        console: where to write; default standard error, so that standard output stays free for results.
    """

    def __init__(
        self, title: str, primary: str, higher_is_better: bool = False, console: Console | None = None
    ) -> None:
        self.title = figures.plain(title)
        self.console = console or Console(stderr=True)
        self.progress = Progress(primary, higher_is_better)
        self.live: Live | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Display:
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            live = Live(
                console=self.console,
                auto_refresh=False,
                transient=True,
                get_renderable=self.frame,
                redirect_stdout=False,
                redirect_stderr=self.console.stderr,
            )
            live.start(refresh=True)
            self.live = live
            self._thread = threading.Thread(target=self._draw, name="foveate-display", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self.live is not None:
            self.live.stop()
            if self.progress.ended():
                self.console.print(Text(self._summary()))

    def event(self, event: Event) -> None:
        """Take in one event; see :mod:`foveate.compare.progress` for their forms."""
        with self._lock:
            phase = self.progress.phase
            trial = self.progress.update(event)
            line = self._line(event, trial, phase) if self.live is None or event["type"] == "warning" else ""
        if line:
            self.console.print(Text(line, style="yellow" if event["type"] == "warning" else ""), soft_wrap=True)

    def _draw(self) -> None:
        wait = FRAME_EVERY
        while not self._stop.wait(wait):
            before = time.thread_time()
            if self.live is not None:
                self.live.refresh()
            wait = max(FRAME_EVERY, FRAME_COSTS * (time.thread_time() - before))

    # ----- plain lines

    def _line(self, event: Event, trial: Trial | None, phase: str) -> str:
        """The line for a warning, or an event that changes a trial's status or the phase; "" for others."""
        kind, progress = event["type"], self.progress
        if kind == "plan":
            count = len(progress.trials)
            return f"{self.title}: {count} trial{'s' if count != 1 else ''}"
        if kind == "warning":
            return "warning: " + figures.plain(str(event["text"]))
        if kind == "phase":
            return progress.phase if progress.phase != phase else ""
        if trial is None or kind not in ("trial_started", "resumed", "trial_done", "trial_failed", "trial_skipped"):
            return ""
        total = len(progress.trials)
        prefix = f"[{progress.ended():>{len(str(total))}}/{total}] {figures.plain(trial.system)} seed {trial.seed}: "
        after = f" after {figures.duration(trial.seconds)}" if trial.seconds is not None else ""
        if kind == "trial_started":
            return prefix + "started"
        if kind == "resumed":
            return prefix + f"resumed at step {trial.step}"
        if kind == "trial_done":
            score = f", validation {progress.primary} {figures.significant(trial.val)}" if trial.val is not None else ""
            return prefix + ("finished earlier" if trial.earlier else "done") + score + ("" if trial.earlier else after)
        reason = figures.plain(trial.reason or "no reason given")
        return prefix + f"{trial.status}{after if kind == 'trial_failed' else ''}: {reason}"

    def _summary(self) -> str:
        """One line that stays when the live picture is gone."""
        trials = self.progress.trials.values()
        parts = [f"{sum(t.status == status for t in trials)} {status}" for status in ("done", "failed", "skipped")]
        told = ", ".join(part for part in parts if not part.startswith("0 "))
        return f"{self.title}: {told} in {figures.duration(self.progress.clock() - self.progress.begun)}"

    # ----- the live picture

    def frame(self) -> Group:
        """The picture now, as wide as the console and no higher."""
        with self._lock:
            return self._frame()

    def _frame(self) -> Group:
        width, height = self.console.width, self.console.height
        running = self.progress.running()
        failed = [t for t in self.progress.trials.values() if t.status in ("failed", "skipped")]
        # Title, bar, headings and blank lines take ten lines; failures at most a few, the newest ones.
        failed = failed[-max(2, height // 8) :]
        room = max(FEWEST_STANDINGS, height - 10 - len(running) - len(failed))
        parts: list[Any] = [self._head(width), self._overall(width), Text("")]
        if running:
            parts += [*self._running_lines(running, width), Text("")]
        elif self.progress.phase:
            share = self.progress.phase_fraction
            done = "..." if share is None else f"{100 * share:.0f} %"
            parts += [Text(f" {self.progress.phase} {done}", style="cyan"), Text("")]
        if self.progress.standings():
            parts.append(self._standings_table(room, width))
        parts += [
            Text(_clip(_unfinished_line(t), width), style="red" if t.status == "failed" else "dim") for t in failed
        ]
        return Group(*parts)

    def _head(self, width: int) -> Text:
        elapsed = figures.clock(self.progress.clock() - self.progress.begun)
        remaining = self.progress.remaining()
        times = elapsed if remaining is None else f"{elapsed}, about {figures.clock(remaining)} left"
        title = _clip(self.title, width - len(times) - 3)
        gap = max(2, width - len(title) - len(times) - 2)
        return Text.assemble((f" {title}", "bold"), " " * gap, (times, "dim"))

    def _overall(self, width: int) -> Text:
        progress = self.progress
        tail = f"  {progress.ended()}/{len(progress.trials)} trials "
        return Text.assemble(" ", bar(progress.fraction(), max(10, width - len(tail) - 1), "green"), (tail, "bold"))

    def _running_lines(self, trials: list[Trial], width: int) -> list[Text]:
        """One line for each running trial; its bar takes the room that the rest leaves."""
        rows = [self._running_cells(trial, 16 if width < 100 else 32) for trial in trials]
        widths = {key: max(cell_len(row[key][0]) for row in rows) for key in rows[0]}

        def room(keys: list[str]) -> int:
            return width - 1 - sum(widths[key] + 2 for key in keys if widths[key])

        shown = list(widths)
        for dispensable in ("loss", "curve", "left", "val"):
            if room(shown) < 12:
                shown.remove(dispensable)
        lines = []
        for trial, row in zip(trials, rows, strict=True):
            line = Text(" ")
            for key in shown:
                if widths[key]:
                    text, style = row[key]
                    line.append(text + " " * (widths[key] - cell_len(text) + 2), style)
                if key == "seed":
                    done, style = (trial.swept, "yellow") if trial.sweep else (trial.fraction, "cyan")
                    line.append_text(bar(done, max(4, min(36, room(shown) - 2)), style)).append("  ")
            lines.append(line)
        return lines

    def _running_cells(self, trial: Trial, longest: int) -> dict[str, tuple[str, str]]:
        """Texts with their styles, in the order of display."""
        left = self.progress.remaining_of(trial)
        done = f"{trial.step}/{trial.steps}" if trial.steps else f"step {trial.step}"
        return {
            "system": (figures.plain(trial.system, longest), "bold"),
            "seed": (f"seed {trial.seed}", "dim"),
            "done": (f"rate {trial.sweep}" if trial.sweep else done, "yellow" if trial.sweep else ""),
            "loss": ("" if trial.loss is None else f"loss {figures.significant(trial.loss, 3)}", "dim"),
            "val": ("" if trial.val is None else f"val {figures.significant(trial.val)}", ""),
            "curve": (figures.sparkline(trial.curve, 14), "cyan"),
            "left": ("" if left is None else f"{figures.clock(left)} left", "dim"),
        }

    def _standings_table(self, room: int, width: int) -> Table:
        standings = self.progress.standings()
        decimals = figures.decimals_for([s.val for s in standings])
        best = standings[0].val
        made = Table.grid(padding=(0, 2, 0, 0))
        for justify in ("right", "left", "right", "right", "left", "right"):
            made.add_column(no_wrap=True, justify=justify)
        head = (" #", "system", f"val {self.progress.primary}", "gap", "", "seeds")
        made.add_row(*(Text(text, style="dim") for text in head))
        shown = standings[:room]
        for place, standing in enumerate(shown, start=1):
            gap = "" if place == 1 or best == 0 else f"{100 * (standing.val / best - 1):+.1f} %"
            style = "bold green" if place == 1 else ""
            made.add_row(
                Text(f" {place}", style=style),
                Text(figures.plain(standing.system, 24 if width < 100 else 40), style=style),
                Text(figures.fixed(standing.val, decimals), style=style),
                Text(gap, style="dim"),
                Text(figures.sparkline(standing.curve, 14), style="green" if place == 1 else "dim"),
                Text(f"{standing.done}/{standing.trials}", style="dim"),
            )
        if len(shown) < len(standings):
            made.add_row("", Text(f"and {len(standings) - len(shown)} more", style="dim"))
        return made


def bar(fraction: float, width: int, style: str) -> Text:
    """A progress bar ``width`` cells wide, in half-cell steps."""
    halves = round(2 * width * min(1.0, max(0.0, fraction)))
    full, half = divmod(halves, 2)
    rest = width - full - half
    return Text.assemble(("━" * full + "╸" * half, style), ("━" * rest, "bright_black"))


def _unfinished_line(trial: Trial) -> str:
    sign = "✗" if trial.status == "failed" else "–"
    return f" {sign} {figures.plain(trial.system, 30)} seed {trial.seed} {trial.status}: {figures.plain(trial.reason)}"


def _clip(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(1, width - 1)] + "…"
