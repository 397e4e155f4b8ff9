"""Tensors and nested state in files that survive a kill at any moment (:mod:`foveate.files`).

Tensors are stored as safetensors, everything else as JSON; nothing is ever pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InvalidType, InvalidValue
from ..files import replace

_METADATA_KEY = "foveate"
_TENSOR_KEY = "__tensor__"
_TUPLE_KEY = "__tuple__"
_ITEMS_KEY = "__items__"


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
    replace(path, lambda temporary: save_file(stored, temporary, metadata=header))


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
