"""The record as a page: the findings, a chart for each case, every number."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..pages.charts import Line, line_chart
from ..pages.figures import count
from ..pages.page import charts_of, date, facts, machine_lines, render_page
from . import tables
from .cases import OURS
from .results import sentence

#: Lines beyond so many share a chart badly: those of the slowest contenders are left to the table.
MOST_LINES = 8


def render(record: Mapping[str, Any]) -> str:
    """The page as HTML, from the record alone."""
    compared = [row for row in record["rows"] if not row["ours"]]
    machine = {k: v for k, v in record["machine"].items() if k != "pinned_to"}
    return render_page(
        "bench.html",
        Path(__file__).parent / "templates",
        record=record,
        version=record["versions"]["foveate"],
        created=date(record["created"]),
        headline=_headline(record, len(compared)),
        slower=[sentence(found) for found in record["slower"]],
        warnings=[line for line in tables.first_words(record) if line.startswith(("The machine", "Others"))],
        tiles=_tiles(record),
        starred=any(not row["same_function"] for row in record["rows"]),
        charts=charts_of(chart(record, case, which) for case in record["cases"] for which in _passes(record, case)),
        rows=[_row(row) for row in record["rows"]],
        growth=tables.growth(record),
        left_out=tables.left_out(record),
        machine=machine_lines(machine),
        versions=facts(record["versions"]),
        settings=facts(record["settings"]),
    )


def _headline(record: Mapping[str, Any], compared: int) -> str:
    slower = len(record["slower"])
    if not compared:
        return "No peer took part"
    if not slower:
        return f"No peer is faster in {compared} comparison{'s' * (compared > 1)}"
    return f"A peer is faster in {slower} of {compared} comparison{'s' * (compared > 1)}"


def _tiles(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(caption, figure, small print) of the machine's roofline, with the most threads."""
    if not record["peaks"]:
        return []
    few, many = (record["peaks"][n] for n in (min(record["peaks"], key=int), max(record["peaks"], key=int)))
    more = "" if few is many else f", {many['threads']} threads"

    def tile(caption: str, key: str, unit: str) -> tuple[str, str, str]:
        small = f"one thread {count(few[key])}" if more else ""
        return caption + more, f"{count(many[key])} {unit}", small

    quiet = f"{record['busy']['during']:.0f} %"
    return [
        tile("matrix products", "gemm_flops", "FLOP/s"),
        tile("exponentials", "exps", "/s"),
        tile("memory", "stream_bytes", "B/s"),
        ("others on the machine meanwhile", quiet, f"{record['busy']['before']:.0f} % before"),
    ]


def _passes(record: Mapping[str, Any], case: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["pass"] for row in record["rows"] if row["case"] == case["name"]))


def chart(record: Mapping[str, Any], case: Mapping[str, Any], which: str) -> str:
    """Time over size of one case and pass, with the first thread count; "" where it has a single size."""
    threads = record["settings"]["threads"][0]
    rows = [
        row
        for row in record["rows"]
        if row["case"] == case["name"] and row["pass"] == which and row["threads"] == threads
    ]
    sizes = sorted({row["size"] for row in rows})
    if len(sizes) < 2:
        return ""
    names = sorted(dict.fromkeys(row["contender"] for row in rows), key=lambda n: not n.startswith(OURS))[:MOST_LINES]
    lines = [
        Line(
            name,
            [
                (row["size"], row["median_ms"])
                for row in sorted(rows, key=lambda r: r["size"])
                if row["contender"] == name
            ],
            tone=number + 1,
            dashed=name.startswith(f"{OURS},"),
        )
        for number, name in enumerate(names)
    ]
    ends = ", ".join(f"{line.name} {line.points[-1][1]:.3g} ms at {line.points[-1][0]:,}" for line in lines)
    return line_chart(
        lines,
        title=f"{case['name']}, {which}",
        description=f"Median time over {case['unit']}, {threads} thread: {ends}.",
        x_label=f"{case['unit']}, log scale",
        y_label=f"{case['name']}, {which}: ms",
        log=True,
        x_ticks=[(float(size), f"{size:,}") for size in sizes],
    )


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    median, quartiles = tables.times(row)
    times, interval = tables.ratios(row)
    return {
        **row,
        "name": tables.name(row),
        "median": median,
        "quartiles": quartiles,
        "times": times,
        "interval": interval,
        "held": tables.held(row),
        "roof": tables.roof(row),
    }
