"""The file of results: what every check found, on which sources, in which run.

New results are merged into what is there: they replace older ones of the same check, except that "not checked" does not
replace what was measured on the same sources. What says nothing about the present goes: checks that no longer exist,
results of a system whose sources have changed since (once it is measured anew), runs that no result refers to.
The file is replaced atomically after every check, so nothing is lost when a run is broken off.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..catalog.results import FORMAT, read_results, sources_digest
from ..errors import InvalidValue
from ..registry import get_system
from ..sources import Check

#: What tells our page from another one.
MARK = "<!-- Made by `foveate verify --page` of claims.json: change the checks, not this page. -->"

Record = dict[str, Any]


class Now:
    """What this run has found so far.

    Args:
        slugs: the systems that take part.
    """

    def __init__(self, slugs: Collection[str]) -> None:
        from ..measure.machine import machine_facts, versions  # with torch, which refusing a file does not wait for

        self.sources = {slug: sources_digest(get_system(slug)) for slug in slugs}
        self._claims: dict[str, Record] = {}
        known = versions()
        self._run = {
            "date": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "foveate": known.pop("foveate"),
            "machine": machine_facts() | {"threads": 1},
            "versions": known,
        }

    def has(self, record: Record, claim: Check) -> bool:
        """Whether a record holds a measurement of this claim on the present sources."""
        system = record["systems"].get(claim.slug, {"sources": "", "claims": {}})
        result = system["claims"].get(claim.name, {}).get("result")
        return system["sources"] == self.sources[claim.slug] and result in ("holds", "fails")

    def add(self, claim: Check, found: Mapping[str, Any]) -> None:
        """Take in what a check found."""
        entry = {"says": claim.says, "kind": claim.kind, **found, "run": 0}
        entry["seconds"] = round(entry["seconds"], 3)
        self._claims.setdefault(claim.slug, {})[claim.name] = entry

    def record(self) -> Record:
        """In the form of the file."""
        systems = {
            slug: {"sources": self.sources[slug], "claims": dict(self._claims[slug])} for slug in sorted(self._claims)
        }
        return {"format": FORMAT, "systems": systems, "runs": [self._run] if systems else []}


def empty() -> Record:
    """A file without results."""
    return {"format": FORMAT, "systems": {}, "runs": []}


def read(file: Path) -> Record:
    """The results in a file; none if it does not exist.

    Raises:
        InvalidValue: it cannot be read, is damaged or something else, or was written by a newer version.
    """
    if not file.exists():
        return empty()
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidValue(f"{file} cannot be read: {error.strerror}.") from error
    except ValueError:
        record = {}
    number = record.get("format") if isinstance(record, dict) and {"systems", "runs"} <= set(record) else None
    if not isinstance(number, int):
        raise InvalidValue(f"{file} is not a file of results of `foveate verify`: choose another one.")
    if number > FORMAT:
        raise InvalidValue(f"{file} has format {number}, this version knows {FORMAT}: update foveate.")
    read_results(file)  # refuses what is damaged
    return record


def check_target(file: Path) -> None:
    """Refuse a file that could not be merged into, before anything is measured.

    Raises:
        InvalidValue: it, or its folder, cannot be written, or it is something else.
    """
    check_writable(file)
    read(file)


def check_page(file: Path) -> None:
    """Refuse a page that could not be written, before anything is measured.

    Raises:
        InvalidValue: it, or its folder, cannot be written, or it is someone else's.
    """
    check_writable(file)
    if file.exists() and MARK not in file.read_text(encoding="utf-8", errors="replace"):
        raise InvalidValue(f"{file} is a page that `foveate verify` has not made: choose another name.")


def check_writable(file: Path) -> None:
    """Make the folder of a file that shall be written and see that a file can be made in it.

    Raises:
        InvalidValue: it cannot be.
    """
    if file.is_dir():
        raise InvalidValue(f"{file} cannot be written: it is a folder.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise InvalidValue(f"{file} cannot be written ({error.strerror}): choose another place.") from error


def merge_into(file: Path, now: Record, known: Mapping[str, Collection[str]]) -> None:
    """Merge new results into a file; see :func:`merged`."""
    from ..files import write_json

    write_json(file, merged(read(file), now, known))


def merged(old: Record, new: Record, known: Mapping[str, Collection[str]]) -> Record:
    """The results of both records; see the module.

    Args:
        old, new: as :func:`read` gives them.
        known: names of the checks that exist, by system, in their order.
    """
    runs = [*old["runs"], *new["runs"]]
    systems: dict[str, Any] = {}
    for slug, names in sorted(known.items()):
        before, now = old["systems"].get(slug), new["systems"].get(slug)
        claims: dict[str, Any] = {}
        if before and (now is None or before["sources"] == now["sources"]):
            claims |= before["claims"]
        for name, entry in now["claims"].items() if now else ():
            unchecked = entry["result"] == "not checked" and claims.get(name, entry)["result"] in ("holds", "fails")
            if not unchecked:
                claims[name] = entry | {"run": entry["run"] + len(old["runs"])}
        claims = {name: claims[name] for name in names if name in claims}
        if claims:
            systems[slug] = {"sources": (now or before)["sources"], "claims": claims}
    used = sorted({entry["run"] for system in systems.values() for entry in system["claims"].values()})
    for system in systems.values():
        system["claims"] = {name: e | {"run": used.index(e["run"])} for name, e in system["claims"].items()}
    return {"format": FORMAT, "systems": systems, "runs": [runs[index] for index in used]}
