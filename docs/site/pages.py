"""What the site makes by itself: a page for each system, the lists of them, benchmarks, and the command line.

Every fact comes from where it is kept: the catalogue's records, the registry, results of claims, tables in benchmarks/.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from foveate.catalog import FAMILIES
from foveate.registry import STATUSES, System, entries, get_system, list_names, list_systems

ROOT = Path(__file__).parents[2]
#: Results of checks, in the order in which they are shown.
MARKS = {"fails": "✗ fails", "error": "✗ error", "not checked": "not checked", "holds": "✓ holds"}
#: Of a longer table of measurements, a system's page quotes this many rows and links to the others.
QUOTED_ROWS = 12


# Where pages come from -----------------------------------------------------------------------------------------------


def source_of(name: str) -> str:
    """The file in the repository that the page ``name`` was written in."""
    outside = name.startswith("benchmarks/") or name == "CHANGELOG.md"
    return name if outside else f"docs/{name}"


def page_of(file: str) -> str | None:
    """The page that shows a file of the repository, if one does."""
    if file.startswith("docs/"):
        file = file.removeprefix("docs/")
        return f"{file}/index.md" if file == "systems" else file
    return file if file == "CHANGELOG.md" or re.fullmatch(r"benchmarks/\w+\.md", file) else None


def generated() -> dict[str, str]:
    """All generated pages: name to Markdown."""
    made = {f"systems/{slug}.md": system_page(get_system(slug)) for slug in slugs()}
    for file in benchmark_files():  # titles repeat: the search tells them apart by their files' names
        text = file.read_text(encoding="utf-8")
        made[f"benchmarks/{file.name}"] = f"---\ntitle: {spoken(file)}\nsearch:\n  boost: 0.5\n---\n\n{text}"
    return made | {"CHANGELOG.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")}


@functools.cache
def slugs() -> list[str]:
    """All systems."""
    return list_systems()


def benchmark_files() -> list[Path]:
    """The pages of benchmarks/."""
    return sorted((ROOT / "benchmarks").glob("*.md"))


def spoken(file: Path) -> str:
    """The name of a benchmark page, from its file's."""
    return file.stem.replace("_", " ").capitalize()


def benchmark_navigation() -> list[Any]:
    """Entries of the navigation: the pages of benchmarks/."""
    return [f"benchmarks/{file.name}" for file in benchmark_files()]


def system_navigation() -> list[Any]:
    """Entries of the navigation: the list of systems, then the systems of each family."""
    return ["systems/index.md", *({f.capitalize(): [f"systems/{s.slug}.md" for s in of]} for f, of in by_family())]


def by_family() -> list[tuple[str, list[System]]]:
    """Families that have systems, in the catalogue's order."""
    systems = [get_system(slug) for slug in slugs()]
    found = [(family, [s for s in systems if s.family == family]) for family in FAMILIES]
    return [(family, of) for family, of in found if of]


# Pieces of Markdown --------------------------------------------------------------------------------------------------


def cell(text: object) -> str:
    """Text that cannot end a table's cell."""
    return re.sub(r"\s+", " ", str(text)).replace("|", "\\|")


def table(head: list[str], rows: list[list[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell(c) for c in line) + " |" for line in lines)


def section(title: str, *parts: str) -> str:
    """A section, or nothing where there is nothing to say."""
    body = "\n\n".join(part for part in parts if part)
    return f"## {title}\n\n{body}" if body else ""


def bullets(texts: tuple[str, ...]) -> str:
    """A list."""
    return "\n".join(f"- {text}" for text in texts)


def code(names: Iterable[str]) -> str:
    """Names as code, separated by commas."""
    return ", ".join(f"`{name}`" for name in names)


def linked(text: str, but: str = "") -> str:
    """The text with links from the systems it names to their pages."""
    others = "|".join(slug for slug in slugs() if slug != but)
    return re.sub(rf"(?<![\w./-])({others})(?![\w/-]|\.\w)", r"[\1](\1.md)", text)


def badge(system: System) -> str:
    """The status, as the style sheet shows it."""
    return f'<span class="status {system.status}">{system.status}</span>'


def authors(bibtex: str) -> str:
    """The authors of a BibTeX entry, first names first."""
    found = re.search(r"^\s*author\s*=\s*[{\"](.*)[}\"],?$", bibtex, re.MULTILINE)
    if not found:
        return ""
    people = [" ".join(reversed(name.split(", ", 1))) for name in found[1].split(" and ")]
    named = [p.replace("{", "").replace("}", "") for p in people]
    named = ["and others" if p == "others" else p for p in named]
    return ", ".join(named)


# A system's page -----------------------------------------------------------------------------------------------------


def system_page(system: System) -> str:
    """A system's page: facts, the hand-written page or else the record's words, claims, measurements, API, citation."""
    file = ROOT / "docs" / "systems" / f"{system.slug}.md"
    title, body = system.slug, ""
    if file.exists():
        title, body = file.read_text(encoding="utf-8").split("\n", 1)
        title = title.removeprefix("# ")
    planned = (
        '!!! note "Planned"\n\n    foveate knows this system and cannot run it yet: this page is its catalogue record.'
        if system.planned
        else ""
    )
    advice = "\n".join(
        f"- **{label}**\n\n    {linked(text, system.slug)}\n"
        for label, text in (("When", system.when), ("When not", system.when_not), ("What it costs", system.cost))
    )
    front = f"---\ntitle: {json.dumps(title.split(' (`')[0])}\ndescription: {json.dumps(system.summary)}"
    front += f"\nstatus: {system.status}\nsearch:\n  boost: 2\n---"
    parts = [
        f"{front}\n\n# {title}",
        f"{system.summary}\n{{ .lead }}",
        planned,
        f'<div class="grid cards advice" markdown="1">\n\n{advice}\n</div>',
        facts(system),
        body.strip(),
        section("Weights", weights(system)),
        section("Claims", claims(system)),
        section("What is reconstructed", bullets(system.reconstructed)),
        section("What could not be verified", bullets(system.unverified)),
        section("Measured", *benchmarks(system)),
        section("API", *(f"::: {module}\n    options:\n      heading_level: 3" for module in modules(system))),
        section("Files", bullets(tuple(f"[`{f}`](../../{f})" for f in files(system)))),
        section("Cite", f"```bibtex\n{system.bibtex.strip()}\n```" if system.bibtex else ""),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def facts(system: System) -> str:
    """The record's facts, as a table."""
    published = ", ".join(str(p) for p in (system.venue, system.year or "") if p)
    rows = [
        ("Status", badge(system)),
        ("Published as", system.title),
        ("By", authors(system.bibtex)),
        ("In", published),
        ("arXiv", system.arxiv and f"[{system.arxiv}](https://arxiv.org/abs/{system.arxiv})"),
        ("Official code", system.code and f"<{system.code}>"),
        ("Its licence", system.licence),
        ("Family", system.family),
        ("For", ", ".join(system.tasks)),
        ("Registered", ", ".join(f"{e.kind} `{e.name}`" for e in system.provides)),
        ("Also known by", ", ".join(system.keywords)),
    ]
    return '<div class="facts" markdown="1">\n\n' + table(["", ""], [[k, v] for k, v in rows if v]) + "\n\n</div>"


def files(system: System) -> list[str]:
    """The system's files, as paths in the repository."""
    return [file.relative_to(ROOT).as_posix() for file in system.files if file.is_relative_to(ROOT)]


@functools.cache
def owners() -> dict[str, str]:
    """Module to the slug of the system on whose page it is documented."""
    found: dict[str, str] = {}
    for slug in slugs():
        for file in files(get_system(slug)):
            if file.endswith(".py") and not file.startswith("foveate/claims/"):
                found.setdefault(file.removesuffix(".py").replace("/", "."), slug)
    return found


def modules(system: System) -> list[str]:
    """The modules that a system's page documents."""
    return [module for module, slug in owners().items() if slug == system.slug]


def claims(system: System) -> str:
    """What the publication says, and what was measured here: what does not hold first."""
    said = table(["The publication says", "Kind"], [[claim.says, claim.kind] for claim in system.claims])
    measured = {m.check: m for m in system.measured}
    rows = [
        [m.says, m.kind, MARKS[m.result], number(m.value), number(m.threshold), m.detail]
        for m in sorted(measured.values(), key=lambda m: list(MARKS).index(m.result))
    ]
    rows += [[c.says, c.kind, "not on record", "", "", ""] for c in system.checks if c.name not in measured]
    here = table(["Checked here", "Kind", "Result", "Measured", "Threshold", "How"], rows) if rows else ""
    dates = sorted({m.date[:10] for m in measured.values()})
    when = f"Measured {' to '.join(dates[:1] + dates[1:][-1:])}." if dates else ""
    if system.outdated:
        when += " Its source files have changed since."
    again = f"`foveate verify {system.slug}` measures on your machine." if system.checks else ""
    return "\n\n".join(
        part for part in (said if system.claims else "", here, " ".join(filter(None, (when, again)))) if part
    )


def weights(system: System) -> str:
    """Published weights that the system's models take, with their licences."""
    if not system.weights:
        return ""
    rows = [
        [f"`{w.name}`", f"[{w.where}](https://huggingface.co/{w.where})", w.layout, w.licence] for w in system.weights
    ]
    told = "`foveate.create(NAME, pretrained=REPO)` loads them ([image backbones](../vision.md))."
    return f"{told}\n\n{table(['Size', 'Repo', 'Layout', 'Licence of the weights'], rows)}"


def number(value: float | None) -> str:
    """A number in four figures, or nothing."""
    return "" if value is None else f"{value:.4g}"


def benchmarks(system: System) -> list[str]:
    """Rows of benchmarks/ that are about the system: sections that have its name, or rows that begin with it."""
    names = {system.slug, *(e.name for e in system.provides)}
    found = []
    for file in benchmark_files():
        parts = re.split(r"^(##+ .*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for head, body in zip(["", *parts[1::2]], parts[::2], strict=True):
            subject, whole = head.lstrip("# "), head.lstrip("# ") in names
            for head_row, *rows in tables(body):
                about = rows if whole else [row for row in rows if first_cell(row) in names]
                if about:
                    where = f"[{spoken(file)}{': ' + subject if subject else ''}](../../benchmarks/{file.name})"
                    more = "" if len(about) <= QUOTED_ROWS else f", {QUOTED_ROWS} of {len(about)} rows"
                    width = head_row.count("|") - 1
                    lines = [head_row, "|" + "---|" * width, *about[:QUOTED_ROWS]]
                    found.append(f"{where}{more}:\n\n" + "\n".join(lines))
    return found


def tables(body: str) -> list[list[str]]:
    """The Markdown tables in a text: head and rows of each, without the line between."""
    blocks = re.findall(r"((?:^\|.*\n?)+)", body, re.MULTILINE)
    return [[lines[0], *lines[2:]] for lines in (block.strip().split("\n") for block in blocks)]


def first_cell(row: str) -> str:
    """The name a row begins with, as a slug is written."""
    return re.sub(r"`|\(.*", "", row.split("|")[1]).strip().lower().replace(" ", "_")


# Lists ---------------------------------------------------------------------------------------------------------------


def systems() -> str:
    """All systems by family."""
    parts = []
    for family, of in by_family():
        rows = [[f"[`{s.slug}`]({s.slug}.md)", s.brief or s.title, s.year or "", badge(s)] for s in of]
        parts.append(section(family.capitalize(), table(["System", "What it is", "Year", "Status"], rows)))
    return "\n\n".join(parts)


def numbers() -> str:
    """How many systems there are, and of which status."""
    systems = [get_system(slug) for slug in slugs()]
    baselines = sum(s.family == "baseline" for s in systems)
    counted = {word: sum(s.status == word for s in systems) for word in STATUSES}
    split = ", ".join(f"{count} {word}" for word, count in counted.items() if count)
    return f"{len(systems)} records, {baselines} of them baselines: {split}."


def mixers() -> str:
    """Every mixer with what its spec promises."""
    rows = []
    for e in entries("mixer"):
        s = e.spec
        causal = {"strict": "causal", "values": "causal in values", "never": ""}[s.causal]
        reads = " or ".join(way for way in (causal, "both ways" if s.bidirectional else "") if way)
        name = f"[`{e.name}`](../systems/{e.system}.md)" if e.system in slugs() else f"`{e.name}`"
        ranks, streams = ", ".join(map(str, s.ranks)), "–" if s.streaming == "no" else s.streaming
        takes = [word for word in ("masks", "segments", "cross") if getattr(s, word)]
        rows.append([name, ranks, reads, streams, power(s.order.flops), power(s.order.memory), ", ".join(takes)])
    return table(["Mixer", "Ranks", "Reads", "Streams", "FLOPs", "Memory", "Takes"], rows)


def power(exponent: float) -> str:
    """Growth in the number of tokens n."""
    return {0: "1", 1: "n", 2: "n²"}.get(exponent, f"n^{exponent:g}")


def needs() -> str:
    """What a reader may need of a mixer, how to ask for it, and what there is."""
    specs = {e.name: e.spec for e in entries("mixer")}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("Nothing may see the future", {"causal": True}),
        ("Every token may look both ways", {"causal": False}),
        ("A stream, one token at a time", {"streaming": True}),
        ("Images: rows and columns of tokens", {"rank": 2}),
        ("Video: time, rows and columns", {"rank": 3}),
    ]
    promised: list[tuple[str, str, Callable[[Any], bool]]] = [
        ("Work that grows as the length", "order.flops", lambda spec: spec.order.flops <= 1),
        ("Batches with padding", "masks", lambda spec: spec.masks),
        ("Several documents in one sequence", "segments", lambda spec: spec.segments),
        ("A second sequence to read from", "cross", lambda spec: spec.cross),
        ("An exported network", "export", lambda spec: spec.export),
    ]

    def named(names: Iterable[str]) -> str:
        names = list(names)
        return f"all {len(specs)}" if len(names) == len(specs) else code(names) or "none yet"

    rows = [
        [what, ", ".join(f"`{key}={value}`" for key, value in how.items()), named(list_names("mixer", **how))]
        for what, how in asked
    ]
    rows += [[what, f"`spec.{name}`", named(n for n, s in specs.items() if keep(s))] for what, name, keep in promised]
    return table(["You need", "Filter or promise", "There is"], rows)


def registered(kind: str | None = None) -> str:
    """Everything registered, with links to where it is documented."""
    rows = []
    for e in entries(kind):
        where = (
            f"[`{e.attribute}`][{e.module}.{e.attribute}]" if e.module in owners() else f"`{e.module}.{e.attribute}`"
        )
        rows.append([e.kind, f"`{e.name}`", where, e.summary.replace("``", "`")])
    return table(["Kind", "Name", "What stands behind it", ""], rows)


def exports() -> str:
    """What every mixer and model promises about export, and what keeps it from the rest."""
    rows = []
    for e in (*entries("mixer"), *entries("model")):
        promises = ["yes" if kept else "no" for kept in (e.spec.export, e.spec.onnx, e.spec.dynamic_length)]
        rows.append([e.kind, f"`{e.name}`", *promises, e.spec.export_note])
    return table(["Kind", "Name", "pt2", "ONNX", "Any length", "What keeps it from the rest"], rows)


def backbones() -> str:
    """Every model of images: its published sizes, layouts of weights that it takes, and what it can be trained for."""
    rows = []
    for e in entries("model"):
        if e.spec.reads == "image" and not e.spec.baseline:
            name = f"[`{e.name}`](systems/{e.system}.md)" if e.system in slugs() else f"`{e.name}`"
            known = get_system(e.system).weights if e.system in slugs() else ()
            licences = ", ".join(sorted({w.licence for w in known}))
            rows.append([name, code(e.configurations), licences, ", ".join(e.spec.tasks), e.summary.replace("``", "`")])
    return table(["Model", "Published sizes", "Licences of weights on record", "Trained for", ""], rows)


def leaderboard() -> str:
    """The leaderboard that README.md shows."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.split("<!-- leaderboard -->")[1].split("<!-- /leaderboard -->")[0].strip()


def commands() -> str:
    """Every command with its options, as ``--help`` shows them."""
    import typer
    from typer.main import get_command

    from foveate.cli.main import app

    def describe(command: Any, path: list[str], parent: Any) -> list[str]:
        context = typer.Context(command, info_name=path[-1], parent=parent, max_content_width=88, terminal_width=88)
        parts = [f"## {' '.join(path)}\n\n```text\n{command.get_help(context)}\n```"]
        for name, child in getattr(command, "commands", {}).items():
            parts += describe(child, [*path, name], context)
        return parts

    return "\n\n".join(describe(get_command(app), ["foveate"], None))


FRAGMENTS = {
    "backbones": backbones,
    "commands": commands,
    "exports": exports,
    "leaderboard": leaderboard,
    "mixers": mixers,
    "needs": needs,
    "numbers": numbers,
    "ops": functools.partial(registered, "op"),
    "registered": registered,
    "systems": systems,
}
