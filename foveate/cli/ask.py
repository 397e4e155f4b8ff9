"""``ask``: a video-language model, here or behind a server, answers a published benchmark."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidValue

if TYPE_CHECKING:
    from ..asking.asked import Model
    from ..asking.run import Summary
    from ..asking.sampling import Sampling
    from ..scorers.base import Suite

#: Failures that are listed at the end; the file has all.
_MOST_LISTED = 20


def ask(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="As `foveate list --kind scorer` names them.")],
    model: Annotated[
        str, typer.Option(help="Folder or hub name of a transformers model; with --endpoint: its name there.")
    ],
    annotations: Annotated[Path, typer.Option(help="The official annotations: file or folder.")],
    videos: Annotated[Path | None, typer.Option(help="Folder of the suite's videos.")] = None,
    no_video: Annotated[
        bool, typer.Option("--no-video", help="Text only: what the model says without looking.")
    ] = False,
    tasks: Annotated[str | None, typer.Option(help="Only these tasks, by commas.", show_default="all")] = None,
    sampling: Annotated[
        str | None,
        typer.Option(help="uniform, fps, single, shuffled, reversed or stream.", show_default="the suite's own"),
    ] = None,
    frames: Annotated[int | None, typer.Option(help="So many frames.", show_default="the suite's own")] = None,
    fps: Annotated[float | None, typer.Option(help="So many frames a second instead.")] = None,
    single: Annotated[str, typer.Option(help="The frame of --sampling single: first, middle or random.")] = "middle",
    side: Annotated[int, typer.Option(help="Longest side of a frame in pixels; larger ones are made smaller.")] = 720,
    out: Annotated[
        Path | None, typer.Option(help="File of the answers.", show_default="foveate-runs/ask-....jsonl")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many of the first questions.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 128,
    seed: Annotated[int, typer.Option(help="Of shuffled frames, random frames and the model.")] = 0,
    batch: Annotated[int, typer.Option(help="Questions at once, for a model here.")] = 1,
    endpoint: Annotated[
        str | None, typer.Option(help="URL of a server that speaks the chat-completions protocol.")
    ] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable with the server's key.")] = None,
    body: Annotated[
        str | None, typer.Option(help='Further fields of each request, as JSON; null takes one away: {"seed": null}.')
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Questions at once, for a server.")] = 4,
    timeout: Annotated[float, typer.Option(help="Seconds that the server may be silent.")] = 120.0,
    retries: Annotated[int, typer.Option(help="How often a question is asked again where that can help.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print how it ended as JSON.")] = False,
) -> None:
    """Have a model answer a suite's questions. Killed at any moment, the same command goes on.

    Exit status 1 if questions are left without an answer.
    """
    if no_video and videos is not None:
        raise InvalidValue("--videos and --no-video do not go together: give one of them.")
    if not no_video and videos is None:
        raise InvalidValue("videos are missing: give their folder with --videos, or ask for text only with --no-video.")
    for option, given in (("--api-key-env", api_key_env), ("--body", body)):
        if endpoint is None and given is not None:
            raise InvalidValue(f"{option} is for a server: give its --endpoint.")
    fields = None if body is None else _object(body)
    from ..asking.display import Display
    from ..asking.run import ask as asked
    from ..asking.run import check_videos
    from ..asking.sampling import Sampling
    from .score import open_suite

    questions = open_suite(suite, annotations, tasks)
    way = Sampling.of(questions.shown, sampling, frames=frames, fps=fps, which=single, seed=seed)
    file = out or Path("foveate-runs") / f"ask-{_name(suite, model, way, questions, no_video)}.jsonl"
    check_videos(questions, videos, way)  # before a large model is opened
    found: dict[str, Any] = {
        "endpoint": endpoint,
        "annotations": str(annotations.resolve()),
        "max_tokens": max_tokens,
        "seed": seed,
        "body": fields,
    }
    answers_with, notes = _model(
        model,
        endpoint,
        api_key_env,
        {"max_tokens": max_tokens, "seed": seed},
        body=fields,
        batch=batch,
        concurrency=concurrency,
        timeout=timeout,
        retries=retries,
    )
    for note in notes:
        print(f"foveate: note: {note}", file=sys.stderr)
    with Display(" · ".join((suite, model, "text only" if no_video else way.words()))) as display:
        try:
            summary = asked(
                questions,
                answers_with,
                file,
                videos=videos,
                sampling=way,
                side=side,
                limit=limit,
                settings=found,
                progress=display.event,
            )
        except KeyboardInterrupt:
            summary = None
    if summary is None:
        print(f"foveate: interrupted: answers are in {file}; the same command goes on.", file=sys.stderr)
        raise typer.Exit(130)
    if as_json:
        print(json.dumps(_record(summary), indent=1))
    else:
        _print(summary, suite, annotations)
    if summary.left:
        raise typer.Exit(1)


def _model(
    name: str,
    endpoint: str | None,
    api_key_env: str | None,
    options: dict[str, Any],
    *,
    body: dict[str, Any] | None,
    batch: int,
    concurrency: int,
    timeout: float,
    retries: int,
) -> tuple[Model, list[str]]:
    """What answers, and what its user should know of it."""
    if endpoint is None:
        from ..asking.local import Local

        local = Local(name, batch=batch, **options)
        return local, local.notes()
    from ..asking.client import Client, key_from
    from ..asking.endpoint import Endpoint

    client = Client(endpoint, name, key=key_from(api_key_env), timeout=timeout, retries=retries)
    return Endpoint(client, concurrency=concurrency, body=body, **options), []


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidValue(f"--body {text!r} is not possible: write a JSON object such as '{{\"seed\": null}}'.")
    return found


def _name(suite: str, model: str, sampling: Sampling, questions: Suite, no_video: bool) -> str:
    """What tells a run's file from others: suite, model, and the sampling where it is not the suite's own."""
    from ..asking.sampling import Sampling

    own = Sampling.of(questions.shown, seed=sampling.seed)
    told = "text-only" if no_video else "" if sampling == own else sampling.way
    if told and not no_video and sampling.way in ("uniform", "stream", "fps"):
        told += f"-{sampling.frames}" if sampling.fps is None else f"-{sampling.fps:g}fps"
    parts = [suite, Path(model).name or model, told]
    return re.sub(r"[^\w.-]+", "-", "-".join(part for part in parts if part))


def _record(summary: Summary) -> dict[str, Any]:
    return {
        "file": str(summary.file),
        "questions": summary.total,
        "answered_before": summary.before,
        "answered": summary.answered,
        "left": summary.left,
        "frames_repeated": summary.repeated,
        "failed": [{"id": id, "reason": reason} for id, reason in summary.failures.items()],
    }


def _print(summary: Summary, suite: str, annotations: Path) -> None:
    before = f" ({summary.before} before)" if summary.before else ""
    print(f"{summary.before + summary.answered} of {summary.total} questions answered{before}: {summary.file}")
    if summary.repeated:
        print(f"In {summary.repeated} answers frames were shown more than once: the clip has fewer than asked for.")
    if summary.failures:
        print(f"{len(summary.failures)} failed; the same command asks them again:")
        for id, reason in list(summary.failures.items())[:_MOST_LISTED]:
            print(f"  {id}: {reason}")
        more = len(summary.failures) - _MOST_LISTED
        if more > 0:
            print(f"  and {more} more: {summary.file}.failed")
    print(f"next: foveate score {suite} {shlex.quote(str(summary.file))} --against {shlex.quote(str(annotations))}")
