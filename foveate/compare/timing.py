"""How long a comparison takes: predicted from a measured moment of every system, or cut to fit a time budget."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import InvalidValue
from ..models.build import Contestant
from ..tasks.base import Task
from ..tasks.budget import default_validate_every
from .contestants import Job, jobs, trains, untrained_share, worker_count
from .settings import Settings, sweep_steps

#: Seconds that a worker needs before and after its training: starting, reading the data, building, saving.
JOB_SECONDS = 0.15
#: Seconds for which the latency of one system is measured.
LATENCY_SECONDS = 0.1
#: The same with loading the system and warming it up.
LATENCY_JOB_SECONDS = 0.25
#: Seconds for the leaderboard, the report and ``best/``.
REPORT_SECONDS = 2.0
#: A trial shorter than this teaches nothing: a time budget that leaves less is refused.
SHORTEST_TRIAL = 1.0


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a system was in the probe.

    Attributes:
        step_seconds: one training step.
        sample_seconds: scoring one sample.
        parameters: of the model.
        reason: why it cannot run on this data; "" if it can.
    """

    step_seconds: float = 0.0
    sample_seconds: float = 0.0
    parameters: int = 0
    reason: str = ""


def makespan(durations: Iterable[tuple[Job, float]], workers: int) -> float:
    """Seconds until the last job ends, taking jobs in order as workers become free and trials after their sweeps."""
    free = [0.0] * workers
    swept: dict[str, float] = {}
    for job, seconds in durations:
        begin = max(heapq.heappop(free), swept.get(job.system, 0.0) if job.kind == "trial" else 0.0)
        if job.kind == "sweep":
            swept[job.system] = begin + seconds
        heapq.heappush(free, begin + seconds)
    return max(free)


def closing_seconds(chosen: Sequence[Contestant]) -> float:
    """Seconds kept for latency, leaderboard, report and ``best/``."""
    return LATENCY_JOB_SECONDS * len(chosen) + REPORT_SECONDS


def trial_seconds(settings: Settings, chosen: Sequence[Contestant], used: float, refit: bool = False) -> float:
    """Seconds of every trial, its scoring on test included, so that the whole stays inside ``settings.budget``.

    Args:
        used: seconds that have gone by already.
        refit: keep the time of one more trial, for the winner's last training, which takes no more steps than it had.

    Raises:
        InvalidValue: the budget is too small for so many trials; the message says what would do.
    """
    budget = settings.budget or 0.0
    work, workers = jobs(chosen, settings), worker_count(settings)
    by_name = {c.name: c for c in chosen}
    sweep = settings.sweep_share * len(settings.learning_rates)

    def units(job: Job) -> float:
        """Length in units of one trial; what does not train is scored only."""
        contestant = by_name[job.system]
        return (sweep if job.kind == "sweep" else 1.0) if trains(contestant) else untrained_share(contestant)

    whole = makespan([(job, units(job)) for job in work], workers) + refit
    fixed = used + closing_seconds(chosen) + JOB_SECONDS * len(work) / workers
    # A little is left over for what no plan foresees, such as a loaded machine.
    seconds = (0.96 * budget - fixed) / whole
    if seconds < SHORTEST_TRIAL:
        need = (SHORTEST_TRIAL * whole + fixed) / 0.96
        raise InvalidValue(
            f"budget={budget:g} seconds is not possible: {len(work)} jobs on {workers} workers need {need:.0f} "
            "seconds; take a larger budget, fewer systems or fewer seeds."
        )
    return seconds


def refit_seconds(settings: Settings, task: Task, speeds: Mapping[str, Speed], seconds: float | None) -> float:
    """At most the seconds that the winner's last training takes, whoever wins.

    Args:
        speeds: of every system.
        seconds: of a trial, under a time budget.
    """
    if seconds is not None:
        return JOB_SECONDS + seconds
    val = task.size("val")

    def whole(system: str, speed: Speed) -> float:
        return (settings.rules(system, task.sample_tokens).steps or 1) * speed.step_seconds + val * speed.sample_seconds

    return JOB_SECONDS + max((whole(name, speed) for name, speed in speeds.items()), default=0.0)


def predict(job: Job, speed: Speed, settings: Settings, task: Task, seconds: float | None) -> float:
    """Seconds that a job will take at this speed."""
    val, test = (task.scoring_size(split) * speed.sample_seconds for split in ("val", "test"))
    if speed.reason:
        return JOB_SECONDS
    if not speed.step_seconds:  # nothing to train
        return JOB_SECONDS + val + test
    rules = settings.rules(job.system, task.sample_tokens)
    rates = len(rules.learning_rates)
    if seconds is not None:
        return JOB_SECONDS + (rates * settings.sweep_share if job.kind == "sweep" else 1.0) * seconds
    steps = rules.steps or 1
    if job.kind == "sweep":
        return JOB_SECONDS + rates * (sweep_steps(steps, settings.sweep_share) * speed.step_seconds + val)
    every = rules.validate_every or default_validate_every(steps, rules.batch_size, task.size("val"))
    return JOB_SECONDS + steps * speed.step_seconds + -(-steps // every) * val + test
