"""A CSV file of paths and classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InvalidValue, unknown_name
from .folders import PARTS, of_files
from .pictures import OPEN, Pictures

if TYPE_CHECKING:
    import pandas as pd

#: Column names that are taken for what they say when no option names the column, in this order.
USUAL = {
    "path": ("path", "file", "filename", "image", "image_path", "filepath", "file_name"),
    "label": ("label", "class", "target", "category", "y"),
    "part": ("split", "part", "subset"),
}


def read_table(path: Path, columns: Mapping[str, str | None], labelled: bool, skip_bad: bool) -> Pictures:
    """Read paths (from the folder of the file, unless they begin at the root), classes, parts and groups.

    Raises:
        UnknownName, InvalidValue: no such column, an empty cell, a file that does not exist, an unknown part; the
            message names the row.
    """
    import pandas as pd

    label = str(path)
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, UnicodeDecodeError, pd.errors.ParserError, OSError) as error:
        first = (str(error).strip().splitlines() or ["no text"])[0]
        raise InvalidValue(f"{label!r} is neither images nor a CSV file of paths and classes ({first}).") from error
    roles = {role: _role(frame, role, columns.get(role), label) for role in ("path", "label", "part", "group")}
    for role in ("path", "label") if labelled else ("path",):
        if roles[role] is None:
            raise InvalidValue(
                f"{label!r} has no column called {' or '.join(USUAL[role][:2])}: name the column of "
                f"{'image files' if role == 'path' else 'classes'} with {role}= (--{role})."
            )
    if not len(frame):
        raise InvalidValue(f"{label!r} names no images.")
    cells = {role: frame[name].str.strip().tolist() for role, name in roles.items() if name is not None}
    wanted = ("path", "label", "part", "group") if labelled else ("path",)
    for role in wanted:
        for row, cell in enumerate(cells.get(role, ()), start=2):
            if not cell:
                raise InvalidValue(f"{label!r}, line {row}: the column {roles[role]!r} is empty: fill it.")
    files = [path.parent / cell for cell in cells["path"]]
    seen: dict[Path, int] = {}
    for row, file in enumerate(files, start=2):
        if not file.is_file() and not skip_bad:
            raise InvalidValue(
                f"{label!r}, line {row}: {cells['path'][row - 2]!r} is no file (paths are told from the CSV file's "
                f"folder)."
            )
        if seen.setdefault(file, row) != row:
            raise InvalidValue(f"{label!r}, line {row}: {cells['path'][row - 2]!r} stands in line {seen[file]} too.")
    parts = [_part(cell, row, label) for row, cell in enumerate(cells.get("part", ()), start=2)] if labelled else []
    return of_files(
        label,
        path.parent,
        files,
        cells["label"] if labelled else None,
        parts or [OPEN] * len(files),
        skip_bad,
        0,
        cells.get("group") if labelled else None,
    )


def _role(frame: pd.DataFrame, role: str, name: str | None, label: str) -> str | None:
    if name is not None:
        if name not in frame:
            raise unknown_name(f"{role} column", name, frame.columns, f"The file is {label!r}.")
        return name
    lowered = {str(c).lower(): str(c) for c in frame.columns}
    return next((lowered[name] for name in USUAL.get(role, ()) if name in lowered), None)


def _part(cell: str, row: int, label: str) -> int:
    if cell.lower() not in PARTS:
        raise InvalidValue(f"{label!r}, line {row}: the part {cell!r} is unknown: train, val or test is needed.")
    return PARTS[cell.lower()]
