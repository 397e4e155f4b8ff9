"""The leaderboard in a terminal: as many columns as fit, the most telling ones first."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from ..pages import figures
from .wording import trained_otherwise

#: Sign in the marks column and what it says.
CHOSEN, FRONT, BASELINE, FAILED = "★", "◆", "○", "✗"
_ASCII = str.maketrans("↑↓★◆○✗±–…·×", "^v*+ox~-.-x")


@dataclass(frozen=True, slots=True)
class _Column:
    """One column: what stands in it, and how early it is given room (0 = always)."""

    header: str
    cells: list[str]
    priority: int
    justify: Any = "right"

    @property
    def width(self) -> int:
        return max(cell_len(line) for text in [self.header, *self.cells] for line in text.split("\n"))


def table(leaderboard: Mapping[str, Any], console: Console | None = None) -> Group:
    """The leaderboard for this console, to be printed by it: its width decides the columns, its encoding the signs.

    Ranks that are shared carry "="; the legend below says what the marks mean, failures stand at the bottom and give
    their reasons below the table. Without a terminal, rich writes it as plain text.
    """
    width = console.width if console else shutil.get_terminal_size().columns
    unicode = console is None or console.encoding.lower().startswith("utf")
    rows = leaderboard["rows"]
    chosen = (leaderboard["best"] or {}).get("system")
    columns = _fit(_columns(leaderboard, rows, chosen, width), width)

    def signs(text: str) -> str:
        return text if unicode else text.translate(_ASCII)

    made = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1),
        collapse_padding=True,
    )
    for column in columns:
        made.add_column(Text(signs(column.header)), justify=column.justify, no_wrap=True, vertical="bottom")
    for number, row in enumerate(rows):
        style = _style(row, chosen)
        made.add_row(*(Text(signs(column.cells[number]), style=style) for column in columns))
    notes = [Text(signs(line), style=style) for line, style in _notes(leaderboard, rows, chosen)]
    return Group(Text(signs(_title(leaderboard)), style="bold"), made, *notes)


def shared_ranks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Ranks as text: "1=" where several rows have rank 1, a dash where there is none."""
    ranks = [row["rank"] for row in rows]
    return [figures.NONE if r is None else f"{r}=" if ranks.count(r) > 1 else f"{r} " for r in ranks]


def quality_cells(rows: Sequence[Mapping[str, Any]], split: str, metric: str) -> list[str]:
    """Means with their spread over seeds, decimals aligned; "failed" or "skipped" where there is no score."""
    decimals = figures.decimals_for([row[split][metric]["mean"] for row in rows])
    scores = [row[split][metric] for row in rows]
    means = [
        figures.fixed(score["mean"], decimals)
        if score["mean"] is not None or row["status"] == "done"
        else row["status"]
        for row, score in zip(rows, scores, strict=True)
    ]
    width = max(map(len, means))
    spreads = [f" ±{figures.fixed(score['std'], decimals)}" if score["std"] is not None else "" for score in scores]
    return [f"{mean:>{width}}{spread}" for mean, spread in zip(means, spreads, strict=True)]


def _columns(leaderboard: Mapping[str, Any], rows: Sequence[Any], chosen: str | None, width: int) -> list[_Column]:
    """All columns in the order of display."""
    (primary, *others), split = leaderboard["metrics"], leaderboard["ranked_on"]
    better, ranked = "↑" if leaderboard["higher_is_better"] else "↓", figures.SPLITS[split]
    chooses = leaderboard["validation"]["primary"]

    def each(form: Callable[[Any], str], key: str) -> list[str]:
        return [form(row[key]) if row["status"] == "done" else "" for row in rows]

    latency = [figures.milliseconds((row["latency_ms"] or {}).get("median")) for row in rows]
    p_values = [_p_text(row) for row in rows]
    longest = 22 if width < 100 else 34
    return [
        _Column("#", shared_ranks(rows), 0),
        _Column("", [marks(row, chosen) for row in rows], 0, "left"),
        _Column("system", [figures.plain(row["system"], longest) for row in rows], 0, "left"),
        # Without a spread (run once) a mean still stands below the others: padded by hand, so aligned left.
        _Column(f"{ranked}\n{figures.metric_name(primary)} {better}", quality_cells(rows, split, primary), 0, "left"),
        *(
            _Column(f"{ranked}\n{figures.metric_name(m)}", _means(rows, split, m), 3 if i == 0 else 9)
            for i, m in enumerate(others)
        ),
        *(
            [_Column(f"validation\n{figures.metric_name(chooses)}", _means(rows, "val", chooses), 5)]
            if split == "test"
            else []
        ),
        _Column("p against\nbest", p_values, 7),
        _Column("latency\nms", [t if row["status"] == "done" else "" for t, row in zip(latency, rows, strict=True)], 1),
        _Column("memory\nMB", each(lambda v: figures.fixed(v, 0), "peak_memory_mb"), 4),
        _Column("params", each(figures.count, "parameters"), 2),
        _Column("forward\nFLOPs", each(figures.count, "flops"), 8),
        _Column("train\nsamples/s", each(figures.count, "train_samples_per_second"), 6),
        _Column("learning\nrate", each(figures.rate, "learning_rate"), 11),
        _Column("time", each(figures.duration, "seconds"), 10),
    ]  # fmt: skip


def _means(rows: Sequence[Any], split: str, metric: str) -> list[str]:
    decimals = figures.decimals_for([row[split][metric]["mean"] for row in rows])
    return ["" if row["status"] != "done" else figures.fixed(row[split][metric]["mean"], decimals) for row in rows]


def _p_text(row: Mapping[str, Any]) -> str:
    if row["status"] != "done" or row["p_value"] is None:
        return ""
    return "< 0.001" if row["p_value"] < 0.001 else f"{row['p_value']:.3f}"


def _fit(columns: list[_Column], width: int) -> list[_Column]:
    """The columns that fit, given room in the order of their priority."""
    kept: list[_Column] = []
    used = 0
    for column in sorted(columns, key=lambda c: c.priority):
        if any(column.cells) and (column.priority == 0 or used + column.width + 2 <= width):
            kept.append(column)
            used += column.width + 2
    return [column for column in columns if column in kept]


def marks(row: Mapping[str, Any], chosen: str | None) -> str:
    """The signs before a name: chosen on validation, on the Pareto front, baseline, failed."""
    if row["status"] != "done":
        return FAILED
    signs = (CHOSEN if row["system"] == chosen else "") + (FRONT if row["pareto"] else "")
    return signs + (BASELINE if row["baseline"] else "")


def _style(row: Mapping[str, Any], chosen: str | None) -> str:
    if row["status"] != "done":
        return "red"
    colour = "green" if row["tied"] else ""
    return " ".join(filter(None, ["bold" if row["system"] == chosen else "", "dim" if row["baseline"] else "", colour]))


def _title(leaderboard: Mapping[str, Any]) -> str:
    seeds = max((len(row["seeds"]) for row in leaderboard["rows"]), default=0)
    source = figures.plain(leaderboard["data"].get("source") or "")
    systems = len(leaderboard["rows"])
    parts = [leaderboard["task"], source, f"{systems} system{'s' if systems != 1 else ''}"]
    return " · ".join(filter(None, [*parts, f"{seeds} seeds" if seeds > 1 else ""]))


def _notes(leaderboard: Mapping[str, Any], rows: Sequence[Any], chosen: str | None) -> list[tuple[str, str]]:
    """Lines below the table with their styles: the legend of the signs that occur, then the failures."""
    shown = "".join(marks(row, chosen) for row in rows)
    texts = {CHOSEN: "chosen on validation data", FRONT: "on the Pareto front", BASELINE: "baseline"}
    legend = [f"{sign} {text}" for sign, text in texts.items() if sign in shown]
    if sum(bool(row["tied"]) for row in rows) > 1:
        legend.append("1= not significantly worse than the best (paired test, 5 %)")
    notes = [("   ".join(legend), "dim")] if legend else []
    notes += [(figures.plain(sentence, 400), "dim") for sentence in trained_otherwise(rows)]
    if leaderboard["ranked_on"] != "test":
        notes.append(("Test data could not be scored: systems are ranked on validation data.", "yellow"))
    for row in rows:
        if row["status"] != "done":
            notes.append((f"{FAILED} {figures.plain(row['system'], 40)} {row['status']}: {_sentence(row)}", "red"))
        elif row["reason"]:
            notes.append((f"  {figures.plain(row['system'], 40)}: {_sentence(row)}", "yellow"))
    return notes


def _sentence(row: Mapping[str, Any]) -> str:
    return figures.plain(row["reason"] or "no reason given").rstrip(".") + "."
