"""The forecast task: protocol, no leakage, batches, scores, saving; against plain re-implementations."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from foveate.errors import FoveateError, InvalidType, InvalidValue, UnknownName
from foveate.registry import find
from foveate.tasks.forecast.features import time_features
from foveate.tasks.forecast.protocol import SPLITS, SplitRule, split_rule
from foveate.tasks.forecast.task import ForecastTask

ROOT = Path(__file__).resolve().parents[2]
ETTH1 = ROOT / ".." / "shared" / "data" / "etth1" / "ETTh1.csv"


class RepeatLast(nn.Module):
    """The last ``period`` steps over and over."""

    def __init__(self, horizon: int, period: int = 1) -> None:
        super().__init__()
        self.horizon, self.period = horizon, period

    def forward(self, x: Tensor, marks: Tensor | None = None) -> Tensor:
        return x[:, -self.period :].repeat(1, -(-self.horizon // self.period), 1)[:, : self.horizon]


def table(rows: int = 400, freq: str = "h", columns: int = 3, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, columns)).cumsum(axis=0) * 10.0 ** np.arange(columns) + 100.0 * np.arange(columns)
    frame = pd.DataFrame(values, columns=[f"c{i}" for i in range(columns)])
    frame.insert(0, "date", pd.date_range("2024-01-01", periods=rows, freq=freq))
    return frame


def with_gaps(frame: pd.DataFrame, share: float = 0.1, seed: int = 1) -> pd.DataFrame:
    frame = frame.copy()
    rng = np.random.default_rng(seed)
    for name in frame.columns.intersection(["c0", "c1", "c2"]):
        frame[name] = frame[name].mask(rng.random(len(frame)) < share)
    return frame


def whole(task: ForecastTask, split: str) -> dict[str, Tensor]:
    return task.batch(split, torch.arange(task.size(split)))


# The protocol


def test_windows_and_scaling_are_those_of_the_time_series_library():
    frame, lookback, horizon = table(503), 20, 7
    task = ForecastTask.prepare(frame, lookback=lookback, horizon=horizon)
    train, test = int(503 * 0.7), int(503 * 0.2)
    values = frame.iloc[:, 1:].to_numpy()
    mean, std = values[:train].mean(axis=0), values[:train].std(axis=0)
    scaled = (values - mean) / std
    marks = time_features(frame["date"].to_numpy(), "h")
    ranges = {"train": (0, train), "val": (train - lookback, 503 - test), "test": (503 - test - lookback, 503)}
    for split, (low, high) in ranges.items():
        count = high - low - lookback - horizon + 1
        assert task.size(split) == count
        batch = whole(task, split)
        for i in (0, 1, count // 2, count - 1):
            at = low + i
            np.testing.assert_allclose(batch["x"][i], scaled[at : at + lookback], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(
                batch["y"][i], scaled[at + lookback : at + lookback + horizon], rtol=1e-5, atol=1e-6
            )
            np.testing.assert_array_equal(batch["x_marks"][i], marks[at : at + lookback])
        assert batch["y_mask"].all()
        assert all(v.is_contiguous() for v in batch.values())
        assert batch["x"].dtype == batch["x_marks"].dtype == torch.float32
        assert batch["y_mask"].dtype == torch.bool


def test_row_counts_leave_later_rows_out():
    frame = table(400)
    task = ForecastTask.prepare(frame, lookback=20, horizon=7, split="200/50/60")
    assert [task.size(s) for s in SPLITS] == [200 - 27 + 1, 50 - 7 + 1, 60 - 7 + 1]
    changed = frame.copy()
    changed.loc[310:, "c0":"c2"] = np.nan
    again = ForecastTask.prepare(changed, lookback=20, horizon=7, split="200/50/60")
    for split in SPLITS:
        for name, value in whole(task, split).items():
            assert torch.equal(value, whole(again, split)[name])


def test_a_backtest_places_the_last_origins():
    frame = table(400)
    task = ForecastTask.prepare(frame, lookback=20, horizon=7, windows=4, stride=10, target="c0")
    assert (task.size("val"), task.size("test")) == (4, 4)
    values = (frame["c0"].to_numpy() - float(task._tensors["mean"][0, 0])) / float(task._tensors["scale"][0, 0])
    first_test = 400 - 7 - 3 * 10
    for split, first in (("test", first_test), ("val", first_test - 7 - 3 * 10)):
        truth = whole(task, split)["y"][:, :, 0]
        for i in range(4):
            np.testing.assert_allclose(truth[i], values[first + 10 * i : first + 10 * i + 7], rtol=1e-4, atol=1e-5)
    assert task.size("train") == (first_test - 37) - 27 + 1
    assert task.describe()["backtest"] == {"windows": 4, "stride": 10}
    side_by_side = ForecastTask.prepare(frame, lookback=20, horizon=7, windows=3)
    assert side_by_side.describe()["backtest"] == {"windows": 3, "stride": 7}


def test_a_stride_alone_thins_validation_and_test():
    every, seventh = (ForecastTask.prepare(table(), lookback=20, horizon=7, stride=s) for s in (None, 7))
    assert every.size("train") == seventh.size("train")
    for split in ("val", "test"):
        assert torch.equal(whole(every, split)["y"][::7], whole(seventh, split)["y"])


@settings(max_examples=200, deadline=None)
@given(
    lookback=st.integers(1, 60),
    horizon=st.integers(1, 40),
    rule=st.one_of(
        st.sampled_from(["0.7/0.1/0.2", "0.6/0.2/0.2", "0.34/0.33/0.33", "0.05/0.05/0.9"]).map(
            lambda s: split_rule(s, None, None, 1)
        ),
        st.builds(lambda w, s: SplitRule(windows=w, stride=s), st.integers(1, 9), st.integers(1, 30)),
    ),
)
def test_rows_needed_is_the_smallest_length_that_fits(lookback, horizon, rule):
    rows = rule.rows_needed(lookback, horizon)
    assert [n for n in range(rows + 1) if rule.fits(n, lookback, horizon)] == [rows]
    train, val, end = rule.borders(rows, horizon)
    assert 0 < train < val < end <= rows
    assert rule.fits(rule.rows_needed(lookback, horizon, above=rows), lookback, horizon)


# No leakage


@pytest.mark.parametrize("options", [{}, {"windows": 3, "stride": 5}, {"split": "250/60/80"}, {"target": "c1"}])
@pytest.mark.parametrize("later", ["other", "missing", "huge"])
def test_later_rows_change_nothing_earlier(options, later):
    """Bit for bit: training rows decide the scaler and the training batches, rows before the test the validation."""
    frame = with_gaps(table(400))
    task = ForecastTask.prepare(frame, lookback=20, horizon=7, **options)
    parts = task.describe()["parts"]
    for seen, border in (
        (("train",), parts["train"]["rows"]),
        (("train", "val"), parts["train"]["rows"] + parts["val"]["rows"]),
    ):
        changed = frame.copy()
        rng = np.random.default_rng(5)
        new = {"other": rng.normal(size=(400, 3)), "missing": np.full((400, 3), np.nan), "huge": np.full((400, 3), 9e9)}
        # Where everything later goes missing, a row here and there stays, so that every part keeps a window.
        rows = np.array([r for r in range(border, 400) if later != "missing" or r % 10])
        changed.loc[rows, ["c0", "c1", "c2"]] = new[later][rows]
        other = ForecastTask.prepare(changed, lookback=20, horizon=7, **options)
        assert other.info == task.info
        for name in ("mean", "scale", "naive_error"):
            assert torch.equal(task._tensors[name].view(torch.int64), other._tensors[name].view(torch.int64)), name
        for split in seen:
            one, two = whole(task, split), whole(other, split)
            assert all(torch.equal(one[name], two[name]) for name in one), split
        assert not torch.equal(whole(task, "test")["y"], whole(other, "test")["y"])


def test_an_input_knows_nothing_after_it():
    """Filling gaps looks back only: whatever stands after a window's input, the input is the same."""
    frame = with_gaps(table(300), share=0.4)
    task = ForecastTask.prepare(frame, lookback=12, horizon=4)
    border = task.describe()["parts"]["train"]["rows"]
    x = whole(task, "test")["x"]
    for window in range(0, task.size("test"), 9):
        end = 300 - 4 - (task.size("test") - 1 - window)
        assert end > border
        changed = frame.copy()
        changed.loc[end:, ["c0", "c1", "c2"]] = 7.0
        other = ForecastTask.prepare(changed, lookback=12, horizon=4)
        assert torch.equal(x[window], whole(other, "test")["x"][window])


# Gaps


def test_missing_inputs_take_the_past_and_missing_truth_is_masked():
    frame = table(300)
    frame.loc[[0, 1, 50, 51, 52, 295], "c1"] = np.nan
    task = ForecastTask.prepare(frame, lookback=10, horizon=4)
    x = whole(task, "train")["x"]
    assert x[0, :2, 1].tolist() == [0.0, 0.0]  # nothing before: the training mean
    assert (x[45, 5:8, 1] == x[45, 4, 1]).all()
    assert x[45, 8, 1] != x[45, 4, 1]
    test = whole(task, "test")
    assert test["y_mask"][:, :, 1].sum() == test["y_mask"][:, :, 1].numel() - 4  # row 295 stands in four windows
    assert test["y_mask"][:, :, [0, 2]].all()
    assert task.describe()["missing_values"] == {"c0": 0, "c1": 6, "c2": 0}


def test_windows_without_any_truth_are_left_out():
    frame = table(300)
    frame.loc[250:260, ["c0", "c1", "c2"]] = np.nan
    task = ForecastTask.prepare(frame, lookback=10, horizon=4)
    assert task.size("test") == 60 - 4 + 1 - 8
    assert "8 windows have no measured target" in " ".join(task.describe()["notes"])
    assert whole(task, "test")["y_mask"].flatten(1).any(dim=1).all()
    one = ForecastTask.prepare(with_gaps(table(300), 0.5), lookback=10, horizon=2, target="c0")
    assert whole(one, "train")["y_mask"][:, :, 0].any(dim=1).all()


# Several series


def several() -> pd.DataFrame:
    parts = [table(r, seed=i).assign(shop=f"s{i}") for i, r in enumerate((200, 120, 300, 20))]
    for i, part in enumerate(parts):
        part[["c0", "c1", "c2"]] *= 10.0**i
    return pd.concat(parts)


def test_series_never_meet_in_a_window_and_have_their_own_scales():
    frame = several()
    task = ForecastTask.prepare(frame, id="shop", lookback=20, horizon=7)
    assert task.layout["series"] == ["s0", "s1", "s2"]
    assert "1 series are too short for one window and are left out, the first is 's3'" in task.describe()["notes"][0]
    counts = dict.fromkeys(SPLITS, 0)
    collected: dict[str, list[dict[str, Tensor]]] = {split: [] for split in SPLITS}
    for name in ("s0", "s1", "s2"):
        alone = ForecastTask.prepare(frame[frame["shop"] == name].drop(columns="shop"), lookback=20, horizon=7)
        for split in SPLITS:
            counts[split] += alone.size(split)
            collected[split].append(whole(alone, split))
    for split in SPLITS:
        assert task.size(split) == counts[split]
        together = whole(task, split)
        for name, value in together.items():
            assert torch.equal(value, torch.cat([c[name] for c in collected[split]]))


def test_a_short_series_is_validated_and_tested_where_its_windows_fit():
    frame = pd.concat([table(200).assign(id="long"), table(40, seed=3).assign(id="short")])
    task = ForecastTask.prepare(frame, id="id", lookback=30, horizon=4)
    # The 28 training rows of the short one hold no window; its 8 test rows hold 5, all with 30 rows before them.
    alone = ForecastTask.prepare(table(200), lookback=30, horizon=4)
    assert task.size("train") == alone.size("train")
    assert task.size("test") == alone.size("test") + 5


# Scores


def plain_scores(task: ForecastTask, split: str, model: nn.Module, raw: pd.DataFrame, season: int) -> dict[str, float]:
    """Metrics by plain loops over the user's values."""
    batch = whole(task, split)
    predicted = model(batch["x"]).double().numpy()
    truth, mask = batch["y"].double().numpy(), batch["y_mask"].numpy()
    targets = task.info.targets
    squared, absolute, ratios = [], [], []
    train = raw.iloc[: task.describe()["parts"]["train"]["rows"]]
    for c in targets:
        errors = (predicted - truth)[:, :, c][mask[:, :, c]]
        squared += (errors**2).tolist()
        absolute += np.abs(errors).tolist()
        column = train[f"c{c}"].to_numpy()
        change = np.abs(column[season:] - column[:-season])
        scale = np.nanmean(change)
        if scale > 0:
            ratios.append(np.abs(errors).mean() * np.nanstd(column) / scale)
    return {"mse": np.mean(squared), "mae": np.mean(absolute), "mase": np.mean(ratios)}


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("target", [None, "c1", "c2, c0"])
def test_scores_equal_plain_loops(gaps, target):
    frame = with_gaps(table(400), 0.2) if gaps else table(400)
    task = ForecastTask.prepare(frame, lookback=30, horizon=9, target=target, season=5)
    model = RepeatLast(9, 5)
    result = task.evaluate(model, "test", batch_size=13)
    expected = plain_scores(task, "test", model, frame, 5)
    assert list(result.metrics) == list(ForecastTask.spec.metrics)
    for name, value in expected.items():
        assert result.metrics[name] == pytest.approx(value, rel=1e-6)
    assert result.per_sample.dtype == torch.float64
    assert result.per_sample.shape == (task.size("test"),)
    assert result.metrics["mse"] == pytest.approx(float(result.per_sample.mean()), rel=1e-12)
    batch = whole(task, "test")
    error, mask = (v[:, :, list(task.info.targets)] for v in (model(batch["x"]) - batch["y"], batch["y_mask"]))
    i = task.size("test") // 3
    share = float(mask[i].sum() / (mask.sum() / len(mask)))
    assert (share == 1) is not gaps
    assert float(result.per_sample[i]) == pytest.approx(share * float(error[i][mask[i]].square().mean()), rel=1e-5)
    assert torch.equal(result.per_sample, task.evaluate(model, "test", batch_size=13).per_sample)


def test_mase_of_several_series_is_the_mean_of_each():
    frame = several()
    task = ForecastTask.prepare(frame, id="shop", lookback=20, horizon=7, season=3)
    model = RepeatLast(7)
    single = [
        ForecastTask.prepare(frame[frame["shop"] == s].drop(columns="shop"), lookback=20, horizon=7, season=3)
        for s in ("s0", "s1", "s2")
    ]
    for split in SPLITS:
        expected = np.mean([t.evaluate(model, split).metrics["mase"] for t in single])
        assert task.evaluate(model, split).metrics["mase"] == pytest.approx(expected, rel=1e-12)


def test_a_perfect_season_is_left_out_of_mase():
    frame = table(400)
    frame["c0"] = np.arange(400) % 5
    task = ForecastTask.prepare(frame, lookback=20, horizon=7, season=5)
    assert task.describe()["left_out_of_mase"] == 1
    rest = ForecastTask.prepare(frame, lookback=20, horizon=7, season=5, target=["c1", "c2"])
    model = RepeatLast(7)
    assert task.evaluate(model, "test").metrics["mase"] == rest.evaluate(model, "test").metrics["mase"]
    alone = ForecastTask.prepare(frame, lookback=20, horizon=7, season=5, target="c0")
    assert np.isnan(alone.evaluate(model, "test").metrics["mase"])


def test_a_forecast_that_is_not_a_number_is_not_hidden():
    class Broken(nn.Module):
        def forward(self, x: Tensor, marks: Tensor | None = None) -> Tensor:
            return x[:, :7] * float("nan")

    task = ForecastTask.prepare(table(), lookback=20, horizon=7)
    result = task.evaluate(Broken(), "test")
    assert all(np.isnan(v) for v in result.metrics.values())
    json.dumps(result.examples, allow_nan=False)


def test_the_loss_is_the_error_on_measured_targets():
    task = ForecastTask.prepare(with_gaps(table(), 0.3), lookback=20, horizon=7, target="c2,c1")
    assert task.info.targets == (2, 1)
    model = nn.Linear(20, 7)

    def forward(x: Tensor, marks: Tensor | None = None) -> Tensor:
        return nn.Linear.forward(model, x.transpose(1, 2)).transpose(1, 2)

    model.forward = forward  # type: ignore[method-assign, assignment]
    batch = task.batch("train", torch.tensor([5, 3, 99]))
    loss = task.loss(model, batch)
    mask = batch["y_mask"].clone()
    mask[:, :, 0] = False
    assert loss.item() == pytest.approx((forward(batch["x"]) - batch["y"])[mask].square().mean().item(), rel=1e-5)
    loss.backward()
    # What is masked has no influence: not on the value, not on the gradient.
    gradient = model.weight.grad.clone()  # type: ignore[union-attr]
    batch["y"][~mask] = 1e6
    model.zero_grad()
    task.loss(model, batch).backward()
    assert torch.equal(gradient, model.weight.grad)


def test_evaluation_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    model[1].eval()

    class Wrapped(RepeatLast):
        def __init__(self) -> None:
            super().__init__(7)
            self.inner = model

        def forward(self, x: Tensor, marks: Tensor | None = None) -> Tensor:
            assert not self.inner.training
            assert not torch.is_grad_enabled()
            return super().forward(self.inner(x))

    wrapped = Wrapped()
    ForecastTask.prepare(table(), lookback=20, horizon=7).evaluate(wrapped, "val")
    assert [m.training for m in (wrapped, model, model[0], model[1])] == [True, True, True, False]
    wrapped.forward = lambda *_, **__: torch.zeros(2, 7)  # type: ignore[method-assign]
    with pytest.raises(InvalidValue, match=r"Wrapped returned \(2, 7\): .* = \(33, 7, 3\)"):
        ForecastTask.prepare(table(), lookback=20, horizon=7).evaluate(wrapped, "val", batch_size=33)
    assert wrapped.training


def test_examples_are_in_the_users_units():
    frame = table()
    frame.loc[399, "c1"] = np.nan
    task = ForecastTask.prepare(frame, lookback=20, horizon=7, target=["c1", "c2", "c0"])
    examples = task.evaluate(RepeatLast(7), "test").examples
    assert (examples["time"], examples["freq"], len(examples["windows"])) == ("date", "h", 3)
    last = examples["windows"][-1]
    assert [t["name"] for t in last["targets"]] == ["c1", "c2"]
    assert last["future_times"] == [f"{t:%Y-%m-%dT%H:%M:%S}" for t in frame["date"][393:]]
    assert last["history_times"][0] == f"{frame['date'][373]:%Y-%m-%dT%H:%M:%S}"
    np.testing.assert_allclose(last["targets"][0]["history"], frame["c1"][373:393], rtol=1e-5)
    assert last["targets"][0]["truth"][-1] is None
    np.testing.assert_allclose(last["targets"][0]["truth"][:-1], frame["c1"][393:399], rtol=1e-5)
    np.testing.assert_allclose(last["targets"][1]["prediction"], [frame["c2"][392]] * 7, rtol=1e-5)
    assert len(json.dumps(examples, allow_nan=False)) < 8000


# Life cycle


def test_saved_and_loaded_it_is_the_same_bit_for_bit(tmp_path):
    task = ForecastTask.prepare(with_gaps(several()).assign(c1=1.0), id="shop", lookback=20, horizon=7, target="c0")
    task.save(tmp_path / "data")
    again = ForecastTask.load(tmp_path / "data")
    assert again.info == task.info
    assert again.describe() == task.describe()
    assert again.layout == task.layout
    for split in SPLITS:
        one, two = whole(task, split), whole(again, split)
        assert all(torch.equal(one[n], two[n]) for n in one)
    first, second = (t.evaluate(RepeatLast(7), "test") for t in (task, again))
    assert (first.metrics, first.examples) == (second.metrics, second.examples)
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["forecast.safetensors"]


def test_yearly_data_have_no_calendar_features(tmp_path):
    task = ForecastTask.prepare(table(120, "YS"), lookback=12, horizon=3)
    assert task.info.marks == 0
    task.save(tmp_path)
    batch = whole(ForecastTask.load(tmp_path), "val")
    assert batch["x_marks"].shape == (task.size("val"), 12, 0)


def test_a_folder_without_whole_data_is_refused(tmp_path):
    with pytest.raises(InvalidValue, match=r"forecast\.safetensors is missing"):
        ForecastTask.load(tmp_path)
    ForecastTask.prepare(table(), lookback=20, horizon=7).save(tmp_path)
    file = tmp_path / "forecast.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(InvalidValue, match="damaged"):
        ForecastTask.load(tmp_path)
    save_file({"values": torch.zeros(1)}, file)
    with pytest.raises(InvalidValue, match="prepare it again"):
        ForecastTask.load(tmp_path)


def test_what_significance_tests_ask_for():
    task = ForecastTask.prepare(table(), lookback=20, horizon=7)
    assert (task.sample_tokens, task.overlap, task.sample_groups("test")) == (20, 7, None)
    assert ForecastTask.prepare(table(), lookback=20, horizon=7, stride=3).overlap == 3
    assert ForecastTask.prepare(table(), lookback=20, horizon=7, windows=5).overlap == 1
    assert ForecastTask.prepare(table(200, "MS"), lookback=20, horizon=7).overlap == 7
    late = table(380, seed=1).assign(date=lambda f: f["date"] + pd.Timedelta("20h"))
    both = pd.concat([table().assign(shop="n"), late.assign(shop="s")])
    task = ForecastTask.prepare(both, id="shop", lookback=20, horizon=7)
    groups = task.sample_groups("test")
    assert groups is not None
    times = np.concatenate([p["date"].to_numpy()[len(p) - len(p) // 5 : len(p) - 6] for p in (table(), late)])
    np.testing.assert_array_equal(groups, np.unique(times, return_inverse=True)[1])
    assert task.overlap == 7
    shifted = pd.concat([table().assign(shop="n"), late.assign(shop="s", date=late["date"] + pd.Timedelta("30min"))])
    assert (
        ForecastTask.prepare(shifted, id="shop", lookback=20, horizon=7).overlap == 13
    )  # seven at full hours, six between


def test_it_is_registered_and_listing_it_imports_neither_torch_nor_pandas():
    entry = find("forecast", "task")
    assert entry.spec == ForecastTask.spec
    assert entry.load() is ForecastTask
    code = (
        "import sys, foveate, foveate.registry as r; r.find('forecast', 'task');"
        "print([m for m in ('torch', 'pandas') if m in sys.modules]);"
        "import foveate.tasks.forecast.task; print('pandas' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert out.stdout.split("\n")[:2] == ["[]", "False"]


# Defaults and options


def test_defaults_follow_the_frequency():
    hourly = ForecastTask.prepare(table(1000)).info
    assert (hourly.lookback, hourly.horizon, hourly.season, hourly.marks) == (96, 24, 24, 4)
    monthly = ForecastTask.prepare(table(300, "MS")).info
    assert (monthly.lookback, monthly.horizon, monthly.season, monthly.freq) == (48, 12, 12, "MS")
    assert ForecastTask.prepare(table(1000), horizon=48).info.lookback == 96
    notes = ForecastTask.prepare(table(1000)).describe()["notes"]
    assert any("does not show in the training rows" in n for n in notes)  # a random walk has no season
    frame = table(1000)
    for name in ("c0", "c1", "c2"):
        frame[name] = np.sin(np.arange(1000) / 24 * 2 * np.pi) + 0.1 * np.random.default_rng(0).normal(size=1000)
    assert ForecastTask.prepare(frame).describe()["notes"] == []
    short = ForecastTask.prepare(table(50), lookback=8, horizon=2)
    assert short.info.season == 1
    assert "do not cover two seasons of 24 steps" in short.describe()["notes"][0]


def test_columns_that_cannot_be_learned_are_left_out_with_a_note():
    frame = table().assign(flat=3.3, void=np.nan, late=[1.0] * 300 + [2.0] * 100)
    task = ForecastTask.prepare(frame, lookback=20, horizon=7)
    assert task.layout["columns"] == ["c0", "c1", "c2"]
    notes = " ".join(task.describe()["notes"])
    assert "Column 'flat' is constant in the training rows and is left out." in notes
    assert "Column 'void' has no value at all and is left out." in notes
    assert "Column 'late' is constant" in notes


def refused(kind: type[FoveateError], source: object, **options: object) -> str:
    options = {"lookback": 20, "horizon": 7, **options}
    with pytest.raises(kind) as caught:
        ForecastTask.prepare(source, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_series_that_cannot_be_learned_are_refused():
    frame = table().assign(flat=3.3, void=np.nan)
    assert "column 'flat' is constant in the training rows (the first 280)" in refused(
        InvalidValue, frame, target="flat"
    )
    assert "column 'void' has no value at all" in refused(InvalidValue, frame, target=["c0", "void"])
    assert "column 'flat' is constant" in refused(InvalidValue, frame[["date", "flat"]])
    assert "column 'void' has no value" in refused(InvalidValue, frame[["date", "void"]])
    assert "too large to be scaled" in refused(InvalidValue, frame.assign(c0=frame["c0"] * 1e200))
    frame.loc[399, "c1"] = 1e300
    assert "column 'c1': 1e+300 is too far from the training rows" in refused(InvalidValue, frame)
    assert "it has 'name'" in refused(InvalidValue, frame[["date"]].assign(name="x"))


def test_too_few_rows_are_refused_with_the_number_needed():
    text = refused(InvalidValue, table(60))
    assert "it has 60 rows, but lookback=20 and horizon=7 with the split 0.7/0.1/0.2 need 61" in text
    assert ForecastTask.prepare(table(61), lookback=20, horizon=7).size("val") == 1
    assert "need 4984" in refused(InvalidValue, table(), horizon=500, lookback=1500)
    assert "at most 60 rows per series" in refused(InvalidValue, table(60).assign(k="a"), id="k")
    assert "with 3 test windows, 7 steps apart need 69" in refused(InvalidValue, table(60), windows=3)
    ForecastTask.prepare(table(69), lookback=20, horizon=7, windows=3)
    assert "with the split 300/50/60 need 410" in refused(InvalidValue, table(), split="300/50/60")
    assert "the training part needs at least 27 rows, the others 7 each" in refused(
        InvalidValue, table(), split="20/50/60"
    )


def test_parts_without_truth_are_refused():
    frame = table()
    frame.loc[300:, ["c0", "c1", "c2"]] = np.nan
    assert "no test window with a measured target" in refused(InvalidValue, frame)


@pytest.mark.parametrize("option", ["horizon", "lookback", "season", "windows", "stride"])
def test_counts_are_positive_whole_numbers(option):
    for value in (0, -3):
        assert f"{option}={value} is not possible" in refused(InvalidValue, table(), **{option: value})
    for value in (2.5, "24", True):
        assert f"{option}={value!r} is not possible: a whole number" in refused(InvalidType, table(), **{option: value})


@pytest.mark.parametrize("split", ["0.7/0.3", "0.7/0.2/0.2", "a/b/c", "", "0.9/0.1/0", "10/-5/5", "nan/0.5/0.5"])
def test_splits_that_are_none(split):
    assert f"split={split!r} is not possible" in refused(InvalidValue, table(), split=split)


def test_other_options_that_are_not_possible():
    assert "exclude each other" in refused(InvalidValue, table(), split="0.7/0.1/0.2", windows=3)
    assert "split=(1, 2, 3) is not possible" in refused(InvalidType, table(), split=(1, 2, 3))
    assert "unknown target 'c9': did you mean" in refused(UnknownName, table(), target="c9")
    assert "unknown target 'c7'" in refused(UnknownName, table(), target="c1,c7")
    assert "target=3 is not possible" in refused(InvalidType, table(), target=[3])
    assert "at least one column" in refused(InvalidValue, table(), target=[])
    assert "time or id column" in refused(InvalidValue, table(), target="date")
    assert "row 1 holds 'x'" in refused(InvalidValue, table().assign(name="x"), target="name")
    assert "season=280 is not possible: it must be shorter than the training part, 280 rows" in refused(
        InvalidValue, table(), season=280
    )
    with pytest.raises(UnknownName, match="unknown split 'valid': did you mean 'val'"):
        ForecastTask.prepare(table(), lookback=20, horizon=7).size("valid")


# Real data


def test_the_embedded_series_is_what_its_readme_says():
    folder = ROOT / "foveate" / "tasks" / "forecast" / "embedded"
    readme = (folder / "README.md").read_text(encoding="utf-8")
    packed = (folder / "weather.csv.gz").read_bytes()
    assert hashlib.sha256(packed).hexdigest() in readme
    assert f"{len(packed):,} bytes" in readme
    task = ForecastTask.prepare()
    facts = task.describe()
    assert (facts["rows"], facts["missing_rows"], facts["freq"], facts["season"]) == (8706, 24, "h", 24)
    assert facts["missing_values"]["pressure"] == 831 + 24
    assert len(facts["columns"]) == 6
    assert facts["parts"]["train"]["first"] == "2013-01-01T06:00:00Z"
    assert min(task.size(s) for s in SPLITS) > 800
    assert 0 < task.evaluate(RepeatLast(24), "test").metrics["mse"] < 2


@pytest.mark.skipif(not ETTH1.exists(), reason="ETTh1.csv is not there: it may not be redistributed in pieces")
@pytest.mark.parametrize(
    ("horizon", "last_value", "last_day"),
    [(96, 1.299, 0.513), (192, 1.324, 0.582), (336, 1.330, 0.650), (720, 1.334, 0.656)],
)
def test_etth1_reproduces_recorded_figures(horizon, last_value, last_day):
    task = ForecastTask.prepare(ETTH1, lookback=96, horizon=horizon, split="8640/2880/2880", stride=7)
    for period, expected in ((1, last_value), (24, last_day)):
        metrics = task.evaluate(RepeatLast(horizon, period), "test").metrics
        assert metrics["mse"] == pytest.approx(expected, abs=5.1e-4)
