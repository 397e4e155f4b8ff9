"""Files that survive a kill at any moment.

Two ways of writing are safe against a process or machine that stops in the middle: replacing a whole file atomically
(write a temporary neighbour, flush it to the disk, rename it over the old one, flush the folder), and appending one
line in one call and flushing it. A reader then meets the old file or the new one, and at worst a torn last line, which
it ignores. Tensors are stored as safetensors, everything else as JSON; nothing is ever pickled.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InvalidType, InvalidValue

_METADATA_KEY = "foveate"
_TENSOR_KEY = "__tensor__"
_TUPLE_KEY = "__tuple__"
_ITEMS_KEY = "__items__"


def _flush(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no handle to flush a folder with
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
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
    _replace(path, lambda temporary: temporary.write_bytes(data))


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


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Write tensors and JSON values atomically as one safetensors file.

    Args:
        tensors: of any shapes and dtypes. Tied ones (sharing memory) are written out once each, which safetensors
            itself would refuse.
        metadata: JSON values, read back by :func:`load_tensors`; floats come back bit for bit.
    """
    seen: set[int] = set()
    stored = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        # A view of a larger storage, or a second tensor of the same one, gets memory of its own.
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        stored[name] = tensor
    header = {_METADATA_KEY: json.dumps(dict(metadata or {}))}
    _replace(path, lambda temporary: save_file(stored, temporary, metadata=header))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file that :func:`save_tensors` wrote.

    Raises:
        InvalidValue: absent, damaged, a pickle or anything else that is not safetensors; the message names the file.
    """
    if not path.is_file():
        raise InvalidValue(f"{path} is missing.")
    try:
        # safe_open has no type information
        with cast(Any, safe_open)(path, framework="pt") as file:
            header = file.metadata() or {}
            # Clones: what safetensors maps from the file is aligned to 8 bytes only, and vector code may round
            # differently on memory that is not aligned as torch aligns it.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise InvalidValue(f"{path} is not a safetensors file, or it is damaged ({error}).") from error
    return tensors, json.loads(header.get(_METADATA_KEY, "{}"))


def flatten(value: Any, tensors: dict[str, Tensor], prefix: str) -> Any:
    """Split nested state into JSON values and tensors; :func:`unflatten` joins them again.

    Args:
        value: dicts, lists and tuples of tensors, numbers, strings, booleans and None, such as an optimiser's state.
        tensors: receives every tensor under a name that begins with ``prefix``.

    Returns:
        The same structure as JSON values, tensors replaced by their names; tuples and keys that are not strings are
        marked, for JSON has neither.

    Raises:
        InvalidType: something else is among the values.
    """
    if isinstance(value, Tensor):
        tensors[prefix] = value
        return {_TENSOR_KEY: prefix}
    if isinstance(value, Mapping):
        items = [[k, flatten(v, tensors, f"{prefix}/{k}")] for k, v in value.items()]
        return dict(items) if all(isinstance(k, str) for k, _ in items) else {_ITEMS_KEY: items}
    if isinstance(value, list | tuple):
        values = [flatten(v, tensors, f"{prefix}/{i}") for i, v in enumerate(value)]
        return {_TUPLE_KEY: values} if isinstance(value, tuple) else values
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InvalidType(f"{prefix} is a {type(value).__name__}, which cannot be stored: tensors and plain values can.")


def unflatten(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Join what :func:`flatten` split."""
    if isinstance(value, list):
        return [unflatten(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR_KEY in value:
        return tensors[value[_TENSOR_KEY]]
    if _TUPLE_KEY in value:
        return tuple(unflatten(v, tensors) for v in value[_TUPLE_KEY])
    if _ITEMS_KEY in value:
        return {k: unflatten(v, tensors) for k, v in value[_ITEMS_KEY]}
    return {k: unflatten(v, tensors) for k, v in value.items()}


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
