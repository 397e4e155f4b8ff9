"""The task forecast-m4: the competition's own numbers, its metrics by hand, windows, no leakage, what is shipped."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from foveate.claims._series import data_file
from foveate.errors import FoveateError, InvalidType, InvalidValue
from foveate.models.build import resolve
from foveate.tasks.forecast_m4.metrics import is_seasonal, mase, naive2, naive_error, owa, seasonal_indices, smape
from foveate.tasks.forecast_m4.protocol import FREQUENCIES, window_scale
from foveate.tasks.forecast_m4.task import ForecastM4Task

HOURLY = data_file("m4_hourly/Hourly-train.csv")
SYSTEMS = ["timesnet", "dlinear", "softmax_attention", "mamba", "seasonal_naive", "theta"]


def frame(lengths=(60, 45, 80), seed=0):
    """Series of several lengths and levels with a season of 4, ids A, B, C, ..."""
    generator = np.random.default_rng(seed)
    rows = []
    for i, length in enumerate(lengths):
        values = 10.0**i * (5 + np.sin(np.arange(length) * np.pi / 2) + 0.1 * generator.normal(size=length))
        rows.append([chr(65 + i), *values.tolist(), *[None] * (max(lengths) - length)])
    return pd.DataFrame(rows, columns=["V1", *(f"V{i + 2}" for i in range(max(lengths)))])


def prepared(source=None, **options):
    settings = {"horizon": 8, "season": 4, **options}
    return ForecastM4Task.prepare(frame() if source is None else source, **settings)


@pytest.fixture(scope="module")
def task():
    return prepared()


def whole(task, split):
    return task.batch(split, torch.arange(task.size(split)))


class Repeat(nn.Module):
    """The last value over and over; it keeps what it was given."""

    def __init__(self, horizon: int) -> None:
        super().__init__()
        self.horizon = horizon
        self.given: list[Tensor] = []

    def forward(self, x: Tensor, marks: Tensor) -> Tensor:
        self.given.append(marks)
        return x[:, -1:].repeat(1, self.horizon, 1)


# The competition's own numbers


@pytest.mark.skipif(HOURLY is None, reason="the M4 hourly files are absent: $FOVEATE_DATA/m4_hourly")
def test_the_published_numbers_of_m4_hourly():
    task = ForecastM4Task.prepare(HOURLY)
    facts = task.describe()
    assert (facts["series"], facts["shortest"], facts["longest"]) == (414, 700, 960)
    assert facts["test_source"].endswith("Hourly-test.csv")
    # Naive2 on hourly series, as the competition reports it.
    assert facts["naive2"]["test"] == pytest.approx({"smape": 18.383, "mase": 2.395}, abs=5e-4)
    naive = task.evaluate(resolve("seasonal_naive").build(task.info, {}), "test").metrics
    assert naive == pytest.approx({"smape": 13.912, "mase": 1.193, "owa": 0.6275}, abs=5e-4)


# Metrics by hand


def test_smape_mase_and_owa_by_hand():
    truth, forecast = np.array([[1.0, 3.0], [0.0, 0.0], [-1.0, 1.0]]), np.array([[3.0, 3.0], [0.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(smape(truth, forecast), [50.0, 0.0, 100.0])
    divisors = np.array([2.0, np.nan, 4.0])
    assert mase(truth, forecast, divisors) == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert np.isnan(mase(truth, forecast, np.full(3, np.nan)))
    assert naive_error(np.array([1.0, 2.0, 4.0, 4.0]), 2) == pytest.approx((3 + 2) / 2)
    assert np.isnan(naive_error(np.array([1.0, 2.0, 1.0, 2.0]), 2))
    assert np.isnan(naive_error(np.array([1.0, 2.0]), 2))
    assert owa(10.0, 1.0, 20.0, 4.0) == pytest.approx((0.5 + 0.25) / 2)
    assert np.isnan(owa(10.0, 1.0, 0.0, 4.0))
    assert np.isnan(owa(10.0, 1.0, 20.0, None))


def test_seasonal_indices_by_hand():
    # A level of 10 and a season (0.5, 1.5): the moving average (1/4, 1/2, 1/4) is 10 everywhere.
    values = np.array([5.0, 15.0, 5.0, 15.0, 5.0, 15.0])
    np.testing.assert_allclose(seasonal_indices(values, 2), [0.5, 1.5])
    # Of odd length, on a rising level: averages 2, 3, 4, 5, ratios 2/2, 0/3, 7/4, 5/5 by phase 1, 2, 0, 1.
    values = np.array([4.0, 2.0, 0.0, 7.0, 5.0, 3.0])
    raw = np.array([7 / 4, (2 / 2 + 5 / 5) / 2, 0 / 3])
    np.testing.assert_allclose(seasonal_indices(values, 3), raw / raw.mean())


def test_the_seasonality_test_by_hand():
    # Period 2 over 12 values: correlation -11/12 at lag 1, 10/12 at lag 2; limit 1.645 sqrt((1 + 2 (11/12)^2) / 12).
    values = np.array([1.0, -1.0] * 6)
    limit = 1.645 * np.sqrt((1 + 2 * (11 / 12) ** 2) / 12)
    assert limit < 10 / 12
    assert is_seasonal(values, 2)
    # The same over 6 values: 4/6 at lag 2 against 1.645 sqrt((1 + 2 (5/6)^2) / 6) = 1.04.
    assert not is_seasonal(values[:6], 2)
    pulses = np.tile([1.0, *[0.0] * 23], 3)
    assert is_seasonal(pulses, 24)
    assert not is_seasonal(pulses[:71], 24)  # fewer than three seasons
    assert not is_seasonal(values, 1)
    assert not is_seasonal(np.ones(40), 2)


def test_naive2_by_hand():
    values = np.array([5.0, 15.0] * 6 + [5.0])
    np.testing.assert_allclose(naive2(values, 3, 2), [15.0, 5.0, 15.0])
    np.testing.assert_allclose(naive2(2 * values, 2, 2), [30.0, 10.0])
    np.testing.assert_allclose(naive2(np.array([3.0, 4.0, 2.0]), 2, 2), [2.0, 2.0])
    np.testing.assert_allclose(naive2(values - 5, 2, 2), [0.0, 0.0])  # not positive: nothing to be relative to


# Windows


def test_one_window_of_every_series_validates_and_tests(task):
    assert (task.size("val"), task.size("test")) == (3, 3)
    rows = frame().iloc[:, 1:].to_numpy()
    for split, behind in (("val", 16), ("test", 8)):
        batch = whole(task, split)
        for i in range(3):
            values = rows[i][~np.isnan(rows[i])]
            cut = len(values) - behind
            past = values[cut - 16 : cut]
            np.testing.assert_allclose(batch["y"][i, :, 0], values[cut : cut + 8])
            np.testing.assert_allclose(batch["x"][i, :, 0], (past - past.mean()) / past.std(), atol=1e-5)
            assert float(batch["mean"][i]) == pytest.approx(past.mean())
            assert float(batch["scale"][i]) == pytest.approx(past.std())
        assert batch["y_mask"].all()
        assert batch["x_marks"].shape == (3, 16, 0)


def test_training_windows_are_cut_from_the_last_steps(task):
    # 10 horizons reach beyond the longest training part of 80 - 16 steps: every cut behind the first step.
    assert task.layout["cuts"] == 63
    assert task.size("train") == 3 * 63
    short = prepared(history=1.5)
    assert short.layout["cuts"] == 12
    rows = frame().iloc[:, 1:].to_numpy()
    for i in range(task.size("train")):
        values = rows[i % 3][~np.isnan(rows[i % 3])][:-16]
        cut = len(values) - 1 - i // 3
        if cut < 2:  # past its first cut a shorter series begins again
            continue
        batch = task.batch("train", torch.tensor([i]))
        if i < short.size("train"):
            assert torch.equal(batch["x"], short.batch("train", torch.tensor([i]))["x"])
        truth = values[cut : cut + 8]
        np.testing.assert_allclose(batch["y"][0, : len(truth), 0], truth)
        assert batch["y_mask"][0, :, 0].tolist() == [True] * len(truth) + [False] * (8 - len(truth))
        back = values[max(0, cut - 16) : cut]
        padded = np.concatenate([np.full(16 - len(back), back[0]), back])
        np.testing.assert_allclose(batch["x"][0, :, 0], (padded - back.mean()) / back.std(), rtol=1e-4, atol=1e-4)


def test_the_whole_cuts_training_windows_up_to_the_last_value(task):
    every = task.whole()
    last = [float(task._tensors["values"][end - 1]) for end in task._tensors["offsets"][1:]]
    seen, held = ({float(v) for v in whole(t, "train")["y"].flatten()} for t in (every, task))
    assert set(last) <= seen
    assert not set(last) & held
    assert every.info == task.info
    for split in ("val", "test"):
        for name, part in whole(task, split).items():
            assert part.equal(whole(every, split)[name]), (split, name)


def test_short_series_weigh_as_much_as_long_ones(task):
    batch = whole(task, "train")
    levels = batch["mean"].flatten().log10().round().long()
    assert torch.bincount(levels - levels.min()).tolist() == [63, 63, 63]
    # a series with 45 - 16 = 29 training steps has 28 cuts, taken again and again
    again = task.batch("train", torch.tensor([1, 1 + 3 * 28]))
    assert torch.equal(again["x"][0], again["x"][1])


def test_nothing_leaks():
    base = frame()
    for behind, splits in ((16, ("train",)), (8, ("train", "val"))):
        changed = base.copy()
        for row in range(3):
            length = int(base.iloc[row, 1:].notna().sum())
            changed.iloc[row, 1 + length - behind : 1 + length] = 1e6
        for split in splits:
            for name, value in whole(prepared(base), split).items():
                if split == "train" or name != "y":
                    assert torch.equal(value, whole(prepared(changed), split)[name]), (split, name)
    changed = prepared(changed)
    assert changed.describe()["naive2"]["val"] == prepared(base).describe()["naive2"]["val"]
    assert torch.equal(changed._tensors["naive_error"][:, 0], prepared(base)._tensors["naive_error"][:, 0])


def test_the_scale_of_a_window_by_hand():
    x = torch.tensor([[9.0, 1.0, 3.0], [9.0, 200.0, 200.0], [9.0, 0.0, 0.0]]).double()[..., None]
    real = torch.tensor([False, True, True]).repeat(3, 1)[..., None]
    mean, scale = window_scale(x, real)
    assert mean.flatten().tolist() == [2.0, 200.0, 0.0]
    assert scale.flatten().tolist() == [1.0, 2.0, 1.0]


def test_a_test_file_follows(tmp_path):
    rows = frame()
    lengths = rows.iloc[:, 1:].notna().sum(axis=1)
    train, test = rows.copy(), pd.DataFrame([["X"] * 9] * 3, columns=rows.columns[:9], dtype=object)
    for i, length in enumerate(lengths):
        train.iloc[i, 1 + length - 8 : 1 + length] = None
        test.iloc[2 - i] = [rows.iloc[i, 0], *rows.iloc[i, 1 + length - 8 : 1 + length]]  # in another order
    train.to_csv(tmp_path / "Quarterly-train.csv", index=False)
    test.to_csv(tmp_path / "Quarterly-test.csv", index=False)
    found, cut = ForecastM4Task.prepare(tmp_path / "Quarterly-train.csv"), prepared()
    facts = found.describe()
    assert (facts["freq"], facts["horizon"], facts["season"], facts["history"]) == ("QE", 8, 4, 1.5)
    assert facts["test_source"] == str(tmp_path / "Quarterly-test.csv")
    assert facts["notes"] == []
    assert "There is no test file" in cut.describe()["notes"][0]
    for split in ("val", "test"):
        for name, value in whole(found, split).items():
            torch.testing.assert_close(value, whole(cut, split)[name])
    named = ForecastM4Task.prepare(tmp_path / "Quarterly-train.csv", test=tmp_path / "Quarterly-test.csv")
    assert named.describe() == facts


def test_the_competitions_horizons_and_seasons():
    given = {name: (r.horizon, r.season, r.history) for name, r in FREQUENCIES.items()}
    assert given == {
        "Yearly": (6, 1, 1.5),
        "Quarterly": (8, 4, 1.5),
        "Monthly": (18, 12, 1.5),
        "Weekly": (13, 1, 10.0),
        "Daily": (14, 1, 10.0),
        "Hourly": (48, 24, 10.0),
    }
    embedded = ForecastM4Task.prepare()
    assert (embedded.info.horizon, embedded.info.lookback, embedded.info.season) == (48, 96, 24)
    other = ForecastM4Task.prepare(horizon=24, lookback=100, season=12)
    assert (other.info.horizon, other.info.lookback, other.info.season) == (24, 100, 12)


def test_series_that_are_too_short_are_left_out():
    found = prepared(frame((60, 20, 80)))
    assert found.layout["names"] == ["A", "C"]
    assert found.describe()["notes"][0] == "1 series have fewer than 21 values and are left out, the first is 'B'."


# Loss and scores


def test_the_loss_is_smape_in_the_users_units(task):
    index = torch.arange(task.size("train"))
    batch = task.batch("train", index)
    model = resolve("dlinear").build(task.info, {})
    forecast = model(batch["x"]).double() * batch["scale"] + batch["mean"]
    each = 200 * (forecast - batch["y"]).abs() / (forecast.abs() + batch["y"].abs())
    expected = (each * batch["y_mask"]).mean()
    loss = task.loss(model, batch)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    # the denominator takes no gradient
    model.zero_grad()
    fixed = (forecast.abs() + batch["y"].abs()).detach()
    again = model(batch["x"]).double() * batch["scale"] + batch["mean"]
    (200 * (again - batch["y"]).abs() / fixed * batch["y_mask"]).mean().backward()
    expected_gradient = model.trend.weight.grad.clone()
    model.zero_grad()
    task.loss(model, batch).backward()
    torch.testing.assert_close(model.trend.weight.grad, expected_gradient)


def test_zeros_are_no_error_and_no_trouble():
    rows = frame()
    rows.iloc[0, 1:61] = 0.0
    found = prepared(rows)
    model = resolve("dlinear").build(found.info, {})
    assert float(found.loss(Repeat(8), found.batch("val", torch.tensor([0])))) == 0.0
    loss = found.loss(model, whole(found, "train"))
    loss.backward()
    assert loss.isfinite()
    assert model.trend.weight.grad.isfinite().all()
    scored = found.evaluate(Repeat(8), "test")
    assert float(scored.per_sample[0]) == 0.0
    assert found.describe()["left_out_of_mase"] == 1


@pytest.mark.parametrize("split", ["val", "test"])
def test_scores_by_hand(task, split):
    model = Repeat(8)
    found = task.evaluate(model, split, batch_size=2)
    assert model.given[0].shape == (2, 16, 0)
    rows, percents, scaled, naive = frame().iloc[:, 1:].to_numpy(), [], [], []
    for row in rows:
        values = row[~np.isnan(row)]
        past, truth = (values[:-16], values[-16:-8]) if split == "val" else (values[:-8], values[-8:])
        error = np.abs(truth - past[-1])
        percents.append((200 * error / (np.abs(truth) + np.abs(past[-1]))).mean())
        scaled.append(error.mean() / np.abs(past[4:] - past[:-4]).mean())
        second = naive2(past, 8, 4)
        naive.append([smape(truth[None], second[None])[0], np.abs(truth - second).mean()])
        naive[-1][1] /= np.abs(past[4:] - past[:-4]).mean()
    assert found.metrics["smape"] == pytest.approx(np.mean(percents), rel=1e-5)
    assert found.metrics["mase"] == pytest.approx(np.mean(scaled), rel=1e-5)
    reference = np.mean(naive, axis=0)
    overall = (np.mean(percents) / reference[0] + np.mean(scaled) / reference[1]) / 2
    assert found.metrics["owa"] == pytest.approx(overall, rel=1e-5)
    np.testing.assert_allclose(found.per_sample, percents, rtol=1e-5)
    window = found.examples["windows"][0]
    assert window["series"] == "A"
    assert len(window["history_times"]) == len(window["targets"][0]["history"]) == 32
    assert window["future_times"][0] == "step 1"
    np.testing.assert_allclose(window["targets"][0]["prediction"], window["targets"][0]["history"][-1], rtol=1e-5)


# Contestants, saving, shipping


@pytest.mark.parametrize("name", SYSTEMS)
def test_forecasters_take_part(task, name):
    torch.manual_seed(0)
    model = resolve(name).build(task.info, {})
    batch = task.batch("train", torch.arange(4))
    assert task.apply(model, batch).shape == (4, 8, 1)
    if model.spec.trains:
        task.loss(model, batch).backward()
    assert np.isfinite(task.evaluate(model, "val").metrics["smape"])


def test_save_and_load(task, tmp_path):
    task.save(tmp_path)
    again = ForecastM4Task.load(tmp_path)
    assert again.describe() == task.describe()
    assert again.info == task.info
    for split in ("train", "val", "test"):
        for name, value in whole(task, split).items():
            assert torch.equal(value, whole(again, split)[name])
    (tmp_path / "forecast_m4.safetensors").unlink()
    with pytest.raises(InvalidValue, match="is missing"):
        ForecastM4Task.load(tmp_path)


@pytest.mark.parametrize("name", ["dlinear", "seasonal_naive", "softmax_attention"])
def test_the_packaged_model_forecasts_what_was_scored(task, name):
    torch.manual_seed(0)
    model = resolve(name).build(task.info, {}).eval()
    packaged = task.package(model)
    again = ForecastM4Task.unpack(packaged.config, lambda info: model)
    rows = frame()
    for i, length in enumerate(rows.iloc[:, 1:].notna().sum(axis=1)):
        rows.iloc[i, 1 + length - 8 : 1 + length] = None  # what is known when test is forecast
    table = ForecastM4Task.predict(again, rows)
    assert list(table.columns) == ["id", "step", "value"]
    assert table["id"].tolist() == [n for n in "ABC" for _ in range(8)]
    assert table["step"].tolist() == list(range(1, 9)) * 3
    batch = whole(task, "test")
    with torch.no_grad():
        expected = (task.apply(model, batch).double() * batch["scale"] + batch["mean"]).flatten()
    np.testing.assert_allclose(table["value"], expected, rtol=1e-5)


def test_a_series_shorter_than_the_lookback_is_forecast(task):
    packaged = task.package(resolve("seasonal_naive").build(task.info, {}))
    short = pd.DataFrame([["new", 1.0, 2.0, 3.0, 4.0, 5.0]], columns=list("abcdef"))
    assert ForecastM4Task.predict(packaged, short)["value"].round(4).tolist() == [2, 3, 4, 5, 2, 3, 4, 5]
    shortest = pd.DataFrame([["new", 2.0, 3.0]], columns=list("abc"))  # its first value stands in front
    assert ForecastM4Task.predict(packaged, shortest)["value"].round(4).tolist() == [2, 2, 2, 3, 2, 2, 2, 3]
    x = torch.tensor([torch.nan] * 11 + [1.0, 2, 3, 4, 5])[None, :, None]
    torch.testing.assert_close(packaged(x).flatten(), torch.tensor([2.0, 3, 4, 5, 2, 3, 4, 5]))


def test_a_packaged_model_is_called_as_in_training(task):
    model = Repeat(8)
    task.package(model)(torch.rand(3, 16, 1))
    assert model.given[0].shape == (3, 16, 0)


def test_it_predicts_the_embedded_series():
    task = ForecastM4Task.prepare()
    packaged = task.package(resolve("seasonal_naive").build(task.info, {}))
    assert len(ForecastM4Task.predict(packaged)) == 36 * 48


# Refusals


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: ForecastM4Task.prepare(frame()),
            "does not say its frequency: give horizon and season, or a name that",
        ),
        (lambda: ForecastM4Task.prepare(frame(), season=4), "does not say its frequency: give horizon, or"),
        (lambda: prepared(horizon=0), "horizon=0 is not possible: a whole number of at least 1 is needed."),
        (lambda: prepared(season=1.5), "season=1.5 is not possible: a whole number is needed."),
        (lambda: prepared(history=-1.0), "history=-1.0 is not possible: a positive number of horizons is needed."),
        (lambda: prepared(history="x"), "history='x' is not possible: a number is needed."),
        (lambda: prepared(lookback=0), "lookback=0 is not possible"),
        (
            lambda: prepared(horizon=40),
            "is too short: its longest series has 80 values, with horizon=40 and season=4 85 are",
        ),
        (
            lambda: prepared(test=frame((8, 7, 8))),
            "the DataFrame', series 'B' has 7 test values: exactly 8, the horizon, are needed.",
        ),
        (lambda: prepared(test=frame((8, 8))), "has no series 'C', which"),
        (lambda: prepared(test=frame((8, 8, 8, 8))), "has no series 'D', which"),
    ],
)
def test_what_is_not_possible_is_refused(make, says):
    with pytest.raises(FoveateError) as found:
        make()
    assert says in str(found.value)
    assert "\n" not in str(found.value)


def test_calls_that_do_not_fit_are_refused(task):
    packaged = task.package(Repeat(8))
    for x, says in (
        (torch.zeros(1, 15, 1), r"x has shape \(1, 15, 1\)"),
        (torch.zeros(1, 16, 1).index_fill(1, torch.tensor(15), torch.nan), "missing or infinite"),
        (torch.zeros(1, 16, 1).index_fill(1, torch.tensor(5), torch.nan), "missing or infinite"),
        (torch.zeros(1, 16, 1).index_fill(1, torch.tensor(0), torch.inf), "missing or infinite"),
    ):
        with pytest.raises(InvalidValue, match=says):
            packaged(x)
    with pytest.raises(InvalidType, match="time='t' is not possible: series in M4's layout have no time column"):
        ForecastM4Task.predict(packaged, frame(), time="t")
    with pytest.raises(InvalidValue, match="split='train' is not possible: val and test are scored"):
        task.evaluate(Repeat(8), "train")
    with pytest.raises(LookupError, match="unknown split 'tset'"):
        task.batch("tset", torch.arange(1))
    with pytest.raises(InvalidValue, match=r"Repeat returned \(3, 7, 1\): a forecast is a tensor"):
        task.evaluate(Repeat(7), "test")
