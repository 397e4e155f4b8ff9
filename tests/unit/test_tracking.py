"""Trackers: what is asked for, what each of them holds after resumes, and that none of them can hurt a comparison."""

from __future__ import annotations

import csv
import json
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from foveate.compare import Settings, make_plan, run
from foveate.compare import tracking_hub as hub
from foveate.compare.folder import Folder
from foveate.compare.tracking import About, Target, check_installed, parse
from foveate.compare.tracking_csv import CsvTracker
from foveate.errors import InvalidValue, MissingExtra, UnknownName
from foveate.files import append_line, write_json
from tests.toy import ToyTask

TRIAL = "tests.toy.Linear-seed0"
TOY: dict[str, Any] = {"task": "tests.toy:ToyTask", "systems": ["tests.toy:Linear"], "steps": 30, "seeds": 1}


# ----- what is asked for


def test_what_is_asked_for():
    given = parse("csv,tensorboard:logs,mlflow:http://localhost:5000,csv")
    assert given == (Target("csv"), Target("tensorboard", "logs"), Target("mlflow", "http://localhost:5000"))
    assert parse(["csv:a,b"]) == (Target("csv", "a,b"),)
    assert [str(target) for target in given] == ["csv", "tensorboard:logs", "mlflow:http://localhost:5000"]
    assert Settings(task="forecast", track="csv,mlflow:x").as_dict()["track"] == ["csv", "mlflow:x"]
    assert parse(()) == ()


def test_unknown_trackers_are_named():
    with pytest.raises(UnknownName, match="unknown tracker 'tensorbord': did you mean 'tensorboard'"):
        Settings(task="forecast", track="csv,tensorbord")


def test_passwords_stay_out_of_the_record():
    with pytest.raises(InvalidValue, match="track='mlflow' has an address with a user's name: it would end up") as told:
        parse("mlflow:https://me:secret@host/")
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("track", "module"),
    [("tensorboard", "tensorboard"), ("mlflow:http://127.0.0.1:9", "mlflow"), ("mlflow:sqlite:///x.db", "sqlalchemy")],
)
def test_what_is_not_installed_is_told_before_anything_starts(track, module, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    for start in (run, make_plan):
        with pytest.raises(MissingExtra, match=rf"needs {module}: install it with pip install 'foveate\[track\]'\."):
            start(Settings(**TOY, track=track, out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_a_server_needs_no_database_driver(monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setitem(sys.modules, "alembic", None)
    check_installed(parse("csv,mlflow:http://127.0.0.1:9"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(MissingExtra, match="alembic"):
        check_installed(parse("mlflow"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    check_installed(parse("mlflow"))


def test_trackers_are_imported_when_used_only():
    import subprocess

    code = (
        "import sys, foveate.compare.runner\n"
        "from foveate.compare import Settings\n"
        "Settings(task='forecast', track='csv,tensorboard,mlflow')\n"
        "found = {'mlflow', 'tensorboard', 'torch.utils.tensorboard'} & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# ----- each tracker


def about(folder: Path, identity: str = "0123456789abcdef") -> About:
    return About(identity, "run", folder / "tracking", {"task": "toy", "steps": 30})


def read_csv(folder: Path) -> list[tuple[str, int, float]]:
    with (folder / f"{TRIAL}.csv").open() as file:
        return [(row["metric"], int(row["step"]), float(row["value"])) for row in csv.DictReader(file)]


def read_tensorboard(folder: Path) -> list[tuple[str, int, float]]:
    """Straight from the event files, so that nothing is hidden by what reads them."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    points = []
    for file in sorted((folder / TRIAL).glob("events.*")):
        for event in LegacyEventFileLoader(str(file)).Load():
            points += [(v.tag, event.step, v.simple_value) for v in event.summary.value if v.HasField("simple_value")]
    return points


def client(where: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=where)


def mlflow_runs(where: str) -> list[Any]:
    reader = client(where)
    return [run for e in reader.search_experiments() for run in reader.search_runs([e.experiment_id])]


def read_mlflow(where: str) -> list[tuple[str, int, float]]:
    (run,) = [r for r in mlflow_runs(where) if r.data.tags.get("foveate.trial") == TRIAL]
    history = client(where).get_metric_history
    return [(name, p.step, p.value) for name in run.data.metrics for p in history(run.info.run_id, name)]


READ = {"csv": read_csv, "tensorboard": read_tensorboard, "mlflow": read_mlflow}


def tell(tracker: Any, steps: range, held: dict[str, int]) -> None:
    """What the hub does: points that are held are not sent again."""
    for step in steps:
        if step > held.get("val/mse", -1):
            tracker.log(TRIAL, step, {"val/mse": 1 / step, "val/mae": 2 / step})


@pytest.fixture(params=["csv", "tensorboard", "mlflow"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param != "csv":
        pytest.importorskip(request.param)
    return request.param


def test_a_trial_that_goes_on_has_every_step_once(kind, tmp_path):
    """Killed after step 8, resumed at step 5: no step is missing, none is there twice."""
    target = Target(kind)
    first = target.open(about(tmp_path))
    params = {"system": "tests.toy:Linear", "seed": 0, "learning_rate": 0.1, "options.width": 3}
    assert first.begin(TRIAL, params, 0) == {}
    tell(first, range(1, 9), {})
    first.flush()
    again = target.open(about(tmp_path))
    held = again.begin(TRIAL, params, 5)
    assert held == dict.fromkeys(("val/mse", "val/mae"), 8 if kind == "mlflow" else 5)
    tell(again, range(6, 13), held)
    again.finish(TRIAL, "done", "")
    again.close({"system": "tests.toy:Linear"})
    found = READ[kind](again.where if kind == "mlflow" else Path(again.where))
    points = [p for p in found if p[0].startswith("val/")]
    assert max(Counter((name, step) for name, step, _ in points).values()) == 1
    expected = [("val/mse", s, 1 / s) for s in range(1, 13)] + [("val/mae", s, 2 / s) for s in range(1, 13)]
    assert sorted(points) == [(n, s, pytest.approx(v, rel=1e-6)) for n, s, v in sorted(expected)]


def test_places(tmp_path):
    """In the comparison's own folder, or in a folder of its own elsewhere, which no other comparison writes into."""
    inside = CsvTracker(Target("csv"), about(tmp_path))
    assert Path(inside.where) == tmp_path / "tracking" / "csv"
    elsewhere = CsvTracker(Target("csv", str(tmp_path / "all")), about(tmp_path))
    assert Path(elsewhere.where) == tmp_path / "all" / "run-01234567"


def test_csv_survives_a_torn_line(tmp_path):
    tracker = CsvTracker(Target("csv"), about(tmp_path))
    tracker.begin(TRIAL, {}, 0)
    tell(tracker, range(1, 4), {})
    file = tmp_path / "tracking" / "csv" / f"{TRIAL}.csv"
    file.write_text(file.read_text() + "4,val/m")
    assert CsvTracker(Target("csv"), about(tmp_path)).begin(TRIAL, {}, 9) == {"val/mse": 3, "val/mae": 3}
    assert len(read_csv(tmp_path / "tracking" / "csv")) == 6


def test_csv_lists_the_trials(tmp_path):
    tracker = CsvTracker(Target("csv"), about(tmp_path))
    for trial, status, reason in (("a-seed0", "done", ""), ("b-seed0", "failed", 'said "no", twice')):
        tracker.begin(trial, {"system": trial[0], "seed": 0}, 0)
        tracker.log(trial, 3, {"test/mse": 0.1 + 0.2})
        tracker.finish(trial, status, reason)
    CsvTracker(Target("csv"), about(tmp_path)).begin("c-seed0", {"system": "c", "options.width": 3}, 0)
    with (tmp_path / "tracking" / "csv" / "trials.csv").open() as file:
        rows = {row["trial"]: row for row in csv.DictReader(file)}
    assert [rows[t]["status"] for t in ("a-seed0", "b-seed0", "c-seed0")] == ["done", "failed", "running"]
    assert rows["b-seed0"]["reason"] == 'said "no", twice'
    assert float(rows["a-seed0"]["test/mse"]) == 0.1 + 0.2
    assert rows["c-seed0"]["options.width"] == "3"
    assert rows["a-seed0"]["task"] == "toy"


def test_tensorboard_shows_parameters_beside_final_figures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    tracker = Target("tensorboard").open(about(tmp_path))
    tracker.begin(TRIAL, {"system": "x", "learning_rate": 0.1}, 0)
    tracker.log(TRIAL, 9, {"test/mse": 0.5})
    tracker.finish(TRIAL, "failed", "diverged: nan.")
    events = EventAccumulator(str(tmp_path / "tracking" / "tensorboard" / TRIAL))
    events.Reload()
    plugin = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    shown = HParamsPluginData.FromString(plugin).session_start_info.hparams
    assert shown["learning_rate"].number_value == 0.1
    assert shown["task"].string_value == "toy"
    assert b"failed: diverged: nan." in events.Tensors("status/text_summary")[0].tensor_proto.string_val[0]


@pytest.mark.parametrize("store", ["sqlite", "folder"])
def test_mlflow_nests_trials_under_the_comparison(store, tmp_path):
    pytest.importorskip("mlflow")
    where = f"sqlite:///{tmp_path}/x.db" if store == "sqlite" else str(tmp_path / "runs")
    for identity in ("first", "first", "second"):  # one comparison that is resumed, and another one
        tracker = Target("mlflow", where).open(about(tmp_path, identity))
        tracker.begin(TRIAL, {"system": "tests.toy:Linear", "learning_rate": 0.1}, 0)
        here = [r.info.status for r in mlflow_runs(where) if r.data.tags["foveate.comparison"] == identity]
        assert here == ["RUNNING", "RUNNING"]
        tracker.finish(TRIAL, "failed", "diverged.")
        tracker.close({"system": "tests.toy:Linear", "refit": True})
    runs = mlflow_runs(where)
    assert len(runs) == 4
    parents = {r.data.tags["foveate.comparison"]: r for r in runs if r.data.tags["foveate.kind"] == "comparison"}
    assert set(parents) == {"first", "second"}
    for found in runs:
        tags, parent = found.data.tags, parents[found.data.tags["foveate.comparison"]]
        if found is parent:
            assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
            assert (tags["foveate.system"], tags["foveate.refit"]) == ("tests.toy:Linear", "True")
        else:
            assert tags["mlflow.parentRunId"] == parent.info.run_id
            assert (found.info.status, tags["foveate.reason"]) == ("FAILED", "diverged.")
            told = {"task": "toy", "steps": "30", "system": "tests.toy:Linear", "learning_rate": "0.1"}
            assert found.data.params == told


# ----- the hub


class Fake:
    """A tracker that remembers, and fails or dawdles when told."""

    where = "nowhere"

    def __init__(self, fail_at: str = "", wait: float = 0.0) -> None:
        self.fail_at, self.wait, self.told = fail_at, wait, []

    def _hear(self, *what: Any) -> None:
        time.sleep(self.wait)
        self.told.append(what)
        if what[0] == self.fail_at:
            raise OSError("No space left on device")

    def begin(self, trial: str, params: dict[str, Any], step: int) -> dict[str, int]:
        self._hear("begin", trial, step)
        return {"val/mse": 10}

    def log(self, trial: str, step: int, metrics: dict[str, float]) -> None:
        self._hear("log", step, dict(metrics))

    def finish(self, trial: str, status: str, reason: str) -> None:
        self._hear("finish", trial, status)

    def flush(self) -> None:
        self._hear("flush")

    def close(self, summary: dict[str, Any]) -> None:
        self._hear("close", dict(summary))


@pytest.fixture
def tracked(tmp_path, monkeypatch):
    """Makes a hub with one fake tracker, in a folder with one trial that has a log."""
    place = tmp_path / "trials" / TRIAL
    place.mkdir(parents=True)
    write_json(place / "config.json", {"system": "tests.toy:Linear", "seed": 0, "options": {"width": 3}})
    for step in (5, 10, 15, 20):
        append_line(place / "log.jsonl", {"step": step, "loss": step / 10, "val": {"mse": step / 100, "mae": None}})
    warnings: list[str] = []

    def make(fake: Fake, **options: Any) -> tuple[hub.Tracking, list[str]]:
        monkeypatch.setattr(Target, "open", lambda self, about: fake)
        settings = Settings(**TOY, track="csv", **options)
        return hub.Tracking(settings, ToyTask(64, 0.1), Folder(tmp_path), warnings.append), warnings

    return make


def started(**more: Any) -> dict[str, Any]:
    return {"type": "trial_started", "trial": TRIAL, "system": "tests.toy:Linear", "seed": 0, **more}


def done(**more: Any) -> dict[str, Any]:
    scores = {"val": {"mse": 0.1}, "test": {"mse": float("nan"), "mae": 0.3}, "steps": 25}
    return {"type": "trial_done", "trial": TRIAL, "earlier": False, **scores, **more}


def test_a_resumed_trial_fills_in_what_the_tracker_has_not(tracked):
    """It holds validations up to step 10, the checkpoint is of step 20: the log has what lies between."""
    fake = Fake()
    hub_, warnings = tracked(fake)
    hub_.event(started())
    hub_.event({"type": "resumed", "trial": TRIAL, "step": 20})
    hub_.event({"type": "validated", "trial": TRIAL, "step": 25, "loss": 2.5, "val": {"mse": 0.25}})
    hub_.event(done())
    (record,) = hub_.close({"system": "x"})
    assert fake.told == [
        ("begin", TRIAL, 20),
        ("log", 5, {"train/mean_loss": 0.5}),
        ("log", 10, {"train/mean_loss": 1.0}),
        ("log", 15, {"train/mean_loss": 1.5, "val/mse": 0.15}),
        ("log", 20, {"train/mean_loss": 2.0, "val/mse": 0.2}),
        ("log", 25, {"train/mean_loss": 2.5, "val/mse": 0.25}),
        ("log", 25, {"best/val/mse": 0.1, "test/mae": 0.3}),
        ("finish", TRIAL, "done"),
        ("close", {"system": "x"}),
    ]
    assert record == {"tracker": "csv", "where": "nowhere", "status": "complete", "reason": ""}
    assert not warnings


def test_a_trial_that_starts_anew_ignores_its_old_log(tracked):
    fake = Fake()
    hub_, _ = tracked(fake)
    hub_.event(started())
    hub_.event({"type": "progress", "trial": TRIAL, "step": 1, "fraction": 0.03, "loss": 9.0, "lr": 0.1})
    hub_.event({"type": "progress", "trial": TRIAL, "step": 2, "fraction": 0.06, "loss": 8.0, "lr": 0.1})  # too soon
    hub_.close({})
    assert fake.told[:2] == [("begin", TRIAL, 0), ("log", 1, {"train/loss": 9.0, "train/learning_rate": 0.1})]
    assert fake.told[2] == ("close", {})


def test_a_trial_of_an_earlier_process_is_told_once(tracked):
    first = Fake()
    hub_, _ = tracked(first)
    hub_.event(done(earlier=True))
    hub_.close({})
    assert [what[0] for what in first.told] == ["begin", *["log"] * 5, "finish", "close"]
    second = Fake()
    hub_, _ = tracked(second)
    hub_.event(done(earlier=True))
    hub_.close({})
    assert [what[0] for what in second.told] == ["close"]


@pytest.mark.parametrize("fail_at", ["begin", "log", "finish", "close"])
def test_a_tracker_that_fails_is_dropped_with_one_warning(fail_at, tracked, tmp_path):
    fake = Fake(fail_at)
    hub_, warnings = tracked(fake)
    hub_.event(started())
    for step in range(1, 4):
        hub_.event({"type": "validated", "trial": TRIAL, "step": step, "loss": 1.0, "val": {"mse": 0.5}})
    hub_.event(done())
    (record,) = hub_.close({})
    assert [what[0] for what in fake.told].count(fail_at) == 1
    assert fake.told[-1][0] == fail_at, "nothing is told to it after that"
    assert record["status"] == "failed"
    assert record["reason"] == "OSError: No space left on device"
    assert warnings == ["tracking with csv ended, the comparison goes on: OSError: No space left on device"]
    # What it did not take to its end comes again with the next process.
    told = json.loads((tmp_path / "tracking.json").read_text())["finished"]
    assert told == ({"csv": [TRIAL]} if fail_at == "close" else {})


def test_a_slow_tracker_holds_nothing_up(tracked, monkeypatch):
    monkeypatch.setattr(hub, "CLOSE_SECONDS", 0.3)
    fake = Fake(wait=0.2)
    hub_, warnings = tracked(fake)
    begun = time.monotonic()
    hub_.event(started())
    for step in range(1, 101):
        hub_.event({"type": "validated", "trial": TRIAL, "step": step, "loss": 1.0, "val": {"mse": 0.5}})
    assert time.monotonic() - begun < 0.2
    (record,) = hub_.close({})
    assert time.monotonic() - begun < 2.0
    assert record["status"] == "failed"
    assert "had not taken everything" in record["reason"]
    assert len(warnings) == 1


def test_logged_points_are_flushed_while_nothing_happens(tracked, monkeypatch):
    monkeypatch.setattr(hub, "FLUSH_SECONDS", 0.05)
    fake = Fake()
    hub_, _ = tracked(fake)
    hub_.event(started())
    hub_.event({"type": "validated", "trial": TRIAL, "step": 11, "loss": 1.0, "val": {"mse": 0.5}})
    deadline = time.monotonic() + 10
    while ("flush",) not in fake.told and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ("flush",) in fake.told
    hub_.stop()


def test_without_trackers_nothing_is_written(tmp_path):
    hub_ = hub.Tracking(Settings(**TOY), ToyTask(64, 0.1), Folder(tmp_path), print)
    hub_.event(started())
    assert hub_.close({}) == []
    assert not list(tmp_path.iterdir())


def test_no_thread_stays_behind(tracked):
    hub_, _ = tracked(Fake())
    hub_.stop()
    deadline = time.monotonic() + 10
    while any(t.name.startswith("foveate-track") for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [t.name for t in threading.enumerate() if t.name.startswith("foveate-track")]


def test_a_server_that_never_answers_is_given_up_soon(tmp_path, monkeypatch):
    """It takes the connection and says nothing, which is worse than being away."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        target = Target("mlflow", f"http://127.0.0.1:{server.getsockname()[1]}")
        begun = time.monotonic()
        with pytest.raises(Exception, match=r"(?i)timed? ?out"):
            target.open(about(tmp_path))
        assert time.monotonic() - begun < 30
