"""The charts of a report, drawn from a leaderboard's record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..pages import figures
from ..pages.charts import Line, Point, forecast_panel, line_chart, scatter
from .statistics import pareto_front

#: So many systems get a colour of their own; the others stay in the background.
TONES = 8
#: Systems whose forecasts are shown, and panels for each.
MOST_SHOWN, MOST_PANELS = 8, 6
#: Longest name in a chart.
LONGEST = 26

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Gallery:
    """Forecast panels of one system."""

    system: str
    tone: int
    panels: list[str]


def tones(rows: Sequence[Row]) -> dict[str, int]:
    """System to its tone: 1 to 8 for the best ones, 0 for baselines, failures and those after the eighth."""
    coloured = [row["system"] for row in rows if row["status"] == "done" and not row["baseline"]][:TONES]
    return {row["system"]: coloured.index(row["system"]) + 1 if row["system"] in coloured else 0 for row in rows}


def class_name(system: str) -> str:
    """A system's name without the module of a user's own class."""
    return system.rpartition(":")[2]


def short(system: str) -> str:
    """A system's name for a chart."""
    return figures.plain(class_name(system), LONGEST)


def quality_against(leaderboard: Mapping[str, Any], cost: str) -> str:
    """Test quality against "latency", "memory" or "parameters"; "" where fewer than two systems have both."""
    primary, higher, split = leaderboard["primary"], leaderboard["higher_is_better"], leaderboard["ranked_on"]
    colour = tones(leaderboard["rows"])
    points: list[Point] = []
    for row in leaderboard["rows"]:
        latency = row["latency_ms"] or {}
        value = {
            "latency": latency.get("median"),
            "memory": row["peak_memory_mb"],
            "parameters": row["parameters"],
        }[cost]
        quality = row[split][primary]
        if row["status"] == "done" and finite_pair(value, quality["mean"]):
            bars = (latency.get("low"), latency.get("high")) if cost == "latency" else (None, None)
            note = f"{row['system']}: {primary} {figures.significant(quality['mean'])}, {_told(cost, value)}"
            points.append(
                Point(
                    short(row["system"]),
                    value,
                    quality["mean"],
                    colour[row["system"]],
                    *bars,
                    quality["std"],
                    note,
                    baseline=row["baseline"],
                    named=row["baseline"] or colour[row["system"]] > 0,
                )
            )
    if len(points) < 2:
        return ""
    sign = -1 if higher else 1
    on_front = pareto_front([(sign * p.y, p.x) for p in points])
    points = [replace(p, front=on) for p, on in zip(points, on_front, strict=True)]
    name = {"latency": "latency", "memory": "peak memory", "parameters": "parameters"}[cost]
    unit = {"latency": "latency of one sample, ms", "memory": "peak memory in training, MB", "parameters": "parameters"}
    better = "higher" if higher else "lower"
    return scatter(
        points,
        title=f"{figures.SPLITS[split].capitalize()} {primary} against {name}",
        description=f"{len(points)} systems; {better} and further left is better. On the Pareto front: "
        f"{figures.english_list([p.name for p in points if p.front])}.",
        x_label=unit[cost],
        y_label=f"{figures.SPLITS[split]} {figures.metric_name(primary)} ({better} is better)",
        higher_is_better=higher,
    )


def finite_pair(a: Any, b: Any) -> bool:
    return figures.finite(a) and figures.finite(b)


def _told(cost: str, value: float) -> str:
    if cost == "latency":
        return f"{figures.milliseconds(value)} ms"
    return f"{figures.fixed(value, 0)} MB" if cost == "memory" else f"{figures.count(value)} parameters"


def learning_curves(leaderboard: Mapping[str, Any], what: str) -> str:
    """Validation metric ("val") or training loss ("train") over steps, one line for each seed; "" without any.

    The best seed of a system is drawn in full, the others pale; systems that do not train are dashed lines.
    """
    rows, primary = leaderboard["rows"], leaderboard["validation"]["primary"]
    colour, column = tones(rows), 2 if what == "val" else 1
    lines: list[Line] = []
    reach = 0.0
    for row in rows:
        curves = [(s["seed"], s["curve"]) for s in row["seeds"] if s["curve"] and s["status"] == "done"]
        if row["status"] != "done" or row["baseline"] or not curves:
            continue
        best = _best_seed(row, leaderboard)
        for seed, curve in curves:
            points = [(float(point[0]), point[column]) for point in curve]
            reach = max(reach, points[-1][0])
            named = seed == best and colour[row["system"]] > 0
            lines.append(Line(short(row["system"]) if named else "", points, colour[row["system"]], faint=seed != best))
    if what == "val" and lines:
        for row in rows:
            value = row["val"][primary]["mean"]
            if row["status"] == "done" and row["baseline"] and value is not None:
                lines.append(Line(short(row["system"]), [(0.0, value), (reach, value)], 0, dashed=True))
    values = [v for line in lines for _, v in line.points if v is not None and math.isfinite(v)]
    return line_chart(
        lines,
        title=f"Validation {primary} over training steps" if what == "val" else "Training loss over steps",
        description="One line per seed; the best seed of each system is drawn in full.",
        x_label="training steps",
        y_label=f"validation {figures.metric_name(primary)}" if what == "val" else "training loss",
        log=bool(values) and min(values) > 0 and max(values) / min(values) > 2.5,
    )


def _best_seed(row: Row, leaderboard: Mapping[str, Any]) -> int:
    """The seed that validated best; the first one if none did."""
    chooses = leaderboard["validation"]
    primary, sign = chooses["primary"], -1 if chooses["higher_is_better"] else 1
    seeds = [s for s in row["seeds"] if figures.finite(s["val"].get(primary))]
    return min(seeds or row["seeds"], key=lambda s: (sign * s["val"].get(primary, 0.0), s["seed"]))["seed"]


def forecast_galleries(leaderboard: Mapping[str, Any]) -> list[Gallery]:
    """Forecasts against truth of the winner, the best others and the best baseline; [] for tasks without forecasts.

    Reads the examples that the forecast task gives: ``{"windows": [{"series", "history_times", "future_times",
    "targets": [{"name", "history", "truth", "prediction", "bands" (with quantiles)}, ...]}, ...]}``.
    """
    shown = shown_systems(leaderboard, "windows")
    if not shown:
        return []
    colour = tones(leaderboard["rows"])
    reaches = _reaches(shown)
    return [
        Gallery(row["system"], colour[row["system"]], _panels(row, colour[row["system"]], reaches)) for row in shown
    ]


def shown_systems(leaderboard: Mapping[str, Any], what: str) -> list[Row]:
    """The systems whose examples hold ``what`` and are shown: the winner, the best others and the best baseline."""
    rows = [row for row in leaderboard["rows"] if row["status"] == "done" and isinstance(row["examples"], Mapping)]
    done = [row for row in rows if row["examples"].get(what)]
    chosen = (leaderboard["best"] or {}).get("system")
    ordered = sorted(done, key=lambda row: row["system"] != chosen)
    baseline = next((row for row in done if row["baseline"]), None)
    shown = ordered[:MOST_SHOWN]
    if baseline is not None and baseline not in shown:
        shown[-1] = baseline
    return shown


def _windows(row: Row) -> list[Mapping[str, Any]]:
    return row["examples"].get("windows") or []


def _pairs(row: Row) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """(window, target) of a system's panels: all windows of the first target, then of the next."""
    windows = _windows(row)
    most = max((len(w["targets"]) for w in windows), default=0)
    pairs = [(w, w["targets"][i]) for i in range(most) for w in windows if i < len(w["targets"])]
    return pairs[:MOST_PANELS]


def _reaches(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """Common y range of each panel over the systems shown, so that switching between them compares."""
    reaches: list[tuple[float, float]] = []
    for number in range(max(len(_pairs(row)) for row in rows)):
        values = [
            v
            for row in rows
            for _, target in _pairs(row)[number : number + 1]
            for part in (target["history"], target["truth"], target["prediction"], *_ends(target))
            for v in part
            if v is not None and math.isfinite(v)
        ]
        reaches.append((min(values), max(values)) if values else (0.0, 1.0))
    return reaches


def _ends(target: Mapping[str, Any]) -> list[Sequence[float | None]]:
    return [band[end] for band in target.get("bands") or [] for end in ("low", "high")]


def _panels(row: Row, tone: int, reaches: Sequence[tuple[float, float]]) -> list[str]:
    panels = []
    for (window, target), reach in zip(_pairs(row), reaches, strict=False):
        times = [*window["history_times"], *window["future_times"]]
        series = figures.plain(window.get("series") or "", 30)
        name = figures.plain(str(target["name"]) + (f", {series}" if series else ""), 48)
        begin = window["future_times"][0].replace("T", " ") if window["future_times"] else ""
        about = f"{len(target['truth'])} steps forecast by {row['system']} from {begin}, with the truth."
        past, truth, prediction = target["history"], target["truth"], target["prediction"]
        bands = target.get("bands") or []
        if bands:
            low, high = bands[0]["levels"]
            about += f" The widest band reaches from the {low:g} to the {high:g} quantile."
        drawn = [(band["low"], band["high"]) for band in bands]
        panels.append(
            forecast_panel(
                past, truth, prediction, times, title=name, description=about, tone=tone, reach=reach, bands=drawn
            )
        )
    return [panel for panel in panels if panel]
