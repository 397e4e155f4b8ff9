"""What TimesNet's fused, cut convolutions save over the official arithmetic: times of whole training steps.

    python benchmarks/timesnet.py                # 1 thread, the ETTh1 and ETTm1 sizes
    python benchmarks/timesnet.py --threads 2

Both forms have the same weights and see the same batch; steps take turns, so that a drift of the machine hits both.
Refuses to measure on a busy machine, or when the two forms disagree.
"""

from __future__ import annotations

import argparse
import copy
import sys

import psutil
import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.measure.latency import measure_latency
from foveate.measure.machine import machine_facts
from foveate.models.series.periods import fft_periods, fold, unfold
from foveate.models.series.timesnet import PUBLISHED, TimesBlock, TimesNet


class BranchwiseBlock(TimesBlock):
    """The block as the official code computes it: every kernel on its own, in full, for every listed period."""

    def forward(self, h: Tensor) -> Tensor:
        periods, amplitudes = fft_periods(h, self.top_k)
        out = h
        for weight, period in zip(amplitudes.softmax(1).unbind(1), periods.tolist(), strict=True):
            maps = self.reduce.branchwise(F.gelu(self.expand.branchwise(fold(h, period).contiguous())))
            out = out + weight[:, None, None] * unfold(maps, h.shape[1])
        return out


def branchwise(model: TimesNet) -> TimesNet:
    """A copy with the official arithmetic."""
    model = copy.deepcopy(model)
    for block in model.blocks:
        block.__class__ = BranchwiseBlock
    return model


def batch_of_series(batch: int, length: int, channels: int) -> Tensor:
    """Series with a daily and a weekly period and noise: the kind of input whose spectrum decides the maps' sizes."""
    t = torch.arange(length)
    phase = torch.rand(batch, 1, channels) * 6.28
    wave = torch.sin(t[:, None] * 6.28 / 24 + phase) + torch.sin(t[:, None] * 6.28 / 168 + 2 * phase)
    return wave + 0.3 * torch.randn(batch, length, channels)


def measure(size: str, threads: int, seconds: float) -> None:
    """Print the times of a training step and of a single prediction for one published size."""
    torch.manual_seed(0)
    ours = TimesNet(task="forecast", seq_len=96, pred_len=96, enc_in=7, dropout=0.0, **PUBLISHED[size])
    official = branchwise(ours)
    x, y = batch_of_series(32, 96, 7), batch_of_series(32, 96, 7)
    torch.testing.assert_close(ours(x), official(x), rtol=1e-4, atol=1e-5)

    def step(model: TimesNet) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            model.zero_grad()
            F.mse_loss(model(x), y).backward()

    one = x[:1]
    train = measure_latency(
        {"fused": lambda: step(ours), "branch by branch": lambda: step(official)}, seconds=seconds, threads=threads
    )
    predict = measure_latency(
        {"fused": lambda: ours(one), "branch by branch": lambda: official(one)}, seconds=seconds / 4, threads=threads
    )
    for what, found in (("training step, batch 32", train), ("prediction, batch 1", predict)):
        fused, branches = found["fused"], found["branch by branch"]
        print(
            f"{size:16} {what:24} fused {fused.median:8.1f} ms ({fused.low:.1f}-{fused.high:.1f})   "
            f"branch by branch {branches.median:8.1f} ms ({branches.low:.1f}-{branches.high:.1f})   "
            f"ratio {branches.median / fused.median:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="time given to each form")
    parser.add_argument("--sizes", nargs="+", default=["forecast/ETTh1", "forecast/ETTm1"], choices=PUBLISHED)
    parser.add_argument("--busy", type=float, default=15.0, help="refuse above this CPU use by others, in percent")
    options = parser.parse_args()
    used = psutil.cpu_percent(interval=2.0)
    if used > options.busy:
        sys.exit(f"the machine is busy ({used:.0f} % of its CPU time): timings would not mean anything.")
    facts = machine_facts()
    print(f"{facts['cpu']}, {facts['cores']} cores, {options.threads} thread(s), torch {torch.__version__}")
    for size in options.sizes:
        measure(size, options.threads, options.seconds)


if __name__ == "__main__":
    main()
