"""Neighborhood attention: every query sees the w nearest keys along each axis of its grid.

Hassani et al., arXiv 2204.07143 (NAT), 2209.15001 (dilation) and 2403.04690 (window, dilation and causality per axis);
strides from arXiv 2504.16922. The rule, edges included, stands in :mod:`foveate.ops.neighborhood_windows`.

The definition is dense attention under that mask. The fast forms never make the matrix of all pairs: the torch form
computes boxes of queries against the box of keys that they see (:mod:`foveate.ops.neighborhood_boxes`), Triton's does
so tile by tile, the native one computes the pairs themselves. A few keys that every query sees besides (``extra_k``)
are attended to apart; the two answers are put together by their log-sum-exps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InvalidType, InvalidValue
from ..registry import register
from . import triton as gpu
from .backend import choose
from .handwritten import sum_dtype
from .native import neighborhood_attention as native
from .neighborhood_boxes import neighborhood_boxes
from .neighborhood_windows import Axis, axes_of, neighborhood_mask

__all__ = ["neighborhood_attention", "neighborhood_mask"]


@register("op", "neighborhood_attention", system="faster_neighborhood_attention")
def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | tuple[int, ...],
    *,
    dilation: int | tuple[int, ...] = 1,
    stride: int | tuple[int, ...] = 1,
    causal: bool | tuple[bool, ...] = False,
    bias: Tensor | None = None,
    scale: float | None = None,
    extra_k: Tensor | None = None,
    extra_v: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention within a window around each query, in 1, 2 or 3 dimensions.

    Args:
        q: ``(batch, heads, *grid, d)``, where the grid has 1, 2 or 3 axes.
        k: ``(batch, key_heads, *grid, d)``; ``key_heads`` divides ``heads``, and neighbouring heads share keys.
        v: ``(batch, key_heads, *grid, e)``.
        window: keys that a query sees along each axis: at least 2, odd or even (one more to the left). This, and the
            next three, is one value for all axes or a tuple with one per axis.
        dilation: distance of neighbouring keys; window times dilation must not exceed the axis.
        stride: so many neighbouring queries share a window; at most the window.
        causal: True: only keys up to the query's own position on this axis.
        bias: added to the scores by relative position: ``(heads, 2 window - 1, ...)`` with an entry per axis for key
            minus query, in units of the dilation, from ``1 - window`` on. Odd windows without causal axes only.
        scale: factor on the products (not on the bias); None: ``1 / sqrt(d)``.
        extra_k: ``(batch, key_heads, extra, d)``, keys that every query sees besides, in the same softmax.
        extra_v: ``(batch, key_heads, extra, e)``, their values.
        return_lse: return the log-sum-exps too.

    Returns:
        ``(batch, heads, *grid, e)`` in the inputs' dtype, or that and the natural logarithm of each softmax's
        denominator, ``(batch, heads, *grid)`` in float32 (float64 for float64), which has gradients as well. Sums are
        made in float32 (float64 for float64).

    Raises:
        InvalidValue: shapes that do not fit together, a window, dilation or stride that is not possible on this grid, a
            bias with an even window or a causal axis.
        InvalidType: mixed dtypes, a window that is not a whole number, a causal flag that is not a bool.
    """
    axes = _check(q, k, v, window, dilation, stride, causal, bias, extra_k, extra_v)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    fast = native.neighborhood_attention_native if native.fits(q, k, v, bias) else None
    kernel = gpu.form("neighborhood_attention", (q, k, v, bias))
    forms = (None if form is None else _apart(form) for form in (fast, kernel))
    run = choose(reference, _apart(neighborhood_boxes), *forms)
    out, lse = run(q, k, v, bias, extra_k, extra_v, axes, scale)
    return (out, lse) if return_lse else out


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    axes: tuple[Axis, ...],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The definition: dense attention under the mask, with one softmax over neighbours and extra keys."""
    dtype, real, grid, group = q.dtype, sum_dtype(q.dtype), q.shape[2:-1], q.shape[1] // k.shape[1]
    q, k, v = (m.to(real).flatten(2, -2) for m in (q, k, v))
    k, v = (m.repeat_interleave(group, 1) for m in (k, v))
    scores = (q @ k.mT) * scale
    if bias is not None:
        index = torch.zeros(1, 1, dtype=torch.int64, device=q.device)
        for axis in axes:
            place = torch.arange(axis.size, device=q.device) // axis.dilation
            away = (place - place[:, None] + axis.window - 1).clamp(0, 2 * axis.window - 2)
            index = index[:, None, :, None] * (2 * axis.window - 1) + away[None, :, None, :]
            index = index.reshape(index.shape[0] * index.shape[1], -1)
        scores = scores + bias.to(real).flatten(1)[:, index]
    window, dilation, stride, causal = zip(*(axis[1:] for axis in axes), strict=True)
    mask = neighborhood_mask(tuple(grid), window, dilation=dilation, stride=stride, causal=causal, device=q.device)
    scores = scores.masked_fill(~mask, -math.inf)
    if extra_k is not None and extra_v is not None:
        extra_k, extra_v = (m.to(real).repeat_interleave(group, 1) for m in (extra_k, extra_v))
        scores = torch.cat((scores, (q @ extra_k.mT) * scale), -1)
        v = torch.cat((v, extra_v), 2)
    out = scores.softmax(-1) @ v
    return out.unflatten(2, grid).to(dtype), scores.logsumexp(-1).unflatten(2, grid)


def _apart(run: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """A form without extra keys, and those attended to apart; arguments as :func:`reference`."""

    def both(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        extra_k: Tensor | None,
        extra_v: Tensor | None,
        axes: tuple[Axis, ...],
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        _, window, dilation, stride, causal = (list(values) for values in zip(*axes, strict=True))
        out, lse = run(q, k, v, bias, window, dilation, stride, causal, scale)
        if extra_k is None or extra_v is None:
            return out, lse
        # Queries that share keys are lines of one product.
        real, group = lse.dtype, q.shape[1] // k.shape[1]
        queries = q.to(real).flatten(2, -2).unflatten(1, (-1, group)).flatten(2, 3)
        scores = (queries @ extra_k.to(real).mT) * scale
        other = (scores.softmax(-1) @ extra_v.to(real)).unflatten(2, (group, -1)).flatten(1, 2).view_as(out)
        other_lse = scores.logsumexp(-1).unflatten(2, (group, -1)).flatten(1, 2).view_as(lse)
        total = torch.logaddexp(lse, other_lse)
        share, other_share = ((each - total).exp().unsqueeze(-1) for each in (lse, other_lse))
        return (out * share + other * other_share).to(out.dtype), total

    return both


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | tuple[int, ...],
    dilation: int | tuple[int, ...],
    stride: int | tuple[int, ...],
    causal: bool | tuple[bool, ...],
    bias: Tensor | None,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
) -> tuple[Axis, ...]:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not (q.ndim == k.ndim == v.ndim) or q.ndim not in (4, 5, 6):
        raise InvalidValue(f"q, k and v must be (batch, heads, *grid, width), the grid of 1 to 3 axes, not {shapes}.")
    if q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:] or k.shape[:-1] != v.shape[:-1]:
        raise InvalidValue(f"q, k and v must agree in batch and grid, q and k in width, k and v in heads: {shapes}.")
    if not all(q.shape) or not all(v.shape) or q.shape[1] % k.shape[1]:
        raise InvalidValue(f"the heads of k must divide those of q, and no axis may be empty: {shapes}.")
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise InvalidType(f"q, k and v must share one floating dtype, not {q.dtype}, {k.dtype}, {v.dtype}.")
    axes = axes_of(tuple(q.shape[2:-1]), window, dilation, stride, causal)
    if bias is not None:
        if any(axis.window % 2 == 0 or axis.causal for axis in axes):
            raise InvalidValue("a bias is for odd windows without causal axes only.")
        shape = (q.shape[1], *(2 * axis.window - 1 for axis in axes))
        if tuple(bias.shape) != shape:
            raise InvalidValue(f"bias has shape {tuple(bias.shape)}: it must be {shape}, (heads, 2 window - 1, ...).")
    if (extra_k is None) != (extra_v is None):
        raise InvalidValue("extra_k and extra_v belong together: give both or neither.")
    if extra_k is not None and extra_v is not None:
        extra = extra_k.shape[2] if extra_k.ndim == 4 else 0
        for name, m, like in (("extra_k", extra_k, k), ("extra_v", extra_v, v)):
            shape = (*like.shape[:2], extra, like.shape[-1])
            if tuple(m.shape) != shape or not extra:
                what = f"(batch, key_heads, extra, width) = ({shape[0]}, {shape[1]}, extra, {shape[3]})"
                raise InvalidValue(f"{name} has shape {tuple(m.shape)}: it must be {what} with the same extra >= 1.")
            if m.dtype != q.dtype:
                raise InvalidType(f"{name} must be {q.dtype} as q is, not {m.dtype}.")
    return axes
