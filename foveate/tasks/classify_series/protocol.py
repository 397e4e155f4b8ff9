"""Dividing, scaling, filling and padding labelled samples.

Where the source sets a test part apart, it stays the test part and validation is carved out of the rest; otherwise all
three parts are drawn. Both are stratified by class and decided by a seed of their own, not the trial's. Scores of the
published protocol choose by the test part, which is offered nowhere here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from ...errors import InvalidType, InvalidValue, invalid
from ..forecast.protocol import fill_from_past, standardise, statistics
from .read import Samples

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class ClassifySeriesInfo:
    """What a model needs to know to be built for classifying series.

    Attributes:
        lookback: steps of the longest sample; shorter ones are padded at the end.
        channels: channels of a step.
        classes: number of classes.
        padded: some sample is shorter than ``lookback``: batches then carry a mask that models must heed.
        marks: 0: samples have no calendar features.
    """

    lookback: int
    channels: int
    classes: int
    padded: bool
    marks: int = 0
    task: ClassVar[str] = "classify-series"

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """From the plain values that ``dataclasses.asdict`` and JSON make of it."""
        return cls(**values)


def read_shares(split: str | None, parts: int, default: tuple[float, ...] | None = None) -> tuple[float, ...]:
    """The shares of ``parts`` parts from text such as "0.7/0.1/0.2"; None: the default, which a task may have its own.

    Raises:
        InvalidType, InvalidValue: not such a text, or the shares do not sum to 1.
    """
    default = default or {2: (0.8, 0.2), 3: (0.7, 0.1, 0.2)}[parts]
    if split is None:
        return default
    what = "train/val, because the test part is given" if parts == 2 else "train/val/test"
    legal = f"shares {what}, such as {'/'.join(f'{s:g}' for s in default)}, are needed"
    if not isinstance(split, str):
        raise InvalidType(f"split={split!r} is not possible: {legal}.")
    try:
        shares = tuple(float(part) for part in split.split("/"))
    except ValueError as error:
        raise invalid("split", split, legal) from error
    if len(shares) != parts or not all(s > 0 and math.isfinite(s) for s in shares):
        raise invalid("split", split, legal)
    if abs(sum(shares) - 1) > 1e-9:
        raise invalid("split", split, "the shares must sum to 1")
    return shares


def stratified(classes: Sequence[str], groups: Sequence[str] | None, shares: Sequence[float], seed: int) -> np.ndarray:
    """The part, int64 ``(samples,)``, of every sample: 0, 1, ... with about ``shares`` of every class.

    Samples of one group come into one part; a group counts as of its most frequent class. Of every class the first
    part gets at least one group, then each later part one while groups last.
    """
    members: dict[str, list[int]] = {}
    for i in range(len(classes)):
        members.setdefault(f"{i}" if groups is None else groups[i], []).append(i)
    by_class: dict[str, list[str]] = {}
    for group, indices in members.items():
        most = Counter(classes[i] for i in indices).most_common(1)[0][0]
        by_class.setdefault(most, []).append(group)
    part = np.zeros(len(classes), dtype=np.int64)
    generator = np.random.default_rng(seed)
    for name in sorted(by_class):
        drawn = [by_class[name][i] for i in generator.permutation(len(by_class[name]))]
        at = len(drawn)
        for later in range(len(shares) - 1, 0, -1):
            wanted = max(1, round(shares[later] * len(drawn)))
            count = min(wanted, at - later) if at > later else 0
            for group in drawn[at - count : at]:
                part[members[group]] = later
            at -= count
    return part


@dataclass(slots=True)
class Prepared:
    """Samples of equal length, ready to be batched.

    Attributes:
        values: float32 ``(samples, lookback, channels)``, standardised, gaps filled, zeros behind the end.
        lengths: int64 ``(samples,)``.
        labels: int64 ``(samples,)``, indices into ``classes``.
        groups: int64 ``(samples,)``: samples with the same number belong together; each its own number if none do.
        parts: indices of the samples of every split, int64, in random order where no samples belong together (files are
            sorted by class, and neighbours would look dependent to a test of significance).
        classes: names, sorted (as numbers, if they are whole numbers).
        mean, scale: float64 ``(channels,)``, of all steps of the training samples, rounded to float32.
        missing: number of missing values.
        notes: sentences about what was left out or is doubtful.
    """

    values: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    parts: dict[str, np.ndarray]
    classes: tuple[str, ...]
    mean: np.ndarray
    scale: np.ndarray
    missing: int
    notes: list[str]


def prepare_samples(samples: Samples, split: str | None, seed: int) -> Prepared:
    """Divide, scale, fill and pad.

    Raises:
        InvalidValue: one class only, a class that training does not have, too few samples; the message names the file.
    """
    test = samples.test
    assert samples.classes is not None  # read_samples refuses a source without
    shares = read_shares(split, 3 if test is None else 2)
    part = stratified(samples.classes, samples.groups, shares, seed)
    every, classes = list(samples.values), list(samples.classes)
    if test is not None:
        assert test.classes is not None
        if len(test.columns) != len(samples.columns):
            raise InvalidValue(
                f"{test.label!r} has {len(test.columns)} channels, {samples.label!r} has {len(samples.columns)}."
            )
        every += test.values
        classes += test.classes
        part = np.concatenate([part, np.full(len(test.values), 2)])
    _check_labels(classes, part, samples, test)
    names = ordered(set(classes))
    notes: list[str] = []
    rare = [n for n in names if sum(c == n and p == 1 for c, p in zip(classes, part, strict=True)) == 0]
    if rare:
        notes.append(f"{len(rare)} classes have too few samples to be validated, the first is {rare[0]!r}.")
    mean, scale = statistics(np.concatenate([v for v, p in zip(every, part, strict=True) if p == 0]))
    if np.isinf(mean).any() or np.isinf(scale).any():
        raise InvalidValue(f"{samples.label!r} has values that are too large to be scaled: rescale them.")
    constant = [c for c, s in zip(samples.columns, scale, strict=True) if np.isnan(s)]
    if len(constant) == len(samples.columns):
        raise InvalidValue(f"{samples.label!r}: every channel is constant or missing in the training samples.")
    if constant:
        notes.append(f"{len(constant)} channels do not vary in the training samples, the first is {constant[0]!r}.")
    mean, scale = np.nan_to_num(mean, nan=0.0), np.nan_to_num(scale, nan=1.0)
    lookback = max(map(len, every))
    groups = _group_numbers(samples, test)
    parts = {name: np.flatnonzero(part == i) for i, name in enumerate(SPLITS)}
    if samples.groups is None:
        parts = {name: np.random.default_rng(seed).permutation(index) for name, index in parts.items()}
    values = np.stack([pad(scaled(v, mean, scale), lookback) for v in every])
    if not np.isfinite(values).all():
        raise InvalidValue(f"{samples.label!r} has a value that is too far from the training samples to be scaled.")
    return Prepared(
        values=values,
        lengths=np.array([len(v) for v in every]),
        labels=np.array([names.index(c) for c in classes]),
        groups=groups,
        parts=parts,
        classes=names,
        mean=mean,
        scale=scale,
        missing=int(sum(np.isnan(v).sum() for v in every)),
        notes=notes,
    )


def scaled(values: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Standardised float32; a missing value takes the last one before it, before the first one the mean (0)."""
    return fill_from_past(standardise(values, mean, scale))


def rescaled(
    values: np.ndarray, lengths: np.ndarray, mean: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Padded samples scaled by the statistics of all of them instead of ``mean`` and ``scale``.

    Returns:
        The samples, float32, and their mean and scale, float64 ``(channels,)``.
    """
    real = np.arange(values.shape[1]) < lengths[:, None]
    raw = values * scale + mean
    mean, scale = statistics(raw[real])
    scale = np.nan_to_num(scale, nan=1.0)  # a channel that never varies
    return np.where(real[..., None], standardise(raw, mean, scale), np.float32(0)), mean, scale


def pad(values: np.ndarray, length: int) -> np.ndarray:
    """``(steps, channels)`` with zeros behind the end up to ``length``."""
    return np.pad(values, ((0, length - len(values)), (0, 0)))


def _group_numbers(samples: Samples, test: Samples | None) -> np.ndarray:
    """Numbers of the groups in order of first appearance."""
    own = samples.groups or samples.names
    held = () if test is None else tuple(f"test {name}" for name in (test.groups or test.names))
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in (*own, *held)])


def _check_labels(classes: list[str], part: np.ndarray, samples: Samples, test: Samples | None) -> None:
    if len(set(classes)) < 2:
        raise InvalidValue(f"{samples.label!r} has one class only, {classes[0]!r}: at least two are needed.")
    learned = {c for c, p in zip(classes, part, strict=True) if p == 0}
    for name, p in zip(classes, part, strict=True):
        if name not in learned:
            where = (test.label if test is not None and p == 2 else samples.label, SPLITS[p])
            raise InvalidValue(
                f"{where[0]!r}: the class {name!r} occurs in the {where[1]} part but not among the training samples: "
                f"give training samples of it, or remove it."
            )
    if len(learned) < 2:
        raise InvalidValue(f"{samples.label!r} has one class only among the training samples: at least two are needed.")
    for i, name in enumerate(SPLITS):
        if not (part == i).any():
            raise InvalidValue(
                f"{samples.label!r} has too few samples ({len(samples.values)}) for a {name} part: give more."
            )


def ordered(names: set[str]) -> tuple[str, ...]:
    """Names of classes, sorted; as numbers, if all are whole numbers."""
    whole = all(n.removeprefix("-").isdecimal() for n in names)
    return tuple(sorted(names, key=(lambda n: (int(n), n)) if whole else None))
