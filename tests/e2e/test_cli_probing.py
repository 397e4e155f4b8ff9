"""``foveate compare recall`` and its kin as a user meets them: no file, real processes, exit statuses."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from test_cli import foveate_command, refused

SMALL = ("--set", "gru.dim=16", "--set", "gru.depth=1")
FAST = ("--systems", "gru", "--steps", "20", "--seeds", "1", "--learning-rates", "0.01", "--workers", "1", *SMALL)
DRAWN = ("--samples", "600", "--held-out", "50")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A finished comparison on drawn samples."""
    folder = tmp_path_factory.mktemp("drawn")
    words = ("compare", "passkey", "--length", "24", "--digits", "1", "--test-lengths", "48", "--depths", "2")
    result = foveate_command(*words, *DRAWN, *FAST, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, next((folder / "foveate-runs").iterdir()), (*words, *DRAWN, *FAST)


def test_a_probe_needs_no_data(compared):
    _, run, _ = compared
    assert run.name == "passkey-depths_2-digits_1-held_out_50-length_24-samples_600-test_lengths_48"
    board = json.loads((run / "leaderboard.json").read_text())
    assert board["metrics"] == ["accuracy", "digits", "accuracy_at_48"]
    assert board["validation"]["metrics"] == ["accuracy", "digits"]
    assert board["data"]["source"] == "drawn"
    rows = {row["system"]: row for row in board["rows"]}
    assert set(rows) == {"gru", "token_frequencies"}
    assert all(row["status"] == "done" for row in rows.values())
    assert all(row["test"]["accuracy"]["mean"] == row["test"]["digits"]["mean"] for row in rows.values())
    examples = rows["gru"]["examples"]
    assert examples["groups"] == ["0 %", "100 %"]
    assert examples["lengths"] == [24, 48]
    at_base = [line[0] for line in examples["grid"]]
    assert sum(at_base) / 2 == pytest.approx(rows["gru"]["test"]["accuracy"]["mean"])


def test_the_report_draws_depths_and_lengths(compared):
    _, run, _ = compared
    page = (run / "report.html").read_text()
    assert "Test accuracy over length" in page
    assert page.count('class="chart heatmap"') == 2


def test_new_samples_are_answered(compared):
    folder, run, _ = compared
    result = foveate_command("predict", str(run / "best"), "--out", "answers.csv", cwd=folder)
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(folder / "answers.csv")
    assert list(table.columns) == ["sample", "place", "answer", "truth"]
    assert len(table) == 100
    assert (table["place"] == 23).all()


def test_the_same_command_goes_on(compared):
    folder, run, words = compared
    before = (run / "trials" / "gru-seed0" / "result.json").stat().st_mtime_ns
    result = foveate_command(*words, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert (run / "trials" / "gru-seed0" / "result.json").stat().st_mtime_ns == before
    other = foveate_command(*words, "--data-seed", "1", "--out", str(run), cwd=folder)
    refused(other, "was made from other data: its data_seed was 0, now it is 1")


def test_what_is_not_possible_is_one_sentence(tmp_path):
    refused(foveate_command("compare", "recall", "--pairs", "17", cwd=tmp_path), "pairs=17 is not possible")
    refused(foveate_command("compare", "listops", "--length", "9", cwd=tmp_path), "length=9 is not possible")
    assert not (tmp_path / "foveate-runs").exists()
