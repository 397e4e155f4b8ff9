"""``foveate compare impute`` as a user meets it: real files, real processes, exit statuses."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from test_cli import foveate_command, refused, series

FAST = (
    "--systems",
    "softmax_attention",
    "--steps",
    "20",
    "--seeds",
    "1",
    "--learning-rates",
    "0.001",
    "--workers",
    "1",
)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A finished comparison on a file of one's own."""
    folder = tmp_path_factory.mktemp("imputed")
    series().to_csv(folder / "mine.csv", index=False)
    arguments = ("mine.csv", *FAST, "--lookback", 24, "--mask-rate", "0.4", "--out", "run")
    result = foveate_command("compare", "impute", *arguments, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_a_comparison_ranks_by_what_was_hidden(compared):
    folder, _ = compared
    board = json.loads((folder / "run" / "leaderboard.json").read_text())
    rows = {row["system"]: row for row in board["rows"]}
    assert set(rows) == {"softmax_attention", "linear_interpolation", "carry_forward"}
    assert all(row["status"] == "done" for row in rows.values())
    assert rows["linear_interpolation"]["test"]["mse"]["mean"] < rows["carry_forward"]["test"]["mse"]["mean"]
    assert board["data"]["mask_rate"] == 0.4
    assert (folder / "run" / "report.html").stat().st_size > 10_000


def test_the_winner_fills_gaps(compared):
    folder, _ = compared
    holes = series()
    holes.loc[40:44, "c0"] = None
    holes.to_csv(folder / "holes.csv", index=False)
    result = foveate_command("predict", "run/best", "holes.csv", "--out", "filled.csv", cwd=folder)
    assert result.returncode == 0, result.stderr
    filled = pd.read_csv(folder / "filled.csv")
    assert list(filled.columns) == ["when", "c0", "c1"]
    assert filled["c0"].between(60, 140).all()
    pd.testing.assert_series_equal(filled["c1"], holes["c1"], rtol=1e-6)


def test_bad_values_end_in_one_sentence(compared):
    folder, _ = compared
    refused(foveate_command("compare", "impute", "mine.csv", "--mask-rate", "1.5", cwd=folder), "mask_rate=1.5")
    refused(foveate_command("compare", "impute", "no.csv", cwd=folder), "there is no file 'no.csv'")
    short = foveate_command("compare", "impute", "mine.csv", "--lookback", "200", cwd=folder)
    refused(short, "mine.csv", "too short", "lookback=200")
