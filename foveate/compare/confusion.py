"""What systems took for what, in the report of a classification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..pages import figures
from ..pages.heatmaps import share_map
from .pictures import shown_systems, tones

#: Classes above which the cells would be too small to be read, systems that are shown.
MOST_CLASSES, MOST_SYSTEMS = 12, 2
_LONGEST = 14


def confusions(leaderboard: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(system, drawing) of the winner and the best other; [] for tasks without classes, or with too many.

    Reads the examples that tasks of classes give: ``{"classes": names, "confusion": rows of counts, truth down, answers
    across}``.
    """
    colour, made = tones(leaderboard["rows"]), []
    for row in shown_systems(leaderboard, "confusion")[:MOST_SYSTEMS]:
        classes, counts = row["examples"]["classes"], row["examples"]["confusion"]
        if len(classes) > MOST_CLASSES:
            return []
        names = [figures.plain(str(name), _LONGEST) for name in classes]
        drawing = share_map(
            [[count / sum(line) if sum(line) else None for count in line] for line in counts],
            rows=names,
            columns=names,
            title=f"Answers of {row['system']} by true class",
            description="Percentages of each true class, true classes down, answers across.",
            row_label="true class",
            column_label="answer",
            tone=colour[row["system"]],
        )
        made.append((row["system"], drawing))
    return made
