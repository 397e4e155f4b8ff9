"""Quantile forecasts: scores against their definitions, heads that cannot cross, baselines, packages."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from foveate.errors import InvalidType, InvalidValue
from foveate.models.base import Model
from foveate.models.build import Contestant, resolve
from foveate.models.mixer_net import MixerNet
from foveate.models.outlook import Outlook
from foveate.models.quantiles import START, QuantileOrder, QuantileSpread, ResidualQuantiles
from foveate.models.series.dlinear import DLinear
from foveate.models.series.timesnet import TimesNet
from foveate.spec import ModelSpec
from foveate.tasks.base import Recipe
from foveate.tasks.forecast.predict import predict
from foveate.tasks.forecast.scores import Scores, crps_weights, metrics_of, pinball, read_levels
from foveate.tasks.forecast.task import ForecastTask
from foveate.tasks.trainer import train

LOOKBACK, HORIZON = 24, 5


def table(rows: int = 300, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    values = 5 * np.sin(np.arange(rows) * 2 * np.pi / 12)[:, None] + rng.normal(size=(rows, 2)) * [1, 20] + [50, 0]
    return pd.DataFrame(values, columns=["a", "b"]).assign(date=pd.date_range("2024-01-01", periods=rows, freq="h"))


def prepared(quantiles: object = (0.1, 0.5, 0.9), frame: pd.DataFrame | None = None, **options: object) -> ForecastTask:
    given = {"lookback": LOOKBACK, "horizon": HORIZON, "season": 12, **options}
    return ForecastTask.prepare(table() if frame is None else frame, quantiles=quantiles, **given)  # type: ignore[arg-type]


class Own(Model):
    """A model of the user's, which knows nothing of quantiles."""

    spec = ModelSpec(reads="series", tasks=("forecast",))

    def __init__(self, lookback: int, horizon: int) -> None:
        super().__init__()
        self.map = nn.Linear(lookback, horizon)

    @classmethod
    def for_task(cls, info, **options):
        return cls(info.lookback, info.horizon)

    def forward(self, x: Tensor, marks: Tensor | None = None) -> Tensor:
        return self.map(x.transpose(1, 2)).transpose(1, 2)


OWN = Contestant("mine:Own", "custom", Own)


# Levels


def test_levels_are_read_and_the_median_joins():
    assert read_levels(None) == ()
    assert read_levels("0.1, 0.5,0.9") == (0.1, 0.5, 0.9)
    assert read_levels("0.1,0.9") == read_levels([0.1, 0.9]) == (0.1, 0.5, 0.9)
    assert read_levels("0.9") == (0.5, 0.9)
    assert prepared("0.2").describe()["quantiles"] == [0.2, 0.5]


@pytest.mark.parametrize(
    ("levels", "kind", "says"),
    [
        ("0,0.5", InvalidValue, "quantiles='0,0.5' is not possible: 0 is not between 0 and 1."),
        ("0.5,1", InvalidValue, "1 is not between 0 and 1"),
        ("0.1,10", InvalidValue, "10 is not between 0 and 1"),
        ("nan", InvalidValue, "nan is not between 0 and 1"),
        ("0.9,0.1", InvalidValue, "they must rise, and 0.1 follows 0.9"),
        ("0.1,0.5,0.5", InvalidValue, "0.5 stands there twice"),
        ("low,high", InvalidValue, "quantiles='low,high' is not possible: write numbers such as 0.1,0.5,0.9."),
        ("", InvalidValue, "write numbers"),
        ([], InvalidValue, "quantiles is empty"),
        (0.5, InvalidType, "write numbers"),
        (["0.5"], InvalidType, "'0.5' is not a number"),
    ],
)
def test_levels_that_are_not_possible(levels, kind, says):
    with pytest.raises(kind) as caught:
        prepared(levels)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_by_itself_wants_the_median():
    for build in (
        lambda q: DLinear(8, 2, 1, quantiles=q),
        lambda q: MixerNet("gated_conv", size=8, outputs=2, quantiles=q),
        lambda q: TimesNet(task="forecast", seq_len=8, pred_len=2, enc_in=1, top_k=2, quantiles=q),
    ):
        with pytest.raises(InvalidValue, match=r"the median 0\.5 must be among them"):
            build((0.1, 0.9))
        with pytest.raises(InvalidValue, match="must rise"):
            build((0.5, 0.1))
    with pytest.raises(InvalidValue, match="quantiles"):
        TimesNet(task="impute", seq_len=8, enc_in=1, top_k=2, quantiles=(0.5,))
    with pytest.raises(InvalidValue, match="quantiles"):
        MixerNet("gated_conv", answers="gaps", size=8, quantiles=(0.5,))


# Scores


LEVELS = st.lists(st.integers(1, 99), min_size=1, max_size=9, unique=True).map(
    lambda found: tuple(sorted({*(n / 100 for n in found), 0.5}))
)


@settings(max_examples=60, deadline=None)
@given(levels=LEVELS, seed=st.integers(0, 999))
def test_pinball_is_its_definition(levels, seed):
    rng = np.random.default_rng(seed)
    truth, forecast = rng.normal(size=7), rng.normal(size=(7, len(levels)))
    forecast[0] = truth[0]
    got = pinball(torch.from_numpy(truth[:, None] - forecast), torch.tensor(levels, dtype=torch.float64))
    for i, y in enumerate(truth):
        for j, level in enumerate(levels):
            q = forecast[i, j]
            assert float(got[i, j]) == pytest.approx(level * (y - q) if y >= q else (1 - level) * (q - y), abs=1e-15)


def scored(predicted: Tensor, truth: Tensor, levels: tuple[float, ...], mask: Tensor | None = None) -> dict[str, float]:
    """Scores of one series with one target, mean 3 and scale 2; ``(windows, horizon)`` truths."""
    scores = Scores(torch.full((1, 1), 3.0).double(), torch.full((1, 1), 2.0).double(), levels)
    mask = torch.ones_like(truth, dtype=torch.bool) if mask is None else mask
    for at in torch.arange(len(truth)).split(100):
        series = torch.zeros(len(at), dtype=torch.int64)
        scores.add(predicted[at, :, None], truth[at, :, None], mask[at, :, None], series)
    metrics, per_sample = scores.finish(torch.ones(1, 1).double())
    assert float(per_sample.mean()) == pytest.approx(metrics[metrics_of(levels)[0]], rel=1e-12)
    assert tuple(metrics) == metrics_of(levels)
    return metrics


def test_the_metrics_are_their_formulas():
    rng, levels = np.random.default_rng(0), (0.1, 0.5, 0.7)
    truth, mask = rng.normal(size=(250, 4)), rng.random((250, 4)) < 0.8
    forecast = np.sort(rng.normal(size=(250, 4, 3)), axis=-1)
    got = scored(*map(torch.from_numpy, (forecast, truth)), levels, torch.from_numpy(mask))  # type: ignore[arg-type]
    y, q = truth[mask], forecast[mask]
    rho = np.maximum(np.array(levels) * (y[:, None] - q), (np.array(levels) - 1) * (y[:, None] - q))
    assert got["pinball"] == pytest.approx(rho.mean())
    assert got["crps"] == pytest.approx(2 * (rho.mean(axis=0) * [0.3, 0.3, 0.4]).sum())
    assert got["coverage"] == pytest.approx(((q[:, 0] <= y) & (y <= q[:, 2])).mean())
    assert got["wql"] == pytest.approx(np.mean([2 * 2 * r.sum() / np.abs(2 * y + 3).sum() for r in rho.T]))
    assert got["mse"] == pytest.approx(((y - q[:, 1]) ** 2).mean())
    assert got["mae"] == got["mase"] == pytest.approx(np.abs(y - q[:, 1]).mean())


@pytest.mark.parametrize("y", [-2.5, -0.3, 0.0, 1.0, 3.0])
def test_the_crps_of_many_quantiles_is_that_of_the_distribution(y):
    """The closed form for a normal distribution (Gneiting and Raftery 2007, equation 21)."""
    mean, deviation = 0.4, 1.7
    z = (y - mean) / deviation
    density, below = math.exp(-z * z / 2) / math.sqrt(2 * math.pi), (1 + math.erf(z / math.sqrt(2))) / 2
    exact = deviation * (z * (2 * below - 1) + 2 * density - 1 / math.sqrt(math.pi))
    errors = []
    for count in (9, 99, 999):
        levels = tuple(i / (count + 1) for i in range(1, count + 1))
        quantiles = mean + deviation * torch.special.ndtri(torch.tensor(levels, dtype=torch.float64))
        found = scored(quantiles.expand(1, 1, -1), torch.full((1, 1), y).double(), levels)["crps"]
        errors.append(abs(found / exact - 1))
    assert errors[0] < 0.12
    assert errors[1] < 0.012
    assert errors[2] < 0.0012


def test_the_median_alone_is_scored_as_a_point():
    truth, forecast = torch.randn(30, 4).double(), torch.randn(30, 4, 1).double()
    got = scored(forecast, truth, (0.5,))
    assert "coverage" not in got
    assert got["crps"] == pytest.approx(got["mae"]) == pytest.approx(2 * got["pinball"])
    assert crps_weights(torch.tensor([0.5])).tolist() == [1.0]


@settings(max_examples=20, deadline=None)
@given(levels=LEVELS, seed=st.integers(0, 999))
def test_the_right_quantiles_cover_what_they_say_and_no_others_score_better(levels, seed):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(400, 10, generator=generator, dtype=torch.float64)
    right = torch.special.ndtri(torch.tensor(levels, dtype=torch.float64)).expand(400, 10, -1)
    got = scored(right, truth, levels)
    if len(levels) > 1:
        nominal = levels[-1] - levels[0]
        assert got["coverage"] == pytest.approx(nominal, abs=4 * math.sqrt(nominal * (1 - nominal) / 4000) + 1e-9)
        assert scored(right * 1.5, truth, levels)["coverage"] > got["coverage"]
    assert float(crps_weights(torch.tensor(levels)).sum()) == pytest.approx(1)
    for wrong in (right + 0.4, right - 0.4):
        assert scored(wrong, truth, levels)["pinball"] > got["pinball"]


# Heads


@settings(max_examples=60, deadline=None)
@given(levels=LEVELS, seed=st.integers(0, 999), size=st.sampled_from([0.0, 1e-6, 1.0, 1e3, 1e20]))
def test_quantiles_are_in_order_to_the_last_bit_in_every_unit(levels, seed, size):
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(6, 3, len(levels), generator=generator) * size
    order = QuantileOrder(levels)
    y = order(raw)
    assert torch.equal(y[..., order.median], raw[..., order.median])
    for units in (y, y * 0.37 + 1e6, y.double() * 12.5 - 3, (y * 1e-3 + 5).half()):
        assert bool((units[..., 1:] >= units[..., :-1]).all())


def test_a_head_that_says_nothing_says_a_normal_distribution():
    levels = (0.05, 0.3, 0.5, 0.9)
    got = QuantileOrder(levels)(torch.zeros(4)).double()
    expected = START * torch.special.ndtri(torch.tensor(levels, dtype=torch.float64))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_every_step_between_levels_can_learn():
    raw = torch.zeros(5, requires_grad=True)
    y = QuantileOrder((0.1, 0.2, 0.5, 0.8, 0.9))(raw)
    y[4].backward(retain_graph=True)
    assert [g > 0 for g in raw.grad.tolist()] == [False, False, True, True, True]  # type: ignore[union-attr]
    raw.grad = None
    y[0].backward()
    assert [g != 0 for g in raw.grad.tolist()] == [True, True, True, False, False]  # type: ignore[union-attr]


def test_the_generic_head_widens_where_the_window_is_restless():
    torch.manual_seed(0)
    spread = QuantileSpread(HORIZON, 1, (0.1, 0.5, 0.9))
    quiet, restless = torch.randn(64, LOOKBACK, 1) * 0.1, torch.randn(64, LOOKBACK, 1)
    forecast = torch.zeros(64, HORIZON, 1)
    optimizer = torch.optim.Adam(spread.parameters(), lr=0.05)
    levels = torch.tensor([0.1, 0.5, 0.9])
    for _ in range(200):
        loss = torch.stack(
            [
                pinball(size * torch.randn(64, HORIZON, 1, 1) - spread(forecast, x), levels).mean()
                for x, size in ((quiet, 0.1), (restless, 1.0))
            ]
        ).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    answers = [spread(forecast, x).detach() for x in (quiet, restless)]
    widths = [float((q[..., 2] - q[..., 0]).mean()) for q in answers]
    assert widths[0] == pytest.approx(0.1 * 2.563, rel=0.25)
    assert widths[1] == pytest.approx(2.563, rel=0.25)
    assert torch.equal(answers[0][..., 1], forecast)
    constant = spread(torch.zeros(1, HORIZON, 1), torch.ones(1, 1, 1))  # one step, no change: no trouble
    assert bool(constant.isfinite().all())


@pytest.mark.parametrize("name", ["dlinear", "timesnet", "gated_conv", "own"])
def test_every_kind_of_contestant_learns_its_quantiles(name, tmp_path):
    """On noise around a season the interval must come to cover what it says, and wrong units would show at once."""
    task = prepared()
    contestant = OWN if name == "own" else resolve(name)
    options = {"d_model": 4, "d_ff": 4, "e_layers": 1, "num_kernels": 1} if name == "timesnet" else {}
    torch.manual_seed(0)
    model = contestant.build(task.info, options)
    assert isinstance(model, Outlook)
    assert (model.spread is not None) == (name == "own")
    before = task.evaluate(model, "test").metrics
    train(model, Recipe(task), task, steps=150, lr=1e-2, seed=0, folder=tmp_path)
    after = task.evaluate(model, "test").metrics
    assert after["pinball"] < 0.8 * before["pinball"]
    assert 0.5 < after["coverage"] < 0.97


# Systems that do not learn


def test_a_baseline_has_the_quantiles_of_its_residuals_in_training(tmp_path):
    frame = table()
    frame.loc[40:60, "a"] = np.nan
    task = prepared("0.1,0.5,0.75", frame)
    model = resolve("seasonal_naive").build(task.info, {})
    assert isinstance(model.spread, ResidualQuantiles)
    zero = model(task.batch("train", torch.tensor([3]))["x"])
    assert bool((zero == zero[..., :1]).all())
    result = train(model, Recipe(task), task, steps=1, lr=1e-3, seed=0, folder=tmp_path)
    whole = task.batch("train", torch.arange(task.size("train")))
    last = whole["x"][:, LOOKBACK - 12 :][:, :HORIZON]
    residual = torch.where(whole["y_mask"], whole["y"] - last, torch.nan).numpy()
    expected = np.nanquantile(residual, [0.1, 0.5, 0.75], axis=0).transpose(1, 2, 0)
    np.testing.assert_allclose(model.spread.offsets, expected, rtol=1e-5, atol=1e-6)
    assert result.val["pinball"] == task.evaluate(model, "val").metrics["pinball"]
    assert sum(p.numel() for p in model.parameters()) == 0
    again = resolve("seasonal_naive").build(task.info, {})
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(whole["x"]), model(whole["x"]))


def test_residuals_come_from_training_rows_alone(tmp_path):
    frame = table()
    offsets = []
    for _ in range(2):
        task = prepared(frame=frame)
        model = resolve("seasonal_naive").build(task.info, {})
        task.after_fit(model)
        offsets.append(model.spread.offsets)
        frame = frame.copy()
        frame.loc[int(300 * 0.7) :, ["a", "b"]] *= -3
    assert torch.equal(*offsets)


# The task


def test_without_quantiles_nothing_is_other_than_it_was():
    task = prepared(None)
    assert type(resolve("dlinear").build(task.info, {})) is DLinear
    assert type(OWN.build(task.info, {})) is Own
    assert task.spec == ForecastTask.spec
    assert task.spec.metrics == ("mse", "mae", "mase")
    assert set(task.describe()) & {"quantiles", "nominal_coverage", "known", "static"} == set()
    assert set(task.batch("val", torch.tensor([0]))) == {"x", "x_marks", "y", "y_mask"}
    packaged = task.package(DLinear.for_task(task.info))
    assert {k for k in packaged.state_dict() if not k.startswith("model.")} == {"mean", "scale"}


def test_the_deciding_metric_and_the_loss_are_the_pinball_loss():
    frame = table()
    frame.loc[frame.index[::7], "b"] = np.nan
    task = prepared((0.1, 0.5, 0.9), frame, target="b")
    assert task.spec.metrics == ("pinball", "crps", "coverage", "wql", "mse", "mae", "mase")
    assert ForecastTask.spec.metrics[0] == "mse", "the class's own is as it was"
    assert task.describe()["nominal_coverage"] == 0.8
    torch.manual_seed(0)
    model = OWN.build(task.info, {})
    batch = task.batch("val", torch.arange(task.size("val")))
    mask = batch["y_mask"][..., 1]
    error = (batch["y"][..., None] - model(batch["x"]))[:, :, 1][mask]
    expected = pinball(error, torch.tensor([0.1, 0.5, 0.9])).mean().detach()
    torch.testing.assert_close(task.loss(model, batch).detach(), expected)
    result = task.evaluate(model, "val")
    assert result.metrics["pinball"] == pytest.approx(float(expected), rel=1e-5)
    assert float(result.per_sample.mean()) == pytest.approx(result.metrics["pinball"], rel=1e-12)
    (target,) = result.examples["windows"][0]["targets"]
    (band,) = target["bands"]
    assert band["levels"] == [0.1, 0.9]
    assert all(low <= p <= high for low, p, high in zip(band["low"], target["prediction"], band["high"], strict=True))
    json.dumps(result.examples, allow_nan=False)


def test_a_model_that_answers_one_number_is_refused():
    task = prepared()
    with pytest.raises(InvalidValue, match=r"Own returned .*\(batch, horizon, channels, levels\) = \(2, 5, 2, 3\)"):
        task.apply(Own(LOOKBACK, HORIZON), task.batch("val", torch.arange(2)))


def test_saved_and_loaded_it_asks_for_the_same(tmp_path):
    task = prepared()
    task.save(tmp_path)
    again = ForecastTask.load(tmp_path)
    assert again.info == task.info
    assert again.spec == task.spec
    model = OWN.build(task.info, {})
    assert again.evaluate(model, "test").metrics == task.evaluate(model, "test").metrics


@pytest.mark.parametrize("name", ["dlinear", "timesnet", "gated_conv", "own", "seasonal_naive"])
def test_predictions_name_target_and_level_and_survive_saving(name, tmp_path):
    from foveate.checkpoint import load, save

    task = prepared("0.1,0.25,0.9", target="b")
    contestant = OWN if name == "own" else resolve(name)
    torch.manual_seed(0)
    forecaster = task.package(contestant.build(task.info, {})).eval()
    got = predict(forecaster, table())
    assert list(got.columns) == ["date", *(f"b_q{level}" for level in ("0.1", "0.25", "0.5", "0.9"))]
    values = got.iloc[:, 1:].to_numpy()
    assert (np.diff(values, axis=1) >= 0).all()
    assert np.abs(values).max() < 500, "in the user's units"
    config = {"task": "forecast", "system": contestant.name, "options": {}, "package": forecaster.config}
    save(Path(tmp_path), forecaster, config)
    again = load(tmp_path, system=Own if name == "own" else None)
    pd.testing.assert_frame_equal(predict(again, table()), got)


def test_the_packaged_forecast_compiles_and_exports():
    task = prepared()
    forecaster = task.package(resolve("dlinear").build(task.info, {})).eval()
    x, marks = torch.randn(2, LOOKBACK, 2) + 5, torch.randn(2, LOOKBACK, 4)
    expected = forecaster(x, marks)
    assert expected.shape == (2, HORIZON, 2, 3)
    torch.testing.assert_close(torch.compile(forecaster, backend="aot_eager", fullgraph=True)(x, marks), expected)
    torch.testing.assert_close(torch.export.export(forecaster, (x, marks)).module()(x, marks), expected)
