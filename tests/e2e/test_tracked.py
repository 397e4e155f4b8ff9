"""Comparisons that are tracked: through kills, without a server, and to the bit as if nobody looked."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from foveate.compare import Settings, run
from foveate.compare.tracking_csv import CsvTracker
from foveate.tasks.io import load_tensors
from tests.e2e.test_cli import COMPARE, FAST, refused, series
from tests.e2e.test_resume import TOY, kill_once, quality
from tests.unit.test_tracking import client, mlflow_runs

#: A port that nobody listens on.
DEAD = "http://127.0.0.1:9"


def read_csv(out: Path) -> dict[str, list[tuple[str, int, float]]]:
    """Points of every trial."""
    found = {}
    for file in (out / "tracking" / "csv").glob("*-seed*.csv"):
        rows = [line.split(",") for line in file.read_text().splitlines()[1:]]
        found[file.stem] = [(name, int(step), float(value)) for step, name, value in rows]
    return found


def read_tensorboard(out: Path) -> dict[str, list[tuple[str, int, float]]]:
    """Straight from the event files, so that nothing is hidden by what reads them."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: dict[str, list[tuple[str, int, float]]] = {}
    for file in (out / "tracking" / "tensorboard").glob("*/events.*"):
        points = found.setdefault(file.parent.name, [])
        for event in LegacyEventFileLoader(str(file)).Load():
            points += [(v.tag, event.step, v.simple_value) for v in event.summary.value if v.HasField("simple_value")]
    return found


def read_mlflow(where: str) -> dict[str, list[tuple[str, int, float]]]:
    found, history = {}, client(where).get_metric_history
    for one in mlflow_runs(where):
        if trial := one.data.tags.get("foveate.trial"):
            assert trial not in found, "two runs of one trial"
            points = [(name, p.step, p.value) for name in one.data.metrics for p in history(one.info.run_id, name)]
            found[trial] = points
    return found


def expected(out: Path) -> dict[str, set[tuple[str, int, float]]]:
    """What the trials' own logs and results say."""
    found = {}
    for file in (out / "trials").glob("*/result.json"):
        result = json.loads(file.read_text())
        lines = [json.loads(line) for line in (file.parent / "log.jsonl").read_text().splitlines()]
        points = {(f"val/{m}", line["step"], v) for line in lines for m, v in line["val"].items()}
        points |= {("train/mean_loss", line["step"], line["loss"]) for line in lines if line["loss"] is not None}
        points |= {(f"test/{m}", result["steps"], v) for m, v in result["test"].items()}
        points |= {(f"best/val/{m}", result["steps"], v) for m, v in result["val"].items()}
        found[file.parent.name] = points
    return found


def check(found: dict[str, list[tuple[str, int, float]]], out: Path) -> None:
    """Every point of the logs is there, every step once, and nothing else than training losses on the way."""
    wanted = expected(out)
    assert found.keys() == wanted.keys()
    for trial, points in found.items():
        assert max(Counter((name, step) for name, step, _ in points).values()) == 1, trial
        rounded = {(n, s): v for n, s, v in points if n not in ("train/loss", "train/learning_rate")}
        assert rounded == {(n, s): pytest.approx(v, rel=1e-6) for n, s, v in wanted[trial]}, trial
        steps = [s for n, s, _ in points if n == "train/loss"]
        assert steps == sorted(steps)


@pytest.mark.slow  # half a minute; trials that go on are tried alone in tests/unit/test_tracking.py
def test_killed_and_resumed_every_step_is_there_once(tmp_path):
    """CSV, event files and a database, each with the points of the trials' logs, after three kills."""
    pytest.importorskip("tensorboard")
    pytest.importorskip("mlflow")
    calm, hit, where = tmp_path / "calm", tmp_path / "hit", f"sqlite:///{tmp_path}/x.db"
    tracked = {**TOY, "track": ["csv", "tensorboard", f"mlflow:{where}"]}
    run(Settings.from_dict({**TOY, "out": str(calm)}))
    chance = random.Random(int(os.environ.get("FOVEATE_KILL_SEED", "7")))
    killed = sum(kill_once(tracked, hit, chance) for _ in range(3))
    assert killed == 3, "the comparison ended before it could be killed: give it more steps"
    board = run(Settings.from_dict({**tracked, "out": str(hit)}))
    assert [t["status"] for t in board["tracking"]] == ["complete"] * 3
    check(read_csv(hit), hit)
    check(read_tensorboard(hit), hit)
    check(read_mlflow(where), hit)
    statuses = Counter(found.info.status for found in mlflow_runs(where))
    assert statuses == {"FINISHED": len(expected(hit)) + 1}  # with the comparison's own
    # Nobody looked, as far as the results know.
    assert quality(hit) == quality(calm)
    for place in ("best/model.safetensors", "trials/tests.toy.Slow-seed1/best.safetensors"):
        one, other = load_tensors(calm / place)[0], load_tensors(hit / place)[0]
        assert all(other[k].equal(v) for k, v in one.items())


def test_a_finished_comparison_can_still_be_tracked(tmp_path):
    """Nothing is trained again; the points come from the logs. Asking again changes nothing."""
    small = {**TOY, "steps": 40, "out": str(tmp_path)}
    run(Settings.from_dict(small))
    stamps = {f: f.stat().st_mtime_ns for f in tmp_path.glob("trials/*/*")}
    run(Settings.from_dict({**small, "track": "csv"}))
    assert {f: f.stat().st_mtime_ns for f in tmp_path.glob("trials/*/*")} == stamps
    found = read_csv(tmp_path)
    check(found, tmp_path)
    stamps = {f: f.stat().st_mtime_ns for f in tmp_path.glob("tracking/csv/*")}
    run(Settings.from_dict({**small, "track": "csv"}))
    assert {f: f.stat().st_mtime_ns for f in tmp_path.glob("tracking/csv/*")} == stamps


def test_what_failed_and_what_was_skipped_are_tracked_as_such(tmp_path):
    systems = ["tests.toy:Linear", "tests.toy:Diverging", "tests.toy:Refusing"]
    given = {**TOY, "systems": systems, "steps": 40, "seeds": 1, "out": str(tmp_path), "track": "csv"}
    run(Settings.from_dict({**given, "learning_rates": [1e-3]}))
    lines = (tmp_path / "tracking" / "csv" / "trials.csv").read_text().splitlines()
    status = {line.split(",")[0]: line.split(",")[1] for line in lines[1:]}
    assert status == {
        "tests.toy.Linear-seed0": "done",
        "tests.toy.Diverging-seed0": "failed",
        "tests.toy.Refusing-seed0": "skipped",
        "tests.toy.Mean-seed0": "done",
    }


def followed(out: Path, track: str) -> tuple[dict[str, Any], list[str]]:
    """A small comparison with trackers: its leaderboard and its warnings."""
    warnings: list[str] = []
    given = {**TOY, "systems": ["tests.toy:Linear"], "steps": 40, "seeds": 1, "learning_rates": [1e-3]}
    settings = Settings.from_dict({**given, "out": str(out), "track": [track] if track else []})
    board = run(settings, lambda event: warnings.append(event["text"]) if event["type"] == "warning" else None)
    return board, warnings


def track(folder: Path, *options: object, code: str = "") -> subprocess.CompletedProcess[str]:
    """The command on a small file; ``code`` runs before it."""
    arguments = [*COMPARE, "mine.csv", *FAST, "--horizon", "6", "--lookback", "24", "--out", "run", *options]
    program = f"import sys\n{code}\nsys.argv = ['foveate', *{[str(a) for a in arguments]!r}]\n"
    program += "from foveate.cli import main\nmain()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, env=environment, timeout=240
    )


@pytest.fixture
def folder(tmp_path):
    series().to_csv(tmp_path / "mine.csv", index=False)
    return tmp_path


def test_a_server_that_is_away_stops_nothing(folder):
    pytest.importorskip("mlflow")
    begun = time.monotonic()
    told = track(folder, "--track", f"mlflow:{DEAD},csv")
    assert told.returncode == 0, told.stderr
    assert "winner: run" in told.stdout
    warnings = [line for line in told.stderr.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"warning: tracking with mlflow:{DEAD} ended, the comparison goes on: ")
    assert "Traceback" not in told.stderr
    away, written = json.loads((folder / "run" / "leaderboard.json").read_text())["tracking"]
    assert (away["tracker"], away["where"], away["status"]) == ("mlflow", DEAD, "failed")
    assert "127.0.0.1" in away["reason"]
    assert written["status"] == "complete"
    check(read_csv(folder / "run"), folder / "run")
    assert "Tracking with mlflow ended early: " in (folder / "run" / "report.html").read_text()
    assert time.monotonic() - begun < 120


def test_a_place_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("mine")
    board, warnings = followed(tmp_path / "out", f"csv:{tmp_path / 'file'}")
    assert board["best"] is not None
    (warning,) = warnings
    assert warning.startswith(
        f"tracking with csv:{tmp_path / 'file'} ended, the comparison goes on: NotADirectoryError"
    )
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_disk_that_fills_up_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(CsvTracker, "begin", lambda self, trial, params, step: {})
    monkeypatch.setattr(CsvTracker, "_file", lambda self, trial: Path("/dev/full"))
    board, warnings = followed(tmp_path, "csv")
    assert board["best"] is not None
    assert len(warnings) == 1
    assert board["tracking"][0]["reason"] == "OSError: [Errno 28] No space left on device"


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow"])
def test_a_tracker_that_is_not_installed_is_told_before_anything_starts(kind, folder):
    told = track(folder, "--track", f"csv,{kind}", code=f"sys.modules[{kind!r}] = None")
    refused(told, kind, "pip install 'foveate[track]'")
    assert not (folder / "run").exists()


@pytest.mark.parametrize(("given", "parts"), [("wandb", ["wandb", "mlflow"]), ("mlflow:http://me:pw@x", ["PASSWORD"])])
def test_trackers_that_are_not_possible(given, parts, folder):
    refused(track(folder, "--track", given), *parts)
    assert not (folder / "run").exists()


def test_tracking_is_no_rule_of_the_comparison(tmp_path):
    """A folder goes on with another tracker, or none; its configuration file names the last ones."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    for given in ("csv", "", f"csv:{elsewhere}"):
        board, warnings = followed(out, given)
        assert [t["status"] for t in board["tracking"]] == ["complete"] * bool(given)
        assert not warnings
    assert tomllib.loads((out / "config.toml").read_text())["track"] == [f"csv:{elsewhere}"]
    (place,) = elsewhere.iterdir()
    assert place.name.startswith("out-")
    assert sorted(f.name for f in place.iterdir()) == sorted(f.name for f in (out / "tracking" / "csv").iterdir())


def test_interrupting_leaves_nobody_behind(tmp_path):
    """Ctrl-C with a tracker at work: the process ends at once."""
    pytest.importorskip("tensorboard")
    from tests.e2e.test_resume import start

    process = start({**TOY, "steps": 5000, "track": ["csv", "tensorboard"]}, tmp_path)
    while not list(tmp_path.glob("tracking/csv/*-seed*.csv")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    process.wait(timeout=20)
    assert time.monotonic() - begun < 10
