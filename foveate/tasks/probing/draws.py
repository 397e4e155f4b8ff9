"""Drawing samples with NumPy, many at once.

Sample ``i`` of a part depends on (probe, options, seed, part, ``i``) alone, not on how many there are: samples are
drawn in blocks, each with a random generator of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..state import seed_from

#: Samples that one random generator draws, and tokens that these have at most (one sample may have more).
BLOCK, TOKENS = 256, 1 << 20


@dataclass(frozen=True, slots=True)
class Drawn:
    """Samples of a probe.

    Attributes:
        tokens: int64 ``(samples, length)``, what is read.
        places: int64 ``(samples, answers)``: where an answer is asked for; -1: fewer are asked for in this sample.
        answers: int64 ``(samples, answers)``: the tokens that should follow there.
        groups: int64 ``(samples,)``: what kind of sample it is, where scores are told by kind (the depth of a passkey).
    """

    tokens: np.ndarray
    places: np.ndarray
    answers: np.ndarray
    groups: np.ndarray


def drawn(
    tokens: np.ndarray, places: np.ndarray | Sequence[int], answers: np.ndarray, groups: np.ndarray | None = None
) -> Drawn:
    """Samples of int64; ``places`` may be one row for all, ``groups`` None for one group."""
    rows = len(tokens)
    spread = np.broadcast_to(np.asarray(places, np.int64), answers.shape)
    kinds = np.zeros(rows, np.int64) if groups is None else groups
    return Drawn(tokens.astype(np.int64), spread.copy(), answers.astype(np.int64), kinds.astype(np.int64))


def draw(make: Callable[[np.random.Generator, np.ndarray], Drawn], count: int, length: int, *seed: object) -> Drawn:
    """The first ``count`` samples of a seed.

    Args:
        make: (random generator, int64 numbers of the samples) to these samples, the same number of them.
        length: of a sample, which decides how many are drawn at once.
        seed: what the samples depend on.
    """
    blocks, rows = [], max(1, min(BLOCK, TOKENS // length))
    for number, first in enumerate(range(0, count, rows)):
        generator = np.random.default_rng(seed_from(*seed, number))
        blocks.append(make(generator, np.arange(first, first + rows)))
    names = ("tokens", "places", "answers", "groups")
    return Drawn(*(np.concatenate([getattr(block, name) for block in blocks])[:count] for name in names))


def distinct(generator: np.random.Generator, rows: int, count: int, low: int, high: int) -> np.ndarray:
    """``count`` different numbers of ``[low, high)`` in each row, every ordered choice equally likely.

    Floyd's algorithm (Bentley and Floyd, 1987) along the columns, all rows at once; then each row is shuffled.
    """
    size = high - low
    chosen = np.empty((rows, count), np.int64)
    for column, last in enumerate(range(size - count, size)):
        tried = generator.integers(0, last + 1, rows)
        taken = (chosen[:, :column] == tried[:, None]).any(1)
        chosen[:, column] = np.where(taken, last, tried)
    return low + generator.permuted(chosen, axis=1)


def weighted(generator: np.random.Generator, rows: int, count: int, weights: np.ndarray) -> np.ndarray:
    """``count`` different indices in each row, drawn one after the other with chances in proportion to ``weights``.

    As a race of exponential clocks: the first to ring is drawn first (Efraimidis and Spirakis, 2006).
    """
    clocks = generator.exponential(size=(rows, len(weights))) / weights
    return np.argsort(clocks, axis=1)[:, :count]
