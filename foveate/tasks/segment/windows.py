"""Sliding-window inference: a network of patches answers for images and volumes of any size.

Windows stand at regular distances, the last of each axis against the border; where they overlap, logits are averaged by
a weight map over the window, the same for all (Isensee et al., 2021, nnU-Net, arXiv 1809.10486, for the normal one)::

    y(p) = sum_w g(p - o_w) f(x_w)(p - o_w) / sum_w g(p - o_w)        o_w: origin of window w

What is smaller than a window is padded with zeros on both sides, and cut again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import InvalidValue, invalid

BLENDINGS = ("gaussian", "constant")
#: Deviation of the normal weights, as a share of the window's side, and the least weight.
SIGMA, LEAST = 0.125, 1e-3


def origins(shape: Sequence[int], window: Sequence[int], overlap: float) -> list[tuple[int, ...]]:
    """Where windows begin, the last axis fastest; ``shape`` is at least ``window`` along every axis."""
    axes = []
    for side, size in zip(shape, window, strict=True):
        step = max(1, int(size * (1 - overlap)))
        count = math.ceil((side - size) / step) + 1
        axes.append([min(i * step, side - size) for i in range(count)])
    return list(itertools.product(*axes))


def weights(window: Sequence[int], blending: str) -> Tensor:
    """The weight map, ``window``: ones, or a normal density around the middle, no smaller than :data:`LEAST`.

    Raises:
        InvalidValue: another blending.
    """
    if blending not in BLENDINGS:
        raise invalid("blending", blending, f"it must be {' or '.join(map(repr, BLENDINGS))}")
    if blending == "constant":
        return torch.ones(tuple(window))
    product = torch.ones(())
    for size in window:
        places = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
        product = product[..., None] * torch.exp(-places.square() / (2 * (SIGMA * size) ** 2))
    return product.clamp_min(max(float(product.min()), LEAST))


def check_overlap(overlap: float) -> None:
    """Refuse what is no share of a window."""
    if isinstance(overlap, bool) or not isinstance(overlap, int | float) or not 0 <= overlap < 1:
        raise invalid("overlap", overlap, "a share of a window, at least 0 and below 1, is needed")


def sliding_window(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    window: Sequence[int],
    *,
    overlap: float = 0.5,
    blending: str = "gaussian",
    at_once: int = 8,
) -> Tensor:
    """Logits of whole images or volumes from a model of windows.

    Args:
        model: ``(n, channels, *window)`` to ``(n, classes, *window)``.
        x: ``(B, channels, *shape)``.
        window: size of a window, one number per axis.
        overlap: share of a window that neighbours share.
        blending: "gaussian" or "constant".
        at_once: windows given to the model at a time.

    Returns:
        ``(B, classes, *shape)``; where one window covers all, the model's own answer to the bit.

    Raises:
        InvalidValue: illegal options, ``window`` of another rank.
    """
    check_overlap(overlap)
    shape = tuple(x.shape[2:])
    if len(window) != len(shape):
        raise InvalidValue(f"window={tuple(window)} is not possible for images of shape {shape}: the ranks differ.")
    lacking = [max(0, size - side) for side, size in zip(shape, window, strict=True)]
    if any(lacking):
        x = F.pad(x, [n for more in lacking[::-1] for n in (more // 2, more - more // 2)])
    places = origins(x.shape[2:], window, overlap)
    if len(places) == 1:
        y = torch.cat([model(part) for part in x.split(at_once)])
    else:
        y = _blended(model, x, window, places, weights(window, blending).to(x), at_once)
    for axis, more in enumerate(lacking):
        y = y.narrow(2 + axis, more // 2, shape[axis])
    return y


def _blended(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    window: Sequence[int],
    places: list[tuple[int, ...]],
    weight: Tensor,
    at_once: int,
) -> Tensor:
    total = x.new_zeros(x.shape[2:])
    y: Tensor | None = None
    jobs = [(b, place) for b in range(len(x)) for place in places]
    for begin in range(0, len(jobs), at_once):
        chosen = jobs[begin : begin + at_once]
        cuts = [tuple(slice(o, o + size) for o, size in zip(place, window, strict=True)) for _, place in chosen]
        answers = model(torch.stack([x[(b, slice(None), *cut)] for (b, _), cut in zip(chosen, cuts, strict=True)]))
        if y is None:
            y = x.new_zeros(len(x), answers.shape[1], *x.shape[2:])
        for (b, _), cut, answer in zip(chosen, cuts, answers, strict=True):
            y[(b, slice(None), *cut)] += answer * weight
            if b == 0:
                total[cut] += weight
    assert y is not None  # there is at least one window
    return y / total
