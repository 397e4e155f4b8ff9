"""The file of results as a Markdown page: what does not hold first, what could not be checked last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..catalog import CLAIM_KINDS
from ..catalog.results import RESULTS
from ..pages.figures import format_bytes, plain
from .display import WORDS, counted, number
from .results import MARK


def markdown(record: Mapping[str, Any]) -> str:
    """The page of a record (:mod:`foveate.verification.results`), from the record alone.

    Its links lead from ``docs/`` to the pages of systems and to the files of their checks.
    """
    systems: Mapping[str, Any] = record["systems"]
    entries = [(slug, name, entry) for slug, system in systems.items() for name, entry in system["claims"].items()]
    broken = [e for result in ("fails", "error") for e in entries if e[2]["result"] == result]
    lines = [
        "# Claims, measured",
        "",
        MARK,
        "",
        "What the papers say, in our words, beside what checks of it measured. [How](verify.md) they are made, "
        "repeated and added.",
        "",
        f"**{_counted(len(entries), 'check')} of {_counted(len(systems), 'system')}**: "
        f"{counted(entry['result'] for _, _, entry in entries) or 'none'}.",
        "",
        *_table_of_counts(systems),
        "",
        "## What does not hold",
        "",
        *(_failing(broken, record["runs"]) if broken else ["Of what was checked, everything holds."]),
        "",
        "## By system",
        "",
    ]
    for slug, system in systems.items():
        lines += [
            f"### {slug}",
            "",
            f"[About it](systems/{slug}.md), [the checks](../foveate/claims/{slug}.py): "
            f"{counted(entry['result'] for entry in system['claims'].values())}.",
            "",
            *_measured(system["claims"], record["runs"]),
            "",
        ]
    unchecked = [e for e in entries if e[2]["result"] == "not checked"]
    lines += ["## What could not be checked", "", *_unchecked(unchecked), ""]
    lines += ["## Where it was measured", "", *dict.fromkeys(f"- {_run(run)}" for run in record["runs"])]
    return "\n".join(lines).rstrip() + "\n"


def _table_of_counts(systems: Mapping[str, Any]) -> Iterator[str]:
    yield from ("| | fails | error | holds | not checked |", "| --- | ---: | ---: | ---: | ---: |")
    for kind in CLAIM_KINDS:
        results = [c["result"] for s in systems.values() for c in s["claims"].values() if c["kind"] == kind]
        if results:
            counts = " | ".join(str(results.count(result) or "") for result in RESULTS)
            yield f"| {kind} | {counts} |"


def _failing(broken: list[tuple[str, str, Mapping[str, Any]]], runs: list[Any]) -> Iterator[str]:
    yield from ("| system | claimed | measured | against |", "| --- | --- | ---: | ---: |")
    for slug, name, entry in broken:
        yield f"| [{slug}](#{slug}) | {_claimed(entry, runs, name)} | {_numbers(entry)} |"


def _measured(claims: Mapping[str, Any], runs: list[Any]) -> Iterator[str]:
    yield from ("| result | claimed | measured | against |", "| --- | --- | ---: | ---: |")
    for entry in sorted(claims.values(), key=lambda e: RESULTS.index(e["result"])):
        word = WORDS[entry["result"]]
        word = f"**{word}**" if entry["result"] in ("fails", "error") else word
        yield f"| {word} | {_claimed(entry, runs)} | {_numbers(entry)} |"


def _claimed(entry: Mapping[str, Any], runs: list[Any], name: str = "") -> str:
    """The claim with its kind, how it was measured, and when."""
    if entry["result"] == "not checked":
        how = f"{entry['kind']}; [what it would need](#what-could-not-be-checked)"
    else:
        how = f"{entry['kind']}, {runs[entry['run']]['date'][:10]}: {_text(entry['detail'])}"
    return f"{_text(entry['says'])}{f' (`{name}`)' * bool(name)}<br><small>{how}</small>"


def _unchecked(entries: list[tuple[str, str, Mapping[str, Any]]]) -> Iterator[str]:
    needs: dict[str, list[str]] = {}
    for slug, name, entry in entries:
        needs.setdefault(entry["detail"], []).append(f"[{slug}](#{slug}) (`{name}`): {_text(entry['says'])}")
    if not needs:
        yield "Nothing."
    for need, claims in sorted(needs.items(), key=lambda item: len(item[1])):  # what many wait for comes last
        if len(claims) == 1:
            yield f"- {claims[0]} *{_text(need)}*"
        else:
            yield from (f"- *{_text(need)}*", *(f"    - {claim}" for claim in claims))


def _run(run: Mapping[str, Any]) -> str:
    machine = run["machine"]
    gpus = "".join(f", {gpu}" for gpu in machine["gpus"])
    releases = {"foveate": run["foveate"], **run["versions"]}
    versions = ", ".join(f"{name} {release}" for name, release in releases.items())
    cores = _counted(machine["cores"], "core")
    memory = format_bytes(machine["memory_bytes"])
    return f"{run['date'][:10]}: {machine['cpu']}, {cores}{gpus}, {memory}, {machine['os']}; {versions}"


def _numbers(entry: Mapping[str, Any]) -> str:
    return f"{number(entry['value'])} | {number(entry['threshold'])}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _text(text: str) -> str:
    """A text inside a table cell: nothing in it ends the cell or is read as Markdown."""
    shown = plain(text)
    for mark in "\\|*_<>[]`":
        shown = shown.replace(mark, f"\\{mark}")
    return shown
