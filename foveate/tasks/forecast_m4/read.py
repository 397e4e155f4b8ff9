"""Series in the layout of the M4 competition: one row each, its id, then its values from the oldest on.

Rows differ in length: what is left of a row stays blank. There are no time stamps. ``NAME-train.csv`` has a neighbour
``NAME-test.csv`` with the values that follow, in the same layout.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ...errors import InvalidType, InvalidValue, unknown_name
from ..forecast.source import is_number, read_source, read_text

if TYPE_CHECKING:
    import pandas as pd

_BLANK = {"", "na", "nan"}
_SEPARATORS = (",", ";", "\t")


@dataclass(frozen=True, slots=True)
class Ragged:
    """Series of different lengths.

    Attributes:
        label, sha256: the source, for messages and records.
        id: name of the id column.
        names: one id per series.
        values: float64 ``(steps,)`` per series, all finite.
    """

    label: str
    sha256: str
    id: str
    names: tuple[str, ...]
    values: tuple[np.ndarray, ...]


def read_ragged(source: str | Path | pd.DataFrame, *, id: str | None = None, usual: str | None = None) -> Ragged:
    """Read a CSV file (comma, semicolon or tab; plain, gzip, bzip2 or xz), a Parquet file or a DataFrame.

    Args:
        id: name of the id column; None: the column called ``usual`` if there is one, else the first.

    Raises:
        InvalidType: ``source`` is something else.
        UnknownName: there is no such id column.
        InvalidValue: not in this layout; the message names file, series and value.
        MissingExtra: Parquet without pyarrow.
    """
    import pandas as pd

    rows: Iterable[Sequence[Any]]
    if isinstance(source, pd.DataFrame) or (isinstance(source, str | Path) and _is_parquet(Path(source))):
        raw = read_source(source)
        label, sha256, header = raw.label, raw.sha256, [str(c) for c in raw.frame.columns]
        rows = raw.frame.itertuples(index=False, name=None)
    elif isinstance(source, str | Path):
        text, label, sha256 = read_text(source)
        head, _, body = text.lstrip("\n").partition("\n")
        separator = max(_SEPARATORS, key=head.count)
        # Most of a file with a few long series is blanks: they go before they become millions of cells.
        body = re.sub(rf'(?:{separator}(?:"")?)+$', "", body, flags=re.MULTILINE)
        header = [cell.strip() for cell in next(_records(head, separator))]
        rows = _records(body, separator)
    else:
        raise InvalidType(
            f"source is a {type(source).__name__}: it must be the path of a CSV or Parquet file, or a DataFrame."
        )
    at = _id_column(header, usual if id is None and usual in header else id, label)
    names, values = [], []
    for line, row in enumerate(rows, start=2):
        if len(row) > len(header):
            raise InvalidValue(
                f"{label!r} is not a table: its header has {len(header)} fields, line {line} {len(row)}."
            )
        name = _text(row[at]) if at < len(row) else ""
        if not name:
            raise InvalidValue(f"{label!r}: line {line} has no id: every series needs one.")
        names.append(name)
        values.append(_numbers([*row[:at], *row[at + 1 :]], f"{label!r}, series {name!r}"))
    if not names:
        raise InvalidValue(f"{label!r} has a header but no series: one row for each is needed.")
    repeated = next((name for name, again in itertools.pairwise(sorted(names)) if name == again), None)
    if repeated is not None:
        raise InvalidValue(f"{label!r} has two series called {repeated!r}: every series is one row.")
    return Ragged(label, sha256, header[at], tuple(names), tuple(values))


def _records(text: str, separator: str) -> Iterator[list[str]]:
    return (row for row in csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True) if row)


def neighbour_of(source: str | Path) -> Path | None:
    """``NAME-test.csv`` beside ``NAME-train.csv``, if it is there."""
    path = Path(source)
    name = re.sub(r"(?i)train(?=\.|$)", lambda found: _like(found[0], "test"), path.name)
    neighbour = path.with_name(name)
    return neighbour if name != path.name and neighbour.is_file() else None


def _like(found: str, word: str) -> str:
    return word.upper() if found.isupper() else word.capitalize() if found[0].isupper() else word


def _is_parquet(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError as error:
        raise InvalidValue(f"{str(path)!r} cannot be read ({error.strerror}): check its permissions.") from error


def _id_column(header: list[str], id: str | None, label: str) -> int:
    if id is not None:
        if id not in header:
            raise unknown_name("id column", id, header, f"The file is {label!r}.")
        return header.index(id)
    cells = [cell for cell in header[1:] if cell.lower() not in _BLANK]
    numbers = [float(cell) for cell in cells if is_number(cell)]
    # Columns may be called 1, 2, 3, ... or 0, 1, 2, ...; any other numbers are values.
    counted = any(numbers == list(range(first, first + len(numbers))) for first in (0, 1))
    if len(numbers) == len(cells) and not counted:
        raise InvalidValue(f"{label!r} has no header: its first line is a series; put the names of the columns there.")
    return 0


def _text(cell: Any) -> str:
    """A cell as text, "" if it is blank."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return str(cell).strip()


def _numbers(cells: Sequence[Any], where: str) -> np.ndarray:
    """The values of a row, without the blanks behind them."""
    end = len(cells)
    while end and _text(cells[end - 1]).lower() in _BLANK:
        end -= 1
    if not end:
        raise InvalidValue(f"{where} has no values: remove it.")
    try:
        values = np.array(cells[:end], dtype=np.float64)
    except ValueError:
        values = np.array([np.nan])
    return values if np.isfinite(values).all() else _refuse([_text(cell) for cell in cells[:end]], where)


def _refuse(cells: Sequence[str], where: str) -> NoReturn:
    """Name the first cell of a row that is blank or no finite number."""
    for number, cell in enumerate(cells, start=1):
        if cell.lower() in _BLANK:
            raise InvalidValue(
                f"{where}: value {number} of {len(cells)} is missing: blanks may stand only behind the last value."
            )
        if not is_number(cell) or not math.isfinite(float(cell)):
            raise InvalidValue(f"{where}: value {number} is {cell!r:.40}, which is not a number: correct it.")
    raise InvalidValue(f"{where} holds a cell that is not a number: write plain decimal numbers.")
