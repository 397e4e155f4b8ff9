"""Tracking into CSV files, which anything can read.

``trials.csv`` has a line for each trial: its parameters, how it ended and its last figures. ``TRIAL.csv`` has the
points of one trial: step, metric, value.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..files import atomic_write
from .tracking import About, Target

_HEADER = ("step", "metric", "value")


class CsvTracker:
    """A :class:`~foveate.compare.tracking.Tracker` of files; nothing needs to be installed."""

    def __init__(self, target: Target, about: About) -> None:
        self.folder = target.place(about)
        self.where = str(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._about = about
        self._table = self.folder / "trials.csv"
        with io.StringIO(_text(self._table)) as text:
            self._trials: dict[str, dict[str, Any]] = {row["trial"]: row for row in csv.DictReader(text)}

    def begin(self, trial: str, params: Mapping[str, Any], step: int) -> dict[str, int]:
        file = self._file(trial)
        kept = [row for row in _points(file) if int(row[0]) <= step]
        atomic_write(file, _lines([_HEADER, *kept]))
        self._trials[trial] = {"trial": trial, "status": "running", "reason": "", **self._about.params, **params}
        self._write_table()
        return {name: int(at) for at, name, _ in kept}  # the last one wins

    def log(self, trial: str, step: int, metrics: Mapping[str, float]) -> None:
        with self._file(trial).open("a", encoding="utf-8", newline="") as file:
            file.write(_lines((step, name, repr(value)) for name, value in metrics.items()))

    def finish(self, trial: str, status: str, reason: str) -> None:
        last = {name: value for _, name, value in _points(self._file(trial))}
        self._trials[trial] |= {"status": status, "reason": reason, **last}
        self._write_table()

    def flush(self) -> None:
        """Every line is written at once."""

    def close(self, summary: Mapping[str, Any]) -> None:
        """There is nothing to be closed."""

    def _file(self, trial: str) -> Path:
        return self.folder / f"{trial}.csv"

    def _write_table(self) -> None:
        columns = list(dict.fromkeys(name for row in self._trials.values() for name in row))
        rows = [[row.get(name, "") for name in columns] for row in self._trials.values()]
        atomic_write(self._table, _lines([columns, *rows]))


def _text(file: Path) -> str:
    """What the whole lines of a file say; a last one without its end is the mark of a kill."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return text[: text.rfind("\n") + 1]


def _points(file: Path) -> list[list[str]]:
    return list(csv.reader(_text(file).splitlines()))[1:]


def _lines(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
