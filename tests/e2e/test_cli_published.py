"""``--preset published`` on the command line, and, slow, the published numbers themselves."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from test_cli import foveate_command, refused, series

from foveate.claims._series import data_file
from foveate.compare import Settings, run


def test_a_public_data_set_is_told_by_its_file(tmp_path: Path) -> None:
    """DLinear by its recipe, gated_conv as ever, one seed each; the official split does not fit so short a file."""
    series().to_csv(tmp_path / "ETTh2.csv", index=False)
    words = ("compare", "forecast", "ETTh2.csv", "--horizon", 6, "--lookback", 24, "--preset", "published")
    words += ("--systems", "dlinear,gated_conv", "--steps", 20, "--learning-rates", 0.001, "--out", "run")
    refused(foveate_command(*words, cwd=tmp_path), "too short", "8640/2880/2880")
    result = foveate_command(*words, "--split", "0.7/0.1/0.2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    told = " ".join(result.stdout.split())
    assert "Trained by the published recipe for ETTh2: dlinear; by the usual rules: gated_conv." in told
    rows = {r["system"]: r for r in json.loads((tmp_path / "run" / "leaderboard.json").read_text())["rows"]}
    assert len(rows["dlinear"]["seeds"]) == 1
    assert rows["dlinear"]["learning_rate"] == rows["dlinear"]["recipe"]["learning_rate"] == 0.05
    assert rows["gated_conv"]["steps"] == 20
    config = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert config["recipes"]["dlinear"]["batch_size"] == 32
    again = foveate_command("compare", "forecast", "--config", "run/config.toml", cwd=tmp_path)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--preset", "published"), ("embedded data is not called like a data set", "--preset published:ETTh1")),
        (("--preset", "papers"), ("preset='papers' is not possible",)),
        (("--preset", "published:ETTh7"), ("unknown data set of a published recipe 'ETTh7'",)),
        (("--preset", "published:ETTh1", "--budget", "1m"), ("preset and budget cannot be given together",)),
    ],
)
def test_what_is_refused(words: tuple[str, ...], parts: tuple[str, ...], tmp_path: Path) -> None:
    refused(foveate_command("compare", "forecast", *words, cwd=tmp_path), *parts)


# ----- the numbers


def compared(task: str, file: str, out: Path, *systems: str, **data: Any) -> dict[str, dict[str, Any]]:
    """Rows by system; skips where the data is absent."""
    source = data_file(file)
    if source is None:
        pytest.skip(f"{file} is not in the data folder")
    data["source"] = str(source)
    board = run(Settings(task=task, data=data, systems=systems, seeds=1, preset="published", out=str(out)))
    return {row["system"]: row for row in board["rows"]}


@pytest.mark.slow
@pytest.mark.timeout(14400)
@pytest.mark.parametrize(
    ("system", "mse", "mae"), [("dlinear", 0.386, 0.400), ("timesnet", 0.384, 0.402), ("patchtst", 0.414, 0.419)]
)
def test_etth1_forecasts_are_as_good_as_published(system: str, mse: float, mae: float, tmp_path: Path) -> None:
    row = compared("forecast", "etth1/ETTh1.csv", tmp_path / "out", system, lookback=96, horizon=96)[system]
    assert row["test"]["mse"]["mean"] <= 1.03 * mse
    assert row["test"]["mae"]["mean"] <= 1.03 * mae


@pytest.mark.slow
@pytest.mark.timeout(14400)
@pytest.mark.parametrize(
    ("rate", "mse", "mae"), [(0.125, 0.057, 0.159), (0.25, 0.069, 0.178), (0.375, 0.084, 0.196), (0.5, 0.102, 0.215)]
)
def test_etth1_gaps_are_filled_as_well_as_published(rate: float, mse: float, mae: float, tmp_path: Path) -> None:
    row = compared("impute", "etth1/ETTh1.csv", tmp_path / "out", "timesnet", lookback=96, mask_rate=rate)["timesnet"]
    assert row["test"]["mse"]["mean"] <= 1.05 * mse
    assert row["test"]["mae"]["mean"] <= 1.05 * mae


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_japanese_vowels_with_validation_held_out(tmp_path: Path) -> None:
    rows = compared("classify-series", "japanese_vowels/JapaneseVowels_TRAIN.ts", tmp_path / "out", "timesnet")
    assert rows["timesnet"]["test"]["accuracy"]["mean"] >= 0.95


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_basic_motions_with_validation_held_out(tmp_path: Path) -> None:
    source = data_file("basic_motions/BasicMotions_TRAIN.ts")
    if source is None:
        pytest.skip("basic_motions/BasicMotions_TRAIN.ts is not in the data folder")
    usual = {"steps": 150, "seeds": 2, "systems": ["gated_conv"], "out": str(tmp_path / "out")}
    board = run(Settings(task="classify-series", data={"source": str(source)}, **usual))
    rows = {row["system"]: row for row in board["rows"]}
    assert rows["gated_conv"]["test"]["accuracy"]["mean"] >= 0.975
