"""Options that several commands share, declared once as the parameters of a function, and commands made of them."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import unknown_name
from .values import read_toml

Group = Callable[..., None]


def command(
    app: typer.Typer, name: str, body: Callable[..., None], data: Group | Sequence[Group], *groups: Group
) -> None:
    """Add a command whose options are those of all ``groups``.

    Args:
        app: the group of commands it joins.
        name: what the user types.
        body: called as ``body(data, given)`` with the values of the data's groups and those of all others together,
            only what was given, on the command line or in the file of ``--config`` (the command line wins); its
            docstring is the command's help.
        data, groups: functions whose parameters declare options; the default, None or False, means "not given".
    """
    parameters, of_data = [], set()
    read = (data,) if callable(data) else tuple(data)
    for group in (*read, *groups):
        hints = typing.get_type_hints(group, include_extras=True)
        for parameter in inspect.signature(group).parameters.values():
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(kind=kind, annotation=hints[parameter.name]))
            if group in read:
                of_data.add(parameter.name)
    known = {p.name for p in parameters} - {"config", "as_json", "plan"}
    defaults = {p.name: p.default for p in parameters}

    def run(**values: Any) -> None:
        given = {k: v for k, v in values.items() if v is not defaults[k]}
        file = given.pop("config", None)
        values = {**(_from_file(file, known) if file else {}), **given}
        body(
            {k: v for k, v in values.items() if k in of_data},
            {k: v for k, v in values.items() if k not in of_data},
        )

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__doc__ = body.__doc__
    app.command(name)(run)


def _from_file(file: Path, known: set[str]) -> dict[str, Any]:
    """The values of a configuration file, the user's or one that a comparison wrote."""
    from ..compare.settings import Settings

    known = known | {f.name for f in dataclasses.fields(Settings)}
    values = read_toml(file)
    values |= values.pop("data", {})  # a comparison's own config.toml nests what belongs to the data
    values.pop("task", None)
    for name in values:
        if name not in known:
            raise unknown_name("setting", name, known, f"The file is {str(file)!r}.")
    return values


def forecast_data(
    source: Annotated[
        str | None, typer.Argument(metavar="[DATA]", help="CSV or Parquet file; none: an embedded series.")
    ] = None,
    horizon: Annotated[int | None, typer.Option(help="Steps to forecast.", show_default="by frequency")] = None,
    lookback: Annotated[int | None, typer.Option(help="Steps to look at.", show_default="by frequency")] = None,
    target: Annotated[str | None, typer.Option(help="Columns to forecast, by commas.", show_default="all")] = None,
    freq: Annotated[str | None, typer.Option(help="Resample to this frequency, such as h or D.")] = None,
    time: Annotated[str | None, typer.Option(help="Name of the time column.", show_default="found")] = None,
    id: Annotated[str | None, typer.Option(help="Name of the column that tells series apart (long format).")] = None,
    season: Annotated[int | None, typer.Option(help="Steps per season.", show_default="by frequency")] = None,
    split: Annotated[str | None, typer.Option(help="Shares or rows: 0.7/0.1/0.2 or 8640/2880/2880.")] = None,
    windows: Annotated[int | None, typer.Option(help="Backtest with this many test origins at the end.")] = None,
    stride: Annotated[int | None, typer.Option(help="Steps between validation and test origins.")] = None,
    known: Annotated[
        str | None, typer.Option(help="Columns known over the horizon too (calendar, prices), by commas.")
    ] = None,
    static: Annotated[str | None, typer.Option(help="Columns constant within a series, by commas.")] = None,
    quantiles: Annotated[
        str | None, typer.Option(help="Forecast these levels, such as 0.1,0.5,0.9.", show_default="one number")
    ] = None,
) -> None:
    """What `forecast` reads."""


def forecast_m4_data(
    source: Annotated[
        str | None,
        typer.Argument(metavar="[DATA]", help="CSV: an id, then values; none: embedded weather months."),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(help="What follows.", show_default="NAME-test.csv beside NAME-train.csv, else the last values"),
    ] = None,
    horizon: Annotated[int | None, typer.Option(help="Steps to forecast.", show_default="by the file's name")] = None,
    season: Annotated[int | None, typer.Option(help="Steps per season.", show_default="by the file's name")] = None,
    lookback: Annotated[int | None, typer.Option(help="Steps to look at.", show_default="twice the horizon")] = None,
    history: Annotated[
        float | None, typer.Option(help="Train on the last so many horizons.", show_default="by the file's name")
    ] = None,
    id: Annotated[str | None, typer.Option(help="Name of the id column.", show_default="the first")] = None,
) -> None:
    """What `forecast-m4` reads."""


def classify_series_data(
    source: Annotated[
        str | None,
        typer.Argument(metavar="[DATA]", help="UEA .ts, .npz (x, y), CSV or Parquet; none: embedded weather days."),
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="Test part.", show_default="NAME_TEST.ts beside NAME_TRAIN.ts, else a share")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Name of the class column.", show_default="found")] = None,
    id: Annotated[str | None, typer.Option(help="Name of the column that tells samples apart.")] = None,
    time: Annotated[str | None, typer.Option(help="Name of the time column.", show_default="found")] = None,
    group: Annotated[str | None, typer.Option(help="Column of what must stay in one part, such as a person.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Shares.", show_default="0.7/0.1/0.2; with a test part 0.8/0.2")
    ] = None,
    split_seed: Annotated[int | None, typer.Option(help="Draws the parts.", show_default="0")] = None,
) -> None:
    """What `classify-series` reads."""


def classify_images_data(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATA]", help="Folder of class folders, CSV of paths, IDX or .npz; none: embedded digits."
        ),
    ] = None,
    test: Annotated[str | None, typer.Option(help="Test part.", show_default="as found, else a share")] = None,
    label: Annotated[str | None, typer.Option(help="Column of classes in a CSV file.", show_default="found")] = None,
    path: Annotated[str | None, typer.Option(help="Column of image files in it.", show_default="found")] = None,
    group: Annotated[str | None, typer.Option(help="Column of what must stay in one part, such as a person.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Shares.", show_default="0.7/0.1/0.2; with a test part 0.8/0.2")
    ] = None,
    split_seed: Annotated[int | None, typer.Option(help="Draws the parts.", show_default="0")] = None,
    image_size: Annotated[
        str | None, typer.Option(help="Pixels: 32, or 24x32 (height x width).", show_default="native, if alike")
    ] = None,
    fit: Annotated[str | None, typer.Option(help="Other shapes: crop or stretch.", show_default="crop")] = None,
    channels: Annotated[int | None, typer.Option(help="1 or 3.", show_default="1 if all are grey")] = None,
    augment: Annotated[
        str | None, typer.Option(help="shift, flip, colour, by commas, or none.", show_default="shift")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out files that cannot be read.")] = False,
) -> None:
    """What `classify-images` reads."""


def segment_data(
    source: Annotated[
        str | None,
        typer.Argument(metavar="[DATA]", help="Folder with images/ and masks/, or .npz; none: scenes of digits."),
    ] = None,
    volumes: Annotated[bool, typer.Option("--volumes", help="Without data: volumes of digits.")] = False,
    split: Annotated[str | None, typer.Option(help="Shares.", show_default="0.7/0.1/0.2, if not in folders")] = None,
    split_seed: Annotated[int | None, typer.Option(help="Draws parts and patches.", show_default="0")] = None,
    patch: Annotated[
        str | None, typer.Option(help="What models read: 64, or 32x64x64.", show_default="by the sizes")
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(help="Of volumes: median, 1x1x2 (mm) or keep.", show_default="refuse differing ones"),
    ] = None,
    normalise: Annotated[str | None, typer.Option(help="training or each.", show_default="training")] = None,
    ignore: Annotated[int | None, typer.Option(help="Value in masks that does not count.")] = None,
    overlap: Annotated[float | None, typer.Option(help="Of windows, a share.", show_default="0.5")] = None,
    blending: Annotated[str | None, typer.Option(help="gaussian or constant.", show_default="gaussian")] = None,
    hd95: Annotated[bool, typer.Option("--hd95", help="Score distances of borders too.")] = False,
) -> None:
    """What `segment` reads."""


def impute_data(
    source: Annotated[
        str | None, typer.Argument(metavar="[DATA]", help="CSV or Parquet file; none: an embedded series.")
    ] = None,
    lookback: Annotated[int | None, typer.Option(help="Rows of a window.", show_default="by frequency")] = None,
    mask_rate: Annotated[float | None, typer.Option(help="Share that is hidden.", show_default="0.25")] = None,
    mask_seed: Annotated[int | None, typer.Option(help="Draws what is hidden.", show_default="0")] = None,
    target: Annotated[str | None, typer.Option(help="Columns to score, by commas.", show_default="all")] = None,
    freq: Annotated[str | None, typer.Option(help="Resample to this frequency, such as h or D.")] = None,
    time: Annotated[str | None, typer.Option(help="Name of the time column.", show_default="found")] = None,
    id: Annotated[str | None, typer.Option(help="Name of the column that tells series apart (long format).")] = None,
    split: Annotated[str | None, typer.Option(help="Shares or rows: 0.7/0.1/0.2 or 8640/2880/2880.")] = None,
    stride: Annotated[int | None, typer.Option(help="Rows between validation and test windows.")] = None,
) -> None:
    """What `impute` reads."""


def detect_anomalies_data(
    source: Annotated[
        str | None, typer.Argument(metavar="[DATA]", help="CSV, Parquet or .npz (x, y); none: an embedded series.")
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="Test part.", show_default="NAME_TEST beside NAME_TRAIN, else a share")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Column of 0 and 1 that marks anomalies.", show_default="found")
    ] = None,
    time: Annotated[str | None, typer.Option(help="Name of the time column.", show_default="found")] = None,
    columns: Annotated[str | None, typer.Option(help="Channels, by commas.", show_default="all numbers")] = None,
    lookback: Annotated[int | None, typer.Option(help="Rows of a window.", show_default="100")] = None,
    split: Annotated[
        str | None, typer.Option(help="Shares or rows.", show_default="0.7/0.1/0.2; with a test part 0.8/0.2")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Rows between scored windows.", show_default="a quarter of lookback")
    ] = None,
    threshold: Annotated[
        str | None, typer.Option(help="Scores it is taken from: validation or published.", show_default="validation")
    ] = None,
    anomaly_ratio: Annotated[float | None, typer.Option(help="Share of them above it.", show_default="0.005")] = None,
    tolerance: Annotated[int | None, typer.Option(help="Rows that a find may lie beside.", show_default="100")] = None,
) -> None:
    """What `detect-anomalies` reads."""


def language_data(
    source: Annotated[
        str | None,
        typer.Argument(metavar="[DATA]", help="Text, folder, JSON lines or Parquet; none: an embedded book."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="bytes, characters, a tokenizer.json or its folder, or hub:user/name.", show_default="bytes"),
    ] = None,
    context: Annotated[int | None, typer.Option(help="Tokens of a sample.", show_default="256")] = None,
    column: Annotated[str | None, typer.Option(help="Column of Parquet and JSON lines.", show_default="text")] = None,
    encoding: Annotated[str | None, typer.Option(help="Of text files.", show_default="utf-8")] = None,
    split: Annotated[
        str | None, typer.Option(help="Shares, of documents if there are enough.", show_default="0.9/0.05/0.05")
    ] = None,
    split_seed: Annotated[int | None, typer.Option(help="Draws which documents.", show_default="0")] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens that a scored window scores.", show_default="all of it")
    ] = None,
    eval_tokens: Annotated[
        int | None, typer.Option(help="Most validation tokens to score.", show_default="65536")
    ] = None,
    test_tokens: Annotated[int | None, typer.Option(help="Most test tokens to score.", show_default="1048576")] = None,
) -> None:
    """What `language` reads."""


def contestants(
    systems: Annotated[
        str | None, typer.Option(help="Names, 'all', or module:Class, by commas.", show_default="a shortlist")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Trials per system.", show_default="2, with a preset 1")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print trials and predicted time, and stop.")] = False,
) -> None:
    """Who takes part in a comparison."""


def one_system(
    system: Annotated[str | None, typer.Option(help="A name, or module:Class of your own.")] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Trials; best/ is the best on validation.", show_default="1")
    ] = None,
) -> None:
    """What `train` trains."""


def rules(
    steps: Annotated[int | None, typer.Option(help="Budget of each trial, in optimiser steps.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Budget of each trial, in training tokens.")] = None,
    budget: Annotated[str | None, typer.Option(help="Budget of everything together, such as 30m.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="foveate-runs/TASK-DATA")] = None,
    workers: Annotated[int | None, typer.Option(help="Trials at once.", show_default="cores / threads")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of each trial.", show_default="1")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per step.", show_default="32")] = None,
    learning_rates: Annotated[str | None, typer.Option(help="Rates that every system tries, by commas.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Validations without gain before a trial ends; 0: never.", show_default="5")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="'published': train by published recipes where there are any; or 'published:ETTh1'."),
    ] = None,
    memory_limit: Annotated[
        float | None, typer.Option(help="MiB that a trial may hold.", show_default="a share of what is free")
    ] = None,
    refit: Annotated[
        bool | None,
        typer.Option("--refit/--no-refit", help="Train the winner on all data before it ships.", show_default="refit"),
    ] = None,
    track: Annotated[
        str | None, typer.Option(help="Follow it in csv, tensorboard or mlflow, each with :WHERE, by commas.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed trials again.")] = False,
    set: Annotated[list[str] | None, typer.Option("--set", help="SYSTEM.OPTION=VALUE; may be repeated.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with these options.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print leaderboard.json instead of tables.")] = False,
) -> None:
    """Under which rules, and where to."""
