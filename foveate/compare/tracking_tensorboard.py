"""Tracking into TensorBoard's event files: one run for each trial, with its hyperparameters."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, ScalarEvent
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from .tracking import About, Target


class TensorboardTracker:
    """A :class:`~foveate.compare.tracking.Tracker` of event files, ``FOLDER/TRIAL/events.out...``.

    Event files can only grow. So a trial that goes on gets a new file with the points that stand, and then the old ones
    are removed: whoever reads them finds every step once.
    """

    def __init__(self, target: Target, about: About) -> None:
        self.folder = target.place(about)
        self.where = str(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._about = about
        self._writers: dict[str, SummaryWriter] = {}
        self._params: dict[str, dict[str, Any]] = {}
        self._last: dict[str, dict[str, float]] = {}
        # It warns about what a kill leaves: a file whose last event is torn.
        logging.getLogger("tensorboard").setLevel(logging.ERROR)

    def begin(self, trial: str, params: Mapping[str, Any], step: int) -> dict[str, int]:
        place = self.folder / trial
        if trial in self._writers:
            self._writers.pop(trial).close()
        old = list(place.glob("events.out.tfevents.*"))
        kept = {name: [p for p in points if p.step <= step] for name, points in _scalars(place).items()}
        writer = self._writers[trial] = SummaryWriter(place)
        self._params[trial] = {**self._about.params, **params}
        writer.add_text("params", "\n".join(f"    {name}: {value}" for name, value in self._params[trial].items()), 0)
        for name, points in kept.items():
            for point in points:
                writer.add_scalar(name, point.value, point.step, walltime=point.wall_time)
        writer.flush()
        for file in old:
            file.unlink()
        self._last[trial] = {name: points[-1].value for name, points in kept.items() if points}
        return {name: points[-1].step for name, points in kept.items() if points}

    def log(self, trial: str, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writers[trial].add_scalar(name, value, step)
        self._last[trial].update(metrics)

    def finish(self, trial: str, status: str, reason: str) -> None:
        writer = self._writers.pop(trial)
        writer.add_text("status", f"{status}: {reason}" if reason else status, 0)
        plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in self._params[trial].items()}
        # Not add_hparams, which would put them into a run of their own.
        for summary in hparams(plain, self._last.pop(trial)):
            writer.file_writer.add_summary(summary)  # type: ignore[union-attr]
        writer.close()

    def flush(self) -> None:
        for writer in self._writers.values():
            writer.flush()

    def close(self, summary: Mapping[str, Any]) -> None:
        for writer in self._writers.values():
            writer.close()


def _scalars(place: Path) -> dict[str, list[ScalarEvent]]:
    """Points of a run by metric, by rising step; of two with one step the first."""
    if not place.is_dir():
        return {}
    events = EventAccumulator(str(place), size_guidance={"scalars": 0})
    events.Reload()
    found = {}
    for name in events.Tags()["scalars"]:
        points = {point.step: point for point in reversed(events.Scalars(name))}
        found[name] = [points[step] for step in sorted(points)]
    return found
