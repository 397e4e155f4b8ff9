"""The default data: scenes and volumes of real digits on noise, drawn from a seed.

The embedded digits are divided first, so that no digit of a training scene stands in a validation or test scene. A
digit is shown at 14 to 18 pixels, brighter or darker; in volumes it is drawn out over 6 to 12 slices. Its mask are the
pixels with enough ink.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from ..classify_images.embedded import digits
from ..classify_series.protocol import stratified
from .cases import Case, Cases

#: Names of the classes by digit.
GROUPS = {digit: ("0-4" if digit < 5 else "5-9") for digit in range(10)}
CLASSES = ("background", "0-4", "5-9")
#: Sides and numbers of scenes and volumes of (train, val, test).
SIDE, SCENES = 48, (240, 40, 80)
VOLUME_SIDE, VOLUMES = 32, (48, 12, 24)
#: Ink, out of 255, that makes a pixel part of its digit.
INK = 100
NOISE = 0.15


def scenes(volumes: bool, seed: int = 0) -> Cases:
    """Scenes ``(1, 48, 48)``, or volumes ``(1, 32, 32, 32)``, with a mask each; parts are set."""
    images, labels, sha256 = digits()
    cases, parts = draw_cases(images, labels, VOLUMES if volumes else SCENES, volumes, seed)
    return Cases(
        label=f"embedded digits in {'volumes' if volumes else 'scenes'}",
        names=[case.name for case in cases],
        rank=3 if volumes else 2,
        load=cases.__getitem__,
        parts=np.array(parts),
        sha256=sha256,
        class_names=dict(enumerate(CLASSES)),
    )


def draw_cases(
    images: np.ndarray, labels: np.ndarray, counts: Sequence[int], volumes: bool, seed: int
) -> tuple[list[Case], list[int]]:
    """Scenes or volumes of any digits.

    Args:
        images: uint8 ``(digits, height, width)``, ink 255.
        labels: 0 to 9, one for each.
        counts: scenes of the parts train, val and test, which share no digit.
        volumes: volumes instead of scenes.
        seed: draws them.

    Returns:
        The cases, and 0, 1 or 2 for the part of each.
    """
    part = stratified([str(n) for n in labels], None, (0.7, 0.1, 0.2), 0)
    generator = np.random.default_rng([seed, int(volumes)])
    cases, parts = [], []
    for number, count in enumerate(counts):
        pool = np.flatnonzero(part == number)
        for _ in range(count):
            draw = _volume if volumes else _scene
            image, mask = draw(images, labels, pool, generator)
            cases.append(Case(f"{'volume' if volumes else 'scene'}_{len(cases)}", image[None], mask))
            parts.append(number)
    return cases, parts


def _digit(ink: np.ndarray, side: int) -> np.ndarray:
    """A digit at ``side x side`` pixels, 0 to 255."""
    x = torch.from_numpy(ink.astype(np.float32))[None, None]
    return F.interpolate(x, (side, side), mode="bicubic", align_corners=False)[0, 0].clamp(0, 255).numpy()


def _scene(
    images: np.ndarray, labels: np.ndarray, pool: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    image, mask = np.zeros((SIDE, SIDE), np.float32), np.zeros((SIDE, SIDE), np.int32)
    taken = np.zeros((SIDE, SIDE), bool)
    wanted = generator.integers(3, 6)
    for _ in range(40):
        side = int(generator.integers(14, 19))
        y, x = generator.integers(0, SIDE - side + 1, 2)
        place = (slice(y, y + side), slice(x, x + side))
        if taken[place].any():
            continue
        taken[place] = True
        chosen = generator.choice(pool)
        ink = _digit(images[chosen], side)
        image[place] = ink / 255 * generator.uniform(0.6, 1.0)
        mask[place][ink > INK] = CLASSES.index(GROUPS[int(labels[chosen])])
        wanted -= 1
        if not wanted:
            break
    return _noisy(image, generator), mask


def _volume(
    images: np.ndarray, labels: np.ndarray, pool: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    image = np.zeros((VOLUME_SIDE,) * 3, np.float32)
    mask = np.zeros((VOLUME_SIDE,) * 3, np.int32)
    taken = np.zeros((VOLUME_SIDE,) * 3, bool)
    wanted = generator.integers(2, 5)
    for _ in range(40):
        side, depth = int(generator.integers(14, 19)), int(generator.integers(6, 13))
        z = int(generator.integers(0, VOLUME_SIDE - depth + 1))
        y, x = generator.integers(0, VOLUME_SIDE - side + 1, 2)
        place = (slice(z, z + depth), slice(y, y + side), slice(x, x + side))
        if taken[place].any():
            continue
        taken[place] = True
        chosen = generator.choice(pool)
        ink = _digit(images[chosen], side)
        image[place] = ink / 255 * generator.uniform(0.6, 1.0)
        mask[place][:, ink > INK] = CLASSES.index(GROUPS[int(labels[chosen])])
        wanted -= 1
        if not wanted:
            break
    return _noisy(image, generator), mask


def _noisy(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """uint8, with room for noise below and above."""
    noisy = 0.2 + 0.6 * image + generator.normal(0, NOISE * 0.6, image.shape)
    return np.round(np.clip(noisy, 0, 1) * 255).astype(np.uint8)
