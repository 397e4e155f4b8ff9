"""Runs a comparison from beginning to end, or from where it was killed: what ``foveate.compare.run`` calls.

What is done is on the disk (a trial is done when its ``result.json`` is there), so starting is the same as resuming:
look at what is missing, do it, and when nothing is missing measure latencies side by side, choose the best system by
validation, train it once more on all data and write the leaderboard.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..files import read_json, write_json
from ..measure.machine import machine_facts
from ..models.build import Contestant
from ..tasks.base import Task
from ..tasks.io import load_tensors
from . import leaderboard, worker
from .contestants import Job, contestants, jobs, prepare_task, sweeps, trains, trial_name, worker_count
from .folder import RESULT, Folder
from .pool import Ended, Event, Pool, default_memory_limit, start_server
from .preset import with_official_split, with_recipes
from .settings import Settings, sweep_steps
from .ship import REFITTING, Shipping, refits
from .timing import LATENCY_SECONDS, Speed, trial_seconds
from .tracking_hub import Tracking

LATENCY = "latency.json"
OnEvent = Callable[[Event], None]


def run(
    settings: Settings,
    on_event: OnEvent | None = None,
    *,
    task: Task | None = None,
    started: float | None = None,
) -> dict[str, Any]:
    """See :func:`foveate.compare.run`."""
    begun = time.monotonic() if started is None else started
    settings, task, chosen = resolve(settings, task)
    with Folder.hold(settings.out) as folder, _Comparison(settings, task, chosen, folder, on_event) as comparison:
        folder.settle(settings, task, chosen)
        if settings.budget is not None and "trial_seconds" not in folder.resolved():
            # Decided once: all trials, those of a resumed run too, get the same time.
            used = time.monotonic() - begun
            folder.resolve(trial_seconds=trial_seconds(settings, chosen, used, refits(settings, task)))
        comparison.trial_seconds = folder.resolved().get("trial_seconds")
        comparison.track()
        comparison.train_all()
        return comparison.conclude()


def resolve(settings: Settings, task: Task | None) -> tuple[Settings, Task, list[Contestant]]:
    """Read the data and see who takes part; the settings come back with what a preset makes of them.

    Args:
        task: the prepared task, if the caller has it already.
    """
    settings = with_official_split(settings)
    task = task or prepare_task(settings)
    chosen = contestants(settings, task)
    return with_recipes(settings, task, chosen), task, chosen


def probe(settings: Settings, task: Task, chosen: Sequence[Contestant]) -> dict[str, Speed]:
    """Measure the speed of every system for a moment; nothing is written into ``settings.out``."""
    start_server()
    with tempfile.TemporaryDirectory(prefix="foveate-") as place:
        folder = Folder(Path(place))
        folder.data.mkdir()
        task.save(folder.data)
        with _Comparison(settings, task, chosen, folder, None) as comparison:
            return comparison.probe()


def known_trials(settings: Settings, chosen: Sequence[Contestant]) -> dict[str, tuple[str, str]]:
    """Name to status and reason of the trials that the output folder holds already."""
    folder, known = Folder(Path(settings.out)), {}
    for job in jobs(chosen, settings):
        place = folder.trial(job.system, job.seed)
        if job.kind == "trial" and place.exists():
            result = folder.result(place)
            failed = result is not None and result["status"] == "failed"
            if result is None:
                known[job.name] = ("resumes", "")
            elif not (failed and settings.retry_failed):
                known[job.name] = (result["status"], result["reason"])
    return known


class _Comparison:
    """One run of a comparison over its folder, which the caller holds."""

    def __init__(
        self,
        settings: Settings,
        task: Task,
        chosen: Sequence[Contestant],
        folder: Folder,
        on_event: OnEvent | None,
    ) -> None:
        self.settings, self.task, self.chosen, self.folder = settings, task, chosen, folder
        self.on_event = on_event or (lambda event: None)
        self.tracking: Tracking | None = None
        self.by_name = {c.name: c for c in chosen}
        self.trial_seconds: float | None = None
        self.speeds: dict[str, Speed] = {}
        self.latency_of = ""
        workers = worker_count(settings)
        self.pool = Pool(
            worker.work,
            workers=workers,
            memory_limit=settings.memory_limit or default_memory_limit(workers),
            on_event=self._worker_event,
        )

    def __enter__(self) -> _Comparison:
        return self

    def __exit__(self, *exception: object) -> None:
        self.pool.__exit__(*exception)
        if self.tracking is not None:
            self.tracking.stop()

    def track(self) -> None:
        """Start the trackers, once the folder is ours."""
        warn = lambda text: self.emit({"type": "warning", "text": text})  # noqa: E731
        self.tracking = Tracking(self.settings, self.task, self.folder, warn)

    def emit(self, event: Event) -> None:
        """Tell whoever follows: the caller, and the trackers."""
        self.on_event(event)
        if self.tracking is not None:
            self.tracking.event(event)

    # ----- training

    def train_all(self) -> None:
        """Run every sweep and trial that has no result yet."""
        waiting = jobs(self.chosen, self.settings)
        self._forget_unfinished(waiting)
        trials = [job for job in waiting if job.kind == "trial"]
        planned = [{"trial": t.name, "system": t.system, "seed": t.seed} for t in trials]
        self.emit({"type": "plan", "trials": planned, "primary": self.task.spec.metrics[0]})
        for job in list(waiting):
            result = self.folder.result(self._place(job))
            if result is not None:
                waiting.remove(job)
                if job.kind == "trial":
                    self._tell(job, result, earlier=True)
        running: set[Job] = set()
        while waiting or running:
            for job in list(waiting):
                if self.pool.free and self._startable(job, waiting, running):
                    waiting.remove(job)
                    if self._start(job):
                        running.add(job)
            for ended in self.pool.wait():
                running.remove(ended.job)
                self._ended(ended)

    def _forget_unfinished(self, work: Sequence[Job]) -> None:
        """Clear what is to be tried again: what was skipped (the options may be others now), and failures if told."""
        again = ("skipped", "failed") if self.settings.retry_failed else ("skipped",)
        for job in work:
            result = self.folder.result(self._place(job))
            if result is not None and result["status"] in again:
                self.folder.forget(self._place(job))

    def _place(self, job: Job) -> Path:
        return self.folder.sweep(job.system) if job.kind == "sweep" else self.folder.trial(job.system, job.seed)

    def _startable(self, job: Job, waiting: Sequence[Job], running: set[Job]) -> bool:
        sweep = Job("sweep", job.system)
        return job.kind == "sweep" or (sweep not in waiting and sweep not in running)

    def _start(self, job: Job) -> bool:
        """Hand a job to a worker; False if its sweep has decided that there is nothing to run."""
        config = self._config(job)
        if job.kind == "trial" and sweeps(self.by_name[job.system], self.settings):
            swept = self.folder.result(self.folder.sweep(job.system)) or {}
            if swept["status"] != "done":
                result = worker.unfinished(job, config, swept["status"], swept["reason"], seconds=0.0)
                write_json(self._made(self._place(job)) / RESULT, result)
                self._tell(job, result)
                return False
            config |= {"learning_rate": swept["learning_rate"], "sweep": swept["sweep"]}
        if job.kind == "trial":
            write_json(self._made(self._place(job)) / "config.json", {"system": job.system, "seed": job.seed, **config})
            steps = config["steps"] if trains(self.by_name[job.system]) else 0
            self.emit(
                {"type": "trial_started", "trial": job.name, "system": job.system, "seed": job.seed, "steps": steps}
            )
        self.pool.submit(job, config)
        return True

    @staticmethod
    def _made(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _config(self, job: Job) -> dict[str, Any]:
        """Everything a worker needs to know, as plain values."""
        settings, contestant = self.settings, self.by_name[job.system]
        rules = settings.rules(job.system, self.task.sample_tokens)
        steps, seconds = rules.steps, self.trial_seconds
        return {
            "task": settings.task,
            "data": str(self.folder.data.resolve()),
            "folder": str(self._place(job).resolve()),
            "kind": contestant.kind,
            "baseline": contestant.baseline,
            "options": dict(rules.options),
            "recipe": dict(rules.recipe),
            "metric": self.task.spec.metrics[0],
            "threads": settings.threads,
            "batch_size": rules.batch_size,
            "steps": steps,
            "seconds": seconds,
            "learning_rate": rules.learning_rates[0] if trains(contestant) else None,
            "learning_rates": list(rules.learning_rates),
            "sweep": [],
            "sweep_steps": None if steps is None else sweep_steps(steps, settings.sweep_share),
            "sweep_seconds": None if seconds is None else seconds * settings.sweep_share,
            "validate_every": rules.validate_every,
            "patience": rules.patience,
            "checkpoint_every": settings.checkpoint_every,
        }

    def _ended(self, ended: Ended) -> None:
        job, place = ended.job, self._place(ended.job)
        result = self.folder.result(place)
        if result is None:
            reason = ended.error or "the worker ended without a result."
            config = self._config(job)
            result = worker.unfinished(job, config, "failed", reason, peak_memory_mb=ended.peak, seconds=0.0)
            write_json(self._made(place) / RESULT, result)
        if job.kind == "trial":
            self._tell(job, result)

    def _tell(self, job: Job, result: dict[str, Any], earlier: bool = False) -> None:
        told = {k: result.get(k) for k in ("status", "reason", "val", "test", "steps", "seconds", "learning_rate")}
        who = {"trial": job.name, "system": job.system, "seed": job.seed}
        self.emit({"type": f"trial_{result['status']}", **who, "earlier": earlier, **told})

    def _worker_event(self, job: Job, event: Event) -> None:
        if event["type"] == "probe":
            speed = event.get("speed", {})
            self.speeds[job.system] = Speed(reason=event.get("reason", ""), **speed)
        elif event["type"] == "latency":
            self.latency_of = event["system"]
        elif job.kind == "refit":
            if event["type"] == "progress":
                self.emit({"type": "phase", "text": REFITTING, "fraction": event["fraction"]})
        else:
            self.emit({"trial": trial_name(job.system, job.seed), **event})

    # ----- the end

    def conclude(self) -> dict[str, Any]:
        """Latencies, the refit, ``best/``, leaderboard and report, from the results of all trials in the folder."""
        results = self.folder.results()
        for result in results:
            if result["status"] == "done":
                scores, _ = load_tensors(self.folder.trial(result["system"], result["seed"]) / worker.SCORES)
                result["per_sample"] = scores["test"]
        self.emit({"type": "phase", "text": "measuring latencies"})
        latencies = self._latencies(results)
        for result in results:
            result["latency_ms"] = latencies.get(result["system"])
        settings, machine = self.settings.as_dict(), machine_facts()
        summary = leaderboard.summarise(self.task, results, settings, machine)
        best = summary["best"]
        shipped = {}
        if best:
            shipping = Shipping(self.settings, self.task, self.folder, self.pool, self.emit)
            shipped = shipping.ship(summary)
        self.emit({"type": "phase", "text": "writing the report"})
        tracked = self.tracking.close({**(best or {}), **shipped}) if self.tracking is not None else []
        more = {"shipped": shipped, "tracking": tracked}
        made = leaderboard.build(self.folder.path, self.task, results, settings, machine, **more)
        self.emit({"type": "phase", "text": ""})
        return made

    def _latencies(self, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Latency of every system that finished; measured anew when the systems are not the ones measured before."""
        first = {r["system"]: r["seed"] for r in reversed(results) if r["status"] == "done"}
        file = self.folder.path / LATENCY
        if file.exists() and set(read_json(file)) == set(first):
            return read_json(file)
        file.unlink(missing_ok=True)
        trials = {system: self.folder.trial_config(system, seed) for system, seed in first.items()}
        while trials and not file.exists():
            self.latency_of = ""
            config = {"threads": 1, "folder": str(file), "trials": trials, "latency_seconds": LATENCY_SECONDS}
            self.pool.submit(Job("latency"), config)
            self.pool.wait()
            if not file.exists():
                # The system that was being called is the one that broke it; without a name, give up.
                trials = {n: c for n, c in trials.items() if self.latency_of not in ("", n)}
        return read_json(file) if file.exists() else {}

    def probe(self) -> dict[str, Speed]:
        """Measure the speed of every system, as many at once as there will be trials at once."""
        waiting = [Job("probe", c.name) for c in self.chosen]
        ended: list[Ended] = []
        while len(ended) < len(self.chosen):
            while waiting and self.pool.free:
                job = waiting.pop(0)
                self.pool.submit(job, self._config(job))
            ended += self.pool.wait()
        for end in ended:
            self.speeds.setdefault(end.job.system, Speed(reason=f"failed: {end.error or 'it ended early.'}"))
        return self.speeds
