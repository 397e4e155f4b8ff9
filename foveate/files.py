"""Files that survive a kill at any moment.

Two ways of writing are safe against a process or machine that stops in the middle: replacing a whole file atomically
(write a temporary neighbour, flush it to the disk, rename it over the old one, flush the folder), and appending one
line in one call and flushing it. A reader then meets the old file or the new one, and at worst a torn last line, which
it ignores.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InvalidValue


def _flush(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no handle to flush a folder with
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Replace a file atomically by what ``write`` puts into the neighbour that it is given."""
    # The process id keeps two processes from writing the same temporary file; a left-over one is harmless.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush(path.parent)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace ``path`` by ``content``: a reader, or a restart after a kill, finds the old file or the new one."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    replace(path, lambda temporary: temporary.write_bytes(data))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinities, which JSON has not, are refused with ``ValueError``."""
    atomic_write(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InvalidValue: it cannot be read or is not JSON; the message names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidValue(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # UnicodeDecodeError included
        raise InvalidValue(f"{path} is damaged: it is not JSON ({error}).") from error


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON line and flush it: when this returns, the line is on the disk."""
    line = json.dumps(dict(record), allow_nan=False) + "\n"
    with path.open("ab") as file:
        file.write(line.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def held(lock: Path, what: Path, kind: str) -> Iterator[None]:
    """Keep other processes out of a file or folder.

    Args:
        lock: the file that says so; its folder is made.
        what: that is held.
        kind: what else could be chosen with --out, in a word.

    Raises:
        InvalidValue: it is in use, or cannot be written.
    """
    from filelock import FileLock, Timeout  # reading files needs none

    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        holder = FileLock(lock)
        holder.acquire(timeout=0)
    except Timeout:
        raise InvalidValue(
            f"{what} is in use by another foveate process: wait for it, or choose another {kind} with --out."
        ) from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InvalidValue(f"{what} cannot be written ({reason}): choose another {kind} with --out.") from error
    try:
        yield
    finally:
        holder.release()


def read_jsonl(path: Path, *, repair: bool = False) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; an absent file has none.

    A last line without its line end is the mark of a kill during :func:`append_line`: it is ignored, and with
    ``repair`` cut off, so that the next line does not continue it.

    Raises:
        InvalidValue: another line is not JSON.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if repair and len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
            os.fsync(file.fileno())
    records = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise InvalidValue(f"{path} is damaged: line {number} is not JSON ({error}).") from error
    return records


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file of JSON lines atomically."""
    atomic_write(path, "".join(json.dumps(dict(r), allow_nan=False) + "\n" for r in records))


def plain(value: Any) -> Any:
    """The same as JSON can hold it: tensors and arrays become lists, NaN and infinities None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)
