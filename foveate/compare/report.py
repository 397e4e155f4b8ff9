"""The report of a comparison: what stands on its page."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..hub.card import new_data
from ..pages import figures
from ..pages.charts import strip
from ..pages.page import charts_of, date, facts, machine_lines, render_page
from . import by_length, masks, pictures
from .confusion import confusions
from .tables import quality_cells, shared_ranks
from .wording import method, tracked, verdict


def render(leaderboard: Mapping[str, Any]) -> str:
    """The report as HTML.

    Args:
        leaderboard: the content of ``leaderboard.json``; nothing else is read.
    """
    rows = leaderboard["rows"]
    done = [row for row in rows if row["status"] == "done"]
    galleries = pictures.forecast_galleries(leaderboard)
    return render_page(
        "report.html",
        Path(__file__).parent / "templates",
        board=leaderboard,
        version=leaderboard["versions"]["foveate"],
        verdict=verdict(leaderboard),
        tiles=_tiles(leaderboard),
        columns=_columns(leaderboard),
        rows=_table_rows(leaderboard),
        unfinished=[_unfinished(row) for row in rows if row["reason"] or row["status"] != "done"],
        costs=charts_of(pictures.quality_against(leaderboard, cost) for cost in _costs(done)),
        curves=charts_of(pictures.learning_curves(leaderboard, what) for what in ("val", "train")),
        lengths=charts_of([by_length.over_length(leaderboard), *by_length.over_depth(leaderboard)]),
        masks=masks.table(leaderboard),
        confusions=[(pictures.class_name(name), charts_of([chart])) for name, chart in confusions(leaderboard)],
        galleries=[(pictures.class_name(g.system), g.tone, charts_of(g.panels)) for g in galleries],
        sweep=_sweep(leaderboard),
        data_facts=facts(leaderboard["data"], skip=("notes",)),
        notes=[str(note) for note in leaderboard["data"].get("notes") or []],
        settings=facts(leaderboard["settings"]),
        tracked=tracked(leaderboard),
        machine=machine_lines(leaderboard["machine"]),
        versions=facts(leaderboard["versions"]),
        method=method(leaderboard),
        commands=_commands(leaderboard),
        created=date(leaderboard["created"]),
        many=len(done) > 1,
    )


def _costs(done: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The costs that quality is drawn against."""
    return "latency", "memory" if all(figures.finite(row["peak_memory_mb"]) for row in done) else "parameters"


def _tiles(leaderboard: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(caption, figure, small print) of the winner's figures beside the headline."""
    best, primary, split = leaderboard["best"], leaderboard["primary"], leaderboard["ranked_on"]
    if best is None:
        return []
    rows = leaderboard["rows"]
    winner = next(row for row in rows if row["system"] == best["system"])
    score = winner[split][primary]
    decimals = figures.decimals_for([score["mean"]])
    spread = f"±{figures.fixed(score['std'], decimals)} over seeds" if score["std"] is not None else "one seed"
    tiles = [
        (f"{figures.SPLITS[split]} {figures.metric_name(primary)}", figures.fixed(score["mean"], decimals), spread)
    ]
    baseline = next((row for row in rows if row["baseline"] and row["status"] == "done"), None)
    if baseline is not None and baseline is not winner and baseline[split][primary]["mean"]:
        change = 100 * (score["mean"] / baseline[split][primary]["mean"] - 1)
        tiles.append(
            (
                f"against {baseline['system']}",
                f"{change:+.0f} %".replace("-", "−"),
                f"in {figures.metric_name(primary)}",
            )
        )
    if winner["latency_ms"]:
        latency = winner["latency_ms"]
        small = f"{figures.milliseconds(latency['low'])} to {figures.milliseconds(latency['high'])} ms, one thread"
        tiles.append(("latency, one sample", f"{figures.milliseconds(latency['median'])} ms", small))
    if winner["parameters"] is not None:
        flops = f"{figures.count(winner['flops'])} FLOPs forward" if winner["flops"] is not None else ""
        tiles.append(("parameters", figures.count(winner["parameters"]), flops))
    return tiles


# ----- the table


def _columns(leaderboard: Mapping[str, Any]) -> list[dict[str, str]]:
    """Headings with their explanations; "kind" is "text" or "number", for alignment and sorting."""
    (primary, *others), split = leaderboard["metrics"], leaderboard["ranked_on"]
    chose = "mean over seeds on validation data, which chose the winner"
    over, chooses = figures.SPLITS[split].capitalize(), leaderboard["validation"]["primary"]
    arrow = "↑" if leaderboard["higher_is_better"] else "↓"

    def number(label: str, hint: str, over: str = "") -> dict[str, str]:
        return {"label": label, "over": over, "hint": hint, "kind": "number"}

    return [
        number(
            "#", f"rank on {figures.SPLITS[split]} data; = marks systems that the paired test cannot tell from the best"
        ),
        {"label": "System", "over": "", "hint": "", "kind": "text"},
        number(f"{figures.metric_name(primary)} {arrow}", "mean over seeds, ± standard deviation over seeds", over),
        *(number(figures.metric_name(m), "mean over seeds", over) for m in others),
        *([number(figures.metric_name(chooses), chose, "Val.")] if split == "test" else []),
        number("p", "paired test against the best row, corrected for the number of comparisons", "To best"),
        number("ms", "median time of one sample on one thread, measured interleaved after training", "Latency"),
        number("MB", "peak resident memory in training above the idle process", "Memory"),
        number("params", "learned parameters", "Learned"),
        number("FLOPs", "forward pass of one sample: matmuls, convolutions and attention", "Forward"),
        number("per s", "training throughput in samples per second", "Samples"),
        number("time", "training, validation and test of all seeds together, h:min:s", "Total"),
    ]


def _table_rows(leaderboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows, (primary, *others), ranked_on = leaderboard["rows"], leaderboard["metrics"], leaderboard["ranked_on"]
    chosen = (leaderboard["best"] or {}).get("system")
    colour = pictures.tones(rows)
    finished = [row for row in rows if row["status"] == "done"]
    # A baseline that is far off would press all others together.
    means = [row[ranked_on][primary]["mean"] for row in [r for r in finished if not r["baseline"]] or finished]
    ranks, quality = shared_ranks(rows), quality_cells(rows, ranked_on, primary)
    scores = [(ranked_on, m) for m in others]
    scores += [("val", leaderboard["validation"]["primary"])] if ranked_on == "test" else []
    columns = [(split, m, quality_cells(rows, split, m)) for split, m in scores]
    made = []
    for i, row in enumerate(rows):
        score, ran = row[ranked_on][primary], row["status"] == "done"
        latency = (row["latency_ms"] or {}).get("median")
        picture = strip(score["mean"], score["std"], min(means), max(means), colour[row["system"]]) if ran else ""
        cells = [
            *(_cell(texts[i].split()[0] if ran else "", row[split][m]["mean"]) for split, m, texts in columns),
            _cell(_p_value(row), row["p_value"]),
            _cell(figures.milliseconds(latency), latency),
            _cell(figures.fixed(row["peak_memory_mb"], 0), row["peak_memory_mb"]),
            _cell(figures.count(row["parameters"]), row["parameters"]),
            _cell(figures.count(row["flops"]), row["flops"]),
            _cell(figures.count(row["train_samples_per_second"]), row["train_samples_per_second"]),
            _cell(figures.clock(row["seconds"]), row["seconds"]),
        ]
        made.append(
            {
                "rank": ranks[i].strip(),
                "place": None if row["rank"] is None else i,  # sorting by rank restores the order within ties
                "system": row["system"],
                "shown": pictures.class_name(row["system"]),
                "tone": colour[row["system"]],
                "badges": _badges(row, chosen),
                "status": row["status"],
                "chosen": row["system"] == chosen,
                "tied": row["tied"],
                "baseline": row["baseline"],
                "quality": quality[i].strip().partition(" ")[0],
                "spread": quality[i].strip().partition(" ")[2],
                "quality_value": score["mean"],
                "strip": Markup(picture),
                "cells": cells if ran else [_cell("", None) for _ in cells],
            }
        )
    return made


def _cell(text: str, value: Any) -> dict[str, Any]:
    return {"text": text, "value": value if figures.finite(value) else ""}


def _p_value(row: Mapping[str, Any]) -> str:
    if row["p_value"] is None:
        return ""
    return (
        "<0.001"
        if row["p_value"] < 0.001
        else f"{row['p_value']:.3f}"
        if row["p_value"] < 0.1
        else f"{row['p_value']:.2f}"
    )


def _badges(row: Mapping[str, Any], chosen: str | None) -> list[tuple[str, str]]:
    """(class, text) of the small signs after a name."""
    badges = [("chosen", "chosen")] if row["system"] == chosen else []
    badges += [("pareto", "Pareto")] if row["pareto"] else []
    badges += [("baseline", "baseline")] if row["baseline"] else []
    badges += [("custom", "yours")] if row["kind"] == "custom" else []
    return badges + ([("failed", row["status"])] if row["status"] != "done" else [])


def _unfinished(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """(system, status, reason) of a system of which not every trial finished."""
    status = "partly failed" if row["status"] == "done" else row["status"]
    return row["system"], status, row["reason"] or "no reason given"


def _sweep(leaderboard: Mapping[str, Any]) -> dict[str, Any] | None:
    """The learning-rate sweep: rates as columns, systems as rows, None if there was none."""
    primary = leaderboard["validation"]["primary"]
    swept = [row for row in leaderboard["rows"] if row["sweep"]]
    rates = sorted({item["learning_rate"] for row in swept for item in row["sweep"]})
    if not rates:
        return None
    table = []
    for row in swept:
        values = {item["learning_rate"]: _sweep_value(item.get("val"), primary) for item in row["sweep"]}
        decimals = figures.decimals_for(values.values())
        cells = [(figures.fixed(values.get(rate), decimals), rate == row["learning_rate"]) for rate in rates]
        table.append((row["system"], pictures.class_name(row["system"]), cells))
    shown = [figures.rate(rate) for rate in rates]
    return {"metric": figures.metric_name(primary), "rates": shown, "rows": table}


def _sweep_value(val: Any, primary: str) -> float | None:
    value = val.get(primary) if isinstance(val, Mapping) else val
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _commands(leaderboard: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(purpose, command) with the comparison's own folder."""
    settings = leaderboard["settings"]
    out = Path(str(settings.get("out") or "OUT"))
    again = f"foveate compare {leaderboard['task']} --config {shlex.quote(str(out / 'config.toml'))}"
    commands = [("Run this comparison again, or go on where it stopped", again)]
    if leaderboard["best"] is not None:
        best = str(out / leaderboard["best"]["path"])
        commands.append(("Use the winner", f"foveate predict {shlex.quote(best)} {new_data(leaderboard['task'])}"))
        commands.append(("The winner as a PyTorch module", f"import foveate\nmodel = foveate.load({best!r})"))
    commands.append(
        ("Merge with other data sets into ranks", f"foveate leaderboard {shlex.quote(str(out))} OTHER_FOLDER")
    )
    return commands
