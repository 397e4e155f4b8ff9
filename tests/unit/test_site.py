"""The documentation site: what is generated, that it builds without a warning, and that its pages ask no network."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import griffe
import pytest

from foveate.catalog import Claimed
from foveate.catalog.results import Measured, SystemResults
from foveate.registry import System, entries, get_system, list_systems

ROOT = Path(__file__).parents[2]
#: Attributes by which a page loads something; a plain link in its text loads nothing until it is followed.
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs" / "site"))
        yield importlib.import_module("pages")
        del sys.modules["pages"]


def example(**facts: Any) -> System:
    told = {
        "title": "A Title | Of a Paper",
        "licence": "MIT",
        "family": "memory",
        "summary": "It is.",
        "when": "Often.",
    }
    told |= {"when_not": "For streams mamba2 is better.", "cost": "Linear."}
    return System(slug="some_system", **(told | facts))


# What is generated ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", list_systems())
def test_a_system_page_has_everything_that_its_record_has(pages: ModuleType, slug: str) -> None:
    page, system = pages.system_page(get_system(slug)), get_system(slug)
    flat = page.replace("\\|", "|")
    for text in (system.title, system.licence, system.summary, system.cost, *system.reconstructed, *system.unverified):
        assert " ".join(text.split()) in re.sub(r"\[(\w+)\]\(\1\.md\)", r"\1", flat), text
    for claim in system.claims:
        assert claim.says in flat
    assert (system.bibtex.strip() or "# ") in page
    assert ('!!! note "Planned"' in page) is system.planned
    written = ROOT / "docs" / "systems" / f"{slug}.md"
    if written.exists():
        assert written.read_text(encoding="utf-8").split("\n", 1)[1].strip() in page
    for entry in system.provides:
        assert f"::: {entry.module}\n" in page or pages.owners()[entry.module] != slug


def test_a_record_cannot_break_its_page(pages: ModuleType) -> None:
    page = pages.system_page(example(claims=(Claimed("It is a | b\nfaster.", "scaling"),), summary='Says "so": yes.'))
    assert r"| A Title \| Of a Paper |" in page
    assert r"| It is a \| b faster. | scaling |" in page
    assert json.dumps('Says "so": yes.') in page.split("---")[1]
    assert "[mamba2](mamba2.md)" in page  # the systems it names are links
    assert "## Cite" not in page  # nothing to cite


def test_authors_are_read_from_bibtex(pages: ModuleType) -> None:
    assert pages.authors("@book{a,\n  author = {Lovelace, Ada and de Moivre, Abraham and others},\n}") == (
        "Ada Lovelace, Abraham de Moivre, and others"
    )
    assert pages.authors("@misc{a,\n  title = {No one}\n}") == ""


def test_results_of_claims_are_shown_with_failures_first(pages: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(name: str, result: str, value: float | None) -> Measured:
        return Measured(name, f"It is {name}.", "exact", result, value, 1.0, "half", 1.0, "2026-11-27T03:00:00Z", "0.1")

    found = (measured("right", "holds", 0.5), measured("fast", "fails", 2.0), measured("seen", "not checked", None))
    monkeypatch.setattr(
        sys.modules[System.__module__], "_results", lambda: {"some_system": SystemResults("of other sources", found)}
    )
    text = pages.claims(example())
    assert [line for line in text.splitlines() if "exact" in line] == [
        "| It is fast. | exact | ✗ fails | 2 | 1 | half |",
        "| It is seen. | exact | not checked |  | 1 | half |",
        "| It is right. | exact | ✓ holds | 0.5 | 1 | half |",
    ]
    assert "Measured 2026-11-27. Its source files have changed since." in text


def test_checks_without_a_result_are_listed(pages: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[System.__module__], "_results", dict)
    system = get_system("mamba2")
    text = pages.claims(system)
    assert text.count("| not on record |") == len(system.checks) > 0
    assert "`foveate verify mamba2`" in text


def test_benchmark_rows_are_those_of_the_system(
    pages: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(f"| forward | {n} |\n" for n in range(pages.QUOTED_ROWS + 3))
    (tmp_path / "speed.md").write_text(
        f"# Speed\n\n## some_system\n\n| pass | ms |\n|---|---|\n{rows}"
        "\n## other\n\n| pass | ms |\n|---|---|\n| f | 1 |\n"
        "\n## Quality\n\n| system | mse |\n|---|---|\n| Some System | 1 |\n| `some_system` (own) | 2 |\n| else | 3 |\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(pages, "benchmark_files", lambda: [tmp_path / "speed.md"])
    whole, quality = pages.benchmarks(example())
    assert whole.startswith("[Speed: some_system](../../benchmarks/speed.md), 12 of 15 rows:")
    assert whole.count("| forward |") == pages.QUOTED_ROWS
    assert quality.splitlines()[2:] == [
        "| system | mse |",
        "|---|---|",
        "| Some System | 1 |",
        "| `some_system` (own) | 2 |",
    ]


def test_every_mixer_stands_in_the_table_of_promises(pages: ModuleType) -> None:
    table = pages.mixers()
    for entry in entries("mixer"):
        (row,) = [line for line in table.splitlines() if f"`{entry.name}`" in line]
        assert (entry.spec.streaming in row) is (entry.spec.streaming != "no")
        assert ("causal" in row) is (entry.spec.causal != "never")


def test_generating_needs_no_torch() -> None:
    made = "pages.generated(); [make() for make in pages.FRAGMENTS.values()]"
    code = f"import sys, pages; {made}; sys.exit('torch' in sys.modules)"
    path = os.pathsep.join([str(ROOT / "docs" / "site"), str(ROOT)])
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": path})


# What it is generated from -------------------------------------------------------------------------------------------


def test_docstrings_name_the_parameters_that_there_are() -> None:
    package = griffe.load(
        "foveate", search_paths=[ROOT], docstring_parser="google", docstring_options={"warnings": False}
    )
    wrong = []

    def look(owner: griffe.Object) -> None:
        for member in owner.members.values():
            if isinstance(member, griffe.Alias):
                continue
            if isinstance(member, griffe.Function | griffe.Class) and member.docstring:
                legal = {p.name.lstrip("*") for p in member.parameters}
                named = [s.value for s in member.docstring.parsed if s.kind is griffe.DocstringSectionKind.parameters]
                for name in (n.lstrip("*") for value in named for p in value for n in p.name.split(", ")):
                    if name not in legal:
                        wrong.append(f"{member.path} has no parameter {name}")
            look(member)

    look(package)
    assert not wrong, "\n".join(wrong)


def test_every_folder_of_the_library_is_a_package() -> None:
    folders = {file.parent for file in (ROOT / "foveate").rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


# The site ------------------------------------------------------------------------------------------------------------


class Loads(HTMLParser):
    """Collects what a page loads when it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag in LOADED and told.get("rel") != "canonical":
            self.found.append(told.get(LOADED[tag]) or "")


def test_the_site_builds_without_a_warning_and_asks_no_network(tmp_path: Path) -> None:
    """A page in no navigation and a link that leads nowhere are warnings of MkDocs' (mkdocs.yml, validation)."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr

    listed = (tmp_path / "systems" / "index.html").read_text(encoding="utf-8")
    for slug in list_systems():
        assert (tmp_path / "systems" / f"{slug}.html").exists(), slug
        assert f'href="{slug}.html"' in listed, slug
    for page in (ROOT / "docs").rglob("*.md"):
        assert (tmp_path / page.relative_to(ROOT / "docs").with_suffix(".html")).exists(), page

    outside = []
    for page in tmp_path.rglob("*.html"):
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert loads.found, page
        outside += [f"{page.name} loads {url}" for url in loads.found if re.match(r"(https?:)?//", url)]
    for sheet in tmp_path.rglob("*.css"):
        urls = re.findall(r"(?:url\(|@import )[\"']?((?:https?:)?//[^\"')]*)", sheet.read_text(encoding="utf-8"))
        outside += [f"{sheet.name} loads {url}" for url in urls]
    assert not outside, outside


def test_the_table_of_exports_says_what_the_specs_say(pages):
    lines = pages.exports().splitlines()[2:]
    assert len(lines) == len(entries("mixer")) + len(entries("model"))
    frozen = "its periods follow the data: freeze them with calibration data"
    assert f"| model | `timesnet` | no | no | no | {frozen} |" in lines
    assert "| mixer | `softmax_attention` | yes | yes | yes |  |" in lines
