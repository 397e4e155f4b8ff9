"""Dividing labelled images, bringing them to one size, and the statistics that they are standardised by."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from ...errors import InvalidType, InvalidValue
from ..classify_series.protocol import SPLITS, ordered, read_shares, stratified
from .pictures import OPEN, Pictures, Unreadable, choose_size, fitted, or_skip

_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class ClassifyImagesInfo:
    """What a model needs to know to be built for classifying images.

    Attributes:
        size: ``(height, width)`` of all images.
        channels: 1 (grey) or 3 (red, green, blue).
        classes: number of classes.
        class_names: their names.
    """

    size: tuple[int, int]
    channels: int
    classes: int
    class_names: tuple[str, ...]
    task: ClassVar[str] = "classify-images"

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """From the plain values that ``dataclasses.asdict`` and JSON make of it."""
        plain = {**values, "size": tuple(values["size"]), "class_names": tuple(values["class_names"])}
        return cls(**plain)


@dataclass(slots=True)
class Prepared:
    """Images ready to be batched.

    Attributes:
        images: uint8 ``(samples, channels, height, width)``, in a file that vanishes with it.
        labels: int64 ``(samples,)``, indices into ``classes``.
        groups: int64 ``(samples,)``: samples with the same number belong together.
        grouped: whether any do.
        parts: indices of the samples of every split, int64.
        classes: names, sorted (as numbers, if they are whole numbers).
        mean, scale: float64 ``(channels,)``, of the training pixels, which lie between 0 and 1.
        notes: sentences about what was left out or is doubtful.
    """

    images: Tensor
    labels: np.ndarray
    groups: np.ndarray
    grouped: bool
    parts: dict[str, np.ndarray]
    classes: tuple[str, ...]
    mean: Tensor
    scale: Tensor
    notes: list[str]


def prepare_pictures(
    found: Pictures,
    *,
    split: str | None,
    seed: int,
    image_size: int | str | None,
    fit: str,
    channels: int | None,
    skip_bad: bool,
) -> Prepared:
    """Read every image once, divide, and take statistics; ``found`` keeps what was left out among its notes.

    Raises:
        InvalidValue: an image that cannot be read (unless they are skipped), one class only, a class that training does
            not have, too few images; the message names the file or the class.
    """
    if found.classes is None:
        raise InvalidValue(f"{found.label!r} has no class labels: every image needs one.")
    _check_classes(found)
    size = choose_size(found.sizes, image_size)
    channels = channels or (1 if all(found.grey) else 3)
    images, kept, digests = read_all(found, size, channels, fit, skip_bad)
    kept = _without_contradictions(found, kept, digests, skip_bad)
    images = images if len(kept) == len(images) else images[torch.tensor([k for k, _ in kept])]
    rows = [row for _, row in kept]
    classes, parts = [found.classes[i] for i in rows], found.parts[rows]
    together = _together(found, rows, digests)
    part = _divided(classes, parts, together, split, seed, found.label)
    _check_parts(classes, part, found.label, len(rows))
    names = ordered(set(classes))
    notes = [*found.notes, *_notes_on(classes, part, digests, rows)]
    grouped = together is not None
    numbers: dict[str, int] = {}
    groups = [numbers.setdefault(name, len(numbers)) for name in (together or map(str, rows))]
    index = {name: np.flatnonzero(part == i) for i, name in enumerate(SPLITS)}
    if not grouped:  # files are sorted by class, and neighbours would look dependent to a test of significance
        index = {name: np.random.default_rng(seed).permutation(members) for name, members in index.items()}
    mean, scale = statistics(images, torch.from_numpy(index["train"]))
    if bool((scale == 0).all()):
        raise InvalidValue(f"{found.label!r}: all training images are of one and the same colour.")
    return Prepared(
        images=images,
        labels=np.array([names.index(name) for name in classes]),
        groups=np.array(groups),
        grouped=grouped,
        parts=index,
        classes=names,
        mean=mean,
        scale=torch.where(scale == 0, 1.0, scale),
        notes=notes,
    )


def read_all(
    found: Pictures, size: tuple[int, int], channels: int, fit: str, skip_bad: bool
) -> tuple[Tensor, list[tuple[int, int]], dict[int, str]]:
    """Read every image.

    Returns:
        uint8 ``(kept, channels, *size)`` in a file that vanishes with it, ``(row there, number in found)`` of the
        images that could be read, and the digest of each by number.
    """
    with tempfile.TemporaryFile() as file:
        store = np.memmap(file, np.uint8, "w+", shape=(max(1, len(found)), channels, *size))
    kept: list[tuple[int, int]] = []
    digests: dict[int, str] = {}
    bad: list[str] = []
    for i in range(len(found)):
        try:
            pixels, digests[i] = found.load(i)
        except Unreadable as error:
            if not skip_bad:
                raise or_skip(error) from error
            bad.append(found.names[i])
            continue
        store[len(kept)] = fitted(pixels, size, channels, fit).numpy()
        kept.append((len(kept), i))
    if bad:
        found.facts["skipped"] = found.facts.get("skipped", 0) + len(bad)
        found.notes.append(f"{len(bad)} images could not be read and were left out, the first is {bad[0]!r}.")
    if not kept:
        raise InvalidValue(f"{found.label!r}: no image can be read.")
    return torch.from_numpy(store)[: len(kept)], kept, digests


def statistics(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population deviation of each channel, float64, of uint8 ``images[index]`` divided by 255."""
    total, squares, count = torch.zeros(images.shape[1], dtype=torch.float64), 0.0, 0
    for at in index.split(_AT_ONCE):
        # Whole numbers below 2**53: sums do not depend on how they are cut into pieces.
        x = images[at].to(torch.float64)
        total, squares = total + x.sum((0, 2, 3)), squares + x.square().sum((0, 2, 3))
        count += x[:, 0].numel()
    mean = total / count
    variance = (squares / count - mean.square()).clamp_min(0)
    return mean / 255, torch.where(variance < 1e-9 * mean.square().clamp_min(1), 0.0, variance.sqrt()) / 255


def _check_classes(found: Pictures) -> None:
    names = set(found.classes or ())
    if len(names) < 2:
        only = f", {next(iter(names))!r}" if names else ""
        raise InvalidValue(f"{found.label!r} has one class only{only}: at least two are needed.")


def _without_contradictions(
    found: Pictures, kept: list[tuple[int, int]], digests: Mapping[int, str], skip_bad: bool
) -> list[tuple[int, int]]:
    """Of files, those whose bytes do not stand in two classes."""
    assert found.classes is not None  # prepare_pictures refuses a source without
    first: dict[str, int] = {}
    wrong: set[str] = set()
    for _, i in kept:
        digest = digests[i]
        other = first.setdefault(digest, i) if digest else i
        if found.files and found.classes[other] != found.classes[i]:
            if not skip_bad:
                raise InvalidValue(
                    f"{found.label!r}: {found.names[other]!r} and {found.names[i]!r} are the same file in two classes: "
                    f"remove one (or leave both out with skip_bad, --skip-bad)."
                )
            wrong.add(digest)
    if wrong:
        count = sum(digests[i] in wrong for _, i in kept)
        found.facts["contradicting"] = count
        found.notes.append(f"{count} files stand in several classes and were left out.")
    return [(row, i) for row, i in kept if digests[i] not in wrong]


def _together(found: Pictures, rows: list[int], digests: Mapping[int, str]) -> list[str] | None:
    """The group of every image: the user's, else equal images; None if no two belong together."""
    if found.groups is not None:
        return [found.groups[i] for i in rows]
    names = [digests[i] or f"{i}" for i in rows]
    return names if len(set(names)) < len(names) else None


def _divided(
    classes: list[str], parts: np.ndarray, groups: list[str] | None, split: str | None, seed: int, label: str
) -> np.ndarray:
    """The part of every image: the source's own, and drawn for those that it leaves open."""
    part, open_rows = parts.copy(), np.flatnonzero(parts == OPEN)
    missing = [i for i in (1, 2) if not (parts == i).any()]
    if not missing:
        if split is not None:
            raise InvalidType(f"split={split!r} is not possible: {label!r} has parts of its own, train, val and test.")
        part[open_rows] = 0
        return part
    if not len(open_rows):
        raise InvalidValue(f"{label!r} has no training images: give some.")
    shares = read_shares(split, 1 + len(missing))
    drawn = stratified(
        [classes[i] for i in open_rows], None if groups is None else [groups[i] for i in open_rows], shares, seed
    )
    part[open_rows] = np.array([0, *missing])[drawn]
    return part


def _check_parts(classes: list[str], part: np.ndarray, label: str, count: int) -> None:
    learned = {c for c, p in zip(classes, part, strict=True) if p == 0}
    for name, p in zip(classes, part, strict=True):
        if name not in learned:
            raise InvalidValue(
                f"{label!r}: the class {name!r} occurs in the {SPLITS[p]} part but not among the training images: give "
                f"training images of it, or remove it."
            )
    if len(learned) < 2:
        raise InvalidValue(f"{label!r} has one class only among the training images: at least two are needed.")
    for i, name in enumerate(SPLITS):
        if not (part == i).any():
            raise InvalidValue(f"{label!r} has too few images ({count}) for a {name} part: give more.")


def _notes_on(classes: list[str], part: np.ndarray, digests: Mapping[int, str], rows: list[int]) -> list[str]:
    notes = []
    names = sorted(set(classes))
    rare = [n for n in names if not any(c == n and p == 1 for c, p in zip(classes, part, strict=True))]
    if rare:
        notes.append(f"{len(rare)} classes have too few images to be validated, the first is {rare[0]!r}.")
    where: dict[str, set[int]] = {}
    for i, p in zip(rows, part, strict=True):
        if digests[i]:
            where.setdefault(digests[i], set()).add(int(p))
    twice = len([i for i in rows if digests[i]]) - len(where)
    if twice:
        notes.append(f"{twice} images are equal to others and are kept in the same part where parts are drawn.")
    leaked = sum(len(parts) > 1 for parts in where.values())
    if leaked:
        notes.append(f"{leaked} images stand in several parts: scores on them say nothing about new images.")
    return notes
