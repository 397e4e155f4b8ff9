"""Pages of published against measured numbers, made from the leaderboards of finished comparisons.

    python benchmarks/published.py RUN...        # folders of comparisons, as --out named them

Writes ``forecast_published.md``, ``impute_published.md`` and ``classify_series.md`` beside this file, those that the
runs have rows for. Every run was made by the command that its table shows; nothing is typed by hand but the published
numbers below.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate.errors import InvalidValue
from foveate.pages.figures import count, duration
from foveate.tasks.known_data import known_data

HERE = Path(__file__).parent
PAGES = {
    "forecast": ("forecast_published.md", "Forecasting: published numbers, trained anew by the published recipes"),
    "impute": ("impute_published.md", "Imputation: published numbers, trained anew by the published recipes"),
    "classify-series": ("classify_series.md", "Classification of series, validation held out of the training samples"),
}
#: Published test errors or accuracies: (task, data set, system, horizon or share of hidden values) to metrics.
#: TimesNet: its paper. DLinear at 96 steps of lookback: the same paper. PatchTST at 96 steps: arXiv:2310.06625.
PUBLISHED: dict[tuple[str, str, str, float], dict[str, float]] = {
    **{
        ("forecast", "ETTh1", "timesnet", horizon): {"mse": mse, "mae": mae}
        for horizon, mse, mae in ((96, 0.384, 0.402), (192, 0.436, 0.429), (336, 0.491, 0.469), (720, 0.521, 0.500))
    },
    **{
        ("forecast", "ETTm1", "timesnet", horizon): {"mse": mse, "mae": mae}
        for horizon, mse, mae in ((96, 0.338, 0.375), (192, 0.374, 0.387), (336, 0.410, 0.411), (720, 0.478, 0.450))
    },
    ("forecast", "ETTh1", "dlinear", 96): {"mse": 0.386, "mae": 0.400},
    ("forecast", "ETTh1", "patchtst", 96): {"mse": 0.414, "mae": 0.419},
    **{
        ("impute", "ETTh1", "timesnet", rate): {"mse": mse, "mae": mae}
        for rate, mse, mae in ((0.125, 0.057, 0.159), (0.25, 0.069, 0.178), (0.375, 0.084, 0.196), (0.5, 0.102, 0.215))
    },
    ("classify-series", "JapaneseVowels", "timesnet", 0): {"accuracy": 0.984},
}
#: What a reader must know beside the numbers.
NOTES = {
    "forecast": "Test errors on standardised values, all windows; test was scored once, after validation had chosen. "
    "PatchTST's published numbers at 96 steps are another paper's (arXiv 2310.06625); the recipe is the "
    "Time-Series-Library's script for these lengths, and ends below them.",
    "impute": "Errors on the hidden values, standardised. Published validation and test masks were drawn anew at every "
    "call and windows reached back over the borders of the parts; here masks belong to the window, and windows lie in "
    "one part as a whole.",
    "classify-series": "The published accuracy was chosen on the test part (validation and test are one in the "
    "official code); here validation is held out of the training samples and test is scored once.",
}


def command(board: Mapping[str, Any]) -> str:
    """The command line that makes this leaderboard, the file by its name alone."""
    settings = board["settings"]
    data = {k: v for k, v in settings["data"].items() if k not in ("source", "split")}
    parts = ["foveate", "compare", board["task"], Path(settings["data"]["source"]).name]
    parts += ["--systems", ",".join(settings["systems"])]
    for name, value in data.items():
        parts += [f"--{name.replace('_', '-')}", f"{value}"]
    for system, options in settings.get("options", {}).items():
        parts += [word for name, value in options.items() for word in ("--set", f"{system}.{name}={value}")]
    if settings.get("preset"):
        parts += ["--preset", settings["preset"]]
    if any(not row["recipe"] and not row["baseline"] for row in board["rows"]):
        parts += ["--steps", f"{settings['steps']}"]
    return shlex.join([*parts, "--seeds", f"{settings['seeds']}"])


def _dataset(source: str) -> str:
    """The public data set that a file is called after, whatever the preset names; else the file's own name."""
    try:
        return known_data("published", source).name
    except InvalidValue:
        return Path(source).stem


def key(board: Mapping[str, Any], dataset: str, system: str) -> tuple[str, str, str, float]:
    facts = board["data"]
    which = {"forecast": "horizon", "impute": "mask_rate"}.get(board["task"])
    return board["task"], dataset, system, facts[which] if which else 0


def table(board: Mapping[str, Any]) -> list[str]:
    """One run: its command and a row for every system that finished, with the published number where there is one."""
    settings, metrics = board["settings"], list(board["metrics"])[:2]
    dataset = _dataset(settings["data"]["source"])
    theirs = {row["system"]: PUBLISHED.get(key(board, dataset, row["system"]), {}) for row in board["rows"]}
    told = [m for m in metrics if any(m in published for published in theirs.values())]
    lines = [f"    {command(board)}", ""]
    head = ["system", *(f"test {m}" for m in metrics), *(f"published {m}" for m in told)]
    head += [*(["difference"] if told else []), "recipe", "best after / trained", "time"]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in board["rows"]:
        if row["status"] != "done":
            continue
        published = theirs[row["system"]] if row["recipe"] else {}
        cells = [row["system"], *(_spread(row["test"][m]) for m in metrics)]
        cells += [f"{published[m]:.3f}" if m in published else "" for m in told]
        shares = [row["test"][m]["mean"] / published[m] - 1 for m in told if m in published]
        if told:
            cells.append(", ".join(f"{100 * share:+.1f} %" for share in shares))
        recipe = "published, other options" if settings.get("options", {}).get(row["system"]) else "published"
        cells.append(recipe if row["recipe"] else "baseline" if row["baseline"] else "usual")
        cells += [_steps(row, board), duration(row["seconds"])]
        lines.append("| " + " | ".join(cells) + " |")
    versions = ", ".join(f"{k} {v}" for k, v in board["versions"].items() if k in ("python", "torch"))
    return [
        *lines,
        "",
        f"{board['machine'].get('cpu', 'CPU')}, {settings['threads']} thread per trial, {versions}.",
        "",
    ]


def _spread(figure: Mapping[str, Any]) -> str:
    spread = f" ± {figure['std']:.4f}" if figure["std"] is not None else ""
    return f"{figure['mean']:.4f}{spread}"


def _steps(row: Mapping[str, Any], board: Mapping[str, Any]) -> str:
    """Where training stood at the best validation and at its end, in passes where the recipe counts them."""
    curves = [seed["curve"] for seed in row["seeds"] if seed["curve"]]
    if not curves or not row["steps"]:
        return ""
    sign = -1 if board["higher_is_better"] else 1
    in_order = reversed if row["recipe"] else iter  # of equal validations a published recipe takes the last
    best = [min(in_order(curve), key=lambda point: sign * point[2])[0] for curve in curves]
    ends = [curve[-1][0] for curve in curves]
    every = (row["recipe"] or {}).get("validate_every", 1)
    unit = "passes" if row["recipe"] else "steps"
    texts = [f"{count(b // every)} / {count(e // every)}" for b, e in zip(best, ends, strict=True)]
    return f"{', '.join(texts)} {unit}"


def page(task: str, boards: Sequence[Mapping[str, Any]]) -> str:
    """A whole page in Markdown."""
    title = PAGES[task][1]
    lines = [f"# {title}", "", NOTES[task], "Made by `python benchmarks/published.py RUN...`.", ""]
    for board in boards:
        lines += table(board)
    if task == "impute":
        lines += official()
    alone = [row["system"] for board in boards for row in board["rows"] if row.get("batch_dependence")]
    for name in sorted(set(alone)):
        lines.append(
            f"{name}'s answers depend on the batch: it was scored in batches of the training's size, as published; "
            f"`foveate predict` asks it for one window at a time."
        )
    return "\n".join(lines).rstrip() + "\n"


def official() -> list[str]:
    """What the authors' own code comes to here, if that was run."""
    file = HERE / "impute_official.json"
    if not file.exists():
        return []
    found = json.loads(file.read_text(encoding="utf-8"))
    lines = [
        "The authors' own code, trained as their script does on the same file (`benchmarks/impute_official.py`):",
        "",
    ]
    lines += ["| hidden | test mse | test mae |", "|---|---|---|"]
    return [*lines, *(f"| {rate} | {e['mse']:.4f} | {e['mae']:.4f} |" for rate, e in found.items()), ""]


def main() -> None:
    boards = [json.loads((Path(run) / "leaderboard.json").read_text(encoding="utf-8")) for run in sys.argv[1:]]
    for task, (name, _) in PAGES.items():
        chosen = [board for board in boards if board["task"] == task]
        if chosen:
            (HERE / name).write_text(page(task, chosen), encoding="utf-8")
            print(HERE / name)


if __name__ == "__main__":
    main()
