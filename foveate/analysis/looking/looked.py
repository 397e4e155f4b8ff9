"""What a model was seen to attend to, and the files that show it."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...errors import InvalidValue
from ...files import atomic_write
from .draw import Panel, panels, pillow
from .subject import Shown, Subject
from .trace import Seen

if TYPE_CHECKING:
    from PIL.Image import Image

#: The page's name in a folder.
PAGE = "index.html"
#: Of a sheet: pixels between pictures and below them for two lines of text, and pictures side by side at most.
_GAP, _LINE, _COLUMNS = 12, 40, 6
#: Height of a layer's name, and the least room for what is written below a picture.
_NAME, _NARROWEST = 26, 204


@dataclass(slots=True)
class Looked:
    """What a model attends to in an image.

    Attributes:
        subject: the model.
        image: what it was shown.
        layers: what each layer told, in the order in which they were called.
        answer: what the model said.
    """

    subject: Subject
    image: Shown
    layers: tuple[Seen, ...]
    answer: Tensor
    _panels: dict[int, list[Panel]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Looked({self.subject.name!r}, {self.image.name!r}, layers={[seen.path for seen in self.layers]})"

    def panels(self, layer: int) -> list[Panel]:
        """The pictures of a layer, by its number here."""
        if layer not in self._panels:
            self._panels[layer] = panels(self.layers[layer], self.image.pixels, self.image.size)
        return self._panels[layer]

    def likely(self, count: int = 3) -> list[tuple[str, float]]:
        """The most likely classes and their probabilities; none where the model answers something else."""
        if self.answer.ndim != 2 or self.answer.shape[1] < 2:
            return []
        chances, places = self.answer[0].double().softmax(-1).topk(min(count, self.answer.shape[1]))
        names = self.subject.classes
        told = [names[i] if names else f"class {i}" for i in places.tolist()]
        return list(zip(told, chances.tolist(), strict=True))

    def facts(self) -> dict[str, Any]:
        """All of it but the pictures, as JSON values."""
        return {
            "model": self.subject.name,
            "image": self.image.name,
            "image_size": list(self.image.full),
            "model_size": list(self.image.size),
            "likely": [{"class": name, "probability": p} for name, p in self.likely()],
            "layers": [
                {
                    "path": seen.path,
                    "mixer": seen.mixer,
                    "grid": list(seen.grid),
                    "query": seen.asked,
                    "looks": [{"kind": one.kind, "label": one.label} for one in seen.looks],
                    "spread": _number(seen.spread()),
                    "distance": _number(seen.distance()),
                    "on_class_tokens": seen.beside,
                }
                for seen in self.layers
            ],
        }

    def save(self, where: str | Path, *, force: bool = False) -> list[Path]:
        """Write the pictures.

        Args:
            where: a folder, made if absent: a PNG for each layer, and a page of all of them; or a file: ``.html``, the
                page alone, or ``.png``, all layers in one picture.
            force: replace files that exist.

        Returns:
            The files, the page first.

        Raises:
            InvalidValue: a file exists, or cannot be written.
        """
        from .page import render

        path = Path(where)
        if path.suffix == ".html":
            work = {path: lambda: render(self).encode()}
        elif path.suffix == ".png":
            work = {path: lambda: png(self.sheet())}
        else:
            work = {path / PAGE: lambda: render(self).encode()}
            for number, seen in enumerate(self.layers):
                stem = re.sub(r"[^\w.-]+", "_", seen.path) or "model"
                work[path / f"{number:02d}_{stem}.png"] = lambda n=number: png(self.sheet([n]))
            refuse_foreign(path)
        for file in work:
            if file.exists() and (not force or file.is_dir()):
                raise InvalidValue(f"{file} exists: choose another place, or replace it with force.")
        try:
            for file, make in work.items():
                file.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(file, make())
        except OSError as error:
            raise InvalidValue(f"{where} cannot be written ({error.strerror}): choose another place.") from error
        return list(work)

    def sheet(self, layers: Sequence[int] | None = None) -> Image:
        """One picture of layers (None: all): for each what its heads have in common, then each head."""
        pillow_image, pillow_draw = pillow()
        lines: list[tuple[str, list[Panel]]] = []  # with the layer's name on its first line
        for number in range(len(self.layers)) if layers is None else layers:
            drawn, seen = self.panels(number), self.layers[number]
            groups = [[p for p in drawn if p.head is None]]
            groups += [[p for p in drawn if p.head is not None and p.look == k] for k in range(len(drawn))]
            pieces = [group[i : i + _COLUMNS] for group in groups for i in range(0, len(group), _COLUMNS)]
            lines += [("" if k else seen.path or seen.mixer, piece) for k, piece in enumerate(pieces)]
        height, width = self.image.pixels.shape[:2]
        pitch = max(width, _NARROWEST) + _GAP
        most = max(len(line) for _, line in lines)
        tall = sum(height + _LINE + _GAP + (_NAME if name else 0) for name, _ in lines)
        sheet = pillow_image.new("RGB", (_GAP + most * pitch, _GAP + tall), "#ffffff")
        pen = pillow_draw.Draw(sheet)
        top = _GAP
        for name, line in lines:
            if name:
                pen.text((_GAP, top), name, fill="#17191c", font_size=15)
                top += _NAME
            for column, panel in enumerate(line):
                left = _GAP + column * pitch
                sheet.paste(panel.image, (left, top))
                room = pitch - _GAP
                pen.text((left, top + height + 4), _cut(panel.title, room, 13), fill="#17191c", font_size=13)
                pen.text((left, top + height + 21), _cut(panel.note, room, 11), fill="#565d66", font_size=11)
            top += height + _LINE + _GAP
        return sheet


def refuse_foreign(folder: Path) -> None:
    """Refuse a place that is a file."""
    if folder.exists() and not folder.is_dir():
        raise InvalidValue(f"{folder} is not possible: it is a file; name a folder, or a .html or .png file.")


def png(image: Image) -> bytes:
    """An image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _cut(text: str, width: int, size: int) -> str:
    most = max(4, int(width / (0.55 * size)))
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
