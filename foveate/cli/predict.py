"""``predict`` and ``push``: use what a comparison trained, and give it to others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InvalidValue

#: Significant digits that float32 holds.
_DIGITS = "%.7g"


def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Such as OUT/best, or hub:user/name.")],
    source: Annotated[str | None, typer.Argument(metavar="[DATA]", help="As trained on; none: embedded.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="CSV or Parquet; of masks a folder.", show_default="standard output")
    ] = None,
    time: Annotated[str | None, typer.Option(help="Name of the time column.", show_default="as trained")] = None,
    id: Annotated[str | None, typer.Option(help="Name of the id column.", show_default="as trained")] = None,
    system: Annotated[str | None, typer.Option(help="module:Class, if the model was trained from your own.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit, of a model on the hub.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
) -> None:
    """Give a trained model new data: what it was trained for, in the data's own units and names."""
    if out is not None and out.suffix not in (".csv", ".parquet", ""):
        raise InvalidValue(f"--out {out} is not possible: the name must end in .csv or .parquet.")
    if out is not None and out.exists() and not force:
        raise InvalidValue(f"--out {out} exists: choose another name, or replace it with --force.")
    if out is not None and not out.parent.is_dir():
        raise InvalidValue(f"--out {out} is not possible: the folder {out.parent} does not exist.")
    from ..checkpoint import load, read_config
    from ..hub import local_folder
    from ..models.build import resolve
    from ..registry import find

    folder = local_folder(model, revision=revision)
    config = read_config(folder)
    if "task" not in config:
        raise InvalidValue(
            f"{model} holds a bare {config['system']!r}, trained for no task: open it with foveate.load."
        )
    packaged = load(folder, system=resolve(system).target if system else None)
    task = find(config["task"], "task").load()
    if out is not None and not out.suffix:
        if not hasattr(task, "write_predictions"):
            raise InvalidValue(f"--out {out} is not possible: the name must end in .csv or .parquet.")
        print(f"{task.write_predictions(packaged, source, out)} masks: {out}")
        return
    table = task.predict(packaged, source, time=time, id=id)
    if out is None:
        table.to_csv(sys.stdout, index=False, float_format=_DIGITS)
    elif out.suffix == ".parquet":
        table.to_parquet(out, index=False)
    else:
        table.to_csv(out, index=False, float_format=_DIGITS)


def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A saved model, such as OUT/best.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="user/name; made if it does not exist.")],
    private: Annotated[bool | None, typer.Option("--private/--public", help="If the repo is new.")] = None,
    branch: Annotated[str | None, typer.Option(help="Branch to push to.", show_default="main")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose the change instead of making it.")] = False,
    message: Annotated[
        str | None, typer.Option(help="Of the commit.", show_default="Push a model with foveate")
    ] = None,
    license: Annotated[str | None, typer.Option(help="Of the weights, such as cc-by-4.0, for the card.")] = None,
) -> None:
    """Push a model to the Hugging Face hub: weights, configuration and model card (log in first: hf auth login)."""
    from ..hub import PREFIX, push_folder

    told = {} if message is None else {"commit_message": message}
    where, said = push_folder(
        folder, repo, private=private, branch=branch, create_pr=create_pr, licence=license, **told
    )
    for sentence in said:
        print(f"foveate: {sentence}", file=sys.stderr)
    print(f"{where}\nOpen it with foveate.load({PREFIX + repo.removeprefix(PREFIX)!r}).")
