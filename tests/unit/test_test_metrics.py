"""Leaderboards of tasks whose test part is scored by other metrics than validation, or not at all."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from rich.console import Console

from foveate.compare import leaderboard, report
from foveate.compare.tables import table
from foveate.compare.wording import method, verdict
from foveate.spec import TaskSpec
from tests import fake_leaderboard as fake


def made(test_metrics: tuple[str, ...]) -> dict[str, Any]:
    """A comparison with ``mse`` on validation; the higher that is, the higher ``auc`` on test."""
    task: Any = fake.FakeTask()
    task.spec = TaskSpec(
        reads="series", rank=1, metrics=("mse",), test_metrics=test_metrics, test_higher_is_better=True
    )
    results = fake.make_results()
    for result in results:
        if result["status"] == "done":
            error = result["test"]["mse"]
            result["test"] = dict(zip(test_metrics, (error, error / 2), strict=False))
            result["val"] = {"mse": result["val"]["mse"]}
            result["examples"] = {}
    return leaderboard.summarise(task, results, fake.SETTINGS, fake.MACHINE)


def printed(board: dict[str, Any]) -> str:
    console = Console(width=160, file=io.StringIO())
    console.print(table(board, console))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def other() -> dict[str, Any]:
    return made(("auc", "f1"))


@pytest.fixture(scope="module")
def unscored() -> dict[str, Any]:
    return made(())


def done(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in board["rows"] if row["status"] == "done"]


def test_specs_say_what_ranks():
    plain = TaskSpec(reads="series", rank=1, metrics=("mse", "mae"))
    assert (plain.ranked_on, plain.ranking_metrics, plain.ranking_higher_is_better) == ("test", ("mse", "mae"), False)
    other = TaskSpec(reads="series", rank=1, metrics=("mse",), test_metrics=("auc",), test_higher_is_better=True)
    assert (other.ranked_on, other.ranking_metrics, other.ranking_higher_is_better) == ("test", ("auc",), True)
    same_way = TaskSpec(reads="series", rank=1, metrics=("acc",), higher_is_better=True, test_metrics=("auc",))
    assert same_way.ranking_higher_is_better
    none = TaskSpec(reads="series", rank=1, metrics=("mse",), test_metrics=(), test_higher_is_better=True)
    assert (none.ranked_on, none.ranking_metrics, none.ranking_higher_is_better) == ("val", ("mse",), False)


def test_test_ranks_by_its_own_metric_and_validation_chooses_by_its_own(other: dict[str, Any]):
    assert (other["ranked_on"], other["primary"], other["metrics"]) == ("test", "auc", ["auc", "f1"])
    assert other["validation"] == {"metrics": ["mse"], "primary": "mse", "higher_is_better": False}
    scores = [row["test"]["auc"]["mean"] for row in done(other)]
    assert scores == sorted(scores, reverse=True)
    assert done(other)[0]["system"] == "seasonal_naive"
    assert done(other)[0]["rank"] == 1
    assert done(other)[-1]["beaten_by"]
    chosen = min(done(other), key=lambda row: row["val"]["mse"]["mean"])["system"]
    assert other["best"]["system"] == chosen == "timesnet"
    assert set(done(other)[0]["test"]) == {"auc", "f1"}
    assert set(done(other)[0]["val"]) == {"mse"}
    front = {row["system"] for row in done(other) if row["pareto"]}
    assert front == {"seasonal_naive"}  # best in test score, fastest and smallest


def test_tables_name_the_metrics_of_each_split(other: dict[str, Any]):
    text = printed(other)
    assert "AUC ↑" in text
    assert "F1" in text
    head = [line.split() for line in text.splitlines()[1:4]]
    assert any("validation" in line for line in head)
    assert any("MSE" in line for line in head)
    page = report.render(other)
    assert "Test auc against latency" in page
    assert "Validation mse over training steps" in page
    assert "Validation MSE of each rate" in page
    names = next(csv.reader(io.StringIO(leaderboard.as_csv(other))))
    scored = [name for name in names if name.startswith(("test_", "val_"))]
    assert scored == [f"{m}_{f}" for m in ("test_auc", "test_f1", "val_mse") for f in ("mean", "std")]


def test_without_test_scores_validation_ranks_and_nothing_is_significant(unscored: dict[str, Any]):
    assert (unscored["ranked_on"], unscored["primary"]) == ("val", "mse")
    assert [row["status"] for row in unscored["rows"]] == ["done"] * 7 + ["failed"]
    assert [row["rank"] for row in done(unscored)] == list(range(1, 8))
    scores = [row["val"]["mse"]["mean"] for row in done(unscored)]
    assert scores == sorted(scores)
    assert not any(row["tied"] or row["beaten_by"] or row["p_value"] for row in unscored["rows"])
    assert unscored["best"]["system"] == done(unscored)[0]["system"]
    assert done(unscored)[0]["test"] == {}


def test_without_test_scores_every_text_says_so(unscored: dict[str, Any]):
    text = printed(unscored)
    assert "Test data could not be scored: systems are ranked on validation data." in text
    assert text.count("MSE") == 1
    page = report.render(unscored)
    assert "Ranked on validation data: test data could not be scored." in page
    assert "Validation mse against latency" in page
    assert "paired test" not in " ".join(text for _, text in method(unscored))
    assert "test data could not be scored" in verdict(unscored).sentences[0]
    assert "test_" not in leaderboard.as_csv(unscored).splitlines()[0]
