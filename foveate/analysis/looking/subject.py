"""The model to look into, the image as it sees it, and as we see that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...checkpoint import load
from ...errors import InvalidType, InvalidValue, invalid, unknown_name
from ...models.base import Model
from ...registry import entries
from ...tasks.classify_images.decode import decode
from ...tasks.classify_images.package import ImageClassifier
from ...tasks.classify_images.pictures import fitted
from ...tasks.packaged import Packaged

#: What pixels between 0 and 1 are standardised by where the model does not say it: those of ImageNet for three
#: channels, a mean of a half for others.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
#: Pixels along a side for models of any size.
USUAL = 224


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that reads one image.

    Attributes:
        name: for people.
        network: called on what :attr:`prepare` gives; the answer is ``(1, classes)``, or anything else.
        size: height and width that the model reads.
        channels: that it reads.
        fit: see :func:`~foveate.tasks.classify_images.pictures.fitted`.
        prepare: uint8 ``(channels, height, width)`` to the input, a batch of one.
        classes: their names; none: unknown.
        random: the weights are those that a name alone gives.
    """

    name: str
    network: nn.Module
    size: tuple[int, int]
    channels: int
    fit: str
    prepare: Callable[[Tensor], Tensor]
    classes: tuple[str, ...] = ()
    random: bool = False


def opened(
    model: nn.Module | str | Path,
    *,
    pretrained: str | Path | None = None,
    size: tuple[int, int] | None = None,
    options: dict[str, Any] | None = None,
) -> Subject:
    """The model, from whatever names it.

    Args:
        model: one in memory; a folder that foveate saved, or ``hub:user/name``; or a registered or published name.
        pretrained: weights for a name, see :func:`foveate.create`.
        size: height and width to read; None: what the model was made for, else :data:`USUAL`.
        options: of the constructor, for a name.

    Raises:
        UnknownName: no such name, and no folder.
        InvalidType: the model reads no images.
        InvalidValue: a size that a packaged model cannot read; weights for what is no name; see :func:`foveate.load`.
    """
    if isinstance(model, nn.Module):
        if pretrained is not None or options:
            raise InvalidValue("pretrained and options are for names: this model has its weights already.")
        return _subject(type(model).__name__, model, size)
    name = str(model)
    if Path(name).is_dir() or name.startswith("hub:"):
        if pretrained is not None or options:
            raise InvalidValue(f"pretrained and options are for names: {name!r} holds a model with its weights.")
        return _subject(name, load(name), size)
    known = {n: e for e in entries("model") if e.spec.reads == "image" for n in (e.name, *e.configurations)}
    if name not in known:
        hint = "A folder of this name, saved by foveate, does not exist."
        raise unknown_name("model of images", name, known, hint)
    from ...registry import create

    given = dict(options or {})
    if pretrained is not None:
        given["pretrained"] = pretrained
    if size is not None and "img_size" in known[name].load()._hub_mixin_init_parameters:
        given.setdefault("img_size", size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # random weights are the same each time
        made = create(name, kind="model", **given)
    return replace(_subject(name, made, size), random=pretrained is None)


def _subject(name: str, model: nn.Module, size: tuple[int, int] | None) -> Subject:
    if isinstance(model, ImageClassifier):
        info = model.info
        if size not in (None, info.size):
            legal = f"this model was trained on {info.size[0]} x {info.size[1]} pixels"
            raise invalid("size", size, legal)

        def prepare(image: Tensor) -> Tensor:
            return image[None].to(model.mean) / 255

        return Subject(name, model, info.size, info.channels, model.fit, prepare, tuple(info.class_names))
    if isinstance(model, Packaged) or getattr(model, "reads", _reads(model)) not in (None, "image"):
        raise InvalidType(f"{name} reads no images: look shows what models of images attend to.")
    channels = next((int(c) for c in (getattr(model, n, None) for n in ("in_chans", "channels")) if c), 3)
    own = next((s for s in (getattr(model, n, None) for n in ("img_size", "size")) if s is not None), None)
    own = (own, own) if isinstance(own, int) else None if own is None else tuple(own)
    mean, scale = IMAGENET if channels == 3 else ((0.5,) * channels, (0.5,) * channels)
    parameter = next(model.parameters(), torch.zeros(()))

    def standardise(image: Tensor) -> Tensor:
        x = (image / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(scale)[:, None, None]
        return x[None].to(parameter)

    return Subject(name, model, size or own or (USUAL, USUAL), channels, "crop", standardise)


def _reads(model: nn.Module) -> str | None:
    return model.spec.reads if isinstance(model, Model) else None


@dataclass(frozen=True, slots=True)
class Shown:
    """An image, as it is and as the model sees it.

    Attributes:
        name: of the file.
        full: ``(height, width)`` of the image itself, turned as a viewer shows it.
        size: ``(height, width)`` of what the model sees.
        input: what the model is given.
        pixels: uint8 ``(h, w, 3)``: the same part of the image, in finer detail, for pictures.
        fit: "crop" or "stretch".
    """

    name: str
    full: tuple[int, int]
    size: tuple[int, int]
    input: Tensor
    pixels: np.ndarray
    fit: str

    def seen(self, place: tuple[int, int]) -> tuple[float, float]:
        """A pixel (row, column) of the image as a place in what the model sees, in its pixels.

        Raises:
            InvalidValue: outside of the image, or cut off.
        """
        (y, x), (height, width) = place, self.full
        if not (0 <= y < height and 0 <= x < width):
            raise InvalidValue(
                f"query={y},{x} is outside of {self.name}: rows go from 0 to {height - 1}, columns to {width - 1}."
            )
        found = []
        scales = [s / n for s, n in zip(self.size, self.full, strict=True)]
        for at, n, s, own in zip(place, self.full, self.size, scales, strict=True):
            scale = max(scales) if self.fit == "crop" else own
            found.append((at + 0.5) * scale - max(0, round(n * scale) - s) // 2)
        if any(not 0 <= at < s for at, s in zip(found, self.size, strict=True)):
            raise InvalidValue(f"query={y},{x} is not seen by the model: its crop of {self.name} leaves it out.")
        return found[0], found[1]


def read_image(image: str | Path | np.ndarray | Tensor, subject: Subject, detail: int) -> Shown:
    """An image for a model.

    Args:
        image: a file, or uint8 ``(height, width)`` or ``(height, width, 1 or 3)``.
        subject: the model.
        detail: pixels that the longer side of the picture has at least, and at most twice as many.

    Raises:
        InvalidValue: no such file, not an image, or damaged.
        InvalidType: an array of another type.
    """
    if isinstance(image, str | Path):
        path = Path(image)
        if path.is_dir():
            raise InvalidValue(f"{str(path)!r} is a folder: name one image in it.")
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise InvalidValue(f"{str(path)!r} cannot be read ({error.strerror}): check its name.") from error
        if not raw:
            raise InvalidValue(f"{str(path)!r} is empty: it has no bytes.")
        name, pixels = path.name, decode(raw, path)
    else:
        name, pixels = "the image", np.asarray(image)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape:
            raise InvalidType(
                f"the image has shape {pixels.shape} and type {pixels.dtype}: a file, or uint8 (height, width, 1 or 3) "
                f"is needed."
            )
    seen = fitted(pixels, subject.size, subject.channels, subject.fit)
    finer = max(1, -(-detail // max(subject.size)))
    large = (subject.size[0] * finer, subject.size[1] * finer)
    if max(pixels.shape[:2]) < max(large):  # every pixel as a square: nothing is made up
        shown = fitted(pixels, subject.size, 3, subject.fit).repeat_interleave(finer, 1).repeat_interleave(finer, 2)
    else:
        shown = fitted(pixels, large, 3, subject.fit)
    full = (pixels.shape[0], pixels.shape[1])
    return Shown(name, full, subject.size, subject.prepare(seen), shown.movedim(0, -1).numpy(), subject.fit)
