"""TSM2: sizes, tasks, patches, covariates, time and variates, and what it refuses."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from foveate.errors import FoveateError, InvalidType, InvalidValue, UnknownName
from foveate.mixers.weighted_average import WeightedAverage
from foveate.models.series.tsm2 import TASKS, TSM2, Patches

SMALL = {"patch_len": 8, "stride": 4, "d_model": 8, "d_state": 4}


def small(task: str = "forecast", **options: object) -> TSM2:
    torch.manual_seed(1)
    needed = {"forecast": {"horizon": 6}, "classify-series": {"num_class": 3}}.get(task, {})
    settings = {"num_variates": 4, "lookback": 24, "task": task, **SMALL, **needed, **options}
    return TSM2(**settings).eval()  # type: ignore[arg-type]


def series(batch: int = 2, steps: int = 24, seed: int = 2) -> Tensor:
    return torch.randn(batch, steps, 4, generator=torch.Generator().manual_seed(seed))


# Sizes and parts


def test_parameters_do_not_grow_with_variates_but_for_their_names():
    counts = [sum(p.numel() for p in TSM2(variates, 96, 96).parameters()) for variates in (1, 7, 321)]
    assert counts[1] - counts[0] == 6 * 32
    assert counts[2] - counts[0] == 320 * 32


def test_averages_are_in_the_network():
    averages = [m for m in small(layers=3).modules() if isinstance(m, WeightedAverage)]
    assert [sum(p.numel() for p in m.parameters()) for m in averages] == [27]
    assert not any(isinstance(m, WeightedAverage) for m in small(averaging=False).modules())


@pytest.mark.parametrize(("steps", "length", "stride"), [(24, 8, 4), (25, 8, 4), (8, 8, 8), (17, 16, 8), (9, 2, 5)])
def test_patches_end_with_the_series_and_miss_no_step(steps: int, length: int, stride: int):
    cut, x = Patches(steps, length, stride), torch.arange(1.0, steps + 1).expand(2, 3, -1)
    y = cut(x)
    assert y.shape == (2, 3, cut.count, length)
    assert (y[..., -1, :] == torch.arange(steps - length + 1.0, steps + 1)).all()
    if stride <= length:
        assert set(y.flatten().tolist()) == set(range(1, steps + 1))
    assert (y[0, 0].diff(dim=0) <= stride).all()


def test_gradients_of_the_whole_model():
    model = small(d_model=4, d_state=2, layers=1, lookback=12, horizon=2, num_variates=2).double()
    x = torch.randn(2, 12, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (x,), fast_mode=True)


# Tasks


def test_shapes():
    x, marks = series(3), torch.rand(3, 24, 4)
    assert small()(x, marks).shape == (3, 6, 4)
    assert small("impute")(x, marks, torch.rand(3, 24, 4) > 0.3).shape == (3, 24, 4)
    assert small("classify-series")(x, mask=torch.rand(3, 24) > 0.3).shape == (3, 3)
    assert small("detect-anomalies")(x).shape == (3, 24, 4)


@pytest.mark.parametrize("channel_mixer", ["selective", "mlp", "none"])
@pytest.mark.parametrize("averaging", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_every_form_forecasts(channel_mixer: str, averaging: bool, residual: bool):
    model, x = small(channel_mixer=channel_mixer, averaging=averaging, residual=residual), series()
    y = model(x)
    assert y.shape == (2, 6, 4)
    other = x.clone()
    other[..., 2] += torch.randn(2, 24)
    changed = ((model(other) - y) != 0).any(1).any(0)
    assert changed.tolist() == [channel_mixer != "none"] * 2 + [True] + [channel_mixer != "none"]


@pytest.mark.parametrize("task", ["forecast", "impute", "detect-anomalies"])
def test_answers_follow_scale_and_shift(task: str):
    model, x = small(task).double(), series().double()
    mask = {"mask": torch.rand(2, 24, 4) > 0.3} if task == "impute" else {}
    expected = 5 * model(x, **mask) + 30
    torch.testing.assert_close(model(5 * x + 30, **mask), expected, rtol=1e-4, atol=1e-4)
    plain = small(task, use_revin=False).double()
    assert not torch.allclose(plain(5 * x + 30, **mask), 5 * plain(x, **mask) + 30, rtol=0.1)


def test_constant_windows_are_forecast_as_finite_values():
    y = small()(torch.full((2, 24, 4), 3.0))
    assert y.isfinite().all()
    assert (y - 3).abs().max() < 0.1


def test_what_is_masked_has_no_influence_on_imputation():
    model, x = small("impute"), series()
    mask = torch.rand(2, 24, 4) > 0.3
    mask[0, :, 1] = False  # nothing is known of a variate
    clean = model(x.masked_fill(~mask, 0), mask=mask)
    assert clean.isfinite().all()
    assert torch.equal(model(x, mask=mask), clean)
    assert torch.equal(model(x.masked_fill(~mask, math.nan), mask=mask), clean)
    assert not torch.allclose(model(x, mask=torch.ones_like(mask)), clean)
    torch.testing.assert_close(model(x, mask=torch.ones_like(mask)), model(x))


def test_padded_steps_do_not_reach_the_classifier():
    model, x = small("classify-series"), series()
    torch.testing.assert_close(model(x, mask=torch.ones(2, 24, dtype=torch.bool)), model(x))
    mask = torch.arange(24).expand(2, -1) < 11
    other = torch.where(mask[..., None], x, 100.0)
    assert torch.equal(model(other, mask=mask), model(x, mask=mask))
    longer = torch.arange(24).expand(2, -1) < 20
    assert not torch.allclose(model(x, mask=longer), model(x, mask=mask))
    assert torch.allclose(model(x, mask=torch.zeros_like(mask)), model.head.bias.expand(2, 3))


# Covariates


def test_covariates_stand_behind_the_series():
    model, x = small(static_dim=3, future_dim=2), series()
    known, static = torch.randn(2, 30, 4, 2), torch.randn(2, 4, 3)
    assert model.patches.count == Patches(72, 8, 4).count
    y = model(x, known=known, static=static)
    assert y.shape == (2, 6, 4)
    for changed in ({"known": known + 1, "static": static}, {"known": known, "static": static + 1}):
        assert ((model(x, **changed) - y).abs().amax((1, 2)) > 0).all()


def test_known_variables_of_a_variate_reach_the_others():
    model, x, known = small(future_dim=2, future_steps=6, channel_mixer="none"), series(), torch.randn(2, 6, 4, 2)
    other = known.clone()
    other[:, :, 1] += 1
    assert (model(x, known=other) != model(x, known=known)).any(1).all()


def test_shared_covariates_are_those_of_every_variate():
    model, x = small(static_dim=3, future_dim=2), series()
    known, static = torch.randn(2, 30, 2), torch.randn(2, 3)
    spread = {"known": known[:, :, None].expand(-1, -1, 4, -1), "static": static[:, None].expand(-1, 4, -1)}
    assert torch.equal(model(x, known=known, static=static), model(x, **spread))


# Building for a task


def test_for_task_tells_covariates_and_answers_quantiles():
    levels = (0.1, 0.5, 0.9)
    info = SimpleNamespace(task="forecast", lookback=24, horizon=6, channels=4, known=2, static=3, quantiles=levels)
    model, x = TSM2.for_task(info, **SMALL).eval(), series()
    told = {"known": torch.randn(2, 30, 2), "static": torch.randn(2, 3)}
    y = model(x, **told)
    assert y.shape == (2, 6, 4, 3)
    assert (y.diff(dim=-1) > 0).all()
    torch.testing.assert_close(model(100 * x + 7, **told), 100 * y + 7, rtol=1e-3, atol=1e-2)


def test_for_task_takes_what_the_data_says():
    info = SimpleNamespace(task="forecast", lookback=10, horizon=3, channels=2)
    model = TSM2.for_task(info)
    assert model(torch.randn(2, 10, 2)).shape == (2, 3, 2)
    assert model.patches.length == 10
    info = SimpleNamespace(task="classify-series", lookback=40, channels=2, classes=5)
    assert TSM2.for_task(info, d_model=8)(torch.randn(2, 40, 2)).shape == (2, 5)
    with pytest.raises(InvalidType, match="'tsm2' has no option 'patch'"):
        TSM2.for_task(info, patch=3)


# Refusals


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"patch_len": 25}, InvalidValue, "patch_len=25 .*lookback's 24 steps"),
        ({"stride": 0}, InvalidValue, "stride=0 .*positive whole number"),
        ({"num_variates": -1}, InvalidValue, "num_variates=-1"),
        ({"layers": 1.5}, InvalidValue, r"layers=1\.5"),
        ({"static_dim": 0}, InvalidValue, "static_dim=0"),
        ({"horizon": 0}, InvalidValue, "horizon=0 .*at least 1 step"),
        ({"num_class": 3}, InvalidValue, "num_class=3 .*has no classes"),
        ({"future_steps": 4}, InvalidValue, "future_steps=4 .*without future_dim"),
        ({"task": "impute", "horizon": 4}, InvalidValue, "horizon=4 .*forecasts nothing"),
        ({"task": "impute", "static_dim": 2}, InvalidValue, "static_dim=2 .*has no covariates"),
        ({"task": "impute", "quantiles": (0.5,)}, InvalidValue, r"quantiles=\(0\.5,\) .*forecasts nothing"),
        ({"quantiles": (0.9, 0.5)}, InvalidValue, "quantiles=.*must rise"),
        ({"task": "classify-series", "num_class": 1}, InvalidValue, "num_class=1 .*at least 2"),
        ({"task": "forcast"}, UnknownName, "unknown task 'forcast'.*'forecast'"),
        ({"channel_mixer": "select"}, UnknownName, "unknown channel mixer 'select'.*'selective'"),
    ],
)
def test_refuses_illegal_options(options: dict[str, object], error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        small(**options)  # type: ignore[arg-type]


def test_tasks_are_all_buildable():
    assert {task for task in TASKS if small(task) is not None} == set(TASKS)


@pytest.mark.parametrize(
    ("task", "options", "given", "error", "says"),
    [
        ("forecast", {}, {"mask": torch.ones(2, 24, 4) > 0}, InvalidValue, "task='forecast' takes no mask"),
        ("detect-anomalies", {}, {"mask": torch.ones(2, 24, 4) > 0}, InvalidValue, "takes no mask"),
        ("impute", {}, {"mask": torch.ones(2, 24, 4)}, InvalidType, r"bool .*not torch\.float32"),
        ("impute", {}, {"mask": torch.ones(2, 24) > 0}, InvalidValue, r"shape \(2, 24\); it must be \(2, 24, 4\)"),
        ("classify-series", {}, {"mask": torch.ones(2, 24, 4) > 0}, InvalidValue, r"it must be \(2, 24\)"),
        ("forecast", {}, {"known": torch.ones(2, 30, 1)}, InvalidValue, "without future_dim"),
        ("forecast", {}, {"static": torch.ones(2, 1)}, InvalidValue, "without static_dim"),
        ("forecast", {"future_dim": 2}, {}, InvalidValue, r"known must be \(2, 30, 4, 2\) .*none came"),
        ("forecast", {"static_dim": 2}, {"static": torch.ones(2, 3)}, InvalidValue, r"\(2, 2\); not \(2, 3\)"),
    ],
)
def test_refuses_inputs_that_do_not_fit(task: str, options: dict, given: dict, error: type[FoveateError], says: str):
    with pytest.raises(error, match=says):
        small(task, **options)(series(), **given)


def test_refuses_another_length_or_number_of_variates():
    with pytest.raises(InvalidValue, match=r"TSM2: x has shape \(2, 23, 4\); it must be \(batch, 24, 4\)"):
        small()(series()[:, 1:])
    with pytest.raises(InvalidType, match="floating point"):
        small()(series().long())
