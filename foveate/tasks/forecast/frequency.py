"""The step of a series: inferring it, putting rows on its grid, continuing it, and what calendar it follows.

A frequency is a pandas alias ("h", "15min", "D", "B", "W-SUN", "MS", "QS-JAN", "YS-JAN"). A series *is regular* when
all its stamps lie on the grid of its frequency and at least half of that grid is there; the rows that the grid has and
the file has not are missing values. Anything else is irregular: its rows are kept as they are, and the frequency only
says how long a step is in the middle (the median).
"""

from __future__ import annotations

import datetime
import re
from typing import Literal

import numpy as np

from ...errors import InvalidType, InvalidValue, invalid

Unit = Literal["year", "quarter", "month", "week", "business", "fixed"]

DAY = 86_400_000_000  # microseconds, the unit of all ticks here
HOUR, MINUTE, SECOND = DAY // 24, DAY // 1440, 1_000_000

_UNITS: dict[str, Unit] = {"Y": "year", "Q": "quarter", "M": "month", "W": "week"}
#: Steps per season and default horizon of calendar units (horizons of the M4 competition; one year for months).
_CALENDAR: dict[Unit, tuple[int, int]] = {
    "year": (1, 6),
    "quarter": (4, 8),
    "month": (12, 12),
    "week": (52, 13),
    "business": (5, 10),
}
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")


def check_freq(freq: object) -> str:
    """The pandas alias, normalised.

    Raises:
        InvalidType: not text.
        InvalidValue: not a frequency that pandas knows, or not positive.
    """
    from pandas.tseries.frequencies import to_offset

    if not isinstance(freq, str):
        raise InvalidType(f"freq is a {type(freq).__name__}: it must be a pandas frequency such as 'h'.")
    legal = "a pandas frequency is needed, such as '15min', 'h', 'D', 'B', 'W-SUN', 'MS', 'QS' or 'YS'"
    try:
        offset = to_offset(freq)
    except ValueError as error:
        raise invalid("freq", freq, legal) from error
    if offset is None or offset.n < 1 or unit_of(freq)[1] < 1:  # less than a microsecond counts as 0
        raise invalid("freq", freq, legal)
    return offset.freqstr


def unit_of(freq: str) -> tuple[Unit, int]:
    """Calendar unit and count of an alias: ("month", 2) of "2MS"; ("fixed", microseconds) of steps of equal length."""
    import pandas as pd
    from pandas.tseries.frequencies import to_offset

    offset = to_offset(freq)
    count, code = int(offset.n), re.sub(r"^\d+", "", offset.freqstr).split("-")[0]
    if code in ("B", "C"):
        return "business", count
    for letter in _UNITS if code.isupper() and not code.startswith("SM") else ():  # SM: half months
        if letter in code:
            return _UNITS[letter], count
    try:
        length = pd.Timedelta(offset)
    except ValueError as error:
        legal = "steps must be of a fixed length, business days, weeks, months, quarters or years"
        raise invalid("freq", freq, legal) from error
    return "fixed", round(length.total_seconds() * 1e6)


def season_of(freq: str) -> int:
    """Steps per season that the calendar suggests: a day below a day, a week of days, a year above; else 1."""
    unit, count = unit_of(freq)
    if unit != "fixed":
        return max(1, round(_CALENDAR[unit][0] / count))
    if MINUTE <= count < DAY:
        return round(DAY / count)
    return 7 // (count // DAY) if count % DAY == 0 and 7 % (count // DAY) == 0 else 1


def horizon_of(freq: str) -> int:
    """Default number of steps to forecast: 24, and fewer where steps are days or longer."""
    unit, count = unit_of(freq)
    if unit != "fixed":
        return _CALENDAR[unit][1]
    return 14 if count >= DAY else 24


def infer_freq(times: list[np.ndarray]) -> tuple[str, bool]:
    """Frequency of several series, and whether all of them are regular in it.

    Args:
        times: one strictly increasing datetime64[us] array per series, at least one of them with two rows.
    """
    ticks = [t.astype(np.int64) for t in times]
    longest = max(range(len(times)), key=lambda i: len(times[i]))
    for freq in _candidates(times[longest]):
        if all(grid_index(t, freq) is not None for t in times):
            return freq, True
    median = int(np.median(np.concatenate([np.diff(t) for t in ticks])))
    return _alias(max(median, 1)), False


def _candidates(times: np.ndarray) -> list[str]:
    """Aliases worth trying, best first, judged by the steps of one series."""
    steps, counts = np.unique(np.diff(times.astype(np.int64)), return_counts=True)
    usual = int(steps[counts.argmax()])
    month = _MONTHS[times[0].astype("datetime64[M]").astype(np.int64) % 12]
    weekdays = (times.astype("datetime64[D]").astype(np.int64) + 3) % 7  # 1970-01-01 was a Thursday
    if 28 * DAY <= usual <= 31 * DAY:
        return ["MS", "ME", "BMS", "BME", _alias(usual)]
    if 89 * DAY <= usual <= 92 * DAY:
        return [f"Q{edge}-{m}" for edge in "SE" for m in _MONTHS[:3]] + [_alias(usual)]
    if 365 * DAY <= usual <= 366 * DAY:
        return [f"YS-{month}", f"YE-{month}", _alias(usual)]
    if usual == 7 * DAY:
        return [f"W-{_WEEKDAYS[weekdays[0]]}"]
    if usual == DAY and len(times) > 5 and (weekdays < 5).all():
        return ["B", "D"]
    return [_alias(usual)]


def _alias(step: int) -> str:
    """The alias of a fixed step in microseconds."""
    from pandas.tseries.frequencies import to_offset

    if step % DAY == 0:
        return "D" if step == DAY else f"{step // DAY}D"
    return to_offset(datetime.timedelta(microseconds=step)).freqstr


def grid_index(times: np.ndarray, freq: str) -> np.ndarray | None:
    """Place of every stamp on the grid of ``freq`` that begins at the first; None if the series is not regular in it.

    Returns:
        int64 ``(rows,)``, increasing from 0.
    """
    unit, count = unit_of(freq)
    ticks = times.astype(np.int64)
    if unit == "fixed":
        index, rest = np.divmod(ticks - ticks[0], count)
        fits = not rest.any()
    else:
        import pandas as pd

        grid = pd.date_range(times[0], times[-1], freq=freq).to_numpy().astype("datetime64[us]").astype(np.int64)
        index = np.searchsorted(grid, ticks)
        fits = len(grid) > 0 and index[-1] < len(grid) and bool((grid[index] == ticks).all())
    if not fits or index[-1] + 1 > 2 * len(times):
        return None
    return index


def on_grid(times: np.ndarray, values: np.ndarray, freq: str) -> tuple[np.ndarray, np.ndarray]:
    """Stamps and rows on the whole grid of a series that is regular in ``freq``; rows that were not there are NaN."""
    index = grid_index(times, freq)
    if index is None or index[-1] + 1 == len(times):
        return times, values
    rows = int(index[-1]) + 1
    full = np.full((rows, values.shape[1]), np.nan)
    full[index] = values
    return np.concatenate([times[:1], future_times(times[0], rows - 1, freq)]), full


def resample(times: np.ndarray, values: np.ndarray, freq: str, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Means of the measurements of each step of ``freq``; steps without any are NaN.

    Raises:
        InvalidValue: nine steps in ten would be empty.
    """
    import pandas as pd

    unit, count = unit_of(freq)
    span = int((times[-1] - times[0]).astype(np.int64))
    if unit == "fixed" and span // count > 10 * len(times):
        raise InvalidValue(
            f"freq={freq!r} is too fine for {label!r}: {len(times)} rows would be spread over {span // count} steps; "
            f"choose a coarser one."
        )
    binned = pd.DataFrame(values, index=pd.DatetimeIndex(times)).resample(freq).mean()
    return binned.index.to_numpy().astype("datetime64[us]"), binned.to_numpy(dtype=np.float64)


def future_times(last: np.datetime64, steps: int, freq: str) -> np.ndarray:
    """The next ``steps`` stamps after ``last``, datetime64[us] ``(steps,)``."""
    import pandas as pd

    unit, count = unit_of(freq)
    if unit == "fixed":
        return last + np.arange(1, steps + 1) * np.timedelta64(count, "us")
    index = pd.date_range(pd.Timestamp(last), periods=steps + 1, freq=freq).to_numpy().astype("datetime64[us]")
    return index[1:] if index[0] == last else index[:steps]
