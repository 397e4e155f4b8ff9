"""What the documentation shows works: Python examples run, commands and their options exist, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from typer.main import get_command

from foveate.cli.main import app

ROOT = Path(__file__).parents[2]
COMMANDS = get_command(app)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def examples() -> Iterator[object]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
            line = text.count("\n", 0, found.start()) + 1
            yield pytest.param(found[1], id=f"{page_id(page)}:{line}")


@pytest.mark.parametrize("source", list(examples()))
def test_an_example_runs(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")  # examples may read what a clone has
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = ModuleType("example")  # dataclasses look their module up by its name
    monkeypatch.setitem(sys.modules, "example", module)
    exec(compile(source, "the example", "exec"), module.__dict__)


def commands() -> Iterator[object]:
    """Every ``foveate ...`` line of a code block, fenced or indented, without its prompt and comment."""
    for page in PAGES:
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
            found = re.fullmatch(r"(?:    )?(?:\$ )?(foveate .*)", line)
            if found:
                words = shlex.split(found[1], comments=True)[1:]
                yield pytest.param(words, id=f"{page_id(page)}:{number}")


@pytest.mark.parametrize("words", list(commands()))
def test_a_command_exists_with_its_options(words: list[str]) -> None:
    command, path = COMMANDS, ["foveate"]
    while hasattr(command, "commands") and words and words[0] != "...":
        name, *words = words
        assert name in command.commands, f"{' '.join(path)} has no command {name}"
        command, path = command.commands[name], [*path, name]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in known, f"{' '.join(path)} has no option {word}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page_id(page)} links to {target}, which is not there"
