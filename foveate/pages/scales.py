"""Where things stand in a chart: scales with round ticks, and labels that keep out of each other's way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from . import figures


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values to positions.

    Attributes:
        low, high: the values at ``start`` and ``end``.
        start, end: positions in drawing units; ``end`` may be smaller (an axis that points up).
        log: equal ratios are equally far apart; needs positive values.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        place = math.log10(value) if self.log else value
        return self.start + (place - low) / (high - low) * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[tuple[float, str]]:
        """Round values inside the scale with their texts, about so many."""
        if self.log:
            return log_ticks(self.low, self.high, about)
        values = linear_ticks(self.low, self.high, about)
        step = values[1] - values[0] if len(values) > 1 else 1.0
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        if max(abs(self.low), abs(self.high)) >= 1e5:
            return [(v, round_count(v)) for v in values]
        return [(v, f"{v + 0.0:,.{decimals}f}") for v in values]


def fit_scale(
    values: Sequence[float], start: float, end: float, *, log: bool = False, margin: float = 0.06, zero: bool = False
) -> Scale:
    """A scale that holds all values with a margin (a share of its length) at both ends; ``zero``: 0 as well."""
    low, high = min(values), max(values)
    if log:
        span = math.log10(high / low) or 0.5
        return Scale(low / 10 ** (margin * span), high * 10 ** (margin * span), start, end, log=True)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    span = (high - low) or abs(high) or 1.0
    return Scale(low - (0 if zero and low == 0 else margin * span), high + margin * span, start, end)


def linear_ticks(low: float, high: float, about: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten inside [low, high]."""
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def log_ticks(low: float, high: float, about: int) -> list[tuple[float, str]]:
    """Powers of ten, with their double and fivefold while there are few; linear ticks inside less than a decade."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in ((1, 2, 5), (1, 3), (1,)):
        values = [m * 10.0**e for e in exponents for m in mantissas if low <= m * 10.0**e <= high]
        if len(values) <= about + 1:
            break
    if len(values) < 2:
        return Scale(low, high, 0, 1).ticks(about)
    thin = -(-len(values) // (about + 1))
    return [(v, f"{v:g}" if 1e-4 <= v < 1e4 else round_count(v)) for v in values[::thin]]


def round_count(value: float) -> str:
    """A round number in few characters: 20k, 1.5M; very small ones in scientific form."""
    if 0 < abs(value) < 1:
        return f"{value:.0e}"
    number, unit = figures.count(value), ""
    if number[-1].isalpha():
        number, unit = number[:-1], number[-1]
    return (number.rstrip("0").rstrip(".") if "." in number else number) + unit


def spread_apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions as near as possible to ``places``, in the same order, at least ``gap`` apart, inside [low, high].

    Neighbours that would overlap are merged into blocks around the mean of their wishes (the pool-adjacent-violators
    way); where there is no room for all, they stand ``gap`` or less apart over the whole length.
    """
    count = len(places)
    if count > 1:
        gap = min(gap, (high - low) / (count - 1))
    order = sorted(range(count), key=lambda i: places[i])
    blocks: list[tuple[float, int]] = []  # (position of the first, number of labels)
    for i in order:
        first, size = places[i], 1
        first = min(max(first, low), high)
        while blocks and blocks[-1][0] + blocks[-1][1] * gap > first:
            before, length = blocks.pop()
            # The block's wish: the mean of each member's wish minus its offset in the block.
            first = (before * length + (first - length * gap) * size) / (length + size)
            size += length
            first = min(max(first, low), high - (size - 1) * gap)
        blocks.append((first, size))
    positions = [first + k * gap for first, size in blocks for k in range(size)]
    placed = [0.0] * count
    for i, position in zip(order, positions, strict=True):
        placed[i] = position
    return placed


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle that a label or a mark covers."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Shared area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)

    def outside(self, frame: Box) -> float:
        """Area that sticks out of ``frame``."""
        return (self.right - self.left) * (self.bottom - self.top) - self.overlap(frame)


def text_width(text: str, size: float) -> float:
    """Width of a text in a common sans-serif face, near enough for placing it."""
    return sum(0.3 if c in "iljtf.,:;'|()[]I " else 0.85 if c in "mwMW@" else 0.56 for c in text) * size


@dataclass(frozen=True, slots=True)
class Label:
    """A placed label: its anchor point for ``text-anchor`` ``anchor`` and the box it covers."""

    x: float
    y: float
    anchor: str
    box: Box


def place_labels(
    points: Sequence[tuple[float, float]], texts: Sequence[str], frame: Box, size: float, radius: float = 6.0
) -> list[Label | None]:
    """A place for each text beside its point, that covers no point and no other label if there is one; "" gets none.

    Greedy, the earlier texts choose first; candidates go around the point at growing distances.
    """
    marks = [Box(x - radius, y - radius, x + radius, y + radius) for x, y in points]
    placed: list[Label | None] = []
    for (x, y), text in zip(points, texts, strict=True):
        if not text:
            placed.append(None)
            continue
        width, height = 1.12 * text_width(text, size), size * 1.15  # names are bold
        best: tuple[float, Label] | None = None
        for distance in (radius + 3, radius + 12, radius + 24, radius + 38, radius + 56, radius + 76):
            for right, down in ((1, 0), (-1, 0), (0, -1), (0, 1), (0.8, -0.8), (-0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)):
                label = _candidate(x + right * distance, y + down * distance, right, down, width, height)
                hidden = sum(label.box.overlap(m) for m in marks) + sum(label.box.overlap(p.box) for p in placed if p)
                penalty = 4 * hidden + 20 * label.box.outside(frame) + distance
                if best is None or penalty < best[0]:
                    best = (penalty, label)
            if best is not None and best[0] < distance + 1:
                break
        placed.append(best[1] if best else None)
    return placed


def _candidate(x: float, y: float, right: float, down: float, width: float, height: float) -> Label:
    """A label whose near edge is at (x, y), seen in the given direction from its point."""
    left = x if right > 0 else x - width if right < 0 else x - width / 2
    middle = y + (height / 2 if down > 0 else -height / 2 if down < 0 else 0)
    anchor = "start" if right > 0 else "end" if right < 0 else "middle"
    box = Box(left, middle - height / 2, left + width, middle + height / 2)
    return Label(x, middle + height * 0.3, anchor, box)
