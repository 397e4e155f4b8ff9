"""Trackers: where a comparison can be followed besides its own folder.

A tracker is one class with five methods, in a module of its own that is imported when it is asked for. What it is told
comes from :mod:`foveate.compare.tracking_hub`; nothing here imports torch or a tracker.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, util
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from ..errors import InvalidValue, missing_extra, unknown_name

#: Kind of tracker to its class, as ``module:Class`` beside this module.
TRACKERS = {
    "csv": "tracking_csv:CsvTracker",
    "mlflow": "tracking_mlflow:MlflowTracker",
    "tensorboard": "tracking_tensorboard:TensorboardTracker",
}
#: Addresses of databases that MLflow itself opens, without a server.
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


@dataclass(frozen=True, slots=True)
class About:
    """The comparison that is tracked.

    Attributes:
        id: its own, kept over resumes.
        name: of its folder.
        folder: where trackers without a place put their files.
        params: what all trials share: task, budget, data.
    """

    id: str
    name: str
    folder: Path
    params: Mapping[str, Any]


class Tracker(Protocol):
    """What every tracker does; each method may take its time and may fail, which ends the tracker alone.

    The constructor takes the :class:`Target` and the :class:`About`. Steps of a metric only ever rise.
    """

    #: Where it writes, for the record.
    where: str

    def begin(self, trial: str, params: Mapping[str, Any], step: int) -> dict[str, int]:
        """Open the run of a trial, or go on with the one there is.

        Args:
            trial: its name, the same in every process.
            params: plain values; nothing is None.
            step: where the trial goes on: points after it will come again, so they are forgotten where that is
                possible.

        Returns:
            The last step that is held of every metric; no point up to it will come again.
        """
        ...

    def log(self, trial: str, step: int, metrics: Mapping[str, float]) -> None:
        """Take finite values, after :meth:`begin`."""
        ...

    def finish(self, trial: str, status: str, reason: str) -> None:
        """The trial is over: "done", "failed" or "skipped", the last two with their reason."""
        ...

    def flush(self) -> None:
        """Let others see what has been logged."""
        ...

    def close(self, summary: Mapping[str, Any]) -> None:
        """The comparison is over; ``summary`` names the winner, if there is one."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """A tracker that was asked for.

    Attributes:
        kind: a key of :data:`TRACKERS`.
        where: a folder or an address; "" for the usual place.
    """

    kind: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.where}" if self.where else self.kind

    def place(self, about: About) -> Path:
        """The folder that a tracker of files writes into: in the comparison's own, or one of its own in ``where``."""
        return Path(self.where) / f"{about.name}-{about.id[:8]}" if self.where else about.folder / self.kind

    def address(self, about: About) -> str:
        """The tracking URI of MLflow: as given, else that of its environment variable, else a file of ours."""
        database = (about.folder / "mlflow.db").absolute().as_posix()
        return self.where or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{database}"

    def needs(self) -> tuple[str, ...]:
        """Modules that must be there, all of the extra ``track``."""
        if self.kind != "mlflow":
            return () if self.kind == "csv" else (self.kind,)
        where = self.where or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite"
        return ("mlflow", "sqlalchemy", "alembic") if where.startswith(_DATABASES) else ("mlflow",)

    def open(self, about: About) -> Tracker:
        """Make the tracker; this is when its module is imported."""
        module, _, name = TRACKERS[self.kind].partition(":")
        return getattr(import_module(f".{module}", __package__), name)(self, about)


def parse(given: str | Sequence[str]) -> tuple[Target, ...]:
    """The trackers that a text such as ``csv,mlflow:http://localhost:5000``, or a list of such parts, asks for.

    Raises:
        UnknownName: there is no such tracker.
        InvalidValue: an address carries a password, which would end up in the record.
    """
    targets = []
    for text in given.split(",") if isinstance(given, str) else given:
        kind, _, where = text.strip().partition(":")
        if kind not in TRACKERS:
            raise unknown_name("tracker", kind, TRACKERS)
        if "@" in urlsplit(where).netloc:
            raise InvalidValue(
                f"track={kind!r} has an address with a user's name: it would end up in the record; "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead."
            )
        targets.append(Target(kind, where))
    return tuple(dict.fromkeys(targets))


def check_installed(targets: Sequence[Target]) -> None:
    """See that every tracker can be imported, without importing it.

    Raises:
        MissingExtra: one cannot.
    """
    for target in targets:
        for module in target.needs():
            if util.find_spec(module) is None:
                raise missing_extra(module, "track", f"tracking with {target.kind}")
