"""Trained models on disk and on the hub, by one call.

A folder holds weights and plain values, never code: its configuration names a registered system, which this
installation builds. :func:`load` opens what ``best/`` of a comparison holds, what ``save_pretrained`` of any model
wrote, and, asked for as ``hub:user/name``, either of them on the Hugging Face hub.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from . import hub
from .errors import InvalidType
from .hub import read_config
from .mixers.base import Mixer
from .models.base import Model
from .models.build import network
from .tasks.packaged import Packaged, open_packaged

__all__ = ["load", "read_config", "save"]


def save(folder: str | Path, model: nn.Module, config: dict[str, Any]) -> None:
    """Write a packaged model so that :func:`load` gives it back, with its model card.

    Args:
        folder: made if absent; an earlier checkpoint in it is replaced, weights first. A README.md that is not
            foveate's stays.
        model: what ``Task.package`` returned.
        config: "task", "system", "options" and "package" (the ``config`` of what ``Task.package`` returned), plain
            values; anything else is kept on record.
    """
    about = {"interface": model.interface()} if isinstance(model, Packaged) else {}
    written = hub.write(folder, model.state_dict(), {**config, **about})
    hub.write_card(folder, hub.render(written))


def load(
    where: str | Path,
    *,
    system: type[Model] | type[Mixer] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> nn.Module:
    """A saved model, in eval mode; one that a comparison trained works in the units of the data it was trained on.

    Args:
        where: a folder, such as ``OUT/best``, or ``hub:user/name``. Nothing is fetched unless it says ``hub:``.
        system: your own class, if the model was made from one (``package.module:Class``); foveate does not import what
            a checkpoint names.
        revision: branch, tag or commit on the hub.
        token: for a private repo; None: the one that ``hf auth login`` or HF_TOKEN left.
        cache_dir: where fetched files are kept; None: the hub's own cache.
        local_files_only: use what is in the cache, and no network.

    Raises:
        InvalidValue: no checkpoint, a damaged or foreign one, a pickle, missing or wrong tensors; on the hub, no
            network, no permission.
        UnknownName: a system or task that this installation does not have; no such repo or revision.
        InvalidType: ``system`` is needed for an option of the model, or is none.
    """
    hub_options = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    folder = hub.local_folder(where, **hub_options)
    config = read_config(folder)
    if "task" in config:
        return open_packaged(folder, config, system)
    if system is None:
        return Model._open(folder, config, {})
    if issubclass(system, Mixer):
        return network(config["reads"])._open(folder, config, {"mixer": system})
    if issubclass(system, Model):
        return system._open(folder, config, {})
    raise InvalidType(f"system={system!r} is not possible: it must be a subclass of foveate's Model or Mixer.")
