"""Aaren against the plain Transformer on four real data sets, and what a stream of each keeps: benchmarks/series.md.

    python benchmarks/series.py                      # all four, then print the section of benchmarks/series.md
    python benchmarks/series.py --only ETTh1         # one of them; what is finished is not run again
    python benchmarks/series.py --write              # put the section into benchmarks/series.md

Each data set is one ``foveate compare``, so that nothing about it is special: same steps, same learning rates to choose
from on validation, three seeds, test scored once. The two networks differ in their attention alone; the Transformer
is causal, because it has to stream. Data are looked for in ``$FOVEATE_DATA``, by default ``../shared/data`` beside the
repository.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foveate.measure.flops import count_flops
from foveate.models.series.aaren import AarenEncoder
from foveate.models.series.softmax_attention import TransformerEncoder
from foveate.models.series.step_encoder import StepEncoder
from foveate.ops import backend
from foveate.pages.figures import format_bytes

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "benchmarks" / "series.md"
OURS, PEER, CONTROL = "aaren_encoder", "transformer_encoder", "no_attention:NoAttention"
#: Aaren may be worse by this factor in the number that decides: error of forecasts, accuracy of classes.
MARGIN = 1.1
LENGTHS = (10, 10_000)


@dataclass(frozen=True)
class Comparison:
    """One data set.

    Attributes:
        name: how the table calls it.
        task: of ``foveate compare``.
        file: inside the data folder; None: the task's embedded data.
        options: further words of the command.
    """

    name: str
    task: str
    file: str | None
    options: tuple[str, ...]


RUNS = (
    Comparison(
        "ETTh1",
        "forecast",
        "etth1/ETTh1.csv",
        ("--lookback", "96", "--horizon", "24", "--split", "8640/2880/2880"),
    ),
    Comparison("weather", "forecast", None, ("--lookback", "48", "--horizon", "24")),
    Comparison("JapaneseVowels", "classify-series", "japanese_vowels/JapaneseVowels_TRAIN.ts", ()),
    Comparison("BasicMotions", "classify-series", "basic_motions/BasicMotions_TRAIN.ts", ()),
)


def command(run: Comparison, data: str, out: str) -> list[str]:
    """The words of its comparison."""
    source = [] if run.file is None else [f"{data}/{run.file}"]
    common = f"--systems {OURS},{PEER},{CONTROL} --seeds 3 --steps 400 --patience 0 --no-refit".split()
    rates = ["--learning-rates", "0.0003,0.001,0.003"]  # layers with the norm behind them bear no large ones
    return ["compare", run.task, *source, *run.options, *common, *rates, "--out", f"{out}/{run.name}"]


def leaderboard(run: Comparison, data: Path, out: Path, workers: int) -> dict[str, Any]:
    """Run it, or what is missing of it."""
    words = [*command(run, str(data), str(out)), "--workers", str(workers), "--json"]
    here = Path(__file__).parent  # where the control is found by its name
    program = [sys.executable, "-m", "foveate", *words]
    found = subprocess.run(program, cwd=here, stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        sys.exit(f"foveate {' '.join(words)} ended with status {found.returncode}")
    return json.loads(found.stdout)


def quality(board: dict[str, Any]) -> tuple[list[str], bool]:
    """Cells of the row of one data set, and whether Aaren is within the margin."""
    primary, higher = board["primary"], board["higher_is_better"]
    scores = {row["system"]: row for row in board["rows"]}
    ours, peer = (scores[name]["test"][primary]["mean"] for name in (OURS, PEER))
    ratio = peer / ours if higher else ours / peer
    rest = [row for row in board["rows"] if row["baseline"] and row["status"] == "done"]
    baselines = ", ".join(f"{row['system']} {row['test'][primary]['mean']:.3f}" for row in rest)
    apart = {frozenset((a, b)) for a, row in scores.items() for b in row["beaten_by"]}
    verdict = "differ" if frozenset((OURS, PEER)) in apart else "tie"
    cells = [primary, *(_spread(scores[name]["test"][primary]) for name in (OURS, PEER)), f"{ratio:.3f}"]
    baselines = f"{_spread(scores[CONTROL]['test'][primary])} | {baselines}"
    return [*cells, "yes" if ratio <= MARGIN else "**no**", verdict, baselines], ratio <= MARGIN


def _spread(value: dict[str, float]) -> str:
    return f"{value['mean']:.3f} ± {value['std']:.3f}"


def streams(cls: type[StepEncoder]) -> list[str]:
    """Bytes of a stream's state and FLOPs of its next step after each of :data:`LENGTHS`, for seven variables."""
    cells = []
    with torch.no_grad(), torch.device("meta"), backend("torch"):
        model = cls(task="forecast", seq_len=96, enc_in=7, outputs=96).eval()
        for length in LENGTHS:
            _, state = model.prefill(torch.randn(1, length, 7), model.init_state(1))
            flops = count_flops(lambda state=state: model.step(torch.zeros(1, 7), state))
            cells += [format_bytes(state.nbytes), f"{flops / 1e6:.2f} MFLOPs"]
    return [cells[0], cells[2], cells[1], cells[3]]


def section(boards: dict[str, dict[str, Any]]) -> str:
    """The Markdown of what was found."""
    first = next(iter(boards.values()))
    lines = [
        f"| data | metric | {OURS} | {PEER} | ratio | within {MARGIN} | significance | no attention | baselines |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, board in boards.items():
        cells, _ = quality(board)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "Test scores, mean and deviation over three seeds. A stream of seven variables through the same networks:",
        "",
        "| network | state after 10 steps | after 10,000 | next step after 10 | after 10,000 |",
        "|---|---|---|---|---|",
        *(f"| {name} | {' | '.join(streams(c))} |" for name, c in ((OURS, AarenEncoder), (PEER, TransformerEncoder))),
        "",
        f"Made with torch {first['versions']['torch']} on {first['machine']['cpu']}, one thread a trial, here, by:",
        "",
        *(f"    foveate {' '.join(command(run, 'DATA', 'OUT'))}" for run in RUNS if run.name in boards),
    ]
    return "\n".join(lines)


def write(text: str) -> None:
    """Replace the section between the marks of the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition("<!-- aaren -->")
    _, _, after = rest.partition("<!-- end of aaren -->")
    PAGE.write_text(f"{before}<!-- aaren -->\n{text}\n<!-- end of aaren -->{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[run.name for run in RUNS], default=[run.name for run in RUNS])
    parser.add_argument("--out", type=Path, default=ROOT / "foveate-runs" / "series", help="folder of the comparisons")
    parser.add_argument("--workers", type=int, default=2, help="trials at once")
    parser.add_argument("--write", action="store_true", help=f"put the section into {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    data = Path(os.environ.get("FOVEATE_DATA") or ROOT.parent / "shared" / "data")
    chosen = [run for run in RUNS if run.name in options.only]
    text = section({run.name: leaderboard(run, data, options.out.resolve(), options.workers) for run in chosen})
    print(text)
    if options.write:
        write(text)


if __name__ == "__main__":
    main()
