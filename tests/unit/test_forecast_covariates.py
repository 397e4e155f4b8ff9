"""Covariates: what every contestant is told, what can never leak, and what is refused, in which words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from foveate.errors import FoveateError, InvalidValue, UnknownName
from foveate.models.base import Model
from foveate.models.build import Contestant, resolve
from foveate.models.outlook import Outlook
from foveate.spec import ModelSpec
from foveate.tasks.base import Recipe
from foveate.tasks.forecast.covariates import static_codes
from foveate.tasks.forecast.package import Forecaster
from foveate.tasks.forecast.predict import predict
from foveate.tasks.forecast.task import ForecastTask
from foveate.tasks.trainer import train

LOOKBACK, HORIZON = 16, 4


def table(rows: int = 400, seed: int = 0, start: str = "2024-01-01") -> pd.DataFrame:
    """A target that is twice the covariate of the same hour and noise, a past covariate, and the covariate."""
    rng = np.random.default_rng(seed)
    price = rng.normal(size=rows)
    frame = pd.DataFrame({"date": pd.date_range(start, periods=rows, freq="h"), "load": 50 + 20 * price})
    frame["load"] += 3 * rng.normal(size=rows)
    return frame.assign(wind=rng.normal(size=rows), price=10 + 4 * price)


def shops() -> pd.DataFrame:
    """Three series of different size and region, on top of what :func:`table` has."""
    facts = {"n": (1.0, "north"), "s": (3.0, "south"), "e": (2.5, "north")}
    frames = [
        table(200, seed).assign(shop=name, size=f[0], region=f[1]) for seed, (name, f) in enumerate(facts.items())
    ]
    return pd.concat(frames, ignore_index=True)


def prepared(frame: pd.DataFrame | None = None, **options: Any) -> ForecastTask:
    given = {"lookback": LOOKBACK, "horizon": HORIZON, "target": "load", "known": "price", **options}
    return ForecastTask.prepare(table() if frame is None else frame, **given)


def refused(kind: type[FoveateError], frame: pd.DataFrame | None = None, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        prepared(frame, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def future(frame: pd.DataFrame, steps: int = HORIZON) -> pd.DataFrame:
    """The frame with the targets of its last rows emptied."""
    frame = frame.copy()
    frame.loc[frame.index[-steps:], "load"] = np.nan
    return frame


def perturbed(model: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode, noise on its weights: what starts at zero hides faults."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


class Own(Model):
    """A model of the user's, which takes a window and nothing else."""

    spec = ModelSpec(reads="series", tasks=("forecast",))

    def __init__(self, lookback: int, horizon: int) -> None:
        super().__init__()
        self.map = nn.Linear(lookback, horizon)

    @classmethod
    def for_task(cls, info, **options):
        return cls(info.lookback, info.horizon)

    def forward(self, x: Tensor, marks: Tensor | None = None) -> Tensor:
        return self.map(x.transpose(1, 2)).transpose(1, 2)


class OwnCovariates(Own):
    """One that has a place for covariates: it gets them instead of the common form."""

    spec = ModelSpec(reads="series", tasks=("forecast",), covariates=True)

    def __init__(self, lookback: int, horizon: int) -> None:
        super().__init__(lookback, horizon)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(
        self, x: Tensor, marks: Tensor | None = None, known: Tensor | None = None, static: Tensor | None = None
    ) -> Tensor:
        assert known is not None
        return super().forward(x) + self.gain * known[:, -HORIZON:, :1]


def contestant(name: str) -> Contestant:
    own = {"own": Own, "own_covariates": OwnCovariates}
    return Contestant(f"mine:{name}", "custom", own[name]) if name in own else resolve(name)


SMALL = {"timesnet": {"d_model": 4, "d_ff": 4, "e_layers": 1, "num_kernels": 1, "top_k": 2}}
EVERY_KIND = ["dlinear", "timesnet", "gated_conv", "softmax_attention", "own", "own_covariates"]


# What every contestant is told


def test_batches_hold_the_covariates_of_window_and_horizon():
    frame = shops()
    task = prepared(frame, id="shop", static="size,region")
    assert (task.info.known, task.info.static, task.info.channels) == (1, 3, 2)
    assert task.layout["columns"] == ["load", "wind"]
    training = np.concatenate([frame["price"][200 * i : 200 * i + 140] for i in range(3)])
    for split in ("train", "val", "test"):
        index = torch.arange(task.size(split))
        batch = task.batch(split, index)
        for i in (0, len(index) // 2, len(index) - 1):
            rows = task.rows(split, i)
            own = frame[frame["shop"] == rows.series].set_index("date").loc[rows.times]
            expected = (own["price"] - training.mean()) / training.std()
            np.testing.assert_allclose(batch["x_known"][i, :, 0], expected, rtol=1e-4, atol=1e-5)
            size = (own["size"].iloc[0] - np.mean([1, 3, 2.5])) / np.std([1, 3, 2.5])
            region = [float(own["region"].iloc[0] == r) for r in ("north", "south")]
            np.testing.assert_allclose(batch["static"][i], [size, *region], rtol=1e-5)
        assert all(value.is_contiguous() for value in batch.values())
    facts = task.describe()
    assert (facts["known"], facts["static"], facts["static_features"]) == (["price"], ["size", "region"], 3)


@pytest.mark.parametrize("quantiles", [None, "0.1,0.9"])
@pytest.mark.parametrize("name", EVERY_KIND)
def test_every_kind_of_contestant_uses_what_is_known_ahead(name, quantiles, tmp_path):
    """The target is the covariate and noise of 1/46 of its variance; without it nothing can be known."""
    task = prepared(quantiles=quantiles)
    torch.manual_seed(0)
    model = contestant(name).build(task.info, SMALL.get(name, {}))
    assert isinstance(model, Outlook)
    assert (model.effect is None) == (name == "own_covariates")
    at_first = task.evaluate(model, "test").metrics["mse"]
    train(model, Recipe(task), task, steps=120, lr=1e-2, seed=0, folder=tmp_path)
    assert task.evaluate(model, "test").metrics["mse"] < min(0.35, 0.5 * at_first)


def test_what_is_static_reaches_the_forecast(tmp_path):
    """Series drift upwards in the south and downwards in the north, which a window of two noisy steps hardly tells."""
    rng = np.random.default_rng(0)
    frames = []
    for i in range(6):
        walk = (rng.normal(size=240) + (0.7 if i % 2 else -0.7)).cumsum()
        frame = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=240, freq="h"), "load": walk})
        frames.append(frame.assign(shop=f"s{i}", region="south" if i % 2 else "north"))
    given: dict[str, Any] = {"known": None, "id": "shop", "lookback": 2}
    errors = []
    for static in (None, "region"):
        task = prepared(pd.concat(frames), static=static, **given)
        torch.manual_seed(0)
        model = resolve("dlinear").build(task.info, {})
        train(model, Recipe(task), task, steps=200, lr=1e-2, seed=0, folder=tmp_path / str(static))
        errors.append(task.evaluate(model, "train").metrics["mse"])
    assert errors[1] < 0.8 * errors[0]
    task = prepared(pd.concat(frames), static="region", **given)
    model = perturbed(resolve("dlinear").build(task.info, {}))
    batch = task.batch("test", torch.arange(task.size("test")))
    other = {**batch, "static": batch["static"].flip(-1)}
    assert not torch.equal(task.apply(model, batch), task.apply(model, other))


def test_a_baseline_is_not_told_and_stays_what_it_is():
    task = prepared()
    model = resolve("seasonal_naive").build(task.info, {})
    batch = task.batch("test", torch.arange(9))
    assert torch.equal(task.apply(model, batch), model.model(batch["x"]))
    assert list(model.parameters()) == []


@pytest.mark.parametrize("levels", [(), (0.2, 0.5)])
def test_an_outlook_is_its_formula(levels):
    """y[h] = forecaster(x - g(k[window], s))[h] + g(k[horizon], s)[h] + o(s)[h]."""
    own = Own(LOOKBACK, HORIZON)
    model = perturbed(Outlook(own, LOOKBACK, HORIZON, 2, known=3, static=2, quantiles=levels))
    assert isinstance(model, Outlook)
    assert model.effect is not None
    assert model.offset is not None
    x, known, static = torch.randn(5, LOOKBACK, 2), torch.randn(5, LOOKBACK + HORIZON, 3), torch.randn(5, 2)
    g = model.effect(known, static)
    rest = x - g[:, :LOOKBACK]
    expected = own(rest)[..., None] if not levels else model.spread(own(rest), rest)  # type: ignore[misc]
    expected = expected + (g[:, LOOKBACK:] + model.offset(static).view(5, HORIZON, 2))[..., None]
    got = model(x, known=known, static=static)
    torch.testing.assert_close(got if levels else got[..., None], expected)


def test_before_training_everyone_answers_as_without_covariates():
    task = prepared(shops(), id="shop", static="size")
    batch = task.batch("test", torch.arange(9))
    for name in ("dlinear", "timesnet", "gated_conv", "own"):
        model = contestant(name).build(task.info, SMALL.get(name, {})).eval()
        assert torch.equal(task.apply(model, batch), model.model(batch["x"], marks=batch["x_marks"]))


# What can never leak


@pytest.mark.parametrize("name", EVERY_KIND)
def test_future_targets_and_past_covariates_can_never_leak(name):
    """Whatever stands there after the origin, the forecast keeps every bit; the known covariate alone changes it."""
    frame, options = table(), {"split": "200/100/100"}
    task = prepared(frame, **options)
    model = perturbed(contestant(name).build(task.info, SMALL.get(name, {})))
    window = 40
    forecast = task.apply(model, task.batch("test", torch.tensor([window])))
    origin = 300 + window
    for columns, changes in ((["load"], False), (["wind"], False), (["load", "wind"], False), (["price"], True)):
        changed = frame.copy()
        changed.loc[origin:, columns] = changed.loc[origin:, columns] * -7 + 3
        other = prepared(changed, **options)
        again = other.apply(model, other.batch("test", torch.tensor([window])))
        assert torch.equal(again, forecast) != changes, columns


def test_later_rows_change_no_scaler_of_covariates():
    frame = table()
    changed = frame.copy()
    changed.loc[290:, "price"] = 1e6
    one, two = prepared(frame), prepared(changed)
    for name in ("known_mean", "known_scale"):
        assert torch.equal(one._tensors[name], two._tensors[name])
    first, second = (t.batch("train", torch.arange(t.size("train"))) for t in (one, two))
    assert all(torch.equal(first[n], second[n]) for n in first)


# Predicting


def forecaster(frame: pd.DataFrame | None = None, name: str = "dlinear", **options: Any) -> Forecaster:
    task = prepared(frame, **options)
    return task.package(perturbed(resolve(name).build(task.info, {}))).eval()  # type: ignore[return-value]


def test_a_prediction_is_what_the_task_scored():
    frame = table()
    task = prepared(frame, quantiles="0.1,0.9")
    packaged = task.package(perturbed(resolve("gated_conv").build(task.info, {}))).eval()
    got = predict(packaged, future(frame))
    shown = task.evaluate(packaged.model, "test").examples["windows"][-1]
    assert shown["future_times"] == [f"{t:%Y-%m-%dT%H:%M:%S}" for t in got["date"]]
    np.testing.assert_allclose(got["load_q0.5"], shown["targets"][0]["prediction"], rtol=2e-5)
    np.testing.assert_allclose(got["load_q0.1"], shown["targets"][0]["bands"][0]["low"], rtol=2e-5)


def test_the_future_begins_after_the_last_measured_target_of_each_series():
    frame = shops()
    model = forecaster(frame, id="shop", static="region,size")
    later = pd.concat([future(part, 4 + 3 * i) for i, (_, part) in enumerate(frame.groupby("shop", sort=False))])
    got = predict(model, later, batch_size=2)
    assert got["shop"].tolist() == ["n"] * 4 + ["s"] * 4 + ["e"] * 4
    ends = [frame["date"].iloc[200 - 4 - 3 * i] for i in range(3)]
    assert got.groupby("shop", sort=False)["date"].min().tolist() == ends
    filled = later.assign(wind=later["wind"].where(later["load"].notna(), 99.0))
    pd.testing.assert_frame_equal(predict(model, filled), got)
    cheaper = later.assign(price=later["price"].where(later["load"].notna(), 0.0))
    assert not np.allclose(predict(model, cheaper)["load"], got["load"])
    new = later[later["shop"] == "s"].assign(shop="new")
    assert len(predict(model, new)) == HORIZON
    alone = predict(model, later[later["shop"] == "s"].drop(columns="shop"))
    assert len(alone) == HORIZON, "a wide table of one new series"


def test_gaps_of_the_past_are_filled_and_of_the_horizon_refused():
    frame = future(table())
    model = forecaster()
    gap = frame.copy()
    gap.loc[[380, 390], "price"] = np.nan
    assert np.isfinite(predict(model, gap)["load"]).all()
    with pytest.raises(InvalidValue) as caught:
        predict(model, frame.iloc[:-1])
    assert str(caught.value) == (
        "'the DataFrame', known column 'price' does not cover the horizon: it has no value at 2024-01-17T15:00:00; "
        "4 rows after 2024-01-17T11:00:00, the last measured target, must hold it."
    )
    hole = frame.copy()
    hole.loc[397, "price"] = np.nan
    with pytest.raises(InvalidValue, match=r"'price' .* no value at 2024-01-17T13:00:00; 4 rows"):
        predict(model, hole)
    with pytest.raises(InvalidValue, match=r"no value at 2024-01-17T14:00:00"):
        predict(model, frame.drop(index=398))
    with pytest.raises(InvalidValue, match=r"no value at 2024-01-17T16:00:00; 4 rows after 2024-01-17T15:00:00"):
        predict(model, table())
    with pytest.raises(UnknownName, match="price"):
        predict(model, frame.drop(columns="price"))
    many = forecaster(shops(), id="shop")
    with pytest.raises(InvalidValue, match="series 'n', known column 'price' does not cover"):
        predict(many, shops())


def test_static_columns_of_new_tables():
    frame = shops()
    model = forecaster(frame, id="shop", static="region", known=None)
    assert len(predict(model, frame)) == 3 * HORIZON
    with pytest.raises(UnknownName, match=r"unknown category of 'region' 'nord': did you mean 'north'\? It is series"):
        predict(model, frame.replace({"region": {"north": "nord"}}))
    with pytest.raises(UnknownName, match="unknown column 'region'"):
        predict(model, frame.drop(columns="region"))
    sized = forecaster(frame, id="shop", static="size", known=None)
    with pytest.raises(InvalidValue, match="static column 'size': series 'n' has 'big', not a number"):
        predict(sized, frame.assign(size="big"))


def test_resampled_rows_and_rows_off_the_grid():
    model = forecaster(freq="3h")
    got = predict(model, future(table(), 12))
    assert got["date"].tolist() == pd.date_range("2024-01-17 06:00", periods=HORIZON, freq="3h").tolist()
    uneven = table().assign(date=lambda f: f["date"] + pd.to_timedelta(np.arange(400) % 3 // 2, unit="min"))
    got = predict(forecaster(uneven), future(uneven))
    assert got["date"].tolist() == uneven["date"].iloc[-HORIZON:].tolist(), "the table's own times"


def test_config_and_state_rebuild_it(tmp_path):
    from foveate.checkpoint import load, save

    frame = shops()
    model = forecaster(frame, name="gated_conv", id="shop", static="size,region", quantiles="0.2")
    config = {"task": "forecast", "system": "gated_conv", "options": {}, "package": model.config}
    save(tmp_path, model, config)
    again = load(tmp_path)
    later = future(frame[frame["shop"] == "s"])
    pd.testing.assert_frame_equal(predict(again, later), predict(model, later))  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match=r"known=\(\) is not possible: 1 names are needed"):
        Forecaster(nn.Identity(), model.info, columns=["load", "wind"], series=("n", "s", "e"))


# What is refused


def test_columns_have_one_role_each():
    assert "column 'load' cannot be target and known at once" in refused(InvalidValue, known="price,load")
    assert "unknown known column 'prise': did you mean 'price'?" in refused(UnknownName, known="prise")
    assert "cannot be time and known at once" in refused(InvalidValue, time="date", known="date")
    assert "cannot be known and static at once" in refused(InvalidValue, shops(), id="shop", static="price")
    assert "no column left to forecast: known='load,wind,price'" in refused(
        InvalidValue, target=None, known="load,wind,price"
    )


def test_known_columns_must_teach_something():
    says = "known column 'flag' is constant in the training rows: nothing can be learned from it"
    assert says in refused(InvalidValue, table().assign(flag=[0] * 300 + [1] * 100), known="flag")
    assert "has no value in the training rows" in refused(InvalidValue, table().assign(flag=np.nan), known="flag")
    assert "row 1 holds 'x', which is not a number" in refused(InvalidValue, table().assign(flag="x"), known="flag")
    late = table()
    late.loc[395, "price"] = 1e200
    assert "'price': its values are too large" in refused(InvalidValue, late)


def test_static_columns_must_be_constant_and_tell_series_apart():
    frame = shops()
    wrong = frame.copy()
    wrong.loc[203, "region"] = "west"
    says = "series 's' has 'south' in row 201 and 'west' in row 204: it must be constant within a series"
    assert says in refused(InvalidValue, wrong, id="shop", static="region")
    empty = frame.copy()
    empty.loc[empty["shop"] == "e", "size"] = np.nan
    assert "static column 'size': series 'e' has no value" in refused(InvalidValue, empty, id="shop", static="size")
    assert "is 7.0 in every series" in refused(InvalidValue, frame.assign(seven=7), id="shop", static="seven")
    assert "name the column that holds their names, id=" in refused(InvalidValue, static="wind")
    gaps = frame.copy()
    gaps.loc[gaps.index % 3 == 0, ["region", "size"]] = None
    names = [*"hgfedcba", "7", 7.0]
    (code,) = static_codes({str(i): {"kind": n} for i, n in enumerate(names)}, ["kind"], list("0123456789"), "t")
    assert code["categories"] == ["7", *"abcdefgh"], "in one order on every machine"
    whole, some = (prepared(f, id="shop", static="region,size") for f in (frame, gaps))
    assert torch.equal(whole._tensors["static"], some._tensors["static"]), "a gap is no other value"


def test_what_was_left_out_or_filled_is_noted():
    frame = pd.concat([table(), table(6, start="2024-01-17 16:00").assign(load=np.nan, wind=np.nan)])
    frame.iloc[5:8, frame.columns.get_loc("price")] = np.nan  # type: ignore[index]
    notes = " ".join(prepared(frame).describe()["notes"])
    assert "6 rows after the last measured target hold covariates only and are left out." in notes
    assert "3 values of the known column 'price' are missing; the last one before is taken." in notes
    batch = prepared(frame).batch("train", torch.tensor([0]))
    assert (batch["x_known"][0, 5:8] == batch["x_known"][0, 4]).all()


def test_an_outlook_refuses_covariates_that_do_not_fit():
    task = prepared()
    model = resolve("dlinear").build(task.info, {})
    batch = task.batch("val", torch.arange(2))
    with pytest.raises(InvalidValue, match=r"known has shape None: it must be \(2, 20, 1\)"):
        model(batch["x"])
    with pytest.raises(InvalidValue, match=r"known has shape \(2, 19, 1\): it must be"):
        model(batch["x"], known=batch["x_known"][:, 1:])
    with pytest.raises(InvalidValue, match=r"static has shape \(2, 1\): there are none"):
        model(batch["x"], known=batch["x_known"], static=torch.zeros(2, 1))


def test_saved_and_loaded_it_is_the_same_bit_for_bit(tmp_path):
    task = prepared(shops(), id="shop", static="size,region", quantiles="0.3")
    task.save(tmp_path)
    again = ForecastTask.load(tmp_path)
    assert (again.info, again.layout, again.describe()) == (task.info, task.layout, task.describe())
    one, two = (t.batch("test", torch.arange(t.size("test"))) for t in (task, again))
    assert all(torch.equal(one[n], two[n]) for n in one)
