"""``predict``: use what a comparison trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InvalidValue

#: Significant digits that float32 holds.
_DIGITS = "%.7g"


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A trained model, such as OUT/best.")],
    source: Annotated[str | None, typer.Argument(metavar="[DATA]", help="As trained on; none: embedded.")] = None,
    out: Annotated[Path | None, typer.Option(help="CSV or Parquet to write.", show_default="standard output")] = None,
    time: Annotated[str | None, typer.Option(help="Name of the time column.", show_default="as trained")] = None,
    id: Annotated[str | None, typer.Option(help="Name of the id column.", show_default="as trained")] = None,
    system: Annotated[str | None, typer.Option(help="module:Class, if the model was trained from your own.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
) -> None:
    """Give a trained model new data: what it was trained for, in the data's own units and names."""
    if out is not None and out.suffix not in (".csv", ".parquet"):
        raise InvalidValue(f"--out {out} is not possible: the name must end in .csv or .parquet.")
    if out is not None and out.exists() and not force:
        raise InvalidValue(f"--out {out} exists: choose another name, or replace it with --force.")
    if out is not None and not out.parent.is_dir():
        raise InvalidValue(f"--out {out} is not possible: the folder {out.parent} does not exist.")
    from ..checkpoint import load, read_config
    from ..models.build import resolve
    from ..registry import find

    packaged = load(model, system=resolve(system).target if system else None)
    task = find(read_config(model)["task"], "task").load()
    table = task.predict(packaged, source, time=time, id=id)
    if out is None:
        table.to_csv(sys.stdout, index=False, float_format=_DIGITS)
    elif out.suffix == ".parquet":
        table.to_parquet(out, index=False)
    else:
        table.to_csv(out, index=False, float_format=_DIGITS)
