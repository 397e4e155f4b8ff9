"""Trained models on disk: ``model.safetensors`` beside ``config.json``.

A checkpoint holds weights and plain values, never code: the configuration names a registered system, which this
installation builds. What ``best/`` of a comparison holds is opened by :func:`load`, ``foveate predict`` and friends.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from .errors import InvalidValue
from .mixers.base import Mixer
from .models.base import Model
from .models.build import Contestant, resolve
from .registry import find

FORMAT = 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"
_PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"}


def save(folder: str | Path, model: nn.Module, config: dict[str, Any]) -> None:
    """Write a model so that :func:`load` gives it back.

    Args:
        folder: made if absent; an earlier checkpoint in it is replaced, weights first.
        model: what ``Task.package`` returned.
        config: "task", "system", "options" and "package" (the ``config`` of what ``Task.package`` returned), plain
            values; anything else is kept on record.
    """
    from . import __version__

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Clones, because tied weights share storage and safetensors refuses that.
    tensors = {k: v.detach().clone().contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, folder / f"{WEIGHTS}.part")
    (folder / f"{CONFIG}.part").write_text(
        json.dumps({"format": FORMAT, "foveate": __version__, **config}, indent=2) + "\n", encoding="utf-8"
    )
    for name in (WEIGHTS, CONFIG):
        os.replace(folder / f"{name}.part", folder / name)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The configuration of a checkpoint.

    Raises:
        InvalidValue: the folder is not a checkpoint of foveate's, or a pickle was given.
    """
    folder = Path(folder)
    if folder.suffix in _PICKLES:
        raise InvalidValue(f"{folder} is a pickle, which can run code when opened: only safetensors are read.")
    file = folder / CONFIG
    if not file.is_file():
        raise InvalidValue(f"{folder} is not a trained model: it has no {CONFIG}; give a folder such as OUT/best.")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidValue(f"{file} is not readable as JSON ({error}): the checkpoint is damaged.") from error
    needed = ("format", "task", "system", "options", "package")
    missing = [k for k in needed if not isinstance(config, dict) or k not in config]
    if missing:
        raise InvalidValue(f"{file} was not written by foveate: it lacks {', '.join(missing)}.")
    if config["format"] != FORMAT:
        raise InvalidValue(f"{file} has format {config['format']}; this version of foveate reads {FORMAT}.")
    return config


def load(folder: str | Path, *, system: type[Model] | type[Mixer] | None = None) -> nn.Module:
    """A trained model, in eval mode, working in the units of the data it was trained on.

    Args:
        folder: a checkpoint, such as ``OUT/best``.
        system: your own class, if the checkpoint was trained from one (``package.module:Class``); foveate does not
            import what a checkpoint names.

    Raises:
        InvalidValue: no checkpoint, a damaged or foreign one, a pickle, missing or wrong tensors.
        UnknownName: a system or task that this installation does not have.
    """
    folder = Path(folder)
    config = read_config(folder)
    name = config["system"]
    if system is not None:
        contestant = Contestant(name, "custom", system)
    elif ":" in name:
        raise InvalidValue(f"{folder} was trained from your own class {name}: pass it as load(..., system=...).")
    else:
        contestant = resolve(name)
    task = find(config["task"], "task").load()
    model = task.unpack(config["package"], lambda info: contestant.build(info, config["options"]))
    tensors = read_weights(folder / WEIGHTS)
    own = model.state_dict()
    missing, left_over = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    wrong = sorted(k for k in set(own) & set(tensors) if own[k].shape != tensors[k].shape)
    for problem, keys in (("lacks", missing), ("has unknown", left_over), ("has, in the wrong shape,", wrong)):
        if keys:
            tail = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise InvalidValue(f"{folder / WEIGHTS} does not fit {name}: it {problem} {', '.join(keys[:3])}{tail}.")
    model.load_state_dict(tensors)
    return model.eval()


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file.

    Raises:
        InvalidValue: absent, or not safetensors (a pickle is never opened).
    """
    if not file.is_file():
        raise InvalidValue(f"{file} is missing: the checkpoint is incomplete.")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise InvalidValue(f"{file} is not a safetensors file ({error}); pickles are not opened.") from error
