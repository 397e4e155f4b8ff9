"""What every source of images is turned into: names, classes, parts, and a way to get at the pixels of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import InvalidType, InvalidValue, invalid

#: A part that is still to be drawn.
OPEN = -1
#: Pixels of an image above which it is refused, pillow's own limit: what is larger may be made to fill the memory.
MOST_PIXELS = 89_478_485
#: Longest side of images whose size is chosen for the user.
LONGEST = 224
FITS = ("crop", "stretch")


class Unreadable(InvalidValue):
    """One image cannot be read; ``skip_bad`` leaves it out."""


def or_skip(error: Unreadable) -> Unreadable:
    """The same, with the way around it."""
    return Unreadable(f"{str(error).rstrip('.')} (or leave such files out with skip_bad, --skip-bad).")


@dataclass(slots=True)
class Pictures:
    """Images of one source, not read yet.

    Attributes:
        label: the source, for messages.
        names: one text per image: its path inside the source, or its number.
        classes: the class of each; None: the source has no labels.
        parts: int64, 0, 1, 2 for train, val, test where the source says so, :data:`OPEN` where it does not.
        sizes: ``(height, width)`` of each, as a viewer shows it.
        grey: whether each is without colour.
        load: number of an image to its pixels, uint8 ``(height, width, 1 or 3)``, and the SHA-256 of its bytes
            ("" where equal images are not to be looked for).
        sha256: of the whole source; "" until all images were read, for files.
        groups: which images belong together and must not be divided; None: none do.
        facts: counts of what was done to images on the way (JSON values).
        notes: sentences about what was left out or is doubtful.
        files: whether every image is a file, so that equal ones in two classes are a mistake.
    """

    label: str
    names: list[str]
    classes: list[str] | None
    parts: np.ndarray
    sizes: list[tuple[int, int]]
    grey: list[bool]
    load: Callable[[int], tuple[np.ndarray, str]]
    sha256: str = ""
    groups: list[str] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: bool = False

    def __len__(self) -> int:
        return len(self.names)


def choose_size(sizes: Sequence[tuple[int, int]], asked: int | str | None) -> tuple[int, int]:
    """``(height, width)`` that all images are brought to.

    Args:
        sizes: ``(height, width)`` of every image.
        asked: 32, "32" (square) or "24x32" (height x width); None: the size of all images if they are alike and no side
            is longer than :data:`LONGEST`; else the median height and width, made smaller so that the longer one is at
            most that, rounded to multiples of 8.

    Raises:
        InvalidType, InvalidValue: not such a size.
    """
    if asked is not None:
        return read_size(asked)
    if len(set(sizes)) == 1 and max(sizes[0]) <= LONGEST:
        return sizes[0]
    height, width = (float(np.median([size[axis] for size in sizes])) for axis in (0, 1))
    factor = min(1.0, LONGEST / max(height, width))
    return max(8, 8 * round(height * factor / 8)), max(8, 8 * round(width * factor / 8))


def read_size(asked: int | str) -> tuple[int, int]:
    """``(height, width)`` from 32, "32" or "24x32".

    Raises:
        InvalidType, InvalidValue: not such a size, or a side outside of 4 to 4096.
    """
    legal = "a side such as 32, or height x width such as 24x32, is needed, each 4 to 4096"
    if isinstance(asked, bool) or not isinstance(asked, int | str):
        raise InvalidType(f"image_size={asked!r} is not possible: {legal}.")
    sides = str(asked).lower().split("x")
    if len(sides) > 2 or not all(side.strip().isdecimal() and 4 <= int(side) <= 4096 for side in sides):
        raise invalid("image_size", asked, legal)
    return int(sides[0]), int(sides[-1])


def fitted(pixels: np.ndarray, size: tuple[int, int], channels: int, fit: str) -> Tensor:
    """An image brought to size and channels: uint8 ``(channels, height, width)``.

    Grey becomes colour by repeating it, colour grey by the weights of ITU-R BT.601. Sizes are changed bicubically, with
    antialiasing where it becomes smaller.

    Args:
        pixels: uint8 ``(height, width, 1 or 3)``.
        fit: "crop" keeps the shape: the image just covers the new size, and what stands out on two sides is cut off
            evenly; "stretch" does not.
    """
    x = torch.from_numpy(np.array(pixels)).movedim(-1, 0)
    if channels == 1 and len(x) == 3:
        weights = torch.tensor([299.0, 587.0, 114.0]) / 1000
        x = (x.float() * weights[:, None, None]).sum(0, keepdim=True).round().to(torch.uint8)
    height, width = x.shape[1:]
    if (height, width) != size:
        new = size
        if fit == "crop":
            scale = max(size[0] / height, size[1] / width)
            new = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
        x = F.interpolate(x[None].float(), new, mode="bicubic", align_corners=False, antialias=True)[0]
        top, left = (new[0] - size[0]) // 2, (new[1] - size[1]) // 2
        x = x[:, top : top + size[0], left : left + size[1]].round().clamp(0, 255).to(torch.uint8)
    return x.expand(channels, -1, -1)
