"""Tracking with MLflow: a run for the comparison, and below it a nested run for each trial."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from .tracking import About, Target

#: What is set unless the user has: give up soon (the usual is minutes), send nothing to MLflow's makers.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_STATUS = {"done": "FINISHED", "failed": "FAILED", "skipped": "KILLED"}
#: What a server takes at once, and the longest value of a parameter or tag that every store takes.
_METRICS_AT_ONCE, _PARAMS_AT_ONCE, _LONGEST = 1000, 100, 500


class MlflowTracker:
    """A :class:`~foveate.compare.tracking.Tracker` on a server, a database or a folder.

    Runs are found again by their tags (``foveate.comparison``, ``foveate.trial``), so a comparison that goes on goes on
    in the same runs. Points cannot be taken back from MLflow: what was sent before a kill stays.
    """

    def __init__(self, target: Target, about: About) -> None:
        self.where = target.address(about)
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if "://" not in self.where or self.where.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder was asked for
        if not target.where:
            about.folder.mkdir(parents=True, exist_ok=True)
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)  # they report their progress
        self._metric, self._param = Metric, Param
        self._client = MlflowClient(tracking_uri=self.where)
        self._about = about
        self._runs: dict[str, str] = {}
        self._unsent: list[tuple[str, Any]] = []
        name = f"foveate-{about.params['task']}"
        experiment = self._client.get_experiment_by_name(name)
        self._experiment = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self._parent, _ = self._open(about.name, {"foveate.kind": "comparison"}, about.params)

    def begin(self, trial: str, params: Mapping[str, Any], step: int) -> dict[str, int]:
        tags = {"foveate.kind": "trial", "foveate.trial": trial}
        more = {"mlflow.parentRunId": self._parent}
        self._runs[trial], metrics = self._open(trial, tags, {**self._about.params, **params}, more)
        histories = {name: self._client.get_metric_history(self._runs[trial], name) for name in metrics}
        return {name: max(point.step for point in history) for name, history in histories.items()}

    def log(self, trial: str, step: int, metrics: Mapping[str, float]) -> None:
        now, run = int(1000 * time.time()), self._runs[trial]
        self._unsent += [(run, self._metric(name, value, now, step)) for name, value in metrics.items()]

    def finish(self, trial: str, status: str, reason: str) -> None:
        self.flush()
        run = self._runs[trial]
        self._client.set_tag(run, "foveate.status", status)
        if reason:
            self._client.set_tag(run, "foveate.reason", reason[:_LONGEST])
        self._client.set_terminated(run, _STATUS[status])

    def flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        for run in dict.fromkeys(run for run, _ in unsent):
            for points in _parts([point for of, point in unsent if of == run], _METRICS_AT_ONCE):
                self._client.log_batch(run, metrics=points)

    def close(self, summary: Mapping[str, Any]) -> None:
        self.flush()
        for name, value in summary.items():
            self._client.set_tag(self._parent, f"foveate.{name}", str(value))
        self._client.set_terminated(self._parent, "FINISHED")

    def _open(
        self, name: str, tags: Mapping[str, str], params: Mapping[str, Any], more: Mapping[str, str] | None = None
    ) -> tuple[str, list[str]]:
        """Find a run by its tags or make it: its id, and the metrics that it has."""
        tags = {"foveate.comparison": self._about.id, **tags}
        query = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items())
        found = self._client.search_runs([self._experiment], filter_string=query, max_results=1)
        if found:
            run = found[0]
            self._client.update_run(run.info.run_id, status="RUNNING")
        else:
            run = self._client.create_run(self._experiment, tags={**tags, **(more or {})}, run_name=name)
        # A parameter cannot be changed once it is there.
        missing = [self._param(k, str(v)[:_LONGEST]) for k, v in params.items() if k not in run.data.params]
        for part in _parts(missing, _PARAMS_AT_ONCE):
            self._client.log_batch(run.info.run_id, params=part)
        return run.info.run_id, list(run.data.metrics)


def _parts(values: list[Any], size: int) -> Iterator[list[Any]]:
    for begin in range(0, len(values), size):
        yield values[begin : begin + size]
