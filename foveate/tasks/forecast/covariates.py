"""Covariates: columns that are known over the horizon too, and what does not change within a series.

*Past* covariates need nothing of this: columns that are no targets are channels of the window. *Known* ones (a
calendar, prices, a weather forecast) are numbers for the rows of the window and of the horizon, standardised by mean
and deviation of the training rows of all series together, so that a value means the same in each. *Static* ones are
numbers, standardised over the series, or categories, one feature for each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InvalidType, InvalidValue, invalid, unknown_name
from .frequency import future_times
from .protocol import Prepared, fill_from_past, standardise, statistics
from .read import Series, SeriesTable
from .source import RawTable
from .times import stamp_texts

if TYPE_CHECKING:
    import pandas as pd

#: How one static column becomes features: ``{"column", "mean", "scale"}`` or ``{"column", "categories"}``.
StaticCode = Mapping[str, Any]
#: Values of the static columns by series and column.
StaticValues = Mapping[str, Mapping[str, Any]]


def column_names(option: str, given: str | Sequence[str], raw: RawTable) -> list[str]:
    """Column names from an option: a name that is no column may be several, separated by commas.

    Raises:
        UnknownName: no such column.
        InvalidType, InvalidValue: not names, or none.
    """
    names: list[str] = []
    for name in [given] if isinstance(given, str) else given:
        if not isinstance(name, str):
            raise InvalidType(f"{option}={name!r} is not possible: the name of a column is needed.")
        names += [name] if name in raw.frame else [part.strip() for part in name.split(",")]
    for name in names:
        if name not in raw.frame:
            what = option if option == "target" else f"{option} column"
            raise unknown_name(what, name, raw.frame.columns, f"The file is {raw.label!r}.")
    if not names:
        raise invalid(option, given, "at least one column is needed")
    return list(dict.fromkeys(names))


def check_roles(label: str, roles: Mapping[str, Sequence[str]]) -> None:
    """Refuse a column that has two of the roles (option to names)."""
    seen: dict[str, str] = {}
    for role, names in roles.items():
        for name in names:
            if name in seen:
                raise InvalidValue(
                    f"{label!r}, column {name!r} cannot be {seen[name]} and {role} at once: take it out of one."
                )
            seen[name] = role


# ----- known over the horizon


@dataclass(frozen=True, slots=True)
class Ahead:
    """The known columns of one series.

    Attributes:
        times: datetime64[us] ``(rows,)``, those after the last measured target too.
        values: float64 ``(rows, known)``, in the user's units, NaN where nothing is.
        end: number of rows up to the last measured target.
    """

    times: np.ndarray
    values: np.ndarray
    end: int


def take_known(
    table: SeriesTable, names: Sequence[str], targets: Sequence[str] | None
) -> tuple[SeriesTable, dict[str, Ahead]]:
    """Divide a table into what is only seen in the past and what is known ahead.

    Args:
        names: the known columns, all in the table.
        targets: columns to be forecast; None: all others.

    Returns:
        The table without the known columns, every series up to its last measured target, and the known columns by
        series.

    Raises:
        InvalidValue: no other column is left.
    """
    others = [i for i, name in enumerate(table.columns) if name not in names]
    if not others:
        raise InvalidValue(f"{table.label!r} has no column left to forecast: known={','.join(names)!r} are all it has.")
    known = [table.columns.index(name) for name in names]
    scored = others if targets is None else [table.columns.index(name) for name in targets]
    series, ahead = [], {}
    for s in table.series:
        measured = np.flatnonzero(~np.isnan(s.values[:, scored]).all(axis=1))
        end = int(measured[-1]) + 1 if len(measured) else 0
        series.append(Series(s.name, s.times[:end], s.values[:end, others]))
        ahead[s.name] = Ahead(s.times, s.values[:, known], end)
    later = sum(len(a.times) - a.end for a in ahead.values())
    notes = table.notes
    if later:
        notes = (*notes, f"{later} rows after the last measured target hold covariates only and are left out.")
    columns = tuple(table.columns[i] for i in others)
    return replace(table, columns=columns, series=tuple(series), notes=notes), ahead


def prepare_known(
    made: Prepared, ahead: Mapping[str, Ahead], names: Sequence[str], label: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Standardise the known columns over the rows of ``made``; missing values take the last one before them.

    Returns:
        ``known`` float32 ``(R, known)`` and its ``known_mean`` and ``known_scale`` float64 ``(known,)``; notes.

    Raises:
        InvalidValue: a column is constant or missing throughout the training rows, or too large.
    """
    rows = [ahead[name].values[:count] for name, count in zip(made.names, np.diff(made.offsets), strict=True)]
    mean, scale = statistics(np.concatenate([r[: b[0]] for r, b in zip(rows, made.borders, strict=True)]))
    notes = []
    for i, name in enumerate(names):
        if not scale[i] > 0:
            state = "has no value" if np.isnan(mean[i]) else "is constant"
            raise InvalidValue(
                f"{label!r}, known column {name!r} {state} in the training rows: nothing can be learned from it; "
                f"take it out of known."
            )
        missing = int(sum(np.isnan(r[:, i]).sum() for r in rows))
        if missing:
            notes.append(f"{missing} values of the known column {name!r} are missing; the last one before is taken.")
    scaled = [fill_from_past(standardise(r, mean, scale)) for r in rows]
    for i, name in enumerate(names):
        if not all(np.isfinite(r[:, i]).all() for r in scaled):
            raise InvalidValue(f"{label!r}, known column {name!r}: its values are too large to be scaled; rescale it.")
    return {"known": np.concatenate(scaled), "known_mean": mean, "known_scale": scale}, notes


def cover_horizon(
    ahead: Ahead, names: Sequence[str], mean: np.ndarray, lookback: int, horizon: int, table: SeriesTable, series: str
) -> tuple[np.ndarray, np.ndarray]:
    """The known columns of the last window of a series and of the horizon after it.

    Args:
        mean: ``(known,)``, taken before the first known value of the window; after it, the last value before counts.

    Returns:
        float64 ``(lookback + horizon, known)``, and the time stamps of the horizon.

    Raises:
        InvalidValue: a value of the horizon is missing; the message names column, time and the rows that are needed.
    """
    begin, end = ahead.end, ahead.end + horizon
    later = ahead.values[begin:end]
    there = ~np.isnan(later)
    # Per column: how many rows from the origin on hold a value without a gap.
    covered = np.where(there.all(axis=0), len(later), there.argmin(axis=0)) if len(later) else np.zeros(len(names), int)
    if covered.min() < horizon:
        first = int(covered.argmin())
        at = begin + int(covered[first])
        stamp = ahead.times[at] if at < len(ahead.times) else future_times(ahead.times[-1], 1, table.freq)[0]
        missing, last = stamp_texts(np.array([stamp, ahead.times[begin - 1]]), table.zone)
        where = f"{table.label!r}" if table.id is None else f"{table.label!r}, series {series!r}"
        raise InvalidValue(
            f"{where}, known column {names[first]!r} does not cover the horizon: it has no value at {missing}; "
            f"{horizon} rows after {last}, the last measured target, must hold it."
        )
    past = fill_from_past(ahead.values[:begin], mean)[-lookback:]
    return np.concatenate([past, later]), ahead.times[begin:end]


# ----- static


def take_static(raw: RawTable, id: str | None, names: Sequence[str]) -> tuple[RawTable, dict[str, dict[str, Any]]]:
    """The table without the static columns, and their values by series (text of the id; "" without one) and column.

    Raises:
        InvalidValue: a column is not constant within a series, or has no value in one.
    """
    import pandas as pd

    frame = raw.frame
    key = pd.Series([""] * len(frame)) if id is None else dict(frame.items())[id]
    values: dict[str, dict[str, Any]] = {str(series): {} for series in key.dropna().unique()}
    for name in names:
        column = _plain(dict(frame.items())[name])
        groups = column.groupby(key, sort=False, observed=True)
        for (series, count), first in zip(groups.nunique().items(), groups.first(), strict=True):
            where = f"{raw.label!r}, static column {name!r}: series {str(series)!r}"
            if not count:
                raise InvalidValue(f"{where} has no value: fill it in, or take the column out of static.")
            if count > 1:
                mine = ((key == series) & column.notna()).to_numpy()
                row = int((mine & (column != first).to_numpy()).argmax())
                raise InvalidValue(
                    f"{where} has {first!r} in row {int(mine.argmax()) + 1} and {column.iloc[row]!r} in row {row + 1}: "
                    f"it must be constant within a series; take the column out of static."
                )
            values[str(series)][name] = first
    return replace(raw, frame=frame.drop(columns=list(names))), values


def _plain(column: pd.Series) -> pd.Series:
    """Numbers as float64, anything else as texts; what is missing stays so."""
    from pandas.api.types import is_numeric_dtype

    if is_numeric_dtype(column.dtype):
        return column.astype("float64")
    return column.astype(object).map(lambda value: str(value).strip(), na_action="ignore")


def static_codes(values: StaticValues, names: Sequence[str], series: Sequence[str], label: str) -> list[StaticCode]:
    """How the columns ``names`` become features, decided by the given series.

    Raises:
        InvalidValue: a column is the same in every series, or a number is too large.
    """
    codes: list[StaticCode] = []
    for name in names:
        found = [values[s][name] for s in series]
        if len(set(found)) < 2:
            raise InvalidValue(
                f"{label!r}, static column {name!r} is {found[0]!r} in every series that is used: it tells nothing; "
                f"take it out of static."
            )
        if all(isinstance(v, float) for v in found):
            (mean,), (scale,) = statistics(np.array(found)[:, None])
            if not (np.isfinite(mean) and scale > 0):
                raise InvalidValue(f"{label!r}, static column {name!r}: its values cannot be scaled; rescale it.")
            codes.append({"column": name, "mean": float(mean), "scale": float(scale)})
        else:
            codes.append({"column": name, "categories": sorted({_text(v) for v in found})})
    return codes


def encode_static(codes: Sequence[StaticCode], values: StaticValues, series: Sequence[str], label: str) -> np.ndarray:
    """Features, float32 ``(series, features)``.

    Raises:
        InvalidValue: a category that training did not know, or a text where numbers were.
    """
    columns: list[list[float]] = []
    for code in codes:
        name, found = code["column"], [values[s][code["column"]] for s in series]
        for s, value in zip(series, found, strict=True):
            legal = code.get("categories")
            if legal is not None and _text(value) not in legal:
                raise unknown_name(f"category of {name!r}", _text(value), legal, f"It is series {s!r} of {label!r}.")
            if legal is None and not isinstance(value, float):
                raise InvalidValue(f"{label!r}, static column {name!r}: series {s!r} has {value!r}, not a number.")
        if "categories" in code:
            columns += [[float(_text(v) == category) for v in found] for category in code["categories"]]
        else:
            columns.append([(v - code["mean"]) / code["scale"] for v in found])
    return np.array(columns, dtype=np.float32).T


def _text(value: float | str) -> str:
    """A category; a table in which all happen to be numbers says 2 where another said "2"."""
    return value if isinstance(value, str) else f"{value:g}"
