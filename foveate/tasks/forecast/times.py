"""Finding and reading the column of time stamps.

Stamps become ``datetime64[us]`` wall-clock times plus one offset from UTC for the whole table (or none): a table whose
rows are written in different zones is refused, because its wall-clock times would not be evenly spaced.
"""

from __future__ import annotations

import datetime
import re
import warnings
from typing import TYPE_CHECKING

import numpy as np

from ...errors import InvalidValue, unknown_name

if TYPE_CHECKING:
    import pandas as pd

#: Names that mark a column as the time column; the last is what an index without a name becomes.
TIME_NAMES = ("time", "date", "datetime", "date_time", "timestamp", "time_stamp", "ds", "year", "epoch", "unnamed: 0")

_CLOCK = re.compile(r"\d{1,2}:\d\d")
_ZONE = re.compile(r"\d[T ]\d\d.*?\s*(Z|UTC|GMT|[+-]\d\d(?::?\d\d)?)$")
#: Whole numbers read as time stamps: lowest, highest, unit ("%..." is a date format).
_NUMBERS = (
    (1000, 2999, "%Y"),
    (10_000_101, 29_991_231, "%Y%m%d"),
    (10**8, 10**11, "s"),
    (10**11, 10**14, "ms"),
    (10**14, 10**17, "us"),
    (10**17, 10**19, "ns"),
)


def find_time_column(frame: pd.DataFrame, label: str) -> str:
    """The name of the column of time stamps: the only one that holds stamps, or the only one named like one.

    Raises:
        InvalidValue: there is none, or several; the message says to use ``time=``.
    """
    from pandas.api.types import is_datetime64_any_dtype, is_integer_dtype

    columns = {str(name): column for name, column in frame.items()}
    stamps = [c for c, column in columns.items() if is_datetime64_any_dtype(column.dtype) or _looks_like_times(column)]
    if not stamps:  # whole numbers are times only in a column that is called so
        whole = {c: v for c, v in columns.items() if c.lower() in TIME_NAMES and is_integer_dtype(v.dtype)}
        stamps = [c for c, column in whole.items() if _number_unit(column)]
    if not stamps:
        shown = ", ".join(repr(c) for c in frame.columns[:8]) + (", ..." if frame.shape[1] > 8 else "")
        raise InvalidValue(f"{label!r} has no column of time stamps among {shown}: name it with time=.")
    named = [c for c in stamps if c.lower() in TIME_NAMES]
    for candidates in (stamps, named):
        if len(candidates) == 1:
            return candidates[0]
    several = ", ".join(repr(c) for c in stamps)
    raise InvalidValue(f"{label!r} has several columns of time stamps ({several}): choose one with time=.")


def read_times(frame: pd.DataFrame, name: str, label: str) -> tuple[np.ndarray, int | None]:
    """Time stamps of the column ``name`` as they stand in the file, in file order.

    Returns:
        ``(rows,)`` datetime64[us] wall-clock times, and their offset from UTC in minutes (None: not given). Times of
        a named zone with summer time are converted to UTC.

    Raises:
        UnknownName: no such column.
        InvalidValue: a stamp is missing or cannot be read, day and month are ambiguous, or time zones are mixed.
    """
    import pandas as pd
    from pandas.api.types import is_datetime64_any_dtype, is_integer_dtype

    if name not in frame:
        raise unknown_name("time column", name, frame.columns, f"The file is {label!r}.")
    column = dict(frame.items())[name]
    missing = column.isna().to_numpy()
    if missing.any():
        raise InvalidValue(
            f"{label!r}, column {name!r}: row {int(missing.argmax()) + 1} has no time stamp: "
            f"give every row one, or remove the row."
        )
    if isinstance(column.dtype, pd.PeriodDtype):
        parsed = column.dt.to_timestamp()
    elif is_datetime64_any_dtype(column.dtype):
        parsed = column
    elif is_integer_dtype(column.dtype):
        parsed = _parse_numbers(column, name, label)
    else:
        parsed = _parse_text(column.astype(str).str.strip(), name, label)
    zone = parsed.dt.tz
    if zone is None:
        offset = None
    elif isinstance(zone, datetime.timezone):
        offset = round(zone.utcoffset(None).total_seconds() / 60)
    else:
        parsed, offset = parsed.dt.tz_convert("UTC"), 0
    wall = parsed.dt.tz_localize(None) if zone is not None else parsed
    return wall.to_numpy().astype("datetime64[us]"), offset


def stamp_texts(times: np.ndarray, zone: int | None) -> list[str]:
    """ISO 8601 texts of ``datetime64[us]`` times, as short as they can all be, with the offset from UTC if known."""
    ticks = times.astype("datetime64[us]").astype(np.int64)
    if zone is None and not (ticks % 86_400_000_000).any():
        return np.datetime_as_string(times, unit="D").tolist()
    texts = np.datetime_as_string(times, unit="us" if (ticks % 1_000_000).any() else "s").tolist()
    if zone is None:
        return texts
    tail = "Z" if zone == 0 else f"{'-' if zone < 0 else '+'}{abs(zone) // 60:02d}:{abs(zone) % 60:02d}"
    return [text + tail for text in texts]


def _unreadable(label: str, name: str, row: int, value: object) -> InvalidValue:
    return InvalidValue(
        f"{label!r}, column {name!r}: row {row + 1} holds {str(value)!r:.40}, which is not a time stamp: "
        f"write times like 2024-01-31 13:00."
    )


def _looks_like_times(column: pd.Series) -> bool:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    if is_numeric_dtype(column.dtype) or is_bool_dtype(column.dtype):
        return False
    sample = column.dropna().iloc[:20].astype(str).str.strip()
    # Half of them: a bad stamp among good ones is then named, instead of the column being passed over.
    return any(2 * r.notna().sum() >= len(sample) for r in _readings(sample, utc=True)) if len(sample) else False


def _number_unit(column: pd.Series) -> str | None:
    low, high = column.min(), column.max()
    return next((unit for lowest, highest, unit in _NUMBERS if lowest <= low and high <= highest), None)


def _parse_numbers(column: pd.Series, name: str, label: str) -> pd.Series:
    import pandas as pd

    unit = _number_unit(column)
    if unit is None:
        raise _unreadable(label, name, 0, column.iloc[0])
    if not unit.startswith("%"):
        return pd.to_datetime(column, unit=unit)
    parsed = pd.to_datetime(column.astype(str), format=unit, errors="coerce")
    bad = parsed.isna().to_numpy()
    if bad.any():
        raise _unreadable(label, name, int(bad.argmax()), column.iloc[int(bad.argmax())])
    return parsed


def _readings(texts: pd.Series, utc: bool = False) -> list[pd.Series]:
    """The ways to read a column of texts: ISO 8601, or the first row's format with the month or the day first.

    Rows that a reading does not fit are NaT in it. ``utc`` lets rows be of different zones.
    """
    import pandas as pd
    from pandas.tseries.api import guess_datetime_format

    if texts.str.match(_CLOCK).all():  # times of day without a date
        return []
    iso = pd.to_datetime(texts, format="ISO8601", errors="coerce", utc=utc)
    if not iso.isna().any():
        return [iso]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a format has the day first
        guessed = {guess_datetime_format(texts.iloc[0], dayfirst=dayfirst) for dayfirst in (False, True)}
    formats = sorted(f for f in guessed if f is not None)
    return [iso, *(pd.to_datetime(texts, format=f, errors="coerce", utc=utc) for f in formats)]


def _parse_text(texts: pd.Series, name: str, label: str) -> pd.Series:
    zones = texts.str.extract(_ZONE)[0].fillna("none").replace({"UTC": "Z", "GMT": "Z", "+00:00": "Z", "+0000": "Z"})
    other = (zones != zones.iloc[0]).to_numpy()
    if other.any():
        row = int(other.argmax())
        raise InvalidValue(
            f"{label!r}, column {name!r}: row 1 ({texts.iloc[0]!r}) and row {row + 1} ({texts.iloc[row]!r}) are in "
            f"different time zones: write all times in one, such as UTC."
        )
    readings = _readings(texts)
    if not readings:
        raise _unreadable(label, name, 0, texts.iloc[0])
    whole = [r for r in readings if not r.isna().any()]
    if not whole:
        best = min(readings, key=lambda r: int(r.isna().sum()))
        row = int(best.isna().to_numpy().argmax())
        raise _unreadable(label, name, row, texts.iloc[row])
    if len(whole) == 2 and not whole[0].equals(whole[1]):
        rising = [r for r in whole if r.is_monotonic_increasing]
        if len(rising) != 1:
            raise InvalidValue(
                f"{label!r}, column {name!r}: {texts.iloc[0]} can be month/day or day/month: "
                f"write dates as year-month-day."
            )
        return rising[0]
    return whole[0]
