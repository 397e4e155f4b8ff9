"""``generate``: a language model goes on from prompts, on the screen as it writes."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InvalidValue

if TYPE_CHECKING:
    from ..generation.generate import Speed
    from ..generation.telling import Telling

#: Stands for standard input, read as one prompt.
_STANDARD_INPUT = "-"


def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Such as OUT/best, or hub:user/name.")],
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="Texts to go on from; -: standard input; none: a new document."),
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Prompts: one a line, or .jsonl with a field 'prompt'.")] = None,
    tokens: Annotated[int, typer.Option(help="Most that are written after each prompt.")] = 256,
    temperature: Annotated[float, typer.Option(help="Below 1: likelier tokens; 0: always the likeliest.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Of the K likeliest tokens only.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Of the likeliest that have this probability together.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Of those that have this share of the likeliest's.")] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: less of what was there before.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the first prompt; the next has the next.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text (\\n, \\t, \\\\ are read as in C); may be repeated.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Prompts at once.")] = 16,
    prefill_chunk: Annotated[int, typer.Option(help="Prompt tokens that are read at once.")] = 512,
    no_prompt: Annotated[
        bool, typer.Option("--no-prompt", help="Print what was written alone, without what it goes on from.")
    ] = False,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="For a model without a stream: read all again for every token.")
    ] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="Of a bare model: bytes, a file or folder.", show_default="bytes, if it fits")
    ] = None,
    system: Annotated[str | None, typer.Option(help="module:Class, if the model was trained from your own.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit, of a model on the hub.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of torch.", show_default="its own choice")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON lines to write, one for each prompt that has ended.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print texts and speed as JSON in the end.")] = False,
) -> None:
    """Go on from texts with a trained language model.

    Text goes to standard output as it is written, what it took to standard error.
    """
    if out is not None and out.suffix != ".jsonl":
        raise InvalidValue(f"--out {out} is not possible: the name must end in .jsonl.")
    if out is not None and out.exists() and not force:
        raise InvalidValue(f"--out {out} exists: choose another name, or replace it with --force.")
    if out is not None and not out.parent.is_dir():
        raise InvalidValue(f"--out {out} is not possible: the folder {out.parent} does not exist.")
    if threads is not None and threads < 1:
        raise InvalidValue(f"--threads {threads} is not possible: at least one is needed.")
    if tokens < 1:
        raise InvalidValue(f"--tokens {tokens} is not possible: at least 1 is needed.")
    stops = [_unescaped(text) for text in stop or ()]
    texts = _prompts(prompts or [], file)

    import torch

    from ..generation import Sampling
    from ..generation import generate as generated
    from ..generation.open import open_writer
    from ..generation.telling import Screen, Telling
    from ..models.build import resolve

    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
    )
    if threads is not None:
        torch.set_num_threads(threads)
    writer = open_writer(
        model, system=resolve(system).target if system else None, revision=revision, tokenizer=tokenizer
    )
    run = generated(
        writer.model,
        [writer.encode(text) for text in texts],
        max_tokens=tokens,
        stop=writer.stop,
        sampling=sampling,
        seed=seed,
        start=writer.end,
        prefill_chunk=prefill_chunk,
        batch=batch,
        recompute=recompute,
    )
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character shows another
    screen = None if as_json else Screen(sys.stdout, [] if no_prompt else texts, len(texts))
    telling = Telling(run, writer.codec, texts, stops=stops, seed=seed, screen=screen, file=out)
    interrupted = False
    try:
        telling.run()
    except KeyboardInterrupt:
        interrupted = True
    telling.finish()
    if as_json:
        about = {"model": model, "system": writer.name, "sampling": asdict(sampling)}
        print(json.dumps({**about, "texts": telling.records, "speed": run.speed.as_json()}, indent=1))
    else:
        print(f"foveate: {_summary(telling, run.speed)}", file=sys.stderr)
    if interrupted:
        kept = "" if out is None else f" Texts that had ended, and those that had begun, are in {out}."
        print(f"foveate: interrupted: this is what was written so far.{kept}", file=sys.stderr)
        raise typer.Exit(130)


def _prompts(given: list[str], file: Path | None) -> list[str]:
    """All texts to go on from: those of the command line, then those of the file; one empty one if there are none."""
    texts = [_standard_input() if text == _STANDARD_INPUT else text for text in given]
    for text in texts:
        if any("\ud800" <= character <= "\udfff" for character in text):  # what bytes of a terminal become
            raise InvalidValue(f"the prompt {text!r} is not UTF-8: check the terminal's encoding, or use --file.")
    if file is not None:
        texts += _of_file(file)
    return texts if given or file is not None else [""]


def _standard_input() -> str:
    return _decoded(sys.stdin.buffer.read(), "standard input")


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidValue(f"{where} is not UTF-8: byte {error.start} is {data[error.start]:#04x}.") from error


def _of_file(file: Path) -> list[str]:
    try:
        text = _decoded(file.read_bytes(), f"--file {file}")
    except OSError as error:
        raise InvalidValue(f"--file {file} cannot be read: {error.strerror}.") from error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise InvalidValue(f"--file {file} has no prompt: every line is empty.")
    if file.suffix != ".jsonl":
        return [line for _, line in lines]
    texts = []
    for number, line in lines:
        try:
            found = json.loads(line)
        except ValueError as error:
            raise InvalidValue(f"--file {file}: line {number} is not JSON ({error}).") from error
        if not isinstance(found, dict) or not isinstance(found.get("prompt"), str):
            raise InvalidValue(f"--file {file}: line {number} has no text in a field 'prompt'.")
        texts.append(found["prompt"])
    return texts


def _unescaped(text: str) -> str:
    r"""The stop text with ``\n``, ``\t`` and ``\\`` as what they stand for."""
    parts = text.split("\\\\")
    return "\\".join(part.replace("\\n", "\n").replace("\\t", "\t") for part in parts)


def _summary(telling: Telling, speed: Speed) -> str:
    """What it took, in one line."""
    from ..pages.figures import format_bytes

    written, ended = sum(record["tokens"] for record in telling.records), len(telling.records)
    texts = "" if ended == 1 else f" in {ended} texts"
    parts = [f"{written:,} token{'' if written == 1 else 's'}{texts}"]
    if speed.decode_rate is not None:
        parts[0] += f", {speed.decode_rate:,.0f} tokens/s"
    if speed.prefill_rate is not None:
        read, took = f"{speed.prompt_tokens:,} tokens", f"{speed.prefill_seconds:.2g} s"
        what = "prompt" if ended == 1 else "prompts"
        parts.append(f"{what} of {read} in {took}, {speed.prefill_rate:,.0f} tokens/s")
    of = "" if speed.state_samples == 1 else f" for {speed.state_samples} texts"
    parts.append(f"state {format_bytes(speed.state_bytes)}{of}")
    return "; ".join(parts) + "."
