"""Pathfinder: are two marked ends those of one dashed curve? An image is read pixel by pixel.

Linsley et al., "Learning long-range spatial dependencies with horizontal gated recurrent units" (2018, arXiv
1805.08315, section 3; code drewlinsley/pathfinder), with the parameters of Tay et al., "Long Range Arena" (2020, arXiv
2011.04006, section 2.2.5, Pathfinder-32): two curves of ``contour`` dashes of 2 pixels with gaps of 2, beginning 7
pixels apart in the middle of the image; shorter curves of a third of the dashes as distraction; a disc at the beginning
of one curve and a disc at the end of the same one (yes) or of the other (no). A curve turns by an angle ``a`` from dash
to dash with a density in proportion to ``cos(a)^2``, and keeps 2 pixels from all others and from what it was two dashes
before.

Curves are grown in continuous coordinates and drawn by their distance from the pixels' centres, where the release draws
on a finer grid and shrinks; the distribution is that of the same rules, the grey values are not the same to the last
digit.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np

from ...errors import InvalidValue, invalid
from ...registry import register
from ...spec import TaskSpec
from .base import ProbeTask
from .draws import Drawn, drawn

#: Pixels have 256 grey values; the answers follow.
NO, YES = 256, 257
DASH, MARGIN, PADDING, DISC, THICKNESS, GREY = 2.0, 1.0, 1.0, 1.5, 0.5, 0.75
#: Turns that are tried for the next dash, curves for a place, images at once, and how often in vain.
TURNS, CURVES, AT_ONCE, GIVE_UP = 12, 4, 1024, 20
_ALONG = np.array([0.0, 0.5, 1.0])  # where along a dash its distance from others is looked at


class Canvas:
    """Curves on many images at once, in continuous coordinates (down, right), pixels being one apart.

    Args:
        generator: source of randomness.
        edge: pixels.
    """

    def __init__(self, generator: np.random.Generator, edge: int) -> None:
        self.generator, self.edge = generator, edge

    def directions(self, rows: int, several: int) -> np.ndarray:
        """Any angles ``(rows, several)``."""
        return self.generator.uniform(-np.pi, np.pi, (rows, several))

    def turns(self, rows: int) -> np.ndarray:
        """Angles ``(rows, TURNS)`` between -pi/2 and pi/2 with a density in proportion to cos^2, by its quantiles."""
        grid = np.linspace(-np.pi / 2, np.pi / 2, 513)
        share = 0.5 + (grid + np.sin(2 * grid) / 2) / np.pi
        return np.interp(self.generator.random((rows, TURNS)), share, grid)

    def free(self, begin: np.ndarray, end: np.ndarray, others: np.ndarray) -> Any:
        """Which dashes ``(rows, tried, 2)`` lie inside, the gap behind them too, and keep their distance.

        Args:
            begin, end: of the dashes.
            others: ``(rows, dashes, 2, 2)``, to keep 2 pixels from.
        """
        behind = end + (2 * MARGIN / DASH) * (end - begin)
        inside = ((behind >= PADDING) & (behind <= self.edge - 1 - PADDING)).all(-1)
        inside = inside & ((begin >= PADDING) & (begin <= self.edge - 1 - PADDING)).all(-1)
        if not others.shape[1]:
            return inside
        points = begin[:, :, None] + _ALONG[:, None] * (end - begin)[:, :, None]
        rows, tried, several = points.shape[:3]
        gaps = distance(points.reshape(rows, tried * several, 2), others)
        return inside & (gaps.reshape(rows, tried, several * others.shape[1]).min(-1) >= 2 * MARGIN)

    def grow(self, begin: np.ndarray, angle: np.ndarray, dashes: int, others: np.ndarray) -> np.ndarray:
        """Curves from ``begin`` (rows, curves, 2) in the directions ``angle`` (rows, curves) on, dash by dash in turn.

        Returns:
            ``(rows, curves, dashes, 2, 2)``, infinite where there is no room for one of the row's curves.
        """
        several, going = angle.shape[1], np.arange(len(angle))  # rows that have not failed yet
        made = np.full((len(angle), several, dashes, 2, 2), np.inf)
        pivot, angle = begin.copy(), angle.copy()
        for number, curve in np.ndindex(dashes, several):
            turned = self.turns(len(going)) if number else np.zeros((len(going), 1))
            angles = angle[going, curve, None] + turned
            ahead = np.stack([np.sin(angles), np.cos(angles)], -1)
            start = pivot[going, curve, None]
            tail, head = start + MARGIN * ahead, start + (MARGIN + DASH) * ahead
            # The dash before shares a gap with this one: only those before it are kept away from.
            known = made[going, :, : number + 1]
            known[:, curve, max(number - 1, 0)] = np.inf
            known = known.reshape(len(going), several * (number + 1), 2, 2)
            fits = self.free(tail, head, np.concatenate([others[going], known], 1))
            kept = np.flatnonzero(fits.any(1))
            chosen = fits.argmax(1)[kept]
            going = going[kept]
            made[going, curve, number] = np.stack([tail[kept, chosen], head[kept, chosen]], 1)
            angle[going, curve] = angles[kept, chosen]
            pivot[going, curve] += (2 * MARGIN + DASH) * ahead[kept, chosen]
        failed = np.ones(len(made), bool)
        failed[going] = False
        made[failed] = np.inf
        return made


def distance(points: np.ndarray, dashes: np.ndarray) -> np.ndarray:
    """Distances ``(rows, points, dashes)`` of points ``(rows, points, 2)`` from dashes ``(rows, dashes, 2, 2)``."""
    known = np.where(np.isfinite(dashes), dashes, np.array([[1e9], [1e9 + 1]]))[:, None]
    begin, way = known[:, :, :, 0], known[:, :, :, 1] - known[:, :, :, 0]
    apart = points[:, :, None] - begin
    along = np.clip((apart * way).sum(-1) / (way * way).sum(-1), 0, 1)
    return np.hypot(*np.moveaxis(apart - along[..., None] * way, -1, 0))


def curves(
    generator: np.random.Generator, rows: int, *, edge: int, contour: int, distractors: int
) -> tuple[np.ndarray, np.ndarray]:
    """Images of which both long curves were grown.

    Returns:
        Dashes ``(images, 2, contour, 2, 2)`` of the two curves (each from beginning to end), and of the distractors
        ``(images, dashes, 2, 2)``, infinite where there was no room.
    """
    canvas, middle = Canvas(generator, edge), round(7 * edge / 32)
    low, high = min(2 * middle, edge // 2 - 1), max(edge - 2 * middle, edge // 2 + 1)
    first = generator.uniform(low, high, (rows, 2))
    around = generator.uniform(0, 2 * np.pi, rows)
    begin = np.stack([first, first + middle * np.stack([np.sin(around), np.cos(around)], -1)], 1)
    long = canvas.grow(begin, canvas.directions(rows, 2), contour, np.full((rows, 0, 2, 2), np.inf))
    long = long[np.isfinite(long).all((1, 2, 3, 4))]
    placed, images = long.reshape(len(long), 2 * contour, 2, 2), len(long)
    for _ in range(distractors):
        short = np.full((images, max(1, contour // 3), 2, 2), np.inf)
        for _ in range(CURVES):
            begin = generator.uniform(PADDING, edge - 1 - PADDING, (images, 1, 2))
            tried = canvas.grow(begin, canvas.directions(images, 1), short.shape[1], placed)[:, 0]
            short = np.where(np.isfinite(short), short, tried)
        placed = np.concatenate([placed, short], 1)
    return long, placed[:, 2 * contour :]


def picture(dashes: np.ndarray, discs: np.ndarray, edge: int) -> np.ndarray:
    """Grey values 0 to 255 ``(images, edge, edge)`` of dashes ``(images, n, 2, 2)`` and discs ``(images, m, 2)``."""
    pixels = np.stack(np.meshgrid(np.arange(edge), np.arange(edge), indexing="ij"), -1).reshape(1, -1, 2).astype(float)
    grey = np.zeros((len(dashes), edge * edge))
    for image, known in enumerate(dashes):  # one by one: all pixels against all dashes of all images would not fit
        near = distance(pixels, known[None]).min(-1)[0]
        marked = np.hypot(*np.moveaxis(pixels[0][:, None] - discs[image], -1, 0)).min(-1)
        line = GREY * np.clip(THICKNESS / 2 + 1 - near, 0, 1)
        grey[image] = np.maximum(line, np.clip(DISC + 0.5 - marked, 0, 1))
    return np.rint(255 * grey).astype(np.int64).reshape(-1, edge, edge)


def pathfinder(generator: np.random.Generator, rows: int, *, edge: int, contour: int, distractors: int) -> Drawn:
    """Pathfinder, see the module.

    Args:
        generator: source of randomness.
        rows: samples.
        edge: of an image in pixels.
        contour: dashes of a long curve.
        distractors: short curves.

    Raises:
        InvalidValue: there is hardly ever room for two curves of this length.
    """
    found, count, tries = [], 0, 0
    while count < rows:
        long, short = curves(generator, AT_ONCE, edge=edge, contour=contour, distractors=distractors)
        tries += 1
        if tries > GIVE_UP and count < tries:
            raise InvalidValue(
                f"contour={contour} is not possible: two such curves hardly fit on {edge} x {edge} pixels."
            )
        found.append((long, short))
        count += len(long)
    long, short = (np.concatenate([pair[i] for pair in found])[:rows] for i in (0, 1))
    same, begins = generator.integers(0, 2, rows), generator.integers(0, 2, rows)
    every = np.arange(rows)
    ends = np.where(same == 1, begins, 1 - begins)
    discs = np.stack([long[every, begins, 0, 0], long[every, ends, -1, 1]], 1)
    images = picture(np.concatenate([long.reshape(rows, -1, 2, 2), short], 1), discs, edge)
    return drawn(images.reshape(rows, -1), [edge * edge - 1], np.where(same == 1, YES, NO)[:, None])


@register("task", "pathfinder")
class PathfinderTask(ProbeTask):
    """Pathfinder (:mod:`foveate.tasks.probing.pathfinder`).

    Make it with :meth:`prepare`. Batches: see :mod:`foveate.tasks.next_token`. Metric: ``accuracy``; half is chance.
    """

    spec: ClassVar[TaskSpec] = TaskSpec(
        reads="tokens",
        rank=1,
        metrics=("accuracy",),
        higher_is_better=True,
        baselines=("token_frequencies",),
        shortlist=("softmax_attention", "lightning_attention", "mamba", "gated_conv"),
        models_of="language",
    )
    stem = "pathfinder"
    sizes = {
        "small": {"": {"length": 20, "contour": 3, "distractors": 2, "samples": 5000}},
        "published": {"": {"length": 32, "contour": 14, "distractors": 5, "samples": 20_000, "held_out": 2000}},
    }

    @classmethod
    def prepare(
        cls,
        *,
        length: int | None = None,
        contour: int | None = None,
        distractors: int | None = None,
        test_lengths: str | None = None,
        samples: int | None = None,
        held_out: int | None = None,
        data_seed: int = 0,
        scale: str = "small",
    ) -> Self:
        """Draw the samples.

        Args:
            length: edge of an image in pixels; a sample has its square of tokens.
            contour: dashes of each of the two long curves.
            distractors: curves of a third of their dashes.
            test_lengths: edges, by commas, at which the test is repeated; None: none.
            samples, held_out, data_seed, scale: as in :meth:`RecallTask.prepare`.

        Raises:
            InvalidType, InvalidValue: an option is not possible; the message names it.
        """
        options = {"length": length, "contour": contour, "distractors": distractors}
        return cls.made(options, scale, "", test_lengths, samples, held_out, data_seed)

    @classmethod
    def check(cls, options: dict[str, Any], length: int) -> None:
        """See :meth:`ProbeTask.check`."""
        if length < 12:
            raise invalid("length", length, "an image has at least 12 pixels on each side")

    @classmethod
    def vocabulary_of(cls, options: dict[str, Any]) -> int:
        """See :meth:`ProbeTask.vocabulary_of`."""
        return YES + 1

    @classmethod
    def sample(
        cls, options: dict[str, Any], length: int, generator: np.random.Generator, numbers: np.ndarray, train: bool
    ) -> Drawn:
        """See :meth:`ProbeTask.sample`."""
        given = {name: options[name] for name in ("contour", "distractors")}
        return pathfinder(generator, len(numbers), edge=length, **given)
