"""What the task tells models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """What a model needs to know to be built for segmenting.

    Attributes:
        size: of the patches that it is given: ``(height, width)``, or ``(depth, height, width)`` of volumes.
        channels: of a pixel or voxel.
        classes: number of classes, the background (0) among them.
        class_names: their names.
    """

    size: tuple[int, ...]
    channels: int
    classes: int
    class_names: tuple[str, ...]
    task: ClassVar[str] = "segment"

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """From the plain values that ``dataclasses.asdict`` and JSON make of it."""
        plain = {**values, "size": tuple(values["size"]), "class_names": tuple(values["class_names"])}
        return cls(**plain)
