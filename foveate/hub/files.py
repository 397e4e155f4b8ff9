"""The folder of a saved model: ``model.safetensors``, ``config.json``, and a model card in ``README.md``.

There is one form for every kind of model. The configuration names a registered system and holds plain values; with
"task" and "package" it is a model in its user's units (what ``best/`` of a comparison holds), without them a network
that its constructor's options rebuild. Weights are safetensors: nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from .. import __version__
from ..errors import InvalidValue

FORMAT = 1
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
#: Entries of a configuration that are about the weights that were loaded, and not about others.
_OF_THE_WEIGHTS = ("val", "test", "comparison", "note", "refit", "seed", "learning_rate", "recipe")
_SEAL = re.compile(r"\n<!-- card written by foveate, ([0-9a-f]{16}): [^\n]*-->\n\Z")


def write(folder: str | Path, state: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Write weights and configuration.

    Args:
        folder: made if absent; an earlier model in it is replaced, weights first.
        state: the state dict.
        config: plain values. If it carries the "sha256" of other weights (it was loaded, and the model was changed
            since), what it says of those (scores, seed, recipe) is dropped.

    Returns:
        The configuration as written, with "format", "foveate" and "sha256" of the weights.

    Raises:
        InvalidValue: the folder cannot be written.
    """
    folder = Path(folder)
    weights, text = folder / f"{WEIGHTS}.part", folder / f"{CONFIG}.part"
    # Clones, because tied weights share storage and safetensors refuses that.
    tensors = {k: v.detach().clone().contiguous() for k, v in state.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, weights)
        with weights.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if config.get("sha256", found) != found:
            config = {**{k: v for k, v in config.items() if k not in _OF_THE_WEIGHTS}, "changed": True}
        config = {"format": FORMAT, **config, "foveate": __version__, "sha256": found}
        text.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        shutil.copymode(text, weights)  # safetensors makes files that nobody else can read
        for part in (weights, text):
            os.replace(part, part.with_suffix(""))
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidValue(f"{folder} cannot be written ({reason}): choose another folder.") from error
    return config


def read_config(folder: str | Path) -> dict[str, Any]:
    """The configuration of a saved model.

    Raises:
        InvalidValue: the folder is not a model saved by foveate, or a pickle was given.
    """
    folder = Path(folder)
    if folder.suffix in PICKLES:
        raise InvalidValue(f"{folder} is a pickle, which can run code when opened: only safetensors are read.")
    file = folder / CONFIG
    if not file.is_file():
        raise InvalidValue(f"{folder} is not a trained model: it has no {CONFIG}; give a folder such as OUT/best.")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidValue(f"{file} is not readable as JSON ({error}): the checkpoint is damaged.") from error
    if not isinstance(config, dict):
        raise InvalidValue(f"{file} was not written by foveate: it holds no object.")
    packed = "task" in config or "package" in config
    needed = {"format": int, "system": str, "options": dict, **({"task": str, "package": dict} if packed else {})}
    if missing := [k for k in needed if k not in config]:
        raise InvalidValue(f"{file} was not written by foveate: it lacks {', '.join(missing)}.")
    if config["format"] != FORMAT:
        raise InvalidValue(f"{file} has format {config['format']}; this version of foveate reads {FORMAT}.")
    for key, kind in needed.items():
        if not isinstance(config[key], kind):
            raise InvalidValue(f"{file} is damaged: {key} must be of type {kind.__name__}, not {config[key]!r}.")
    return config


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file.

    Raises:
        InvalidValue: absent, or not safetensors (a pickle is never opened).
    """
    if not file.is_file():
        pickles = sorted(f.name for f in file.parent.glob("*") if f.suffix in PICKLES)
        if pickles:
            raise InvalidValue(
                f"{file.parent} holds its weights as {pickles[0]}, a pickle, which can run code when opened: only "
                f"{WEIGHTS} is read."
            )
        raise InvalidValue(f"{file} is missing: the checkpoint is incomplete.")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise InvalidValue(f"{file} is not a safetensors file ({error}); pickles are not opened.") from error


def fill(model: nn.Module, folder: Path, name: str) -> None:
    """Give a model the weights of a folder, in the dtypes they were saved in.

    Args:
        name: of the system, for messages.

    Raises:
        InvalidValue: tensors are missing, left over, or of another shape or kind; or the file cannot be read.
    """
    file = folder / WEIGHTS
    tensors, own = read_weights(file), model.state_dict()
    both = set(own) & set(tensors)
    missing, left_over = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    shape = sorted(k for k in both if own[k].shape != tensors[k].shape)
    kind = sorted(k for k in both if _kind(own[k].dtype) != _kind(tensors[k].dtype))
    problems = {
        "lacks": missing,
        "has unknown": left_over,
        "has, in the wrong shape,": shape,
        "has, in the wrong type,": kind,
    }
    for problem, keys in problems.items():
        if keys:
            tail = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise InvalidValue(f"{file} does not fit {name}: it {problem} {', '.join(keys[:3])}{tail}.")
    for named in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        for key, tensor in named:
            if key in tensors and tensor.dtype != tensors[key].dtype:
                tensor.data = tensor.data.to(tensors[key].dtype)
    model.load_state_dict(tensors)


def _kind(dtype: torch.dtype) -> str:
    """What may be converted into each other: a model saved in bfloat16 comes back in bfloat16."""
    return "float" if dtype.is_floating_point else "complex" if dtype.is_complex else str(dtype)


def sealed(text: str) -> str:
    """A card with its last line, by which :func:`is_ours` knows it again until somebody changes it."""
    text = text.rstrip("\n") + "\n"
    about = "replaced when the model is saved again, unless it was changed"
    return f"{text}\n<!-- card written by foveate, {_digest(text)}: {about} -->\n"


def is_ours(text: str) -> bool:
    """Whether foveate wrote this card and nobody has changed it since."""
    text = text.replace("\r\n", "\n")
    found = _SEAL.search(text)
    return found is not None and found[1] == _digest(text[: found.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def write_card(folder: str | Path, card: str) -> bool:
    """Write the model card, unless there is a README.md that is not ours.

    Returns:
        Whether it was written; False: what is there is the user's own and stays.
    """
    file = Path(folder) / CARD
    if file.exists() and not is_ours(file.read_text(encoding="utf-8", errors="replace")):
        return False
    part = file.with_name(f"{CARD}.part")
    part.write_text(card, encoding="utf-8", newline="\n")
    os.replace(part, file)
    return True
