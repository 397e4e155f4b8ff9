"""Claims of TSM2, the series model of MambaMixer (arXiv 2403.19888, section 3.4)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.series.dlinear import DLinear
from ..models.series.tsm2 import TSM2
from . import Measurement, claim
from ._series import Windows, data_file, etth1, not_measured

ETTH1 = ("etth1/ETTh1.csv", "the ETTh1 series (github.com/zhouhaoyi/ETDataset)")
#: The paper's ablation: two linear layers in place of the selective channel mixer, or none, and no averages.
MLP: dict[str, Any] = {"channel_mixer": "mlp", "averaging": False, "residual": True}
TOKENS: dict[str, Any] = {"channel_mixer": "none", "averaging": False, "residual": True}


def _small(**options: Any) -> TSM2:
    """5 variates, 9 patches of a window of 40 steps, weights away from where they start, float64."""
    torch.manual_seed(0)
    model = TSM2(5, 40, 6, **{"patch_len": 8, "stride": 4, "d_model": 8, **options}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@claim(
    "tsm2",
    kind="exact",
    says="Time is mixed causally: nothing before a patch, in any variate, changes with that patch or later ones.",
)
def time_is_causal() -> Measurement:
    """Behind the embedding and before the head, each patch in turn. Seen failing (0.5) with both directions of time."""
    model, worst, reached = _small(), 0.0, 0
    patches = torch.randn(3, 5, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        before = model.mix(patches)
        for patch in range(1, 9):
            other = patches.clone()
            other[:, :, patch:] = torch.randn_like(other[:, :, patch:])
            after = model.mix(other)
            worst = max(worst, float((after - before)[:, :, :patch].abs().max()))
            reached += bool(((after - before)[:, :, patch:] != 0).all())
    passed = worst == 0 and reached == 8
    detail = f"largest change before a replaced patch (none allowed); {reached} of 8 patches changed all that follows"
    return Measurement(worst, 0.0, passed, detail)


@claim(
    "tsm2",
    kind="exact",
    says="Variates are mixed in both directions: the forecast of every variate depends on every other one.",
)
def every_variate_sees_every_other() -> Measurement:
    """Each variate's window replaced in turn. Seen failing (15 of 25) with the backward scan left out."""
    model, changed = _small(layers=1), 0
    x = torch.randn(2, 40, 5, dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        for variate in range(5):
            other = x.clone()
            other[..., variate] = torch.randn(2, 40, dtype=torch.float64)
            changed += int(((model(other) - before) != 0).all(1).all(0).sum())
    return Measurement.at_least(changed, 25, "pairs of variates of which one changes the other's forecast; all of 25")


@claim(
    "tsm2",
    kind="exact",
    says="Forecasts follow the scale and shift of every variate: f(a x + b) = a f(x) + b for a > 0.",
)
def forecasts_follow_scale_and_shift() -> Measurement:
    """Scales 1 to 100. Seen failing with the mean left out at the end (error 90)."""
    model = _small()
    x = torch.randn(4, 40, 5, dtype=torch.float64)
    scale, shift = 10 ** (2 * torch.rand(4, 1, 5).double()), 100 * torch.randn(4, 1, 5).double()
    with torch.no_grad():
        error = (model(scale * x + shift) - (scale * model(x) + shift)) / scale
    return Measurement.at_most(error.abs().max(), 1e-4, "largest difference, in units of the scale; at most")


def _followers(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Windows ``(count, 32, 8)`` and what follows ``(count, 8, 8)``.

    Some variates, others in each window, are waves; the rest is noise. Every variate goes on with the last 8 steps of
    the wave nearest to it among itself and those before it (the first is always one).
    """
    period = 8 + 16 * torch.rand(count, 8, 1, generator=generator)
    phase = 2 * math.pi * torch.rand(count, 8, 1, generator=generator)
    waves = math.sqrt(2) * torch.sin(2 * math.pi * torch.arange(32) / period + phase)
    is_wave = torch.rand(count, 8, 1, generator=generator) < 0.4
    is_wave[:, 0] = True
    x = torch.where(is_wave, waves, torch.randn(count, 8, 32, generator=generator))
    source = torch.where(is_wave, torch.arange(8)[:, None], 0).cummax(1).values
    y = x[..., -8:].gather(1, source.expand(-1, -1, 8))
    return x.transpose(1, 2), y.transpose(1, 2)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    F.mse_loss(model(x), y).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def _following_error(seed: int, options: dict[str, Any]) -> float:
    """Error on 1,000 new windows after 200 steps."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = TSM2(8, 32, 8, patch_len=8, stride=8, d_model=16, use_revin=False, dropout=0.0, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=200, pct_start=0.1)
    for _ in range(200):
        _step(model, optimizer, *_followers(32, generator))
        schedule.step()
    x, y = _followers(1000, torch.Generator().manual_seed(99))
    with torch.no_grad():
        return float(F.mse_loss(model.eval()(x), y))


@claim(
    "tsm2",
    kind="learned",
    says="Dual selection: where each window has other variates that matter, TSM2 has at most half the error of the "
    "same network with an MLP along the variates, or with the variates apart.",
)
def selects_variates() -> Measurement:
    """Worst of three seeds, 200 steps each. Seen failing (1.0) with the MLP on both sides.

    Pilots: 0.027, 0.024 and 0.021 with the seeds 0, 1 and 2, the MLP 0.157, 0.122 and 0.156, apart 0.53. The MLP is
    three times as quick: after 600 steps it has 0.027 too.
    """
    ratios = []
    for seed in range(3):
        ours = _following_error(seed, {})
        ratios.append(ours / min(_following_error(seed, MLP), _following_error(seed, TOKENS)))
    return Measurement.at_most(max(ratios), 0.5, "error over the smaller one of the two others, worst seed; at most")


def _test_error(model: nn.Module, windows: Windows) -> float:
    total = 0.0
    model.eval()
    with torch.no_grad():
        for index in torch.arange(len(windows)).split(128):
            x = windows.batch(index)[0]
            total += float((model(x[:, :96]) - x[:, 96:]).square().mean((1, 2)).sum())
    model.train()
    return total / len(windows)


def _trained_on(train: Windows, model: nn.Module, steps: int, lr: float) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        x = train.batch(torch.randint(len(train), (32,)))[0]
        _step(model, optimizer, x[:, :96], x[:, 96:])
        schedule.step()
    return model


@claim(
    "tsm2",
    kind="learned",
    says="Long-term forecasting: ETTh1, 96 hours ahead from 96, test MSE within 5 % of DLinear's and below that of "
    "repeating the last value (the paper, from a longer window: 0.375).",
)
def forecasts_etth1() -> Measurement:
    """300 steps; pilots 0.387 and 0.388 (seeds 0 and 1), DLinear 0.382. Seen failing without residuals (1.08)."""
    file = data_file(ETTH1[0])
    if file is None:
        return not_measured(1.05, *ETTH1)
    train, _, test = etth1(file, 96, 96)
    torch.manual_seed(0)
    ours = _test_error(_trained_on(train, TSM2(7, 96, 96), 300, 1e-3), test)
    torch.manual_seed(0)
    linear = _test_error(_trained_on(train, DLinear(96, 96, 7), 2500, 5e-3), test)
    repeated = _test_error(_LastValue(), test)
    detail = f"test MSE {ours:.3f} over DLinear's {linear:.3f} (at most); the last value has {repeated:.3f}"
    return Measurement(ours / linear, 1.05, ours <= 1.05 * linear and ours < repeated, detail)


class _LastValue(nn.Module):
    """Repeats the last value 96 times."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1:].expand(-1, 96, -1)
