"""``foveate compare forecast-m4`` as a user meets it: real files, real processes, exit statuses."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from test_cli import foveate_command, refused

FAST = ("--systems", "dlinear", "--steps", "60", "--seeds", "1", "--learning-rates", "0.01", "--workers", "1")


def layout(rows: list[np.ndarray]) -> str:
    """Text in M4's layout, quotes and blanks as the competition writes them."""
    longest = max(map(len, rows))
    lines = [",".join(f'"V{i + 1}"' for i in range(longest + 1))]
    for i, row in enumerate(rows):
        lines.append(",".join([f'"Q{i + 1}"', *(f'"{v:.3f}"' for v in row), *[""] * (longest - len(row))]))
    return "\n".join(lines) + "\n"


def quarters(count: int = 12) -> list[np.ndarray]:
    """Rising quarterly series of many lengths and levels."""
    generator = np.random.default_rng(0)
    rows = []
    for i in range(count):
        t = np.arange(40 + 3 * i)
        rows.append(10.0 ** (i % 4) * (20 + 0.3 * t + 4 * np.sin(t * np.pi / 2) + 0.3 * generator.normal(size=len(t))))
    return rows


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A finished comparison of a file and its neighbour."""
    folder = tmp_path_factory.mktemp("m4")
    (folder / "Quarterly-train.csv").write_text(layout([row[:-8] for row in quarters()]))
    (folder / "Quarterly-test.csv").write_text(layout([row[-8:] for row in quarters()]))
    result = foveate_command("compare", "forecast-m4", "Quarterly-train.csv", *FAST, "--out", "run", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_a_comparison_ranks_by_smape(compared):
    folder, result = compared
    board = json.loads((folder / "run" / "leaderboard.json").read_text())
    assert (board["task"], board["primary"], board["metrics"]) == ("forecast-m4", "smape", ["smape", "mase", "owa"])
    rows = {row["system"]: row for row in board["rows"]}
    assert set(rows) == {"dlinear", "seasonal_naive", "theta"}
    assert all(row["status"] == "done" for row in rows.values())
    # Trends go on: Theta knows it, repeating the last year does not.
    assert rows["theta"]["test"]["smape"]["mean"] < rows["seasonal_naive"]["test"]["smape"]["mean"]
    assert board["data"]["test_source"] == "Quarterly-test.csv"
    assert board["comparison"]["samples"] == 12
    assert "SMAPE" in result.stdout
    assert "step 1" in (folder / "run" / "report.html").read_text()


def test_the_winner_continues_every_series(compared):
    folder, _ = compared
    board = json.loads((folder / "run" / "leaderboard.json").read_text())
    assert board["best"]["refit"]
    for name, model in (("next.csv", "best"), ("scored.csv", board["best"]["scored"])):
        result = foveate_command("predict", f"run/{model}", "Quarterly-train.csv", "--out", name, cwd=folder)
        assert result.returncode == 0, result.stderr
    assert not pd.read_csv(folder / "next.csv").equals(pd.read_csv(folder / "scored.csv")), "the refit changed nothing"
    table = pd.read_csv(folder / "scored.csv")
    assert list(table.columns) == ["id", "step", "value"]
    assert table["id"].tolist() == [f"Q{i + 1}" for i in range(12) for _ in range(8)]
    assert table["step"].tolist() == list(range(1, 9)) * 12
    truth = np.concatenate([row[-8:] for row in quarters()])
    best = next(row for row in board["rows"] if row["system"] == board["best"]["system"])
    smape = (200 * np.abs(table["value"] - truth) / (np.abs(table["value"]) + np.abs(truth))).mean()
    assert smape == pytest.approx(best["test"]["smape"]["mean"], rel=1e-3)


def test_theta_is_compared_where_it_is_named(tmp_path):
    arguments = ("--systems", "theta", "--lookback", "24", "--horizon", "2", "--stride", "200", "--target", "humidity")
    result = foveate_command("compare", "forecast", *arguments, "--out", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    board = json.loads((tmp_path / "run" / "leaderboard.json").read_text())
    assert {row["system"]: row["status"] for row in board["rows"]} == {"theta": "done", "seasonal_naive": "done"}


def test_theta_says_that_a_budget_is_too_small(tmp_path):
    arguments = ("--systems", "theta", "--budget", "15s", "--workers", "1", "--seeds", "1")  # embedded: 2,573 windows
    result = foveate_command("compare", "forecast", *arguments, "--out", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    board = json.loads((tmp_path / "run" / "leaderboard.json").read_text())
    theta = next(row for row in board["rows"] if row["system"] == "theta")
    assert theta["status"] == "failed"
    assert theta["reason"].startswith("Theta needs about ")
    assert "for 2573 windows and was given" in theta["reason"]


@pytest.mark.parametrize(
    ("name", "change", "parts"),
    [
        ("Quarterly-train.csv", lambda text: text.replace(',"20', ',"x20', 1), ("series 'Q1'", "is not a number")),
        ("quarters.csv", lambda text: text, ("quarters.csv", "does not say its frequency: give horizon and season")),
        ("Yearly.csv", lambda text: "\n".join(text.split("\n")[1:]), ("Yearly.csv", "has no header")),
        ("Hourly.csv", lambda text: text, ("Hourly.csv", "too short", "horizon=48")),
    ],
)
def test_bad_files_end_in_one_sentence(tmp_path, name, change, parts):
    (tmp_path / name).write_text(change(layout(quarters())))
    refused(foveate_command("compare", "forecast-m4", name, *FAST, cwd=tmp_path), *parts)
