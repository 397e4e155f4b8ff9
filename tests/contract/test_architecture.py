"""The house keeps its floors: imports point one way, files stay short, listing needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import foveate

PACKAGE = Path(foveate.__file__).parent
ROOT = PACKAGE.parent
LONGEST = 400

#: What each floor may import besides itself. What is not listed here is not a floor: a new folder needs a place.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "spec": set(),
    "catalog": {"errors"},
    "options": {"errors"},
    "sources": {"errors", "spec", "catalog"},
    "systems": {"catalog", "sources"},
    "registry": {"errors", "spec", "catalog", "options", "sources", "systems"},
    "measure": {"errors"},
    "hub": {"errors", "spec", "registry", "catalog"},
    "ops": {"errors", "registry"},
    "mixers": {"errors", "spec", "registry", "measure", "ops"},
    "models": {"errors", "spec", "registry", "measure", "ops", "mixers", "hub"},
    # Scores need no networks; what answers questions is the user's.
    "scorers": {"errors", "files", "registry", "measure", "pages"},
    # Clips and questions in the suites' formats; what reads them is above.
    "pyav": {"errors"},
    "probes": {"errors", "files", "pyav"},
}
# Models that are asked are other people's: transformers' or behind a server.
MAY_IMPORT["asking"] = MAY_IMPORT["scorers"] | {"scorers", "pyav"}
MAY_IMPORT["tasks"] = MAY_IMPORT["models"] | {"models", "files"}
MAY_IMPORT["control"] = MAY_IMPORT["parallel"] = MAY_IMPORT["tasks"]
MAY_IMPORT["checkpoint"] = MAY_IMPORT["tasks"] | {"tasks"}
MAY_IMPORT["pages"] = {"errors"}
# What a model attends to is asked of trained ones, about images that are read as their task reads them.
MAY_IMPORT["analysis"] = MAY_IMPORT["checkpoint"] | {"checkpoint", "pages"}
MAY_IMPORT["compare"] = MAY_IMPORT["checkpoint"] | {"checkpoint", "pages"}
MAY_IMPORT["generation"] = MAY_IMPORT["checkpoint"] | {"checkpoint"}
MAY_IMPORT["exporting"] = MAY_IMPORT["checkpoint"] | {"checkpoint"}
MAY_IMPORT["bench"] = MAY_IMPORT["compare"] | {"compare"}
# A claim may be about anything below the main job, never the other way round.
MAY_IMPORT["claims"] = MAY_IMPORT["checkpoint"] | {"control", "analysis", "parallel", "scorers"}
MAY_IMPORT["verification"] = MAY_IMPORT["compare"] | {"compare", "claims", "catalog", "sources"}
MAY_IMPORT["cli"] = MAY_IMPORT["web"] = set(MAY_IMPORT) | {"cli", "web"}
#: The package itself offers what users call first, most of it lazily; the command line asks it for its version.
MAY_IMPORT["__init__"] = {"registry", "checkpoint", "models", "errors", "exporting"}
MAY_IMPORT["__main__"] = {"cli"}
IMPORT_THE_PACKAGE = {"checkpoint", "compare", "exporting", "cli", "web", "__main__"}


def sources() -> list[Path]:
    """Every Python file of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def floor(file: Path) -> str:
    """The floor a file stands on: the first folder, or the module's own name."""
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_floors(file: Path) -> Iterator[tuple[str, int]]:
    """(floor, line) of every import of foveate in a file, in functions too; type checkers' imports left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    only_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    package = ("foveate", *file.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(tree):
        if id(node) in only_types:
            continue
        if isinstance(node, ast.Import):
            modules = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            modules = [base] if len(base) > 1 else [[*base, alias.name] for alias in node.names]
        else:
            continue
        for parts in modules:
            if parts[0] == "foveate":
                yield (parts[1] if len(parts) > 1 else "__init__"), node.lineno


@pytest.mark.parametrize("file", sources(), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_one_way(file: Path) -> None:
    here = floor(file)
    assert here in MAY_IMPORT, f"{here} has no floor: give it one in MAY_IMPORT"
    for target, line in imported_floors(file):
        if target in (here, "__version__") or (target == "__init__" and here in IMPORT_THE_PACKAGE):
            continue
        assert target in MAY_IMPORT[here], f"{file.relative_to(ROOT)}:{line}: {here} must not import {target}"


def test_every_way_of_importing_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "ops" / "inner" / "x.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import foveate.tasks.base\nfrom foveate.models import base\nfrom ...mixers.base import Mixer\n"
        "from ... import errors, __version__\nfrom ..backend import choose\nimport torch\n"
        "def f():\n    from ...compare import plan\n"
        "if TYPE_CHECKING:\n    from ...cli import main\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    seen = {target for target, _ in imported_floors(file)}
    assert seen == {"tasks", "models", "mixers", "errors", "__version__", "ops", "compare"}


def test_the_floors_have_no_cycle() -> None:
    below: dict[str, set[str]] = {}
    for file in sources():
        below.setdefault(floor(file), set()).update(t for t, _ in imported_floors(file) if t != "__version__")
    below = {f: {t for t in ts if t != f} for f, ts in below.items() if f not in ("__init__", "cli", "web")}
    while below:
        ground = [f for f, ts in below.items() if not ts & set(below)]
        assert ground, f"these import each other in a circle: {', '.join(sorted(below))}"
        for f in ground:
            del below[f]


@pytest.mark.parametrize("file", sources(), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_files_are_short(file: Path) -> None:
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines < LONGEST, f"{file.relative_to(ROOT)} has {lines} lines: a shared part is hiding in it"


@pytest.mark.parametrize("file", sources(), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_users_errors_are_no_assertions_and_nothing_is_unpickled(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        where = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {a.name for a in node.names} | {getattr(node, "module", None)}
            assert not names & {"pickle", "dill", "joblib", "shelve"}, f"{where}: safetensors only"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "torch.load", "torch.save"), f"{where}: {called}"
        if isinstance(node, ast.Assert):  # what a type checker needs to hear is fine
            test = ast.unparse(node.test)
            harmless = test.endswith(" is not None") or test.startswith("isinstance(")
            assert harmless, f"{where}: raise an error that says what is legal"


def test_every_module_says_what_it_is() -> None:
    silent = [f for f in sources() if ast.get_docstring(ast.parse(f.read_text(encoding="utf-8"))) is None]
    assert not silent, f"no module docstring in {', '.join(str(f.relative_to(ROOT)) for f in silent)}"


@pytest.mark.parametrize(
    "code",
    [
        "import foveate; foveate.list_names(); foveate.list_systems()",
        "import foveate.registry as r; [e.spec for e in r.entries()]",
        "import sys; sys.argv = ['foveate', '--help']\nfrom foveate.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end.code",
    ],
    ids=["import foveate", "listing", "foveate --help"],
)
def test_needs_no_torch(code: str) -> None:
    check = "; import sys; heavy = {'torch', 'numpy', 'pandas'} & set(sys.modules); assert not heavy, heavy"
    separator = "\n" if "\n" in code else ""
    run = subprocess.run(
        [sys.executable, "-c", code + separator + check.lstrip("; ") if separator else code + check],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr[-2000:]
