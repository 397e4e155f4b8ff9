"""Weights that somebody else saved: a safetensors file, a folder with one, or a repo on the Hugging Face hub."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InvalidValue
from .files import CONFIG, PICKLES, WEIGHTS, read_config, read_weights
from .remote import is_remote, local_folder, named

#: What names the files of weights that were saved in pieces.
_INDEX = f"{WEIGHTS}.index.json"


@dataclass(frozen=True, slots=True)
class Weights:
    """A state dict and where it came from.

    Attributes:
        place: as it was asked for.
        folder: where its files are; None for a single file.
        tensors: by the names that they were saved under.
        config: ``config.json`` of a folder that foveate saved; {} for any other.
    """

    place: str
    folder: Path | None
    tensors: dict[str, Tensor]
    config: dict[str, Any]


def find_weights(where: str | Path) -> Weights:
    """Read weights.

    Args:
        where: a safetensors file; a folder with ``model.safetensors`` or another single one; or, if there is nothing of
            this name here, a repo's id on the hub, ``user/name`` or ``hub:user/name``.

    Raises:
        InvalidValue: nothing is there, no weights or several, a pickle, a damaged file; on the hub, no network or no
            permission.
        UnknownName: there is no such repo.
    """
    place = named(where)
    path = local_folder(place) if is_remote(place) else Path(place)
    if path.suffix in PICKLES:
        raise InvalidValue(f"{where} is a pickle, which can run code when opened: only safetensors are read.")
    if path.is_file():
        return Weights(str(where), None, read_weights(path), {})
    if not path.is_dir():
        raise InvalidValue(f"{where} does not exist: give a safetensors file, a folder with one, or user/name.")
    config = read_config(path) if _is_ours(path / CONFIG) else {}
    tensors: dict[str, Tensor] = {}
    for file in _files(path):
        tensors |= read_weights(file)
    return Weights(str(where), path, tensors, config)


def _files(folder: Path) -> list[Path]:
    """The files that together are the weights of a folder."""
    index = folder / _INDEX
    if index.is_file():
        try:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidValue(f"{index} is not an index of weights ({error}): it is damaged.") from error
        return [folder / Path(name).name for name in sorted(set(names))]
    found = sorted(folder.glob("*.safetensors"))
    if folder / WEIGHTS in found or not found:  # without any, reading says what is wrong
        return [folder / WEIGHTS]
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:3])
        raise InvalidValue(f"{folder} holds several files of weights ({names}): name the one that is meant.")
    return found


def _is_ours(file: Path) -> bool:
    """Whether a ``config.json`` is one of foveate's: those of other libraries name no system."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and "system" in found and "format" in found
