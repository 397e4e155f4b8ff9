"""How sure a figure is: bootstrap over videos, whose questions are not independent of each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .base import Figure

if TYPE_CHECKING:
    import numpy as np

#: Draws whose weights are held at once.
_CHUNK = 32


@dataclass(frozen=True, slots=True)
class Interval:
    """Between which values a figure lies in ``level`` of the draws; None where one video is all there is."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure of one model less that of another, on the same videos.

    Attributes:
        value: the difference.
        interval: of the difference.
        p: two-sided, how often a draw's difference is on the other side of 0, twice.
    """

    value: float
    interval: Interval
    p: float


def intervals(
    figures: Sequence[Figure], *, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[tuple[str, str], Interval]:
    """Percentile intervals of figures, all from the same draws of videos with replacement.

    Figures of fewer than two videos are left out, and those of which no draw has every part.
    """
    import numpy as np

    values = _resampled([figures], draws, seed)[0]
    tails = [50 * (1 - level), 50 * (1 + level)]
    found = {}
    for place, figure in enumerate(figures):
        drawn = values[:, place]
        drawn = drawn[~np.isnan(drawn)]
        if len(_clusters(figure)) > 1 and figure.value is not None and len(drawn):
            low, high = np.percentile(drawn, tails)
            found[figure.key] = Interval(float(low), float(high))
    return found


def differences(
    ours: Sequence[Figure], others: Sequence[Figure], *, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[tuple[str, str], Difference]:
    """Figures less those of the same name of another model, each draw taking the same videos of both."""
    import numpy as np

    other = {figure.key: figure for figure in others}
    shared = [f for f in ours if f.key in other and f.value is not None and other[f.key].value is not None]
    mine, theirs = _resampled([shared, [other[f.key] for f in shared]], draws, seed)
    found = {}
    for place, figure in enumerate(shared):
        if len(_clusters(figure)) < 2:
            continue
        drawn = mine[:, place] - theirs[:, place]
        drawn = drawn[~np.isnan(drawn)]
        if not len(drawn):
            continue
        low, high = np.percentile(drawn, [50 * (1 - level), 50 * (1 + level)])
        # One is added to both counts: a share of draws is no smaller than one of them.
        below, above = (int((side).sum()) + 1 for side in (drawn <= 0, drawn >= 0))
        p = min(1.0, 2 * min(below, above) / (len(drawn) + 1))
        found[figure.key] = Difference(
            float(figure.value or 0) - float(other[figure.key].value or 0), Interval(float(low), float(high)), p
        )
    return found


def _clusters(figure: Figure) -> set[str]:
    return set().union(*map(_clusters, figure.parts)) if figure.parts else set(figure.clusters)


def _resampled(models: Sequence[Sequence[Figure]], draws: int, seed: int) -> list[np.ndarray]:
    """Values of every figure of every model, ``(draws, figures)`` each, NaN where a draw has no unit of it."""
    import numpy as np

    videos = {v: i for i, v in enumerate(sorted({v for m in models for f in m for v in _clusters(f)}))}
    leaves: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def collect(figure: Figure) -> None:
        for part in figure.parts:
            collect(part)
        if not figure.parts and id(figure) not in leaves:
            at = np.fromiter((videos[v] for v in figure.clusters), np.int64, len(figure.clusters))
            sums = np.bincount(at, weights=figure.marks, minlength=len(videos))
            counts = np.bincount(at, minlength=len(videos))
            used = np.flatnonzero(counts)
            leaves[id(figure)] = used, np.stack([sums[used], counts[used]]).astype(np.float32)

    for figures in models:
        for figure in figures:
            collect(figure)
    generator = np.random.default_rng(seed)
    drawn = {place: [] for place in leaves}
    for start in range(0, draws, _CHUNK):
        weights = np.stack(
            [
                np.bincount(generator.integers(0, len(videos), len(videos)), minlength=len(videos))
                for _ in range(min(_CHUNK, draws - start))
            ]
        ).astype(np.float32)
        for place, (used, table) in leaves.items():
            taken = weights if len(used) == len(videos) else weights[:, used]
            drawn[place].append(np.einsum("dv,kv->dk", taken, table))  # BLAS would wake threads for so little
    with np.errstate(invalid="ignore"):
        means = {place: (t := np.concatenate(parts))[:, 0] / t[:, 1] for place, parts in drawn.items()}

    def value(figure: Figure) -> np.ndarray:
        if not figure.parts:
            return figure.scale * means[id(figure)]
        return np.mean([value(part) for part in figure.parts if part.value is not None], axis=0)

    return [np.stack([value(f) for f in m], 1) if m else np.empty((draws, 0)) for m in models]
