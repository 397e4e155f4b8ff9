"""``list``, ``show``, ``cite``, ``doctor``: what there is, what it claims, what this installation has."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Annotated, Any

import typer

from ..catalog import FAMILIES
from ..registry import KINDS, STATUSES, Entry, System, find_systems, get_system
from ..registry import cite as bibtex
from . import cards

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
#: How the filters that are a choice of two are written on the command line.
_FLAGS = {
    ("causal", True): "--causal",
    ("causal", False): "--bidirectional",
    ("streaming", True): "--streaming",
    ("streaming", False): "--no-streaming",
}


def _facts(entry: Entry) -> dict[str, Any]:
    import dataclasses

    spec = dataclasses.asdict(entry.spec) if entry.spec is not None else {}
    facts = {"kind": entry.kind, "name": entry.name, "system": entry.system, "summary": entry.summary, "spec": spec}
    return facts | ({"configurations": entry.configurations} if entry.configurations else {})


def _row(system: System, score: float | None) -> dict[str, Any]:
    """Facts of a system in a list; ``score`` where it was searched for."""
    facts = {
        "slug": system.slug,
        "title": system.title,
        "brief": system.brief,
        "year": system.year,
        "status": system.status,
        "failing": list(system.failing),
        "family": system.family,
        "tasks": list(system.tasks),
        "provides": [_facts(e) for e in system.provides],
        "summary": system.summary,
    }
    return facts if score is None else facts | {"score": round(score, 4)}


def _nothing(given: dict[str, Any]) -> str:
    """The sentence that says that nothing was found, and with which filter left out there is something."""

    def written(name: str) -> str:
        return _FLAGS.get((name, given[name])) or f"--{name} {shlex.quote(str(given[name]))}"

    counts = {n: len(find_systems(**{k: v for k, v in given.items() if k != n})) for n in given if len(given) > 1}
    ways = [f"without {written(name)} there {'is' if c == 1 else 'are'} {c}" for name, c in counts.items() if c]
    if not ways:
        ways = ["leave out more than one of these" if counts else "foveate list alone shows all systems"]
    return f"Nothing is found by {' '.join(map(written, given))}: {', '.join(ways)}."


def list_(
    kind: Annotated[
        str | None, typer.Option(help=f"Systems that provide one: {', '.join(KINDS)} (task: the tasks themselves).")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="What can take part in this task today (foveate list --kind task names them), or what the publication "
            "is about: classify-images, edit-video, ..."
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="With a mixer for token grids of this rank (1, 2, 3).")] = None,
    causal: Annotated[bool | None, typer.Option("--causal/--bidirectional", help="With a mixer of this form.")] = None,
    streaming: Annotated[bool | None, typer.Option("--streaming/--no-streaming", help="With a streaming form.")] = None,
    status: Annotated[str | None, typer.Option(help=f"One of {', '.join(STATUSES)}.")] = None,
    family: Annotated[str | None, typer.Option(help=f"One of {', '.join(FAMILIES)}.")] = None,
    search: Annotated[
        str | None, typer.Option(help="What is looked for, in plain words; best first, typos are forgiven.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the systems; filters can be combined."""
    filters = {
        "search": search,
        "kind": kind,
        "task": task,
        "rank": rank,
        "causal": causal,
        "streaming": streaming,
        "status": status,
        "family": family,
    }
    given = {name: value for name, value in filters.items() if value is not None}

    found = find_systems(**given)
    if not found:
        print(_nothing(given), file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps([_row(s, score if search is not None else None) for s, score in found], indent=2))
    elif found:
        provides = {"kind", "rank", "causal", "streaming"} & given.keys()
        cards.listing([s for s, _ in found], ranked=search is not None, kind=kind, provides=bool(provides))


def show(
    slug: Annotated[str, typer.Argument(help="A system, as `foveate list` names it.")],
    as_json: Json = False,
) -> None:
    """Show a system: what it is, when to use it, what it provides, its claims as published and as measured, files."""
    import dataclasses

    system = get_system(slug)
    if not as_json:
        cards.card(system)
        return
    facts = dataclasses.asdict(system) | {
        "record": str(system.record),
        "status": system.status,
        "failing": list(system.failing),
        "outdated": system.outdated,
        "provides": [_facts(e) for e in system.provides],
        "checks": [
            dataclasses.asdict(check) | {"measured": dataclasses.asdict(found) if found else None}
            for check, found in cards.pairs(system)
        ],
        "files": [str(f) for f in system.files],
    }
    print(json.dumps(facts, indent=2))


def cite(
    slugs: Annotated[list[str], typer.Argument(metavar="SLUG...", help="Systems.")],
    as_json: Json = False,
) -> None:
    """Print the BibTeX entries of systems."""
    found = bibtex(*slugs)
    print(json.dumps({slug: bibtex(slug) for slug in slugs}, indent=2) if as_json else found)


def doctor(as_json: Json = False) -> None:
    """Say what this installation has: versions, machine, native kernels, optional packages."""
    import importlib.util

    from ..measure.machine import machine_facts
    from ..ops import native
    from ..registry import entries
    from ..sources import all_records, plugins

    extras = {
        "pyarrow": "series: Parquet files",
        "statsmodels": "series: the baseline theta",
        "tensorboard": "track: --track tensorboard",
        "mlflow": "track: --track mlflow",
        "onnx": "export: --format onnx",
        "onnxscript": "export: --format onnx",
        "onnxruntime": "export: --format onnx",
        "triton": "GPU kernels",
    }
    facts, built = machine_facts(), native.state()
    optional = {name: importlib.util.find_spec(name) is not None for name in extras}
    entries()
    all_records()  # only now is what plug-ins bring compared with what is there
    joined = [
        {
            "name": plugin.name,
            "module": plugin.module,
            "registers": [f"{e.kind} {e.name}" for e in plugin.entries],
            "records": sorted(plugin.records),
            "problems": plugin.problems,
        }
        for plugin in plugins()
    ]
    if as_json:
        print(json.dumps({**facts, "native": built, "optional": optional, "plugins": joined}, indent=2))
        return
    for key, value in facts.items():
        print(f"{key}: {value}")
    if built["level"]:
        others = ", ".join(level for level in built["built"] if level != built["level"]) or "none"
        print(f"native kernels: {', '.join(built['kernels'])} (level {built['level']}; also built: {others})")
    else:
        print(f"native kernels: none; {built['advice']}")
    for name, present in optional.items():
        print(f"{name}: {'present' if present else 'missing'} ({extras[name]})")
    for plugin in joined:
        brings = [*plugin["registers"], *(f"record {slug}" for slug in plugin["records"])]
        print(f"plug-in {plugin['name']} ({plugin['module']}): {', '.join(brings) or 'nothing'}")
        for problem in plugin["problems"]:
            print(f"plug-in {plugin['name']}: {problem}")
