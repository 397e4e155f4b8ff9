"""Splitting, scaling and cutting windows, as the Time-Series-Library does it, extended to several series and gaps.

Of a series of ``n`` rows the first part trains, the second validates, the third tests. A window is ``lookback`` rows
of input followed by ``horizon`` rows of truth; it belongs to the part in which its truth lies as a whole, so the
inputs of the first validation and test windows reach back into the part before. Columns are standardised by mean and
(population) standard deviation of their training rows. Scores are taken on standardised values over all windows.

Beyond that protocol: every (series, column) pair has its own statistics and windows never cross series; a missing
input takes the last measured value before it (before the first one, the training mean), so that no input knows the
future; missing truth is neither trained on nor scored; a backtest places the last ``windows`` origins by hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from ...errors import InvalidType, InvalidValue, invalid
from .read import Series, SeriesTable

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class ForecastInfo:
    """What a model needs to know to be built for a forecast.

    Attributes:
        lookback, horizon: steps in, steps out.
        channels: columns in and out.
        targets: the channels that are trained on and scored.
        season: steps per season, 1 if there is none.
        freq: pandas alias of the step.
        marks: number of calendar features per step (0 for yearly data).
        known, static: number of covariates known for every step of the horizon, and of features of a series.
        quantiles: levels of the forecast, 0.5 among them; none: one number per value.
    """

    lookback: int
    horizon: int
    channels: int
    targets: tuple[int, ...]
    season: int
    freq: str
    marks: int
    known: int = 0
    static: int = 0
    quantiles: tuple[float, ...] = ()
    task: ClassVar[str] = "forecast"

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """From the plain values that ``dataclasses.asdict`` and JSON make of it."""
        lists = {name: tuple(values.get(name, ())) for name in ("targets", "quantiles")}
        return cls(**{**values, **lists})


@dataclass(frozen=True, slots=True)
class SplitRule:
    """How rows are divided; one of ``fractions``, ``counts`` and ``windows`` is given.

    Attributes:
        fractions, counts: shares of the training, validation and test part, of all rows or in rows.
        windows: number of test (and of validation) origins of a backtest.
        stride: steps between the origins of validation and test windows; training windows begin at every row.
    """

    fractions: tuple[float, float, float] = (0.0, 0.0, 0.0)
    counts: tuple[int, int, int] = (0, 0, 0)
    windows: int = 0
    stride: int = 1

    def borders(self, rows: int, horizon: int) -> tuple[int, int, int]:
        """End of the training, validation and test part of a series of ``rows`` rows; negative: it is too short."""
        if self.windows:
            part = horizon + (self.windows - 1) * self.stride
            return rows - 2 * part, rows - part, rows
        if self.counts[0]:
            train, val, test = self.counts
            return train, train + val, train + val + test
        # Rounded as the Time-Series-Library rounds: validation takes what is left over.
        return int(rows * self.fractions[0]), rows - int(rows * self.fractions[2]), rows

    def fits(self, rows: int, lookback: int, horizon: int) -> bool:
        """Whether a series of this length has a window in every part."""
        train, val, end = self.borders(rows, horizon)
        return train >= lookback + horizon and val - train >= horizon and end - val >= horizon and end <= rows

    def rows_needed(self, lookback: int, horizon: int, above: int = 0) -> int | None:
        """The smallest length beyond ``above`` that :meth:`fits`; None if none does (row counts that are too small).

        With fractions, rounding can make a length fit and the next not.
        """
        if self.windows:
            return max(lookback + 3 * horizon + 2 * (self.windows - 1) * self.stride, above + 1)
        if self.counts[0]:
            total = max(sum(self.counts), above + 1)
            return total if self.fits(total, lookback, horizon) else None
        train, val, test = self.fractions
        # Lower bounds: rounding gives the validation part less than two rows beyond its share.
        needs = ((lookback + horizon, train), (horizon - 2, val), (horizon, test))
        rows = max(above + 1, *(math.floor(need / share) for need, share in needs))
        while not self.fits(rows, lookback, horizon):
            rows += 1
        return rows

    def __str__(self) -> str:
        if self.windows:
            return f"{self.windows} test windows, {self.stride} steps apart"
        return "/".join(f"{s:g}" for s in (self.counts if self.counts[0] else self.fractions))


def check_count(option: str, value: object, default: int | None = None) -> int:
    """A positive whole number, or ``default`` for None."""
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InvalidType(f"{option}={value!r} is not possible: a whole number is needed.")
    if value < 1:
        raise invalid(option, value, "a whole number of at least 1 is needed")
    return int(value)


def split_rule(split: str | None, windows: int | None, stride: int | None, horizon: int) -> SplitRule:
    """Read the options that divide the rows.

    Args:
        split: "0.7/0.1/0.2" (fractions, they sum to 1) or "8640/2880/2880" (rows; later ones are not used).
        windows: rolling-origin backtest with this many test origins at the end of the data and as many validation
            origins before them.
        stride: steps between origins; default: ``horizon`` in a backtest, else 1.
    """
    if windows is not None:
        if split is not None:
            raise InvalidValue("split and windows exclude each other: a backtest places its own borders; give one.")
        return SplitRule(windows=check_count("windows", windows), stride=check_count("stride", stride, horizon))
    step = check_count("stride", stride, 1)
    if split is None:
        return SplitRule(fractions=(0.7, 0.1, 0.2), stride=step)
    legal = "three shares train/val/test are needed, as fractions (0.7/0.1/0.2) or rows (8640/2880/2880)"
    if not isinstance(split, str):
        raise InvalidType(f"split={split!r} is not possible: {legal}.")
    parts = split.split("/")
    try:
        train, val, test = (float(part) for part in parts)
    except ValueError as error:
        raise invalid("split", split, legal) from error
    if not all(share > 0 and math.isfinite(share) for share in (train, val, test)):
        raise invalid("split", split, legal)
    if all(part.strip().isdecimal() for part in parts):
        return SplitRule(counts=(int(train), int(val), int(test)), stride=step)
    if abs(train + val + test - 1) > 1e-9:
        raise invalid("split", split, "the three fractions must sum to 1")
    return SplitRule(fractions=(train, val, test), stride=step)


@dataclass(slots=True)
class Prepared:
    """Series as one block of rows, ready to be cut.

    ``R`` rows of all series one below another, ``C`` columns, ``S`` series.

    Attributes:
        columns: names of the ``C`` columns; targets: indices of those that are scored.
        names: ``S`` series names.
        values: float32 ``(R, C)``, standardised, gaps filled from the past.
        observed: bool ``(R, C)``, False where nothing was measured.
        times: datetime64[us] ``(R,)``.
        offsets: int64 ``(S + 1,)``, first row of every series, and ``R``.
        mean, scale: float64 ``(S, C)``, from training rows; rounded to float32, so that what a packaged model carries
            is what it was trained with.
        naive_error: float64 ``(S, C)``: mean absolute error, in the user's units, of repeating the value one season
            before, over training rows; NaN where it is zero or undefined (left out of MASE).
        starts: first input row of every window, int64, by split.
        borders: ``(end of training, of validation, of test)`` of every series, in rows of that series.
        notes: sentences about what was left out.
    """

    columns: tuple[str, ...]
    targets: tuple[int, ...]
    names: tuple[str, ...]
    values: np.ndarray
    observed: np.ndarray
    times: np.ndarray
    offsets: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    naive_error: np.ndarray
    starts: dict[str, np.ndarray]
    borders: list[tuple[int, int, int]]
    notes: list[str]


def prepare_windows(
    table: SeriesTable, targets: Sequence[str] | None, rule: SplitRule, lookback: int, horizon: int, season: int
) -> Prepared:
    """Divide, scale, fill and cut.

    Args:
        targets: names of the columns to be scored; None: all that can be learned.

    Raises:
        InvalidValue: too few rows, or a target that is constant or missing throughout its training rows.
    """
    notes: list[str] = []
    _check_length(table, rule, lookback, horizon)
    kept, lost = [], []
    for s in table.series:
        enough = len(s.times) >= lookback + horizon and rule.borders(len(s.times), horizon)[0] > 1
        (kept if enough else lost).append(s)
    if lost:
        notes.append(
            f"{len(lost)} series are too short for one window and are left out, the first is {lost[0].name!r}."
        )
    borders = [rule.borders(len(s.times), horizon) for s in kept]
    training = [s.values[: b[0]] for s, b in zip(kept, borders, strict=True)]
    mean, scale = (np.stack(parts) for parts in zip(*map(statistics, training), strict=True))
    naive_error = np.stack([_naive_error(rows, season) for rows in training])
    usable = _usable_columns(table, kept, borders, mean, scale, targets, notes)
    columns = tuple(table.columns[i] for i in usable)
    chosen = columns if targets is None else targets
    target_index = tuple(columns.index(name) for name in chosen)
    mean, scale, naive_error = mean[:, usable], scale[:, usable], naive_error[:, usable]
    naive_error[np.isnan(scale)] = np.nan
    mean, scale = np.nan_to_num(mean, nan=0.0), np.nan_to_num(scale, nan=1.0)

    values, observed, times = [], [], []
    for i, (s, b) in enumerate(zip(kept, borders, strict=True)):
        raw = s.values[: b[2], usable]
        scaled = standardise(raw, mean[i], scale[i])
        if np.isinf(scaled).any():
            row, column = np.argwhere(np.isinf(scaled))[0]
            raise InvalidValue(
                f"{table.label!r}, column {columns[column]!r}: {raw[row, column]:g} is too far from the training rows "
                f"to be scaled: correct it, or leave the cell empty."
            )
        values.append(fill_from_past(scaled))
        observed.append(~np.isnan(raw))
        times.append(s.times[: b[2]])
    offsets = np.concatenate([[0], np.cumsum([len(t) for t in times])]).astype(np.int64)
    seen = np.concatenate(observed)
    starts = _window_starts(offsets, borders, rule, lookback, horizon, np.any(seen[:, target_index], axis=1), notes)
    for split in SPLITS:
        if not len(starts[split]):
            raise InvalidValue(
                f"{table.label!r} has no {split} window with a measured target: give more rows, or another split."
            )
    return Prepared(
        columns=columns,
        targets=target_index,
        names=tuple(s.name for s in kept),
        values=np.concatenate(values),
        observed=seen,
        times=np.concatenate(times),
        offsets=offsets,
        mean=mean,
        scale=scale,
        naive_error=naive_error,
        starts=starts,
        borders=borders,
        notes=notes,
    )


def standardise(raw: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Values in the user's units to standardised float32; NaN stays NaN, what is too large for float32 is infinite."""
    with np.errstate(over="ignore"):
        return ((raw - mean) / scale).astype(np.float32)


def fill_from_past(values: np.ndarray, before: np.ndarray | float = 0.0) -> np.ndarray:
    """Replace each NaN of ``(rows, columns)`` by the last value above it; by ``before`` if there is none."""
    known = ~np.isnan(values)
    if known.all():
        return values
    last = np.maximum.accumulate(np.where(known, np.arange(len(values))[:, None], 0), axis=0)
    filled = np.take_along_axis(values, last, axis=0)
    return np.where(np.isnan(filled), np.asarray(before, dtype=values.dtype), filled)


def statistics(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population standard deviation of the columns of ``(rows, columns)``, rounded to float32.

    The mean is NaN where there is no value, the deviation where it is zero.
    """
    known = ~np.isnan(rows)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        mean = np.where(known, rows, 0).sum(axis=0) / known.sum(axis=0)
        scale = np.sqrt(np.where(known, (rows - mean) ** 2, 0).sum(axis=0) / known.sum(axis=0))
        mean, scale = (part.astype(np.float32).astype(np.float64) for part in (mean, scale))
    low = np.where(known, rows, np.inf).min(axis=0, initial=np.inf)
    high = np.where(known, rows, -np.inf).max(axis=0, initial=-np.inf)
    return mean, np.where((low < high) & (scale > 0), scale, np.nan)  # rounding makes constants vary a little


def _naive_error(rows: np.ndarray, season: int) -> np.ndarray:
    """Mean absolute change over one season, per column; NaN where it is zero (to rounding) or undefined."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        change = np.abs(rows[season:] - rows[:-season])
        known = ~np.isnan(change)
        error = np.where(known, change, 0).sum(axis=0) / known.sum(axis=0)
        largest = np.where(np.isnan(rows), 0, np.abs(rows)).max(axis=0)
        return np.where(error > 1e-12 * largest, error, np.nan)


def _check_length(table: SeriesTable, rule: SplitRule, lookback: int, horizon: int) -> None:
    longest = max(len(s.times) for s in table.series)
    if rule.fits(longest, lookback, horizon):
        return
    needed = rule.rows_needed(lookback, horizon, above=longest)
    have = f"{longest} rows" if table.id is None else f"at most {longest} rows per series"
    if needed is None:
        raise InvalidValue(
            f"split={str(rule)!r} is not possible with lookback={lookback} and horizon={horizon}: the training part "
            f"needs at least {lookback + horizon} rows, the others {horizon} each."
        )
    with_rule = str(rule) if rule.windows else f"the split {rule}"
    raise InvalidValue(
        f"{table.label!r} is too short: it has {have}, but lookback={lookback} and horizon={horizon} with "
        f"{with_rule} need {needed}: give more rows, or a smaller lookback or horizon."
    )


def _usable_columns(
    table: SeriesTable,
    kept: Sequence[Series],
    borders: Sequence[tuple[int, int, int]],
    mean: np.ndarray,
    scale: np.ndarray,
    targets: Sequence[str] | None,
    notes: list[str],
) -> list[int]:
    """Indices of the columns that vary in the training rows of at least one series."""
    usable, reasons = [], {}
    for i, name in enumerate(table.columns):
        if np.isinf(mean[:, i]).any() or np.isinf(scale[:, i]).any():
            raise InvalidValue(f"{table.label!r}, column {name!r}: its values are too large to be scaled; rescale it.")
        if (scale[:, i] > 0).any():
            usable.append(i)
            continue
        state = "has no value" if np.isnan(mean[:, i]).all() else "is constant"
        whole = all(np.isnan(s.values[:, i]).all() for s in kept)
        state = "has no value at all" if whole else f"{state} in the training rows"
        reasons[name] = state
    for name, state in reasons.items():
        if (targets is not None and name in targets) or not usable:
            last = f" (the first {borders[0][0]})" if len(kept) == 1 and "training" in state else ""
            raise InvalidValue(
                f"{table.label!r}, column {name!r} {state}{last}: it cannot be scaled or learned; choose other targets."
            )
        notes.append(f"Column {name!r} {state} and is left out.")
    return usable


def _window_starts(
    offsets: np.ndarray,
    borders: Sequence[tuple[int, int, int]],
    rule: SplitRule,
    lookback: int,
    horizon: int,
    scored: np.ndarray,
    notes: list[str],
) -> dict[str, np.ndarray]:
    """First input row of all windows whose truth lies in one part and is not missing as a whole."""
    total = np.concatenate([[0], np.cumsum(scored)])
    starts: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    empty = 0
    for first, (train, val, end) in zip(offsets, borders, strict=False):
        for split, low, high, step in (
            ("train", 0, train, 1),
            ("val", train, val, rule.stride),
            ("test", val, end, rule.stride),
        ):
            origin = np.arange(low, high - horizon + 1, step, dtype=np.int64)
            origin = first + origin[origin >= lookback]
            some = total[origin + horizon] > total[origin]
            empty += int((~some).sum())
            starts[split].append(origin[some] - lookback)
    if empty:
        notes.append(f"{empty} windows have no measured target in their horizon and are left out.")
    return {split: np.concatenate(parts) for split, parts in starts.items()}
