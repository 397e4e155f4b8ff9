"""``foveate compare detect-anomalies`` as a user meets it: real files, real processes, exit statuses."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from test_cli import foveate_command, refused

FAST = (
    "--systems",
    "softmax_attention",
    "--steps",
    "40",
    "--seeds",
    "1",
    "--learning-rates",
    "0.003",
    "--workers",
    "1",
    "--lookback",
    "40",
)
BASELINES = {"training_mean", "previous_value", "nearest_window"}


def pump(rows: int, seed: int, at: tuple[int, ...] = ()) -> pd.DataFrame:
    """A sine with noise, and spikes of three rows."""
    t = np.arange(rows)
    values = np.sin(t / 5) + 0.05 * np.random.default_rng(seed).normal(size=rows)
    marks = np.zeros(rows, int)
    for row in at:
        values[row : row + 3] += (1.5, -1.5, 1.5)
        marks[row : row + 3] = 1
    return pd.DataFrame({"when": pd.date_range("2024-01-01", periods=rows, freq="min"), "v": values, "fault": marks})


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A finished comparison of a pair of files."""
    folder = tmp_path_factory.mktemp("detected")
    pump(600, 0).drop(columns="fault").to_csv(folder / "pump_TRAIN.csv", index=False)
    pump(500, 1, at=(100, 250, 400)).to_csv(folder / "pump_TEST.csv", index=False)
    # The training file has no column "fault", and needs none.
    arguments = ("pump_TRAIN.csv", *FAST, "--time", "when", "--label", "fault", "--out", "run")
    result = foveate_command("compare", "detect-anomalies", *arguments, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_a_comparison_ranks_by_what_was_found(compared):
    folder, result = compared
    board = json.loads((folder / "run" / "leaderboard.json").read_text())
    assert (board["primary"], board["higher_is_better"], board["validation"]["primary"]) == ("auc_pr", True, "mse")
    rows = {row["system"]: row for row in board["rows"]}
    assert set(rows) == {"softmax_attention"} | BASELINES
    assert all(row["status"] == "done" for row in rows.values())
    assert rows["nearest_window"]["test"]["auc_pr"]["mean"] > 0.9 > rows["training_mean"]["test"]["auc_pr"]["mean"]
    assert rows["nearest_window"]["test"]["found"]["mean"] == 1
    for row in rows.values():
        assert row["test"]["f1_adjusted"]["mean"] >= row["test"]["f1"]["mean"]
    best = min(rows.values(), key=lambda row: row["val"]["mse"]["mean"])
    assert board["best"]["system"] == best["system"]
    assert board["data"]["test_source"] == "pump_TEST.csv"
    assert board["data"]["anomalies"] == 3
    assert "AUC PR" in result.stdout
    assert (folder / "run" / "report.html").stat().st_size > 10_000


def test_the_winner_raises_alarms_on_new_data(compared):
    folder, _ = compared
    pump(300, 2, at=(150,)).drop(columns="fault").to_csv(folder / "new.csv", index=False)
    result = foveate_command("predict", "run/best", "new.csv", "--out", "alarms.csv", cwd=folder)
    assert result.returncode == 0, result.stderr
    alarms = pd.read_csv(folder / "alarms.csv")
    assert list(alarms.columns) == ["when", "score", "is_anomaly"]
    assert alarms["when"].tolist() == pd.read_csv(folder / "new.csv")["when"].tolist()
    assert abs(int(alarms["score"].argmax()) - 151) <= 2
    assert set(alarms["is_anomaly"]) == {0, 1}
    assert alarms["is_anomaly"].mean() < 0.2


def test_without_marks_systems_are_ranked_and_nothing_is_scored(tmp_path):
    pump(900, 0, at=(800,)).drop(columns="fault").to_csv(tmp_path / "plain.csv", index=False)
    arguments = ("plain.csv", *FAST, "--time", "when", "--out", "run")
    result = foveate_command("compare", "detect-anomalies", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Test data could not be scored" in result.stdout
    board = json.loads((tmp_path / "run" / "leaderboard.json").read_text())
    assert board["ranked_on"] == "val"
    assert all(row["status"] == "done" and row["test"] == {} for row in board["rows"])
    places = {row["system"]: row["examples"]["places"] for row in board["rows"]}
    assert abs(places["nearest_window"][0]["row"] - (801 - 720)) <= 3
    shown = foveate_command("leaderboard", "run", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "VALIDATION" in shown.stdout.upper()


@pytest.mark.parametrize(
    ("change", "options", "parts"),
    [
        (lambda t: t[:200], ("--lookback", "100"), ("bad.csv", "too short", "lookback=100")),
        (lambda t: t.assign(fault=1), (), ("bad.csv", "every training row", "marked")),
        (lambda t: t.assign(fault=0), (), ("bad.csv", "'fault'", "no row", "test part")),
        (lambda t: t.assign(fault=t["v"]), (), ("bad.csv", "'fault'", "row 1", "0 (usual) or 1 (anomaly)")),
        (lambda t: t.assign(fault=t["fault"].where(t.index != 4)), (), ("bad.csv", "'fault'", "row 5 is empty")),
        (lambda t: t[::-1], (), ("bad.csv", "'when'", "sort the rows by time")),
        (lambda t: t.assign(v=np.inf), (), ("bad.csv", "'v'", "infinite")),
        (lambda t: t, ("--anomaly-ratio", "2"), ("anomaly_ratio=2",)),
        (lambda t: t, ("--threshold", "best"), ("threshold='best'",)),
        (lambda t: t, ("--label", "odd"), ("unknown label column 'odd'",)),
    ],
)
def test_bad_input_ends_in_one_sentence(tmp_path, change, options, parts):
    change(pump(600, 0, at=(550,))).to_csv(tmp_path / "bad.csv", index=False)
    arguments = ("bad.csv", *FAST, "--time", "when", "--label", "fault", *options)
    refused(foveate_command("compare", "detect-anomalies", *arguments, cwd=tmp_path), *parts)


def test_marks_in_the_training_file_only(tmp_path):
    pump(600, 0).rename(columns={"fault": "is_anomaly"}).to_csv(tmp_path / "a_TRAIN.csv", index=False)
    pump(300, 1).drop(columns="fault").to_csv(tmp_path / "a_TEST.csv", index=False)
    result = foveate_command("compare", "detect-anomalies", "a_TRAIN.csv", *FAST, "--time", "when", cwd=tmp_path)
    refused(result, "a_TRAIN.csv", "marks anomalies", "a_TEST.csv", "does not")
