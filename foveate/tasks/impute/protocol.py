"""What is hidden, what is seen, and what a model knows of the task.

The protocol of the Time-Series-Library: windows of a standardised series, every value hidden independently with
probability ``mask_rate``; mean squared and absolute error on what was hidden. Where it leaves something open or leaks:
masks of training are drawn anew at every step, those of validation and test are fixed by the window (so that every
system fills the same holes); a window lies in one part as a whole; what was never measured is neither seen nor scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ImputeInfo:
    """What a model needs to know to be built for imputation.

    Attributes:
        lookback: steps of a window.
        channels: columns in and out.
        targets: the channels that are trained on and scored.
        freq: pandas alias of the step.
        marks: number of calendar features per step (0 for yearly data).
        mask_rate: share of the values that is hidden.
    """

    lookback: int
    channels: int
    targets: tuple[int, ...]
    freq: str
    marks: int
    mask_rate: float
    task: ClassVar[str] = "impute"

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """From the plain values that ``dataclasses.asdict`` and JSON make of it."""
        return cls(**{**values, "targets": tuple(values["targets"])})


def seen(observed: Tensor, hidden: Tensor) -> Tensor:
    """What a model may look at, bool ``(B, T, C)``: measured and not hidden.

    Every channel of a window shows something: if all that was measured is hidden, its first measured value is shown;
    if nothing was measured, the values that the gaps were filled with from the past are.
    """
    mask = observed & ~hidden
    first = observed & (observed.cumsum(1) == 1)
    mask = mask | (first & ~mask.any(1, keepdim=True))
    return mask | ~observed.any(1, keepdim=True)


def fixed_masks(starts: Tensor, shape: tuple[int, int], rate: float, seed: int) -> Tensor:
    """Bool ``(B, *shape)``, True with probability ``rate``: decided by the seed and each window's first row alone."""
    generator = torch.Generator()
    return torch.stack([_mask(generator.manual_seed(seed + int(start)), shape, rate) for start in starts])


def _mask(generator: torch.Generator, shape: tuple[int, int], rate: float) -> Tensor:
    return torch.rand(shape, generator=generator) < rate
