"""The catalogue: one TOML record for each published system and baseline, named by its slug.

What a record cannot know is not in it: what is registered for a system, its files and its status come from the registry
(:func:`foveate.registry.get_system`), and whether a claim holds comes from measuring (``foveate verify``).
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import InvalidValue, unknown_name

#: What kind of thing a system is; each record names one.
FAMILIES = (
    "attention",
    "linear attention",
    "sparse attention",
    "state space",
    "recurrence",
    "convolution",
    "memory",
    "vision backbone",
    "video",
    "motion",
    "series",
    "spiking",
    "brain signals",
    "graph",
    "fusion",
    "diffusion control",
    "language-model control",
    "video-language",
    "benchmark",
    "analysis",
    "baseline",
)
#: What systems are for.
TASKS = (
    "forecast",
    "forecast-m4",
    "impute",
    "classify-series",
    "detect-anomalies",
    "language",
    "recall",
    "classify-images",
    "segment",
    "detect-objects",
    "classify-video",
    "segment-video",
    "localise-in-video",
    "answer-about-video",
    "generate-images",
    "generate-video",
    "edit-video",
    "colour-video",
    "edit-images",
    "describe-images",
    "generate-motion",
    "recognise-expressions",
    "recognise-skeletons",
    "decode-brain-signals",
    "learn-on-graphs",
    "forecast-frames",
    "fuse-images",
    "continual-learning",
    "score-video-models",
    "profile-models",
    "explain-models",
    "classify-slides",
    "anticipate-actions",
    "re-identify-people",
    "estimate-flow",
    "predict-scanpaths",
)
#: What kind of thing a claim is, as :data:`foveate.claims.KINDS`.
CLAIM_KINDS = ("exact", "scaling", "learned", "needs-pretrained")


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a publication says of its system.

    Attributes:
        says: the claim in our words, with its number.
        kind: how it can be checked, one of :data:`CLAIM_KINDS`.
    """

    says: str
    kind: str


@dataclass(frozen=True, slots=True)
class KnownWeights:
    """Weights that somebody published and that a model here takes.

    Attributes:
        name: of the published size that they are for.
        layout: whose names they have, of the model's ``official_keys``.
        where: a repo's id on the Hugging Face hub.
        licence: of the weights, as their card says; "unverified" where that could not be looked up.
    """

    name: str
    layout: str
    where: str
    licence: str


@dataclass(frozen=True, slots=True)
class Record:
    """A catalogue record.

    Attributes:
        slug: its name and the name of its files.
        title, year, venue, arxiv, code, bibtex: the publication; empty where there is none.
        licence: of the official code.
        family: one of :data:`FAMILIES`.
        tasks: what it was made for, of :data:`TASKS`.
        brief: what it is in at most 60 characters, for listings; the summary's beginning where it is empty.
        keywords: what people may look for it by, besides the words of title and summary.
        summary: what it is, in our words.
        when, when_not, cost: when to use it, when something else is better, and how its cost grows.
        reconstructed: what neither paper nor code settles.
        unverified: facts that could not be checked.
        weights: published weights that its models take, with their licences.
        claims: the abstract's claims in our words.
    """

    slug: str
    title: str
    licence: str
    family: str
    summary: str
    when: str
    when_not: str
    cost: str
    brief: str = ""
    year: int = 0
    venue: str = ""
    arxiv: str = ""
    code: str = ""
    bibtex: str = ""
    tasks: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    reconstructed: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()
    weights: tuple[KnownWeights, ...] = ()
    claims: tuple[Claimed, ...] = ()


#: Tables of a record: their class, and what one is called.
_TABLES = {"weights": (KnownWeights, "entry"), "claims": (Claimed, "claim")}
_FIELDS = {f.name: f for f in fields(Record) if f.name != "slug"}
_REQUIRED = tuple(name for name, f in _FIELDS.items() if f.default is MISSING)


def _wrong(found: dict[str, Any]) -> str:
    """What is wrong with a record's table, or nothing."""
    for key, value in found.items():
        if key not in _FIELDS:
            return f"it has no key {key!r}; its keys are {', '.join(_FIELDS)}"
        if key in _TABLES:
            continue
        if key == "year":
            if type(value) is not int:
                return f"year={value!r} is no whole number"
        elif _FIELDS[key].default == ():
            if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
                return f"{key} is no list of strings"
        elif not isinstance(value, str):
            return f"{key}={value!r} is no string"
    missing = [key for key in _REQUIRED if not found.get(key)]
    if missing:
        return f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    for table in _TABLES:
        if reason := _wrong_table(table, found.get(table, [])):
            return reason
    if found["family"] not in FAMILIES:
        return str(unknown_name("family", found["family"], FAMILIES)).rstrip(".?")
    for task in found.get("tasks", ()):
        if task not in TASKS:
            return str(unknown_name("task", task, TASKS)).rstrip(".?")
    return ""


def _wrong_table(table: str, rows: Any) -> str:
    """What is wrong with the claims or the weights of a record, or nothing."""
    made, called = _TABLES[table]
    keys = [f.name for f in fields(made)]
    if not isinstance(rows, list):
        return f"{table} is no list of tables: write [[{table}]] above each"
    for number, row in enumerate(rows, start=1):
        what = f"{called} {number}" if table == "claims" else f"{called} {number} of {table}"
        if not isinstance(row, dict) or set(row) != set(keys):
            return f"{what} is no table of {', '.join(keys[:-1])} and {keys[-1]}"
        for key, value in row.items():
            if not isinstance(value, str):
                return f"{what} {key}={value!r} is no string"
        if table == "claims" and row["kind"] not in CLAIM_KINDS:
            return f"{what} has kind={row['kind']!r}; legal are {', '.join(CLAIM_KINDS)}"
    return ""


def read(file: Path) -> Record:
    """The record in a file.

    Raises:
        InvalidValue: the file is no TOML, a key is unknown or missing, a value is of the wrong type or not legal; the
            file and the reason are named.
    """
    try:
        found: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidValue(f"the record {file} is no TOML: {error}.") from None
    if not re.fullmatch(r"[a-z][a-z0-9_]*", file.stem):
        raise InvalidValue(f"the record {file} has no legal slug: lower case with underscores, as a file name.")
    if reason := _wrong(found):
        raise InvalidValue(f"the record {file} is malformed: {reason}.")
    found |= {key: tuple(value) for key, value in found.items() if isinstance(value, list)}
    for table, (made, _) in _TABLES.items():
        found[table] = tuple(made(**row) for row in found.get(table, ()))
    return Record(slug=file.stem, **found)


def records() -> dict[str, Record]:
    """All records of foveate itself by slug; those of plug-ins are :func:`foveate.sources.plugins`'."""
    return {file.stem: read(file) for file in sorted(Path(__file__).parent.glob("*.toml"))}
