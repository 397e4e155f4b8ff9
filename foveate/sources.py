"""What source files register, and what plug-ins bring: read from the source, not imported.

Other distributions join through the entry-point group ``foveate.plugins``. Each entry point names a module or a package
whose source is read as foveate's own is; a package may also hold a folder ``catalog`` of records
(:mod:`foveate.catalog`). What is wrong with a plug-in is said once, as a :class:`PluginWarning`, and left out: it
breaks nothing else.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import importlib.util
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from . import spec as _spec
from .catalog import Record, read, records
from .errors import InvalidValue

KINDS = ("op", "mixer", "fuser", "model", "control", "scorer", "task")
_SPECS = {c.__name__: c for c in (_spec.MixerSpec, _spec.ModelSpec, _spec.TaskSpec, _spec.Grid, _spec.Order)}

#: From a registering decorator to the end of what it decorates.
_BLOCK = re.compile(
    r"^@register\(.*\n(?:(?:[ )@#].*)?\n)*?(?:class|def|async def) .*\n(?:(?:[ )\t].*)?(?:\n|\Z))*", re.MULTILINE
)
_REGISTER = re.compile(r"^@register\(", re.MULTILINE)
_FUNCTION = re.compile(r"^(?:async )?def ", re.MULTILINE)
_METHOD = re.compile(r"^    (?:def |async def |@)", re.MULTILINE)
#: What is read from a class body, by the name it is assigned to.
_READ = ("spec", "configurations", "published_costs")
_SAID = re.compile(rf"^    (?:{'|'.join(_READ)})\b", re.MULTILINE)


class PluginWarning(UserWarning):
    """Something of a plug-in is malformed or missing and was left out."""


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
        configurations: of a model, published sizes: names, which are found as registered ones are, to options.
        published_costs: what its publication says of them: million parameters, billion multiply-adds (None:
            not printed), pixels of a side.
        configuration: the published size that was asked for, of :attr:`configurations`; "" for the class itself.
    """

    kind: str
    name: str
    system: str
    module: str
    attribute: str
    file: Path
    spec: Any = None
    summary: str = ""
    configurations: dict[str, dict[str, Any]] = field(default_factory=dict, hash=False)
    published_costs: dict[str, tuple[float, float | None, int]] = field(default_factory=dict, hash=False)
    configuration: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """Options of the published size that was asked for."""
        return self.configurations[self.configuration] if self.configuration else {}

    def load(self) -> Any:
        """Import the module and return the registered class or function."""
        return getattr(importlib.import_module(self.module), self.attribute)


@dataclass(frozen=True, slots=True)
class Check:
    """The executable check of a claim, as ``claims/<slug>.py`` describes it.

    Attributes:
        slug: the system's.
        name: of the function.
        kind, says, timed: as its decorator says, see :class:`foveate.claims.Claim`.
        about: its docstring: how it measures, and how it was seen failing.
    """

    slug: str
    name: str
    kind: str
    says: str
    timed: bool = False
    about: str = ""


@dataclass(slots=True)
class Plugin:
    """A distribution that joined through an entry point.

    Attributes:
        name, module: of the entry point.
        entries: what its source registers.
        records: its records by slug, each with its file.
        problems: what is wrong with it, a sentence each; what they name was left out.
    """

    name: str
    module: str
    entries: list[Entry] = field(default_factory=list)
    records: dict[str, tuple[Record, Path]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def _literal(node: ast.expr) -> Any:
    """Evaluate literals and calls of the spec classes; nothing else can appear in a registration."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _SPECS:
        keywords = {k.arg: _literal(k.value) for k in node.keywords if k.arg}
        return _SPECS[node.func.id](**keywords)
    return ast.literal_eval(node)


def _decorations(node: ast.ClassDef | ast.FunctionDef, name: str) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """Arguments and keywords of the decorators called ``name``."""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", None) == name:
            yield [_literal(a) for a in decorator.args], {str(k.arg): _literal(k.value) for k in decorator.keywords}


def _said(node: ast.AST) -> dict[str, Any]:
    """What a class body says of the class, by the names of :data:`_READ`."""
    found = {}
    for statement in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for name in {getattr(t, "id", None) for t in targets} & set(_READ):
                found[name] = _literal(statement.value)
    return found


def _tree(source: str, file: Path) -> list[ast.ClassDef | ast.FunctionDef]:
    return [n for n in ast.parse(source, filename=str(file)).body if isinstance(n, ast.ClassDef | ast.FunctionDef)]


def _heads(source: str) -> str | None:
    """What a registration says, cut out of its file: decorators, header, docstring and the plain lines of a class.

    Methods are most of a file and take most of the time to parse. None where cutting would lose what a class says.
    """
    heads = []
    for block in _BLOCK.findall(source):
        opened = block.find('"""') if _FUNCTION.search(block) else -1
        method = _METHOD.search(block)
        end = method.start() if method else len(block)
        if opened >= 0:
            end = block.find('"""', opened + 3) + 3
        elif _SAID.search(block, end):
            return None
        heads.append(block[:end])
    text = "\n".join(heads)
    return text if len(_REGISTER.findall(text)) == len(_REGISTER.findall(source)) else None


def scan_file(file: Path, module: str) -> list[Entry]:
    """Read the registrations in one source file without importing it."""
    source = file.read_text(encoding="utf-8")
    if "@register(" not in source:
        return []
    heads = _heads(source)
    try:
        nodes = _tree(source if heads is None else heads, file)
    except SyntaxError:  # cut in the wrong place: a docstring that shows code, a class without one
        nodes = _tree(source, file)
    entries = []
    for node in nodes:
        summary = (ast.get_docstring(node) or "").split("\n")[0]
        for (kind, name), keywords in _decorations(node, "register"):
            system = keywords.get("system") or name
            entries.append(Entry(kind, name, system, module, node.name, file, summary=summary, **_said(node)))
    return entries


def scan_claims(file: Path) -> list[Check]:
    """Read the checks in one file of claims without importing it."""
    return [
        Check(slug, node.name, about=ast.get_docstring(node) or "", **keywords)
        for node in _tree(file.read_text(encoding="utf-8"), file)
        for (slug,), keywords in _decorations(node, "claim")
    ]


def _modules(package: str, folder: Path) -> Iterator[tuple[Path, str]]:
    """Files of a package and the names of their modules."""
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder).with_suffix("").parts
        yield file, ".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts)))


def scan_package(package: str, folder: Path) -> Iterator[Entry]:
    """Read the registrations of all files of a package."""
    for file, module in _modules(package, folder):
        yield from scan_file(file, module)


# Plug-ins -----------------------------------------------------------------------------------------------------------


def refuse(plugin: Plugin, problem: str) -> None:
    """Put what is wrong with a plug-in on record, and warn."""
    plugin.problems.append(problem)
    warnings.warn(f"the plug-in {plugin.name!r}: {problem}", PluginWarning, stacklevel=3)


def _locate(module: str) -> ModuleSpec | None:
    """Where a module is; unlike ``importlib.util.find_spec`` this imports none of its parents."""
    first, *rest = module.split(".")
    found, path = importlib.util.find_spec(first) if first else None, first
    for part in rest:
        if found is None or found.submodule_search_locations is None:
            return None
        path = f"{path}.{part}"
        found = PathFinder.find_spec(path, list(found.submodule_search_locations))
    return found


def _register(plugin: Plugin, file: Path, module: str) -> None:
    try:
        entries = scan_file(file, module)
    except (SyntaxError, UnicodeDecodeError, ValueError, TypeError) as error:
        refuse(plugin, f"{file} cannot be read, nothing of it is registered: {error}.")
        return
    for entry in entries:
        if entry.kind in KINDS:
            plugin.entries.append(entry)
        else:
            refuse(plugin, f"{file} registers {entry.name!r} as {entry.kind!r}: kinds are {', '.join(KINDS)}.")


def read_plugin(name: str, module: str) -> Plugin:
    """What the module or package of an entry point brings."""
    plugin = Plugin(name, module)
    found = _locate(module)
    if found is None or found.origin is None:
        refuse(plugin, f"its module {module!r} is not installed: repair or remove that distribution.")
    elif not found.submodule_search_locations:
        _register(plugin, Path(found.origin), module)
    else:
        folder = Path(found.origin).parent
        for file, inner in _modules(module, folder):
            _register(plugin, file, inner)
        for file in sorted((folder / "catalog").glob("*.toml")):
            try:
                plugin.records[file.stem] = read(file), file
            except InvalidValue as error:
                refuse(plugin, f"{error}")
    return plugin


@functools.cache
def plugins() -> tuple[Plugin, ...]:
    """Everything that joined, sorted by the entry points' names."""
    points = importlib.metadata.entry_points(group="foveate.plugins")
    return tuple(read_plugin(p.name, p.value.partition(":")[0].strip()) for p in sorted(points, key=lambda p: p.name))


@functools.cache
def all_records() -> dict[str, tuple[Record, Path]]:
    """Records of foveate and of plug-ins by slug, each with its file; a plug-in cannot take a slug that is in use."""
    here = Path(__file__).parent / "catalog"
    known = {slug: (record, here / f"{slug}.toml") for slug, record in records().items()}
    for plugin in plugins():
        for slug, (record, file) in list(plugin.records.items()):
            if slug in known:
                del plugin.records[slug]
                refuse(plugin, f"its record {file} is left out: the slug {slug!r} is in use by {known[slug][1]}.")
            else:
                known[slug] = record, file
    return known
