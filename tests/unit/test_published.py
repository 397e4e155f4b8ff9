"""Published recipes: data sets told by their files, schedules by passes, who is trained how, and what is on record."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from foveate.compare import Settings, make_plan, run
from foveate.compare.contestants import contestants, jobs
from foveate.compare.folder import Folder
from foveate.compare.preset import with_official_split, with_recipes
from foveate.compare.wording import method
from foveate.errors import InvalidValue, UnknownName
from foveate.files import read_json
from foveate.models.published import Published
from foveate.models.series.timesnet import TimesNet
from foveate.registry import entries
from foveate.tasks.base import Evaluation, Progress, Recipe, asked_at_once
from foveate.tasks.detect_anomalies.task import DetectAnomaliesTask
from foveate.tasks.forecast.task import ForecastTask
from foveate.tasks.io import load_tensors
from foveate.tasks.known_data import KNOWN, known_data
from foveate.tasks.published import OPTIMIZERS, PublishedRecipe
from foveate.tasks.schedules import BY_EPOCH
from foveate.tasks.trainer import train
from tests.toy import MLP, Recorded, ToyTask

TOY: dict[str, Any] = {
    "task": "tests.toy:ToyTask",
    "systems": ["tests.toy:Recorded", "tests.toy:Linear"],
    "preset": "published:ETTh1",
    "steps": 30,
    "seeds": 1,
    "learning_rates": (1e-3, 1e-2),
    "workers": 1,
}
FACTS = {"optimizer": "adam", "schedule": "halved", "learning_rate": 0.01, "batch_size": 8}


def resolved(**options: Any) -> tuple[Settings, ToyTask]:
    settings, task = Settings(**{**TOY, **options}), ToyTask(70, 0.1)
    return with_recipes(settings, task, contestants(settings, task)), task


# ----- data sets


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("ETTh1.csv", "ETTh1"),
        ("/data/ett/ETTm2.parquet", "ETTm2"),
        ("electricity.csv", "ECL"),
        ("ECL.csv", "ECL"),
        ("exchange_rate.csv", "Exchange"),
        ("national_illness.csv", "ILI"),
        ("weather-2020.csv.gz", "Weather"),
        ("x/JapaneseVowels_TRAIN.ts", "JapaneseVowels"),
        ("traffic/data.csv", "Traffic"),
    ],
)
def test_files_tell_the_data_set(source: str, name: str) -> None:
    assert known_data("published", source).name == name
    assert known_data(f"published:{name}", "anything.csv").name == name


def test_other_files_are_refused_and_names_are_checked() -> None:
    for source in ("prices.csv", "my-etth1.csv", "weatherless.csv", "etth11.csv"):
        with pytest.raises(InvalidValue, match=r"is not called like a data set .* --preset published:ETTh1"):
            known_data("published", source)
    with pytest.raises(InvalidValue, match="the embedded data is not called"):
        known_data("published", None)
    with pytest.raises(UnknownName, match="recipe 'ETTh3': did you mean"):
        known_data("published:ETTh3", "prices.csv")
    with pytest.raises(InvalidValue, match="preset='papers' is not possible: it must be 'published'"):
        Settings(task="forecast", preset="papers")
    with pytest.raises(InvalidValue, match="preset and budget cannot be given together"):
        Settings(task="forecast", preset="published", budget=60)


def test_the_official_split_is_taken_unless_another_is_given() -> None:
    def split(source: str, task: str = "forecast", **data: Any) -> Any:
        return with_official_split(Settings(task=task, preset="published", data={"source": source, **data})).data

    assert split("ETTh2.csv")["split"] == "8640/2880/2880"
    assert split("ETTm1.csv", "impute")["split"] == "34560/11520/11520"
    assert split("ETTh2.csv", split="0.6/0.2/0.2")["split"] == "0.6/0.2/0.2"
    assert "split" not in split("ETTh2.csv", windows=3)
    assert "split" not in split("weather.csv")
    assert "split" not in split("ETTh1", "classify-series")
    assert with_official_split(Settings(task="forecast", data={"source": "ETTh1.csv"})).data == {"source": "ETTh1.csv"}


# ----- recipes


def test_schedules_are_the_published_ones() -> None:
    """By the loops of Time-Series-Library and PatchTST: after pass e (from 1) the rate becomes f(e)."""

    def after(f: Any) -> list[float]:
        return [1.0, *(f(e) for e in range(1, 8))]

    assert [BY_EPOCH["halved"](e) for e in range(8)] == after(lambda e: 0.5 ** (e - 1))
    assert [BY_EPOCH["tenth_off"](e) for e in range(8)] == after(lambda e: 1.0 if e < 3 else 0.9 ** (e - 3))
    assert {BY_EPOCH["constant"](e) for e in range(8)} == {1.0}


def test_the_recipe_follows_its_facts() -> None:
    recipe, model = PublishedRecipe(ToyTask(64, 0.1), FACTS), MLP()
    (optimizer,) = recipe.optimizers(model, 0.01)
    assert type(optimizer) is torch.optim.Adam
    assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == sum(
        p.numel() for p in model.parameters()
    )
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0}
    assert recipe.clip_norm is None
    assert recipe.schedule(0.9, Progress(step=99, steps=100, epoch=3, batch=0, batches=4)) == 0.25
    assert recipe.scored_at_once(8) == 8
    other = PublishedRecipe(ToyTask(64, 0.1), {**FACTS, "optimizer": "radam", "clip_norm": 4.0})
    assert type(other.optimizers(model, 0.01)[0]) is torch.optim.RAdam
    assert other.clip_norm == 4.0


class _Flat(ToyTask):
    """Every validation has the same score."""

    def evaluate(self, model: torch.nn.Module, split: str, batch_size: int = 256) -> Evaluation:
        return Evaluation({"mse": 0.5, "mae": 0.5}, torch.zeros(self.size(split)))


def test_of_equal_validations_the_last_counts_as_published(tmp_path: Path) -> None:
    task, best = _Flat(64, 0.1), {}
    for name, recipe in (("published", PublishedRecipe(task, FACTS)), ("usual", Recipe(task))):
        rules = {"steps": 40, "validate_every": 8, "patience": 3, "batch_size": 8, "lr": 0.01, "seed": 0}
        trained = train(MLP(), recipe, task, folder=tmp_path / name, **rules)
        best[name] = (trained.best_step, trained.steps)
    assert best == {"published": (40, 40), "usual": (8, 32)}


def test_every_published_recipe_can_be_built() -> None:
    """All systems, tasks, data sets and horizons: the names in the facts exist, the options belong to the system."""
    found = []
    for entry in entries("model"):
        target = entry.load()
        for task in target.spec.tasks:
            for dataset in KNOWN:
                for lookback, horizon in ((96, 96), (96, 192), (96, 336), (96, 720), (336, 96)):
                    info = SimpleNamespace(
                        task=task, lookback=lookback, horizon=horizon, channels=2, classes=3, marks=4, targets=(0, 1)
                    )
                    published = target.published(info, dataset)
                    if published is None:
                        continue
                    found.append((entry.name, task))
                    assert published.optimizer in OPTIMIZERS
                    assert published.schedule in BY_EPOCH
                    assert min(published.batch_size, published.epochs, published.patience) >= 1
                    with torch.device("meta"):
                        target.for_task(info, **published.options)
    assert {("timesnet", "forecast"), ("timesnet", "impute"), ("timesnet", "classify-series")} <= set(found)
    assert {("dlinear", "forecast"), ("patchtst", "forecast"), ("patchtst", "classify-series")} <= set(found)


def test_the_tables_hold_what_the_sheets_say() -> None:
    def of(name: str, dataset: str, horizon: int = 96, lookback: int = 96, task: str = "forecast") -> Published:
        target = next(e for e in entries("model") if e.name == name).load()
        info = SimpleNamespace(task=task, horizon=horizon, lookback=lookback)
        return target.published(info, dataset)

    etth1 = of("timesnet", "ETTh1")
    assert (etth1.options["d_model"], etth1.options["d_ff"], etth1.options["top_k"]) == (16, 32, 5)
    assert (etth1.learning_rate, etth1.batch_size, etth1.epochs, etth1.patience) == (1e-4, 32, 10, 3)
    assert (of("timesnet", "ETTm1").options["d_model"], of("timesnet", "ETTm1", 720).options["d_model"]) == (64, 16)
    assert (of("timesnet", "ETTm2", 192).epochs, of("timesnet", "ETTm2").epochs) == (1, 10)
    assert of("timesnet", "ETTh1", task="impute").learning_rate == 1e-3
    vowels = of("timesnet", "JapaneseVowels", task="classify-series")
    assert (vowels.optimizer, vowels.epochs, vowels.patience, vowels.clip_norm) == ("radam", 60, 10, 4.0)
    assert vowels.schedule == "constant"
    assert [of("dlinear", d).learning_rate for d in ("ETTh1", "ETTh2", "ETTm1", "ECL")] == [5e-3, 5e-2, 1e-4, 1e-3]
    assert of("dlinear", "ETTm2", 720).learning_rate == 1e-2
    library, authors = of("patchtst", "ETTh1"), of("patchtst", "ETTh1", lookback=336)
    assert (library.options["release"], library.options["n_heads"]) == ("Time-Series-Library", 2)
    assert of("patchtst", "ETTh1", 720).options["n_heads"] == 16
    assert (authors.options["release"], authors.batch_size, authors.schedule) == ("PatchTST", 128, "tenth_off")
    assert of("patchtst", "ETTm1", lookback=336) is None
    assert (of("patchtst", "Weather", 336).batch_size, of("patchtst", "Weather").epochs) == (128, 3)


# ----- comparisons


def test_only_systems_with_a_recipe_are_trained_by_it() -> None:
    settings, task = resolved()
    assert set(settings.recipes) == {"tests.toy:Recorded"}
    rules = settings.rules("tests.toy:Recorded", task.sample_tokens)
    assert (rules.steps, rules.validate_every) == (4 * 4, 4)  # 70 samples: four batches of 16
    assert (rules.batch_size, rules.learning_rates, rules.patience) == (16, (0.02,), 3)
    assert rules.options == {"width": 24, "dropout": 0.1}
    usual = settings.rules("tests.toy:Linear", task.sample_tokens)
    assert (usual.steps, usual.batch_size, usual.learning_rates, usual.recipe) == (30, 32, (1e-3, 1e-2), {})
    kinds = [(job.kind, job.system) for job in jobs(contestants(settings, task), settings)]
    assert [system for kind, system in kinds if kind == "sweep"] == ["tests.toy:Linear"]
    assert not resolved(preset="published:ECL")[0].recipes
    assert not resolved(preset=None)[0].recipes


def test_the_users_options_win_over_published_ones() -> None:
    settings, task = resolved(options={"tests.toy:Recorded": {"width": 8}})
    assert settings.rules("tests.toy:Recorded", task.sample_tokens).options == {"width": 8, "dropout": 0.1}


def test_settings_with_recipes_survive_toml() -> None:
    import tomli_w

    settings, _ = resolved()
    again = Settings.from_dict(tomllib.loads(tomli_w.dumps(settings.as_dict())))
    assert again.as_dict() == settings.as_dict()


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("published") / "out"
    return out, run(Settings(**{**TOY, "out": str(out)}))


def test_what_is_on_record(compared: tuple[Path, dict[str, Any]]) -> None:
    out, board = compared
    rows = {row["system"]: row for row in board["rows"]}
    recipe = rows["tests.toy:Recorded"]["recipe"]
    assert (recipe["source"], recipe["dataset"], recipe["optimizer"], recipe["seed"]) == (
        "made up",
        "ETTh1",
        "radam",
        2021,
    )
    assert rows["tests.toy:Recorded"]["learning_rate"] == 0.02
    assert rows["tests.toy:Recorded"]["sweep"] == []
    assert rows["tests.toy:Recorded"]["steps"] <= 4 * 16
    assert rows["tests.toy:Linear"]["recipe"] is None
    assert len(rows["tests.toy:Linear"]["sweep"]) == 2
    config = tomllib.loads((out / "config.toml").read_text())
    assert config["preset"] == "published:ETTh1"
    assert config["recipes"]["tests.toy:Recorded"]["epochs"] == 4
    trial = read_json(out / "trials" / "tests.toy.Recorded-seed0" / "config.json")
    assert trial["options"] == {"width": 24, "dropout": 0.1}
    assert "published recipe" in (out / "report.html").read_text()


def test_the_report_claims_no_equal_rules_where_there_were_none(compared: tuple[Path, dict[str, Any]]) -> None:
    _, board = compared
    told = dict(method(board))
    assert "The same budget for all others" in told
    assert "Every such system that trains tried" in told["The same learning-rate sweep for all others"]
    assert told["Who was treated differently"] == (
        "Trained by the published recipe for ETTh1: tests.toy:Recorded; by the usual rules: tests.toy:Linear."
    )
    alone = {**board, "rows": [row for row in board["rows"] if row["recipe"] or row["baseline"]]}
    assert not any("The same" in title for title, _ in method(alone))
    usual = {**board, "rows": [row for row in board["rows"] if not row["recipe"]]}
    assert {"The same budget for all", "The same learning-rate sweep for all"} <= {title for title, _ in method(usual)}


def test_the_published_seed_makes_the_weights(compared: tuple[Path, dict[str, Any]]) -> None:
    """The trained weights lie near those that PyTorch makes after ``manual_seed(2021)``, and far from any others."""
    out, _ = compared
    torch.manual_seed(2021)
    fresh = Recorded(width=24, dropout=0.1).state_dict()
    trained, _ = load_tensors(out / "trials" / "tests.toy.Recorded-seed0" / "best.safetensors")
    moved = max(float((trained[k] - v).abs().max()) for k, v in fresh.items() if k.endswith("weight"))
    assert 0 < moved < 0.35  # 64 steps of 0.02 at most, from there
    torch.manual_seed(2022)
    other = Recorded(width=24, dropout=0.1).state_dict()
    assert max(float((trained[k] - v).abs().max()) for k, v in other.items() if k.endswith("weight")) > 0.35


def test_other_recipes_in_the_same_folder_are_refused(compared: tuple[Path, dict[str, Any]]) -> None:
    out, _ = compared
    with pytest.raises(InvalidValue, match=r"was made with preset = \"published:ETTh1\", not none"):
        run(Settings(**{**TOY, "preset": None, "out": str(out)}))
    with pytest.raises(InvalidValue, match=r"has trials of 'tests.toy:Recorded' with options"):
        run(Settings(**{**TOY, "options": {"tests.toy:Recorded": {"width": 8}}, "out": str(out)}))
    assert Folder(out).results()


def test_the_plan_knows_the_recipe() -> None:
    plan = make_plan(Settings(**TOY))
    steps = {trial.system: trial.steps for trial in plan.trials}
    assert steps["tests.toy:Recorded"] == 4 * (256 // 16)
    assert steps["tests.toy:Linear"] == 30


# ----- models whose answers depend on the batch


def test_a_model_that_depends_on_its_batch_is_asked_one_by_one() -> None:
    model = TimesNet(task="forecast", seq_len=24, pred_len=6, enc_in=2, d_model=4, d_ff=4, top_k=2, num_kernels=2)
    assert asked_at_once(model, 256) == 1
    assert asked_at_once(MLP(), 256) == 256
    assert asked_at_once(torch.nn.Linear(2, 2), 256) == 256


def test_a_forecast_does_not_depend_on_what_else_is_asked() -> None:
    """One series alone, and among others with other periods."""
    from foveate.tasks.forecast.predict import predict

    noise = np.random.default_rng(0).normal(size=(8, 200))
    when = pd.date_range("2020-01-01", periods=200, freq="h")
    tables = [pd.DataFrame({"date": when, "shop": f"s{i}", "y": y}) for i, y in enumerate(noise)]
    together = pd.concat(tables)
    task = ForecastTask.prepare(together, id="shop", lookback=48, horizon=12)
    torch.manual_seed(0)
    model = TimesNet.for_task(task.info, d_model=4, d_ff=4, num_kernels=2, top_k=2)
    model.embedding.value.weight.data *= 20  # the series, not the positions, decide the periods
    forecaster = task.package(model).eval()
    alone = predict(forecaster, tables[0], id="shop")["y"].to_numpy()
    among = predict(forecaster, together, id="shop").query("shop == 's0'")["y"].to_numpy()
    assert np.array_equal(alone, among)
    x = torch.from_numpy(noise[:, -48:, None])  # the module itself, given all at once, does depend on them
    marks = torch.zeros(8, 48, task.info.marks)
    with torch.no_grad():
        batch = forecaster(x, marks, torch.arange(8))[0]
        assert not torch.allclose(batch, forecaster(x[:1], marks[:1], torch.arange(1))[0], atol=1e-4)


def test_alarms_do_not_depend_on_how_many_windows_are_read_at_once() -> None:
    """Scores and the threshold that they are held against are both taken window by window."""
    noise = torch.randn(400, 1, generator=torch.Generator().manual_seed(0)).numpy()
    frame = pd.DataFrame(noise, columns=["y"])
    task = DetectAnomaliesTask.prepare(frame, lookback=32, anomaly_ratio=0.3)
    torch.manual_seed(0)
    model = TimesNet.for_task(task.info, d_model=4, d_ff=4, num_kernels=2, top_k=2).eval()
    model.embedding.value.weight.data *= 20  # the series, not the positions, decide the periods
    detector = task.package(model)
    alone, among = (task.predict(detector, frame, batch_size=size)["score"] for size in (1, 256))
    assert alone.equals(among)
    with torch.no_grad():
        one_by_one, together = (task._threshold(task._scores(model, "val", size)) for size in (1, 256))
    assert float(detector.threshold) == one_by_one != together
