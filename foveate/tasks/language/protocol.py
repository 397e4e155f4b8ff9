"""Dividing a stream of tokens into parts, and windows of them.

Parts are ranges of *targets*: token ``p + 1`` is the target of place ``p``. No target is in two parts. Training windows
may begin anywhere; validation and test windows cover their part once, each target scored in one window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from ...errors import InvalidType, InvalidValue
from ..classify_series.protocol import read_shares

SPLITS = ("train", "val", "test")
SHARES = (0.9, 0.05, 0.05)
#: Fewer documents are divided by position.
FEWEST_DOCUMENTS = 20
#: Training windows begin at so many places at most, unless that would leave tokens out.
MOST_WINDOWS = 1 << 20


@dataclass(frozen=True, slots=True)
class LanguageInfo:
    """What a model needs to know to be built for text.

    Attributes:
        vocabulary: number of different tokens; the last of them stands between documents.
        context: tokens of a sample.
        packed: samples may hold several documents; batches then carry ``segments``, which models must heed.
    """

    vocabulary: int
    context: int
    packed: bool
    task: ClassVar[str] = "language"

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """From the plain values that ``dataclasses.asdict`` and JSON make of it."""
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows over a stream.

    Attributes:
        begin: int64 ``(windows,)``: place of the first token.
        first, end: int64 ``(windows,)``: places whose targets are scored are ``first ... end - 1``.
    """

    begin: np.ndarray
    first: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.begin)

    @property
    def targets(self) -> int:
        """Targets that are scored."""
        return int((self.end - self.first).sum())


def scoring_windows(begin: int, end: int, context: int, stride: int, most: int | None = None) -> Windows:
    """Windows that score every place of ``begin ... end - 1`` once, each window after the first ``stride`` of them.

    Args:
        context: tokens of a window; what it does not score is read before what it scores.
        stride: at most ``context``, which scores all of a window.
        most: score about so many targets at most, in windows spread evenly; None: all.
    """
    further = max(0, -(-(end - begin - context) // stride))
    ends = (begin + context + stride * np.arange(further + 1)).clip(max=end)
    first = np.concatenate([[begin], ends[:-1]])
    windows = Windows(np.maximum(ends - context, begin), first, ends)
    if most is None or most >= end - begin:
        return windows
    count = max(1, most // stride)
    kept = np.arange(count) * len(ends) // count if count < len(ends) else np.arange(len(ends))
    return Windows(windows.begin[kept], first[kept], ends[kept])


def training_step(places: int, context: int) -> int:
    """Tokens between the places where training windows begin: as few as :data:`MOST_WINDOWS` allows."""
    return min(context, max(1, -(-(places - context + 1) // MOST_WINDOWS)))


def training_count(places: int, context: int) -> int:
    """Number of training windows in so many places; the last one ends with them."""
    step = training_step(places, context)
    return 1 if places <= context else -(-(places - context) // step) + 1


def training_begin(index: np.ndarray, places: int, context: int) -> np.ndarray:
    """Where the training windows ``index`` begin, int64."""
    return np.minimum(index * training_step(places, context), max(0, places - context))


def shares_of(split: str | None) -> tuple[float, ...]:
    """The shares of training, validation and test from text such as "0.8/0.1/0.1"."""
    return read_shares(split, 3, SHARES)


def by_document(lengths: np.ndarray, digests: Sequence[bytes], shares: Sequence[float], seed: int) -> np.ndarray | None:
    """The part of every document, int64 ``(documents,)``: 0, 1 or 2.

    Documents are drawn in random order into test, then validation, as far as they fit in what is left of their share of
    the tokens; copies of a document stay together.

    Returns:
        None: there are fewer than :data:`FEWEST_DOCUMENTS`, or none fits into a part; divide by position.
    """
    if len(lengths) < FEWEST_DOCUMENTS:
        return None
    numbers: dict[bytes, int] = {}
    groups = np.array([numbers.setdefault(d, len(numbers)) for d in digests])
    sizes = np.bincount(groups, weights=lengths)
    part = np.zeros(len(sizes), np.int64)
    room = [0.0, shares[1] * sizes.sum(), shares[2] * sizes.sum()]
    smallest = sizes.min()
    for group in np.random.default_rng(seed).permutation(len(sizes)):
        if max(room) < smallest:
            break
        for later in (2, 1):
            if sizes[group] <= room[later]:
                part[group], room[later] = later, room[later] - sizes[group]
                break
    return part[groups] if set(part.tolist()) == {0, 1, 2} else None


def borders(places: int, shares: Sequence[float], label: str) -> list[int]:
    """``[0, a, b, places]``: the parts by position.

    Raises:
        InvalidValue: a part would be empty.
    """
    found = [0, round(shares[0] * places), round((shares[0] + shares[1]) * places), places]
    if min(np.diff(found)) < 1:
        raise InvalidValue(f"{label!r} has too few tokens ({places}) for a training, a validation and a test part.")
    return found


def check_count(option: str, value: Any, default: int, most: int | None = None) -> int:
    """A positive whole number, or the default for None.

    Raises:
        InvalidType: it is something else, or larger than ``most``.
    """
    if value is None:
        return default
    legal = "a positive whole number" if most is None else f"a whole number from 1 to {most}"
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most is not None and value > most):
        raise InvalidType(f"{option}={value!r} is not possible: {legal} is needed.")
    return value
