"""Heat maps as inline SVG: shares over two named axes, and matrices as they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from .charts import FONT, WIDTH, _n, _svg, _text
from .scales import text_width

CELL = 34.0
#: Shades of a matrix between nothing and its largest number.
LEVELS = 8


def share_map(
    values: Sequence[Sequence[float | None]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    description: str,
    row_label: str,
    column_label: str,
    tone: int = 1,
) -> str:
    """Cells coloured and labelled by their share; "" if there is nothing to draw.

    Args:
        values: shares from 0 to 1 in rows from the top down; None: not measured, an empty cell.
        rows, columns: names of the axes' places.
        title, description: for screen readers.
        row_label, column_label: names of the axes.
        tone: 1 to 8, or 0 for the background.
    """
    if not values or not columns:
        return ""
    left = max(text_width(name, FONT) for name in rows) + 14
    wide = (WIDTH - left - 10) / len(columns)
    top, bottom = 26.0, 26.0 + CELL * len(rows)
    body = [_text(left, top - 11, row_label, "label")]
    for y, (name, line) in enumerate(zip(rows, values, strict=True)):
        middle = top + CELL * (y + 0.5) + FONT * 0.33
        body.append(_text(left - 7, middle, name, "tick", "end"))
        for x, value in enumerate(line):
            if value is None:
                continue
            share = min(max(value, 0.0), 1.0)
            place = f'x="{_n(left + wide * x)}" y="{_n(top + CELL * y)}" width="{_n(wide - 2)}" height="{_n(CELL - 2)}"'
            note = escape(f"{name}, {columns[x]}: {share:.3f}")
            opacity = f"{0.06 + 0.94 * share:.2f}"
            body.append(
                f'<rect class="heat tone-{tone}" {place} rx="3" fill-opacity="{opacity}"><title>{note}</title></rect>'
            )
            kind = "heat-value strong" if share > 0.5 else "heat-value"
            body.append(_text(left + wide * (x + 0.5) - 1, middle - 1, f"{100 * share:.0f}", kind, "middle"))
    for x, name in enumerate(columns):
        body.append(_text(left + wide * (x + 0.5) - 1, bottom + FONT + 4, name, "tick", "middle"))
    body.append(_text(WIDTH - 10, bottom + 2 * FONT + 9, column_label, "label", "end"))
    return _svg(WIDTH, bottom + 2 * FONT + 16, title, description, body, "heatmap")


def matrix_map(
    rows: Sequence[Sequence[float]], *, title: str, description: str, row_name: str, column_name: str
) -> str:
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
