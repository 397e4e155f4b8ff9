"""The convention of complete models."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from ..errors import InvalidType, InvalidValue
from ..spec import ModelSpec
from .published import Published


class Model(nn.Module, PyTorchModelHubMixin, library_name="foveate"):
    """A complete network.

    Inputs by what it reads: series ``(B, T, C)``, image ``(B, C, H, W)``, video ``(B, C, T, H, W)``, tokens ``(B, L)``
    int64; anything else is documented by the model. ``forward`` returns one tensor; auxiliary losses are read with
    :func:`foveate.mixers.aux_losses`. Constructor options are plain values (they are written to ``config.json``).

    A subclass sets :attr:`spec` with literals and implements :meth:`for_task` for every task in ``spec.tasks``.
    """

    #: Literals in the class body; an option that changes a promise sets it again on the instance.
    spec: ModelSpec
    #: Dotted path of the Recipe class ("foveate.tasks.base.Recipe" is the default one) that trains this model.
    recipe: ClassVar[str] = "foveate.tasks.base.Recipe"
    #: Under a time budget, the share of a trial's time that a system without training may take to be scored.
    untrained_share: ClassVar[float] = 0.1
    #: The official release's state-dict keys to ours; see :func:`foveate.models.official.load_official`.
    official_keys: ClassVar[dict[str, dict[str, str]]] = {}

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        """Build the model for a task from what the task says about the data (``Task.info``), plus options."""
        raise InvalidType(f"{cls.__name__} cannot be built for a task.")

    @classmethod
    def published(cls, info: Any, dataset: str) -> Published | None:
        """How its authors trained it for ``info.task`` on a public data set.

        Args:
            info: what the task says about the data (``Task.info``).
            dataset: name in :data:`foveate.tasks.known_data.KNOWN`.

        Returns:
            None where nothing is published: it is then trained by the usual rules.
        """
        return None

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Any:
        """A fresh streaming state; see :mod:`foveate.mixers.state`."""
        raise InvalidType(f"{type(self).__name__} has no streaming form.")

    def prefill(self, x: Any, state: Any, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        """Read a stretch of input after ``state``: tokens, frames, or events as the model documents them."""
        raise InvalidType(f"{type(self).__name__} has no streaming form.")

    def step(self, x_t: Any, state: Any) -> tuple[Tensor, Any]:
        """Read one token or frame. A model with more inputs takes them as keyword arguments."""
        raise InvalidType(f"{type(self).__name__} has no streaming form.")


def check_series(name: str, x: Tensor, length: int, channels: int) -> None:
    """Refuse anything but float ``(batch, length, channels)``; for models that read series."""
    if x.ndim != 3 or x.shape[1] != length or x.shape[2] != channels:
        raise InvalidValue(f"{name}: x has shape {tuple(x.shape)}; it must be (batch, {length}, {channels}).")
    if not x.is_floating_point():
        raise InvalidType(f"{name}: x must be floating point, not {x.dtype}.")
