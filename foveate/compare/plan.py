"""The plan of a comparison: which trials it will run and how long they will take; what ``--plan`` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..models.build import Contestant
from ..pages import figures
from ..tasks.base import Task
from .contestants import jobs, trains, worker_count
from .settings import Settings
from .timing import Speed, closing_seconds, makespan, predict, refit_seconds, trial_seconds


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """One line of the plan: a trial, the state it is in and what it will take (its share of the sweep included)."""

    name: str
    system: str
    seed: int
    kind: str
    baseline: bool
    status: str
    steps: int | None
    seconds: float
    parameters: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What ``--plan`` prints.

    Attributes:
        trials: in the order they will run; status is "new", "resumes", "done", "failed" or "skipped".
        workers, threads: at once, and torch threads of each.
        steps: of every trial without a recipe of its own; None under a time budget.
        refit_seconds: at most, for training the winner once more on all data; 0: that is not done, or is done already.
        seconds: predicted for the whole comparison, refit, latency and report included.
    """

    trials: tuple[PlannedTrial, ...]
    workers: int
    threads: int
    steps: int | None
    refit_seconds: float
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self)

    def text(self) -> str:
        """One line per trial, and the whole."""
        lines = [("trial", "parameters", "steps", "time", "")]
        for t in self.trials:
            steps = "by time" if t.steps is None else figures.count(t.steps) if t.steps else "-"
            time = "-" if t.status in ("done", "failed", "skipped") else figures.duration(t.seconds)
            about = {"new": "", "resumes": "goes on"}.get(t.status, t.status) + (f": {t.reason}" if t.reason else "")
            lines.append((t.name, figures.count(t.parameters), steps, time, about))
        widths = [max(len(line[i]) for line in lines) for i in range(4)]
        rows = [
            f"{n:<{widths[0]}}  {p:>{widths[1]}}  {s:>{widths[2]}}  {d:>{widths[3]}}  {a}".rstrip()
            for n, p, s, d, a in lines
        ]
        workers = f"{self.workers} at once, {self.threads} thread{'s' if self.threads > 1 else ''} each"
        refit = figures.duration(self.refit_seconds)
        last = [f"then the winner is trained once more on all data: at most {refit}"] if self.refit_seconds else []
        return "\n".join(
            [*rows, *last, "", f"{len(self.trials)} trials, {workers}: about {figures.duration(self.seconds)}"]
        )


def make_plan(settings: Settings, task: Task | None = None) -> Plan:
    """Measure every system for a moment and say which trials there will be and how long they will take.

    Nothing is written into ``settings.out``; what is done there already is counted as done.

    Args:
        task: the prepared task, if the caller has it already; None: it is prepared from ``settings.data``.

    Raises:
        FoveateError: the data, a name or an option is not possible.
    """
    from .runner import known_trials, probe, resolve  # the runner needs this module's neighbours, and torch's workers
    from .ship import refits

    settings, task, chosen = resolve(settings, task)
    known = known_trials(settings, chosen)
    return assemble(settings, task, chosen, probe(settings, task, chosen), known, refits(settings, task))


def assemble(
    settings: Settings,
    task: Task,
    chosen: Sequence[Contestant],
    speeds: Mapping[str, Speed],
    known: Mapping[str, tuple[str, str]] | None = None,
    refit: bool = False,
) -> Plan:
    """Put the plan together.

    Args:
        speeds: of each system, from the probe.
        known: trial name to (status, reason) of what the output folder already holds.
        refit: whether the winner is trained once more.
    """
    known, workers = known or {}, worker_count(settings)
    seconds = None if settings.budget is None else trial_seconds(settings, chosen, 0.0, refit)
    by_name = {c.name: c for c in chosen}
    trials, durations, sweep_cost = [], [], {}
    for job in jobs(chosen, settings):
        contestant, speed = by_name[job.system], speeds[job.system]
        status, reason = known.get(job.name, ("new", ""))
        if speed.reason and status == "new":
            status, reason = "skipped", speed.reason
        over = status in ("done", "failed", "skipped") or (job.kind == "sweep" and status != "new")
        cost = 0.0 if over else predict(job, speed, settings, task, seconds)
        durations.append((job, cost))
        if job.kind == "sweep":
            sweep_cost[job.system] = cost
            continue
        steps = settings.rules(job.system, task.sample_tokens).steps if trains(contestant) else 0
        cost += sweep_cost.get(job.system, 0.0) if job.seed == 0 else 0.0
        about = (job.name, job.system, job.seed, contestant.kind, contestant.baseline)
        trials.append(PlannedTrial(*about, status, steps, cost, speed.parameters, reason))
    refitting = 0.0
    # Where nothing is left to be trained, the winner has been trained once more already.
    if refit and any(trial.status in ("new", "resumes") for trial in trials):
        refitting = refit_seconds(settings, task, speeds, seconds)
    total = makespan(durations, workers) + refitting + closing_seconds(chosen)
    return Plan(
        tuple(trials),
        workers,
        settings.threads,
        settings.trial_steps(task.sample_tokens),
        refitting,
        total if settings.budget is None else min(settings.budget, total),
    )
