"""From a file to labelled samples: ``.ts``, ``.npz``, long tables (CSV, Parquet, DataFrame), or the embedded days."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from ...errors import InvalidType, InvalidValue, unknown_name
from ..forecast.source import RawTable, read_source
from .ts_format import read_ts

if TYPE_CHECKING:
    import pandas as pd

#: Column names that are taken for what they say when no option names the column, in this order.
USUAL = {
    "id": ("id", "sample", "series", "case", "unique_id"),
    "label": ("label", "class", "target", "y"),
    "time": ("time", "timestamp", "date", "ds", "step", "t"),
}


@dataclass(frozen=True, slots=True)
class Samples:
    """Whole series, each with its class.

    Attributes:
        label, sha256: the source, for messages and records.
        columns: names of the channels.
        names: one text per sample.
        values: float64 ``(steps, channels)`` per sample, NaN where nothing was measured; lengths may differ.
        classes: the class of every sample as text; None if the source has no labels.
        groups: which samples belong together and must not be divided between training and scoring; None: none do.
        test: samples that the source itself sets apart for testing.
        roles: names of the id, label and time columns of a long table; {} for other kinds.
    """

    label: str
    sha256: str
    columns: tuple[str, ...]
    names: tuple[str, ...]
    values: tuple[np.ndarray, ...]
    classes: tuple[str, ...] | None
    groups: tuple[str, ...] | None = None
    test: Samples | None = None
    roles: dict[str, str | None] | None = None


def read_samples(
    source: str | Path | pd.DataFrame,
    *,
    id: str | None = None,
    label: str | None = None,
    time: str | None = None,
    group: str | None = None,
    labelled: bool = True,
    channels: Sequence[str] | None = None,
    usual: Mapping[str, str | None] | None = None,
) -> Samples:
    """Read samples of any of the kinds; the first bytes tell the kind of a file, not its name.

    Args:
        source: path of a ``.ts``, ``.npz``, CSV or Parquet file, or a DataFrame.
        id, label, time, group: columns of a long table: which sample a row belongs to, its class, its time (None where
            no column is called so: rows are in order), and what its sample must stay together with.
        labelled: refuse a source without labels; False: labels and groups of a table are not looked at.
        channels: columns of a table to read, in this order; None: all that have no other role.
        usual: what the columns are called if a table has them and no option says otherwise.

    Raises:
        UnknownName, InvalidType, InvalidValue: not possible; the message names file, and line, row or column.
        MissingExtra: Parquet without pyarrow.
    """
    columns = {"id": id, "label": label, "time": time, "group": group}
    head = b""
    if isinstance(source, str | Path) and Path(source).is_file():
        with _opened(Path(source)) as file:
            head = file.read(65536)
    if head[:4] == b"PK\x03\x04" or _looks_like_ts(head):
        given = [name for name, value in columns.items() if value is not None]
        if given:
            raise InvalidType(f"{' and '.join(given)} name columns of a table: {str(source)!r} has none.")
        raw = Path(source).read_bytes()  # type: ignore[arg-type]
        found = _from_npz(raw, str(source)) if head[:2] == b"PK" else _from_ts(raw, str(source))
    else:
        found = _from_table(read_source(source), columns, labelled, channels, usual or {})
    for part in (found, found.test):
        if labelled and part is not None and part.classes is None:
            raise InvalidValue(f"{found.label!r} has no class labels: every sample needs one.")
        for name, values in zip(part.names, part.values, strict=True) if part is not None else ():
            if not len(values) or np.isnan(values).all():
                raise InvalidValue(f"{found.label!r}: sample {name!r} has no value at all: remove it.")
    return found


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise InvalidValue(f"{str(path)!r} cannot be read ({error.strerror}): check its permissions.") from error


def _looks_like_ts(head: bytes) -> bool:
    lines = (line.strip() for line in head.removeprefix(b"\xef\xbb\xbf").splitlines())
    first = next((line for line in lines if line and not line.startswith(b"#")), b"")
    return first.startswith(b"@")


def _from_ts(raw: bytes, label: str) -> Samples:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InvalidValue(f"{label!r} is not UTF-8 text (line {line}): save it as UTF-8.") from error
    values, classes = read_ts(text, label)
    return _numbered(label, raw, values, classes)


def _numbered(
    label: str,
    raw: bytes,
    values: list[np.ndarray],
    classes: list[str] | None,
    groups: list[str] | None = None,
    test: Samples | None = None,
) -> Samples:
    """Samples of a source that gives names neither to samples (counted from 0) nor to channels."""
    return Samples(
        label=label,
        sha256=hashlib.sha256(raw).hexdigest(),
        columns=tuple(f"channel_{i}" for i in range(values[0].shape[1])),
        names=tuple(map(str, range(len(values)))),
        values=tuple(values),
        classes=None if classes is None else tuple(classes),
        groups=None if groups is None else tuple(groups),
        test=test,
    )


def _from_npz(raw: bytes, label: str) -> Samples:
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidValue(f"{label!r} is not a whole .npz file of plain arrays ({error}): write it again.") from error
    unknown = [name for name in arrays if name not in ("x", "y", "groups", "x_test", "y_test")]
    if unknown or "x" not in arrays:
        raise InvalidValue(
            f"{label!r} holds the arrays {', '.join(arrays) or 'none'}: x (samples, steps, channels) and y (samples) "
            f"are needed; groups, x_test and y_test may be there."
        )
    parts = {}
    for suffix in ("", "_test"):
        if "x" + suffix not in arrays:
            if "y" + suffix in arrays:
                raise InvalidValue(f"{label!r} holds y{suffix} without x{suffix}: give both.")
            continue
        x = arrays["x" + suffix]
        x = x[:, :, None] if x.ndim == 2 else x
        if x.ndim != 3 or x.dtype.kind not in "fiub" or 0 in x.shape:
            raise InvalidValue(
                f"{label!r}: x{suffix} has shape {arrays['x' + suffix].shape} and type {x.dtype}: numbers of shape "
                f"(samples, steps, channels) or (samples, steps) are needed."
            )
        x = x.astype(np.float64)
        if np.isinf(x).any():
            raise InvalidValue(f"{label!r}: x{suffix} holds infinite values: write NaN where nothing was measured.")
        texts = [_texts(arrays, name, len(x), label) for name in ("y" + suffix, "groups" if not suffix else "")]
        parts[suffix] = (list(x), *texts)
    test = parts.get("_test")
    if test is not None and test[0][0].shape[1] != parts[""][0][0].shape[1]:
        raise InvalidValue(f"{label!r}: x and x_test have different numbers of channels.")
    held = None if test is None else _numbered(label, raw, test[0], test[1])
    return _numbered(label, raw, *parts[""], test=held)


def _texts(arrays: dict[str, np.ndarray], name: str, count: int, label: str) -> list[str] | None:
    if name not in arrays:
        return None
    array = arrays[name]
    if array.shape != (count,):
        raise InvalidValue(f"{label!r}: {name} has shape {array.shape}: one entry per sample, ({count},), is needed.")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise InvalidValue(f"{label!r}: {name} of sample {int(np.isnan(array).argmax())} is NaN: give it a value.")
    whole = array.dtype.kind == "f" and bool((array == array.round()).all())
    return [str(v) for v in (array.astype(np.int64) if whole else array).tolist()]


def _from_table(
    raw: RawTable,
    columns: dict[str, str | None],
    labelled: bool,
    wanted: Sequence[str] | None,
    usual: Mapping[str, str | None],
) -> Samples:
    import pandas as pd

    frame, where = raw.frame, raw.label
    roles = {role: _role(frame, role, name, usual.get(role), where) for role, name in columns.items()}
    for role in ("id", "label") if labelled else ("id",):
        if roles[role] is None:
            raise InvalidValue(
                f"{where!r} has no column called {' or '.join(USUAL[role][:2])}: name the column of "
                f"{'samples' if role == 'id' else 'classes'} with {role}= (--{role})."
            )
    used = [name for name in roles.values() if name is not None]
    if len(set(used)) < len(used):
        raise InvalidValue(f"{where!r}: id, label, time and group must be different columns, not {', '.join(used)}.")
    absent = [c for c in wanted or () if c not in frame]
    if absent:
        raise unknown_name("column", absent[0], frame.columns, f"The file is {where!r}.")
    series = dict(frame.items())
    channels = {str(c): series[c] for c in (wanted or series) if c not in used}
    if not channels:
        raise InvalidValue(f"{where!r} has no column of numbers beside {', '.join(map(repr, used))}.")
    if not labelled:
        roles |= {"label": None, "group": None}
    numbers = np.stack([_channel(column, name, where) for name, column in channels.items()], axis=1)
    id_name, label_name, time_name, group_name = (roles[role] for role in ("id", "label", "time", "group"))
    for name in (id_name, label_name, group_name):
        missing = frame[name].isna().to_numpy() if name is not None else np.zeros(1, bool)
        if missing.any():
            raise InvalidValue(f"{where!r}, column {name!r}: row {int(missing.argmax()) + 1} is empty: fill it.")
    found = sorted(frame.groupby(id_name, sort=False, observed=True).indices.items(), key=lambda item: item[1][0])
    names, values, classes, groups = [], [], [], []
    for name, rows in found:
        rows = np.sort(rows)
        at = f"{where!r}, sample {str(name)!r}"
        if time_name is not None:
            stamps = frame[time_name].iloc[rows]
            if not pd.api.types.is_numeric_dtype(stamps.dtype):
                stamps = pd.to_datetime(stamps, errors="coerce", utc=True)
            if stamps.isna().any() or not stamps.is_monotonic_increasing or stamps.duplicated().any():
                raise InvalidValue(f"{at}: the column {time_name!r} must hold times that rise from row to row.")
        names.append(str(name))
        values.append(numbers[rows])
        for told, column, what in ((classes, label_name, "classes"), (groups, group_name, "groups")):
            if column is not None:
                several = frame[column].iloc[rows].unique()
                if len(several) > 1:
                    raise InvalidValue(f"{at} is of several {what} ({several[0]}, {several[1]}): one is needed.")
                told.append(str(several[0]))
    return Samples(
        label=where,
        sha256=raw.sha256,
        columns=tuple(channels),
        names=tuple(names),
        values=tuple(values),
        classes=tuple(classes) if label_name is not None else None,
        groups=tuple(groups) if group_name is not None else None,
        roles={role: roles[role] for role in ("id", "label", "time", "group")},
    )


def _role(frame: pd.DataFrame, role: str, name: str | None, before: str | None, where: str) -> str | None:
    if name is None and before in frame:
        return before
    if name is not None:
        if name not in frame:
            raise unknown_name(f"{role} column", name, frame.columns, f"The file is {where!r}.")
        return name
    lowered = {str(c).lower(): str(c) for c in frame.columns}
    return next((lowered[name] for name in USUAL.get(role, ()) if name in lowered), None)


def _channel(column: pd.Series, name: str, where: str) -> np.ndarray:
    import pandas as pd

    values = pd.Series(pd.to_numeric(column, errors="coerce")).to_numpy(dtype=np.float64, na_value=np.nan)
    bad = (np.isnan(values) & column.notna().to_numpy()) | np.isinf(values)
    if bad.any():
        row = int(bad.argmax())
        raise InvalidValue(
            f"{where!r}, column {name!r}: row {row + 1} holds {str(column.iloc[row])!r:.40}, which is not a number: "
            f"correct it, leave the cell empty if nothing was measured, or drop the column."
        )
    return values
