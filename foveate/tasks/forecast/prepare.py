"""From the user's table and options to what a forecast task holds: what it knows, tensors, names, and facts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...errors import InvalidValue
from .covariates import (
    check_roles,
    column_names,
    encode_static,
    prepare_known,
    static_codes,
    take_known,
    take_static,
)
from .facts import facts_asked_for, facts_on_record
from .features import time_features
from .frequency import horizon_of
from .protocol import ForecastInfo, Prepared, check_count, prepare_windows, split_rule
from .read import SeriesTable, clean
from .scores import read_levels
from .season import season_doubt, season_steps
from .source import read_source

if TYPE_CHECKING:
    import pandas as pd

Whole = tuple[ForecastInfo, dict[str, Tensor], dict[str, Any], dict[str, Any]]


def prepare_series(
    source: str | Path | pd.DataFrame | None,
    *,
    horizon: int | None,
    lookback: int | None,
    target: str | Sequence[str] | None,
    time: str | None,
    id: str | None,
    freq: str | None,
    season: int | None,
    split: str | None,
    windows: int | None,
    stride: int | None,
    known: str | Sequence[str] | None,
    static: str | Sequence[str] | None,
    quantiles: str | Sequence[float] | None,
) -> Whole:
    """The arguments of ``ForecastTask``, from those of :meth:`~foveate.tasks.forecast.task.ForecastTask.prepare`."""
    if horizon is not None:
        check_count("horizon", horizon)
    if lookback is not None:
        check_count("lookback", lookback)
    levels = read_levels(quantiles)
    raw = read_source(source)
    targets = None if target is None else column_names("target", target, raw)
    names_ahead = [] if known is None else column_names("known", known, raw)
    names_fixed = [] if static is None else column_names("static", static, raw)
    used = {"time": [time] if time else [], "id": [id] if id else []}
    check_roles(raw.label, {**used, "target": targets or [], "known": names_ahead, "static": names_fixed})
    if names_fixed and id is None:
        raise InvalidValue("static tells series apart, and there is one: name the column that holds their names, id=.")
    raw, of_series = take_static(raw, id, names_fixed) if names_fixed else (raw, {})
    table = clean(raw, time=time, id=id, freq=freq, required=[*(targets or ()), *names_ahead])
    table, ahead = take_known(table, names_ahead, targets) if names_ahead else (table, {})
    usual = horizon_of(table.freq)
    steps, past = check_count("horizon", horizon, usual), check_count("lookback", lookback, 4 * usual)
    rule = split_rule(split, windows, stride, steps)
    period, season_notes = season_steps(season, table, rule, past, steps)
    made = prepare_windows(table, targets, rule, past, steps, period)
    arrays = _arrays(made, table)
    codes = static_codes(of_series, names_fixed, made.names, table.label)
    known_notes: list[str] = []
    if names_ahead:
        more, known_notes = prepare_known(made, ahead, names_ahead, table.label)
        arrays |= more
    if codes:
        arrays["static"] = encode_static(codes, of_series, made.names, table.label)
    info = ForecastInfo(
        lookback=past,
        horizon=steps,
        channels=len(made.columns),
        targets=made.targets,
        season=period,
        freq=table.freq,
        marks=arrays["marks"].shape[1],
        known=len(names_ahead),
        static=arrays["static"].shape[1] if codes else 0,
        quantiles=levels,
    )
    layout: dict[str, Any] = {
        "columns": list(made.columns),
        "series": list(made.names),
        "time": table.time,
        "id": table.id,
        "zone": table.zone,
        "regular": table.regular,
        "resampled": table.resampled,
    }
    if names_ahead:
        layout["known"] = names_ahead
    if codes:
        layout["static"] = codes
    if season is None:
        season_notes += season_doubt(made, info)
    facts = facts_on_record(table, made, rule, info) | facts_asked_for(info, names_ahead, codes)
    facts["notes"] = [*table.notes, *made.notes, *known_notes, *season_notes]
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    return info, tensors, layout, facts


def _arrays(made: Prepared, table: SeriesTable) -> dict[str, np.ndarray]:
    return {
        "values": made.values,
        "observed": made.observed,
        "marks": time_features(made.times, table.freq),
        "times": made.times.astype(np.int64),
        "offsets": made.offsets,
        "mean": made.mean,
        "scale": made.scale,
        "naive_error": made.naive_error,
        **made.starts,
    }
