"""What measuring the claims of the catalogue's systems gave: ``claims.json``, written by ``foveate verify``.

The file holds, for each system, what every check found and a digest of the source files it was found on, and beside
them the runs (date, machine, versions) that did the measuring.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..errors import InvalidValue

FORMAT = 1
#: How a check can end, the worst first. "error": it raised, died or took too long; "not checked": it needs something
#: that is not here.
RESULTS = ("fails", "error", "holds", "not checked")
#: The results that foveate is published with.
PUBLISHED = Path(__file__).with_name("claims.json")


@dataclass(frozen=True, slots=True)
class Measured:
    """What one check of a claim found.

    Attributes:
        check: name of the check's function.
        says, kind: the claim in our words and its kind.
        result: one of :data:`RESULTS`.
        value, threshold: the measured number and what it is held against; None where there is none.
        detail: what was measured, in which units, and the direction of the comparison.
        seconds: how long the check took.
        date: when, in UTC (ISO 8601).
        foveate: the version that measured.
        machine, versions: what it ran on and with.
    """

    check: str
    says: str
    kind: str
    result: str
    value: float | None
    threshold: float | None
    detail: str
    seconds: float
    date: str
    foveate: str
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether the claim did not hold, or its check broke."""
        return self.result in ("fails", "error")


@dataclass(frozen=True, slots=True)
class SystemResults:
    """What was measured of one system: the digest of its sources at that time, and its claims."""

    sources: str
    claims: tuple[Measured, ...]


def _measured(check: str, found: dict[str, Any], runs: list[dict[str, Any]]) -> Measured:
    run = runs[found["run"]]
    if found["result"] not in RESULTS:
        raise ValueError(f"{check} has the result {found['result']!r}")
    value, threshold = found["value"], found["threshold"]
    if not all(n is None or isinstance(n, int | float) for n in (value, threshold)):
        raise ValueError(f"{check} has a value or threshold that is no number")
    return Measured(
        check=check,
        says=str(found["says"]),
        kind=str(found["kind"]),
        result=found["result"],
        value=value,
        threshold=threshold,
        detail=str(found.get("detail", "")),
        seconds=float(found.get("seconds", 0)),
        date=str(run["date"]),
        foveate=str(run["foveate"]),
        machine=dict(run.get("machine", {})),
        versions=dict(run.get("versions", {})),
    )


def read_results(file: Path | str | None = None) -> dict[str, SystemResults]:
    """The results in a file of ``foveate verify``, by slug.

    Args:
        file: None: the one that foveate is published with; there nothing is measured where it does not exist.

    Raises:
        InvalidValue: the file does not exist, or is damaged.
    """
    path = PUBLISHED if file is None else Path(file)
    if not path.is_file():
        if file is None:
            return {}
        raise InvalidValue(f"{path} is no file: write it with foveate verify --all --out {path}.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"its format is {found['format']!r}, and this version reads {FORMAT}")
        runs = found["runs"]
        return {
            slug: SystemResults(str(one["sources"]), tuple(_measured(c, f, runs) for c, f in one["claims"].items()))
            for slug, one in found["systems"].items()
        }
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InvalidValue(
            f"the measured claims in {path} are damaged ({reason}): write them anew with foveate verify --all."
        ) from None


class _HasFiles(Protocol):
    @property
    def files(self) -> Sequence[Path]: ...


def sources_digest(system: _HasFiles) -> str:
    """SHA-256 of a system's own source files (:attr:`foveate.registry.System.files` without its record).

    Line endings and the place of the installation do not count; names, order and contents of the files do.
    """
    digest = hashlib.sha256()
    for file in sorted((f for f in system.files if f.suffix != ".toml"), key=lambda f: (f.parent.name, f.name)):
        text = file.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{file.parent.name}/{file.name} {len(text)}\n".encode() + text)
    return digest.hexdigest()
