"""Heat maps as inline SVG: shares from 0 to 1 over two axes, drawn as the other charts are."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .charts import FONT, WIDTH, _n, _svg, _text
from .scales import text_width

CELL = 34.0


def heat_map(
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
