"""``look``: pictures of what a model attends to in an image."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidValue

if TYPE_CHECKING:
    from ..analysis.looking import Looked


def look(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Such as OUT/best, hub:user/name, or a name (see --pretrained).")
    ],
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Any picture that pillow reads.")],
    query: Annotated[
        str | None, typer.Option(help="Who reads: pixel ROW,COLUMN, or class.", show_default="the middle")
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="Numbers or paths of layers, by commas; -1: the last.", show_default="all")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder, or a .html or .png file.", show_default="look_IMAGE")
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="Weights for a name: file, folder or user/name.", show_default="random")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Pixels that the model reads, as 224 or 192x256.", show_default="its own, or 224")
    ] = None,
    detail: Annotated[int | None, typer.Option(help="Pixels of a picture's longer side.", show_default="224")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Draw what a model attends to in an image: weights, visible places, windows, routes, trees and gates.

    Writes a page (index.html) and a picture for each layer.
    """
    out = Path(f"look_{image.stem}") if out is None else out
    _check_out(out, force)
    given: dict[str, Any] = {} if detail is None else {"detail": detail}
    if size is not None:
        from ..tasks.classify_images.pictures import read_size

        given["size"] = read_size(size)
    from ..analysis.looking import look as find

    found = find(model, image, _layers(layer), _query(query), pretrained=pretrained, **given)
    files = found.save(out, force=force)
    if as_json:
        print(json.dumps({**found.facts(), "files": [str(file) for file in files]}, indent=2))
        return
    _tell(found)
    others = f" and {len(files) - 1} picture{'s' if len(files) > 2 else ''}" if len(files) > 1 else ""
    print(f"wrote {files[0]}{others}")
    if found.subject.random:
        print("The weights are random: name trained ones with --pretrained.")


def _check_out(out: Path, force: bool) -> None:
    file = out.suffix in (".html", ".png")
    if file and not out.parent.is_dir():
        raise InvalidValue(f"--out {out} is not possible: the folder {out.parent} does not exist.")
    if out.exists() and not file and not out.is_dir():
        raise InvalidValue(f"--out {out} is not possible: it is a file; name a folder, or a .html or .png file.")
    if not force and (out.is_file() or (out.is_dir() and any(out.iterdir()))):
        raise InvalidValue(f"--out {out} exists: choose another name, or replace it with --force.")


def _layers(text: str | None) -> list[int | str] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise InvalidValue(f"--layer {text!r} is not possible: numbers or paths of layers, by commas, are needed.")
    return [int(part) if re.fullmatch(r"-?\d+", part) else part for part in parts]


def _query(text: str | None) -> tuple[int, int] | str | None:
    if text is None or text == "class":
        return text
    match = re.fullmatch(r"\s*(-?\d+)\s*,\s*(-?\d+)\s*", text)
    if match is None:
        raise InvalidValue(f"--query {text!r} is not possible: a pixel as ROW,COLUMN, or class, is needed.")
    return int(match[1]), int(match[2])


def _tell(found: Looked) -> None:
    height, width = found.image.size
    likely = ", ".join(f"{name} {p:.1%}" for name, p in found.likely())
    print(f"{found.image.name}, read as {height} x {width} pixels" + (f": {likely}" if likely else ""))
    lines: list[tuple[str, ...]] = [("layer", "mixer", "places", "told", "spread", "distance")]
    for seen in found.layers:
        told = ", ".join(dict.fromkeys(one.label for one in seen.looks))
        figures = [f"{v:.1f}" if math.isfinite(v) else "-" for v in (seen.spread(), seen.distance())]
        lines.append((seen.path or "-", seen.mixer, f"{seen.grid[0]} x {seen.grid[1]}", told, *figures))
    widths = [max(len(line[k]) for line in lines) for k in range(6)]
    for line in lines:
        cells = [
            cell.ljust(w) if k < 4 else cell.rjust(w) for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
