"""One registry for everything that has a name.

Registering is a decorator with literal arguments above the class or function::

    @register("mixer", "lightning_attention", system="lightning_attention")
    class LightningAttention(Mixer):
        spec = MixerSpec(causal="strict", streaming="exact")

The registry finds these lines by *reading* the source of foveate's packages (:mod:`foveate.sources`), not by importing
it, so names, kinds and specs are known without loading torch; the module is imported when the object is first needed.
There is no second list to edit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from . import spec as _spec
from .catalog import FAMILIES, TASKS, Record
from .catalog.results import Measured, SystemResults, read_results, sources_digest
from .errors import InvalidType, InvalidValue, UnknownName, unknown_name
from .options import check_options, option_types
from .sources import KINDS, Check, Entry, all_records, plugins, refuse, scan_claims, scan_file, scan_package

__all__ = [
    "KINDS",
    "STATUSES",
    "Entry",
    "System",
    "check_options",
    "cite",
    "create",
    "entries",
    "find",
    "find_systems",
    "get_system",
    "list_names",
    "list_systems",
    "option_types",
    "register",
    "scan_file",
    "unrecorded",
]

#: How far a system is; computed, see :attr:`System.status`.
STATUSES = ("planned", "working", "verified")
_ROOTS = ("ops", "mixers", "models", "control", "scorers", "tasks")

T = TypeVar("T")


def register(kind: str, name: str, *, system: str | None = None) -> Callable[[T], T]:
    """Mark a class or function as registered; arguments must be literals, for they are read from the source.

    Args:
        kind: one of :data:`KINDS`.
        name: how users ask for it.
        system: slug of its catalogue record, if that is not ``name``.
    """
    if kind not in KINDS:
        raise InvalidValue(f"kind={kind!r} cannot be registered: legal kinds are {', '.join(KINDS)}.")

    def mark(obj: T) -> T:
        obj.registered_as = (kind, name, system or name)  # type: ignore[attr-defined]
        return obj

    return mark


@functools.cache
def _table() -> dict[tuple[str, str], Entry]:
    here = Path(__file__).parent
    table: dict[tuple[str, str], Entry] = {}
    for root in _ROOTS:
        for entry in scan_package(f"foveate.{root}", here / root):
            other = table.setdefault((entry.kind, entry.name), entry)
            if other is not entry:
                raise InvalidValue(
                    f"the {entry.kind} {entry.name!r} is registered twice: in {other.file} and in {entry.file}."
                )
    for plugin in plugins():
        for entry in list(plugin.entries):
            other = table.setdefault((entry.kind, entry.name), entry)
            if other is not entry:
                plugin.entries.remove(entry)
                refuse(plugin, f"the {entry.kind} {entry.name!r} of {entry.file} is left out: {other.file} has it.")
    return table


def entries(kind: str | None = None) -> list[Entry]:
    """All registered entries, sorted by kind and name."""
    if kind is not None and kind not in KINDS:
        raise unknown_name("kind", kind, KINDS)
    return sorted((e for e in _table().values() if kind in (None, e.kind)), key=lambda e: (e.kind, e.name))


def find(name: str, kind: str | None = None) -> Entry:
    """The entry of this name.

    Raises:
        UnknownName: nothing has this name (the nearest names are given), or several kinds have it and ``kind`` is None.
    """
    hits = [e for e in entries(kind) if e.name == name]
    if not hits:
        raise unknown_name(kind or "name", name, {e.name for e in entries(kind)})
    if len(hits) > 1:
        kinds = " or ".join(f"kind={e.kind!r}" for e in hits)
        raise UnknownName(f"{name!r} is the name of more than one thing: say {kinds}.")
    return hits[0]


def _fits(
    entry: Entry,
    task: str | None,
    causal: bool | None,
    streaming: bool | None,
    rank: int | None,
    kind: str | None = None,
) -> bool:
    """Whether an entry satisfies every filter that is not None, see :func:`list_names`."""
    s = entry.spec
    is_mixer = isinstance(s, _spec.MixerSpec)
    if kind not in (None, entry.kind):
        return False
    if task is not None:
        spec = find(task, "task").spec
        fits = spec.rank in s.ranks if is_mixer else (spec.models_of or task) in getattr(s, "tasks", ())
        if not fits:
            return False
    if causal is not None and not (is_mixer and (s.causal == "strict" if causal else s.bidirectional)):
        return False
    if streaming is not None and (getattr(s, "streaming", "no") != "no") is not streaming:
        return False
    return rank is None or (is_mixer and rank in s.ranks)


def list_names(
    kind: str | None = None,
    *,
    task: str | None = None,
    causal: bool | None = None,
    streaming: bool | None = None,
    rank: int | None = None,
) -> list[str]:
    """Registered names, sorted, that satisfy every given filter.

    Args:
        kind: "op", "mixer", "model", ...; None for all.
        task: models that can be built for this task, and mixers that :class:`~foveate.models.mixer_net.MixerNet`
            makes into one.
        causal: True: mixers that can be strictly causal; False: mixers that can look both ways.
        streaming: True: has a streaming form.
        rank: mixers that accept grids of this rank.
    """
    if task is not None:
        find(task, "task")
    return sorted({e.name for e in entries(kind) if _fits(e, task, causal, streaming, rank)})


def create(name: str, kind: str | None = None, **options: Any) -> Any:
    """Build the registered thing called ``name``.

    For an op the function itself is returned (it takes tensors, not options).

    Args:
        name: registered name, see :func:`list_names`.
        kind: needed when the name is ambiguous.
        options: constructor options.

    Raises:
        UnknownName: no such name; the nearest ones are given.
        InvalidType: an option does not exist or is missing.
        InvalidValue: an option's value is illegal.
    """
    entry = find(name, kind)
    target = entry.load()
    if entry.kind == "op":
        if options:
            raise InvalidType(f"the op {name!r} takes tensors when called, no options when created.")
        return target
    check_options(name, target, options)
    return target(**options)


@dataclass(frozen=True, slots=True)
class System(Record):
    """A catalogue record with what the registry provides for it and what was measured of it.

    Attributes:
        provides: registered entries that belong to it.
    """

    provides: tuple[Entry, ...] = field(default=())

    @property
    def files(self) -> list[Path]:
        """Source files of what it provides, its analysis, its claims and its record, those that exist."""
        here = Path(__file__).parent
        extra = [here / folder / f"{self.slug}.py" for folder in ("analysis", "claims")]
        extra.append(here / "catalog" / f"{self.slug}.toml")
        return sorted({e.file for e in self.provides}) + [f for f in extra if f.exists()]

    @property
    def planned(self) -> bool:
        """Whether there is a record and nothing else yet."""
        return not any(file.suffix == ".py" for file in self.files)

    @property
    def checks(self) -> list[Check]:
        """The checks of its claims, as their file describes them."""
        return scan_claims(Path(__file__).parent / "claims" / f"{self.slug}.py")

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
def _results() -> dict[str, SystemResults]:
    return read_results()


@functools.cache
def _systems() -> dict[str, System]:
    provided: dict[str, list[Entry]] = {}
    for entry in entries():
        provided.setdefault(entry.system, []).append(entry)
    return {
        slug: System(
            **{f.name: getattr(record, f.name) for f in fields(record)}, provides=tuple(provided.get(slug, ()))
        )
        for slug, record in all_records().items()
    }


def unrecorded() -> list[Entry]:
    """Registered entries whose system has no record, tasks among them."""
    return [entry for entry in entries() if entry.system not in _systems()]


def find_systems(
    search: str | None = None,
    *,
    status: str | None = None,
    family: str | None = None,
    task: str | None = None,
    kind: str | None = None,
    rank: int | None = None,
    causal: bool | None = None,
    streaming: bool | None = None,
) -> list[tuple[str, float]]:
    """Slugs of the systems that satisfy every given filter, with their scores: :func:`list_systems` with numbers.

    Scores are those of :func:`foveate.catalog.search.search`, and 0 without ``search``.
    """
    tasks = {e.name for e in entries("task")}
    for what, value, legal in (
        ("status", status, STATUSES),
        ("family", family, FAMILIES),
        ("task", task, tasks | set(TASKS)),
        ("kind", kind, KINDS),
    ):
        if value is not None and value not in legal:
            raise unknown_name(what, value, legal)
    wanted = (causal, streaming, rank, kind)

    def provides(system: System, task: str | None) -> bool:
        return any(_fits(entry, task, *wanted) for entry in system.provides)

    def keep(system: System) -> bool:
        if family not in (None, system.family) or status not in (None, system.status):
            return False
        if task is None or task in system.tasks:
            return wanted == (None,) * 4 or provides(system, None)
        return task in tasks and provides(system, task)

    kept = {slug: system for slug, system in sorted(_systems().items()) if keep(system)}
    if search is None:
        return [(slug, 0.0) for slug in kept]
    from .catalog.search import search as ranked

    return [(slug, score) for slug, score in ranked(search, _systems()) if slug in kept]


def list_systems(
    search: str | None = None,
    *,
    status: str | None = None,
    family: str | None = None,
    task: str | None = None,
    kind: str | None = None,
    rank: int | None = None,
    causal: bool | None = None,
    streaming: bool | None = None,
) -> list[str]:
    """Slugs of the catalogue's systems that satisfy every given filter: sorted, or best first where searched.

    Args:
        search: what is looked for, in plain words.
        status: "planned", "working" or "verified", see :attr:`System.status`.
        family: one of :data:`foveate.catalog.FAMILIES`.
        task: a registered task, for systems that can take part today, or one of :data:`foveate.catalog.TASKS`, for
            systems made for it.
        kind: systems that provide a mixer, a model, an op, ...
        rank, causal, streaming: systems that provide something of which :func:`list_names` says so.

    Raises:
        UnknownName: no such status, family, task or kind; the nearest ones are given.
    """
    found = find_systems(
        search, status=status, family=family, task=task, kind=kind, rank=rank, causal=causal, streaming=streaming
    )
    return [slug for slug, _ in found]


def get_system(slug: str) -> System:
    """The catalogue record of a system, with its status, what it provides and what was measured.

    Raises:
        UnknownName: no such slug; the nearest ones are given.
    """
    try:
        return _systems()[slug]
    except KeyError:
        hint = f"something registered has this name, but no record (catalog/{slug}.toml)."
        known = any(e.system == slug for e in unrecorded())
        raise unknown_name("system", slug, _systems(), hint if known else "") from None


def cite(*slugs: str) -> str:
    """The BibTeX entries of systems, in the order asked for, one blank line between two.

    Raises:
        UnknownName: no such slug; the nearest ones are given.
        InvalidValue: a system has no publication.
    """
    found = []
    for system in map(get_system, dict.fromkeys(slugs)):
        if not system.bibtex.strip():
            raise InvalidValue(f"{system.slug} has no publication to cite: it is {system.title}.")
        found.append(system.bibtex.strip())
    return "\n\n".join(found)
