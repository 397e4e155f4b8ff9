"""Small matrices as pictures: a square for each number, by sign and size."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .charts import _n, _svg, _text

#: Shades between nothing and the largest number.
LEVELS = 8


def heatmap(rows: Sequence[Sequence[float]], *, title: str, description: str, row_name: str, column_name: str) -> str:
    """A matrix as inline SVG: positive numbers in one tone, negative ones in another, by the size of their root.

    Args:
        rows: numbers, first row on top; what is not finite is left out.
        title, description: for screen readers.
        row_name, column_name: what the axes count.

    Returns:
        The drawing; "" for an empty matrix.
    """
    if not rows or not rows[0]:
        return ""
    finite = [abs(value) for row in rows for value in row if math.isfinite(value)]
    most = max(finite, default=0.0) or 1.0
    # Equal shades are one path, equal neighbours one stretch of it: a page holds many thousand squares.
    paths: dict[tuple[int, int], list[str]] = {}
    for i, row in enumerate(rows):
        shades = [_shade(value, most) for value in row]
        start = 0
        for j in range(1, len(row) + 1):
            if j < len(row) and shades[j] == shades[start]:
                continue
            if shades[start][1]:
                paths.setdefault(shades[start], []).append(f"M{start} {i}h{j - start}v1H{start}z")
            start = j
    side, width, height = 300.0, len(rows[0]), len(rows)
    body = [f'<rect class="future" x="0" y="20" width="{_n(side)}" height="{_n(side * height / width)}"/>']
    body.append(f'<g transform="translate(0 20) scale({side / width:.5g})">')
    for (tone, level), stretches in sorted(paths.items()):
        shape = "".join(stretches)
        body.append(f'<path class="dot tone-{tone}" fill-opacity="{level / LEVELS:.3g}" d="{shape}"/>')
    body += ["</g>", _text(0, 13, f"{row_name} ↓   {column_name} →", "tick")]
    return _svg(side, 20 + side * height / width, title, description, body, "heatmap")


def _shade(value: float, most: float) -> tuple[int, int]:
    """(tone, level): the root, so that weights a hundredth of the largest can still be seen."""
    if not math.isfinite(value):
        return 1, 0
    return (1 if value > 0 else 2), math.ceil(LEVELS * math.sqrt(abs(value) / most) - 0.5)
