"""Theta: the library's own answer, in any batch; what it refuses; and what it may take of a time budget."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from statsmodels.tsa.forecasting.theta import ThetaModel

from foveate.compare.contestants import untrained_share
from foveate.compare.settings import Settings
from foveate.compare.timing import trial_seconds
from foveate.errors import FoveateError, InvalidValue, MissingExtra
from foveate.models.build import resolve
from foveate.models.series.theta import Theta
from foveate.registry import find
from foveate.tasks.fit import ScoredInTime
from foveate.tasks.forecast_m4.task import ForecastM4Task

INFO = SimpleNamespace(task="forecast", lookback=48, horizon=30, channels=3, targets=(0,), season=12, freq="h", marks=4)


def waves(batch: int = 2, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """``(batch, 48, 3)``: a season of 12 in the first variable, a walk in the second, noise in the third."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 48, 3, generator=generator, dtype=torch.float64)
    season = 5 * (torch.arange(48) * (2 * torch.pi / 12)).sin()
    return torch.stack([x[..., 0] + season, x[..., 1].cumsum(1), x[..., 2]], 2).to(dtype)


def test_it_is_the_librarys_own_answer_for_every_window_and_variable():
    x = waves()
    y = Theta(48, 30, 3, season=12)(x)
    for b in range(2):
        for c in range(3):
            library = ThetaModel(x[b, :, c].numpy(), period=12, method="additive").fit().forecast(30)
            np.testing.assert_array_equal(y[b, :, c].numpy(), library.to_numpy())
    # where the library says that there is no season, none is added
    assert not ThetaModel(x[0, :, 2].numpy(), period=12).fit().model._has_seasonality
    assert float(y[0, :, 2].diff().diff().abs().max()) < 1e-9


def test_float32_is_computed_in_double_precision():
    x = waves(dtype=torch.float32)
    y = Theta(48, 5, 3, season=12)(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, Theta(48, 5, 3, season=12)(x.double()).float())


def test_a_season_is_recovered_under_noise():
    x = waves(32)
    truth = 5 * (torch.arange(48, 78) * (2 * torch.pi / 12)).sin()
    error = (Theta(48, 30, 3, season=12)(x)[..., 0] - truth).abs().mean()
    repeated = (x[:, 36:, 0].repeat(1, 3)[:, :30] - truth).abs().mean()
    assert error < 0.75 * repeated


def test_two_seasons_are_needed():
    x = torch.tensor([1.0, *[0.0] * 10]).repeat(2)[None, :20, None]
    assert torch.equal(Theta(20, 6, 1, season=11)(x), Theta(20, 6, 1)(x))
    assert Theta(22, 6, 1, season=11).season == 11


@pytest.mark.parametrize("value", [0.0, -3.5, 1e12])
def test_a_constant_is_continued(value):
    assert torch.equal(Theta(24, 4, 1, 6)(torch.full((1, 24, 1), value)), torch.full((1, 4, 1), value))


def test_extreme_windows_stay_finite():
    x = torch.zeros(5, 48, 1)
    x[0, 20], x[1, -1], x[2, 0] = 1, 1, 1
    x[3, :, 0], x[4, :, 0] = torch.arange(48.0), torch.arange(48) % 12
    for season in (1, 12):
        assert Theta(48, 12, 1, season)(x).isfinite().all()
        assert Theta(48, 12, 1, season)(1e-9 * x).isfinite().all()


def test_no_gradient_passes_and_the_input_stays():
    x = waves().requires_grad_()
    before = x.detach().clone()
    assert not Theta(48, 3, 3)(x).requires_grad
    assert torch.equal(x, before)


def test_for_task_and_save(tmp_path):
    model = Theta.for_task(INFO)
    assert model(waves(), marks=torch.rand(2, 48, 4)).shape == (2, 30, 3)
    assert Theta.for_task(INFO, season=4).season == 4
    model.save_pretrained(tmp_path)
    assert torch.equal(Theta.from_pretrained(tmp_path)(waves()), model(waves()))
    spec = find("theta", "model").spec
    assert spec.baseline
    assert not spec.trains


def test_the_library_is_imported_when_it_is_used():
    code = "import foveate.models.series.theta, sys; assert not {'statsmodels', 'scipy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "statsmodels.tsa.forecasting.theta", None)
    with pytest.raises(MissingExtra) as found:
        resolve("theta").build(INFO, {})
    assert str(found.value) == "theta needs statsmodels: install it with pip install 'foveate[series]'."


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Theta(0, 1, 1), "seq_len=0 is not possible: it must be at least 1."),
        (lambda: Theta(8, 1, 1, season=0), "season=0 is not possible: it must be at least 1."),
        (lambda: Theta(8, 2, 3)(torch.zeros(1, 8, 2)), "Theta: x has shape (1, 8, 2); it must be (batch, 8, 3)."),
        (lambda: Theta(8, 2, 3)(torch.zeros(1, 8, 3).int()), "Theta: x must be floating point, not torch.int32."),
    ],
)
def test_refusals(build, says):
    with pytest.raises(FoveateError) as found:
        build()
    assert str(found.value) == says


# A time budget


def test_it_is_given_a_whole_share_of_a_time_budget():
    theta, naive = resolve("theta"), resolve("seasonal_naive")
    assert (untrained_share(theta), untrained_share(naive)) == (1.0, 0.1)
    settings = Settings(task="forecast", budget=100.0, workers=1, seeds=1)
    alone, both = trial_seconds(settings, [naive], 0.0), trial_seconds(settings, [naive, theta], 0.0)
    assert both < alone / 8


def test_a_budget_in_which_it_cannot_be_scored_is_refused():
    task = ForecastM4Task.prepare()
    recipe, model = ScoredInTime(task), Theta.for_task(task.info)
    recipe.fit(model, None)
    recipe.fit(model, 600.0)
    with pytest.raises(
        InvalidValue, match=r"Theta needs about \d+ seconds for 72 windows and was given 0: take a larger"
    ):
        recipe.fit(model, 0.001)
