"""Tasks as a whole: every row a training row, scaled by all rows, the rest as it was."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from foveate.tasks.classify_series.task import ClassifySeriesTask
from foveate.tasks.forecast.task import ForecastTask
from foveate.tasks.impute.task import ImputeTask
from tests.toy import ToyTask, Undivided


def table(rows: int = 300, gaps: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Two random walks in two units, with cells empty at random."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, 2)).cumsum(axis=0) * [1, 50] + [5, 1000]
    values[rng.random(values.shape) < gaps] = np.nan
    frame = pd.DataFrame(values, columns=["p", "q"])
    frame.insert(0, "when", pd.date_range("2024-01-01", periods=rows, freq="h"))
    return frame


def several() -> pd.DataFrame:
    parts = [table(rows, seed=rows).assign(name=name) for name, rows in (("a", 200), ("b", 120))]
    return pd.concat(parts, ignore_index=True)


def everything(task, split="train"):
    return task.batch(split, torch.arange(task.size(split)))


def in_units(task, values, series=0):
    mean, scale = task._tensors["mean"][series], task._tensors["scale"][series]
    return (values * scale + mean).numpy()


def close(actual, expected):
    """Equal to what float32 keeps of the largest value."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * np.nanmax(np.abs(expected)))


@pytest.mark.parametrize("gaps", [0.0, 0.1])
def test_a_forecast_on_all_rows(gaps):
    frame = table(gaps=gaps)
    task = ForecastTask.prepare(frame, lookback=24, horizon=6)
    whole = task.whole()
    raw = frame[["p", "q"]].to_numpy()
    assert whole.info == task.info
    assert whole.size("train") == 300 - 24 - 6 + 1
    assert [whole.size(s) for s in ("val", "test")] == [task.size(s) for s in ("val", "test")]
    close(whole._tensors["mean"][0], np.nanmean(raw, axis=0))
    close(whole._tensors["scale"][0], np.nanstd(raw, axis=0))
    batch = everything(whole)
    truth = np.lib.stride_tricks.sliding_window_view(raw, 6, axis=0)[24:].transpose(0, 2, 1)
    mask = batch["y_mask"].numpy()
    np.testing.assert_array_equal(mask, ~np.isnan(truth))
    close(in_units(whole, batch["y"])[mask], truth[mask])
    past = np.lib.stride_tricks.sliding_window_view(frame[["p", "q"]].ffill().to_numpy(), 24, axis=0)[:-6]
    known = ~np.isnan(past.transpose(0, 2, 1))
    close(in_units(whole, batch["x"])[known], past.transpose(0, 2, 1)[known])
    # What is not scaled by rows is the same, and so is the task it came from.
    assert torch.equal(whole._tensors["marks"], task._tensors["marks"])
    assert task.size("train") == 210 - 24 - 6 + 1
    assert not torch.equal(task._tensors["mean"], whole._tensors["mean"])


def test_series_keep_their_own_scales_and_windows():
    frame = several()
    task = ForecastTask.prepare(frame, lookback=12, horizon=4, id="name")
    whole = task.whole()
    assert whole.size("train") == (200 - 15) + (120 - 15)
    for series, name in enumerate(task.layout["series"]):
        raw = frame.loc[frame["name"] == name, ["p", "q"]].to_numpy()
        close(whole._tensors["mean"][series], raw.mean(axis=0))
        close(whole._tensors["scale"][series], raw.std(axis=0))
    last = everything(whole)["y"][-1, -1]
    close(in_units(whole, last, 1), frame[["p", "q"]].to_numpy()[-1])


def test_a_column_that_one_series_never_varies_stays_unscaled():
    frame = several()
    frame.loc[frame["name"] == "b", "q"] = 7.0
    whole = ForecastTask.prepare(frame, lookback=12, horizon=4, id="name").whole()
    assert whole._tensors["scale"][1, 1] == 1
    assert bool(torch.isfinite(whole._tensors["values"]).all())


def test_windows_without_measured_truth_stay_out():
    frame = table()
    frame.loc[250:269, ["p", "q"]] = np.nan
    task = ForecastTask.prepare(frame, lookback=24, horizon=6)
    assert task.whole().size("train") == 300 - 24 - 6 + 1 - (20 - 6 + 1)


def test_what_ships_has_the_scales_of_the_whole():
    task = ForecastTask.prepare(table(), lookback=24, horizon=6)
    packaged = task.whole().package(torch.nn.Identity())
    assert torch.equal(packaged.mean, task.whole()._tensors["mean"].float())


def test_imputation_on_all_rows():
    frame = table(gaps=0.1)
    task = ImputeTask.prepare(frame, lookback=24)
    whole = task.whole()
    raw = frame[["p", "q"]].to_numpy()
    assert whole.size("train") == 300 - 24 + 1
    close(whole._tensors["mean"][0], np.nanmean(raw, axis=0))
    batch = everything(whole)
    truth = np.lib.stride_tricks.sliding_window_view(raw, 24, axis=0).transpose(0, 2, 1)
    seen = batch["observed"].numpy()
    np.testing.assert_array_equal(seen, ~np.isnan(truth))
    close(in_units(whole, batch["x"])[seen], truth[seen])


def test_classification_on_all_samples(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(3.0, 2.0, size=(40, 10, 2)), np.arange(40) % 2
    x[:, :, 1] = 4.0 + 0.5 * x[:, :, 0]
    np.savez(tmp_path / "it.npz", x=x, y=y)
    task = ClassifySeriesTask.prepare(tmp_path / "it.npz")
    whole = task.whole()
    assert whole.size("train") == 40 > task.size("train")
    close(whole._tensors["mean"], x.mean(axis=(0, 1)))
    close(whole._tensors["scale"], x.std(axis=(0, 1)))
    batch = everything(whole)
    raw = (batch["x"] * whole._tensors["scale"] + whole._tensors["mean"]).numpy()
    order = torch.cat([task._tensors[s] for s in ("train", "val", "test")]).numpy()
    close(raw, x[order])
    assert sorted(order) == list(range(40))
    np.testing.assert_array_equal(batch["y"], y[order])


def test_padding_stays_zero_and_out_of_the_scales():
    samples = [(f"{i}", "ab"[i % 2], t, float(i + t)) for i in range(20) for t in range(4 + i % 3)]
    frame = pd.DataFrame(samples, columns=["sample", "class", "time", "v"])
    task = ClassifySeriesTask.prepare(frame, label="class", id="sample", time="time")
    whole = task.whole()
    close(whole._tensors["mean"], frame["v"].mean())
    batch = everything(whole)
    assert bool((batch["x"][~batch["mask"]] == 0).all())
    assert int(batch["mask"].sum()) == len(frame)


def test_a_task_may_have_no_whole():
    assert Undivided(64, 0.1).whole() is None
    assert ToyTask(64, 0.1).whole().size("train") == 128
