"""Claims of TimesNet (arXiv:2210.02186): periods, 2D maps, shared parameters, and one backbone for every task."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from ..models.series.periods import fft_periods
from ..models.series.timesnet import PUBLISHED, TimesBlock, TimesNet
from ..tasks.detect_anomalies.scores import point_adjusted, precision_recall_f1
from . import Measurement, claim
from ._series import data_file, etth1, not_measured

ETTH1 = ("etth1/ETTh1.csv", "the ETTh1 series (github.com/zhouhaoyi/ETDataset)")
BLEEDING = ("ucr_anomaly_135/135_UCR_Anomaly_InternalBleeding16_TRAIN.csv", "series 135 of the UCR anomaly archive")
VOWELS = ("japanese_vowels", "the two .ts files of JapaneseVowels (timeseriesclassification.com)")


@claim(
    "timesnet",
    kind="exact",
    says="The periods of a sum of sines are found by the spectrum, strongest first; a mean of 10,000 is none of them.",
)
def periods_are_the_strongest_sines() -> Measurement:
    """200 random sums of four sines. Seen failing with the constant term left in the ranking (all 200 wrong)."""
    generator = torch.Generator().manual_seed(0)
    wrong = 0
    for _ in range(200):
        length = int(torch.randint(24, 200, (), generator=generator))
        frequencies = torch.randperm(length // 2 - 1, generator=generator)[:4] + 1
        amplitudes = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
        t = torch.arange(length, dtype=torch.float64)[:, None]
        x = (amplitudes * torch.sin(2 * math.pi * frequencies * t / length + 1)).sum(1) + 1e4
        found = fft_periods(x[None, :, None], 4)[0]
        wrong += found.tolist() != (length // frequencies).tolist()
    return Measurement.at_most(wrong, 0, "wrong lists of periods among 200 series; none allowed")


class _IdentityBlock(TimesBlock):
    """A block whose 2D network hands its map through."""

    def mix(self, maps: Tensor, kernels: object) -> Tensor:
        return maps


@claim(
    "timesnet",
    kind="exact",
    says="Folding into 2D maps loses nothing: with an identity in place of the 2D network a block returns twice its "
    "input.",
)
def folding_is_undone() -> Measurement:
    """Lengths 12 to 60. Seen failing with the padding put in front instead of at the end (error 5)."""
    torch.manual_seed(0)
    worst = 0.0
    for length in range(12, 61):
        h = torch.randn(3, length, 4)
        worst = max(worst, float((_IdentityBlock(4, 4, top_k=length // 2)(h) - 2 * h).abs().max()))
    return Measurement.at_most(worst, 1e-5, "largest difference from twice the input; at most")


@claim(
    "timesnet",
    kind="exact",
    says="One 2D network serves all periods: a block's parameters do not depend on their number k.",
)
def parameters_are_shared_by_periods() -> Measurement:
    """k of 1 to 9, kernels 1 to 11. Seen failing with an inception block for each period (9 of 12)."""
    wrong = 0
    for k in (1, 3, 5, 9):
        for kernels in (1, 4, 6):
            squares = sum((2 * j + 1) ** 2 for j in range(kernels))
            expected = 2 * 16 * 32 * squares + kernels * (32 + 16)
            block = TimesBlock(16, 32, top_k=k, num_kernels=kernels)
            wrong += sum(p.numel() for p in block.parameters()) != expected
    return Measurement.at_most(wrong, 0, "blocks whose parameter count is not the formula's; none allowed")


@claim(
    "timesnet",
    kind="exact",
    says="Forecasts follow the scale and shift of every variable: f(a x + b) = a f(x) + b for a > 0.",
)
def forecasts_follow_scale_and_shift() -> Measurement:
    """Scales 1 to 100. Seen failing with the deviation left out at the end (error 1.4)."""
    torch.manual_seed(0)
    model = TimesNet(task="forecast", seq_len=48, pred_len=24, enc_in=3, **PUBLISHED["forecast/ETTh1"]).eval().double()
    x = torch.randn(4, 48, 3, dtype=torch.float64)
    scale, shift = 10 ** (2 * torch.rand(4, 1, 3).double()), 100 * torch.randn(4, 1, 3).double()
    with torch.no_grad():
        error = (model(scale * x + shift) - (scale * model(x) + shift)) / scale
    return Measurement.at_most(error.abs().max(), 1e-4, "largest difference, in units of the scale; at most")


class _CentreRow(nn.Module):
    """Keeps the middle row of a 2D kernel: the 1D variation inside a cycle."""

    def forward(self, weight: Tensor) -> Tensor:
        keep = torch.zeros(weight.shape[-2], 1)
        keep[weight.shape[-2] // 2] = 1
        return weight * keep


def _two_periods(count: int, generator: torch.Generator) -> Tensor:
    """Weeks of hours ``(count, 168, 1)``: a random daily pattern whose height swings with the week, and noise."""
    t = torch.arange(168)
    phase = 2 * math.pi * torch.rand(count, 2, 1, generator=generator)
    daily = 0.7 * torch.randn(count, 24, generator=generator) + 2 * torch.sin(2 * math.pi * t[:24] / 24 + phase[:, 0])
    height = 1 + 0.5 * torch.sin(2 * math.pi * t / 168 + phase[:, 1])
    weekly = torch.sin(2 * math.pi * t / 168 + 2 * phase[:, 1])
    return (daily.repeat(1, 7) * height + weekly + 0.1 * torch.randn(count, 168, generator=generator))[..., None]


def _imputation_error(seed: int, two_d: bool) -> float:
    """Masked error of a small net after 300 steps, with 2D kernels or with their middle rows only."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = TimesNet(
        task="impute", seq_len=168, enc_in=1, d_model=16, d_ff=16, e_layers=1, top_k=2, num_kernels=3, dropout=0.0
    )
    for conv in [m for m in model.blocks.modules() if isinstance(m, nn.Conv2d)] if not two_d else []:
        parametrize.register_parametrization(conv, "weight", _CentreRow())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=300)
    for _ in range(300):
        x = _two_periods(16, generator)
        mask = torch.rand(x.shape, generator=generator) > 0.4
        _step(optimizer, F.mse_loss(model(x, mask=mask)[~mask], x[~mask]))
        decay.step()
    model.eval()
    generator = torch.Generator().manual_seed(1000)
    x = _two_periods(256, generator)
    mask = torch.rand(x.shape, generator=generator) > 0.4
    with torch.no_grad():
        return float(F.mse_loss(model(x, mask=mask)[~mask], x[~mask]))


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _shuffled(count: int, size: int) -> Iterator[Tensor]:
    yield from torch.randperm(count).split(size)


@claim(
    "timesnet",
    kind="learned",
    says="Where a short cycle changes from one cycle to the next, 2D kernels fill gaps with at most 0.75 of the error "
    "of 1D kernels.",
)
def two_dimensions_beat_one() -> Measurement:
    """Worst of three seeds, 40 % masked; measured 0.45. Seen failing with 1D kernels on both sides (1.0)."""
    ratios = [_imputation_error(seed, two_d=True) / _imputation_error(seed, two_d=False) for seed in range(3)]
    return Measurement.at_most(max(ratios), 0.75, "error of 2D over error of 1D kernels, worst of three seeds; at most")


@claim(
    "timesnet",
    kind="learned",
    says="Long-term forecasting: ETTh1, 96 hours ahead from 96, test MSE at most 0.40 (the paper: 0.384).",
)
def forecasts_etth1() -> Measurement:
    """Three passes of the published recipe, with its seed: which periods the start picks matters (others: to 0.41).

    Measured 0.390; repeating the last value has 1.299. Seen failing with one pass of the three (0.425).
    """
    file = data_file(ETTH1[0])
    if file is None:
        return not_measured(0.40, *ETTH1)
    torch.manual_seed(2021)
    train, _, test = etth1(file, 96, 96)
    model = TimesNet(task="forecast", seq_len=96, pred_len=96, enc_in=7, **PUBLISHED["forecast/ETTh1"])
    optimizer = torch.optim.Adam(model.parameters())
    for rate in (1e-4, 1e-4, 5e-5):
        optimizer.param_groups[0]["lr"] = rate
        for index in _shuffled(len(train), 32):
            x, marks = train.batch(index)
            _step(optimizer, F.mse_loss(model(x[:, :96], marks[:, :96]), x[:, 96:]))
    model.eval()
    total = 0.0
    with torch.no_grad():
        for index in torch.arange(len(test)).split(32):
            x, marks = test.batch(index)
            total += float((model(x[:, :96], marks[:, :96]) - x[:, 96:]).square().mean((1, 2)).sum())
    return Measurement.at_most(total / len(test), 0.40, "test MSE on standardised values, all windows; at most")


def _interpolated(x: Tensor, mask: Tensor) -> Tensor:
    """Linear interpolation along time of one series ``(T,)`` between its observed values."""
    import numpy as np

    steps = np.arange(len(x))
    return torch.from_numpy(np.interp(steps, steps[mask.numpy()], x[mask].numpy())).float()


@claim(
    "timesnet",
    kind="learned",
    says="Imputation: ETTh1 with 25 % of values hidden, masked MSE at most 0.09 (the paper: 0.069), below linear "
    "interpolation.",
)
def imputes_etth1() -> Measurement:
    """Three passes; measured 0.082. Seen failing at a hundredth of the learning rate (0.26)."""
    file = data_file(ETTH1[0])
    if file is None:
        return not_measured(0.09, *ETTH1)
    torch.manual_seed(0)
    train, _, test = etth1(file, 96, 0)
    model = TimesNet(task="impute", seq_len=96, enc_in=7, **PUBLISHED["impute/ETTh1"])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    batches = [index for _ in range(3) for index in _shuffled(len(train), 16)]
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=len(batches))
    for index in batches:
        x, marks = train.batch(index)
        mask = torch.rand(x.shape) > 0.25
        _step(optimizer, F.mse_loss(model(x, marks, mask)[~mask], x[~mask]))
        decay.step()
    model.eval()
    hidden = ours = linear = 0.0
    with torch.no_grad():
        for index in torch.arange(len(test)).split(16):
            x, marks = test.batch(index)
            mask = torch.rand(x.shape) > 0.25
            ours += float((model(x, marks, mask) - x)[~mask].square().sum())
            flat, known = x.transpose(1, 2).flatten(0, 1), mask.transpose(1, 2).flatten(0, 1)
            filled = torch.stack([_interpolated(a, b) for a, b in zip(flat, known, strict=True)])
            linear += float((filled - flat)[~known].square().sum())
            hidden += int((~mask).sum())
    threshold = min(0.09, linear / hidden)
    return Measurement.at_most(ours / hidden, threshold, "masked MSE; at most 0.09 and linear interpolation's")


def _read_ts(text: str) -> tuple[list[Tensor], Tensor]:
    """Series ``(steps, dimensions)`` of unequal lengths and labels from 0 on, of a UEA .ts file."""
    lines = text[text.lower().index("@data") :].splitlines()[1:]
    split = [line.split(":") for line in lines if line.strip()]
    series = [torch.tensor([[float(v) for v in part.split(",")] for part in parts[:-1]]).T for parts in split]
    return series, torch.tensor([int(parts[-1]) - 1 for parts in split])


@claim(
    "timesnet",
    kind="learned",
    says="Classification: JapaneseVowels, nine speakers, test accuracy at least 0.95 (the paper: 0.984).",
)
def classifies_japanese_vowels() -> Measurement:
    """Two seeds, 30 passes, nothing chosen on test; measured 0.968. Seen failing with the mask inverted (0.943)."""
    files = [data_file(f"{VOWELS[0]}/JapaneseVowels_{part}.ts") for part in ("TRAIN", "TEST")]
    if files[0] is None or files[1] is None:
        return not_measured(0.95, *VOWELS)
    (train, labels), (test, truth) = (_read_ts(f.read_text(encoding="utf-8")) for f in files if f is not None)
    length, steps = max(len(x) for x in train + test), torch.cat(train)

    def padded(series: list[Tensor]) -> tuple[Tensor, Tensor]:
        normal = [(x - steps.mean(0)) / steps.std(0) for x in series]
        x = nn.utils.rnn.pad_sequence(normal, batch_first=True)
        sizes = torch.tensor([len(s) for s in series])
        return F.pad(x, (0, 0, 0, length - x.shape[1])), torch.arange(length) < sizes[:, None]

    x, mask = padded(train)
    accuracy = 0.0
    for seed in range(2):
        torch.manual_seed(seed)
        sizes = PUBLISHED["classify-series/JapaneseVowels"]
        model = TimesNet(task="classify-series", seq_len=length, enc_in=12, num_class=9, **sizes)
        optimizer = torch.optim.RAdam(model.parameters(), lr=1e-3)
        for _ in range(30):
            for index in _shuffled(len(x), 16):
                loss = F.cross_entropy(model(x[index], mask=mask[index]), labels[index])
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 4.0)
                optimizer.step()
        model.eval()
        with torch.no_grad():
            pairs = zip(*(t.split(16) for t in padded(test)), strict=True)
            answers = torch.cat([model(a, mask=b).argmax(1) for a, b in pairs])
        accuracy += float((answers == truth).double().mean()) / 2
    return Measurement.at_least(accuracy, 0.95, "test accuracy, mean of two seeds; at least")


@claim(
    "timesnet",
    kind="learned",
    says="Anomaly detection: spikes in a sum of waves are found by reconstruction error, point-wise F1 at least 0.8.",
)
def finds_spikes() -> Measurement:
    """20 spikes of 1 to 3 steps in 4,000, no point adjustment. Measured 1.0. Seen failing untrained (0.52)."""
    torch.manual_seed(0)
    t = torch.arange(4000)
    waves = torch.stack([torch.sin(2 * math.pi * t / 20), torch.cos(2 * math.pi * t / 25)], 1)
    train, test = waves + 0.05 * torch.randn(4000, 2), waves + 0.05 * torch.randn(4000, 2)
    truth = torch.zeros(4000, dtype=torch.bool)
    for block in torch.randperm(40)[:20].tolist():
        at = 100 * block + int(torch.randint(5, 90, ()))
        spike = slice(at, at + int(torch.randint(1, 4, ())))
        test[spike] += torch.randn(2).sign()
        truth[spike] = True
    model = TimesNet(
        task="detect-anomalies", seq_len=100, enc_in=2, d_model=8, d_ff=8, e_layers=1, top_k=3, num_kernels=3
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(100):
        x = train[torch.randint(0, 3901, (32, 1)) + torch.arange(100)]
        _step(optimizer, F.mse_loss(model(x), x))
    model.eval()
    with torch.no_grad():
        usual, scores = (model.anomaly_score(x.view(-1, 100, 2)).flatten() for x in (train, test))
    # The published threshold: the share of anomalies is known, training and test scores are ranked together.
    threshold = torch.quantile(torch.cat([usual, scores]), 1 - truth.float().mean() / 2)
    f1 = precision_recall_f1(scores > threshold, truth)[2]
    return Measurement.at_least(f1, 0.8, "point-wise F1 without adjustment; at least")


@claim(
    "timesnet",
    kind="exact",
    says="Point adjustment, which published scores of anomaly detection rest on, only ever raises F1, that of random "
    "alarms too.",
)
def adjusting_only_raises_f1() -> Measurement:
    """500 draws of random alarms, few to many, in long and short stretches. Seen failing with stretches cleared where
    the row before them is an alarm (lowered by 0.13)."""
    generator = torch.Generator().manual_seed(0)
    lowest, raw, adjusted = math.inf, 0.0, 0.0
    for draw in range(500):
        truth = torch.zeros(5000, dtype=torch.bool)
        for at in torch.randint(0, 4800, (4,), generator=generator).tolist():
            truth[at : at + 2 + 10 * (draw % 20)] = True
        alarms = torch.rand(5000, generator=generator) < 0.2 * draw / 500
        before, after = (precision_recall_f1(a, truth)[2] for a in (alarms, point_adjusted(alarms, truth)))
        lowest, raw, adjusted = min(lowest, after - before), raw + before / 500, adjusted + after / 500
    told = f"smallest change of F1, none below 0; means of random alarms: {raw:.2f} before, {adjusted:.2f} after"
    return Measurement.at_least(lowest, 0.0, told)


@claim(
    "timesnet",
    kind="learned",
    says="Anomaly detection: the highest score of series 135 of the UCR archive lies within 100 points of its anomaly.",
)
def finds_the_bleeding() -> Measurement:
    """1,000 steps, three seeds, nothing chosen on test. Seen failing untrained (0 of 3) and after 50 steps."""
    file = data_file(BLEEDING[0])
    if file is None:
        return not_measured(3, *BLEEDING)
    from ..tasks.detect_anomalies.task import DetectAnomaliesTask

    task = DetectAnomaliesTask.prepare(file)
    found = 0.0
    for seed in range(3):
        torch.manual_seed(seed)
        model = TimesNet.for_task(task.info)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(1000):
            _step(optimizer, task.loss(model, task.batch("train", torch.randint(task.size("train"), (32,)))))
        found += task.evaluate(model, "test").metrics["found"]
    return Measurement.at_least(found, 3, "seeds out of three whose highest score is near enough; all must be")
