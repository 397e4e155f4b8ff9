"""DLinear and the naive baselines against hand computations, and what they refuse."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from foveate.errors import FoveateError, InvalidType, InvalidValue
from foveate.models.official import load_official
from foveate.models.series.dlinear import DLinear, moving_average
from foveate.models.series.seasonal_naive import LastValue, SeasonalNaive
from foveate.registry import find

INFO = SimpleNamespace(task="forecast", lookback=48, horizon=30, channels=3, targets=(0,), season=24, freq="h", marks=4)
MODELS = (DLinear, SeasonalNaive, LastValue)


# DLinear


def test_moving_average_by_hand():
    x = torch.tensor([1.0, 2.0, 6.0, 3.0])[None, :, None]
    torch.testing.assert_close(moving_average(x, 3)[0, :, 0], torch.tensor([4.0, 9.0, 11.0, 12.0]) / 3)
    torch.testing.assert_close(moving_average(x, 1), x)
    # a width far beyond the window: the repeated ends dominate
    torch.testing.assert_close(moving_average(x, 9)[0, 0, 0], torch.tensor((5 * 1 + 2 + 6 + 3 + 3) / 9))


def test_one_step_by_hand():
    model = DLinear(3, 1, 1, moving_avg=3)
    with torch.no_grad():
        model.seasonal.weight[:] = torch.tensor([[1.0, 0.0, 2.0]])
        model.trend.weight[:] = torch.tensor([[0.0, 3.0, 0.0]])
        model.seasonal.bias[:] = 0.5
        model.trend.bias[:] = 0.25
    x = torch.tensor([3.0, 3.0, 9.0])[None, :, None]  # averages 3, 5, 7; rests 0, -2, 2
    assert model(x).item() == pytest.approx(0 * 1 + 2 * 2 + 0.5 + 3 * 5 + 0.25)


def test_it_starts_at_the_mean_of_the_window():
    model, x = DLinear(48, 6, 3), torch.randn(4, 48, 3)
    bias = (model.seasonal.bias + model.trend.bias)[:, None]
    # both maps average, and season and trend sum to the window: their averages sum to its mean
    torch.testing.assert_close(model(x) - bias, x.mean(1, keepdim=True).expand(4, 6, 3))
    assert model.seasonal.bias.abs().max() <= 48**-0.5


def test_individual_maps_equal_one_model_for_each_variable():
    torch.manual_seed(0)
    together, x = DLinear(20, 7, 3, individual=True, moving_avg=5), torch.randn(4, 20, 3)
    torch.nn.init.normal_(together.seasonal.weight)
    torch.nn.init.normal_(together.trend.weight)
    for c in range(3):
        alone = DLinear(20, 7, 1, moving_avg=5)
        alone.load_state_dict({key: value[c] for key, value in together.state_dict().items()})
        torch.testing.assert_close(alone(x[..., c : c + 1]), together(x)[..., c : c + 1])


@pytest.mark.parametrize("individual", [False, True])
def test_official_weights_load(individual):
    torch.manual_seed(0)
    names = [
        f"Linear_{part}.{i}." if individual else f"Linear_{part}." for part in ("Seasonal", "Trend") for i in range(3)
    ]
    state = {}
    for name in dict.fromkeys(names):
        state |= {name + "weight": torch.randn(5, 8), name + "bias": torch.randn(5)}
    state["Linear_Decoder.0.weight" if individual else "Linear_Decoder.weight"] = torch.randn(5, 8)
    model, x = DLinear(8, 5, 3, individual=individual, moving_avg=3), torch.randn(2, 8, 3)
    load_official(model, state)
    trend = moving_average(x, 3)
    for c in range(3):
        s, t = (f"Linear_Seasonal.{c}.", f"Linear_Trend.{c}.") if individual else ("Linear_Seasonal.", "Linear_Trend.")
        want = (x - trend)[..., c] @ state[s + "weight"].T + state[s + "bias"]
        want = want + trend[..., c] @ state[t + "weight"].T + state[t + "bias"]
        torch.testing.assert_close(model(x)[..., c], want)
    with pytest.raises(InvalidValue, match="left over Linear_Decoder"):
        load_official(model, state, "Time-Series-Library")


# Naive baselines


@pytest.mark.parametrize(("season", "pred_len"), [(24, 30), (24, 24), (24, 5), (7, 30), (1, 4)])
def test_seasonal_naive_repeats_the_last_season(season, pred_len):
    x = torch.randn(2, 48, 3)
    y = SeasonalNaive(48, pred_len, 3, season)(x)
    assert y.shape == (2, pred_len, 3)
    for h in range(pred_len):
        assert torch.equal(y[:, h], x[:, 48 - season + h % season])


def test_a_window_shorter_than_the_season_is_repeated_whole():
    x = torch.randn(2, 10, 1)
    assert torch.equal(SeasonalNaive(10, 15, 1, season=24)(x), torch.cat([x, x[:, :5]], 1))


def test_last_value():
    x = torch.randn(2, 10, 3)
    assert torch.equal(LastValue(10, 4, 3)(x), x[:, -1:].expand(2, 4, 3))


def test_baselines_are_marked_as_such():
    for name in ("seasonal_naive", "last_value"):
        spec = find(name, "model").spec
        assert spec.baseline
        assert not spec.trains
    assert not find("dlinear", "model").spec.baseline


# What all share


@pytest.mark.parametrize("cls", MODELS)
def test_for_task_and_save(cls, tmp_path):
    model, x, marks = cls.for_task(INFO).eval(), torch.randn(2, 48, 3), torch.rand(2, 48, 4)
    assert model(x, marks=marks).shape == (2, 30, 3)
    assert torch.equal(model(x, marks=marks), model(x))
    model.save_pretrained(tmp_path)
    assert torch.equal(cls.from_pretrained(tmp_path)(x), model(x))


@pytest.mark.parametrize("cls", MODELS)
def test_compile_and_export(cls):
    model, x = cls.for_task(INFO).eval(), torch.randn(2, 48, 3)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


def test_options_reach_the_model():
    assert DLinear.for_task(INFO, individual=True).trend.weight.shape == (3, 30, 48)
    assert SeasonalNaive.for_task(INFO, season=6).season == 6


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: DLinear(0, 1, 1), "seq_len=0 is not possible: it must be at least 1."),
        (
            lambda: DLinear(8, 1, 1, moving_avg=24),
            "moving_avg=24 is not possible: a centred average needs an odd width of at least 1.",
        ),
        (lambda: SeasonalNaive(8, 1, 1, season=0), "season=0 is not possible: it must be at least 1."),
        (lambda: DLinear(8, 2, 3)(torch.zeros(1, 8, 2)), "DLinear: x has shape (1, 8, 2); it must be (batch, 8, 3)."),
        (lambda: LastValue(8, 2, 3)(torch.zeros(8, 3)), "LastValue: x has shape (8, 3); it must be (batch, 8, 3)."),
        (
            lambda: SeasonalNaive(8, 2, 3)(torch.zeros(1, 8, 3).int()),
            "SeasonalNaive: x must be floating point, not torch.int32.",
        ),
    ],
)
def test_refusals(build, says):
    with pytest.raises(FoveateError) as found:
        build()
    assert str(found.value) == says


@pytest.mark.parametrize(
    ("cls", "name"), [(DLinear, "dlinear"), (SeasonalNaive, "seasonal_naive"), (LastValue, "last_value")]
)
def test_unknown_options_are_refused_by_name(cls, name):
    with pytest.raises(InvalidType, match=f"'{name}' has no option 'depth': its options are seq_len, pred_len, enc_in"):
        cls.for_task(INFO, depth=3)
