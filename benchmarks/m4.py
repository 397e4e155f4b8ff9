"""M4 hourly: trained systems against seasonal naive and Theta, by the rules of the competition.

    python benchmarks/m4.py Hourly-train.csv          # Hourly-test.csv beside it; writes benchmarks/m4.md

The files are those of github.com/Mcompetitions/M4-methods, folder Dataset. Every comparison can be killed and goes on
with the same command; a finished one is only read again.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from foveate.compare.tables import table

COMPARISONS = {
    "m4-hourly-dlinear": (
        "A minute of one core: a linear model, 5,000 steps of 32 windows",
        "--systems dlinear --steps 5000 --seeds 3",
    ),
    "m4-hourly-192": (
        "The same with twice the lookback of the competition's usual models",
        "--systems dlinear --lookback 192 --steps 5000 --seeds 3",
    ),
    "m4-hourly": (
        "Mixers beside it, the same 2,000 steps of 64 windows for each",
        "--systems dlinear,softmax_attention,gated_conv --steps 2000 --batch-size 64 --seeds 2",
    ),
    "m4-hourly-timesnet": (
        "TimesNet in its published configuration: ten passes over the 414 series, batches of 16, a rate of 0.001",
        "--systems timesnet --set timesnet.d_model=32 --set timesnet.d_ff=32 --steps 260 --batch-size 16 "
        "--learning-rates 0.001 --seeds 2",
    ),
}


def run(name: str, options: str, source: Path, runs: Path) -> tuple[str, dict]:
    """Run a comparison, or what is missing of it: the command as a user types it, and its leaderboard."""
    out = runs / name
    command = ["compare", "forecast-m4", str(source), *options.split(), "--out", str(out)]
    subprocess.run([sys.executable, "-m", "foveate", *command], check=True, stdout=subprocess.DEVNULL)
    board = json.loads((out / "leaderboard.json").read_text(encoding="utf-8"))
    board["data"]["source"] = source.name
    return f"foveate compare forecast-m4 {source.name} {options} --out {name}", board


def as_text(board: dict) -> str:
    """The leaderboard as the command prints it."""
    console = Console(width=120, record=True, no_color=True, file=io.StringIO())
    console.print(table(board, console))
    return "\n".join(line.rstrip() for line in console.export_text().splitlines()).strip()


def facts(board: dict) -> str:
    """What was measured, on what, and for how long."""
    data, machine, settings = board["data"], board["machine"], board["settings"]
    seconds = {row["system"]: row["seconds"] for row in board["rows"]}
    naive2 = data["naive2"]["test"]
    return (
        f"{data['series']} series of {data['shortest']} to {data['longest']} hours, lookback {data['lookback']}, "
        f"horizon {data['horizon']}, season {data['season']}; Naive2: sMAPE {naive2['smape']:.3f}, "
        f"MASE {naive2['mase']:.3f}. {machine['cpu']}, {machine['cores']} cores, {settings['threads']} thread per "
        f"trial, torch {board['versions']['torch']}. Seconds of all trials together (training, validation, test): "
        + ", ".join(f"{system} {taken:.0f}" for system, taken in seconds.items())
        + "."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="Hourly-train.csv")
    parser.add_argument("--runs", type=Path, default=Path("foveate-runs"), help="where the comparisons go")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--only", nargs="+", choices=COMPARISONS, default=list(COMPARISONS))
    options = parser.parse_args()
    only = "" if options.only == list(COMPARISONS) else f" --only {' '.join(options.only)}"
    parts = ["# M4 hourly", f"Made by `python benchmarks/m4.py {options.source.name}{only}`."]
    for name in options.only:
        about, given = COMPARISONS[name]
        command, board = run(name, given, options.source, options.runs)
        parts += [f"## {about}", f"```console\n$ {command}\n```", f"```text\n{as_text(board)}\n```", facts(board)]
    options.out.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
