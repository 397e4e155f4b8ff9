"""From what the user names (a CSV or Parquet file, a DataFrame, nothing) to a raw table, with refusals that say why.

The kind of a file is told by its first bytes, not by its name. Numbers are parsed to the nearest float64, so a value
that was written with ``repr`` comes back bit for bit.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import lzma
import re
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InvalidType, InvalidValue, missing_extra

if TYPE_CHECKING:
    import pandas as pd

#: The series that ships with foveate: one year of hourly weather; see the README beside it.
EMBEDDED = Path(__file__).parent / "embedded" / "weather.csv.gz"

_PACKED = {b"\x1f\x8b": gzip.decompress, b"BZh": bz2.decompress, b"\xfd7zXZ\x00": lzma.decompress}
_SEPARATORS = (",", ";", "\t", "|")


@dataclass(frozen=True, slots=True)
class RawTable:
    """A table as it was read.

    Attributes:
        frame: columns as pandas parsed them, rows numbered from 0.
        label: how messages and records name the source.
        sha256: of the file's bytes, or of a DataFrame's contents.
    """

    frame: pd.DataFrame
    label: str
    sha256: str


def read_source(source: str | Path | pd.DataFrame | None) -> RawTable:
    """Read a CSV file (plain, gzip, bzip2 or xz), a Parquet file, a DataFrame, or the embedded series (None).

    Raises:
        InvalidType: ``source`` is something else.
        InvalidValue: the file is missing, a folder, unreadable, empty, or not a table.
        MissingExtra: Parquet without pyarrow.
    """
    import pandas as pd

    if isinstance(source, pd.DataFrame):
        return _from_frame(source)
    if source is not None and not isinstance(source, str | Path):
        raise InvalidType(
            f"source is a {type(source).__name__}: it must be the path of a CSV or Parquet file, or a DataFrame."
        )
    path = EMBEDDED if source is None else Path(source)
    label = "embedded weather series" if source is None else str(source)
    raw = _read_bytes(path, label)
    frame = _read_parquet(raw, label) if raw[:4] == b"PAR1" else _read_csv(raw, label)
    return RawTable(_checked(frame, label), label, hashlib.sha256(raw).hexdigest())


def _read_bytes(path: Path, label: str) -> bytes:
    if path.is_dir():
        raise InvalidValue(f"{label!r} is a folder: name one CSV or Parquet file in it.")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InvalidValue(f"there is no file {label!r}: check the path.") from None
    except OSError as error:
        raise InvalidValue(f"{label!r} cannot be read ({error.strerror}): check its permissions.") from error
    if not raw.strip():
        raise InvalidValue(f"{label!r} is empty: a header line and rows of numbers are needed.")
    return raw


def _from_frame(source: pd.DataFrame) -> RawTable:
    import pandas as pd

    frame = source.copy(deep=False)
    if isinstance(frame.index, pd.DatetimeIndex | pd.PeriodIndex):
        frame = frame.reset_index()
    frame = _checked(frame.reset_index(drop=True), "the DataFrame")
    digest = hashlib.sha256(repr(list(frame.columns)).encode())
    for _, column in frame.items():
        values = column.to_numpy()
        digest.update(repr(values.tolist()).encode() if values.dtype == object else values.tobytes())
    return RawTable(frame, "the DataFrame", digest.hexdigest())


def _checked(frame: pd.DataFrame, label: str) -> pd.DataFrame:
    """Names as text and unique, at least one row; without the row counter that some writers add."""
    names = [" ".join(str(c).splitlines()).strip() for c in frame.columns]
    frame.columns = names
    repeated = [name for i, name in enumerate(names) if name in names[:i]]
    if repeated:
        raise InvalidValue(f"{label!r} has two columns called {repeated[0]!r}: rename one of them.")
    if not len(frame):
        raise InvalidValue(f"{label!r} has a header but no rows: rows of numbers are needed.")
    first = names[0]
    if first in ("Unnamed: 0", "") and frame[first].dtype.kind in "iu":
        counter = frame[first].to_numpy()
        if counter[0] in (0, 1) and bool((np.diff(counter) == 1).all()):
            frame = frame.drop(columns=first)
    return frame


def _read_parquet(raw: bytes, label: str) -> pd.DataFrame:
    import pandas as pd

    try:
        import pyarrow
    except ImportError:
        raise missing_extra("pyarrow", "series", "reading Parquet") from None
    try:
        frame = pd.read_parquet(io.BytesIO(raw), engine="pyarrow")
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise InvalidValue(f"{label!r} is not a whole Parquet file ({reason}): write it again.") from error
    return frame.reset_index() if isinstance(frame.index, pd.DatetimeIndex | pd.PeriodIndex) else frame


def _read_csv(raw: bytes, label: str) -> pd.DataFrame:
    import pandas as pd

    text = _decode(raw, label)
    sample = text[:65536]
    header_line = sample.lstrip("\n").split("\n", 1)[0]
    separator = max(_SEPARATORS, key=header_line.count)
    header, *first_rows = _first_records(sample, separator, 50)
    if all(is_number(cell) for cell in header):
        raise InvalidValue(
            f"{label!r} has no header: its first line holds only numbers; put the names of the columns there."
        )
    if first_rows and len(first_rows[0]) > len(header):
        raise InvalidValue(
            f"{label!r} is not a table: its header has {len(header)} fields, its first row {len(first_rows[0])}."
        )
    repeated = [name for i, name in enumerate(header) if name.strip() and name in header[:i]]
    if repeated:
        raise InvalidValue(f"{label!r} has two columns called {repeated[0].strip()!r}: rename one of them.")
    cells = [cell for row in first_rows for cell in row]
    comma = separator == ";" and any(re.fullmatch(r"[+-]?\d+,\d+", cell.strip()) for cell in cells)
    # From pandas 3.1 on, numbers are always parsed to the nearest float64 and the option is deprecated.
    version = tuple(int(part) for part in pd.__version__.split(".")[:2])
    exact: dict[str, Any] = {} if version >= (3, 1) else {"float_precision": "round_trip"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(
                io.StringIO(text),
                sep=separator,
                decimal="," if comma else ".",
                index_col=False,
                skipinitialspace=True,
                low_memory=False,
                **exact,
            )
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        found = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", str(error))
        why = f"line {found[2]} has {found[3]} fields, {found[1]} are expected" if found else str(error).rstrip(". \n")
        raise InvalidValue(f"{label!r} is not a table: {why}; repair the file.") from error


def _decode(raw: bytes, label: str) -> str:
    try:
        for magic, unpack in _PACKED.items():
            if raw.startswith(magic):
                raw = unpack(raw)
                break
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InvalidValue(f"{label!r} is a broken compressed file ({error}): compress it again.") from error
    if raw.startswith(b"PK\x03\x04") or b"\x00" in raw[:65536]:
        raise InvalidValue(f"{label!r} is neither text nor Parquet: save the table as CSV (UTF-8) or Parquet.")
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InvalidValue(f"{label!r} is not UTF-8 text (line {line}): save it as UTF-8.") from error
    if not text.strip():
        raise InvalidValue(f"{label!r} is empty: a header line and rows of numbers are needed.")
    return text


def _first_records(sample: str, separator: str, count: int) -> list[list[str]]:
    rows = csv.reader(io.StringIO(sample), delimiter=separator, skipinitialspace=True)
    records: list[list[str]] = []
    for row in rows:
        if row:
            records.append(row)
        if len(records) == count:
            break
    return records


def is_number(cell: str) -> bool:
    """Whether a cell of text reads as a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def read_text(source: str | Path) -> tuple[str, str, str]:
    """The text of a file (plain, gzip, bzip2 or xz; UTF-8), its label and the SHA-256 of its bytes.

    Raises:
        InvalidValue: the file is missing, a folder, unreadable, empty or not text.
    """
    label = str(source)
    raw = _read_bytes(Path(source), label)
    return _decode(raw, label), label, hashlib.sha256(raw).hexdigest()
