"""The record of a comparison, its files and tables, and the merging of several."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from foveate.compare import leaderboard
from foveate.compare.merge import merge, merged_table
from foveate.compare.tables import table
from foveate.errors import InvalidValue
from tests import fake_leaderboard as fake


def summarise(results: list[dict[str, Any]], task: Any = None) -> dict[str, Any]:
    stands_in: Any = task or fake.FakeTask()
    return leaderboard.summarise(stands_in, results, fake.SETTINGS, fake.MACHINE)


def printed(renderable: Any, width: int = 100, **options: Any) -> str:
    console = Console(width=width, file=io.StringIO(), **options)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def row_of(board: dict[str, Any], system: str) -> dict[str, Any]:
    return next(row for row in board["rows"] if row["system"] == system)


@pytest.fixture(scope="module")
def board() -> dict[str, Any]:
    return fake.make()


def test_rows_are_ordered_by_test_score_failures_last(board: dict[str, Any]):
    means = [row["test"]["mse"]["mean"] for row in board["rows"] if row["status"] == "done"]
    assert means == sorted(means)
    assert [row["status"] for row in board["rows"]][-1] == "failed"
    assert board["rows"][-1]["rank"] is None


def test_ties_share_the_first_rank(board: dict[str, Any]):
    tied = [row["system"] for row in board["rows"] if row["tied"]]
    assert tied == ["timesnet", "mamba", "softmax_attention"]
    assert [row_of(board, s)["rank"] for s in tied] == [1, 1, 1]
    assert row_of(board, "timesnet")["p_value"] is None
    assert row_of(board, "lightning_attention")["p_value"] < 0.05 <= row_of(board, "mamba")["p_value"]
    assert row_of(board, "seasonal_naive")["rank"] == 7
    assert "dlinear" in row_of(board, "seasonal_naive")["beaten_by"]


def test_means_and_spreads_over_seeds(board: dict[str, Any]):
    row = row_of(board, "mamba")
    scores = [seed["test"]["mse"] for seed in row["seeds"]]
    assert row["test"]["mse"]["mean"] == pytest.approx(sum(scores) / 2)
    assert row["test"]["mse"]["std"] == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)
    assert row_of(board, "seasonal_naive")["test"]["mse"]["std"] is None
    assert row["seconds"] == pytest.approx(sum(seed["seconds"] for seed in row["seeds"]))


def test_a_system_with_one_failed_seed_stands_with_the_other(board: dict[str, Any]):
    row = row_of(board, "lightning_attention")
    assert row["status"] == "done"
    assert row["reason"] == "seed 1: resident memory passed the limit of 2.0 GiB (--memory)"
    assert row["test"]["mse"]["std"] is None
    assert [seed["status"] for seed in row["seeds"]] == ["done", "failed"]


def test_the_winner_is_chosen_on_validation_data_only():
    results = fake.make_results()
    for result in results:  # on validation dlinear is best, on test it stays fifth
        if result["system"] == "dlinear":
            result["val"]["mse"] = 0.1 + 0.01 * result["seed"]
    board = summarise(results)
    assert board["best"] == {"system": "dlinear", "seed": 0, "path": "best"}
    assert board["rows"][0]["system"] == "timesnet"


def test_the_seed_that_is_shown_and_shipped_is_the_best_on_validation():
    results = fake.make_results()
    for result in results:
        if result["system"] == "timesnet":
            result["val"]["mse"] = 0.2 - 0.01 * result["seed"]
            result["learning_rate"] = 10.0 ** -result["seed"]
    board = summarise(results)
    assert board["best"] == {"system": "timesnet", "seed": 1, "path": "best"}
    assert row_of(board, "timesnet")["learning_rate"] == 0.1


def test_higher_is_better():
    results = []
    for result in fake.make_results():
        result = dict(result)
        if result["status"] == "done":
            result["per_sample"] = 1 - result["per_sample"]
            result["test"] = {"accuracy": 1 - result["test"]["mse"], "f1": 0.5}
            result["val"] = {"accuracy": 1 - result["val"]["mse"], "f1": 0.5}
        results.append(result)
    board = summarise(results, fake.FakeTask(higher_is_better=True))
    lower = fake.make()
    assert [row["system"] for row in board["rows"]] == [row["system"] for row in lower["rows"]]
    assert [row["rank"] for row in board["rows"]] == [row["rank"] for row in lower["rows"]]
    assert [row["pareto"] for row in board["rows"]] == [row["pareto"] for row in lower["rows"]]
    assert board["best"]["system"] == "timesnet"
    assert "accuracy ↑" in printed(table(board))


def test_a_score_that_is_not_finite_is_a_failure():
    results = [r for r in fake.make_results(1) if r["system"] in ("dlinear", "mamba")]
    results[0]["test"]["mse"] = float("nan")
    results[0]["per_sample"] = torch.full_like(results[0]["per_sample"], float("nan"))
    board = summarise(results)
    failed = row_of(board, results[0]["system"])
    assert failed["status"] == "failed"
    assert failed["reason"] == "the test score is not a finite number"
    json.dumps(board, allow_nan=False)


def test_nothing_finished():
    board = summarise([r for r in fake.make_results() if r["status"] == "failed"][:1])
    assert board["best"] is None
    assert board["comparison"] == {}
    assert "failed" in printed(table(board))


def test_pareto_marks_what_nothing_beats_in_all_three(board: dict[str, Any]):
    assert {row["system"] for row in board["rows"] if row["pareto"]} == {
        "timesnet", "mamba", "softmax_attention", "dlinear", "seasonal_naive",
    }  # fmt: skip


def test_files(tmp_path: Path):
    made = leaderboard.build(tmp_path, fake.FakeTask(), fake.make_results(), fake.SETTINGS, fake.MACHINE)  # type: ignore[arg-type]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["leaderboard.csv", "leaderboard.json", "report.html"]
    assert json.loads((tmp_path / "leaderboard.json").read_text()) == made
    lines = list(csv.DictReader((tmp_path / "leaderboard.csv").open()))
    assert [line["system"] for line in lines] == [row["system"] for row in made["rows"]]
    assert float(lines[0]["test_mse_mean"]) == made["rows"][0]["test"]["mse"]["mean"]
    assert lines[-1]["test_mse_mean"] == ""
    assert lines[-1]["reason"].startswith("the loss became infinite")
    assert float(lines[1]["latency_ms_median"]) == 2.31


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
def test_the_table_fits_the_console(board: dict[str, Any], width: int):
    lines = printed(table(board, Console(width=width)), width).splitlines()
    assert max(map(len, lines)) <= width
    head = " ".join(lines[:5])
    assert "latency" in head or width < 80
    assert ("FLOPs" in head) is (width >= 140)


def test_the_table_says_what_ties_and_failures_are(board: dict[str, Any]):
    text = printed(table(board))
    assert text.count("1=") == 4  # three rows and the legend
    assert "★◆  timesnet" in text
    assert "◆○  seasonal_naive" in text
    assert "0.3124 ±0.0021" in text
    assert "✗ landmark_attention failed: the loss became infinite at step 212" in text
    assert "lightning_attention: seed 1: resident memory passed the limit" in text


def test_the_table_is_plain_text_when_piped_and_coloured_in_a_terminal(board: dict[str, Any]):
    assert "\x1b" not in printed(table(board))
    assert "\x1b[" in printed(table(board), force_terminal=True, color_system="standard")


def test_the_table_survives_an_ascii_console(board: dict[str, Any]):
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=file, width=100)
    console.print(table(board, console))
    file.flush()
    assert b"0.3124 ~0.0021" in file.buffer.getvalue()  # type: ignore[attr-defined]


def test_names_from_users_cannot_write_markup_or_move_the_cursor():
    results = [r for r in fake.make_results(1) if r["system"] == "mamba"]
    results[0]["system"] = "[red]evil[/]\x1b[2J\nname"
    text = printed(table(summarise(results, fake.FakeTask("[bold]x\x1b[3A.csv"))))
    assert "[red]evil[/]�[2J name" in text
    assert "\x1b" not in text
    assert "[bold]x" in text


# ----- merging


def write(folder: Path, ranks: dict[str, int | None], source: str = "x.csv", skipped: tuple[str, ...] = ()) -> Path:
    """A leaderboard with nothing but ranks; None is a failure."""
    rows = [
        {"system": name, "status": "failed" if rank is None else "done", "rank": rank} for name, rank in ranks.items()
    ]
    rows += [{"system": name, "status": "skipped", "rank": None} for name in skipped]
    folder.mkdir(parents=True, exist_ok=True)
    content = {"format": 1, "task": "forecast", "data": {"source": source}, "rows": rows}
    (folder / "leaderboard.json").write_text(json.dumps(content))
    return folder


def test_merged_ranks_share_ties_and_count_failures_last(tmp_path: Path):
    a = write(tmp_path / "a", {"x": 1, "y": 1, "z": 3})
    b = write(tmp_path / "b", {"x": 1, "y": 2, "z": None}, "sales.csv")
    merged = merge([a, b])
    rows = {row["system"]: row for row in merged["rows"]}
    assert rows["x"]["ranks"] == [1.5, 1]
    assert rows["x"]["mean_rank"] == 1.25
    assert rows["x"]["wins"] == 2
    assert rows["z"]["ranks"] == [3, 3]
    assert rows["z"]["beaten"] == 0
    assert [row["rank"] for row in merged["rows"]] == [1, 2, 3]
    assert [d["name"] for d in merged["data_sets"]] == ["x", "sales"]


def test_merging_runs_with_other_systems_is_by_opponents_beaten(tmp_path: Path):
    many = {f"other{i}": i + 2 for i in range(8)}
    a = write(tmp_path / "a", {"x": 1, **many})  # first of nine
    b = write(tmp_path / "b", {"y": 1, "z": 2}, skipped=("x",))  # first of two; x did not run
    rows = {row["system"]: row for row in merge([a, b])["rows"]}
    assert rows["x"]["beaten"] == rows["y"]["beaten"] == 1
    assert rows["x"]["rank"] == rows["y"]["rank"] == 1
    assert rows["other0"]["beaten"] == pytest.approx(7 / 8)
    assert rows["x"]["data_sets"] == 1
    assert rows["x"]["ranks"] == [1, None]


def test_differences_over_data_sets_need_six_of_them(tmp_path: Path):
    few = merge([write(tmp_path / f"few{i}", {"x": 1, "y": 2}) for i in range(5)])
    assert [row["group"] for row in few["rows"]] == [1, 1]
    assert "5 data sets cannot show" in printed(merged_table(few))
    many = merge([write(tmp_path / f"many{i}", {"x": 1, "y": 2}) for i in range(6)])
    assert [row["group"] for row in many["rows"]] == [1, 2]
    assert many["rows"][1]["beaten_by"] == ["x"]
    assert "y: significantly worse than x" in printed(merged_table(many))
    # Three systems are three comparisons: six data sets do not carry them.
    three = merge([write(tmp_path / f"three{i}", {"x": 1, "y": 2, "z": 3}) for i in range(6)])
    assert [row["group"] for row in three["rows"]] == [1, 1, 1]
    assert "No system is significantly better" in printed(merged_table(three))


def test_the_merged_table_fits(tmp_path: Path):
    folders = [write(tmp_path / str(i), {"x" * 50: 1, "y": 2}, f"data-set-number-{i}.csv") for i in range(9)]
    merged = merge(folders)
    for width in (80, 140):
        text = printed(merged_table(merged, Console(width=width)), width)
        assert max(map(len, text.splitlines())) <= width
    assert "more data sets counted, not shown" in printed(merged_table(merged, Console(width=80)), 80)
    assert "\x1b" not in text


def test_merging_refuses_what_is_no_leaderboard(tmp_path: Path):
    whole = write(tmp_path / "whole", {"x": 1})
    with pytest.raises(InvalidValue, match="nothing to merge"):
        merge([])
    with pytest.raises(InvalidValue, match=r"empty has no leaderboard.json: name the output folder"):
        merge([whole, tmp_path / "empty"])
    with pytest.raises(InvalidValue, match="is given twice"):
        merge([whole, tmp_path / "other" / ".." / "whole"])
    (whole / "leaderboard.json").write_text("{")
    with pytest.raises(InvalidValue, match="is damaged"):
        merge([whole])
    (whole / "leaderboard.json").write_text('{"format": 7}')
    with pytest.raises(InvalidValue, match="is not a leaderboard of format 1"):
        merge([whole])
