"""Packaged forecasters: the user's units, configuration, export, and tables of future values."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from foveate.errors import InvalidValue, UnknownName
from foveate.tasks.forecast.features import time_features
from foveate.tasks.forecast.package import Forecaster
from foveate.tasks.forecast.predict import predict
from foveate.tasks.forecast.task import ForecastTask

LOOKBACK, HORIZON = 20, 6


class Marked(nn.Module):
    """A model that uses everything it is given, so that a mixed-up input shows."""

    def __init__(self, channels: int = 3, marks: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.time = nn.Linear(LOOKBACK, HORIZON)
        self.mix = nn.Linear(channels + marks, channels)

    def forward(self, x: Tensor, marks: Tensor | None = None) -> Tensor:
        assert marks is not None
        return self.mix(self.time(torch.cat([x, marks], dim=2).transpose(1, 2)).transpose(1, 2))


def table(rows: int = 300, freq: str = "h", start: str = "2024-01-01", seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, 3)).cumsum(axis=0) * [1, 10, 0.1] + [0, 1000, 1e6]
    frame = pd.DataFrame(values, columns=["a", "b", "c"])
    frame.insert(0, "date", pd.date_range(start, periods=rows, freq=freq))
    return frame


def several() -> pd.DataFrame:
    return pd.concat([table(300, seed=1).assign(shop="n"), table(200, start="2024-02-01", seed=2).assign(shop="s")])


def prepared(frame: pd.DataFrame, **options: object) -> tuple[ForecastTask, Forecaster]:
    task = ForecastTask.prepare(frame, lookback=LOOKBACK, horizon=HORIZON, **options)  # type: ignore[arg-type]
    return task, task.package(Marked()).eval()


def test_it_forecasts_in_the_users_units():
    frame = table()
    task, forecaster = prepared(frame)
    at = torch.arange(5)
    batch = task.batch("test", at)
    first = 300 - 60
    x = np.stack([frame[["a", "b", "c"]].to_numpy()[first - LOOKBACK + i :][:LOOKBACK] for i in range(5)])
    standardised = task.apply(forecaster.model, batch).double()
    expected = standardised * task._tensors["scale"][0] + task._tensors["mean"][0]
    got = forecaster(torch.from_numpy(x), batch["x_marks"])
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    single = forecaster(torch.from_numpy(x).float(), batch["x_marks"])
    assert single.dtype == torch.float32
    error = (single - expected).abs() / task._tensors["scale"][0]
    assert error.max() < 0.05  # a float32 can write 1,000,000.06 only to 0.06


def test_several_series_need_an_index():
    _, forecaster = prepared(several(), id="shop")
    x = torch.randn(2, LOOKBACK, 3)
    marks = torch.zeros(2, LOOKBACK, 4)
    with pytest.raises(InvalidValue, match="series is needed: 2 series"):
        forecaster(x, marks)
    both = forecaster(x[:1].expand(2, -1, -1), marks, torch.tensor([0, 1]))
    assert not torch.allclose(both[0], both[1])
    alone = forecaster.rescaled(x[:1], forecaster.mean[1:], forecaster.scale[1:], marks[:1])
    torch.testing.assert_close(both[1:], alone)


def test_bad_inputs_are_refused_by_name():
    _, forecaster = prepared(table())
    marks = torch.zeros(2, LOOKBACK, 4)
    x = torch.ones(2, LOOKBACK, 3)
    x[1, 3, 1] = float("nan")
    with pytest.raises(InvalidValue, match="missing or infinite values in 'b': fill them"):
        forecaster(x, marks)
    for wrong in (torch.ones(2, LOOKBACK + 1, 3), torch.ones(LOOKBACK, 3), torch.ones(2, LOOKBACK, 3).long()):
        with pytest.raises(InvalidValue, match=r"\(batch, 20, 3\) is needed"):
            forecaster(wrong, marks)
    with pytest.raises(InvalidValue, match="3 names are needed"):
        Forecaster(Marked(), forecaster.info, columns=["a"])
    with pytest.raises(InvalidValue, match=r"mean has shape \(3,\)"):
        Forecaster(Marked(), forecaster.info, columns=["a", "b", "c"], mean=torch.zeros(3))
    with pytest.raises(InvalidValue, match="not positive"):
        Forecaster(Marked(), forecaster.info, columns=["a", "b", "c"], scale=torch.zeros(1, 3))


def test_config_and_state_rebuild_it(tmp_path):
    task, forecaster = prepared(several(), id="shop", target="b")
    save_file(forecaster.state_dict(), tmp_path / "model.safetensors")
    config = json.loads(json.dumps(forecaster.config))
    again = Forecaster.from_config(Marked(), config).eval()
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert again.info == task.info
    assert again.config == forecaster.config
    pd.testing.assert_frame_equal(predict(forecaster, several()), predict(again, several()))


def test_it_compiles_and_exports():
    _, forecaster = prepared(table())
    x, marks = torch.randn(2, LOOKBACK, 3) + 5, torch.randn(2, LOOKBACK, 4)
    expected = forecaster(x, marks)
    torch.testing.assert_close(torch.compile(forecaster, backend="aot_eager", fullgraph=True)(x, marks), expected)
    torch.testing.assert_close(torch.export.export(forecaster, (x, marks)).module()(x, marks), expected)


# Tables


def test_the_forecast_continues_the_series(tmp_path):
    frame = table()
    task, forecaster = prepared(frame, target=["c", "a"])
    frame.to_csv(tmp_path / "t.csv", index=False)
    got = predict(forecaster, tmp_path / "t.csv")
    assert list(got.columns) == ["date", "c", "a"]
    assert got["date"].tolist() == pd.date_range(frame["date"].iloc[-1], periods=7, freq="h")[1:].tolist()
    past = frame.iloc[-LOOKBACK:]
    mean, scale = task._tensors["mean"][0].numpy(), task._tensors["scale"][0].numpy()
    x = torch.from_numpy(((past[["a", "b", "c"]].to_numpy() - mean) / scale).astype(np.float32))[None]
    marks = torch.from_numpy(time_features(past["date"].to_numpy(), "h"))[None]
    expected = forecaster.model(x, marks=marks)[0].detach().double().numpy() * scale + mean
    np.testing.assert_allclose(got[["c", "a"]], expected[:, [2, 0]], rtol=1e-9)


def test_it_agrees_with_the_task_on_a_window_of_the_past():
    """The whole way round: what a table predicts is what the task scored, in the user's units."""
    frame = table()
    frame.loc[[285, 286, 290], "b"] = np.nan
    task, forecaster = prepared(frame)
    got = predict(forecaster, frame.iloc[:-HORIZON])
    shown = task.evaluate(forecaster.model, "test").examples["windows"][-1]
    assert shown["future_times"] == [f"{t:%Y-%m-%dT%H:%M:%S}" for t in got["date"]]
    for target in shown["targets"]:
        np.testing.assert_allclose(got[target["name"]], target["prediction"], rtol=2e-5)


def test_every_series_is_continued_and_new_ones_by_their_own_scale():
    frame = several()
    _, forecaster = prepared(frame, id="shop")
    got = predict(forecaster, frame, batch_size=1)
    assert got["shop"].tolist() == ["n"] * HORIZON + ["s"] * HORIZON
    ends = frame.groupby("shop")["date"].max()
    assert got.groupby("shop")["date"].min().tolist() == (ends + pd.Timedelta("1h")).tolist()
    alone = predict(forecaster, frame[frame["shop"] == "s"])
    np.testing.assert_array_equal(alone["b"], got["b"][HORIZON:])
    new = predict(forecaster, frame[frame["shop"] == "s"].assign(shop="x", b=lambda f: f["b"] * 1000))
    assert 9e5 < new["b"].mean() < 1.1e6
    wide = predict(forecaster, table())
    assert list(wide.columns) == ["date", "a", "b", "c"]


def test_other_names_orders_and_zones_of_the_new_table():
    frame = table()
    _, forecaster = prepared(frame)
    expected = predict(forecaster, frame)
    moved = frame.rename(columns={"date": "when"})[["c", "a", "when", "b"]].assign(station="JFK")
    got = predict(forecaster, moved)
    assert list(got.columns) == ["when", "a", "b", "c"]
    np.testing.assert_array_equal(got[["a", "b", "c"]], expected[["a", "b", "c"]])
    utc = frame.assign(date=frame["date"].dt.tz_localize("UTC"))
    assert str(predict(forecaster, utc)["date"].iloc[0]) == f"{expected['date'].iloc[0]}+00:00"
    east = frame.assign(date=frame["date"].dt.strftime("%Y-%m-%dT%H:%M:%S+05:30"))
    assert str(predict(forecaster, east)["date"].iloc[0]) == f"{expected['date'].iloc[0]}+05:30"


@pytest.mark.parametrize("freq", ["MS", "W-SUN", "B", "YS"])
def test_calendar_steps_go_on(freq):
    frame = table(freq=freq)
    task = ForecastTask.prepare(frame, lookback=LOOKBACK, horizon=HORIZON)
    forecaster = task.package(Marked(marks=task.info.marks))
    expected = pd.date_range(frame["date"].iloc[-1], periods=HORIZON + 1, freq=freq)[1:]
    assert predict(forecaster, frame)["date"].tolist() == expected.tolist()


def test_gaps_and_resampling_are_handled_as_in_training():
    frame = table(1200)
    _, forecaster = prepared(frame, freq="3h")
    got = predict(forecaster, frame.drop(index=range(1150, 1180)))
    assert got["date"].tolist() == pd.date_range("2024-02-20", periods=HORIZON, freq="3h").tolist()
    assert np.isfinite(got[["a", "b", "c"]]).all().all()
    _, gapped = prepared(frame)
    shortened = frame.drop(index=[1190, 1191, 1195])
    assert predict(gapped, shortened)["date"].iloc[0] == pd.Timestamp("2024-02-20")
    assert np.isfinite(predict(gapped, shortened.assign(b=np.nan))["b"]).all()


def test_irregular_rows_go_on_by_their_usual_step():
    frame = table().assign(date=lambda f: f["date"] + pd.to_timedelta(np.arange(300) % 3 // 2, unit="min"))
    _, forecaster = prepared(frame)
    assert not forecaster.regular
    expected = frame["date"].iloc[-1] + pd.to_timedelta(np.arange(1, HORIZON + 1), unit="h")
    assert predict(forecaster, frame)["date"].tolist() == expected.tolist()


def test_tables_that_do_not_fit_the_forecaster():
    _, forecaster = prepared(table())

    def refused(kind: type[Exception], frame: pd.DataFrame, **options: str) -> str:
        with pytest.raises(kind) as caught:
            predict(forecaster, frame, **options)
        return str(caught.value)

    assert "unknown column 'b'" in refused(UnknownName, table().drop(columns="b"))
    assert "did you mean 'bb'" in refused(UnknownName, table().rename(columns={"b": "bb"}))
    assert "'the DataFrame' has 19 rows: the forecast looks back over 20" in refused(InvalidValue, table(19))
    assert len(predict(forecaster, table(20))) == HORIZON
    assert "are 'D', not 'h' as in the data that the model was trained on" in refused(InvalidValue, table(freq="D"))
    assert "row 3 holds 'x'" in refused(InvalidValue, table().assign(b=["1", "2", "x"] + ["4"] * 297))
    assert "unknown time column 'when'" in refused(UnknownName, table(), time="when")
    _, many = prepared(several(), id="shop")
    with pytest.raises(InvalidValue, match="series 's', has 10 rows"):
        predict(many, pd.concat([several().iloc[:100], several().iloc[-10:]]))
