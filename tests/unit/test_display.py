"""The progress of a comparison: plain lines in a pipe, a live picture in a terminal, and the state behind both."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from foveate.compare.display import FRAME_COSTS, Display, bar
from foveate.compare.progress import Progress

SYSTEMS = ["seasonal_naive", "dlinear", "timesnet", "mamba", "landmark_attention"]


def trial(system: str, seed: int = 0) -> dict[str, Any]:
    return {"trial": f"{system}-seed{seed}", "system": system, "seed": seed}


def events() -> Iterator[dict[str, Any]]:
    yield {"type": "plan", "trials": [trial(s, k) for s in SYSTEMS for k in (0, 1) if s != SYSTEMS[0] or k == 0]}
    yield {"type": "trial_done", **trial("seasonal_naive"), "val": {"mse": 0.55}, "seconds": 0.1, "earlier": True}
    for step in (1, 2, 3):
        yield {"type": "sweep", **trial("dlinear"), "learning_rate": 10.0**-step, "candidate": step, "candidates": 3}
    yield {"type": "sweep", **trial("dlinear"), "candidate": 3, "candidates": 3, "val": {"mse": 0.5}}
    yield {"type": "trial_started", **trial("dlinear"), "steps": 600}
    for step in range(100, 700, 100):
        yield {"type": "progress", **trial("dlinear"), "step": step, "steps": 600, "loss": 1 / step}
        yield {"type": "validated", **trial("dlinear"), "step": step, "steps": 600, "val": {"mse": 0.4 + 10 / step}}
    yield {"type": "trial_done", **trial("dlinear"), "val": {"mse": 0.39}, "seconds": 42.0}
    yield {"type": "trial_started", **trial("landmark_attention"), "steps": 600}
    yield {
        "type": "trial_failed",
        **trial("landmark_attention"),
        "seconds": 9.1,
        "reason": "diverged:\nloss \x1b[2J inf",
    }
    yield {"type": "trial_skipped", **trial("mamba"), "reason": "needs a horizon below 10"}
    yield {"type": "trial_started", **trial("timesnet"), "steps": 600}
    yield {"type": "resumed", **trial("timesnet"), "step": 200}
    yield {"type": "progress", **trial("timesnet"), "step": 300, "steps": 600, "loss": 0.25}
    yield {"type": "validated", **trial("timesnet"), "step": 300, "steps": 600, "val": {"mse": 0.34}}
    yield {"type": "checkpoint", **trial("timesnet"), "step": 300}  # unknown here: ignored
    yield {"type": "phase", "text": "measuring latencies"}


def test_plain_lines_when_piped():
    file = io.StringIO()
    with Display("forecast · x.csv", "mse", console=Console(file=file, width=60)) as display:
        for event in events():
            display.event(event)
    assert file.getvalue().splitlines() == [
        "forecast · x.csv: 9 trials",
        "[1/9] seasonal_naive seed 0: finished earlier, validation mse 0.5500",
        "[1/9] dlinear seed 0: started",
        "[2/9] dlinear seed 0: done, validation mse 0.3900 after 42 s",
        "[2/9] landmark_attention seed 0: started",
        "[3/9] landmark_attention seed 0: failed after 9.1 s: diverged: loss �[2J inf",
        "[4/9] mamba seed 0: skipped: needs a horizon below 10",
        "[4/9] timesnet seed 0: started",
        "[4/9] timesnet seed 0: resumed at step 200",
        "measuring latencies",
    ]


def test_a_phase_is_told_once_and_warnings_always():
    told = [
        {"type": "phase", "text": "refitting the winner on all data"},
        {"type": "phase", "text": "refitting the winner on all data", "fraction": 0.4},
        {"type": "warning", "text": "tracking with csv ended,\x1b[2J the comparison goes on: OSError"},
        {"type": "phase", "text": "writing the report"},
    ]
    for terminal in (False, True):
        file = io.StringIO()
        with Display("x", "mse", console=Console(file=file, width=90, force_terminal=terminal)) as display:
            for event in told[:3]:
                display.event(event)
            assert "refitting the winner on all data 40 %" in frame_of(display)
            display.event(told[3])
            assert "writing the report ..." in frame_of(display)
        text = file.getvalue()
        assert text.count("warning: tracking with csv ended,�[2J the comparison goes on: OSError") == 1
        if not terminal:
            assert text.splitlines()[0] == "refitting the winner on all data"
            assert text.splitlines()[2] == "writing the report"


def frame_of(display: Display) -> str:
    console = Console(file=io.StringIO(), width=90, record=True)
    console.print(display.frame())
    return console.export_text()


@pytest.mark.parametrize(("width", "height"), [(60, 24), (80, 24), (120, 50), (200, 12)])
def test_the_live_picture_fits_and_shows_what_is_going_on(width: int, height: int):
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, record=True)
    display = Display("forecast · x.csv", "mse", console=console)
    for event in events():
        display.progress.update(event)
    console.print(display.frame())
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for shown in (
        "forecast · x.csv",
        "4/9 trials",
        "timesnet",
        "300/600",
        "val 0.3400",
        "0.3400",
        "+14.7 %",
        "✗ landmark",
    ):
        assert shown in text
    assert text.index("timesnet  ", text.index("val mse")) < text.index("dlinear  ")  # the standings, best first
    if width >= 120:
        assert "█" in text
        assert "loss 0.25" in text


def test_a_terminal_is_left_clean():
    file = io.StringIO()
    console = Console(file=file, width=90, height=30, force_terminal=True)
    with Display("forecast", "mse", console=console) as display:
        for event in events():
            display.event(event)
        display.live.refresh()  # type: ignore[union-attr]
    text = file.getvalue()
    assert "\x1b[?25l" in text  # hidden while it draws
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # and given back
    assert text.rindex("\x1b[2K") > text.rindex("4/9 trials")  # the last picture is wiped
    assert "forecast: 2 done, 1 failed, 1 skipped in" in text.splitlines()[-1]
    assert "\x1b[2J" not in text  # a reason cannot clear the screen


def test_drawing_takes_less_than_one_per_cent():
    console = Console(file=io.StringIO(), width=120, height=40, force_terminal=True)
    display = Display("forecast", "mse", console=console)
    for event in events():
        display.progress.update(event)
    console.print(display.frame())
    begun = time.thread_time()
    for _ in range(10):
        console.print(display.frame())
    cost = (time.thread_time() - begun) / 10
    assert cost / max(0.5, FRAME_COSTS * cost) < 0.01
    assert cost < 0.05  # else the picture would stand still for ten seconds


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_remaining_time_is_at_the_pace_of_this_run():
    clock = Clock()
    progress = Progress("mse", clock=clock)
    progress.update({"type": "plan", "trials": [trial("a"), trial("b"), trial("c"), trial("d")]})
    progress.update({"type": "trial_done", **trial("a"), "earlier": True})
    progress.update({"type": "trial_started", **trial("b"), "steps": 100})
    assert progress.remaining() is None
    clock.now += 30
    progress.update({"type": "progress", **trial("b"), "step": 50, "steps": 100})
    # Half a trial in 30 s, two and a half are left; the one of an earlier run says nothing about the pace.
    assert progress.remaining() == pytest.approx(150)
    assert progress.remaining_of(progress.running()[0]) == pytest.approx(30)
    assert progress.fraction() == pytest.approx(1.5 / 4)


def test_the_time_before_the_first_trial_is_not_pace():
    clock = Clock()
    progress = Progress("mse", clock=clock)
    progress.update({"type": "plan", "trials": [trial("a"), trial("b")]})
    clock.now += 100
    progress.update({"type": "sweep", **trial("a"), "candidate": 1, "candidates": 2})
    assert progress.trials["a-seed0"].swept == 0
    progress.update({"type": "sweep", **trial("a"), "candidate": 1, "candidates": 2, "val": {"mse": 1.0}})
    assert (progress.trials["a-seed0"].swept, progress.trials["a-seed0"].status) == (0.5, "running")
    progress.update({"type": "sweep", **trial("a"), "candidate": 2, "candidates": 2, "val": {"mse": 1.0}})
    assert (progress.trials["a-seed0"].sweep, progress.trials["a-seed0"].status) == ("", "waiting")
    progress.update({"type": "trial_started", **trial("a"), "steps": 100})
    clock.now += 10
    progress.update({"type": "progress", **trial("a"), "step": 50, "steps": 100})
    assert progress.remaining() == pytest.approx(30)


def test_a_resumed_trial_is_timed_from_where_it_resumed():
    clock = Clock()
    progress = Progress("mse", clock=clock)
    progress.update({"type": "plan", "trials": [trial("a")]})
    progress.update({"type": "trial_started", **trial("a"), "steps": 100})
    progress.update({"type": "resumed", **trial("a"), "step": 80})
    clock.now += 10
    progress.update({"type": "progress", **trial("a"), "step": 90, "steps": 100})
    assert progress.remaining() == pytest.approx(10)


def test_standings_average_seeds_and_follow_the_direction():
    progress = Progress("accuracy", higher_is_better=True)
    for system, values in {"a": (0.7, 0.9), "b": (0.85, 0.85)}.items():
        for seed, value in enumerate(values):
            progress.update({"type": "validated", **trial(system, seed), "step": 1, "val": value})
            progress.update({"type": "validated", **trial(system, seed), "step": 2, "val": value - 0.2})
    assert [(s.system, pytest.approx(s.val)) for s in progress.standings()] == [("b", 0.85), ("a", 0.8)]


def test_under_a_time_budget_the_fraction_is_told():
    progress = Progress("mse")
    progress.update({"type": "trial_started", **trial("a"), "steps": 0})
    progress.update({"type": "progress", **trial("a"), "step": 7, "steps": 0, "fraction": 0.25, "loss": 1.0})
    assert progress.running()[0].fraction == 0.25


def test_bars_are_exact_to_half_a_cell():
    assert bar(0.0, 4, "x").plain == "━━━━"
    assert [span.style for span in bar(0.5, 4, "x").spans] == ["x", "bright_black"]
    assert bar(0.375, 4, "x").plain == "━╸━━"
    assert bar(2.0, 4, "x").plain == "━━━━"
