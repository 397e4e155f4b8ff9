"""``probe-video``: conflicting clips of one's own videos, with questions in the format of a published suite."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .values import names

if TYPE_CHECKING:
    from ..probes.make import Made


def probe_video(
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO_OR_FOLDER...", help="Videos, and folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for clips and questions; a new one.")],
    kinds: Annotated[str, typer.Option(help="What is done to videos, by commas.")] = "reversed,speed,order,mirrored",
    format: Annotated[str, typer.Option(help="The suite whose files are written: tempcompass or mvbench.")] = (
        "tempcompass"
    ),
    control: Annotated[
        bool, typer.Option("--control/--no-control", help="Add a static question that any single picture answers.")
    ] = True,
    questions: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help='What happens in the videos: {"video.mp4": "a man lifts a box"}.'),
    ] = None,
    seconds: Annotated[float, typer.Option(help="How much of each video, from its beginning.")] = 10.0,
    side: Annotated[int, typer.Option(help="Longest side of a video in pixels.")] = 480,
    seed: Annotated[int, typer.Option(help="Of the order of options, and of which videos are put in a row.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Make clips that differ in time alone, and questions about them. Killed, the same command goes on."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from ..probes.make import make

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("")
        made = make(
            videos,
            out,
            kinds=names(kinds),
            format=format,
            control=control,
            captions=questions,
            seconds=seconds,
            side=side,
            seed=seed,
            progress=lambda done, total, what: bar.update(task, completed=done, total=total, description=what),
        )
    if as_json:
        print(json.dumps({"out": str(made.out), **made.record}, indent=1))
        return
    _print(made)


def _print(made: Made) -> None:
    for sentence in made.notes:
        print(f"foveate: note: {sentence}", file=sys.stderr)
    told = ", ".join(f"{count} about {kind}" for kind, count in made.asked.items())
    print(f"{made.clips} clips in {made.out / 'videos'}; of them {told}")
    print("questions: " + ", ".join(f"{count} in {name}" for name, count in made.questions.items()))
    print(
        f"next: foveate ask {made.format} --model MODEL --videos {made.out / 'videos'} --annotations {made.annotations}"
    )
