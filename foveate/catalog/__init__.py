"""The catalogue: one TOML record for each published system and baseline, named by its slug.

What a record cannot know is not in it: what is registered for a system, its files and its status come from the registry
(:func:`foveate.registry.get_system`), and whether a claim holds comes from measuring (``foveate verify``).
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a publication says of its system.

    Attributes:
        says: the claim in our words, with its number.
        kind: how it can be checked: "exact", "scaling", "learned" or "needs-pretrained".
    """

    says: str
    kind: str


@dataclass(frozen=True, slots=True)
class Record:
    """A catalogue record.

    Attributes:
        slug: its name and the name of its files.
        title, year, venue, arxiv, code, bibtex: the publication; empty where there is none.
        licence: of the official code.
        family: one of :data:`FAMILIES`.
        tasks: what it was made for, of :data:`TASKS`.
        keywords: what people may look for it by, besides the words of title and summary.
        summary: what it is, in our words.
        when, when_not, cost: when to use it, when something else is better, and how its cost grows.
        reconstructed: what neither paper nor code settles.
        unverified: facts that could not be checked.
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
    year: int = 0
    venue: str = ""
    arxiv: str = ""
    code: str = ""
    bibtex: str = ""
    tasks: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    reconstructed: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()
    claims: tuple[Claimed, ...] = ()


def read(file: Path) -> Record:
    """The record in a file."""
    found: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    found |= {key: tuple(value) for key, value in found.items() if isinstance(value, list)}
    found["claims"] = tuple(Claimed(**claim) for claim in found.get("claims", ()))
    return Record(slug=file.stem, **found)


def records() -> dict[str, Record]:
    """All records by slug."""
    return {file.stem: read(file) for file in sorted(Path(__file__).parent.glob("*.toml"))}
