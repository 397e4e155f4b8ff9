"""Images or volumes with their masks, of sizes that may differ, and the files that hold them."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import torch
from torch import Tensor

from ...errors import InvalidValue
from ...files import replace

IMAGES, LABELS = "images.bin", "labels.bin"
#: Voxels above which a volume is refused: it may be made to fill the memory.
MOST_VOXELS = 1 << 29
_AT_ONCE = 1 << 24


@dataclass(frozen=True, slots=True)
class Case:
    """One image or volume.

    Attributes:
        name: inside its source.
        image: uint8 or float32 ``(channels, *shape)``.
        label: int32 ``(*shape)``, values as in the file (colours as red * 65536 + green * 256 + blue); None: none.
        colours: labels are colours.
        spacing: of voxels along each axis, in millimetres; None: unknown.
        origin: what a mask needs to be written as the image was.
    """

    name: str
    image: np.ndarray
    label: np.ndarray | None
    colours: bool = False
    spacing: tuple[float, ...] | None = None
    origin: Any = None


@dataclass(slots=True)
class Cases:
    """All images of a source, not read yet.

    Attributes:
        label, sha256: the source, for messages and records.
        names: one text each.
        rank: 2 for images, 3 for volumes.
        load: number to :class:`Case`.
        parts: int64, 0, 1, 2 for train, val, test; -1: still to be drawn.
        spacings: of each, where known.
        class_names: value in a mask to name; {}: values are names.
        notes: sentences about what is doubtful.
    """

    label: str
    names: list[str]
    rank: int
    load: Callable[[int], Case]
    parts: np.ndarray
    sha256: str = ""
    spacings: list[tuple[float, ...]] | None = None
    class_names: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)


class Store:
    """Images and masks of several sizes in two flat tensors.

    Args:
        images: uint8 or float32, flat.
        labels: uint8, flat.
        shapes: int64 ``(cases, rank)``.
        channels: of every image.
    """

    def __init__(self, images: Tensor, labels: Tensor, shapes: Tensor, channels: int) -> None:
        self.images, self.labels, self.shapes, self.channels = images, labels, shapes, channels
        sizes = shapes.prod(1)
        self.ends = sizes.cumsum(0)

    def image(self, i: int) -> Tensor:
        """``(channels, *shape)`` of a case."""
        end, shape = int(self.ends[i]), self.shapes[i].tolist()
        begin = end - math.prod(shape)
        return self.images[begin * self.channels : end * self.channels].view(self.channels, *shape)

    def mask(self, i: int) -> Tensor:
        """uint8 ``(*shape)`` of a case."""
        end, shape = int(self.ends[i]), self.shapes[i].tolist()
        return self.labels[end - math.prod(shape) : end].view(shape)

    def write(self, folder: Path) -> None:
        """Write both, each whole or not at all."""
        for name, values in ((IMAGES, self.images.numpy()), (LABELS, self.labels.numpy())):
            replace(folder / name, lambda path, values=values: _write(path, values))

    @classmethod
    def read(cls, folder: Path, dtype: str, shapes: Tensor, channels: int) -> Self:
        """Map what :meth:`write` wrote.

        Raises:
            InvalidValue: a file is missing, or has another length.
        """
        count = int(shapes.prod(1).sum())
        images = _mapped(folder / IMAGES, getattr(torch, dtype), count * channels)
        return cls(images, _mapped(folder / LABELS, torch.uint8, count), shapes, channels)


class Writer:
    """Appends arrays to a temporary file that vanishes with the last map of it."""

    def __init__(self, dtype: Any) -> None:
        self.dtype, self.count = np.dtype(dtype), 0
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by done)

    def add(self, values: np.ndarray) -> None:
        """Append, in C order."""
        self._file.write(np.ascontiguousarray(values, self.dtype).data)
        self.count += values.size

    def done(self) -> np.ndarray:
        """All of it, flat, mapped into memory and writable."""
        self._file.flush()
        made = np.memmap(self._file, self.dtype, "r+", shape=(self.count,))
        self._file.close()
        return made


def _write(path: Path, values: np.ndarray) -> None:
    with path.open("wb") as file:
        for begin in range(0, len(values), _AT_ONCE):
            file.write(np.ascontiguousarray(values[begin : begin + _AT_ONCE]).data)


def _mapped(path: Path, dtype: torch.dtype, count: int) -> Tensor:
    need, size = count * dtype.itemsize, os.path.getsize(path) if path.is_file() else -1
    if size != need:
        state = "is missing" if size < 0 else f"has {size} bytes instead of {need}"
        raise InvalidValue(f"{path} {state}: the prepared data is damaged; prepare it again in another folder.")
    return torch.from_file(str(path), shared=False, size=count, dtype=dtype)


def resampled(case: Case, spacing: Sequence[float]) -> Case:
    """A volume at another spacing of voxels: linear for the image, the nearest voxel for the mask.

    Raises:
        InvalidValue: it would have too many voxels.
    """
    assert case.spacing is not None  # asked of sources that have spacings only
    shape = case.image.shape[1:]
    new = tuple(max(1, round(n * old / to)) for n, old, to in zip(shape, case.spacing, spacing, strict=True))
    if math.prod(new) > MOST_VOXELS:
        raise InvalidValue(
            f"{case.name!r} would have {' x '.join(map(str, new))} voxels at a spacing of "
            f"{' x '.join(f'{step:g}' for step in spacing)} mm, more than {MOST_VOXELS:,}: choose a wider one."
        )
    if new == shape:
        return Case(case.name, case.image, case.label, case.colours, tuple(spacing), case.origin)
    image = torch.from_numpy(case.image.astype(np.float32))[None]
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    image = torch.nn.functional.interpolate(image, new, mode=mode, align_corners=False)[0].numpy()
    label = None if case.label is None else nearest(case.label, new)
    return Case(case.name, image, label, case.colours, tuple(spacing), case.origin)


def nearest(label: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A mask at another size: of each new voxel the old one that its middle lies in."""
    index = [
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
        for old, new in zip(label.shape, shape, strict=True)
    ]
    return label[np.ix_(*index)]
