"""Reading JSON, JSON lines and folders of them, with the file and place in every complaint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import Any

from ..errors import InvalidValue
from .base import Notes


def read_json(file: Path) -> Any:
    """What a JSON file holds.

    Raises:
        InvalidValue: it is absent, unreadable, cut off or not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InvalidValue(f"{file}: cannot be read ({error.strerror}): give another file.") from error
    except UnicodeDecodeError as error:
        raise InvalidValue(f"{file}: is not text in UTF-8 (byte {error.start}): give a JSON file.") from error
    except json.JSONDecodeError as error:
        ends = error.pos >= len(error.doc.rstrip())
        what = "ends too early, it may be cut off" if ends else f"is not JSON: {error.msg}"
        raise InvalidValue(f"{file}: {what} (line {error.lineno}, column {error.colno}).") from error


def read_lines(file: Path, notes: Notes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a file of JSON lines, each with its line as a place; lines that are not one are noted.

    Raises:
        InvalidValue: the file cannot be read, or no line of it is an object.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # texts may hold other line separators
    except OSError as error:
        raise InvalidValue(f"{file}: cannot be read ({error.strerror}): give another file.") from error
    except UnicodeDecodeError as error:
        raise InvalidValue(f"{file}: is not text in UTF-8 (byte {error.start}): give JSON lines.") from error
    found = False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            notes.add(file, f"line {number}", f"not JSON ({error.msg}), left out")
            continue
        if isinstance(value, dict):
            found = True
            yield f"line {number}", value
        else:
            notes.add(file, f"line {number}", f"not an object but {kind(value)}, left out")
    if not found:
        raise InvalidValue(f"{file}: no line of it is a JSON object: give answers, one object a line.")


def read_files(files: Sequence[Path], notes: Notes) -> Iterator[tuple[Path, list[tuple[str, dict[str, Any]]]]]:
    """Each file and the objects of its lines; one of several that cannot be read is noted and left out.

    Raises:
        InvalidValue: the only file cannot be read.
    """
    for file in files:
        try:
            lines = list(read_lines(file, notes))
        except InvalidValue as error:
            if len(files) == 1:
                raise
            notes.sentences.append(f"{str(error).rstrip('.')}; left out.")
        else:
            yield file, lines


def files_of(path: Path, *endings: str) -> list[Path]:
    """A file itself, the files that a pattern with ``*`` names, or those of a folder with these endings, sorted.

    Folders in a folder are read as well.

    Raises:
        InvalidValue: it does not exist, or the folder has no such file.
    """
    if path.is_file():
        return [path]
    if "*" in str(path) and (named := sorted(Path(name) for name in glob(str(path)) if Path(name).is_file())):
        return named
    if not path.is_dir():
        raise InvalidValue(f"{path}: does not exist: give a file of answers, or a folder of them.")
    found = sorted(file for file in path.rglob("*") if file.suffix in endings and file.is_file())
    if not found:
        raise InvalidValue(f"{path}: has no {' or '.join(endings)} file: give a file of answers, or a folder of them.")
    return found


def taken(entries: list[Any]) -> Iterator[tuple[int, Any]]:
    """Places and entries of a list that is emptied on the way: a large file need not be there twice."""
    for place, entry in enumerate(entries):
        entries[place] = None
        yield place, entry


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names[type(value)]
