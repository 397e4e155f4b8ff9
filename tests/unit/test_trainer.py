"""The training loop: resumed runs to the bit, hooks, budgets, divergence, and what lies on the disk."""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foveate.errors import InvalidType, InvalidValue
from foveate.files import read_jsonl
from foveate.tasks import state
from foveate.tasks.base import Recipe, Stage
from foveate.tasks.budget import Budget, default_validate_every
from foveate.tasks.io import load_tensors
from foveate.tasks.schedules import learning_rate_factor
from foveate.tasks.state import BEST, CHECKPOINT, Position, evaluate, random_state, seed_everything, set_random_state
from foveate.tasks.trainer import Diverged, train
from tests import toy


class Kill(BaseException):
    """Stands for a kill: nothing may catch it."""


def killed_on_resume(event: dict[str, Any]) -> None:
    if event["type"] == "resumed":
        raise KeyboardInterrupt


class KillingTask(toy.ToyTask):
    """Is killed when the given number of training batches has been read."""

    batches_left = math.inf

    def batch(self, split: str, index: Tensor) -> dict[str, Tensor]:
        if split == "train":
            self.batches_left -= 1
            if self.batches_left < 0:
                raise Kill
        return super().batch(split, index)


def run(
    folder: Path, model_class: type = toy.MLP, kills: tuple[int, ...] = (), **options: Any
) -> tuple[Any, nn.Module]:
    """Train; the n-th process is killed after ``kills[n]`` steps, the last one runs to its end."""
    arguments: dict[str, Any] = {"steps": 60, "lr": 0.01, "seed": 3, "batch_size": 16, "validate_every": 7}
    arguments |= {"checkpoint_every": 0.0, **options}
    for batches in (*kills, math.inf):
        task = KillingTask(samples=128, noise=0.1)
        task.batches_left = batches
        recipe_class = toy.StagedRecipe if model_class is toy.Staged else Recipe
        seed_everything("init", arguments["seed"])
        model = model_class()
        try:
            return train(model, recipe_class(task), task, folder=folder, **arguments), model
        except Kill:
            if batches is math.inf:
                raise
            seed_everything("another process", batches)  # which does not have these generators' state
    raise AssertionError("never finished")


def same(a: Path, b: Path) -> None:
    """Two runs' weights, optimisers, generators and curves are equal to the bit."""
    for name in (BEST, CHECKPOINT):
        first, about_first = load_tensors(a / name)
        second, about_second = load_tensors(b / name)
        assert first.keys() == second.keys()
        different = [k for k in first if not torch.equal(first[k], second[k])]
        assert not different, (name, different)
        if name == CHECKPOINT:
            for position in (about_first["position"], about_second["position"]):
                for clock in ("train_seconds", "evaluate_seconds", "checkpoint_seconds"):
                    position.pop(clock)
        assert about_first == about_second


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_jsonl(folder / "log.jsonl")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[type, Path]:
    made = {}
    for cls in (toy.MLP, toy.Linear, toy.Staged):
        made[cls] = tmp_path_factory.mktemp(cls.__name__)
        run(made[cls], cls)
    return made


@pytest.mark.parametrize("cls", [toy.MLP, toy.Linear, toy.Staged])
@pytest.mark.parametrize("kills", [(1,), (13, 1, 8), (15, 15), (30, 29), (59,)])
def test_resume_gives_the_same_bits(
    cls: type, kills: tuple[int, ...], tmp_path: Path, undisturbed: dict[type, Path]
) -> None:
    result, _ = run(tmp_path, cls, kills)
    same(tmp_path, undisturbed[cls])
    assert log_of(tmp_path) == log_of(undisturbed[cls])
    assert result.steps == 60


def test_resume_from_an_older_checkpoint(
    tmp_path: Path, undisturbed: dict[type, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps and validations after the last checkpoint are done again; lines logged since do not stand twice."""
    save, calls = state.Checkpoint.save, []

    def save_sometimes(self: state.Checkpoint, position: Position, *rest: Any) -> None:
        calls.append(position.step)
        if position.stopped or position.step % 11 == 0:
            save(self, position, *rest)

    monkeypatch.setattr(state.Checkpoint, "save", save_sometimes)
    run(tmp_path, toy.MLP, kills=(21, 25))
    same(tmp_path, undisturbed[toy.MLP])
    assert log_of(tmp_path) == log_of(undisturbed[toy.MLP])
    assert calls.count(20) == 2, "step 20 was lost and done again"


def test_a_torn_log_line_is_repaired(tmp_path: Path, undisturbed: dict[type, Path]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, kills=(30,), on_event=killed_on_resume)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 35, "stage": "tr')
    run(tmp_path)
    assert log_of(tmp_path) == log_of(undisturbed[toy.MLP])


def test_a_kill_between_best_and_checkpoint_loses_nothing(
    tmp_path: Path, undisturbed: dict[type, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best weights are written first, under another name: the old checkpoint still has its own."""
    real, left = state.save_tensors, [3]

    def killed_on_checkpoint(path: Path, *rest: Any) -> None:
        if path.name == CHECKPOINT and (tmp_path / "best-21.safetensors").exists() and left[0]:
            left[0] -= 1
            raise Kill
        real(path, *rest)

    monkeypatch.setattr(state, "save_tensors", killed_on_checkpoint)
    for _ in range(3):
        with pytest.raises(Kill):
            run(tmp_path)
        _, about = load_tensors(tmp_path / CHECKPOINT)
        assert (tmp_path / about["best"]).exists(), "the checkpoint's best weights are gone"
        assert about["position"]["step"] < 21
    run(tmp_path)
    same(tmp_path, undisturbed[toy.MLP])
    assert {p.name for p in tmp_path.iterdir()} == {BEST, CHECKPOINT, "log.jsonl"}


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first, _ = run(tmp_path)
    before = (tmp_path / CHECKPOINT).stat().st_mtime_ns
    again, model = run(tmp_path, kills=(0,))  # would be killed at its first batch
    assert again.val == first.val
    assert again.curve == first.curve
    assert (tmp_path / CHECKPOINT).stat().st_mtime_ns == before
    best, _ = load_tensors(tmp_path / BEST)
    assert all(torch.equal(v, best[k]) for k, v in model.state_dict().items())


def test_the_model_ends_with_the_best_weights(tmp_path: Path) -> None:
    task = toy.ToyTask(128, 0.1)
    result, model = run(tmp_path, lr=0.05)
    scores = {step: value for step, _, value in result.curve}
    assert result.val["mse"] == min(scores.values()) == scores[result.best_step]
    assert evaluate(model, Recipe(task), task, "val", 64).metrics == result.val
    assert not model.training


def test_validation_does_not_change_training(tmp_path: Path) -> None:
    """Dropout, batch statistics, the recipe's average (which its evaluation form overwrites) and generators."""
    for cls in (toy.MLP, toy.Staged):
        for every in (1, 60):
            run(tmp_path / f"{cls.__name__}{every}", cls, validate_every=every)
        often, _ = load_tensors(tmp_path / f"{cls.__name__}1" / CHECKPOINT)
        once, _ = load_tensors(tmp_path / f"{cls.__name__}60" / CHECKPOINT)
        assert all(torch.equal(often[k], once[k]) for k in once)


def test_evaluate_restores_replaced_buffers_and_modes() -> None:
    class Memory(toy.MLP):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("memory", torch.zeros(2), persistent=False)
            self.register_buffer("later", None)

        def forward(self, x: Tensor) -> Tensor:
            self.memory = self.memory + 1
            self.later = torch.ones(1)
            torch.rand(1), random.random(), np.random.rand()
            return super().forward(x)

    task = toy.ToyTask(64, 0.1)
    model = Memory().train()
    model.net[3].eval()
    before = random_state()
    kept = model.memory
    evaluate(model, Recipe(task), task, "val", 8)
    assert model.memory is kept
    assert model.memory.tolist() == [0, 0]
    assert model.later is None
    assert model.training
    assert not model.net[3].training
    assert all(torch.equal(before[k], v) for k, v in random_state().items())


def test_hooks_come_in_the_documented_order(tmp_path: Path) -> None:
    told: list[tuple[Any, ...]] = []
    task = toy.ToyTask(64, 0.1)
    recipe = toy.StagedRecipe(task, lambda *what: told.append(what))
    train(
        toy.Staged(), recipe, task, folder=tmp_path, steps=8, lr=0.01, seed=0, batch_size=16, validate_every=2
    )  # fmt: skip
    step = lambda stage, s, n, epoch, batch: [  # noqa: E731
        ("losses", stage, s, n, epoch, batch),
        ("before_step", s, True),
        ("after_step", s + 1),
    ]
    expected = [
        ("prepare", "warm"),
        ("optimizers",),
        ("order", 0, 32),  # the stage's own samples: two batches
        ("on_epoch", 0, 2),
        *step(0, 0, 2, 0, 0),
        *step(0, 1, 2, 0, 1),
        ("eval_form", "val"),
        ("prepare", "main"),
        ("optimizers",),
        ("order", 1, 64),
        ("on_epoch", 1, 4),
        *step(1, 0, 6, 1, 0),
        *step(1, 1, 6, 1, 1),
        ("eval_form", "val"),
        *step(1, 2, 6, 1, 2),
        *step(1, 3, 6, 1, 3),
        ("eval_form", "val"),
        ("order", 2, 64),
        ("on_epoch", 2, 4),
        *step(1, 4, 6, 2, 0),
        *step(1, 5, 6, 2, 1),
        ("eval_form", "val"),
    ]
    assert told == expected


def test_the_best_of_a_staged_run_is_of_its_last_stage(tmp_path: Path) -> None:
    class Ruined(Recipe):
        """Its second stage begins with worse weights and cannot mend them."""

        def stages(self) -> list[Stage]:
            return [
                Stage("good", 0.5),
                Stage("bad", 0.5, prepare=lambda m: [p.data.fill_(3.0) for p in m.parameters()]),
            ]

        def optimizers(self, model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
            ruined = next(model.parameters()).flatten()[0] == 3.0
            return super().optimizers(model, 1e-9 if ruined else lr)

    task = toy.ToyTask(128, 0.1)
    result = train(toy.Linear(), Ruined(task), task, folder=tmp_path, steps=40, lr=0.1, seed=0, validate_every=5)
    values = {step: value for step, _, value in result.curve}
    assert min(values, key=lambda step: values[step]) <= 20
    assert result.best_step > 20
    with pytest.raises(InvalidValue, match="steps=2 is not possible: each of the 2 stages needs at least one step"):
        run(tmp_path / "short", toy.Staged, steps=2)


def test_sample_order_follows_seed_and_epoch(tmp_path: Path) -> None:
    seen: dict[int, list[Tensor]] = {}

    class Watching(Recipe):
        def order(self, samples: int, epoch: int, generator: torch.Generator) -> Tensor:
            order = super().order(samples, epoch, generator)
            seen[seed].append(order)
            return order

    task = toy.ToyTask(32, 0.1)
    for seed in (0, 1):
        seen[seed] = []
        for attempt in range(2):
            train(
                toy.MLP(), Watching(task), task, folder=tmp_path / f"{seed}{attempt}", steps=4, lr=0.01, seed=seed,
                batch_size=16,
            )  # fmt: skip
        first, second = seen[seed][:2], seen[seed][2:]
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert not torch.equal(first[0], first[1])
    assert not torch.equal(seen[0][0], seen[1][0])


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (toy.Diverging, r"diverged: the training loss was nan at step 11 with learning rate 0\.01\."),
        (toy.BlowingUp, r"diverged: the training loss rose from [\d.]+ to .* at step 11 with learning rate 0\.01\."),
    ],
)
def test_divergence_is_told(cls: type, message: str, tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=message):
        run(tmp_path, cls)


def test_a_validation_that_is_not_finite_is_divergence(tmp_path: Path) -> None:
    class Infinite(toy.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1.0 if self.training else math.inf)

    task = toy.ToyTask(64, 0.1)
    with pytest.raises(Diverged, match=r"the validation mse was (inf|nan) at step 5"):
        train(Infinite(), Recipe(task), task, folder=tmp_path, steps=5, lr=0.01, seed=0, validate_every=5)


def test_early_stopping(tmp_path: Path) -> None:
    result, _ = run(tmp_path, toy.Linear, steps=400, validate_every=5, patience=3, lr=0.5)
    assert result.stopped == "early"
    assert result.steps < 400
    assert result.steps == result.best_step + 15
    again, _ = run(tmp_path, toy.Linear, kills=(0,), steps=400, validate_every=5, patience=3, lr=0.5)
    assert again.stopped == "early"


def test_time_budget_is_kept_and_survives_a_kill(tmp_path: Path) -> None:
    started = time.perf_counter()
    result, _ = run(tmp_path, steps=None, seconds=0.6, validate_every=None)
    assert time.perf_counter() - started < 1.2
    assert result.stopped == "budget"
    assert 3 <= len(result.curve) <= 25
    assert result.steps > 10
    killed = tmp_path / "killed"
    slow = [0]

    def wait(event: dict[str, Any]) -> None:
        slow[0] += event["type"] == "checkpoint"
        if event["type"] == "checkpoint" and slow[0] == 10:
            raise Kill

    with pytest.raises(Kill):
        run(killed, steps=None, seconds=0.6, validate_every=None, on_event=wait)
    run(killed, steps=None, seconds=0.6, validate_every=None, on_event=wait)
    _, about = load_tensors(killed / CHECKPOINT)
    position = Position(**about["position"])
    assert position.seconds < 0.9, "time before the kill counts"
    assert slow[0] > 10


def test_a_system_without_gradients_is_fitted(tmp_path: Path) -> None:
    task = toy.ToyTask(128, 0.1)
    model = toy.Mean()
    result = train(model, toy.MeanRecipe(task), task, folder=tmp_path, steps=100, lr=0.01, seed=0)
    assert result.stopped == "fit"
    assert result.steps == 0
    assert result.curve == [[0, None, result.val["mse"]]]
    assert model.mean.item() == pytest.approx(task.y[:128].mean().item())
    other = toy.Mean()
    train(other, toy.MeanRecipe(task), task, folder=tmp_path, steps=100, lr=0.01, seed=0)
    assert other.mean.equal(model.mean)


def test_progress_events_and_meters(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    values = iter([5.0, 3.0, *[1.0] * 100])
    result, _ = run(tmp_path, on_event=events.append, meters=lambda: {"peak": next(values)})
    kinds = [e["type"] for e in events]
    assert kinds.count("validated") == 9  # every 7 of 60, and the last
    assert kinds.count("checkpoint") >= 60
    assert result.meters == {"peak": 5.0}
    last = [e for e in events if e["type"] == "validated"][-1]
    assert last["step"] == last["steps"] == 60
    assert last["fraction"] == 1.0
    assert set(last["val"]) == {"mse", "mae"}


def test_checkpoints_are_few(tmp_path: Path) -> None:
    """By default one in five seconds and below a per cent of the time; the last one always."""
    events: list[dict[str, Any]] = []
    run(tmp_path, checkpoint_every=5.0, on_event=events.append)
    assert [e["step"] for e in events if e["type"] == "checkpoint"] == [60]


@pytest.mark.parametrize("damage", ["truncate", "garbage", "pickle", "foreign"])
def test_a_damaged_checkpoint_is_refused(damage: str, tmp_path: Path) -> None:
    run(tmp_path)
    file = tmp_path / CHECKPOINT
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "garbage":
        file.write_bytes(b"\x00" * 100)
    elif damage == "pickle":
        torch.save({"a": torch.zeros(1)}, file)
    else:
        state.save_tensors(file, {"a": torch.zeros(1)})
    with pytest.raises(InvalidValue, match=r"checkpoint\.safetensors (is not a safetensors file|was not written by)"):
        run(tmp_path)


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="steps=None and seconds=None: exactly one budget"):
        run(tmp_path, steps=None)
    with pytest.raises(InvalidValue, match="exactly one budget"):
        run(tmp_path, steps=5, seconds=1.0)
    with pytest.raises(InvalidValue, match="seconds=0 is not possible: a positive time"):
        run(tmp_path, steps=None, seconds=0)
    with pytest.raises(InvalidValue, match="batch_size=0 is not possible"):
        run(tmp_path, batch_size=0)
    with pytest.raises(InvalidValue, match="steps=0 is not possible"):
        run(tmp_path, steps=0)

    class Odd(toy.MLP):
        def get_extra_state(self) -> Any:
            return {"not": "a tensor"}

        def set_extra_state(self, value: Any) -> None:
            pass

    with pytest.raises(InvalidType, match=r"Odd keeps _extra_state, a dict, in its state dict: only tensors"):
        run(tmp_path / "odd", Odd)


def test_learning_rate_schedule() -> None:
    rates = [learning_rate_factor(i / 1000) for i in range(1001)]
    peak = rates.index(max(rates))
    assert peak == 50
    assert 0 < rates[0] < 0.1
    assert rates[2:50] == sorted(rates[2:50])
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)


def test_validations_cost_at_most_a_quarter() -> None:
    assert default_validate_every(1000, 32, 100) == 50
    assert default_validate_every(1000, 32, 10**6) == 250
    every = default_validate_every(1000, 32, 2400)
    assert 1000 / every * 2400 <= 0.26 * 3 * 1000 * 32
    assert default_validate_every(3, 32, 100) == 1


def test_budget_shares() -> None:
    budget = Budget(10, None, (1.0, 2.0, 1.0))
    assert [budget.stage_steps(i) for i in range(3)] == [2, 6, 2]
    assert budget.stage_fraction(Position(step=5, stage=1, stage_step=3)) == 0.5
    assert budget.fraction(Position(step=5)) == 0.5
    timed = Budget(None, 10.0, (1.0, 1.0), reserve=1.0)
    assert timed.stage_fraction(Position(stage=1, train_seconds=7.5)) == 0.5
    validated = Position(stage=1, train_seconds=8.5, evaluate_seconds=1.0, curve=[[1, 0.0, 0.0]])
    assert timed.used_up(validated), "time for the last validation and one more is kept free"
    assert not timed.used_up(Position(stage=1, train_seconds=7.0, evaluate_seconds=0.9, curve=[[1, 0.0, 0.0]]))
    with pytest.raises(InvalidValue, match="shares"):
        Budget(10, None, (1.0, 0.0))


def test_random_state_covers_all_generators() -> None:
    random.gauss(0, 1)  # leaves a second value in the generator
    np.random.randn()
    kept = random_state()
    draw = lambda: (torch.rand(2).tolist(), random.gauss(0, 1), random.random(), np.random.randn(3).tolist())  # noqa: E731
    first = draw()
    set_random_state(json_free(kept))
    assert draw() == first


def json_free(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in tensors.items()}


def test_the_log_is_json_lines(tmp_path: Path) -> None:
    run(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [7, 14, 21, 28, 35, 42, 49, 56, 60]
    assert set(lines[0]) == {"step", "stage", "epoch", "loss", "val", "best_step", "seconds"}
