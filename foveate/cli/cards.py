"""How systems look on a terminal: the list of them, and the card of one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..catalog import FAMILIES
from ..catalog.results import Measured
from ..registry import STATUSES, Entry, System
from ..sources import Check

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

#: From this width on a row has room for everything.
WIDE = 100
#: So many of what a search found are shown.
BEST = 15
_STYLES = {"verified": "green", "working": "yellow", "planned": "bright_black", "failing": "bold red"}
_MARKS = {"verified": "●", "working": "◐", "planned": "○", "failing": "✗"}
_PLAIN = {"verified": "*", "working": "+", "planned": "-", "failing": "!"}
_HOW_TO_LOAD = "foveate.create(NAME, pretrained=REPO)"
_VERDICTS = {"holds": "green", "fails": "bold red", "error": "bold red"}


def console() -> Console:
    """Standard output; what is piped is not cut at 80 columns, unless ``COLUMNS`` asks for a width."""
    from rich.console import Console

    made = Console(highlight=False)
    return made if made.is_terminal or "COLUMNS" in os.environ else Console(highlight=False, width=140)


def provided(system: System, kind: str | None) -> str:
    """Names of what a system provides, by kind; a kind alone where the name is the system's own."""
    names: dict[str, list[str]] = {}
    for entry in system.provides:
        names.setdefault(entry.kind, []).append(entry.name)
    if kind is not None:
        return ", ".join(names.get(kind, ()))
    return ", ".join(k if n == [system.slug] else f"{k} {' '.join(n)}" for k, n in names.items())


def claims_fail(count: int) -> str:
    """How many claims fail, in words."""
    return f"{count} claim{' fails' if count == 1 else 's fail'}"


def _mark(out: Console, status: str, failing: int = 0) -> tuple[str, str]:
    """The sign of a status and its style."""
    status = "failing" if failing else status
    marks = _MARKS if out.encoding.lower().startswith("utf") else _PLAIN
    return marks[status], _STYLES[status]


def listing(systems: Sequence[System], *, ranked: bool, kind: str | None, provides: bool) -> None:
    """Print a list: by family, or as ranked.

    Args:
        systems: what.
        ranked: keep the order, name each one's family, and show the first :data:`BEST`.
        kind: show what is provided of this kind only.
        provides: show what is provided, whatever the width and order.
    """
    from rich.table import Table
    from rich.text import Text

    out = console()
    wide = out.width >= WIDE
    shown = systems[:BEST] if ranked else systems
    statuses = {system.slug: system.status for system in shown}
    columns = [
        [Text.assemble(_mark(out, statuses[s.slug], len(s.failing)), " ", (s.slug, "bold")) for s in shown],
        [_brief(s) for s in shown],
    ]
    if ranked and wide and not provides:
        columns.append([Text(s.family, "bright_black") for s in shown])
    told = provides or (wide and not ranked)  # beside a family there is no room for more than what it is
    if told:
        columns.append([Text(provided(s, kind), "cyan") for s in shown])
    widths = [max(len(cell) for cell in column) for column in columns]
    if told:
        room = out.width - sum(widths[:-1]) - 2 * (len(widths) - 1)
        most = max(28, room) if wide else min(30 if kind else 18, out.width - widths[0] - 28)
        widths[-1] = max(10, min(widths[-1], most))
    rest = out.width - sum(widths) + widths[1] - 2 * (len(widths) - 1)
    widths[1] = max(20, min(widths[1], rest))
    rows = dict(zip(statuses, zip(*columns, strict=True), strict=True))
    table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    for width in widths:
        table.add_column(no_wrap=True, overflow="ellipsis", width=width)
    for number, (family, members) in enumerate([("", shown)] if ranked else _by_family(systems)):
        if family:
            if number:
                table.add_row()
            table.add_row(Text(family, style="bold underline"))
        for system in members:
            table.add_row(*rows[system.slug])
    out.print(table)
    if len(shown) < len(systems):
        out.print(Text(f"and {len(systems) - len(shown)} that fit less (--json has all)", "bright_black"))
    legend = [(status, 0, sum(s == status for s in statuses.values()), status) for status in reversed(STATUSES)]
    legend.append(("working", 1, sum(bool(s.failing) for s in shown), "with claims that fail"))
    parts = [Text.assemble(_mark(out, status, fails), f" {n} {words}") for status, fails, n, words in legend if n]
    out.print()
    out.print(Text("   ").join(parts))


def _brief(system: System) -> Text:
    from rich.text import Text

    text = Text.assemble((f"{claims_fail(len(system.failing))}; ", "red") if system.failing else "")
    return text.append(system.brief or system.summary)


def _by_family(systems: Iterable[System]) -> list[tuple[str, list[System]]]:
    groups: dict[str, list[System]] = {family: [] for family in (*FAMILIES, "")}
    for system in systems:
        groups[system.family].append(system)
    only_tasks = all(e.kind == "task" for s in groups[""] for e in s.provides)
    nameless = "tasks" if only_tasks else "without a record"
    return [(family or nameless, members) for family, members in groups.items() if members]


# The card of one system ---------------------------------------------------------------------------------------------


def pairs(system: System) -> list[tuple[Check, Measured | None]]:
    """Every check of a system's claims with what is on record of it; checks that are gone come last."""
    found = {m.check: m for m in system.measured}
    known = [(check, found.pop(check.name, None)) for check in system.checks]
    return known + [(Check(system.slug, m.check, m.kind, m.says), m) for m in found.values()]


def _section(out: Console, title: str, rows: Iterable[Sequence[Any]], note: str = "") -> None:
    """A heading and a grid under it, whose last column wraps."""
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    if not rows:
        return
    out.print(Text.assemble((title, "bold"), ("  " + note if note else "", "bright_black")))
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in rows[0][:-1]:
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    out.print(_indented(table))
    out.print()


def _indented(table: Table) -> Any:
    from rich.padding import Padding

    return Padding(table, (0, 0, 0, 2))


def _numbers(found: Measured) -> str:
    if found.value is None or found.threshold is None:
        return found.detail
    return f"measured {found.value:.4g} against {found.threshold:.4g}" + (f": {found.detail}" if found.detail else "")


def _run(found: Measured) -> str:
    machine = found.machine.get("cpu", "")
    return f"{found.date[:10]}{f' on {machine}' if machine else ''}, foveate {found.foveate}"


def _checks(out: Console, system: System) -> None:
    from rich.text import Text

    rows: list[list[Any]] = []
    runs = sorted({_run(m) for m in system.measured}, reverse=True)
    for check, found in pairs(system):
        verdict = Text(found.result, _VERDICTS.get(found.result, "")) if found else Text("-", "bright_black")
        text = Text(check.says)
        if found:
            told = ", ".join(part for part in (check.kind, _numbers(found)) if part)
            text.append(f"\n{told}", "bright_black")
        if found and len(runs) > 1:
            text.append(f"\n{_run(found)}", "bright_black")
        rows.append([verdict, text] if runs else [check.kind, text])
    note = f"not measured yet: foveate verify {system.slug}"
    if runs:
        note = f"{'measured' if len(runs) == 1 else 'last measured'} {runs[0]}"
    if system.outdated:
        note += ", on earlier sources"
    _section(out, "Checks", rows, note)


def _size(entry: Entry, name: str) -> str:
    """What its publication says of a size, or how it is built."""
    if name not in entry.published_costs:
        return ", ".join(f"{option}={value}" for option, value in entry.configurations[name].items())
    parameters, multiplications, pixels = entry.published_costs[name]
    told = f"{parameters:g} M parameters"
    return told if multiplications is None else f"{told}, {multiplications:g} G multiply-adds at {pixels} px"


def _near(file: Path) -> str:
    """A path as it is typed here: relative where the file is in or below the current folder."""
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


def card(system: System) -> None:
    """Print all there is to say about a system, in sections."""
    from rich.text import Text

    out = console()
    out.print(Text(system.title, style="bold"))
    where = " ".join(str(part) for part in (system.venue, system.year) if part)
    facts = (where, f"arXiv {system.arxiv}" if system.arxiv else "", system.family)
    out.print(Text(" · ".join(fact for fact in facts if fact), style="bright_black"))
    mark, style = _mark(out, system.status, len(system.failing))
    status = Text.assemble((mark, style), f" {system.status}")
    if system.failing:
        status.append(f", {claims_fail(len(system.failing))}", "red")
    if system.status == "planned":
        status.append(": there is a record, and no code yet")
    if system.outdated:
        status.append(": measured on earlier sources")
    out.print(status)
    out.print()
    out.print(Text(system.summary))
    out.print()
    uses = (("when", system.when), ("when not", system.when_not), ("cost", system.cost))
    _section(out, "Use", [(label, text) for label, text in uses])
    _section(out, "Provides", [(f"{e.kind} {e.name}", e.summary) for e in system.provides])
    _section(out, "Published sizes", [(name, _size(e, name)) for e in system.provides for name in e.configurations])
    _section(out, "Weights", [(w.name, w.where, w.layout, w.licence) for w in system.weights], _HOW_TO_LOAD)
    _section(out, "Claims, as published", [(c.kind, c.says) for c in system.claims])
    _checks(out, system)
    for title, texts in (("Reconstructed", system.reconstructed), ("Unverified", system.unverified)):
        _section(out, title, [("-", text) for text in texts])
    source = [("tasks", ", ".join(system.tasks)), ("code", system.code), ("licence", system.licence)]
    source += [("file", _near(file)) for file in system.files]
    if system.bibtex.strip():
        source.append(("cite", f"foveate cite {system.slug}"))
    _section(out, "Source", [row for row in source if row[1]])
