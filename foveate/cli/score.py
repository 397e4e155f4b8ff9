"""``score``: a model's answers to a published benchmark of video models, by its official rules and by strict ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidValue
from .values import names

if TYPE_CHECKING:
    from rich.text import Text

    from ..scorers.base import Suite
    from ..scorers.score import Judge, Scores

#: Files of a run's folder; the first tells ours from the user's.
_FILES = ("scores.json", "items.csv", "report.html")


def score(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="As `foveate list --kind scorer` names them.")],
    predictions: Annotated[
        Path, typer.Argument(metavar="PREDICTIONS", help="File or folder in a layout of the suite, or of foveate ask.")
    ],
    against: Annotated[Path | None, typer.Option(help="The official annotations: file or folder.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Only these tasks, by commas.", show_default="all")] = None,
    rules: Annotated[str, typer.Option(help="official, strict, or both by commas; tables follow the first.")] = (
        "official,strict"
    ),
    compare: Annotated[Path | None, typer.Option(help="Another model's answers: paired on what both answered.")] = None,
    text_only: Annotated[
        Path | None, typer.Option(help="The model's answers without videos: shown as a baseline.")
    ] = None,
    single: Annotated[
        Path | None, typer.Option(help="The model's answers to single frames: tells whether many frames help.")
    ] = None,
    shuffled: Annotated[
        Path | None, typer.Option(help="Its answers to shuffled frames: tells whether their order matters.")
    ] = None,
    best_single: Annotated[
        Path | None, typer.Option(help="Its answers to the best single frames: tells whether one frame can do.")
    ] = None,
    judge_endpoint: Annotated[
        str | None, typer.Option(help="URL of an OpenAI-compatible server that judges what rules cannot read.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="The judge's name there.")] = None,
    draws: Annotated[int, typer.Option(min=20, help="Draws of the bootstrap over videos.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for scores.json, items.csv, report.html.", show_default="foveate-runs/score-..."),
    ] = None,
    official_text: Annotated[
        bool, typer.Option("--official-text", help="Print what the official script prints, and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print scores.json instead of tables.")] = False,
) -> None:
    """Score answers to questions about videos, beside what answers reach that never look at a video."""
    wanted = names(rules)
    if not wanted or len(set(wanted)) < len(wanted):
        raise InvalidValue(f"--rules={rules!r} is not possible: give official, strict, or both by commas.")
    folder = out or Path("foveate-runs") / f"score-{suite}-{predictions.resolve().stem}"
    if not official_text:
        _check_folder(folder)
    if single is None and (shuffled or best_single):
        raise InvalidValue("--shuffled and --best-single need --single: the ratios are to answers to single frames.")
    judge = _judge(judge_endpoint, judge_model)
    from ..scorers.score import score as scored

    def of(path: Path) -> Scores:
        return scored(open_suite(suite, against, tasks), path, rules=wanted, judge=judge)

    main = of(predictions)
    if official_text:
        rows = main.by_rules.get("official")
        if rows is None:
            raise InvalidValue("--official-text is not possible without the official rules: leave --rules out.")
        print(main.suite.official_text(rows.rows), end="")
        return
    from ..files import atomic_write, replace
    from ..scorers.items import write_items
    from ..scorers.page import render
    from ..scorers.record import record

    conditions = (("single", single), ("shuffled", shuffled), ("best_single", best_single))
    found = record(
        main,
        against=None if against is None else str(against),
        text_only=None if text_only is None else of(text_only),
        compared=None if compare is None else of(compare),
        conditions=None if single is None else {name: of(path) for name, path in conditions if path is not None},
        draws=draws,
        seed=seed,
    )
    folder.mkdir(parents=True, exist_ok=True)
    told = json.dumps(found, indent=1, allow_nan=False)
    record_file, items_file, page_file = (folder / name for name in _FILES)
    atomic_write(record_file, told + "\n")
    replace(items_file, lambda file: write_items(main, file))
    atomic_write(page_file, render(found, _title(suite)))
    if as_json:
        print(told)
        return
    _print(found)
    print(f"\nreport: {page_file}")


def open_suite(slug: str, annotations: Path | None, tasks: str | None) -> Suite:
    from ..registry import find
    from ..scorers.collecting import uncollected

    options: dict[str, Any] = {} if tasks is None else {"tasks": names(tasks)}
    with uncollected():
        return find(slug, "scorer").load()(annotations, **options)


def _title(slug: str) -> str:
    from ..registry import find, get_system

    return get_system(find(slug, "scorer").system).title


def _check_folder(folder: Path) -> None:
    """Refuse a folder with a file of the user's where one of ours would go."""
    if folder.exists() and not folder.is_dir():
        raise InvalidValue(f"--out {folder} is not possible: it is a file.")
    there = [name for name in _FILES if (folder / name).exists()]
    if there and not _ours(folder / _FILES[0]):
        raise InvalidValue(f"--out {folder} is not possible: it has a {there[0]} that foveate did not write.")


def _ours(file: Path) -> bool:
    try:
        return "foveate" in json.loads(file.read_text(encoding="utf-8"))["versions"]
    except (OSError, ValueError, KeyError, TypeError):  # not a record of ours, whatever it is
        return False


def _judge(endpoint: str | None, model: str | None) -> Judge | None:
    if endpoint is None and model is None:
        return None
    if endpoint is None or model is None:
        raise InvalidValue("a judge needs both --judge-endpoint and --judge-model.")
    from ..asking.judge import endpoint_judge

    return endpoint_judge(endpoint, model)


def _print(record: dict[str, Any]) -> None:
    from rich.console import Console

    from ..scorers import words

    console = Console()
    for line in _table(record):
        console.print(line, soft_wrap=True)
    for sentence in words.findings(record):
        console.print(f"- {sentence}", soft_wrap=True, highlight=False, markup=False)
    for sentence in words.diagnosis(record):
        console.print(f"- {sentence}", soft_wrap=True, highlight=False, markup=False)
    if record["comparison"] is not None:
        console.print(f"- {words.compared(record)}", soft_wrap=True, highlight=False, markup=False)
    for sentence in words.few(record["notes"]):
        print(f"foveate: note: {sentence}", file=sys.stderr)


def _table(record: dict[str, Any]) -> Iterator[Text]:
    """The figures, numbers in columns below one heading; names and groups may be longer than the terminal has room."""
    from rich.text import Text

    from ..scorers import words

    lines = words.lines(record)
    columns = [column.rsplit(" ", 1) for column in words.columns(record)]
    names = max(len(words.plain_name(name)) for _, name, _ in lines)
    widths = [
        max(*map(len, column), *(len(cells[place]) for *_, cells in lines)) for place, column in enumerate(columns)
    ]

    def row(name: str, cells: Iterable[str]) -> str:
        return " ".join([name.ljust(names), *(c.rjust(w) for c, w in zip(cells, widths, strict=True))]).rstrip()

    yield Text(row("", [column[0] if len(column) > 1 else "" for column in columns]), style="bold")
    yield Text(row(record["suite"], [column[-1] for column in columns]), style="bold")
    heading = None
    for group, name, cells in lines:
        if heading is not None and group != heading:
            yield Text(f"\n{group}", style="dim")
        yield Text(row(words.plain_name(name), cells), style="bold" if heading is None else "")
        heading = group
