"""The page of pictures: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, features

from ... import __version__
from ...pages.page import date, render_page
from .draw import Panel, heat_key

if TYPE_CHECKING:
    from .looked import Looked
    from .trace import Seen

#: What each kind of picture shows.
MEANINGS = {
    "weights": "Heat: how much is read from a place; each picture has a scale of its own, up to its largest share.",
    "visible": "Light: what may be read at all; a yellow line goes around it.",
    "boxes": "Rectangles: where is read from, a colour for each head.",
    "tree": "Lines: every place hangs below the one it goes to; a colour for each tree, large dots are roots.",
    "gate": "Heat: the factor that a place is let through with, from the smallest to the largest.",
}


def render(looked: Looked) -> str:
    """The page as HTML."""
    layers = []
    for number, seen in enumerate(looked.layers):
        drawn = looked.panels(number)
        layers.append(
            {
                "number": number,
                "path": seen.path,
                "words": _words(seen),
                "whole": [_figure(p) for p in drawn if p.head is None],
                "heads": [h for h in _by_look(drawn) if h],
            }
        )
    kinds = {p.kind for number in range(len(looked.layers)) for p in looked.panels(number)}
    pixels = looked.image.pixels
    return render_page(
        "looked.html",
        Path(__file__).parent / "templates",
        version=__version__,
        created=date(datetime.now(UTC).isoformat()),
        model=looked.subject.name,
        image=looked.image.name,
        size=looked.image.size,
        likely=[(name, f"{p:.1%}") for name, p in looked.likely()],
        asked=_asked(looked),
        picture=_data(Image.fromarray(pixels)),
        width=pixels.shape[1],
        height=pixels.shape[0],
        layers=layers,
        meanings=[text for kind, text in MEANINGS.items() if kind in kinds],
        key=_data(heat_key(240, 10)) if kinds & {"weights", "gate"} else "",
    )


def _by_look(drawn: list[Panel]) -> list[list[dict[str, str]]]:
    return [[_figure(p) for p in drawn if p.head is not None and p.look == k] for k in range(len(drawn))]


def _words(seen: Seen) -> str:
    told = [seen.mixer, f"{seen.grid[0]} × {seen.grid[1]} places"]
    spread, distance = seen.spread(), seen.distance()
    if math.isfinite(spread):
        told.append(f"a head's weights are spread over {spread:.3g} of them")
    if math.isfinite(distance):
        told.append(f"read {distance:.3g} pixels away on average")
    return " · ".join(told)


def _asked(looked: Looked) -> str:
    return "the class token" if looked.layers[0].query is None else "the place in the white frame"


def _figure(panel: Panel) -> dict[str, str]:
    return {"source": _data(panel.image), "title": panel.title, "note": panel.note}


def _data(image: Image.Image) -> str:
    """An image as a ``data:`` address."""
    buffer = io.BytesIO()
    kind = "webp" if features.check("webp") else "jpeg"
    image.save(buffer, kind, quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
