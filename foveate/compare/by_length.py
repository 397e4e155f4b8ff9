"""Charts of tests that were repeated at several lengths: accuracy over length, and over depth and length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..pages import figures
from ..pages.charts import Line, line_chart
from ..pages.heatmaps import share_map
from . import pictures
from .pictures import MOST_SHOWN, short, tones


def over_length(leaderboard: Mapping[str, Any]) -> str:
    """Accuracy on test over the length of the samples, one line per system; "" where there is one length or none.

    Reads the examples of probes, ``{"lengths", "accuracy", "groups", "grid"}``: see
    :meth:`foveate.tasks.probing.base.ProbeTask.evaluate`.
    """
    rows = _measured(leaderboard)
    if not rows or len(rows[0]["examples"]["lengths"]) < 2:
        return ""
    colour = tones(leaderboard["rows"])
    lengths = rows[0]["examples"]["lengths"]
    lines = []
    for row in rows:
        tone, found = colour[row["system"]], row["examples"]
        points = [(float(n), v) for n, v in zip(found["lengths"], found["accuracy"], strict=True)]
        named = tone > 0 or row["baseline"]
        lines.append(Line(short(row["system"]) if named else "", points, tone, dashed=row["baseline"]))
    return line_chart(
        lines,
        title="Test accuracy over length",
        description=f"One line per system, at the lengths {figures.english_list([str(n) for n in lengths])}.",
        x_label="length of the samples, log scale",
        y_label="test accuracy",
        log=False,
        x_ticks=[(float(n), f"{n:,}") for n in lengths],
    )


def over_depth(leaderboard: Mapping[str, Any]) -> list[str]:
    """One heat map for each of the best systems: accuracy by depth of the key and length; [] for other tasks."""
    rows = [row for row in _measured(leaderboard) if row["examples"].get("grid")]
    colour = tones(leaderboard["rows"])
    charts = []
    for row in rows[:MOST_SHOWN]:
        found = row["examples"]
        charts.append(
            share_map(
                found["grid"],
                rows=found["groups"],
                columns=[f"{n:,}" for n in found["lengths"]],
                title=pictures.class_name(row["system"]),
                description=f"Share of keys that {row['system']} found, in per cent, by depth and length.",
                row_label=f"{short(row['system'])}: keys found, %, by depth",
                column_label="length of the samples",
                tone=colour[row["system"]],
            )
        )
    return charts


def _measured(leaderboard: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Finished rows, best first, that have accuracies by length."""
    done = [row for row in leaderboard["rows"] if row["status"] == "done" and isinstance(row["examples"], Mapping)]
    return [row for row in done if row["examples"].get("lengths")]
