"""One registry for everything that has a name.

Registering is a decorator with literal arguments above the class or function::

    @register("mixer", "lightning_attention", system="lightning_attention")
    class LightningAttention(Mixer):
        spec = MixerSpec(causal="strict", streaming="exact")

The registry finds these lines by *reading* the source of foveate's packages, not by importing it, so names, kinds and
specs are known without loading torch; the module is imported when the object is first needed. There is no second list
to edit. Other distributions join through the entry-point group ``foveate.plugins``: each entry point names a module
(or package) whose source is read the same way.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from . import spec as _spec
from .catalog import Record, records
from .errors import InvalidType, InvalidValue, UnknownName, unknown_name

KINDS = ("op", "mixer", "fuser", "model", "control", "scorer", "task")
_ROOTS = ("ops", "mixers", "models", "control", "scorers", "tasks")
_SPECS = {c.__name__: c for c in (_spec.MixerSpec, _spec.ModelSpec, _spec.TaskSpec, _spec.Grid, _spec.Order)}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered name.

    Attributes:
        kind: one of :data:`KINDS`.
        name: unique within its kind.
        system: slug of the system (catalogue record) it belongs to; defaults to ``name``.
        module, attribute: where the object lives.
        file: the source file.
        spec: its :class:`~foveate.spec.MixerSpec` or :class:`~foveate.spec.ModelSpec`, if it has one.
        summary: first line of its docstring.
    """

    kind: str
    name: str
    system: str
    module: str
    attribute: str
    file: Path
    spec: Any = None
    summary: str = ""

    def load(self) -> Any:
        """Import the module and return the registered class or function."""
        return getattr(importlib.import_module(self.module), self.attribute)


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


def _literal(node: ast.expr) -> Any:
    """Evaluate literals and calls of the spec classes; nothing else can appear in a registration."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _SPECS:
        keywords = {k.arg: _literal(k.value) for k in node.keywords if k.arg}
        return _SPECS[node.func.id](**keywords)
    return ast.literal_eval(node)


def _registrations(node: ast.ClassDef | ast.FunctionDef) -> Iterator[tuple[str, str, str]]:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", None) == "register":
            arguments = [_literal(a) for a in decorator.args]
            keywords = {k.arg: _literal(k.value) for k in decorator.keywords}
            kind, name = arguments
            yield kind, name, keywords.get("system") or name


def _class_spec(node: ast.AST) -> Any:
    for statement in getattr(node, "body", []):
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            if any(getattr(t, "id", None) == "spec" for t in targets):
                return _literal(statement.value)
    return None


def scan_file(file: Path, module: str) -> list[Entry]:
    """Read the registrations in one source file without importing it."""
    source = file.read_text(encoding="utf-8")
    if "@register(" not in source:
        return []
    entries = []
    for node in ast.parse(source, filename=str(file)).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            summary = (ast.get_docstring(node) or "").split("\n")[0]
            for kind, name, system in _registrations(node):
                entry = Entry(kind, name, system, module, node.name, file, _class_spec(node), summary)
                entries.append(entry)
    return entries


def _scan_package(package: str, folder: Path) -> Iterator[Entry]:
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        yield from scan_file(file, ".".join((package, *parts)))


def _plugin_entries() -> Iterator[Entry]:
    for point in importlib.metadata.entry_points(group="foveate.plugins"):
        found = importlib.util.find_spec(point.module)
        if found is None or found.origin is None:
            raise UnknownName(
                f"the plug-in {point.name!r} names the module {point.module!r}, which is not installed: "
                f"repair or remove that distribution."
            )
        if found.submodule_search_locations:
            yield from _scan_package(point.module, Path(found.origin).parent)
        else:
            yield from scan_file(Path(found.origin), point.module)


@functools.cache
def _table() -> dict[tuple[str, str], Entry]:
    here = Path(__file__).parent
    table: dict[tuple[str, str], Entry] = {}

    def add(entries: Iterator[Entry]) -> None:
        for entry in entries:
            other = table.setdefault((entry.kind, entry.name), entry)
            if other is not entry:
                raise InvalidValue(
                    f"the {entry.kind} {entry.name!r} is registered twice: in {other.file} and in {entry.file}."
                )

    for root in _ROOTS:
        if (here / root).is_dir():
            add(_scan_package(f"foveate.{root}", here / root))
    add(_plugin_entries())
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
    spec_of_task = find(task, "task").spec if task is not None else None

    def keep(entry: Entry) -> bool:
        s = entry.spec
        is_mixer = isinstance(s, _spec.MixerSpec)
        if spec_of_task is not None:
            fits = (
                spec_of_task.rank in s.ranks
                if is_mixer
                else (spec_of_task.models_of or task) in getattr(s, "tasks", ())
            )
            if not fits:
                return False
        if causal is not None and not (is_mixer and (s.causal == "strict" if causal else s.bidirectional)):
            return False
        if streaming is not None and (getattr(s, "streaming", "no") != "no") is not streaming:
            return False
        return rank is None or (is_mixer and rank in s.ranks)

    return sorted({e.name for e in entries(kind) if keep(e)})


def _signature_options(cls: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(cls).parameters
    return {n: p for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def check_options(name: str, target: Callable[..., Any], options: dict[str, Any], *, partial: bool = False) -> None:
    """Refuse options that ``target`` does not have, or lacks (unless ``partial``), before it is called.

    Raises:
        InvalidType: an unknown option (legal ones are listed), a required one missing.
    """
    legal = _signature_options(target)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(target).parameters.values())
    for option in options:
        if option not in legal and not takes_any:
            raise InvalidType(f"{name!r} has no option {option!r}: its options are {', '.join(legal)}.")
    required = [n for n, p in legal.items() if p.default is p.empty and n not in options]
    if required and not partial:
        raise InvalidType(f"{name!r} needs {', '.join(required)}: give {'it' if len(required) == 1 else 'them'}.")


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


def option_types(cls: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Option name to (annotation, default) of a registered class, for documentation and configuration files."""
    hints = typing.get_type_hints(getattr(cls, "__init__", cls))
    return {n: (hints.get(n, p.annotation), p.default) for n, p in _signature_options(cls).items()}


@dataclass(frozen=True, slots=True)
class System(Record):
    """A catalogue record with what the registry provides for it.

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
        return {file.suffix for file in self.files} == {".toml"}


@functools.cache
def _systems() -> dict[str, System]:
    provided: dict[str, list[Entry]] = {}
    for entry in entries():
        provided.setdefault(entry.system, []).append(entry)
    return {
        slug: System(
            **{f.name: getattr(record, f.name) for f in fields(record)}, provides=tuple(provided.get(slug, ()))
        )
        for slug, record in records().items()
    }


def list_systems() -> list[str]:
    """Slugs of all catalogue records, sorted."""
    return sorted(_systems())


def get_system(slug: str) -> System:
    """The catalogue record of a system.

    Raises:
        UnknownName: no such slug; the nearest ones are given.
    """
    try:
        return _systems()[slug]
    except KeyError:
        raise unknown_name("system", slug, _systems()) from None
