"""``export``: a trained model as a file that runs without foveate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InvalidValue


def export(
    model: Annotated[str, typer.Argument(metavar="DIR", help="A trained model: OUT/best, or hub:user/name.")],
    format: Annotated[str, typer.Option(help="pt2 (PyTorch) or onnx.")] = "pt2",
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="DIR/model.FORMAT")] = None,
    length: Annotated[int | None, typer.Option(help="Fix the number of tokens.", show_default="any, if it can")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Fix the batch size.", show_default="any")] = None,
    calibration: Annotated[
        str | None, typer.Option(metavar="DATA", help="Freeze what follows the data by this table (timesnet).")
    ] = None,
    time: Annotated[str | None, typer.Option(help="Name of DATA's time column.", show_default="as trained")] = None,
    id: Annotated[str | None, typer.Option(help="Name of DATA's id column.", show_default="as trained")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit, of a model on the hub.")] = None,
    system: Annotated[str | None, typer.Option(help="module:Class, if the model was trained from your own.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what stands in the file.")] = False,
) -> None:
    """Write a trained model as one file that runs where there is no foveate.

    The file's answers are compared with the model's before it is written.
    """
    if format not in ("pt2", "onnx"):
        raise InvalidValue(f"--format {format} is not possible: it must be pt2 or onnx.")
    remote = model.startswith("hub:")
    if not remote and not Path(model).is_dir():
        raise InvalidValue(f"{model} is not a trained model: it is no folder; give one such as OUT/best.")
    if remote and out is None:
        raise InvalidValue(f"{model} has no folder here that the file could go to: name it with --out.")
    file = Path(model, f"model.{format}") if out is None else out
    if file.exists() and not file.is_dir() and not force:
        raise InvalidValue(f"{file} exists: choose another name with --out, or replace it with --force.")
    from ..exporting import export as write
    from ..hub import local_folder
    from ..models.build import resolve

    made = write(
        local_folder(model, revision=revision),
        file,
        format=format,
        length=length,
        batch_size=batch_size,
        calibration=calibration,
        system=resolve(system).target if system else None,
        time=time,
        id=id,
        force=force,
    )
    if as_json:
        print(json.dumps({"path": str(made.file), **made.facts}, indent=2))
        return
    facts = made.facts
    print(f"wrote {made.file} ({made.file.stat().st_size:,} bytes): {facts['model']}")
    for one in facts["inputs"]:
        print(f"reads {one['name']} {_shape(one['shape'])} {one['dtype']}: {one['meaning']}")
    answer = facts["output"]
    print(f"answers {_shape(answer['shape'])} {answer['dtype']}: {answer['meaning']}")
    frozen = facts.get("calibration")
    if frozen:
        by = f"{frozen['by']}, {frozen['windows']} windows" if "windows" in frozen else frozen["by"]
        print(f"periods frozen by {by}: " + "; ".join(", ".join(map(str, block)) for block in frozen["periods"]))
        if "changed" in frozen:
            print(f"on these windows that changes answers by {frozen['changed']:.1%} of their spread (rms)")
    tried = facts["verified"]
    batches = ", ".join(map(str, tried["batches"]))
    print(
        f"verified with batches of {batches}: deviates by {tried['deviation']:.1e}, {tried['tolerance']:g} is allowed"
    )


def _shape(sizes: list[int | str] | None) -> str:
    return "" if sizes is None else f"({', '.join(map(str, sizes))})"
