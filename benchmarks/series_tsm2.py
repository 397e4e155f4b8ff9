"""TSM2 against its ablations and a plain Transformer on ETTh1, 96 hours ahead: benchmarks/series_tsm2.md.

    python benchmarks/series_tsm2.py                  # windows of 96 and 512 hours, then print the page's tables
    python benchmarks/series_tsm2.py --only 96        # one of them; what is finished is not run again
    python benchmarks/series_tsm2.py --write          # put the tables into benchmarks/series_tsm2.md

Each window is one ``foveate compare forecast``: same steps, same learning rates to choose from on validation, three
seeds, test scored once. The ablations are those of the paper (arXiv 2403.19888): an MLP along the variates in place of
the selective channel mixer, and Mamba along time alone. The series is looked for in ``$FOVEATE_DATA``, by default
``../shared/data`` beside the repository.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from foveate.models.series.tsm2 import TSM2

HERE = Path(__file__).resolve().parent
PAGE = HERE / "series_tsm2.md"
#: Contestants of ``foveate compare`` and how the page calls them; the last three only set the scale.
CONTESTANTS = {
    "tsm2": "TSM2",
    "series_tsm2:TSM2MLP": "TSM2-MLP",
    "series_tsm2:TSM2TokenOnly": "Mamba along time alone",
    "softmax_attention": "Transformer",
    "dlinear": "DLinear",
    "seasonal_naive": "seasonal naive",
}
#: Further words of the command by window. Patches of 32 keep the 512 hours at 16 tokens: 63 would take hours here.
RUNS: dict[str, tuple[str, ...]] = {
    "96": (),
    "512": (
        *("--set", "tsm2.patch_len=32", "--set", "tsm2.stride=32"),
        *("--set", "series_tsm2:TSM2MLP.patch_len=32", "--set", "series_tsm2:TSM2MLP.stride=32"),
        *("--set", "series_tsm2:TSM2TokenOnly.patch_len=32", "--set", "series_tsm2:TSM2TokenOnly.stride=32"),
        *("--set", "softmax_attention.patch=32"),
    ),
}
#: Test MSE that the paper prints for 96 hours ahead, from windows of 512.
PUBLISHED = {"TSM2": 0.375, "TSM2-MLP": 0.386, "Mamba along time alone": 0.388}


class TSM2MLP(TSM2):
    """An MLP along the variates in place of the selective channel mixer, residuals in place of averages."""

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        ablation = {"channel_mixer": "mlp", "averaging": False, "residual": True}
        return super().for_task(info, **ablation, **options)


class TSM2TokenOnly(TSM2):
    """No channel mixer: every variate for itself."""

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        ablation = {"channel_mixer": "none", "averaging": False, "residual": True}
        return super().for_task(info, **ablation, **options)


def command(window: str, data: str, out: str, steps: int) -> list[str]:
    """The words of a window's comparison."""
    names = ",".join(list(CONTESTANTS)[:-1])
    what = [f"{data}/etth1/ETTh1.csv", "--lookback", window, "--horizon", "96", "--split", "8640/2880/2880"]
    return [
        *("compare", "forecast", *what, "--systems", names, "--steps", str(steps), "--seeds", "3"),
        *("--patience", "0", *RUNS[window], "--out", f"{out}/ETTh1-{window}"),
    ]


def leaderboard(window: str, data: Path, out: Path, steps: int, workers: int) -> dict[str, Any]:
    """Run a comparison, or what is missing of it, from this folder, where the ablations are found."""
    words = [*command(window, str(data), str(out), steps), "--workers", str(workers), "--json"]
    run = [sys.executable, "-m", "foveate", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    found = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=False, cwd=HERE, env=environment)
    if found.returncode:
        sys.exit(f"foveate {' '.join(words)} ended with status {found.returncode}")
    return json.loads(found.stdout)


def table(window: str, board: dict[str, Any]) -> list[str]:
    """One window's table in Markdown, best first."""
    lines = [
        f"### {window} hours",
        "",
        "| network | test MSE | test MAE | against TSM2 | parameters | MFLOPs | trained windows/s | a forecast, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = {row["system"]: row for row in board["rows"]}
    beaten = {frozenset((row["system"], other)) for row in board["rows"] for other in row["beaten_by"]}
    for name, row in sorted(rows.items(), key=lambda pair: pair[1]["test"]["mse"]["mean"]):
        versus = "" if name == "tsm2" else "differs" if frozenset((name, "tsm2")) in beaten else "tie"
        cells = [CONTESTANTS[name], _spread(row["test"]["mse"]), _spread(row["test"]["mae"]), versus]
        speed, latency = row["train_samples_per_second"], row["latency_ms"]
        cells += [f"{row['parameters'] or 0:,}", f"{(row['flops'] or 0) / 1e6:.2f}"]
        cells += ["" if speed is None else f"{speed:.0f}", "" if latency is None else f"{_median(latency):.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _spread(value: dict[str, float | None]) -> str:
    return f"{value['mean']:.3f}" + (f" ± {value['std']:.3f}" if value["std"] else "")


def _median(latency: Any) -> float:
    return latency["median"] if isinstance(latency, dict) else latency


def section(boards: dict[str, dict[str, Any]], steps: int) -> str:
    """The Markdown of what was found."""
    first = next(iter(boards.values()))
    lines: list[str] = []
    for window, board in boards.items():
        lines += [*table(window, board), ""]
    published = ", ".join(f"{name} {mse}" for name, mse in PUBLISHED.items())
    lines += [
        f"Mean and deviation over three seeds of {steps} steps; against TSM2: the leaderboard's test of significance.",
        f"The paper prints, from windows of 512 hours and full training: {published}.",
        "",
        f"Made with torch {first['versions']['torch']} on {first['machine']['cpu']}, one thread a trial, here, by:",
        "",
        *(f"    foveate {' '.join(command(window, 'DATA', 'OUT', steps))}" for window in boards),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--steps", type=int, default=200, help="optimiser steps of a trial")
    parser.add_argument("--out", type=Path, default=HERE.parent / "foveate-runs" / "tsm2", help="folder of the runs")
    parser.add_argument("--workers", type=int, default=1, help="trials at once")
    parser.add_argument("--write", action="store_true", help="put the tables into the page")
    options = parser.parse_args()
    data = Path(os.environ.get("FOVEATE_DATA") or HERE.parents[1] / "shared" / "data").resolve()
    out = options.out.resolve()
    boards = {w: leaderboard(w, data, out, options.steps, options.workers) for w in options.only}
    text = section(boards, options.steps)
    print(text)
    if options.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- tables -->")
        after = rest.partition("<!-- end of tables -->")[2]
        PAGE.write_text(f"{before}<!-- tables -->\n{text}\n<!-- end of tables -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
