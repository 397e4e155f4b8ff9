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
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from . import spec as _spec
from .catalog import FAMILIES, TASKS
from .errors import InvalidType, InvalidValue, UnknownName, unknown_name
from .options import check_options, option_types
from .sources import KINDS, Entry, all_records, plugins, refuse, scan_file, scan_package
from .systems import STATUSES, System

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
]

_HERE = Path(__file__).parent
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
    table: dict[tuple[str, str], Entry] = {}
    for root in _ROOTS:
        for entry in scan_package(f"foveate.{root}", _HERE / root):
            other = table.setdefault((entry.kind, entry.name), entry)
            if other is not entry:
                raise InvalidValue(
                    f"the {entry.kind} {entry.name!r} is registered twice: in {other.file} and in {entry.file}."
                )
    for plugin in plugins():
        for entry in list(plugin.entries):
            other = table.setdefault((entry.kind, entry.name), entry)
            if other != entry:
                plugin.entries.remove(entry)
                refuse(plugin, f"the {entry.kind} {entry.name!r} of {entry.file} is left out: {other.file} has it.")
    return table


@functools.cache
def _sizes() -> dict[str, Entry]:
    """Published sizes of models by name; theirs and registered names are all different."""
    taken = {name: entry.file for (_, name), entry in _table().items()}
    sizes: dict[str, Entry] = {}
    of_plugins = {id(entry): plugin for plugin in plugins() for entry in plugin.entries}
    for entry in _table().values():
        plugin = of_plugins.get(id(entry))
        for name in list(entry.configurations):
            if name not in taken:
                taken[name], sizes[name] = entry.file, replace(entry, configuration=name)
            elif plugin is None:
                raise InvalidValue(f"the name {name!r} is registered twice: in {taken[name]} and in {entry.file}.")
            else:
                del entry.configurations[name]
                refuse(plugin, f"the size {name!r} of {entry.file} is left out: {taken[name]} has the name.")
    return sizes


def entries(kind: str | None = None) -> list[Entry]:
    """All registered entries, sorted by kind and name."""
    if kind is not None and kind not in KINDS:
        raise unknown_name("kind", kind, KINDS)
    return sorted((e for e in _table().values() if kind in (None, e.kind)), key=lambda e: (e.kind, e.name))


def sizes(kind: str | None = None) -> list[Entry]:
    """Published sizes of all models, sorted by their names, which are :attr:`Entry.configuration`."""
    return [entry for _, entry in sorted(_sizes().items()) if kind in (None, entry.kind)]


def find(name: str, kind: str | None = None) -> Entry:
    """The entry of this name, or of the class that has a published size of this name.

    Raises:
        UnknownName: nothing has this name (the nearest names are given), or several kinds have it and ``kind`` is None.
    """
    hits = [e for e in entries(kind) if e.name == name] or [e for e in sizes(kind) if e.configuration == name]
    if not hits:
        known = {e.name for e in entries(kind)} | {e.configuration for e in sizes(kind)}
        raise unknown_name(kind or "name", name, known)
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
) -> bool:
    """Whether an entry satisfies every filter that is not None, see :func:`list_names`."""
    s = entry.spec
    is_mixer = isinstance(s, _spec.MixerSpec)
    if task is not None:
        spec = find(task, "task").spec
        if is_mixer:
            fits = _spec.mixer_fits(s, spec, flattened=False)
        else:
            fits = isinstance(s, _spec.ModelSpec) and _spec.model_fits(s, spec, task)
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
        task: models that can be built for this task, and mixers that a network makes into one
            (:func:`foveate.models.build.network`).
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
        name: registered name, see :func:`list_names`, or that of a published size (``davit_tiny``).
        kind: needed when the name is ambiguous.
        options: constructor options; they win over those of a published size. Of a model, ``pretrained`` besides: a
            safetensors file, a folder with one, or a repo's id on the hub (``user/name``), in foveate's layout or that
            of a release or peer that the model knows; and ``source``, which one, where names alone should not decide.
            The model is then in eval mode, and has the weights' number of classes; with another ``num_classes`` its
            classifier is a fresh one.

    Raises:
        UnknownName: no such name; the nearest ones are given.
        InvalidType: an option does not exist or is missing.
        InvalidValue: an option's value is illegal, or weights do not fit.
    """
    entry = find(name, kind)
    target = entry.load()
    if entry.kind == "op":
        if options:
            raise InvalidType(f"the op {name!r} takes tensors when called, no options when created.")
        return target
    options = {**entry.options, **options}
    if entry.kind == "model" and options.get("pretrained") is not None:
        return target.with_weights(options.pop("pretrained"), name=name, **options)
    check_options(name, target, options)
    return target(**options)


@functools.cache
def _systems() -> dict[str, System]:
    provided: dict[str, list[Entry]] = {}
    for entry in entries():
        provided.setdefault(entry.system, []).append(entry)
    return {
        slug: System(
            **{f.name: getattr(record, f.name) for f in fields(record)},
            provides=tuple(provided.get(slug, ())),
            record=file,
        )
        for slug, (record, file) in all_records().items()
    }


@functools.cache
def _unrecorded() -> dict[str, System]:
    """What is registered without a record, tasks among it: systems that say no more than their docstring."""
    found: dict[str, list[Entry]] = {}
    for entry in entries():
        if entry.system not in _systems():
            found.setdefault(entry.system, []).append(entry)
    return {slug: System(slug, slug, "", "", e[0].summary, "", "", "", provides=tuple(e)) for slug, e in found.items()}


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
) -> list[tuple[System, float]]:
    """The systems that :func:`list_systems` names, with their scores (0 without ``search``), and what has no record.

    The latter are systems without family and title; tasks are among them with ``kind="task"`` only.
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
    wanted = (causal, streaming, rank)

    def provides(system: System, task: str | None) -> bool:
        found = [e for e in system.provides if kind == e.kind or (kind is None and e.kind != "task")]
        if streaming is False and any(_fits(e, None, None, True, None) for e in found):
            return False  # an op beside a mixer that streams does not make a system without streaming
        return any(_fits(e, task, *wanted) for e in found)

    def keep(system: System) -> bool:
        if family not in (None, system.family) or status not in (None, system.status):
            return False
        if task is None or task in system.tasks:
            return provides(system, None) or ((kind, *wanted) == (None,) * 4 and system.record is not None)
        return task in tasks and provides(system, task)

    known = _systems() | _unrecorded()
    if search is None:
        return [(system, 0.0) for _, system in sorted(known.items()) if keep(system)]
    from .catalog.search import search as ranked

    return [(known[slug], score) for slug, score in ranked(search, known) if keep(known[slug])]


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
    return [system.slug for system, _ in found if system.record is not None]


def get_system(slug: str) -> System:
    """The catalogue record of a system, with its status, what it provides and what was measured.

    Raises:
        UnknownName: no such slug; the nearest ones are given.
    """
    if slug in _systems():
        return _systems()[slug]
    if any(e.name == slug for e in entries("task")):
        raise UnknownName(f"unknown system {slug!r}: it is a task, see foveate compare {slug} --help.")
    if slug in _unrecorded():
        raise UnknownName(f"{slug!r} is registered and has no record: it needs a file catalog/{slug}.toml.")
    for entry in entries():
        if entry.name == slug:
            raise UnknownName(f"unknown system {slug!r}: the {entry.kind} of this name belongs to {entry.system!r}.")
    for entry in sizes():
        if entry.configuration == slug:
            raise UnknownName(f"unknown system {slug!r}: it is a published size of {entry.system!r}.")
    raise unknown_name("system", slug, _systems())


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
