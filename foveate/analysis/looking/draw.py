"""Looks drawn over an image: heat, light, rectangles, trees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ...errors import missing_extra
from ...mixers.look import Look
from .trace import Seen

if TYPE_CHECKING:
    from PIL.Image import Image

#: Colours of heat, from nothing to the largest: steps of equal lightness between.
HEAT = ("#0b1a3a", "#2d2f86", "#7a2b9c", "#c33f7c", "#f27454", "#fdb75b", "#fdf3b0")
#: Heat goes by this power of a share: small ones are seen too.
GAMMA = 0.7
#: Colours that are told apart, of heads and of trees.
TONES = ("#6fb1ff", "#ff9a5a", "#45cfae", "#dc93e2", "#dfbf52", "#74cdf0", "#ff8fab", "#a9a1ff")
#: Lines are drawn so many times as large and brought down: smooth edges.
_FINER = 3


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture.

    Attributes:
        kind: of the look that it shows.
        title: what it shows, in a few words.
        note: a number or two about it; "": none.
        image: the picture.
        head: number of the head that is shown alone; None: all of them.
        look: number of the look that it is of.
    """

    kind: str
    title: str
    note: str
    image: Image
    head: int | None = None
    look: int = 0


def panels(seen: Seen, pixels: np.ndarray, size: tuple[int, int]) -> list[Panel]:
    """The pictures of a layer: each look for all heads, then what differs between heads for each alone.

    Args:
        seen: what the layer told.
        pixels: uint8 ``(h, w, 3)``, what the model sees in finer detail.
        size: ``(height, width)`` of what it sees.
    """
    finer = pixels.shape[0] / size[0]
    edges = tuple(
        np.minimum(np.arange(n + 1) * s * finer, m)
        for n, s, m in zip(seen.grid, seen.stride, pixels.shape[:2], strict=True)
    )
    canvas = _Canvas(pixels, edges, seen.query)  # type: ignore[arg-type]
    whole: list[Panel] = []
    alone: list[Panel] = []
    for number, look in enumerate(seen.looks):
        draw, values = _DRAWN[look.kind], look.values[0].detach().cpu()
        heads = range(len(values)) if look.kind in ("weights", "visible", "boxes") and _differ(look) else ()
        for head in (None, *heads):
            panel = replace(draw(canvas, look, values, seen, head), look=number)
            (whole if head is None else alone).append(panel)
    return whole + alone


def _differ(look: Look) -> bool:
    """Whether the heads of a look are not all alike."""
    return not bool((look.values[:, :1] == look.values).all())


def pillow() -> Any:
    """Pillow's modules.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise missing_extra("pillow", "vision", "pictures of what a model attends to") from error
    return Image, ImageDraw


@dataclass(frozen=True, slots=True)
class _Canvas:
    """The image, and where the places of a layer lie on it."""

    pixels: np.ndarray
    edges: tuple[np.ndarray, np.ndarray]
    query: tuple[int, int] | None

    def cells(self, values: np.ndarray) -> np.ndarray:
        """A value per place ``(rows, columns)`` as one per pixel."""
        index = [
            np.clip(np.searchsorted(e, np.arange(n) + 0.5, side="right") - 1, 0, len(e) - 2)
            for e, n in zip(self.edges, self.pixels.shape[:2], strict=True)
        ]
        return values[index[0]][:, index[1]]

    def grey(self, strength: float) -> np.ndarray:
        """The image without colour, float, its contrast brought down to ``strength`` around a middle grey."""
        grey = self.pixels.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
        return np.repeat((128 + (grey - 128) * strength)[..., None], 3, 2)

    def centre(self, place: int) -> tuple[float, float]:
        """Of a place, counted row after row, x and y in pixels."""
        row, column = divmod(place, len(self.edges[1]) - 1)
        return (
            float(self.edges[1][column] + self.edges[1][column + 1]) / 2,
            float(self.edges[0][row] + self.edges[0][row + 1]) / 2,
        )

    def with_lines(self, pixels: np.ndarray, draw: Callable[[Any, float], None]) -> Image:
        """An image of these pixels with what ``draw(pen, scale)`` draws on it, and the query's place."""
        pillow_image, pillow_draw = pillow()
        image = pillow_image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8)).convert("RGBA")
        over = pillow_image.new("RGBA", (image.width * _FINER, image.height * _FINER))
        pen = pillow_draw.Draw(over)
        draw(pen, _FINER)
        if self.query is not None:
            row, column = self.query
            box = [self.edges[1][column], self.edges[0][row], self.edges[1][column + 1], self.edges[0][row + 1]]
            _box(pen, [b * _FINER for b in box], "#ffffff", 2.2 * _FINER, halo=True)
        over = over.resize(image.size, pillow_image.Resampling.BOX)
        return pillow_image.alpha_composite(image, over).convert("RGB")


def _weights(canvas: _Canvas, look: Look, values: Tensor, seen: Seen, head: int | None) -> Panel:
    shown = values.mean(0) if head is None else values[head]
    title = look.label if head is None else f"head {head + 1}"
    if head is None and len(values) > 1:
        title += f", mean of {len(values)} heads"
    note = f"at most {_share(float(shown.max()))} at a place"
    if head is None and seen.beside > 0.0005:
        note += f"; {_share(seen.beside)} on class tokens"
    return Panel(look.kind, title, note, _heated(canvas, shown), head)


def _gate(canvas: _Canvas, look: Look, values: Tensor, seen: Seen, head: int | None) -> Panel:
    shown = values.float().mean(0)
    low, high = float(shown.min()), float(shown.max())
    title = look.label if len(values) == 1 else f"{look.label}, mean of {len(values)} channels"
    spread = (shown - low) / max(high - low, 1e-12)
    return Panel(look.kind, title, f"{low:.3g} to {high:.3g}", _heated(canvas, spread))


def _heated(canvas: _Canvas, values: Tensor) -> Image:
    """Heat over a grey image: what is much is opaque."""
    v = values.double().numpy()
    v = canvas.cells(v / max(float(v.max()), 1e-12)) ** GAMMA
    opacity = (0.25 + 0.7 * v)[..., None]
    return canvas.with_lines(canvas.grey(0.85) * (1 - opacity) + _ramp(v) * opacity, lambda pen, scale: None)


def _visible(canvas: _Canvas, look: Look, values: Tensor, seen: Seen, head: int | None) -> Panel:
    share = values.double().mean(0) if head is None else values[head].double()
    title = look.label if head is None else f"{look.label}, head {head + 1}"
    count = values.flatten(1).sum(1).double()
    if head is not None:
        count = count[head]
    differ = head is None and bool((values != values[:1]).any())
    note = f"{float(count.mean()):.4g} of {values[0].numel()} places"
    note += ", bright where many heads do" if differ else ""
    light = canvas.cells(share.numpy())[..., None]
    dark = canvas.grey(0.7) * 0.28
    pixels = dark + (canvas.pixels - dark) * light
    some = share.numpy() > 0

    def outline(pen: Any, scale: float) -> None:
        for line in _borders(some, canvas.edges):
            pen.line([p * scale for p in line], fill="#ffd166", width=round(1.6 * scale))

    return Panel(look.kind, title, note, canvas.with_lines(pixels, outline), head)


def _borders(inside: np.ndarray, edges: tuple[np.ndarray, np.ndarray]) -> list[tuple[float, float, float, float]]:
    """Lines between places that are inside and those that are not."""
    rows, columns = inside.shape
    framed = np.pad(inside, 1)
    found = []
    for y in range(rows + 1):
        for x in range(columns):
            if framed[y, x + 1] != framed[y + 1, x + 1]:
                found.append((edges[1][x], edges[0][y], edges[1][x + 1], edges[0][y]))
    for y in range(rows):
        for x in range(columns + 1):
            if framed[y + 1, x] != framed[y + 1, x + 1]:
                found.append((edges[1][x], edges[0][y], edges[1][x], edges[0][y + 1]))
    return found


def _boxes(canvas: _Canvas, look: Look, values: Tensor, seen: Seen, head: int | None) -> Panel:
    heads = range(len(values)) if head is None else [head]
    title = look.label if head is None else f"{look.label}, head {head + 1}"
    count = values.shape[1]
    note = f"{count} for each of {len(values)} heads" if head is None and len(values) > 1 else f"{count}"
    per_place = [e[-1] / (len(e) - 1) if len(e) > 1 else 1.0 for e in canvas.edges]
    across = [float(e[1] - e[0]) for e in canvas.edges] if min(len(e) for e in canvas.edges) > 1 else per_place

    def draw(pen: Any, scale: float) -> None:
        for h in heads:
            for x0, y0, x1, y1 in values[h].double().tolist():
                box = [x0 * across[1], y0 * across[0], x1 * across[1], y1 * across[0]]
                _box(pen, [b * scale for b in box], TONES[h % len(TONES)], 1.8 * scale, halo=count < 20)

    return Panel(look.kind, title, note, canvas.with_lines(canvas.grey(0.9) * 0.6, draw), head)


def _tree(canvas: _Canvas, look: Look, values: Tensor, seen: Seen, head: int | None) -> Panel:
    parents = values.tolist()
    roots = [root_of(parents, i) for i in range(len(parents))]
    ranks = {root: k for k, root in enumerate(sorted(set(roots), key=lambda r: -roots.count(r)))}
    below = [0] * len(parents)  # tokens in the subtree
    for i in range(len(parents)):
        at = i
        for _ in parents:
            below[at] += 1
            if parents[at] < 0 or at == roots[i]:
                break
            at = parents[at]
    reach = min(float(np.diff(e).mean()) for e in canvas.edges)

    def draw(pen: Any, scale: float) -> None:
        for i, parent in sorted(enumerate(parents), key=lambda edge: below[edge[0]]):
            if parent < 0:
                continue
            tone = TONES[ranks[roots[i]] % len(TONES)]
            width = round(scale * min(0.22 * reach, 1.0 + 0.45 * below[i] ** 0.5))
            ends = [c * scale for c in (*canvas.centre(i), *canvas.centre(parent))]
            pen.line(ends, fill="#0b0d10", width=width + round(1.6 * scale))
            pen.line(ends, fill=tone, width=max(width, 1))
        for i, parent in enumerate(parents):
            radius = scale * (0.16 * reach if parent < 0 else max(0.07 * reach, 1.2))
            x, y = (c * scale for c in canvas.centre(i))
            dot = [x - radius, y - radius, x + radius, y + radius]
            edge = round(scale * 1.4) if parent < 0 else round(scale * 0.6)
            pen.ellipse(dot, fill=TONES[ranks[roots[i]] % len(TONES)], outline="#0b0d10", width=edge)

    note = f"{len(ranks)} root{'s' if len(ranks) > 1 else ''}, deepest {max(map(_depth(parents), range(len(parents))))}"
    return Panel(look.kind, look.label, note, canvas.with_lines(canvas.grey(0.9) * 0.55, draw))


def root_of(parents: Sequence[int], token: int) -> int:
    """The token at the top of a tree; where parents go in a circle, the smallest token on it."""
    met: list[int] = []
    while parents[token] >= 0 and token not in met:
        met.append(token)
        token = parents[token]
    return token if parents[token] < 0 else min(met[met.index(token) :])


def _depth(parents: Sequence[int]) -> Callable[[int], int]:
    def depth(token: int) -> int:
        steps = 0
        while parents[token] >= 0 and steps < len(parents):
            token, steps = parents[token], steps + 1
        return steps

    return depth


def _box(pen: Any, box: Sequence[float], colour: str, width: float, halo: bool) -> None:
    (x0, x1), (y0, y1) = sorted(box[::2]), sorted(box[1::2])
    if halo:
        out = width * 0.6
        pen.rectangle([x0 - out, y0 - out, x1 + out, y1 + out], outline="#0b0d10", width=round(width + 2 * out))
    pen.rectangle([x0, y0, x1, y1], outline=colour, width=max(1, round(width)))


def _ramp(v: np.ndarray) -> np.ndarray:
    """Colours ``(..., 3)`` of heat between 0 and 1."""
    stops = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in HEAT], dtype=np.float64)
    at = np.clip(v, 0, 1) * (len(stops) - 1)
    low = np.minimum(at.astype(np.int64), len(stops) - 2)
    part = (at - low)[..., None]
    return stops[low] * (1 - part) + stops[low + 1] * part


def _share(value: float) -> str:
    return f"{value:.1%}" if value < 0.995 else "100%"


_DRAWN: dict[str, Callable[[_Canvas, Look, Tensor, Seen, int | None], Panel]] = {
    "weights": _weights,
    "visible": _visible,
    "boxes": _boxes,
    "tree": _tree,
    "gate": _gate,
}


def heat_key(width: int, height: int) -> Image:
    """The colours of heat from nothing to the largest, left to right."""
    line = _ramp(np.linspace(0, 1, width) ** GAMMA)
    pixels = np.broadcast_to(line[None], (height, width, 3)).round().astype(np.uint8)
    return pillow()[0].fromarray(np.ascontiguousarray(pixels))
