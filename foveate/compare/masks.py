"""The table of pictures in the report of a segmentation: images, true masks and what systems answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..pages import figures
from .pictures import class_name, shown_systems, tones


@dataclass(frozen=True, slots=True)
class Row:
    """One image: ``cells`` are (text for who does not see it, PNG in base64, text below), image and truth first."""

    name: str
    cells: list[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class Table:
    """``legend``: (class, colour); ``systems``: (name, tone) of the columns behind image and truth."""

    legend: list[tuple[str, str]]
    systems: list[tuple[str, int]]
    rows: list[Row]


def table(leaderboard: Mapping[str, Any]) -> Table | None:
    """Pictures of the winner, the best others and the best baseline; None for tasks without masks.

    Reads the examples that the task gives: ``{"classes", "colours", "images": [{"name", "dice", "image", "truth",
    "answer"}, ...]}``, of every system those of the same images.
    """
    shown = shown_systems(leaderboard, "images")
    if not shown:
        return None
    colour, first = tones(leaderboard["rows"]), shown[0]["examples"]
    rows = []
    for n, image in enumerate(first["images"]):
        cells = [(image["name"], image["image"], ""), (f"true mask of {image['name']}", image["truth"], "")]
        for row in shown:
            answer = row["examples"]["images"][n]
            below = figures.fixed(answer["dice"], 2)
            cells.append((f"{class_name(row['system'])} on {image['name']}", answer["answer"], below))
        rows.append(Row(image["name"], cells))
    systems = [(class_name(row["system"]), colour[row["system"]]) for row in shown]
    return Table(list(zip(first["classes"], first["colours"], strict=True)), systems, rows)
