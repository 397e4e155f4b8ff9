"""Charts as inline SVG: lines, scatter and forecasts.

Colours are CSS classes (``tone-1`` ... ``tone-8``, ``tone-0`` for what is in the background), so one drawing follows
light and dark; the page defines them. Series are labelled directly, tones come with different markers and dashes, and
every chart has a title and a description for screen readers. Texts are escaped here: names come from users.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from .figures import significant
from .scales import Box, Scale, fit_scale, place_labels, spread_apart, text_width

#: Drawing units; charts are scaled to the width of their column, about 1:1 on a desktop.
WIDTH, HEIGHT = 540.0, 340.0
FONT = 13.0


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart.

    Attributes:
        name: label at its end; "" for none.
        points: (x, y) in order; y None or not finite breaks the line.
        tone: 1 to 8, or 0 for the background.
        faint: a thin, pale line (a further seed).
        dashed: for baselines and truth.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    tone: int = 1
    faint: bool = False
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Point:
    """One mark of a scatter chart.

    Attributes:
        x, y: values.
        low, high: ends of the whisker along x, or None.
        spread: half the length of the whisker along y, or None.
        note: shown on hovering.
        front: it lies on the Pareto front.
        baseline: it may stand at the edge, if it would press the others together.
        named: its name is written beside it, not only shown on hovering.
    """

    name: str
    x: float
    y: float
    tone: int = 1
    low: float | None = None
    high: float | None = None
    spread: float | None = None
    note: str = ""
    front: bool = False
    baseline: bool = False
    named: bool = True


def _n(value: float) -> str:
    """A coordinate in few characters."""
    return f"{value:.1f}".removesuffix(".0")


def _svg(width: float, height: float, title: str, description: str, body: Sequence[str], kind: str) -> str:
    return (
        f'<svg class="chart {kind}" viewBox="0 0 {_n(width)} {_n(height)}" role="img" focusable="false">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(body)}</svg>"
    )


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{_n(x)}" y="{_n(y)}" class="{kind}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _axes(x: Scale, y: Scale, x_label: str, y_label: str, x_ticks: list[tuple[float, str]] | None = None) -> list[str]:
    """Grid lines with their values, and the names of the axes: y's above the plot, where it needs no turning."""
    left, right, bottom, top = x.start, x.end, y.start, y.end
    parts = []
    for value, text in y.ticks(5):
        place = y(value)
        parts.append(f'<line class="grid" x1="{_n(left)}" x2="{_n(right)}" y1="{_n(place)}" y2="{_n(place)}"/>')
        parts.append(_text(left - 7, place + FONT * 0.33, text, "tick", "end"))
    free = left - 40.0
    for value, text in x.ticks(5) if x_ticks is None else x_ticks:
        place, half = x(value), text_width(text, FONT) / 2
        centre = min(max(place, left - 40 + half), right + 8 - half)  # texts at the ends stay inside the drawing
        if centre - half < free:
            continue
        free = centre + half + 10
        parts.append(f'<line class="grid" x1="{_n(place)}" x2="{_n(place)}" y1="{_n(top)}" y2="{_n(bottom)}"/>')
        parts.append(_text(centre, bottom + FONT + 6, text, "tick", "middle"))
    parts.append(f'<line class="axis" x1="{_n(left)}" x2="{_n(right)}" y1="{_n(bottom)}" y2="{_n(bottom)}"/>')
    if x_label:
        parts.append(_text(right, bottom + 2 * FONT + 11, x_label, "label", "end"))
    parts.append(_text(left, top - 11, y_label, "label", "start"))
    return parts


def _path(points: Sequence[tuple[float, float | None]], x: Scale, y: Scale) -> str:
    """Path data; missing values lift the pen, values outside a log scale's reach as well."""
    parts, pen = [], "M"
    for place, value in points:
        if value is None or not math.isfinite(value) or (y.log and value <= 0):
            pen = "M"
            continue
        parts.append(f"{pen}{_n(x(place))} {_n(y(value))}")
        pen = "L"
    return "".join(parts)


def _visible(lines: Sequence[Line], log: bool) -> list[tuple[float, float]]:
    return [
        (x, y)
        for line in lines
        for x, y in line.points
        if y is not None and math.isfinite(y) and (y > 0 or not log)
    ]  # fmt: skip


def wants_log(values: Sequence[float]) -> bool:
    """Whether a chart of these values is easier to read on a logarithmic scale."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > 12


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    log: bool | None = None,
    x_ticks: Sequence[tuple[float, str]] | None = None,
) -> str:
    """Lines over a common axis, named at their ends; "" if there is nothing to draw.

    Args:
        log: logarithmic y axis; None decides by the range of the values.
        x_ticks: positive places on a logarithmic x axis with their texts; None: an axis from 0 on.
    """
    values = [y for _, y in _visible(lines, log=False)]
    if not values:
        return ""
    log = wants_log(values) if log is None else log
    shown = _visible(lines, log)
    named = [line for line in lines if line.name and _visible([line], log)]
    room = 1.1 * max([text_width(line.name, FONT) for line in named], default=0.0)
    left, right = 54.0, WIDTH - min(room, 190.0) - 22
    if x_ticks is None:
        x = Scale(0.0, max(max(place for place, _ in shown), 1e-9), left, right)
    else:
        x = fit_scale([place for place, _ in shown], left, right, log=True, margin=0.02)
    y = fit_scale([v for _, v in shown], HEIGHT - 48, 30, log=log)
    ticks = None if x_ticks is None else list(x_ticks)
    body = _axes(x, y, x_label, f"{y_label}, log scale" if log else y_label, ticks)
    # Background and faint lines first, so that the others lie on top.
    for line in sorted(lines, key=lambda line: (line.tone != 0, not line.faint)):
        kind = f"line tone-{line.tone}" + (" faint" if line.faint else "") + (" dashed" if line.dashed else "")
        body.append(f'<path class="{kind}" d="{_path(line.points, x, y)}"><title>{escape(line.name)}</title></path>')
    ends = [_visible([line], log)[-1] for line in named]
    places = spread_apart([y(value) for _, value in ends], FONT * 1.2, y.end, y.start)
    for line, (end, value), place in zip(named, ends, places, strict=True):
        body.append(f'<circle class="dot tone-{line.tone}" cx="{_n(x(end))}" cy="{_n(y(value))}" r="2.6"/>')
        if abs(place - y(value)) > 3 or end < x.high:
            corner = f"{_n(x(end) + 4)},{_n(y(value))} {_n(right + 5)},{_n(place)} {_n(right + 10)},{_n(place)}"
            body.append(f'<polyline class="leader tone-{line.tone}" points="{corner}"/>')
        body.append(_text(right + 13, place + FONT * 0.33, line.name, f"name tone-{line.tone}"))
    return _svg(WIDTH, HEIGHT, title, description, body, "lines")


def _marker(tone: int, x: float, y: float, size: float = 5.5) -> str:
    """A mark whose form also tells its tone."""
    kind, s = f'class="mark tone-{tone}"', size
    if tone in (2, 6):
        return f'<rect {kind} x="{_n(x - s)}" y="{_n(y - s)}" width="{_n(2 * s)}" height="{_n(2 * s)}"/>'
    corners = {
        3: [(0, -1.35 * s), (1.35 * s, 0), (0, 1.35 * s), (-1.35 * s, 0)],
        4: [(0, -1.25 * s), (1.2 * s, s), (-1.2 * s, s)],
        7: [(0, 1.25 * s), (1.2 * s, -s), (-1.2 * s, -s)],
    }
    if tone in corners:
        points = " ".join(f"{_n(x + dx)},{_n(y + dy)}" for dx, dy in corners[tone])
        return f'<polygon {kind} points="{points}"/>'
    return f'<circle {kind} cx="{_n(x)}" cy="{_n(y)}" r="{_n(s)}"/>'


def scatter(
    points: Sequence[Point],
    *,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    higher_is_better: bool = False,
) -> str:
    """Quality (y) against a cost (x), points named, the Pareto front as a staircase; "" without points.

    Baselines that are far worse than everything else stand at the edge, with their value, instead of pressing the
    others into a corner; so do costs of 0 where the others need a logarithmic axis.

    Args:
        higher_is_better: direction of y; smaller x is always better.
    """
    if not points:
        return ""
    left, right, bottom, top = 56.0, WIDTH - 16, HEIGHT - 48, 30.0
    positive = [p.x for p in points if p.x > 0]
    log_x = wants_log(positive)
    x = fit_scale(positive if log_x else [p.x for p in points], left, right, log=log_x, margin=0.12)
    heights = [p.y + sign * (p.spread or 0.0) for p in _focus(points) for sign in (-1, 1)]
    log_y = wants_log([p.y for p in points]) and min(heights) > 0
    y = fit_scale(heights, bottom, top, log=log_y, margin=0.1)
    points = [_inside(p, x, y) for p in points]
    body = _axes(x, y, x_label + (", log scale" if log_x else ""), y_label + (", log scale" if log_y else ""))
    body += _staircase([p for p in points if p.front], x, y, higher_is_better)
    places = [(x(p.x), y(p.y)) for p in points]
    for point, (px, py) in zip(points, places, strict=True):
        whiskers = ""
        if point.spread:
            above, below = y(point.y + point.spread), y(point.y - point.spread)
            whiskers += f"M{_n(px)} {_n(above)}V{_n(below)}"
        if point.low is not None and point.high is not None and point.low > 0:
            # Within the plot: a slow outlier may lie beyond it.
            whiskers += f"M{_n(max(x(point.low), left))} {_n(py)}H{_n(min(x(point.high), right))}"
        if whiskers:
            body.append(f'<path class="whisker tone-{point.tone}" d="{whiskers}"/>')
        note = escape(point.note or point.name)
        body.append(f"<g>{_marker(point.tone, px, py)}<title>{note}</title></g>")
    labels = place_labels(
        places, [p.name if p.named else "" for p in points], Box(left, top - 6, right + 12, bottom), FONT
    )
    for label, point, (px, py) in zip(labels, points, places, strict=True):
        if label is None:
            continue
        edge = min(max(px, label.box.left), label.box.right)
        if math.hypot(edge - px, label.y - FONT * 0.33 - py) > 22:
            near = label.box.bottom if label.box.bottom < py else label.box.top
            body.append(f'<path class="leader tone-{point.tone}" d="M{_n(px)} {_n(py)}L{_n(edge)} {_n(near)}"/>')
        body.append(_text(label.x, label.y, point.name, f"name tone-{point.tone}", label.anchor))
    return _svg(WIDTH, HEIGHT, title, description, body, "scatter")


def _focus(points: Sequence[Point]) -> list[Point]:
    """The points that decide the y axis: all, or without baselines if those would take most of it."""
    others = [p.y for p in points if not p.baseline]
    if len(others) < 2:
        return list(points)
    low, high = min(others), max(others)
    reach = max(high - low, 0.02 * abs(high))
    return [p for p in points if not p.baseline or low - reach <= p.y <= high + reach]


def _inside(point: Point, x: Scale, y: Scale) -> Point:
    """The same point, moved to the edge of the plot if it lies outside, its name then telling its value."""
    if y.low <= point.y <= y.high and x.low <= point.x:
        return point
    beyond = "" if y.low <= point.y <= y.high else f" {'↑' if point.y > y.high else '↓'}{significant(point.y, 3)}"
    height = min(max(point.y, y.low), y.high)
    return replace(point, name=point.name + beyond, x=max(point.x, x.low), y=height, spread=None, low=None)


def _staircase(front: Sequence[Point], x: Scale, y: Scale, higher_is_better: bool) -> list[str]:
    """The border of what is dominated: right of the front's points and worse."""
    if not front:
        return []
    ordered = sorted(front, key=lambda p: (p.x, p.y if not higher_is_better else -p.y))
    worst = y.end if not higher_is_better else y.start
    path = f"M{_n(x(ordered[0].x))} {_n(worst)}V{_n(y(ordered[0].y))}"
    for point in ordered[1:]:
        path += f"H{_n(x(point.x))}V{_n(y(point.y))}"
    path += f"H{_n(x.end)}"
    area = f"{path}V{_n(worst)}Z"
    return [f'<path class="dominated" d="{area}"/>', f'<path class="front" d="{path}"/>']


def forecast_panel(
    history: Sequence[float | None],
    truth: Sequence[float | None],
    prediction: Sequence[float | None],
    times: Sequence[str],
    *,
    title: str,
    description: str,
    tone: int = 1,
    reach: tuple[float, float] | None = None,
    bands: Sequence[tuple[Sequence[float | None], Sequence[float | None]]] = (),
) -> str:
    """What was seen, what came and what was predicted, over time; "" if nothing of it was measured.

    Args:
        times: ISO 8601 texts of all steps of ``history`` and ``truth``; too few: steps are counted from the origin.
        bands: lower and upper ends of intervals of the prediction.
        reach: smallest and largest value of the y axis, so that several panels compare; None: from the values.
    """
    past = len(history)
    ends = [v for band in bands for end in band for v in end]
    everything = [v for v in (*history, *truth, *prediction, *ends) if v is not None and math.isfinite(v)]
    if not everything:
        return ""
    width, height = 400.0, 210.0
    x = Scale(0.0, max(past + len(truth) - 1.0, 1.0), 46.0, width - 10)
    y = fit_scale(reach or everything, height - 26, 24, margin=0.05)
    begin = x(past - 0.5) if past else x.start
    body = [f'<rect class="future" x="{_n(begin)}" y="24" width="{_n(x.end - begin)}" height="{_n(y.start - 24)}"/>']
    body += _axes(x, y, "", title, time_ticks(times, past, past + len(truth)))
    # The last known value joins what follows it, so that the lines do not begin in the air.
    joint = [(past - 1.0, history[-1])] if past else []
    future = [(past + i, v) for i, v in enumerate(truth)]
    predicted = [(past + i, v) for i, v in enumerate(prediction)]
    for low, high in bands:
        rim = [(past + i, v) for i, v in enumerate(high)] + [(past + i, v) for i, v in enumerate(low)][::-1]
        if around := _path([p for p in rim if p[1] is not None and math.isfinite(p[1])], x, y):
            body.append(f'<path class="band tone-{tone}" d="{around}Z"/>')
    body.append(f'<path class="line past" d="{_path(list(enumerate(history)), x, y)}"/>')
    body.append(f'<path class="line truth" d="{_path([*joint, *future], x, y)}"/>')
    body.append(f'<path class="line tone-{tone}" d="{_path([*joint, *predicted], x, y)}"/>')
    return _svg(width, height, title, description, body, "forecast")


def time_ticks(times: Sequence[str], past: int, steps: int) -> list[tuple[float, str]]:
    """Ticks at the start, the forecast's origin and the end, each as short as it can be told."""
    if steps == 0:
        return []
    wanted = sorted({0, min(past, steps - 1), steps - 1})
    if len(times) < steps:
        return [(float(i), str(i - past + 1)) for i in wanted]
    stamps = [times[i].replace("T", " ") for i in wanted]
    days = {s[:10] for s in stamps}
    if all(len(s) <= 10 or s[10:].startswith(" 00:00") for s in stamps) or len(days) == len(stamps):
        texts = [s[:10] for s in stamps]
    else:
        texts = [s[5:16] for s in stamps]
    return [(float(i), text) for i, text in zip(wanted, texts, strict=True)]


def strip(value: float, spread: float | None, low: float, high: float, tone: int) -> str:
    """A dot (with its spread) on a short line, for a table cell; decoration only.

    Values outside [low, high] stand at its ends.
    """
    x = Scale(low, high if high > low else low + 1.0, 10.0, 90.0)

    def at(place: float) -> str:
        return _n(min(max(x(place), 4.0), 96.0))

    whisker = ""
    if spread:
        whisker = (
            f'<line class="whisker tone-{tone}" x1="{at(value - spread)}" x2="{at(value + spread)}" y1="8" y2="8"/>'
        )
    return (
        '<svg class="strip" viewBox="0 0 100 16" aria-hidden="true" focusable="false">'
        f'<line class="grid" x1="0" x2="100" y1="8" y2="8"/>{whisker}'
        f'<circle class="mark tone-{tone}" cx="{at(value)}" cy="8" r="4"/></svg>'
    )
