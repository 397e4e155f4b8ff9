"""Made-up comparisons that look like real ones, for tests and for looking at tables and reports.

``python -m tests.fake_leaderboard OUT`` writes ``leaderboard.json``, ``leaderboard.csv`` and ``report.html`` there.
"""

from __future__ import annotations

import math
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch

from foveate.compare import leaderboard
from foveate.spec import TaskSpec

WINDOWS, HORIZON, LOOKBACK = 1200, 48, 96

#: name: (kind, baseline, mean squared error, spread over seeds, parameters, latency in ms, memory in MB)
SYSTEMS: dict[str, tuple[str, bool, float, float, int, float, float]] = {
    "timesnet": ("model", False, 0.3124, 0.0021, 1_213_440, 9.8, 411.0),
    "mamba": ("mixer", False, 0.3139, 0.0027, 402_816, 2.31, 356.2),
    "softmax_attention": ("mixer", False, 0.3152, 0.0019, 387_392, 1.12, 349.8),
    "lightning_attention": ("mixer", False, 0.3411, 0.0032, 389_920, 1.48, 350.4),
    "acme_forecasting.models.temporal:GatedFusionNet": (
        "custom",
        False,
        0.3560,
        0.0110,
        2_881_024,
        21.7,
        498.0,
    ),
    "dlinear": ("model", False, 0.3692, 0.0004, 9_312, 0.061, 331.5),
    "seasonal_naive": ("model", True, 0.5127, 0.0, 0, 0.012, 327.9),
}


class FakeTask:
    """Stands in for a forecasting task: facts only."""

    registered_as = ("task", "forecast", "forecast")
    overlap = HORIZON

    def __init__(self, source: str = "prices.csv", higher_is_better: bool = False) -> None:
        metrics = ("accuracy", "f1") if higher_is_better else ("mse", "mae", "mase")
        self.spec = TaskSpec(reads="series", rank=1, metrics=metrics, higher_is_better=higher_is_better)
        self.source = source

    def sample_groups(self, split: str) -> None:
        return None

    def describe(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "sha256": "5c1e0f3b9c4a7d2e" * 4,
            "rows": 17_420,
            "series": 1,
            "columns": ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"],
            "targets": ["OT"],
            "time": "date",
            "id": None,
            "freq": "h",
            "season": 24,
            "lookback": LOOKBACK,
            "horizon": HORIZON,
            "missing_values": {"HUFL": 0, "HULL": 0, "MUFL": 0, "MULL": 0, "LUFL": 0, "LULL": 0, "OT": 12},
            "split": "0.7/0.1/0.2",
            "parts": {
                "train": {"rows": 12_194, "windows": 12_051, "first": "2016-07-01", "last": "2017-11-20"},
                "val": {"rows": 1_742, "windows": 1_695, "first": "2017-11-21", "last": "2018-02-01"},
                "test": {"rows": 3_484, "windows": WINDOWS, "first": "2018-02-01", "last": "2018-06-26"},
            },
            "notes": [
                "12 values of OT are missing: they are filled with the last one as inputs, and not scored as truth."
            ],
        }


def errors_of(mean: float, system: int, seed: int, spread: float, windows: int = WINDOWS) -> torch.Tensor:
    """Errors of overlapping windows: a part that all systems share, and a smaller one of their own."""
    shared = torch.Generator().manual_seed(11)
    own = torch.Generator().manual_seed(1000 + system)
    width = HORIZON
    common = torch.randn(windows + width, generator=shared, dtype=torch.float64).unfold(0, width, 1).mean(1)[:windows]
    private = torch.randn(windows + width, generator=own, dtype=torch.float64).unfold(0, width, 1).mean(1)[:windows]
    shift = spread * (1 if seed else -1) / math.sqrt(2)
    raw = 1 + 1.6 * common + 0.12 * private
    return mean * raw / raw.mean() + shift


def make_results(seeds: int = 2, windows: int = WINDOWS) -> list[dict[str, Any]]:
    """Trials of :data:`SYSTEMS`, one system that diverged, and one that ran out of memory on one seed."""
    results = []
    for number, (name, facts) in enumerate(SYSTEMS.items()):
        for seed in range(1 if facts[1] else seeds):
            results.append(_trial(name, number, seed, facts, windows))
    for seed in range(seeds):
        reason = "the loss became infinite at step 212 (learning rate 0.01): try a smaller one"
        results.append(_unfinished("landmark_attention", "mixer", seed, "failed", reason))
    if seeds > 1:
        reason = "resident memory passed the limit of 2.0 GiB (--memory)"
        last = next(r for r in results if r["system"] == "lightning_attention" and r["seed"] == seeds - 1)
        results[results.index(last)] = _unfinished("lightning_attention", "mixer", seeds - 1, "failed", reason)
    return results


def make(seeds: int = 2, source: str = "prices.csv") -> dict[str, Any]:
    """A leaderboard as :func:`foveate.compare.leaderboard.build` makes it."""
    board = leaderboard.summarise(FakeTask(source), make_results(seeds), SETTINGS, MACHINE)  # type: ignore[arg-type]
    return {**board, "created": "2025-11-22T14:05:31+00:00"}


SETTINGS: dict[str, Any] = {
    "task": "forecast",
    "data": {"source": "prices.csv", "target": "OT", "horizon": HORIZON, "lookback": LOOKBACK},
    "systems": [*SYSTEMS, "landmark_attention"],
    "options": {"timesnet": {"top_k": 3}},
    "out": "foveate-runs/forecast-prices",
    "steps": 600,
    "seeds": 2,
    "learning_rates": [3e-4, 1e-3, 3e-3],
    "sweep_share": 0.1,
    "batch_size": 32,
    "patience": 5,
    "workers": 2,
    "threads": 1,
    "checkpoint_every": 5.0,
    "retry_failed": False,
}

MACHINE: dict[str, Any] = {
    "cpu": "AMD Ryzen 9 7950X 16-Core Processor",
    "architecture": "x86_64",
    "cores": 16,
    "memory_bytes": 66_500_000_000,
    "os": "Debian GNU/Linux 12 (bookworm)",
    "gpus": [],
    "threads": 1,
}


def _trial(name: str, number: int, seed: int, facts: Any, windows: int) -> dict[str, Any]:
    kind, baseline, mse, spread, parameters, latency, memory = facts
    errors = errors_of(mse, number, seed, spread, windows)
    test = float(errors.mean())
    val = test * (1.07 + 0.01 * math.sin(number))
    trained = not baseline
    return {
        "system": name, "kind": kind, "baseline": baseline, "seed": seed, "status": "done", "reason": "",
        "val": {"mse": val, "mae": 0.79 * math.sqrt(val), "mase": 1.3 * math.sqrt(val)},
        "test": {"mse": test, "mae": 0.8 * math.sqrt(test), "mase": 1.35 * math.sqrt(test)},
        "per_sample": errors, "parameters": parameters, "flops": parameters * 194,
        "train_samples_per_second": 9000 / latency if trained else None, "peak_memory_mb": memory + seed,
        "latency_ms": {"median": latency, "low": 0.94 * latency, "high": 1.22 * latency},
        "learning_rate": (1e-3, 3e-3, 3e-4)[number % 3] if trained else None,
        "sweep": [
            {"learning_rate": lr, "steps": 60, "val": {"mse": val * (1.02 + 0.06 * abs(i - (1, 2, 0)[number % 3]))}}
            for i, lr in enumerate((3e-4, 1e-3, 3e-3))
        ] if trained else [],
        "steps": 600 if trained else 0, "seconds": 14.0 + 6.1 * latency if trained else 0.02,
        "curve": _curve(val, number, seed) if trained else [],
        "examples": _examples(mse, number),
    }  # fmt: skip


def _unfinished(name: str, kind: str, seed: int, status: str, reason: str) -> dict[str, Any]:
    curve = [[40 * i, 0.9 * 1.25**i, 1.1 * 1.3**i] for i in range(1, 6)]
    return {
        "system": name, "kind": kind, "baseline": False, "seed": seed, "status": status, "reason": reason,
        "val": {}, "test": {}, "steps": 212, "seconds": 9.1, "curve": curve, "parameters": 391_000,
    }  # fmt: skip


def _curve(val: float, number: int, seed: int) -> list[list[float | int]]:
    noise = torch.Generator().manual_seed(10 * number + seed)
    curve = []
    for i in range(1, 21):
        wobble = float(torch.randn((), generator=noise)) * 0.006
        level = 1 + (1.1 + 0.5 * seed) * math.exp(-i / (2.0 + 0.7 * number))
        curve.append([30 * i, 0.9 * val * level * 0.97**i, val * (level + abs(wobble))])
    return curve


def _series(t: int) -> float:
    """A made-up hourly temperature."""
    return 18 + 6 * math.sin(2 * math.pi * t / 24) + 2.5 * math.sin(t / 61) + _ripple(t)


def _ripple(t: int) -> float:
    """A part of it that no model finds."""
    return 0.9 * math.sin(t * 1.7)


def _examples(mse: float, number: int) -> dict[str, Any]:
    """Three windows of one target, as the forecast task gives them; a gap in the second one's history."""
    noise = torch.Generator().manual_seed(77 + number)
    windows = []
    for k, first in enumerate((0, 610, 1420)):
        miss = (torch.randn(HORIZON, generator=noise).cumsum(0) * math.sqrt(mse) * 0.35).tolist()
        history = [_series(t) for t in range(first, first + LOOKBACK)]
        future = range(first + LOOKBACK, first + LOOKBACK + HORIZON)
        begin = datetime(2018, 2, 20) + timedelta(hours=first)
        times = [(begin + timedelta(hours=t)).isoformat() for t in range(LOOKBACK + HORIZON)]
        target = {
            "name": "OT",
            "history": [None if k == 1 and 30 <= i < 37 else v for i, v in enumerate(history)],
            "truth": [_series(t) for t in future],
            "prediction": [_series(t) - _ripple(t) + m for t, m in zip(future, miss, strict=True)],
        }
        window = {"series": "", "history_times": times[:LOOKBACK], "future_times": times[LOOKBACK:]}
        windows.append({**window, "targets": [target]})
    return {"time": "date", "freq": "h", "windows": windows}


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    leaderboard.build(out, FakeTask(), make_results(), SETTINGS, MACHINE)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
