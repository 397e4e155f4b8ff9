"""The record as tables: for the terminal, for Markdown and for the page alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..pages.figures import NONE, count, finite, format_bytes, milliseconds
from .cases import OURS
from .results import sentence


@dataclass(frozen=True, slots=True)
class Section:
    """One table under a heading.

    Attributes:
        title: the case's name.
        about: what it is.
        headers: of the columns; those after :attr:`texts` are numbers.
        rows: texts.
        texts: number of columns that are texts.
    """

    title: str
    about: str
    headers: tuple[str, ...]
    rows: list[tuple[str, ...]]
    texts: int


def name(row: Mapping[str, Any]) -> str:
    """The contender's name; a star says that it computes something else for the same job."""
    return row["contender"] + ("" if row["same_function"] else " *")


def times(row: Mapping[str, Any]) -> tuple[str, str]:
    """Median and quartiles in milliseconds."""
    return milliseconds(row["median_ms"]), f"{milliseconds(row['low_ms'])}-{milliseconds(row['high_ms'])}"


def ratios(row: Mapping[str, Any]) -> tuple[str, str]:
    """How many times our time, and the interval of that; nothing beside ours."""
    if row["contender"] == OURS:
        return "1", ""
    return _times(row["ratio"]), f"{_times(row['ratio_low'])}-{_times(row['ratio_high'])}"


def _times(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def roof(row: Mapping[str, Any]) -> str:
    """The share of the machine's roof, and which roof it is."""
    return f"{100 * row['roof_share']:.0f} % {row['bound']}" if finite(row.get("roof_share")) else ""


def held(row: Mapping[str, Any]) -> str:
    """Peak memory of a call."""
    return NONE if row["peak_bytes"] is None else format_bytes(row["peak_bytes"])


def results(record: Mapping[str, Any]) -> list[Section]:
    """One table for each case that was timed."""
    headers = ("pass", "contender", "threads", "size", "ms", "quartiles", "times ours", "90 %", "memory", "of the roof")
    found = []
    for case in record["cases"]:
        rows = [
            (
                row["pass"].replace("forward+backward", "fwd+bwd"),
                name(row),
                str(row["threads"]),
                f"{row['size']:,}",
                *times(row),
                *ratios(row),
                held(row),
                roof(row),
            )
            for row in record["rows"]
            if row["case"] == case["name"]
        ]
        if rows:
            about = f"{case['kind']}, {case['about']}; size in {case['unit']}"
            about += "; * computes something else" if any(row[1].endswith(" *") for row in rows) else ""
            found.append(Section(case["name"], about, headers, rows, texts=2))
    return found


def growth(record: Mapping[str, Any]) -> Section:
    """The fitted exponents."""
    rows = [
        (
            g["case"],
            g["contender"],
            g["pass"].replace("forward+backward", "fwd+bwd"),
            str(g["threads"]),
            f"{min(g['sizes']):,}-{max(g['sizes']):,}",
            f"{g['time']:.2f}" + ("" if g["time_error"] is None else f" ±{g['time_error']:.2f}"),
            NONE if g["memory"] is None else f"{g['memory']:.2f}",
        )
        for g in record["growth"]
    ]
    about = "Exponents of time and of peak memory in the number of tokens, fitted to the largest sizes: 1 is linear."
    return Section("Growth", about, ("case", "contender", "pass", "threads", "sizes", "time", "memory"), rows, texts=3)


def first_words(record: Mapping[str, Any]) -> list[str]:
    """What must be said above the tables: noise, and every peer that is faster."""
    busy, said = record["busy"], []
    if busy["measured_anyway"]:
        said.append(f"The machine was {busy['before']:.0f} % busy with other work: these times are not to be trusted.")
    if busy["during"] > busy["allowed"]:
        said.append(f"Others used {busy['during']:.0f} % of the machine meanwhile: ratios hold better than times.")
    said += [f"Slower than a peer: {sentence(found)}" for found in record["slower"]]
    if not record["slower"] and any(not row["ours"] for row in record["rows"]):
        said.append("No peer that takes a millisecond or more is faster (5 % noise allowed).")
    return said


def left_out(record: Mapping[str, Any]) -> list[str]:
    """What was not timed, and why; alike reasons of several cases on one line."""
    together: dict[tuple[str, str], list[str]] = {}
    for item in record["left_out"]:
        together.setdefault((item["contender"], item["reason"]), []).append(item["case"])
    return [f"{who} in {', '.join(sorted(set(cases)))}: {why}" for (who, why), cases in together.items()]


def peaks(record: Mapping[str, Any]) -> list[str]:
    """The machine's roofline in words, a line for each thread count."""
    return [
        f"{n} thread{'s' * (int(n) > 1)}: {count(p['gemm_flops'])} FLOP/s in matrix products, {count(p['exps'])} "
        f"exponentials/s, {count(p['stream_bytes'])} bytes/s of copied memory"
        for n, p in record["peaks"].items()
    ]


#: What a narrow terminal goes without, in this order.
_SPARE = ("90 %", "quartiles", "sizes", "of the roof", "memory")


def _fitting(section: Section, width: int) -> list[int]:
    """Columns, by number, that fit a terminal of this width."""
    columns = list(range(len(section.headers)))
    widths = [max(len(row[i]) for row in (section.headers, *section.rows)) + 2 for i in columns]
    for spare in _SPARE:
        if sum(widths[i] for i in columns) <= width:
            break
        columns = [i for i in columns if section.headers[i] != spare]
    return columns


def terminal(record: Mapping[str, Any], width: int) -> Any:
    """Everything, to be printed by rich on a terminal of this width."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = [Text(line, style="bold") for line in first_words(record)]
    for section in (*results(record), growth(record)):
        if not section.rows:
            continue
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
        columns = _fitting(section, width)
        for i in columns:
            table.add_column(section.headers[i], justify="left" if i < section.texts else "right", no_wrap=True)
        for row in section.rows:
            table.add_row(*(Text(row[i]) for i in columns))
        parts += [Text(f"\n{section.title}", style="bold"), Text(section.about), table]
    parts += [Text(line) for line in peaks(record)]
    told = left_out(record)
    parts += [Text("\nNot timed:"), *(Text(f"  {line}") for line in told)] if told else []
    return Group(*parts)


def markdown(record: Mapping[str, Any]) -> str:
    """Everything as a Markdown page, with the command and the machine on it."""
    machine, busy = record["machine"], record["busy"]
    lines = [
        "# What it costs, and against whom",
        "",
        f"Made by `{record['command']}` on {record['created'][:10]}.",
        "",
        f"- {machine['cpu']}, {machine['cores']} cores, {format_bytes(machine['memory_bytes'])}, {machine['os']}; "
        f"kernels {machine['kernels']}",
        "- " + ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        f"- others used {busy['before']:.0f} % of the machine before and {busy['during']:.0f} % during the run",
        *(f"- {line}" for line in peaks(record)),
        "",
        "Medians of interleaved calls with their quartiles; ratios with a 90 % bootstrap interval. Above 1, the "
        "contender takes longer than foveate.",
        "",
        *(f"**{_cell(line)}**\n" for line in first_words(record)),
    ]
    for section in (*results(record), growth(record)):
        if section.rows:
            lines += ["", f"## {section.title}", "", section.about, "", *_rows(section)]
    told = left_out(record)
    lines += ["", "## Not timed", "", *(f"- {_cell(line)}" for line in told)] if told else []
    return "\n".join(lines) + "\n"


def _rows(section: Section) -> list[str]:
    ruler = ["---"] * section.texts + ["---:"] * (len(section.headers) - section.texts)
    table: Sequence[Sequence[str]] = [section.headers, ruler, *section.rows]
    return ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in table]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
