"""How a cost grows with a size: the exponent of a power law, fitted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InvalidValue


@dataclass(frozen=True, slots=True)
class Growth:
    """``value ~ size ** exponent``.

    Attributes:
        exponent: by least squares on logarithms: 1 = linear, 2 = quadratic.
        error: its standard error; None with two points, which a line always meets.
        points: number of sizes.
    """

    exponent: float
    error: float | None
    points: int

    def text(self) -> str:
        """As people read it: "1.02 ±0.01"."""
        return f"{self.exponent:.2f}" + ("" if self.error is None else f" ±{self.error:.2f}")


def fit_growth(sizes: Sequence[float], values: Sequence[float]) -> Growth:
    """Fit the exponent.

    Args:
        sizes: at least two different ones, positive.
        values: a time, a number of bytes, ..., one for each size, positive.

    Raises:
        InvalidValue: too few sizes, or a number that is not positive.
    """
    if len(sizes) != len(values) or len(set(sizes)) < 2:
        raise InvalidValue(
            f"{len(values)} values at {len(set(sizes))} sizes: growth needs a value for each of two or more sizes."
        )
    if min(sizes) <= 0 or min(values) <= 0:
        raise InvalidValue("a size or a value is not positive: growth is fitted to their logarithms.")
    x, y = [math.log(s) for s in sizes], [math.log(v) for v in values]
    n = len(x)
    mean_x, mean_y = sum(x) / n, sum(y) / n
    spread = sum((a - mean_x) ** 2 for a in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    rest = sum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    return Growth(slope, math.sqrt(rest / (n - 2) / spread) if n > 2 else None, n)
