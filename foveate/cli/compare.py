"""``compare``, ``train``, ``leaderboard``: one command per task, each with the task's own options."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidType, InvalidValue
from . import options
from .group import tasks_app
from .probes import PROBES, drawn
from .values import assignments, duration, names, numbers

if TYPE_CHECKING:
    from ..compare.settings import Settings

compare_app = tasks_app("Train contestants under the same rules on your data and rank them.")
train_app = tasks_app("Train one system on your data, as `compare` would.")

RUNS = Path("foveate-runs")


_THEN = "The same command goes on where an earlier one stopped. At the end: OUT/report.html and OUT/best."


def _add(task: str, about: str, *data: options.Group) -> None:
    """Add ``compare TASK`` and ``train TASK``; ``data`` declare what the task reads or draws."""

    def compare(data: dict[str, Any], given: dict[str, Any]) -> None:
        _compare(task, data, {"seeds": 1 if "preset" in given else 2, "out": _default_out(task, task, data), **given})

    def train(data: dict[str, Any], given: dict[str, Any]) -> None:
        system = given.pop("system", None)
        if system is None:
            raise InvalidType("--system is missing: name what to train, such as --system timesnet.")
        out = _default_out(task, f"{task}-" + re.sub(r"\W+", "-", system), data)
        _compare(task, data, {"seeds": 1, "out": out, **given, "systems": system})

    compare.__doc__ = f"{about}\n\n{_THEN}"
    train.__doc__ = f"{about[:-1]}, with one system; the baselines are scored beside it.\n\n{_THEN}"
    options.command(compare_app, task, compare, data, options.contestants, options.rules)
    options.command(train_app, task, train, data, options.one_system, options.rules)


_add("forecast", "Forecast the next steps of one or more series.", options.forecast_data)
_add("forecast-m4", "Forecast what follows each of many short series, by M4's rules.", options.forecast_m4_data)
_add("classify-series", "Tell the class of whole series.", options.classify_series_data)
_add("classify-images", "Tell the class of images.", options.classify_images_data)
_add("detect-anomalies", "Find the unusual steps of a series.", options.detect_anomalies_data)
_add("language", "Foresee the next token of text.", options.language_data)
_add("segment", "Tell the class of every pixel of images, or voxel of volumes.", options.segment_data)
_add("impute", "Fill what is missing in one or more series.", options.impute_data)
for _task, (_about, _data) in PROBES.items():
    _add(_task, _about, _data, drawn)


def leaderboard(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of comparisons.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a comparison again, or merge several into ranks over their data sets."""
    from rich.console import Console

    from ..compare.merge import merge, merged_table
    from ..compare.tables import table

    console = Console()
    board = _read_board(folders[0]) if len(folders) == 1 else merge(folders)
    if as_json:
        print(json.dumps(board, indent=2))
    else:
        console.print(table(board, console) if len(folders) == 1 else merged_table(board, console))


def _default_out(task: str, what: str, data: dict[str, Any]) -> Path:
    if task in PROBES:  # other samples are other data
        return RUNS / "-".join([what, *(f"{name}_{value}" for name, value in sorted(data.items()))])
    source = data.get("source")
    return RUNS / f"{what}-{Path(source).stem if source else 'embedded'}"


def _settings(task: str, data: dict[str, Any], given: dict[str, Any]) -> Settings:
    from ..compare.settings import Settings

    options = assignments(given.pop("set", []), given.pop("options", {}))
    if isinstance(given.get("systems"), str):
        given["systems"] = names(given["systems"])
    if isinstance(given.get("learning_rates"), str):
        given["learning_rates"] = numbers(given["learning_rates"], "learning_rates")
    if isinstance(given.get("budget"), str):
        given["budget"] = duration(given["budget"])
    return Settings(task=task, data=data, options=options, **given)


def _compare(task: str, data: dict[str, Any], given: dict[str, Any]) -> None:
    as_json, plan_only = given.pop("as_json", False), given.pop("plan", False)
    settings = _settings(task, data, given)
    from rich.console import Console

    from ..compare import make_plan, run
    from ..compare.display import Display
    from ..compare.tables import table
    from ..registry import find

    if plan_only:
        plan = make_plan(settings)
        print(json.dumps(plan.as_dict(), indent=2) if as_json else plan.text())
        return
    spec = find(task, "task").spec
    title = f"{task} · {data.get('source') or ('drawn samples' if task in PROBES else 'embedded data')}"
    with Display(title, spec.metrics[0], spec.higher_is_better) as display:
        board = run(settings, on_event=display.event)
    if as_json:
        print(json.dumps(board, indent=2))
    else:
        console = Console()
        console.print(table(board, console))
        print(f"\nreport: {Path(settings.out) / 'report.html'}")
    if board["best"] is None:
        raise InvalidType("no contestant finished: the reasons stand in the leaderboard.")
    if not as_json:
        best = Path(settings.out) / "best"
        about = "trained anew on all data" if board["best"]["refit"] else "as scored"
        print(f"winner: {best}, {about}  (foveate predict {best} DATA)")


def _read_board(folder: Path) -> dict[str, Any]:
    file = folder / "leaderboard.json"
    if not file.is_file():
        raise InvalidValue(f"{folder} holds no leaderboard.json: give the folder of a finished comparison.")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidValue(f"{file} is damaged ({error}): run the comparison's command again.") from error
