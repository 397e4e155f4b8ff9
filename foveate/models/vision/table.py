"""What published sizes of image models cost, counted here and as their publications print it."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import InvalidType
from ...measure.flops import count_flops
from ...ops import backend
from ...registry import Entry, find


@dataclass(frozen=True, slots=True)
class Counted:
    """What one image costs.

    Attributes:
        parameters: learned numbers.
        macs: multiply-adds of one forward pass in matrix products, convolutions and attention, half the FLOPs of
            :func:`~foveate.measure.flops.count_flops`; a mixer whose form computes masked pairs too says itself what it
            takes without them (``visible_flops``).
    """

    parameters: int
    macs: int


@dataclass(frozen=True, slots=True)
class Row:
    """A published size beside its publication.

    Attributes:
        name: of the size.
        pixels: along a side of the image.
        counted: here.
        parameters, macs: as printed, millions and billions; None: the publication does not say.
        explained: why they differ, where they do.
    """

    name: str
    pixels: int
    counted: Counted
    parameters: float | None = None
    macs: float | None = None
    explained: str = ""

    @property
    def differences(self) -> tuple[float, float]:
        """Of parameters and of multiply-adds, relative to what is printed; see :func:`difference`."""
        return (
            difference(self.counted.parameters / 1e6, self.parameters),
            difference(self.counted.macs / 1e9, self.macs),
        )


def count(name: str, size: int | tuple[int, ...] = 224, **options: Any) -> Counted:
    """Parameters and multiply-adds of a model, built on the meta device: nothing is computed.

    Args:
        name: of a published size, or of a registered model.
        size: pixels along every side, or height and width; of volumes depth, height and width.
        options: of the constructor; they win over those of the size.

    Raises:
        UnknownName: nothing has this name.
        InvalidType: it reads no images, or an option does not exist.
    """
    entry = find(name, "model")
    if entry.spec.reads != "image":
        raise InvalidType(f"{name!r} cannot be counted by pixels: it reads {entry.spec.reads}, not images.")
    target = entry.load()
    with torch.device("meta"), backend("torch"):
        model = target(**{**entry.options, **options}).eval()
        sides = (size,) * getattr(model, "rank", 2) if isinstance(size, int) else size
        x = torch.empty(1, model.in_chans, *sides)
        told: list[int] = []
        for module in model.modules():
            if hasattr(module, "visible_flops"):
                module.forward = functools.partial(_tell, module, told)
        flops = count_flops(lambda: model(x)) + sum(told)
    return Counted(sum(p.numel() for p in model.parameters()), flops // 2)


def _tell(mixer: Any, told: list[int], x: torch.Tensor) -> torch.Tensor:
    """In place of a mixer's call: its own count of it."""
    told.append(mixer.visible_flops(tuple(x.shape[1:-1]), len(x)))
    return torch.empty_like(x)


def rows(model: str) -> list[Row]:
    """All published sizes of a registered model, each counted at its publication's resolution (else 224 pixels)."""
    entry = find(model, "model")
    return [_row(entry, name) for name in entry.configurations]


def _row(entry: Entry, name: str) -> Row:
    explained = getattr(entry.load(), "cost_differences", {}).get(name, "")
    if name not in entry.published_costs:
        pixels = int(next(iter(re.findall(r"_(\d{3})(?=_|$)", name)), 224))  # timm's names say where it is another
        return Row(name, pixels, count(name, pixels), explained=explained)
    parameters, macs, pixels = entry.published_costs[name]
    return Row(name, pixels, count(name, pixels), parameters, macs, explained)


def difference(counted: float, printed: float | None) -> float:
    """How far a number is from a printed one, relative to that; 0 where it rounds to what is printed, or nothing is.

    The printed number's digits are those of its literal: 28 stands for 27.5 to 28.5, 4.5 for 4.45 to 4.55.
    """
    if printed is None:
        return 0.0
    digits = len(str(printed).partition(".")[2]) if isinstance(printed, float) else 0
    apart = abs(counted - printed)
    return 0.0 if apart <= 0.5 * math.pow(10, -digits) * (1 + 1e-9) else apart / printed


def worst_difference(model: str) -> tuple[float, str]:
    """The largest difference of any published size that is not explained, and what it is of; for claims.

    Returns:
        The relative difference, and a phrase that names size and quantity.
    """
    found = [
        (difference, f"{row.name}, {quantity}")
        for row in rows(model)
        if not row.explained
        for difference, quantity in zip(row.differences, ("parameters", "multiply-adds"), strict=True)
    ]
    return max(found, default=(math.nan, "nothing is published"))
