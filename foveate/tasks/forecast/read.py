"""From a source to a clean table: numeric columns, one time-ordered series or several, regular where it can be.

Two layouts are read. *Wide*: one row per time, one column per quantity. *Long*: series one below another (or
interleaved), told apart by an id column; each series keeps its own times, and the other columns are its quantities.
Nothing is repaired silently: what is doubtful is refused in one sentence, what is left out or inserted stands in
:attr:`SeriesTable.notes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InvalidValue, unknown_name
from .frequency import check_freq, grid_index, infer_freq, on_grid, resample, unit_of
from .source import RawTable, read_source
from .times import find_time_column, read_times, stamp_texts

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Series:
    """One series.

    Attributes:
        name: its id as text; "" in a wide table.
        times: ``(rows,)`` datetime64[us], strictly increasing, wall-clock.
        values: ``(rows, columns)`` float64, NaN where nothing was measured.
    """

    name: str
    times: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, slots=True)
class SeriesTable:
    """A clean table.

    Attributes:
        label, sha256: the source, see :class:`~foveate.tasks.forecast.source.RawTable`.
        time, id: names of the time and id columns (id: None in a wide table).
        zone: offset of the times from UTC in minutes, None if the source does not say.
        columns: names of the numeric columns.
        series: at least one.
        freq, regular: see :mod:`foveate.tasks.forecast.frequency`.
        resampled: the rows are means over steps of ``freq``, as was asked.
        rows: rows in the source.
        inserted: rows that the grid has and the source has not (all NaN).
        uneven: steps of an irregular series that differ from ``freq``.
        notes: sentences about what was left out or inserted.
    """

    label: str
    sha256: str
    time: str
    id: str | None
    zone: int | None
    columns: tuple[str, ...]
    series: tuple[Series, ...]
    freq: str
    regular: bool
    resampled: bool
    rows: int
    inserted: int
    uneven: int
    notes: tuple[str, ...]


def read_series(source: str | Path | pd.DataFrame | None = None, **options: Any) -> SeriesTable:
    """Read a CSV or Parquet file, a DataFrame, or the embedded series (None), with the options of :func:`clean`."""
    return clean(read_source(source), **options)


def clean(
    raw: RawTable,
    *,
    time: str | None = None,
    id: str | None = None,
    freq: str | None = None,
    required: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    grid: str | None = None,
) -> SeriesTable:
    """Make a clean table of series.

    Args:
        raw: what :func:`~foveate.tasks.forecast.source.read_source` read.
        time: name of the time column; None: the only one that holds time stamps.
        id: name of the column that tells series apart; None: the table holds one series.
        freq: resample to this regular frequency (means of the measurements in each step); None: keep the rows.
        required: columns that must be there and hold numbers.
        columns: read these columns only, in this order; None: all that hold numbers.
        grid: the rows must lie on the grid of this frequency (that of an earlier table); None: infer it.

    Raises:
        UnknownName: ``time``, ``id``, or one of ``required`` or ``columns`` is not in the table.
        InvalidType, InvalidValue: this is not a table of series; the message names file, column and row, and says
            what to do.
    """
    freq = None if freq is None else check_freq(freq)
    frame, label = raw.frame, raw.label
    if id is not None and id not in frame:
        raise unknown_name("id column", id, frame.columns, f"The file is {label!r}.")
    time = find_time_column(frame, label) if time is None else time
    if time == id:
        raise InvalidValue(f"time and id both name the column {time!r}: they must be two columns.")
    stamps, zone = read_times(frame, time, label)
    notes: list[str] = []
    names, values = _numbers(frame, [c for c in (time, id) if c], required, columns, label, notes)
    series = []
    for name, rows in _groups(frame, id, label):
        where = f"{label!r}, column {time!r}" + ("" if id is None else f", series {name!r}")
        _check_order(stamps[rows], rows, zone, where, "" if id else _id_hint(frame, time))
        series.append(Series(name, stamps[rows], values[rows]))
    several = [s.times for s in series if len(s.times) > 1]
    if grid is not None and freq is None:
        inferred, regular = grid, _fits(several, grid, label)
    elif several:
        inferred, regular = infer_freq(several)
    else:
        raise InvalidValue(f"{label!r} has one row{' per series' if id else ''}: a series needs at least two.")
    inserted = uneven = 0
    if freq is not None and not (regular and inferred == freq):
        series = [Series(s.name, *resample(s.times, s.values, freq, label)) for s in series]
        inferred, regular = freq, True
    elif regular:
        rows = sum(len(s.times) for s in series)
        series = [Series(s.name, *on_grid(s.times, s.values, inferred)) for s in series]
        inserted = sum(len(s.times) for s in series) - rows
    else:
        usual = unit_of(inferred)[1]
        uneven = int(sum((np.diff(t.astype(np.int64)) != usual).sum() for t in several))
        notes.append(
            f"The steps are irregular: {uneven} differ from the usual one ({inferred}); rows are taken as they are. "
            f"Give freq to put them on a regular grid."
        )
    if inserted:
        notes.append(f"{inserted} rows are missing from the grid of {inferred!r}; they are read as missing values.")
    return SeriesTable(
        label=label,
        sha256=raw.sha256,
        time=time,
        id=id,
        zone=zone,
        columns=names,
        series=tuple(series),
        freq=inferred,
        regular=regular,
        resampled=freq is not None,
        rows=len(frame),
        inserted=inserted,
        uneven=uneven,
        notes=tuple(notes),
    )


def _numbers(
    frame: pd.DataFrame,
    used: Sequence[str],
    required: Sequence[str],
    columns: Sequence[str] | None,
    label: str,
    notes: list[str],
) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and values, float64 ``(rows, columns)``, of the numeric columns."""
    wanted = list(columns) if columns is not None else [c for c in frame.columns if c not in used]
    for name in (*required, *wanted):
        if name in used:
            raise InvalidValue(f"{name!r} is the time or id column of {label!r}: it cannot be forecast.")
        if name not in frame:
            raise unknown_name("column", name, [c for c in frame.columns if c not in used], f"The file is {label!r}.")
    read: dict[str, np.ndarray] = {}
    series = dict(frame.items())
    for name in wanted:
        numbers = to_numbers(series[name], name, label, must=name in required or columns is not None)
        if numbers is None:
            notes.append(f"Column {name!r} holds no numbers and is left out.")
        else:
            read[name] = numbers
    if not read:
        tried = ", ".join(repr(c) for c in wanted[:8]) or "nothing"
        raise InvalidValue(f"{label!r} has no column of numbers to forecast: beside the time stamps it has {tried}.")
    return tuple(read), np.stack(list(read.values()), axis=1)


def to_numbers(column: pd.Series, name: str, label: str, must: bool) -> np.ndarray | None:
    """The column as float64; None for a column of texts or dates that need not be numbers."""
    import pandas as pd
    from pandas.api.types import is_datetime64_any_dtype, is_timedelta64_dtype

    if is_datetime64_any_dtype(column.dtype) or is_timedelta64_dtype(column.dtype):
        values = np.full(len(column), np.nan)
    else:
        column = column.astype(object) if isinstance(column.dtype, pd.CategoricalDtype) else column
        numbers = pd.Series(pd.to_numeric(column, errors="coerce"))
        values = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
    bad = np.isnan(values) & column.notna().to_numpy()
    if bad.any():
        if not must and bad.sum() > (~np.isnan(values)).sum():
            return None
        row = int(bad.argmax())
        raise InvalidValue(
            f"{label!r}, column {name!r}: row {row + 1} holds {str(column.iloc[row])!r:.40}, which is not a number: "
            f"correct it, or leave the cell empty if nothing was measured."
        )
    if np.isinf(values).any():
        row = int(np.isinf(values).argmax())
        raise InvalidValue(
            f"{label!r}, column {name!r}: row {row + 1} is infinite: "
            f"correct it, or leave the cell empty if nothing was measured."
        )
    return values


def _groups(frame: pd.DataFrame, id: str | None, label: str) -> Iterable[tuple[str, np.ndarray]]:
    """Name and row numbers of every series, in order of first appearance."""
    if id is None:
        return [("", np.arange(len(frame)))]
    missing = frame[id].isna().to_numpy()
    if missing.any():
        raise InvalidValue(
            f"{label!r}, column {id!r}: row {int(missing.argmax()) + 1} has no id: every row needs its series."
        )
    found = frame.groupby(id, sort=False, observed=True).indices
    return sorted(((str(name), rows) for name, rows in found.items()), key=lambda item: item[1][0])


def _check_order(stamps: np.ndarray, rows: np.ndarray, zone: int | None, where: str, hint: str) -> None:
    """Refuse stamps that repeat or run backwards."""
    steps = np.diff(stamps.astype(np.int64))
    if (steps > 0).all():
        return
    order = np.argsort(stamps, kind="stable")
    same = np.flatnonzero(stamps[order][1:] == stamps[order][:-1])
    if len(same):
        at = same[np.argmin(order[same + 1])]  # the repetition that the file has first
        first, again = order[at], order[at + 1]
        raise InvalidValue(
            f"{where}: {stamp_texts(stamps[[first]], zone)[0]} stands in rows {rows[first] + 1} and "
            f"{rows[again] + 1}: keep one row per time{hint}."
        )
    late = int((steps < 0).argmax()) + 1
    stamp, before = stamp_texts(stamps[[late, late - 1]], zone)
    raise InvalidValue(
        f"{where}: row {rows[late] + 1} ({stamp}) is earlier than row {rows[late - 1] + 1} ({before}): "
        f"sort the rows by time, oldest first."
    )


def _id_hint(frame: pd.DataFrame, time: str) -> str:
    texts = [c for c in frame if c != time and frame[c].dtype.kind not in "fiubM"]
    return ", or name the column that tells series apart with id=" + (f" (such as {texts[0]!r})" if texts else "")


def _fits(times: Sequence[np.ndarray], grid: str, label: str) -> bool:
    for stamps in times:
        if grid_index(stamps, grid) is None:
            own, _ = infer_freq([stamps])
            raise InvalidValue(
                f"the steps of {label!r} are {own!r}, not {grid!r} as in the data that the model was trained on."
            )
    return True
