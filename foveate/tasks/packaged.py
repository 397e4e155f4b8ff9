"""What all packaged models share: they are saved, loaded and pushed, and say what they are called with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from torch import nn

from ..errors import InvalidType, InvalidValue
from ..hub.card import code
from ..hub.files import fill
from ..hub.saved import Saved
from ..mixers.base import Mixer
from ..models.base import Model
from ..models.build import Contestant, resolve
from ..registry import find


class Packaged(nn.Module, Saved):
    """A trained model that works in its user's units: what ``best/`` ships and ``foveate.load`` returns.

    A subclass has ``config``, from which ``Task.unpack`` makes it anew, and says what it is called with
    (:meth:`interface`).
    """

    #: The ``config.json`` it was loaded from; {} for one that was not.
    record: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        made = super().__new__(cls)
        made.record = {}
        return made

    @property
    def config(self) -> dict[str, Any]:
        """All constructor options except the model and its buffers, as JSON values."""
        raise NotImplementedError

    def interface(self) -> dict[str, Any]:
        """What it is called with and answers, for its model card.

        Returns:
            "inputs" (name to one phrase of Markdown) and "output", with units; "example", arguments as Python text that
            need ``torch`` alone, and "shape" of the answer to it; perhaps "scores", a sentence on their unit.
        """
        raise NotImplementedError

    def _record(self) -> dict[str, Any]:
        if not self.record:
            raise InvalidType(
                f"this {type(self).__name__} does not know how its model is built: save one that foveate.load returned "
                f"(such as OUT/best of a comparison), or the model inside, its .model."
            )
        return self.record

    @classmethod
    def _open(cls, folder: Path, config: dict[str, Any], given: dict[str, Any]) -> Self:
        system = given.pop("system", None)
        if given:
            raise InvalidType(f"{cls.__name__} has no option {next(iter(given))!r} on loading: its option is system.")
        if "task" not in config:
            raise InvalidType(f"{folder} holds a bare {config['system']!r}, not a {cls.__name__}: use foveate.load.")
        model = open_packaged(folder, config, system)
        if not isinstance(model, cls):
            raise InvalidType(f"{folder} holds a {type(model).__name__}, not a {cls.__name__}: use foveate.load.")
        return model


def channel_list(names: Sequence[str], what: str = "Channels", most: int = 12) -> str:
    """The names of channels or classes in a model card, the first of many."""
    more = f" and {len(names) - most} more (see `config.json`)" if len(names) > most else ""
    return f"{what}, in order: {', '.join(code(name) for name in names[:most])}{more}"


def open_packaged(folder: Path, config: dict[str, Any], system: type[Model] | type[Mixer] | None = None) -> nn.Module:
    """The packaged model of a folder, in eval mode.

    Args:
        folder, config: a checkpoint and its configuration.
        system: the user's own class, if it was trained from one.

    Raises:
        InvalidValue: a class of the user's own is needed and not given, weights that do not fit.
        UnknownName: a system or task that this installation does not have.
    """
    name = config["system"]
    if system is not None:
        contestant = Contestant(name, "custom", system)
    elif ":" in name:
        raise InvalidValue(f"{folder} was trained from your own class {name}: pass it as load(..., system=...).")
    else:
        contestant = resolve(name)
    task = find(config["task"], "task").load()
    model = task.unpack(config["package"], lambda info: contestant.build(info, config["options"]))
    fill(model, folder, name)
    if isinstance(model, Packaged):
        model.record = config
    return model.eval()
