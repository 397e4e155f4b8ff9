"""Tells trackers about a comparison, as it goes, without ever holding it up.

Every tracker lives in a thread of its own and takes what it is told from a queue: a slow server delays no trial, and a
tracker that fails is dropped with one warning while the comparison goes on. A kill loses what was in the queue; the
next process reads it again from the trials' logs, which are the truth. What goes on at a checkpoint repeats steps:
trackers say which points they hold, and those are not sent a second time.
"""

from __future__ import annotations

import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..files import read_json, read_jsonl, write_json
from ..pages.figures import finite
from ..tasks.base import Task
from ..tasks.trainer import LOG
from .folder import Folder
from .pool import Event
from .settings import Settings
from .tracking import About, Target, Tracker, parse

FOLDER, RECORD = "tracking", "tracking.json"
#: Training losses are passed on no closer than this many seconds and this share of a trial.
POINT_SECONDS, POINT_SHARE = 1.0, 1e-3
#: Seconds between flushes, and how long the end of a comparison waits for trackers: under a time budget, a share of it.
FLUSH_SECONDS, CLOSE_SECONDS, CLOSE_SHARE = 2.0, 30.0, 0.01

_Call = Callable[[Tracker], None]


class Tracking:
    """All trackers of a comparison. :meth:`event` takes its events, :meth:`close` ends it.

    Args:
        settings, task: of the comparison.
        folder: its folder, which the caller holds.
        warn: called with one sentence when a tracker is dropped, from the thread that calls :meth:`event`.
    """

    def __init__(self, settings: Settings, task: Task, folder: Folder, warn: Callable[[str], None]) -> None:
        self._folder, self._warn = folder, warn
        self._begun: set[str] = set()
        self._last: dict[str, tuple[float, float]] = {}
        self._warned: set[Target] = set()
        self._patience = CLOSE_SECONDS
        if settings.budget is not None:
            self._patience = min(CLOSE_SECONDS, CLOSE_SHARE * settings.budget)
        targets = parse(settings.track)
        self._record = _Record(folder.path / RECORD) if targets else None
        self._couriers = []
        if self._record is not None:
            about = About(self._record.id, folder.path.resolve().name, folder.path / FOLDER, _params(settings, task))
            self._couriers = [_Courier(target, about, self._record) for target in targets]

    def event(self, event: Event) -> None:
        """Take in one event of the comparison; see :mod:`foveate.compare.progress` for their forms."""
        self._tell_failures()
        if not self._couriers or "trial" not in event:
            return
        kind, trial, step = event["type"], event["trial"], event.get("step") or 0
        if kind == "trial_started":
            self._begun.discard(trial)
        elif kind == "resumed":
            self._begin(event, step)
        elif kind == "progress":
            self._begin(event, 0)
            if self._due(trial, event.get("fraction") or 0.0):
                self._log(trial, step, {"train/loss": event.get("loss"), "train/learning_rate": event.get("lr")})
        elif kind == "validated":
            self._begin(event, 0)
            self._log(trial, step, _validation(event.get("loss"), event.get("val")))
        elif kind in ("trial_done", "trial_failed", "trial_skipped"):
            self._finish(event, kind.removeprefix("trial_"))

    def close(self, summary: Mapping[str, Any]) -> list[dict[str, str]]:
        """Tell the trackers that the comparison is over, wait for them for a moment, and say how it went.

        Args:
            summary: what they keep about the comparison as a whole; plain values.

        Returns:
            For the record, of each tracker: "tracker", "where", "status" ("complete" or "failed") and "reason".
        """
        for courier in self._couriers:
            courier.post(lambda tracker: tracker.close(summary))
            courier.post(None)
        deadline = time.monotonic() + self._patience
        for courier in self._couriers:
            courier.wait(deadline - time.monotonic())
        self._tell_failures()
        return [courier.as_dict() for courier in self._couriers]

    def stop(self) -> None:
        """Let go of the trackers where they stand: the comparison was interrupted, or has been closed."""
        for courier in self._couriers:
            courier.stop()

    def _tell_failures(self) -> None:
        for courier in self._couriers:
            if courier.error and courier.target not in self._warned:
                self._warned.add(courier.target)
                self._warn(f"tracking with {courier.target} ended, the comparison goes on: {courier.error}")

    def _begin(self, event: Event, step: int) -> None:
        trial = event["trial"]
        if trial not in self._begun:
            self._begun.add(trial)
            for courier in self._couriers:
                self._begin_with(courier, event, step)

    def _begin_with(self, courier: _Courier, event: Event, step: int) -> None:
        system, _, seed = event["trial"].rpartition("-seed")
        known = {"system": event.get("system", system), "seed": event.get("seed", int(seed))}
        courier.begin(event["trial"], self._folder.trial(system, int(seed)), known, step)

    def _log(self, trial: str, step: int, metrics: Mapping[str, Any]) -> None:
        for courier in self._couriers:
            courier.log(trial, step, metrics)

    def _due(self, trial: str, fraction: float) -> bool:
        now = time.monotonic()
        last, at = self._last.get(trial, (0.0, -1.0))
        if now - last < POINT_SECONDS or abs(fraction - at) < POINT_SHARE:
            return False
        self._last[trial] = now, fraction
        return True

    def _finish(self, event: Event, status: str) -> None:
        trial, steps, reason = event["trial"], event.get("steps") or 0, event.get("reason") or ""
        final = {f"best/val/{name}": value for name, value in (event.get("val") or {}).items()}
        final |= {f"test/{name}": value for name, value in (event.get("test") or {}).items()}
        for courier in self._couriers:
            if event.get("earlier") and courier.finished(trial):
                continue
            if trial not in self._begun:
                self._begin_with(courier, event, steps)
            courier.log(trial, steps, final)
            courier.finish(trial, status, reason)
        self._begun.discard(trial)


class _Record:
    """``tracking.json``: the comparison's name for trackers, and which trials each of them has been told about."""

    def __init__(self, file: Path) -> None:
        self._file, self._lock = file, threading.Lock()
        self._content = read_json(file) if file.exists() else {"id": uuid.uuid4().hex, "finished": {}}
        self.id: str = self._content["id"]
        write_json(file, self._content)

    def finished(self, target: Target) -> set[str]:
        with self._lock:
            return set(self._content["finished"].get(str(target), ()))

    def add(self, target: Target, trial: str) -> None:
        with self._lock:
            told = self._content["finished"].setdefault(str(target), [])
            if trial not in told:
                told.append(trial)
                write_json(self._file, self._content)


class _Courier:
    """A tracker in its thread, and the queue to it."""

    def __init__(self, target: Target, about: About, record: _Record) -> None:
        self.target, self.error = target, ""
        self.where = ""
        self._about, self._record = about, record
        self._queue: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._stopped = False
        self._held: dict[str, dict[str, int]] = {}  # last step of every metric, by trial; of the thread alone
        self._thread = threading.Thread(target=self._work, name=f"foveate-track-{target.kind}", daemon=True)
        self._thread.start()

    def post(self, call: _Call | None) -> None:
        """Have something done in its turn; None is the end."""
        if not self.error:
            self._queue.put(call)

    def stop(self) -> None:
        """End after what is being done now, whatever waits."""
        self._stopped = True
        self._queue.put(None)

    def wait(self, seconds: float) -> None:
        """Wait for the end, and make one if it does not come."""
        self._thread.join(max(0.0, seconds))
        if self._thread.is_alive():
            self.stop()
            self.error = self.error or "it had not taken everything when all else was done; the same command goes on."

    def finished(self, trial: str) -> bool:
        """Whether a process before this one told it everything about a trial."""
        return trial in self._record.finished(self.target)

    def as_dict(self) -> dict[str, str]:
        status = "failed" if self.error else "complete"
        where = self.where or self.target.where
        return {"tracker": self.target.kind, "where": where, "status": status, "reason": self.error}

    # ----- what is posted

    def begin(self, trial: str, place: Path, known: Mapping[str, Any], step: int) -> None:
        """Open or continue a trial at ``step``, and fill in what its log has and the tracker has not."""

        def call(tracker: Tracker) -> None:
            self._held[trial] = dict(tracker.begin(trial, {**known, **_trial_params(place)}, step))
            for line in read_jsonl(place / LOG):
                if line["step"] <= step:
                    self._send(tracker, trial, line["step"], _validation(line["loss"], line["val"]))

        self.post(call)

    def log(self, trial: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Pass on the points that are finite and that it does not hold."""
        self.post(lambda tracker: self._send(tracker, trial, step, metrics))

    def finish(self, trial: str, status: str, reason: str) -> None:
        def call(tracker: Tracker) -> None:
            tracker.finish(trial, status, reason)
            self._record.add(self.target, trial)

        self.post(call)

    # ----- the thread

    def _work(self) -> None:
        try:
            tracker = self.target.open(self._about)
            self.where = tracker.where
            self._deliver(tracker)
        except Exception as error:  # whatever it is, it is the tracker's affair, and is told
            first = (str(error).strip().splitlines() or [""])[0][:200]
            self.error = f"{type(error).__name__}{': ' if first else ''}{first}"

    def _deliver(self, tracker: Tracker) -> None:
        flushed, dirty = time.monotonic(), False
        while True:
            try:
                call = self._queue.get(timeout=FLUSH_SECONDS)
                if call is None or self._stopped:
                    return
                call(tracker)
                dirty = True
            except queue.Empty:
                pass
            if dirty and time.monotonic() - flushed >= FLUSH_SECONDS:
                tracker.flush()
                flushed, dirty = time.monotonic(), False

    def _send(self, tracker: Tracker, trial: str, step: int, metrics: Mapping[str, Any]) -> None:
        held = self._held[trial]
        new = {name: float(v) for name, v in metrics.items() if finite(v) and step > held.get(name, -1)}
        if new:
            tracker.log(trial, step, new)
            held.update(dict.fromkeys(new, step))


def _validation(loss: Any, val: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"train/mean_loss": loss, **{f"val/{name}": value for name, value in (val or {}).items()}}


def _params(settings: Settings, task: Task) -> dict[str, Any]:
    """What all trials share."""
    facts = task.describe()
    budget = {name: getattr(settings, name) for name in ("steps", "tokens", "budget")}
    data = {f"data.{name}": facts.get(name) for name in ("source", "sha256")}
    return {k: v for k, v in {"task": settings.task, **budget, **data}.items() if v is not None}


def _trial_params(place: Path) -> dict[str, Any]:
    """The configuration of a trial, as plain values; {} where it was never begun."""
    file = place / "config.json"
    if not file.exists():
        return {}
    config = read_json(file)
    names = ("system", "seed", "kind", "learning_rate", "batch_size", "steps", "seconds", "patience", "threads")
    params = {name: config.get(name) for name in names}
    params |= {f"options.{name}": value for name, value in config["options"].items()}
    return {name: value for name, value in params.items() if value is not None}
