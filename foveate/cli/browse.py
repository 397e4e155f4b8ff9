"""``list``, ``show``, ``cite``, ``verify``, ``doctor``: what there is, what it claims, what this installation has."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from ..errors import InvalidValue
from ..registry import KINDS, Entry, entries, get_system, list_names

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _facts(entry: Entry) -> dict[str, Any]:
    import dataclasses

    spec = dataclasses.asdict(entry.spec) if entry.spec is not None else {}
    return {"kind": entry.kind, "name": entry.name, "system": entry.system, "summary": entry.summary, "spec": spec}


def list_(
    kind: Annotated[str | None, typer.Option(help=f"One of {', '.join(KINDS)}.")] = None,
    task: Annotated[str | None, typer.Option(help="What can take part in this task.")] = None,
    rank: Annotated[int | None, typer.Option(help="Mixers for token grids of this rank (1, 2, 3).")] = None,
    causal: Annotated[bool | None, typer.Option("--causal/--bidirectional", help="Mixers with this form.")] = None,
    streaming: Annotated[bool | None, typer.Option("--streaming/--no-streaming", help="Has a streaming form.")] = None,
    as_json: Json = False,
) -> None:
    """List what is registered."""
    names = set(list_names(kind, task=task, rank=rank, causal=causal, streaming=streaming))
    hits = [e for e in entries(kind) if e.name in names]
    if as_json:
        print(json.dumps([_facts(e) for e in hits], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("kind", "name", "what it is"):
        table.add_column(column, no_wrap=column != "what it is")
    for entry in hits:
        table.add_row(entry.kind, entry.name, entry.summary)
    Console().print(table)


def show(
    slug: Annotated[str, typer.Argument(help="A system, as `foveate list` names it.")],
    as_json: Json = False,
) -> None:
    """Show a system: what it is, where it comes from, what it provides, its files."""
    import dataclasses

    system = get_system(slug)
    if as_json:
        record = dataclasses.asdict(system) | {
            "provides": [_facts(e) for e in system.provides],
            "files": [str(f) for f in system.files],
        }
        print(json.dumps(record, indent=2))
        return
    published = ", ".join(str(p) for p in (system.venue, system.year) if p)
    print(f"{system.title}\n{published or system.family}\n\n{system.summary}\n")
    print(f"{system.when}\nNot: {system.when_not}\nCost: {system.cost}\n")
    for label, value in (("family", system.family), ("arXiv", system.arxiv), ("code", system.code)):
        if value:
            print(f"{label}: {value}")
    print(f"licence: {system.licence}")
    if system.planned:
        print("planned: there is a record, and no code yet")
    for entry in system.provides:
        print(f"{entry.kind} {entry.name}: {entry.summary}")
    for claim in system.claims:
        print(f"claims [{claim.kind}]: {claim.says}")
    for label, texts in (("reconstructed", system.reconstructed), ("unverified", system.unverified)):
        for text in texts:
            print(f"{label}: {text}")
    for file in system.files:
        print(f"file: {file}")


def cite(
    slugs: Annotated[list[str], typer.Argument(metavar="SLUG...", help="Systems.")],
    as_json: Json = False,
) -> None:
    """Print the BibTeX entries of systems."""
    entries = {slug: get_system(slug).bibtex.strip() for slug in slugs}
    for slug, entry in entries.items():
        if not entry:
            raise InvalidValue(f"{slug} has no publication to cite: it is {get_system(slug).title}.")
    print(json.dumps(entries, indent=2) if as_json else "\n\n".join(entries.values()))


def verify(
    slug: Annotated[str, typer.Argument(help="A system, as `foveate list` names it.")],
    kind: Annotated[str | None, typer.Option(help="exact, scaling, learned or needs-pretrained.")] = None,
    as_json: Json = False,
) -> None:
    """Check a system's claims here: claimed against measured. Exit status 1 if one fails."""
    import dataclasses

    from ..claims import KINDS as CLAIM_KINDS
    from ..claims import claims_of

    if kind is not None and kind not in CLAIM_KINDS:
        raise InvalidValue(f"--kind {kind} is not possible: legal are {', '.join(CLAIM_KINDS)}.")
    get_system(slug)
    failed, records = 0, []
    for claim in claims_of(slug, kind):
        found = claim.check()
        skipped = claim.kind == "needs-pretrained"
        failed += not found.passed and not skipped
        record = {"claim": claim.says, "kind": claim.kind, "check": claim.name, **dataclasses.asdict(found)}
        records.append(record)
        if not as_json:
            verdict = "not checked" if skipped else "holds" if found.passed else "FAILS"
            numbers = "" if skipped else f"measured {found.value:.4g} against {found.threshold:.4g}: "
            print(f"{verdict:11}  [{claim.kind}] {claim.says}\n             {numbers}{found.detail}")
    if as_json:
        print(json.dumps(records, indent=2))
    if failed:
        raise typer.Exit(1)


def doctor(as_json: Json = False) -> None:
    """Say what this installation has: versions, machine, native kernels, optional packages."""
    import importlib.util

    from ..measure.machine import machine_facts
    from ..ops import native

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
    if as_json:
        print(json.dumps({**facts, "native": built, "optional": optional}, indent=2))
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
