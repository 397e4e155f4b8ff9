"""How a system was trained for the numbers its authors report: plain values, one object per data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

#: Where the scripts of many models stand.
LIBRARY = "thuml/Time-Series-Library, scripts/, commit 4e938a17"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A published training recipe, as :meth:`foveate.models.Model.published` returns it.

    Attributes:
        source: where it stands: a file of a public repository, at the commit read.
        options: sizes: options of ``for_task``.
        learning_rate: of the first pass; there is no sweep.
        batch_size: samples per step, and per batch of validation and test.
        epochs: passes over the training data at most.
        patience: passes without gain on validation before training ends.
        optimizer: "adam" or "radam", with PyTorch's defaults and no weight decay.
        schedule: name in :data:`foveate.tasks.schedules.BY_EPOCH`.
        clip_norm: largest gradient norm; None: no clipping.
        seed: PyTorch's seed before the network is made, for the first trial; later trials count on from it.
    """

    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float
    batch_size: int
    epochs: int
    patience: int
    optimizer: Literal["adam", "radam"] = "adam"
    schedule: Literal["halved", "tenth_off", "constant"] = "halved"
    clip_norm: float | None = None
    seed: int = 2021
