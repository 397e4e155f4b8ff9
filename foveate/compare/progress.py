"""What a comparison has told about its trials so far: the state behind the live display, free of any drawing.

Events are dictionaries, made by the runner and by the trainer; unknown types and keys are ignored::

    plan           trials: [{"trial", "system", "seed", "seconds" (predicted, optional)}, ...], primary (optional):
                   the deciding metric, where the data's options change it
    trial_started  trial, system, seed, steps (0 or absent under a time budget)
    resumed        trial, step: the trial goes on from its checkpoint
    sweep          trial (the system's first), learning_rate, candidate (from 1), candidates, val (once it is scored)
    progress       trial, step, steps, loss, fraction (optional: share of the trial's budget used)
    validated      trial, step, val
    trial_done     trial, val, seconds, earlier (True: a run before this one finished it)
    trial_failed   trial, reason, seconds
    trial_skipped  trial, reason
    phase          text: what is being done between or after trials; "" for nothing in particular; fraction (optional)
    warning        text: what went wrong without stopping anything

``val`` is the deciding metric on validation data, or a dictionary of metrics that has it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..pages.figures import finite

Event = Mapping[str, Any]


@dataclass(slots=True)
class Trial:
    """One trial as far as it is known.

    Attributes:
        status: "waiting", "running", "done", "failed" or "skipped".
        fraction: share of its budget used, in [0, 1].
        curve: validation figures in order.
        sweep: "2/3: 0.001" while learning rates are tried, else ""; swept: share of them that is done.
        predicted: seconds the plan expects.
        begun, begun_at: clock and fraction when this process started or resumed it.
        earlier: it was finished by a run before this one.
    """

    name: str
    system: str
    seed: int
    status: str = "waiting"
    step: int = 0
    steps: int = 0
    fraction: float = 0.0
    loss: float | None = None
    val: float | None = None
    curve: list[float] = field(default_factory=list)
    sweep: str = ""
    swept: float = 0.0
    reason: str = ""
    seconds: float | None = None
    predicted: float | None = None
    begun: float = 0.0
    begun_at: float = 0.0
    earlier: bool = False

    @property
    def ended(self) -> bool:
        return self.status in ("done", "failed", "skipped")


@dataclass(frozen=True, slots=True)
class Standing:
    """A system's place among those validated so far."""

    system: str
    val: float
    done: int
    trials: int
    curve: list[float]
    seconds: float


class Progress:
    """The state of a comparison, fed by :meth:`update`.

    Args:
        primary: name of the deciding metric.
        higher_is_better: its direction.
        clock: seconds, for tests.
    """

    def __init__(
        self, primary: str, higher_is_better: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.primary = primary
        self.higher_is_better = higher_is_better
        self.clock = clock
        self.begun = clock()
        self.first_trial = self.begun
        self.trials: dict[str, Trial] = {}
        self.phase = ""
        self.phase_fraction: float | None = None

    def update(self, event: Event) -> Trial | None:
        """Take in one event; returns the trial it is about, if any."""
        kind = event["type"]
        if kind == "plan":
            self.primary = event.get("primary", self.primary)
            for planned in event["trials"]:
                self._trial(planned).predicted = planned.get("seconds")
            return None
        if kind == "phase":
            self.phase, self.phase_fraction = str(event["text"]), event.get("fraction")
            return None
        if "trial" not in event:
            return None
        trial = self._trial(event)
        handler = getattr(self, f"_on_{kind}", None)
        if handler is not None:
            handler(trial, event)
        return trial

    def _trial(self, event: Event) -> Trial:
        name = event["trial"]
        if name not in self.trials:
            system, _, seed = name.rpartition("-seed")
            self.trials[name] = Trial(name, event.get("system", system), int(event.get("seed", seed or 0)))
        return self.trials[name]

    def _on_trial_started(self, trial: Trial, event: Event) -> None:
        trial.status, trial.steps, trial.sweep = "running", event.get("steps") or 0, ""
        trial.begun, trial.begun_at = self.clock(), 0.0
        if not any(t.begun and t is not trial for t in self.trials.values()):
            self.first_trial = trial.begun

    def _on_resumed(self, trial: Trial, event: Event) -> None:
        trial.step = event.get("step") or 0
        self._advance(trial, event)
        trial.begun, trial.begun_at = self.clock(), trial.fraction

    def _on_sweep(self, trial: Trial, event: Event) -> None:
        trial.status = "running"
        number, count = event["candidate"], event["candidates"]
        trial.sweep = f"{number}/{count}"
        trial.swept = (number - ("val" not in event)) / count
        if finite(event.get("learning_rate")):
            trial.sweep += f": {event['learning_rate']:.2g}"
        if "val" in event and number == count:
            trial.status, trial.sweep = "waiting", ""  # the sweep is over; the trial begins when a worker is free

    def _on_progress(self, trial: Trial, event: Event) -> None:
        trial.status = "running"
        trial.loss = event.get("loss", trial.loss)
        self._advance(trial, event)

    def _on_validated(self, trial: Trial, event: Event) -> None:
        self._advance(trial, event)
        value = self.metric(event.get("val"))
        if value is not None:
            trial.curve.append(value)
            trial.val = self._better(trial.val, value)

    def _on_trial_done(self, trial: Trial, event: Event) -> None:
        trial.status, trial.fraction, trial.sweep = "done", 1.0, ""
        trial.val = self.metric(event.get("val")) if event.get("val") is not None else trial.val
        trial.seconds, trial.earlier = event.get("seconds"), bool(event.get("earlier", False))

    def _on_trial_failed(self, trial: Trial, event: Event) -> None:
        trial.status, trial.reason, trial.sweep = "failed", str(event.get("reason", "")), ""
        trial.seconds, trial.earlier = event.get("seconds"), bool(event.get("earlier", False))

    def _on_trial_skipped(self, trial: Trial, event: Event) -> None:
        trial.status, trial.reason, trial.sweep = "skipped", str(event.get("reason", "")), ""
        trial.earlier = bool(event.get("earlier", False))

    def _advance(self, trial: Trial, event: Event) -> None:
        trial.step = event.get("step", trial.step) or trial.step
        trial.steps = event.get("steps") or trial.steps
        if finite(event.get("fraction")):
            trial.fraction = min(1.0, max(0.0, event["fraction"]))
        elif trial.steps:
            trial.fraction = min(1.0, trial.step / trial.steps)

    def metric(self, value: Any) -> float | None:
        """The deciding metric in an event's ``val``."""
        value = value.get(self.primary) if isinstance(value, Mapping) else value
        return float(value) if finite(value) else None

    def _better(self, old: float | None, new: float) -> float:
        if old is None:
            return new
        return max(old, new) if self.higher_is_better else min(old, new)

    # ----- what the display asks

    def running(self) -> list[Trial]:
        """Trials that are being trained, in the order they began."""
        return sorted((t for t in self.trials.values() if t.status == "running"), key=lambda t: (t.begun, t.name))

    def ended(self) -> int:
        """Number of trials that are over."""
        return sum(t.ended for t in self.trials.values())

    def standings(self) -> list[Standing]:
        """Systems by the mean of their trials' best validation figures so far, best first."""
        by_system: dict[str, list[Trial]] = {}
        for trial in self.trials.values():
            by_system.setdefault(trial.system, []).append(trial)
        standings = []
        for system, trials in by_system.items():
            scored = [t for t in trials if t.val is not None and t.status != "failed"]
            if scored:
                mean = sum(t.val for t in scored if t.val is not None) / len(scored)
                done = sum(t.status == "done" for t in trials)
                curve = max((t.curve for t in scored), key=len)
                standings.append(Standing(system, mean, done, len(trials), curve, sum(t.seconds or 0 for t in trials)))
        sign = -1 if self.higher_is_better else 1
        return sorted(standings, key=lambda s: (sign * s.val, s.system))

    def fraction(self) -> float:
        """Share of all trials' work that is done, weighted by predicted seconds where the plan gave them."""
        weights = [t.predicted or 1.0 for t in self.trials.values()]
        done = [w * (1.0 if t.ended else t.fraction) for w, t in zip(weights, self.trials.values(), strict=True)]
        return sum(done) / sum(weights) if weights else 0.0

    def remaining(self) -> float | None:
        """Seconds until the last trial ends, at the pace since this process began its first; None while it guesses."""
        elapsed = self.clock() - self.first_trial
        earlier = sum((t.predicted or 1.0) for t in self.trials.values() if t.earlier)
        total = sum((t.predicted or 1.0) for t in self.trials.values())
        begun = sum((t.predicted or 1.0) * t.begun_at for t in self.trials.values() if not t.earlier)
        here = self.fraction() * total - earlier - begun
        left = total * (1.0 - self.fraction())
        return elapsed * left / here if elapsed > 3.0 and here > 0.02 * total else None

    def remaining_of(self, trial: Trial) -> float | None:
        """Seconds until one trial ends, at its own pace; None while that is a guess."""
        elapsed, here = self.clock() - trial.begun, trial.fraction - trial.begun_at
        if trial.sweep or elapsed < 1.0 or here < 0.01:
            return None
        return elapsed * (1.0 - trial.fraction) / here
