"""A system: its record, what is registered for it, and how far it is, computed from what was measured."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from .catalog import Record
from .catalog.results import Measured, SystemResults, read_results, sources_digest
from .sources import Check, Entry, scan_claims

#: How far a system is; computed, see :attr:`System.status`.
STATUSES = ("planned", "working", "verified")
_HERE = Path(__file__).parent


#: A file of claims is read once.
_scanned = functools.cache(scan_claims)


@functools.cache
def _results() -> dict[str, SystemResults]:
    return read_results()


@dataclass(frozen=True, slots=True)
class System(Record):
    """A catalogue record with what the registry provides for it and what was measured of it.

    Attributes:
        provides: registered entries that belong to it.
        record: the file of its record; None for what is registered without one.
    """

    provides: tuple[Entry, ...] = ()
    record: Path | None = None

    @property
    def files(self) -> list[Path]:
        """Source files of what it provides, its analysis, its claims and its record, those that exist."""
        found = sorted({e.file for e in self.provides})
        if self.record is not None and self.record.parent.parent == _HERE:
            found += [f for f in (_HERE / "analysis" / f"{self.slug}.py", *self._claim_files) if f.is_file()]
        return found if self.record is None else [*found, self.record]

    @property
    def _claim_files(self) -> list[Path]:
        """``claims/<slug>.py``, and where that would be too long, ``claims/_<slug>_<part>.py`` that it imports."""
        return [_HERE / "claims" / f"{self.slug}.py", *_claim_parts().get(self.slug, ())]

    @property
    def planned(self) -> bool:
        """Whether there is a record and nothing else yet."""
        return not any(file.suffix == ".py" for file in self.files)

    @property
    def checks(self) -> list[Check]:
        """The checks of its claims, as their file describes them."""
        own = self.files
        return [check for file in self._claim_files if file in own for check in _scanned(file)]

    @property
    def measured(self) -> tuple[Measured, ...]:
        """What its checks found when they last ran; empty where that is not on record."""
        found = _results().get(self.slug)
        return found.claims if found else ()

    @property
    def outdated(self) -> bool:
        """Whether its source files have changed since it was measured."""
        found = _results().get(self.slug)
        return found is not None and found.sources != sources_digest(self)

    @property
    def failing(self) -> tuple[str, ...]:
        """Names of the checks that are on record as failing, of any kind."""
        return tuple(m.check for m in self.measured if m.failed)

    @property
    def status(self) -> str:
        """One of :data:`STATUSES`.

        "planned": a record and nothing else. "verified": all exact and scaling claims are on record as holding,
        measured on the present source files, and no other claim as failing. "working": everything between; see
        :attr:`failing`.
        """
        if self.planned:
            return "planned"
        held = {m.check for m in self.measured if m.result == "holds"}
        if not held or self.failing or self.outdated:
            return "working"
        needed = {c.name for c in self.checks if c.kind in ("exact", "scaling")}
        return "verified" if needed and needed <= held else "working"


@functools.cache
def _claim_parts() -> dict[str, list[Path]]:
    """Files of claims beside ``claims/<slug>.py``, by slug."""
    found: dict[str, list[Path]] = {}
    for file in sorted((_HERE / "claims").glob("_[a-z]*.py")):
        for slug in {check.slug for check in _scanned(file)}:
            found.setdefault(slug, []).append(file)
    return found
