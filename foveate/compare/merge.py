"""Leaderboards of several data sets merged into ranks.

On each data set the finished systems have ranks, and systems tied there share the mean of their places. Runs need not
hold the same systems, and a second place among three is not one among twenty; the merged order is therefore by the
share of opponents beaten (ties half), over all data sets and opponents met. Where every system ran everywhere, this is
the order of the mean ranks. A failure is a last place: crashing must not improve a mean. What was skipped does not
count.

Whether one system is better than another over data sets is tested with the data sets as the samples: an exact
sign-flip test over those where both ran (it does not depend on who else was there, as tests on mean ranks do; see
Benavoli, Corani & Mangili, 2016), Holm-corrected over all pairs.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from ..errors import InvalidValue
from ..files import read_json
from ..pages import figures
from .statistics import LEVEL, fractional_ranks, holm, sign_flip_p

#: With fewer data sets in common, no sign-flip test can reach the level of 5 %.
FEWEST_DATA_SETS = 6


def merge(folders: Sequence[str | Path]) -> dict[str, Any]:
    """Merge the leaderboards of these folders.

    Returns:
        ``{"format": 1, "data_sets": [{"name", "task", "path", "systems"}], "rows": [{"rank", "system", "mean_rank",
        "beaten" (share of opponents, 0 to 1), "wins", "data_sets" (number it ran on), "ranks" (one per data set, None
        where it did not run), "group", "beaten_by"}]}``, best first. ``wins`` counts data sets on which nothing was
        significantly better than the system, ``group`` is one more than the number of systems significantly better
        over the data sets.

    Raises:
        InvalidValue: no folder is given, one is given twice, or one holds no whole leaderboard.
    """
    if not folders:
        raise InvalidValue("there is nothing to merge: name the folders of one or more comparisons.")
    paths = [Path(folder) for folder in folders]
    repeated = [p for i, p in enumerate(paths) if p.resolve() in [q.resolve() for q in paths[:i]]]
    if repeated:
        raise InvalidValue(f"{repeated[0]} is given twice: name each comparison once.")
    boards = [_read(path) for path in paths]
    names = sorted({row["system"] for board in boards for row in board["rows"] if row["status"] != "skipped"})
    places = [_places(board) for board in boards]
    scores = {name: _share_beaten(name, places) for name in names}
    beaten_by = _significance(names, places)
    rows = []
    for name in sorted(names, key=lambda n: (-scores[n], n)):
        ranks = [place.get(name) for place in places]
        ran = [r for r in ranks if r is not None]
        rows.append(
            {
                "system": name,
                "mean_rank": sum(ran) / len(ran),
                "beaten": scores[name],
                "wins": sum(_wins(name, board) for board in boards),
                "data_sets": len(ran),
                "ranks": ranks,
                "group": 1 + len(beaten_by[name]),
                "beaten_by": beaten_by[name],
            }
        )
    # Equal shares are equal ranks.
    for row in rows:
        row["rank"] = 1 + sum(other["beaten"] > row["beaten"] + 1e-12 for other in rows)
    data_sets = [
        {"name": _label(board, path), "task": board["task"], "path": str(path), "systems": len(place)}
        for board, path, place in zip(boards, paths, places, strict=True)
    ]
    return {"format": 1, "data_sets": data_sets, "rows": rows}


def _read(folder: Path) -> dict[str, Any]:
    file = folder / "leaderboard.json"
    if not file.is_file():
        raise InvalidValue(f"{folder} has no leaderboard.json: name the output folder of a finished comparison.")
    board = read_json(file)
    if not isinstance(board, dict) or board.get("format") != 1 or not isinstance(board.get("rows"), list):
        raise InvalidValue(f"{file} is not a leaderboard of format 1: run the comparison again with this version.")
    return board


def _label(board: Mapping[str, Any], folder: Path) -> str:
    source = figures.plain(board["data"].get("source") or "")
    return Path(source).stem or folder.resolve().name


def _places(board: Mapping[str, Any]) -> dict[str, float]:
    """System to its fractional rank on one data set; failed systems share the last places."""
    entered = [row for row in board["rows"] if row["status"] != "skipped"]
    values = [row["rank"] if row["status"] == "done" else math.inf for row in entered]
    return dict(zip((row["system"] for row in entered), fractional_ranks(values), strict=True))


def _wins(name: str, board: Mapping[str, Any]) -> bool:
    return any(row["system"] == name and row["rank"] == 1 for row in board["rows"])


def _outcome(name: str, other: str, place: Mapping[str, float]) -> float:
    """1 if ``name`` is ranked before ``other`` on a data set, -1 if after, 0 if they are tied."""
    return float(place[name] < place[other]) - float(place[name] > place[other])


def _share_beaten(name: str, places: Sequence[Mapping[str, float]]) -> float:
    """Mean over data sets of the share of opponents beaten there, ties half; 0.5 for a system that met nobody."""
    shares = []
    for place in places:
        opponents = [other for other in place if other != name]
        if name in place and opponents:
            shares.append(sum(1 + _outcome(name, other, place) for other in opponents) / (2 * len(opponents)))
    return sum(shares) / len(shares) if shares else 0.5


def _significance(names: Sequence[str], places: Sequence[Mapping[str, float]]) -> dict[str, list[str]]:
    """System to the systems that are significantly better over the data sets."""
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    outcomes = [[_outcome(a, b, place) for place in places if a in place and b in place] for a, b in pairs]
    beaten_by: dict[str, list[str]] = {name: [] for name in names}
    if not pairs:
        return beaten_by
    corrected = holm(torch.tensor([sign_flip_p(o) for o in outcomes], dtype=torch.float64)).tolist()
    for (a, b), outcome, p in zip(pairs, outcomes, corrected, strict=True):
        if p < LEVEL:
            winner, loser = (a, b) if sum(outcome) > 0 else (b, a)
            beaten_by[loser].append(winner)
    return beaten_by


def merged_table(merged: Mapping[str, Any], console: Console | None = None) -> Group:
    """The merged ranks as a table for this console; data sets that do not fit into the console's width are left out."""
    width = console.width if console else shutil.get_terminal_size().columns
    rows, data_sets = merged["rows"], merged["data_sets"]
    longest = 24 if width < 100 else 40
    several_tasks = len({d["task"] for d in data_sets}) > 1
    labels = [figures.plain((f"{d['task']} " if several_tasks else "") + d["name"], 12) for d in data_sets]
    system_width = max([len("system"), *(len(figures.plain(row["system"], longest)) for row in rows)])
    room = width - (4 + system_width + 2 + 9 + 10 + 7 + 10)
    shown = 0
    while shown < len(labels) and room - (len(labels[shown]) + 2) >= 0:
        room -= len(labels[shown]) + 2
        shown += 1
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    headers = ["#", "system", "mean\nrank", "opponents\nbeaten", "first\nplaces", "data\nsets", *labels[:shown]]
    for header in headers:
        made.add_column(Text(header), justify="left" if header == "system" else "right", no_wrap=True)
    ranks = [row["rank"] for row in rows]
    for row in rows:
        cells = [
            f"{row['rank']}{'=' if ranks.count(row['rank']) > 1 else ' '}",
            figures.plain(row["system"], longest),
            f"{row['mean_rank']:.2f}",
            f"{100 * row['beaten']:.0f} %",
            str(row["wins"]),
            f"{row['data_sets']}/{len(data_sets)}",
            *(figures.NONE if r is None else f"{r:g}" for r in row["ranks"][:shown]),
        ]
        made.add_row(*(Text(cell, style="bold" if row["rank"] == 1 else "") for cell in cells))
    remarks = [Text(remark, style="dim") for remark in _remarks(merged, len(labels) - shown)]
    return Group(Text(_heading(data_sets), style="bold"), made, *remarks)


def _heading(data_sets: Sequence[Mapping[str, Any]]) -> str:
    return f"ranks over {len(data_sets)} data set{'s' if len(data_sets) != 1 else ''}"


def _remarks(merged: Mapping[str, Any], hidden: int) -> list[str]:
    """What the table cannot say for itself: which systems differ over the data sets, and what is not shown."""
    remarks = []
    if hidden:
        remarks.append(f"{hidden} more data set{'s' if hidden > 1 else ''} counted, not shown: widen the terminal.")
    count = len(merged["data_sets"])
    losers = [row for row in merged["rows"] if row["beaten_by"]]
    if count < FEWEST_DATA_SETS:
        few = f"{count} data set{'s' if count != 1 else ''}"
        remarks.append(
            f"{few} cannot show that one system is better in general: that takes {FEWEST_DATA_SETS} or more."
        )
    elif not losers:
        remarks.append("No system is significantly better than another over these data sets (sign-flip test, 5 %).")
    for row in losers:
        better = figures.english_list(row["beaten_by"], most=3)
        remarks.append(f"{row['system']}: significantly worse than {better} over these data sets.")
    return remarks
