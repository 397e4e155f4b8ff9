"""What is registered is findable, documented, on record, and says the truth about its options."""

from __future__ import annotations

import inspect
import re
import typing
from pathlib import Path

import pytest

import foveate
from foveate import claims
from foveate.errors import InvalidType, UnknownName
from foveate.registry import Entry, entries, get_system, list_names, list_systems, option_types
from foveate.spec import MixerSpec, ModelSpec, TaskSpec

PACKAGE = Path(foveate.__file__).parent
ROOT = PACKAGE.parent
OURS = [e for e in entries() if e.module.startswith("foveate.")]
ALL = entries()
SPECS = {"mixer": MixerSpec, "fuser": MixerSpec, "model": ModelSpec, "task": TaskSpec}

each = pytest.mark.parametrize("entry", ALL, ids=lambda e: f"{e.kind}-{e.name}")
each_of_ours = pytest.mark.parametrize("entry", OURS, ids=lambda e: f"{e.kind}-{e.name}")
each_with_options = pytest.mark.parametrize(
    "entry", [e for e in ALL if e.kind in ("mixer", "fuser", "model", "control")], ids=lambda e: f"{e.kind}-{e.name}"
)
# A task is no system: nobody published it, it has no claims.
each_system = pytest.mark.parametrize("slug", sorted({e.system for e in OURS if e.kind != "task"}))
each_task = pytest.mark.parametrize("name", sorted(e.name for e in OURS if e.kind == "task"))


@each
def test_the_source_says_what_the_object_says(entry: Entry) -> None:
    made = entry.load()
    assert made.registered_as == (entry.kind, entry.name, entry.system)
    if entry.kind in SPECS:
        assert isinstance(entry.spec, SPECS[entry.kind]), f"no {SPECS[entry.kind].__name__} in the class body"
        assert made.spec == entry.spec, "the spec read from the source is not the one of the class"


@each
def test_names_are_plain(entry: Entry) -> None:
    # A task is a word of the command line: classify-images. Everything else is a name in Python.
    legal = r"[a-z][a-z0-9-]*" if entry.kind == "task" else r"[a-z][a-z0-9_]*"
    assert re.fullmatch(legal, entry.name), f"names are lower case and match {legal}"
    if entry.kind != "task":
        assert re.fullmatch(r"[a-z][a-z0-9_]*", entry.system), "slugs are lower case with underscores"


@each
def test_has_a_docstring(entry: Entry) -> None:
    assert entry.summary, "no docstring"
    assert entry.summary.endswith((".", ":", "``")), f"its first line is not a sentence: {entry.summary!r}"


def documented_options(doc: str) -> set[str]:
    """Names in an ``Args:`` section; one entry may name several (``a, b: ...``)."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", doc, re.MULTILINE)
    if section is None:
        return set()
    lines = section[1].splitlines()
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    heads = (line.strip() for line in lines if line.strip() and len(line) - len(line.lstrip()) == indent)
    return {n.strip(" `*") for head in heads for n in re.split(r"[,;]| and ", head.partition(":")[0])}


@each_with_options
def test_docstring_and_signature_agree(entry: Entry) -> None:
    made = entry.load()
    documented = documented_options(inspect.getdoc(made) or "")
    options = {
        n for n, p in inspect.signature(made).parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    assert not options - documented, (
        f"Args of the docstring does not say what these are: {sorted(options - documented)}"
    )
    assert not documented - options, f"Args of the docstring names what does not exist: {sorted(documented - options)}"


@each_with_options
def test_options_are_annotated_and_plain(entry: Entry) -> None:
    for name, (annotation, default) in option_types(entry.load()).items():
        assert annotation is not inspect.Parameter.empty, f"{name} has no type"
        if default is not inspect.Parameter.empty:
            plain = default is None or isinstance(default, bool | int | float | str | tuple)
            assert plain, f"the default of {name} is a {type(default).__name__}: it cannot be written to config.json"
        kinds = {typing.get_origin(annotation) or annotation}
        assert not kinds & {list, set}, f"{name} is a mutable {annotation}: take a tuple"


@each_with_options
def test_unknown_options_are_refused_by_name(entry: Entry) -> None:
    with pytest.raises(InvalidType) as raised:
        foveate.create(entry.name, kind=entry.kind, no_such_option=1)
    message = str(raised.value)
    assert "no_such_option" in message
    assert entry.name in message
    for option in option_types(entry.load()):
        assert option in message, f"the message does not list the legal option {option}"


@each
def test_a_misspelt_name_is_answered_with_the_nearest(entry: Entry) -> None:
    wrong = entry.name[:-1] + ("q" if entry.name[-1] != "q" else "x")
    if any(e.name == wrong for e in ALL):
        return
    with pytest.raises(UnknownName, match=re.escape(entry.name)):
        foveate.create(wrong, kind=entry.kind)


# One slug everywhere ------------------------------------------------------------------------------------------------


@each_of_ours
def test_the_slug_is_the_file_name(entry: Entry) -> None:
    if entry.kind == "op":
        return  # ops are shared by systems: their files are named by what they compute
    path = entry.file.relative_to(PACKAGE)
    slug = entry.name.replace("-", "_") if entry.kind == "task" else entry.system
    assert slug in (path.stem, *path.parts[:-1]), f"{path} is not named {slug}, the slug of what it holds"


@each_system
def test_every_system_has_a_record(slug: str) -> None:
    assert slug in list_systems(), f"foveate/catalog/{slug}.toml is missing"
    system = get_system(slug)
    assert system.title
    assert system.summary, "the record has no summary"
    assert system.provides


@each_system
def test_every_system_has_a_page(slug: str) -> None:
    page = ROOT / "docs" / "systems" / f"{slug}.md"
    if not (ROOT / "docs").is_dir():
        pytest.skip("installed without its docs")
    assert page.is_file(), f"docs/systems/{slug}.md is missing"
    text = page.read_text(encoding="utf-8")
    for entry in get_system(slug).provides:
        assert entry.name in text, f"the page does not mention {entry.name}"


@each_task
def test_every_task_has_a_page(name: str) -> None:
    if not (ROOT / "docs").is_dir():
        pytest.skip("installed without its docs")
    pages = [ROOT / "docs" / "tasks" / f"{stem}.md" for stem in {name, name.replace("-", "_")}]
    assert any(page.is_file() for page in pages), f"docs/tasks/{name}.md is missing"


def claim_files() -> list[str]:
    """Slugs of the files in foveate/claims."""
    return sorted(f.stem for f in (PACKAGE / "claims").glob("[!_]*.py"))


@pytest.mark.parametrize("slug", claim_files())
def test_claims_are_those_of_their_file(slug: str) -> None:
    assert slug in list_systems(), f"claims/{slug}.py has no record catalog/{slug}.toml"
    own = claims.claims_of(slug)
    assert own, f"claims/{slug}.py registers no claim of {slug}"
    for one in own:
        assert Path(inspect.getfile(one.check)) in get_system(slug).files, f"{one.name} of {slug} is in another file"
        assert one.says.strip().endswith("."), f"{one.name}: what it says is not a sentence"


def test_every_published_system_has_claims() -> None:
    published = {s for s in list_systems() if get_system(s).arxiv and get_system(s).provides}
    missing = published - set(claim_files())
    assert not missing, f"no claims/<slug>.py for {', '.join(sorted(missing))}"


def test_every_task_of_a_model_exists() -> None:
    tasks = {e.name for e in entries("task")}
    for entry in entries("model"):
        unknown = set(entry.spec.tasks) - tasks
        assert not unknown, f"{entry.name} says it does {', '.join(sorted(unknown))}, which is no registered task"


def test_contestants_of_a_task_by_default_can_do_it() -> None:
    for task in entries("task"):
        able = {*list_names("model", task=task.name), *list_names("mixer", task=task.name)}
        unable = set(task.spec.shortlist) - able
        assert not unable, f"{task.name}: {', '.join(sorted(unable))} of the shortlist cannot do it"


def test_a_task_that_borrows_models_says_from_whom() -> None:
    own = {e.name for e in entries("task") if not e.spec.models_of}
    for task in entries("task"):
        assert task.spec.models_of in {"", *own}, f"{task.name}: models_of={task.spec.models_of!r} is no task"
        if task.spec.models_of:
            models = set(list_names("model", task=task.name))
            assert models == set(list_names("model", task=task.spec.models_of))
            assert {*task.spec.baselines} <= models


def test_every_contestant_of_a_task_exists() -> None:
    known = {e.name for e in ALL if e.kind in ("model", "mixer")}
    for task in entries("task"):
        unknown = {*task.spec.baselines, *task.spec.shortlist} - known
        assert not unknown, f"the task {task.name} lists {', '.join(sorted(unknown))}, which nothing is called"
        for name in task.spec.baselines:
            spec = next(e.spec for e in entries("model") if e.name == name)
            assert spec.baseline, f"{name} is a baseline of {task.name}, but its spec says baseline=False"
