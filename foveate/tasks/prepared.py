"""What tasks over prepared tensors share: one file that holds all of it, and the mode that models are scored in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..errors import InvalidValue
from .base import Task
from .io import load_tensors, save_tensors

_FORMAT = 1


class PreparedTask(Task):
    """A task that is made of tensors, ``info``, a layout and facts, and is stored as such in one file.

    Args:
        info: see :class:`~foveate.tasks.base.Task`; a dataclass with ``from_plain``, the inverse of ``asdict``.
        tensors: the prepared data, by the names that :meth:`stored` gives.
        layout: names and the like of the user's data, JSON values.
        facts: what :meth:`describe` returns, JSON values.
    """

    #: The type of ``info``, and the stem of the file's name: the task's, with underscores.
    info_type: ClassVar[Any]
    stem: ClassVar[str]

    def __init__(self, info: Any, tensors: dict[str, Tensor], layout: dict[str, Any], facts: dict[str, Any]) -> None:
        self.info = info
        self.layout = layout
        self._tensors = tensors
        self._facts = facts

    @classmethod
    def stored(cls, info: Mapping[str, Any]) -> set[str]:
        """Names of the tensors that belong to this ``info``, as plain values."""
        raise NotImplementedError(f"{cls.__name__} does not say what it stores.")

    def describe(self) -> dict[str, Any]:
        """Facts of the data on record; the task's page in ``docs/tasks`` explains every entry."""
        return json.loads(json.dumps(self._facts))

    def save(self, folder: Path) -> None:
        """Write ``<stem>.safetensors``, whole or not at all; an existing one is replaced."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        record = {"format": _FORMAT, "info": asdict(self.info), "layout": self.layout, "facts": self._facts}
        save_tensors(folder / f"{self.stem}.safetensors", self._tensors, record)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what :meth:`save` wrote, bit for bit; the user's file is not needed.

        Raises:
            InvalidValue: the folder holds no whole prepared data of this format.
        """
        tensors, record = load_tensors(Path(folder) / f"{cls.stem}.safetensors")
        info = record.get("info", {})
        if record.get("format") != _FORMAT or set(tensors) != cls.stored(info):
            raise InvalidValue(
                f"{str(folder)!r} holds no {cls.stem.replace('_', '-')} data that this version of foveate wrote: "
                f"prepare it again."
            )
        return cls(cls.info_type.from_plain(info), tensors, record["layout"], record["facts"])


@contextmanager
def scoring(model: nn.Module) -> Iterator[torch.device]:
    """Eval mode for the time of the block; afterwards every module has its own mode again.

    Returns:
        The device that the model is on (CPU if it has no tensors).
    """
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield device
    finally:
        for module, mode in modes:
            module.training = mode
