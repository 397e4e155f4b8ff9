"""The winner is trained once more on all data: what ships, what stays, what is said when it cannot be."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import foveate
from foveate.compare import Settings, make_plan, run
from foveate.compare.ship import REFITTING
from foveate.tasks.base import Recipe
from foveate.tasks.io import load_tensors
from foveate.tasks.state import seed_everything
from foveate.tasks.trainer import train
from tests.e2e.test_cli import COMPARE, foveate_command, series
from tests.e2e.test_resume import start
from tests.toy import MLP, ToyTask

TOY: dict[str, Any] = {
    "task": "tests.toy:ToyTask",
    "systems": ["tests.toy:MLP"],
    "steps": 60,
    "seeds": 1,
    "learning_rates": (3e-3,),
    "workers": 1,
}
#: Enough to beat the baseline.
LEARNS = ("--systems", "dlinear", "--steps", 300, "--seeds", 1, "--learning-rates", "0.01", "--workers", 1)


def compare(out: Path, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    return run(Settings(**{**TOY, **options, "out": str(out)}), events.append), events


def weights(file: Path) -> dict[str, torch.Tensor]:
    return {k.removeprefix("model."): v for k, v in load_tensors(file)[0].items()}


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return all(torch.equal(first[k], v) for k, v in second.items())


def config(out: Path, place: str = "best") -> dict[str, Any]:
    return json.loads((out / place / "config.json").read_text())


def trial(out: Path, name: str = "MLP") -> Path:
    return out / "trials" / f"tests.toy.{name}-seed0"


def result(place: Path) -> dict[str, Any]:
    return json.loads((place / "result.json").read_text())


def test_what_ships_is_trained_on_everything_for_the_steps_that_were_best(tmp_path):
    out = tmp_path / "out"
    board, events = compare(out)
    best_step = result(trial(out))["best_step"]
    assert board["best"] == {
        "system": "tests.toy:MLP",
        "seed": 0,
        "path": "best",
        "refit": True,
        "refit_steps": best_step,
        "refit_reason": "",
        "scored": "trials/tests.toy.MLP-seed0/scored",
    }
    assert [e for e in events if e["type"] == "phase"][1]["text"] == REFITTING
    # The same by hand, in this process.
    task = ToyTask(256, 0.1).whole()
    assert task is not None
    torch.set_num_threads(1)
    seed_everything("init", 0)
    model = MLP()
    budget = {"steps": best_step, "validate_every": best_step}
    train(model, Recipe(task), task, lr=3e-3, seed=0, folder=tmp_path / "hand", **budget)
    shipped = weights(out / "best" / "model.safetensors")
    assert all(torch.equal(shipped[k], v) for k, v in model.state_dict().items())
    assert not same(out / "best" / "model.safetensors", trial(out) / "best.safetensors")


def test_the_record_says_what_the_numbers_belong_to(tmp_path):
    board, _ = compare(tmp_path)
    about = config(tmp_path)
    assert about["refit"] is True
    assert "trials/tests.toy.MLP-seed0/scored" in about["note"]
    assert f"{board['best']['refit_steps']} steps on all data and have no score" in about["note"]
    row = next(r for r in board["rows"] if r["system"] == "tests.toy:MLP")
    assert about["test"]["mse"] == row["test"]["mse"]["mean"]
    scored = trial(tmp_path) / "scored"
    assert config(tmp_path, str(scored.relative_to(tmp_path)))["refit"] is False
    assert same(scored / "model.safetensors", trial(tmp_path) / "best.safetensors")
    page = (tmp_path / "report.html").read_text()
    assert "trained anew on training, validation and test data together" in page


def test_it_changes_no_score(tmp_path):
    with_it, _ = compare(tmp_path / "with")
    without, events = compare(tmp_path / "without", refit=False)
    for one, other in zip(with_it["rows"], without["rows"], strict=True):
        assert (one["system"], one["val"], one["test"], one["rank"]) == tuple(
            other[k] for k in ("system", "val", "test", "rank")
        )
    out = tmp_path / "without"
    assert not (out / "refits").exists()
    assert same(out / "best" / "model.safetensors", trial(out) / "best.safetensors")
    assert config(out)["refit"] is False
    best = without["best"]
    assert (best["refit"], best["refit_reason"], best["scored"]) == (False, "that was not wanted.", "best")
    assert REFITTING not in [e.get("text") for e in events]
    assert "They were not trained again on all data: that was not wanted." in (out / "report.html").read_text()
    # It is no rule of the comparison: the same folder gives the other one.
    again, _ = compare(out, refit=True)
    assert again["best"]["refit"] is True
    assert same(out / "best" / "model.safetensors", tmp_path / "with" / "best" / "model.safetensors")


def test_done_is_done(tmp_path):
    compare(tmp_path)
    place = tmp_path / "refits" / "tests.toy.MLP-seed0"
    stamp = (place / "result.json").stat().st_mtime_ns
    _, events = compare(tmp_path)
    assert (place / "result.json").stat().st_mtime_ns == stamp
    assert REFITTING not in [e.get("text") for e in events]


def test_one_that_diverges_ships_the_scored_weights_and_says_so(tmp_path):
    board, events = compare(tmp_path, systems=["tests.toy:Overfull"])
    assert board["best"]["system"] == "tests.toy:Overfull"
    reason = "diverged: the training loss was nan at step 1 with learning rate 0.003."
    assert (board["best"]["refit"], board["best"]["refit_reason"]) == (False, reason)
    warnings = [e["text"] for e in events if e["type"] == "warning"]
    assert warnings == [f"best/ holds the scored weights, for the refit failed: {reason}"]
    assert same(tmp_path / "best" / "model.safetensors", trial(tmp_path, "Overfull") / "best.safetensors")
    assert reason in (tmp_path / "report.html").read_text()
    # It is kept as it is until told otherwise.
    stamp = (tmp_path / "refits" / "tests.toy.Overfull-seed0" / "result.json").stat().st_mtime_ns
    compare(tmp_path, systems=["tests.toy:Overfull"])
    assert (tmp_path / "refits" / "tests.toy.Overfull-seed0" / "result.json").stat().st_mtime_ns == stamp
    compare(tmp_path, systems=["tests.toy:Overfull"], retry_failed=True)
    assert (tmp_path / "refits" / "tests.toy.Overfull-seed0" / "result.json").stat().st_mtime_ns > stamp


def test_a_task_without_a_whole_ships_what_was_scored(tmp_path):
    board, _ = compare(tmp_path, task="tests.toy:Undivided")
    assert board["best"]["refit_reason"] == "the task has no form for it."
    assert same(tmp_path / "best" / "model.safetensors", trial(tmp_path) / "best.safetensors")


def test_a_winner_without_training_is_fitted_to_everything(tmp_path):
    board, _ = compare(tmp_path, systems=["tests.toy:Mean"])
    assert board["best"]["refit"] is True
    task = ToyTask(256, 0.1)
    shipped = weights(tmp_path / "best" / "model.safetensors")["mean"]
    assert torch.equal(shipped, task.y.mean(0))
    assert not torch.equal(shipped, task.y[:256].mean(0))


def test_a_new_winner_has_a_refit_of_its_own(tmp_path):
    first, _ = compare(tmp_path, systems=["tests.toy:Mean"])
    second, _ = compare(tmp_path, systems=["tests.toy:MLP"])
    assert [b["best"]["system"] for b in (first, second)] == ["tests.toy:Mean", "tests.toy:MLP"]
    assert config(tmp_path)["system"] == "tests.toy:MLP"
    assert len(list((tmp_path / "refits").iterdir())) == 2


def test_killed_in_the_refit_it_ends_with_the_same_bits(tmp_path):
    """Two kills between its first checkpoint and its end."""
    slow = {**TOY, "systems": ["tests.toy:Slow"], "steps": 400, "checkpoint_every": 0.05, "patience": 0}
    calm, hit = tmp_path / "calm", tmp_path / "hit"
    run(Settings(**slow, out=str(calm)))
    place = hit / "refits" / "tests.toy.Slow-seed0"
    for kill in range(2):
        process = start(slow, hit)
        before = (place / "checkpoint.safetensors").stat().st_mtime_ns if kill else 0
        while process.poll() is None:
            file = place / "checkpoint.safetensors"
            if file.exists() and file.stat().st_mtime_ns > before:
                time.sleep(0.1)
                break
            time.sleep(0.005)
        assert not (place / "result.json").exists(), "the refit ended before it could be killed: give it more steps"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (hit / "best").exists()
    run(Settings(**slow, out=str(hit)))
    assert same(hit / "best" / "model.safetensors", calm / "best" / "model.safetensors")
    for file in ("best.safetensors", "checkpoint.safetensors"):
        assert same(place / file, calm / "refits" / place.name / file)


def test_plans_and_budgets_count_it(tmp_path):
    given = {**TOY, "systems": ["tests.toy:Slow"], "steps": 500, "out": str(tmp_path / "out")}
    plan, without = make_plan(Settings(**given)), make_plan(Settings(**given, refit=False))
    assert plan.refit_seconds > 1.0
    assert without.refit_seconds == 0.0
    assert plan.seconds > without.seconds + 1.0
    assert "then the winner is trained once more on all data: at most" in plan.text()
    assert "once more" not in without.text()
    budget = {**given, "steps": None, "budget": 14.0, "patience": 0}
    begun = time.monotonic()
    board = run(Settings(**budget), started=begun)
    assert time.monotonic() - begun < 14.0
    assert board["best"]["refit"] is True
    assert make_plan(Settings(**budget)).refit_seconds == 0.0  # it is done


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refit")
    series().to_csv(folder / "mine.csv", index=False)
    options = (*LEARNS, "--horizon", 6, "--lookback", 24)
    result = foveate_command(*COMPARE, "mine.csv", *options, "--out", "run", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, result, options


def test_the_command_says_what_it_ships(compared):
    folder, result, options = compared
    assert "winner: run/best, trained anew on all data" in result.stdout.replace(os.sep, "/")
    assert REFITTING in result.stderr
    scored = foveate_command(*COMPARE, "mine.csv", *options, "--no-refit", "--out", "plain", cwd=folder)
    assert "winner: plain/best, as scored" in scored.stdout.replace(os.sep, "/")


def test_predict_uses_the_refit_and_the_scored_weights_can_be_loaded(compared):
    folder, _, _ = compared
    board = json.loads((folder / "run" / "leaderboard.json").read_text())
    best, scored = folder / "run" / "best", folder / "run" / board["best"]["scored"]
    values = series()[["c0", "c1"]].to_numpy()
    models = foveate.load(best), foveate.load(scored)
    torch.testing.assert_close(models[0].mean[0], torch.tensor(values.mean(axis=0)).float())
    torch.testing.assert_close(models[1].mean[0], torch.tensor(values[:210].mean(axis=0)).float())
    x = torch.tensor(values[-24:])[None].float()
    expected = [model(x)[0] for model in models]
    assert board["best"]["system"] == "dlinear"
    assert not torch.allclose(*expected)
    for place, wanted in zip((best, scored), expected, strict=True):
        told = foveate_command("predict", place, "mine.csv", cwd=folder)
        assert told.returncode == 0, told.stderr
        rows = [line.split(",")[1:] for line in told.stdout.strip().splitlines()[1:]]
        torch.testing.assert_close(
            torch.tensor([[float(v) for v in row] for row in rows]), wanted, rtol=1e-4, atol=1e-3
        )


@pytest.mark.parametrize("task", ["impute", "classify-series"])
def test_other_tasks_refit_too(task, tmp_path):
    given = {"systems": ["softmax_attention"], "steps": 20, "seeds": 1, "learning_rates": (1e-3,), "workers": 2}
    board = run(Settings(task=task, **given, out=str(tmp_path)))
    assert board["best"]["refit"] is True
    foveate.load(tmp_path / "best")
    foveate.load(tmp_path / board["best"]["scored"])


def test_a_file_of_settings_can_turn_it_off_and_the_command_line_on_again(compared):
    folder, _, _ = compared
    text = (folder / "run" / "config.toml").read_text()
    assert "refit = true" in text
    (folder / "off.toml").write_text(text.replace("refit = true", "refit = false"))
    for more, wanted in (((), False), (("--refit",), True)):
        told = foveate_command(*COMPARE, "--config", "off.toml", "--out", "x", "--plan", "--json", *more, cwd=folder)
        assert told.returncode == 0, told.stderr
        assert (json.loads(told.stdout)["refit_seconds"] > 0) is wanted
