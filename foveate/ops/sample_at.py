"""Bilinear sampling of maps at points: what a learned window or a deformed grid reads.

Jaderberg et al., arXiv 1506.02025 (spatial transformers), eq. 5, in units of pixels: the middle of the first pixel is
(0, 0), of the last (width - 1, height - 1)::

    y = sum over the four pixels around the point of x[pixel] (1 - |px - pixel_x|) (1 - |py - pixel_y|)

Pixels outside the map are zeros, so that a point half a pixel outside reads half of the edge, and one further than a
pixel reads nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidType, InvalidValue
from ..registry import register
from .backend import choose
from .handwritten import sum_dtype
from .native import sample_at as native


@register("op", "sample_at", system="vsa")
def sample_at(x: Tensor, points: Tensor) -> Tensor:
    """Read maps at points between their pixels, with gradients for both.

    Args:
        x: ``(batch, heads, height, width, d)``, or ``(batch, height, width, d)`` without heads; any strides, such as a
            channels-last projection's.
        points: ``(batch, heads, *places, 2)`` or ``(batch, *places, 2)``, floating, one or more axes of places: x, then
            y, in pixels from the middle of the first one.

    Returns:
        ``(batch, heads, *places, d)`` or ``(batch, *places, d)``, in the dtype of ``x``. Sums are made in float32
        (float64 for float64).

    Raises:
        InvalidValue: shapes that do not fit together.
        InvalidType: numbers that are not floating.
    """
    _check(x, points)
    places, lead = points.shape[x.ndim - 3 : -1], points.shape[: x.ndim - 3]
    if x.ndim == 4:
        x, points = x.unsqueeze(1), points.unsqueeze(1)
    flat = points.flatten(2, -2)
    fast = native.sample_at_native if native.fits(x, flat) else None
    return choose(reference, by_grid_sample, fast)(x, flat).view(*lead, *places, x.shape[-1])


def reference(x: Tensor, points: Tensor) -> Tensor:
    """The definition: ``x`` is ``(batch, heads, height, width, d)``, ``points`` ``(batch, heads, many, 2)``."""
    dtype, real = x.dtype, sum_dtype(x.dtype)
    height, width = x.shape[2:4]
    x, points = x.to(real).flatten(2, 3), points.to(real)
    first = points.detach().floor()
    y = torch.zeros_like(x[:, :, :1].expand(*points.shape[:3], x.shape[-1]))
    share = points - first  # of the pixel to the right, and of the one below
    for corner in ((0, 0), (1, 0), (0, 1), (1, 1)):
        pixel = first + first.new_tensor(corner)
        weight = share.where(first.new_tensor(corner) == 1, 1 - share).prod(-1, keepdim=True)
        inside = ((pixel >= 0) & (pixel < pixel.new_tensor((width, height)))).all(-1, keepdim=True)
        column, row = pixel.where(inside, 0).long().unbind(-1)
        found = x.gather(2, (row * width + column)[..., None].expand(y.shape))
        y = y + torch.where(inside, found * weight, 0)
    return y.to(dtype)


def by_grid_sample(x: Tensor, points: Tensor) -> Tensor:
    """The torch form, through PyTorch's sampler; same arguments as :func:`reference`."""
    dtype, real = x.dtype, sum_dtype(x.dtype)
    height, width = x.shape[2:4]
    # Its coordinates are fractions of the map: -1 and 1 are the outer edges of the outer pixels. Infinite ones would be
    # no numbers to it.
    size = points.new_tensor((width, height), dtype=real)
    grid = (2 * points.to(real).clamp(torch.full_like(size, -2), size + 1) + 1) / size - 1
    x = x.to(real).flatten(0, 1).movedim(-1, 1)
    y = F.grid_sample(x, grid.flatten(0, 1)[:, None], mode="bilinear", padding_mode="zeros", align_corners=False)
    return y[:, :, 0].mT.unflatten(0, points.shape[:2]).contiguous().to(dtype)


def _check(x: Tensor, points: Tensor) -> None:
    shapes = f"x {tuple(x.shape)}, points {tuple(points.shape)}"
    if x.ndim not in (4, 5) or not all(x.shape):
        raise InvalidValue(f"x must be (batch, heads, height, width, d) or without heads, no axis empty, not {shapes}.")
    lead = x.ndim - 3
    if (
        points.ndim < lead + 2
        or points.shape[-1] != 2
        or not all(points.shape)
        or points.shape[:lead] != x.shape[:lead]
    ):
        what = "(batch, heads, *places, 2)" if lead == 2 else "(batch, *places, 2)"
        raise InvalidValue(f"points must be {what} with the batch and heads of x, and not empty: {shapes}.")
    if not x.is_floating_point() or not points.is_floating_point():
        raise InvalidType(f"x and points must be floating, not {x.dtype} and {points.dtype}.")
