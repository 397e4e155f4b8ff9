"""From a file to one series with marked or unmarked anomalies: CSV, Parquet, DataFrame, or ``.npz``.

Rows are steps, in order; they need no time stamps and no regular grid. A column of zeros and ones marks anomalies, a
time column must rise, all other columns of numbers are channels.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import InvalidType, InvalidValue, unknown_name
from ..forecast.read import to_numbers
from ..forecast.source import RawTable, read_source
from ..forecast.times import TIME_NAMES, read_times

if TYPE_CHECKING:
    import pandas as pd

#: Column names that are taken for marks of anomalies when no option names the column, in this order.
LABEL_NAMES = ("is_anomaly", "anomaly", "label", "is_outlier", "outlier", "anomaly_label")


@dataclass(frozen=True, slots=True)
class Recording:
    """One series.

    Attributes:
        label, sha256: the source, for messages and records.
        columns: names of the channels.
        values: float64 ``(rows, channels)``, NaN where nothing was measured.
        times: the time column as it stands in the source, ``(rows,)``; None if there is none.
        anomalous: bool ``(rows,)``; None if the source marks nothing.
        time, marks: names of the time column and of the column of marks; None if there is none.
        test: rows that the source itself sets apart for testing.
        notes: sentences about what was left out or is doubtful.
    """

    label: str
    sha256: str
    columns: tuple[str, ...]
    values: np.ndarray
    times: np.ndarray | None
    anomalous: np.ndarray | None
    time: str | None = None
    marks: str | None = None
    test: Recording | None = None
    notes: tuple[str, ...] = ()


def read_recording(
    source: str | Path | pd.DataFrame,
    *,
    label: str | None = None,
    time: str | None = None,
    columns: Sequence[str] | None = None,
    marked: bool = True,
    channels: Sequence[str] | None = None,
    usual_time: str | None = None,
    label_may_lack: bool = False,
) -> Recording:
    """Read a table, or an ``.npz`` file; the first bytes tell the kind of a file, not its name.

    Args:
        source: path of a CSV, Parquet or ``.npz`` file, or a DataFrame.
        label: name of the column that marks anomalies; None: the first that is called so (:data:`LABEL_NAMES`), if any.
        time: name of the time column; None: the first that is called so, if any.
        columns: the channels, in this order; None: all columns of numbers that have no other role.
        marked: False: marks are not looked at.
        channels: the channels of an earlier table, which a table must have; ``columns`` wins.
        usual_time: the time column if a table has it and ``time`` does not say otherwise.
        label_may_lack: a table without the column ``label`` marks nothing.

    Raises:
        UnknownName, InvalidType, InvalidValue: not possible; the message names file, and column and row.
        MissingExtra: Parquet without pyarrow.
    """
    if isinstance(source, str | Path) and Path(source).is_file():
        with _opened(source) as file:
            packed = file.read(4) == b"PK\x03\x04"
        if packed:
            given = [n for n, value in {"label": label, "time": time, "columns": columns}.items() if value is not None]
            if given:
                raise InvalidType(f"{' and '.join(given)} name columns of a table: {str(source)!r} has none.")
            return _from_npz(Path(source).read_bytes(), str(source), marked)
    raw = read_source(source)
    time = usual_time if time is None and usual_time in raw.frame else time
    if label is None:
        label = _called(raw.frame, LABEL_NAMES)
    elif label_may_lack and label not in raw.frame:
        label = None
    return _from_table(raw, label, time, columns or channels, marked)


def _opened(source: str | Path) -> io.BufferedReader:
    try:
        return Path(source).open("rb")
    except OSError as error:
        raise InvalidValue(f"{str(source)!r} cannot be read ({error.strerror}): check its permissions.") from error


def _from_table(
    raw: RawTable, label: str | None, time: str | None, columns: Sequence[str] | None, marked: bool
) -> Recording:
    frame, where = raw.frame, raw.label
    for option, name in (("label", label), ("time", time)):
        if name is not None and name not in frame:
            raise unknown_name(f"{option} column", name, frame.columns, f"The file is {where!r}.")
    time = time or _called(frame, TIME_NAMES)
    if time is not None and time == label:
        raise InvalidValue(f"time and label both name the column {time!r} of {where!r}: they must be two columns.")
    roles = [name for name in (time, label) if name is not None]
    for name in columns or ():
        if name not in frame:
            raise unknown_name("column", name, frame.columns, f"The file is {where!r}.")
        if name in roles:
            raise InvalidValue(f"{name!r} is the time or label column of {where!r}: it cannot be a channel.")
    series = {str(name): column for name, column in frame.items()}
    notes, channels = [], {}
    for name in columns or [c for c in series if c not in roles]:
        numbers = to_numbers(series[name], name, where, must=columns is not None)
        if numbers is None:
            notes.append(f"Column {name!r} holds no numbers and is left out.")
        else:
            channels[name] = numbers
    if not channels:
        raise InvalidValue(f"{where!r} has no column of numbers{_beside(roles)}: a series needs at least one.")
    return Recording(
        label=where,
        sha256=raw.sha256,
        columns=tuple(channels),
        values=np.stack(list(channels.values()), axis=1),
        times=None if time is None else _rising(frame, time, where, notes),
        anomalous=_zeros_and_ones(series[label], label, where) if marked and label is not None else None,
        time=time,
        marks=label,
        notes=tuple(notes),
    )


def _called(frame: pd.DataFrame, names: Sequence[str]) -> str | None:
    lowered = {str(c).lower(): str(c) for c in reversed(list(frame.columns))}
    return next((lowered[name] for name in names if name in lowered), None)


def _beside(roles: Sequence[str]) -> str:
    return f" beside {' and '.join(map(repr, roles))}" if roles else ""


def _rising(frame: pd.DataFrame, name: str, where: str, notes: list[str]) -> np.ndarray:
    """The time column as it stands; refused where it does not rise, noted where its steps differ."""
    column = dict(frame.items())[name]
    if column.dtype.kind in "iuf":
        missing = column.isna().to_numpy()
        if missing.any():
            raise InvalidValue(f"{where!r}, column {name!r}: row {int(missing.argmax()) + 1} is empty: fill it.")
        ticks = column.to_numpy()
    else:
        ticks = read_times(frame, name, where)[0].astype(np.int64)
    steps = np.diff(ticks)
    if (steps <= 0).any():
        row = int((steps <= 0).argmax()) + 1
        raise InvalidValue(
            f"{where!r}, column {name!r}: row {row + 1} ({column.iloc[row]}) does not come after row {row} "
            f"({column.iloc[row - 1]}): sort the rows by time, oldest first, one row per time."
        )
    uneven = int((~np.isclose(steps, np.median(steps), rtol=1e-6)).sum()) if len(steps) else 0
    if uneven:
        notes.append(f"{uneven} steps between rows differ from the usual one; rows are taken as they are.")
    return column.to_numpy()


def _zeros_and_ones(column: pd.Series, name: str, where: str) -> np.ndarray:
    import pandas as pd

    at = f"{where!r}, label column {name!r}"
    missing = column.isna().to_numpy()
    if missing.any():
        raise InvalidValue(f"{at}: row {int(missing.argmax()) + 1} is empty: every row needs 0 (usual) or 1 (anomaly).")
    numbers = pd.Series(pd.to_numeric(column, errors="coerce")).to_numpy(dtype=np.float64, na_value=np.nan)
    bad = ~np.isin(numbers, (0, 1))
    if bad.any():
        row = int(bad.argmax())
        raise InvalidValue(
            f"{at}: row {row + 1} holds {str(column.iloc[row])!r:.40}: 0 (usual) or 1 (anomaly) is needed; rename the "
            f"column if it marks nothing."
        )
    return numbers == 1


def _from_npz(raw: bytes, where: str, marked: bool) -> Recording:
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidValue(f"{where!r} is not a whole .npz file of plain arrays ({error}): write it again.") from error
    if not {"x"} <= set(arrays) <= {"x", "y", "x_test", "y_test"}:
        raise InvalidValue(
            f"{where!r} holds the arrays {', '.join(arrays) or 'none'}: x (rows, channels) is needed; y (rows), x_test "
            f"and y_test may be there."
        )
    sha256 = hashlib.sha256(raw).hexdigest()
    parts = [_part(arrays, suffix, where, sha256, marked) for suffix in ("_test", "") if "x" + suffix in arrays]
    if "y_test" in arrays and len(parts) == 1:
        raise InvalidValue(f"{where!r} holds y_test without x_test: give both.")
    if len(parts) == 1:
        return parts[0]
    test, train = parts
    if test.columns != train.columns:
        raise InvalidValue(f"{where!r}: x and x_test have different numbers of channels.")
    fields = {name: getattr(train, name) for name in ("columns", "values", "times", "anomalous", "marks")}
    return Recording(where, sha256, **fields, test=test)


def _part(arrays: dict[str, np.ndarray], suffix: str, where: str, sha256: str, marked: bool) -> Recording:
    import pandas as pd

    x, name = arrays["x" + suffix], "y" + suffix
    shape = x.shape
    x = x[:, None] if x.ndim == 1 else x
    if x.ndim != 2 or x.dtype.kind not in "fiub" or 0 in x.shape:
        raise InvalidValue(
            f"{where!r}: x{suffix} has shape {shape} and type {x.dtype}: numbers of shape (rows, channels) or (rows,) "
            f"are needed."
        )
    x = x.astype(np.float64)
    if np.isinf(x).any():
        raise InvalidValue(f"{where!r}: x{suffix} holds infinite values: write NaN where nothing was measured.")
    y = arrays.get(name) if marked else None
    if y is not None and y.shape != (len(x),):
        raise InvalidValue(f"{where!r}: {name} has shape {y.shape}: one mark per row, ({len(x)},), is needed.")
    return Recording(
        label=where,
        sha256=sha256,
        columns=tuple(f"channel_{i}" for i in range(x.shape[1])),
        values=x,
        times=None,
        anomalous=None if y is None else _zeros_and_ones(pd.Series(y), name, where),
        marks=name if y is not None else None,
    )
