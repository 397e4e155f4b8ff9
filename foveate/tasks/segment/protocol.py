"""Dividing images with masks, bringing them to one spacing, and choosing the patches that are trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from ...errors import InvalidType, InvalidValue, invalid
from ..classify_series.protocol import SPLITS, read_shares, stratified
from .cases import Case, Cases, Store, Writer, resampled
from .scores import IGNORED

OPEN = -1
#: Longest side of a patch that is chosen for the user, by rank; what its sides are multiples of where images differ.
LONGEST = {2: 256, 3: 64}
MULTIPLE = {2: 16, 3: 32}
#: Patches of one image that training sees, where it is larger than a patch.
PATCHES = 32
_MOST_CLASSES = 254


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


@dataclass(slots=True)
class Prepared:
    """Cases ready to be cut into patches.

    Attributes:
        store: images, and masks with classes 0 ... ``len(classes) - 1`` or :data:`~.scores.IGNORED`.
        parts: indices of the cases of every split, int64.
        classes: names, the background first.
        size: of a patch.
        origins: int64 ``(cases, patches, rank)``: where the patches of each case begin.
        spacing: of all, or None.
        shares: of the classes among all pixels that count.
        notes: sentences about what is doubtful.
    """

    store: Store
    parts: dict[str, np.ndarray]
    classes: tuple[str, ...]
    size: tuple[int, ...]
    origins: np.ndarray
    spacing: tuple[float, ...] | None
    shares: list[float]
    notes: list[str]


def prepare_cases(
    found: Cases,
    *,
    split: str | None,
    seed: int,
    patch: int | str | None,
    spacing: str | None,
    ignore: int | None,
) -> Prepared:
    """Read every case once and prepare it.

    Raises:
        InvalidType, InvalidValue: spacings differ and nothing says what to do, a mask has a value that training does
            not have or no class but one, too few images, illegal options; the message names the file.
    """
    if len(found) < 3 and (found.parts == OPEN).all():
        raise InvalidValue(f"{found.label!r} has too few images ({len(found)}): at least three are needed.")
    asked = None if patch is None else read_patch(patch, found.rank)
    target = choose_spacing(found, spacing)
    part = _divided(found, split, seed)
    images: Writer | None = None
    raw, shapes, channels = Writer(np.int32), [], 0
    values: list[dict[int, int]] = []
    colours: set[bool] = set()
    for i in range(len(found)):
        case = found.load(i)
        case = case if target is None else resampled(case, target)
        if images is None:
            images, channels = Writer(case.image.dtype), case.image.shape[0]
        _check_case(case, found, channels)
        assert case.label is not None  # read_cases refuses a source without
        images.add(case.image.astype(images.dtype))
        raw.add(case.label)
        shapes.append(case.label.shape)
        colours.add(case.colours)
        told, counts = np.unique(case.label, return_counts=True)
        values.append(dict(zip(told.tolist(), counts.tolist(), strict=True)))
        if len(told) > _MOST_CLASSES + 1:
            raise InvalidValue(
                f"{found.label!r}: the mask of {case.name!r} has {len(told)} different values, and at most "
                f"{_MOST_CLASSES} classes are possible: save the number of each pixel's class there, not a picture."
            )
    assert images is not None  # there are three cases at least
    if len(colours) > 1:
        raise InvalidValue(f"{found.label!r}: some masks are coloured and some are not: save all alike.")
    classes = _classes(found, values, part, ignore)
    names = [found.class_names.get(v) or (f"#{v:06x}" if True in colours else str(v)) for v in classes]
    labels = _numbered(raw.done(), classes)
    store = Store(torch.from_numpy(images.done()), torch.from_numpy(labels), torch.tensor(shapes), channels)
    size = asked or choose_patch(shapes)
    counts = np.bincount(labels, minlength=256)[: len(classes)]
    notes = list(found.notes)
    if classes[0] != 0:
        notes.append(f"no mask has the value 0: {names[0]!r} is taken for the background.")
    return Prepared(
        store=store,
        parts={name: np.flatnonzero(part == i) for i, name in enumerate(SPLITS)},
        classes=tuple(names),
        size=size,
        origins=choose_origins(store, size, seed),
        spacing=target or (found.spacings[0] if found.spacings else None),
        shares=[round(float(s), 6) for s in counts / max(1, counts.sum())],
        notes=notes,
    )


def read_patch(patch: int | str, rank: int) -> tuple[int, ...]:
    """The size of a patch from 64, "64" or "32x64x64".

    Raises:
        InvalidType, InvalidValue: not such a size, or of another rank.
    """
    axes = {2: "height x width such as 64x64", 3: "depth x height x width such as 32x64x64"}[rank]
    legal = f"a side such as 64, or {axes}, is needed, each 4 to 4096"
    if isinstance(patch, bool) or not isinstance(patch, int | str):
        raise InvalidType(f"patch={patch!r} is not possible: {legal}.")
    sides = str(patch).lower().split("x")
    if len(sides) not in (1, rank) or not all(s.strip().isdecimal() and 4 <= int(s) <= 4096 for s in sides):
        raise invalid("patch", patch, legal)
    return tuple(map(int, sides if len(sides) == rank else sides * rank))


def choose_patch(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The size of a patch: of all images if they are alike and no side is too long (:data:`LONGEST`), rounded up
    to what networks can halve twice; else the median of each side, at most that, rounded up to :data:`MULTIPLE`."""
    rank = len(shapes[0])
    alike = len(set(shapes)) == 1 and max(shapes[0]) <= LONGEST[rank]
    multiple = 4 if alike else MULTIPLE[rank]
    medians = [float(np.median([shape[axis] for shape in shapes])) for axis in range(rank)]
    return tuple(min(LONGEST[rank], multiple * math.ceil(m / multiple)) for m in medians)


def choose_spacing(found: Cases, spacing: str | None) -> tuple[float, ...] | None:
    """The spacing that volumes are resampled to; None: they stay as they are.

    Args:
        spacing: "keep", "median", or "1x1x2.5" in millimetres; None: refuse volumes whose spacings differ.

    Raises:
        InvalidType, InvalidValue: differing spacings, images without any, or no such text.
    """
    legal = "keep, median, or millimetres along right, front and up such as 1x1x2.5, are possible"
    if spacing is not None and not isinstance(spacing, str):
        raise InvalidType(f"spacing={spacing!r} is not possible: {legal}.")
    if found.spacings is None:
        if spacing not in (None, "keep"):
            raise InvalidValue(f"spacing={spacing!r} is not possible: the images of {found.label!r} have no spacing.")
        return None
    if spacing == "keep":
        return None
    first = found.spacings[0]
    if spacing is None:
        for name, other in zip(found.names, found.spacings, strict=True):
            if not np.allclose(first, other, rtol=1e-2):
                raise InvalidValue(
                    f"{found.label!r}: the voxels of {found.names[0]!r} and {name!r} have different spacings "
                    f"({_millimetres(first)} and {_millimetres(other)}): resample with spacing median, or such as "
                    f"{_millimetres(first).replace(' mm', '').replace(' ', '')} (--spacing), or keep."
                )
        return None
    if spacing == "median":
        return tuple(float(np.median([s[axis] for s in found.spacings])) for axis in range(3))
    try:
        steps = tuple(float(step) for step in spacing.lower().split("x"))
    except ValueError as error:
        raise invalid("spacing", spacing, legal) from error
    if len(steps) != 3 or not all(0.01 <= step <= 1000 for step in steps):
        raise invalid("spacing", spacing, legal)
    return steps


def _millimetres(spacing: Sequence[float]) -> str:
    return " x ".join(f"{step:g}" for step in spacing) + " mm"


def _check_case(case: Case, found: Cases, channels: int) -> None:
    if case.image.shape[0] != channels:
        raise InvalidValue(
            f"{found.label!r}: {case.name!r} has {case.image.shape[0]} channel(s), {found.names[0]!r} has "
            f"{channels}: give all the same."
        )
    if min(case.image.shape[1:]) < 2:
        raise InvalidValue(f"{found.label!r}: {case.name!r} has shape {case.image.shape[1:]}, which is too small.")


def _classes(found: Cases, values: list[dict[int, int]], part: np.ndarray, ignore: int | None) -> list[int]:
    """The values of masks that are classes, rising."""
    learned: set[int] = set()
    for own, p in zip(values, part, strict=True):
        if p == 0:
            learned |= set(own)
    classes = sorted(learned - {ignore})
    for name, own in zip(found.names, values, strict=True):
        new = sorted(set(own) - learned - {ignore})
        if new:
            raise InvalidValue(
                f"{found.label!r}: the mask of {name!r} has the class {new[0]}, which no training mask has: give "
                f"training images of it, or ignore it."
            )
    if len(classes) < 2:
        raise InvalidValue(f"{found.label!r}: the training masks have {len(classes)} class: at least two are needed.")
    if len(classes) > _MOST_CLASSES:
        raise InvalidValue(
            f"{found.label!r}: masks have {len(classes)} different values: at most {_MOST_CLASSES} are possible."
        )
    return classes


def _numbered(raw: np.ndarray, classes: list[int]) -> np.ndarray:
    """uint8: the number of each value's class; :data:`IGNORED` for all others."""
    made = np.empty(len(raw), np.uint8)
    known = np.array(classes)
    for begin in range(0, len(raw), 1 << 24):
        values = raw[begin : begin + (1 << 24)]
        at = np.searchsorted(known, values).clip(0, len(known) - 1)
        made[begin : begin + len(values)] = np.where(known[at] == values, at, IGNORED)
    return made


def _divided(found: Cases, split: str | None, seed: int) -> np.ndarray:
    """The part of every case: the source's own, and drawn for those that it leaves open."""
    part, rows = found.parts.copy(), np.flatnonzero(found.parts == OPEN)
    missing = [i for i in (1, 2) if not (part == i).any()]
    if not missing:
        if split is not None:
            raise InvalidType(f"split={split!r} is not possible: {found.label!r} has parts of its own.")
        part[rows] = 0
    elif len(rows):
        shares = read_shares(split, 1 + len(missing))
        part[rows] = np.array([0, *missing])[stratified([""] * len(rows), None, shares, seed)]
    for i, name in enumerate(SPLITS):
        if not (part == i).any():
            raise InvalidValue(f"{found.label!r} has too few images ({len(found)}) for a {name} part: give more.")
    return part


def choose_origins(store: Store, size: tuple[int, ...], seed: int) -> np.ndarray:
    """Where the patches of every case begin, int64 ``(cases, patches, rank)``.

    One at 0 where no image is larger than a patch. Else :data:`PATCHES`, drawn from the seed and the case: every second
    one around a pixel of a class that is drawn among those that are there, the background left out; the others
    anywhere.
    """
    shapes = store.shapes.numpy()
    count = PATCHES if (shapes > np.array(size)).any() else 1
    origins = np.zeros((len(shapes), count, len(size)), np.int64)
    if count == 1:
        return origins
    for i, shape in enumerate(shapes):
        generator = np.random.default_rng([seed, i])
        most = np.maximum(shape - np.array(size), 0)
        mask = store.mask(i).numpy()
        present = [c for c in np.unique(mask).tolist() if c not in (0, IGNORED)]
        places = {c: np.flatnonzero(mask.reshape(-1) == c) for c in present}
        for k in range(count):
            if present and k % 2 == 0:
                flat = places[present[generator.integers(len(present))]]
                middle = np.array(np.unravel_index(flat[generator.integers(len(flat))], mask.shape))
                origins[i, k] = np.clip(middle - np.array(size) // 2, 0, most)
            else:
                origins[i, k] = generator.integers(0, most + 1)
    return origins


def pixel_statistics(store: Store, cases: np.ndarray, unit: float) -> tuple[Tensor, Tensor]:
    """Mean and population deviation of each channel, float64, of the images of some cases divided by ``unit``."""
    total, squares, count = torch.zeros(store.channels, dtype=torch.float64), 0.0, 0
    for i in cases.tolist():
        x = store.image(i).flatten(1).double() / unit
        total, squares, count = total + x.sum(1), squares + x.square().sum(1), count + x.shape[1]
    mean = total / count
    variance = (squares / count - mean.square()).clamp_min(0)
    return mean, torch.where(variance < 1e-12 * mean.square().clamp_min(1e-12), 1.0, variance.sqrt())
