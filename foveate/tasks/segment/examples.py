"""Small pictures of test images, their masks and a model's answers, for reports."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .scores import IGNORED

if TYPE_CHECKING:
    from .task import SegmentTask

#: Longest side of a picture; larger ones are thinned out.
SIDE = 128
#: Of the classes from the second on, over and over; to be told apart by people who confuse red and green.
COLOURS = ("#e69f00", "#56b4e9", "#d55e00", "#009e73", "#f0e442", "#cc79a7", "#0072b2", "#ffffff")
#: Share of a class's colour in a pixel of it.
COVER = 0.7


def picked(part: Tensor) -> list[int]:
    """The images of a part that are shown: the first, the middle and the last one."""
    return sorted({int(part[0]), int(part[len(part) // 2]), int(part[-1])})


def example(task: SegmentTask, i: int, answer: Tensor, dice: float) -> dict[str, Any]:
    """One image as a record can hold it.

    Args:
        i: number of the image.
        answer: class of each of its pixels, ``(*shape)``; of volumes the slice with most of the classes is shown.
        dice: mean Dice of the answer.

    Returns:
        ``{"name", "dice", "image", "truth", "answer"}``, the last three as PNG files in base64.
    """
    truth, image, name = task.store.mask(i), task.store.image(i), f"image {i}"
    if truth.ndim == 3:
        # Of scans the third axis is up, of arrays the first is the depth.
        axis = 0 if task.layout["spacing"] is None else 2
        labelled = ((truth > 0) & (truth != IGNORED)).movedim(axis, 0).flatten(1).sum(1)
        at, name = int(labelled.argmax()), f"volume {i}"
        name += f", slice {at}"
        truth, answer, image = truth.select(axis, at), answer.select(axis, at), image.select(1 + axis, at)
        if axis == 2:  # front and right become up and right
            truth, answer, image = (x.transpose(-1, -2).flip(-2) for x in (truth, answer, image))
    step = -(-max(truth.shape) // SIDE)
    pixels = _shown(image, task.layout["unit"])[::step, ::step]
    masks = [mask[::step, ::step].numpy().astype(np.int64) for mask in (truth, answer)]
    pictures = [_png(pixels), *(_png(_coloured(pixels, mask)) for mask in masks)]
    return {"name": name, "dice": dice, **dict(zip(("image", "truth", "answer"), pictures, strict=True))}


def colours_of(classes: int) -> list[str]:
    """The colour of every class but the background."""
    return [COLOURS[c % len(COLOURS)] for c in range(classes - 1)]


def _shown(image: Tensor, unit: float) -> np.ndarray:
    """uint8 ``(height, width, 3)`` of ``(channels, height, width)``: colours, or the first channel in grey."""
    if unit == 255:
        pixels = image.numpy()
    else:
        low, high = torch.quantile(image.flatten().double()[:1_000_000], torch.tensor([0.01, 0.99]).double()).tolist()
        pixels = ((image - low) / max(high - low, 1e-12) * 255).clamp(0, 255).numpy().astype(np.uint8)
    return np.moveaxis(pixels if len(pixels) == 3 else pixels[:1].repeat(3, 0), 0, -1)


def _coloured(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    colours = np.array([[int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in COLOURS], np.float64)
    mixed = (1 - COVER) * pixels + COVER * colours[(mask - 1) % len(COLOURS)]
    return np.where(((mask > 0) & (mask != IGNORED))[..., None], mixed.round(), pixels).astype(np.uint8)


def _png(pixels: np.ndarray) -> str:
    """A PNG file of uint8 ``(height, width, 3)`` in base64. Pillow is an extra, and is not needed for this."""
    height, width = pixels.shape[:2]
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], 1)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0))
    made = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)) + chunk(b"IEND", b"")
    return base64.b64encode(made).decode("ascii")
