"""``foveate compare classify-series`` as a user meets it: real files, real processes, exit statuses."""

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
    "30",
    "--seeds",
    "1",
    "--learning-rates",
    "0.003",
    "--workers",
    "1",
)


def waves(count: int, seed: int) -> str:
    """A .ts file of sines of two frequencies and of unequal lengths, with a gap here and there."""
    generator = np.random.default_rng(seed)
    lines = ["@problemName waves", "@dimensions 1", "@classLabel true slow fast", "@data"]
    for i in range(count):
        t = np.arange(generator.integers(20, 31))
        values = np.sin(t * (0.3, 1.2)[i % 2] + generator.uniform(0, 6)) + 0.1 * generator.normal(size=len(t))
        cells = [f"{v:.4f}" for v in values]
        cells[5] = "?"
        lines.append(",".join(cells) + ":" + ("slow", "fast")[i % 2])
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A finished comparison of a .ts pair."""
    folder = tmp_path_factory.mktemp("classified")
    (folder / "W_TRAIN.ts").write_text(waves(60, 0))
    (folder / "W_TEST.ts").write_text(waves(30, 1))
    result = foveate_command("compare", "classify-series", "W_TRAIN.ts", *FAST, "--out", "run", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_a_comparison_ranks_by_accuracy(compared):
    folder, result = compared
    board = json.loads((folder / "run" / "leaderboard.json").read_text())
    assert board["primary"] == "accuracy"
    assert board["higher_is_better"]
    rows = {row["system"]: row for row in board["rows"]}
    assert set(rows) == {"softmax_attention", "majority_class", "summary_ridge"}
    assert all(row["status"] == "done" for row in rows.values())
    assert rows["majority_class"]["test"]["accuracy"]["mean"] == 0.5
    best = max(rows.values(), key=lambda row: row["val"]["accuracy"]["mean"])
    assert rows[board["best"]["system"]]["val"] == best["val"]
    assert board["data"]["test_source"] == "W_TEST.ts"
    assert (folder / "run" / "report.html").stat().st_size > 10_000
    assert "accuracy" in result.stdout


def test_the_winner_classifies_new_samples(compared):
    folder, _ = compared
    result = foveate_command("predict", "run/best", "W_TEST.ts", "--out", "answers.csv", cwd=folder)
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(folder / "answers.csv")
    assert list(table.columns) == ["sample", "class", "p(fast)", "p(slow)"]
    assert (table["class"] == ["slow", "fast"] * 15).mean() > 0.8


def test_train_serves_one_system(compared):
    folder, _ = compared
    arguments = ("W_TRAIN.ts", "--system", "mamba", "--steps", "3", "--learning-rates", "0.001", "--out", "one")
    result = foveate_command("train", "classify-series", *arguments, cwd=folder)
    assert result.returncode == 0, result.stderr
    board = json.loads((folder / "one" / "leaderboard.json").read_text())
    assert {row["system"] for row in board["rows"]} == {"mamba", "majority_class", "summary_ridge"}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (waves(20, 0).replace("@data", ""), ("bad.ts", "broken header")),
        (waves(20, 0).replace("fast", "slow"), ("bad.ts", "one class only, 'slow'")),
        (waves(20, 0).replace(",?,", ",x,"), ("bad.ts", "line 5", "'x' is not a number")),
    ],
)
def test_bad_files_end_in_one_sentence(tmp_path, text, parts):
    (tmp_path / "bad.ts").write_text(text)
    refused(foveate_command("compare", "classify-series", "bad.ts", *FAST, cwd=tmp_path), *parts)


def test_a_label_that_only_the_test_part_has(tmp_path):
    (tmp_path / "W_TRAIN.ts").write_text(waves(20, 0))
    (tmp_path / "W_TEST.ts").write_text(waves(4, 1).replace("slow", "odd"))
    result = foveate_command("compare", "classify-series", "W_TRAIN.ts", *FAST, cwd=tmp_path)
    refused(result, "W_TEST.ts", "the class 'odd' occurs in the test part but not among the training samples")
