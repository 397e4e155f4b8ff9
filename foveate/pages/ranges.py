"""Values with intervals beside reference values, a line each, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from .scales import Scale, linear_ticks, text_width

_ROW, _TOP, _WIDTH, _BOTTOM = 26.0, 8.0, 620.0, 24.0
_MOST_NAMES = 210.0  # room for names at the left, at most
#: Shapes of reference values, in order: paths around (0, 0).
_SHAPES = ("M0-7V7", "M-4-4L4 4M-4 4L4-4", "M0-5L5 4H-5Z", "M-4-4H4V4H-4Z")


@dataclass(frozen=True, slots=True)
class Range:
    """One line of a chart.

    Attributes:
        name: at its left.
        value: a dot.
        low, high: ends of its whisker; None: without one.
        references: other values by name, such as what chance gives.
        text: the value in words, at the right.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    references: Mapping[str, float] = field(default_factory=dict)
    text: str = ""


def reference_names(ranges: Sequence[Range]) -> list[str]:
    """Names of all references, in order of their first line: their shapes are given in this order."""
    return list(dict.fromkeys(name for r in ranges for name in r.references))


def range_chart(
    ranges: Sequence[Range], names: Sequence[str], *, title: str, low: float = 0.0, high: float = 100.0
) -> str:
    """A chart of ranges between two ends; "" without lines.

    Args:
        ranges: its lines.
        names: of all references, which are drawn as the small shapes that :func:`shape_key` gives for them.
        title: for whoever cannot see it.
        low, high: ends of its axis.
    """
    if not ranges:
        return ""
    left = min(_MOST_NAMES, max(text_width(r.name, 13) for r in ranges) + 18)
    x = Scale(low, high, left, _WIDTH - 64)
    bottom = _TOP + _ROW * len(ranges)
    body = []
    for tick in linear_ticks(low, high, 5):
        body.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_TOP}" y2="{bottom:.1f}"/>')
        body.append(f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{tick:g}</text>')
    for place, r in enumerate(ranges):
        y = _TOP + _ROW * (place + 0.5)
        name = r.name
        while text_width(name, 13) > left - 16 and len(name) > 2:
            name = name[:-2].rstrip() + "…"
        body.append(f'<text x="{left - 14:.1f}" y="{y + 4.5:.1f}" text-anchor="end">{escape(name)}</text>')
        for reference, value in r.references.items():
            shape = _SHAPES[names.index(reference) % len(_SHAPES)]
            what = f"{escape(reference)} {value:.1f}"
            where = f"translate({x(value):.1f} {y:.1f})"
            body.append(
                f'<path class="reference" d="{shape}" transform="{where}"><title>{what}</title></path>',
            )
        if r.low is not None and r.high is not None:
            body.append(
                f'<line class="whisker tone-1" x1="{x(r.low):.1f}" x2="{x(r.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
        body.append(f'<circle class="mark tone-1" cx="{x(r.value):.1f}" cy="{y:.1f}" r="5"/>')
        body.append(f'<text class="tick" x="{_WIDTH - 48:.1f}" y="{y + 4.5:.1f}">{escape(r.text)}</text>')
    height = bottom + _BOTTOM
    told = "; ".join(f"{r.name} {r.text or f'{r.value:.1f}'}" for r in ranges)
    return (
        f'<svg class="chart ranges" viewBox="0 0 {_WIDTH:.0f} {height:.0f}" role="img">'
        f"<title>{escape(title)}</title><desc>{escape(told)}</desc>{''.join(body)}</svg>"
    )


def shape_key(names: Sequence[str]) -> list[tuple[str, str]]:
    """(name, drawing) of each reference, for a legend."""
    shapes = (f'<path class="reference" d="{_SHAPES[place % len(_SHAPES)]}"/>' for place in range(len(names)))
    frame = '<svg class="shape" viewBox="-8 -8 16 16" aria-hidden="true">'
    return [(name, f"{frame}{shape}</svg>") for name, shape in zip(names, shapes, strict=True)]
