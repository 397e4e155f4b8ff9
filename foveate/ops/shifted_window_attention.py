"""Shifted window attention: every token attends to the tokens of its window, on grids of one, two or three axes.

Liu et al., arXiv 2103.14030 (Swin), section 3.2; with ``partition="grid"`` the grid attention of Tu et al., arXiv
2204.01697 (MaxViT), section 3.2. How a grid is padded, shifted and cut stands in :mod:`foveate.ops.shifted_windows`.
For a window's tokens, ``q, k, v`` of ``n`` rows::

    o = softmax(q k^T scale + bias, where both are of one region) v

The definition pads, rolls, cuts, attends and puts together again. The torch form does so too, with PyTorch's fused
attention. The native one reads every window's rows where they lie in the projection: nothing is padded, rolled, cut or
copied.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidType, InvalidValue
from ..registry import register
from .backend import choose
from .handwritten import sum_dtype
from .linear import undisturbed
from .native import shifted_window_attention as native
from .native import window_layer as native_layer
from .native.window_layer import MOST_CHANNELS, Biases, window_attention, window_layer
from .shifted_windows import PADDINGS, Axis, axes_of, from_windows, real_places, to_windows, window_mask

__all__ = [
    "MOST_CHANNELS",
    "Biases",
    "shifted_window_attention",
    "takes_layer",
    "window_attention",
    "window_layer",
    "window_mask",
]


@register("op", "shifted_window_attention", system="swin")
def shifted_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | tuple[int, ...],
    *,
    shift: int | tuple[int, ...] = 0,
    partition: str = "blocks",
    bias: Tensor | None = None,
    scale: float | None = None,
    pad_k: Tensor | None = None,
    pad_v: Tensor | None = None,
    padding: str = "tokens",
) -> Tensor:
    """Softmax attention inside the windows that a grid is cut into.

    Args:
        q: ``(batch, heads, *grid, d)``, where the grid has 1, 2 or 3 axes; any strides, such as a channels-last
            projection's.
        k: ``(batch, heads, *grid, d)``.
        v: ``(batch, heads, *grid, e)``.
        window: places of a window along each axis. This, and the shift, is one value for all axes or a tuple with one
            per axis. An axis that the window does not divide is padded behind its end.
        shift: the padded grid is rolled by ``-shift`` first, and tokens of a window that were no neighbours before do
            not see each other (Swin's mask). Below the window.
        partition: "blocks": a window is a block of neighbours; "grid": of each axis every ``padded / window``-th place,
            so that a window spans the grid (MaxViT). Grids are not shifted.
        bias: added to the scores: ``(heads, n, n)``, or ``(windows, heads, n, n)`` with windows in row-major order,
            where ``n`` is the product of the window. An axis may be 1: it is the same for all.
        scale: factor on the products (not on the bias); None: ``1 / sqrt(d)``.
        pad_k: ``(heads, d)``, the key of a padded place; None: zeros. Where a map was padded before its projection, the
            projection's bias.
        pad_v: ``(heads, e)``, the value of a padded place; None: zeros.
        padding: "tokens": padded places are tokens that others see; "masked": nobody sees them.

    Returns:
        ``(batch, heads, *grid, e)`` in the inputs' dtype; in memory heads lie behind the grid, so that
        ``.movedim(1, -2).flatten(-2)`` copies nothing. Sums are made in float32 (float64 for float64).

    Raises:
        InvalidValue: shapes that do not fit together, or a window, shift, partition or padding that is not possible.
        InvalidType: mixed dtypes, sizes that are not whole numbers.
    """
    axes = _check(q, k, v, window, shift, partition, bias, pad_k, pad_v, padding)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    fast = native.shifted_window_attention_native if native.fits(q, k, v, (bias, pad_k, pad_v), axes) else None
    return choose(reference, fused, fast)(q, k, v, bias, pad_k, pad_v, axes, partition, padding, scale)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    pad_k: Tensor | None,
    pad_v: Tensor | None,
    axes: tuple[Axis, ...],
    partition: str,
    padding: str,
    scale: float,
    dropout: float = 0.0,
) -> Tensor:
    """The definition: pad, roll, cut, attend under the mask, put together, roll back, crop."""
    dtype, real = q.dtype, sum_dtype(q.dtype)
    q, k, v = (_rolled(_padded(m, pad, axes), axes, -1) for m, pad in ((q, None), (k, pad_k), (v, pad_v)))
    q, k, v = (to_windows(m.to(real), axes, partition) for m in (q, k, v))
    scores = (q @ k.mT) * scale  # (batch, windows, heads, n, n)
    if bias is not None:
        scores = scores + bias.to(real)
    mask = window_mask(axes, partition, padding, q.device)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None], -math.inf)
    weights = scores.softmax(-1)
    weights = F.dropout(weights, dropout) if dropout else weights
    return _together(weights @ v, axes, partition).to(dtype)


def takes_layer(x: Tensor, axes: tuple[Axis, ...], *weights: Tensor | None) -> bool:
    """Whether :func:`window_layer` and :func:`window_attention` take these: nothing is differentiated, in float32 on
    the CPU.

    Args:
        x: ``(batch, *grid, dim)``.
        axes: of the grid.
        weights: all others of the layer's tensors.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return undisturbed() and native_layer.fits(x, axes, *weights)


def dropped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | tuple[int, ...],
    dropout: float,
    *,
    shift: int | tuple[int, ...] = 0,
    bias: Tensor | None = None,
    pad_k: Tensor | None = None,
    pad_v: Tensor | None = None,
) -> Tensor:
    """Attention in blocks with weights dropped at random, by the definition; other arguments as above.

    Args:
        dropout: share of the weights; the others are divided by what is left.
    """
    axes = _check(q, k, v, window, shift, "blocks", bias, pad_k, pad_v, "tokens")
    return reference(q, k, v, bias, pad_k, pad_v, axes, "blocks", "tokens", 1 / math.sqrt(q.shape[-1]), dropout)


def fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    pad_k: Tensor | None,
    pad_v: Tensor | None,
    axes: tuple[Axis, ...],
    partition: str,
    padding: str,
    scale: float,
) -> Tensor:
    """The torch form; same arguments as :func:`reference`."""
    heads = q.shape[1]
    q, k, v = (_rolled(_padded(m, pad, axes), axes, -1) for m, pad in ((q, None), (k, pad_k), (v, pad_v)))
    q, k, v = (to_windows(m, axes, partition) for m in (q, k, v))
    given = window_mask(axes, partition, padding, q.device)
    windows, tokens = q.shape[1], q.shape[3]
    if given is not None:
        given = given[:, None]
    if bias is not None:
        bias = bias.to(q.dtype)
        given = bias if given is None else torch.where(given, bias, -math.inf)
    # What differs by window has windows and heads on one axis, so that it is not repeated for every sample.
    if given is not None and given.ndim == 4 and given.shape[0] > 1:
        given = given.expand(windows, heads, tokens, tokens).reshape(1, windows * heads, tokens, tokens)
        q, k, v = (m.flatten(1, 2) for m in (q, k, v))
    else:
        q, k, v = (m.flatten(0, 1) for m in (q, k, v))
        if given is not None:
            given = given.expand(1, heads, tokens, tokens)
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=given, scale=scale)
    return _together(o.reshape(-1, windows, heads, tokens, o.shape[-1]), axes, partition)


def _padded(m: Tensor, pad: Tensor | None, axes: tuple[Axis, ...]) -> Tensor:
    """``(batch, heads, *grid, d)`` with ``pad`` (zeros for None) behind the end of every axis."""
    spare = [axis.padded - axis.size for axis in axes]
    if not any(spare):
        return m
    m = F.pad(m, [0, 0, *(n for each in reversed(spare) for n in (0, each))])
    if pad is None:
        return m
    there = pad.to(m.dtype).view(1, pad.shape[0], *[1] * len(axes), pad.shape[1])
    return torch.where(real_places(axes, m.device)[..., None], m, there)


def _rolled(m: Tensor, axes: tuple[Axis, ...], sign: int, first: int = 2) -> Tensor:
    moved = [i for i, axis in enumerate(axes) if axis.shift]
    return m.roll([sign * axes[i].shift for i in moved], [first + i for i in moved]) if moved else m


def _together(o: Tensor, axes: tuple[Axis, ...], partition: str) -> Tensor:
    """``(batch, windows, heads, n, e)`` to ``(batch, heads, *grid, e)``, heads behind the grid in memory."""
    o = _rolled(from_windows(o, axes, partition), axes, 1, first=1)
    for i, axis in enumerate(axes):
        o = o.narrow(1 + i, 0, axis.size) if axis.padded > axis.size else o
    return o.contiguous().movedim(-2, 1)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | tuple[int, ...],
    shift: int | tuple[int, ...],
    partition: str,
    bias: Tensor | None,
    pad_k: Tensor | None,
    pad_v: Tensor | None,
    padding: str,
) -> tuple[Axis, ...]:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not (q.ndim == k.ndim == v.ndim) or q.ndim not in (4, 5, 6):
        raise InvalidValue(f"q, k and v must be (batch, heads, *grid, width), the grid of 1 to 3 axes, not {shapes}.")
    if q.shape != k.shape or k.shape[:-1] != v.shape[:-1] or not all(q.shape) or not all(v.shape):
        raise InvalidValue(f"q, k and v must agree in all but the width of v, and no axis may be empty: {shapes}.")
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise InvalidType(f"q, k and v must share one floating dtype, not {q.dtype}, {k.dtype}, {v.dtype}.")
    if padding not in PADDINGS:
        raise InvalidValue(f"padding={padding!r} is not possible: legal are {', '.join(PADDINGS)}.")
    axes = axes_of(tuple(q.shape[2:-1]), window, shift, partition)
    if bias is not None:
        tokens = math.prod([axis.window for axis in axes])
        full = (math.prod([axis.count for axis in axes]), q.shape[1], tokens, tokens)
        shape = tuple(bias.shape)
        if len(shape) not in (3, 4) or any(n not in (1, m) for n, m in zip(shape[::-1], full[::-1], strict=False)):
            raise InvalidValue(f"bias has shape {shape}: it must broadcast to (windows, heads, n, n) = {full}.")
    for name, pad, m in (("pad_k", pad_k, k), ("pad_v", pad_v, v)):
        if pad is not None and tuple(pad.shape) != (m.shape[1], m.shape[-1]):
            what = f"(heads, width) = ({m.shape[1]}, {m.shape[-1]})"
            raise InvalidValue(f"{name} has shape {tuple(pad.shape)}: it must be {what}.")
    return axes
