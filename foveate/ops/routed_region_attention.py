"""Routed region attention: the tokens of a region attend to all tokens of the regions that it is routed to.

Zhu et al., "BiFormer" (2023, arXiv 2303.08810, section 3.2): softmax attention of each region's queries over the tokens
of ``topk`` regions side by side. Tokens stand in order of their regions, so that this is attention to blocks of equal
size: :func:`foveate.ops.block_sparse_attention.block_sparse_attention` reads routed keys where they are, and memory is
that of queries, keys and values, forward and backward. The definition copies keys and values once for every region that
reads them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InvalidType, InvalidValue
from ..registry import register
from .backend import choose
from .block_sparse_attention import BlockIndices, block_sparse_attention
from .handwritten import sum_dtype


@register("op", "routed_region_attention", system="biformer")
def routed_region_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor,
    *,
    weights: Tensor | None = None,
    scale: float | None = None,
    return_attention: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of each region to the regions that it is routed to.

    Args:
        q: ``(batch, heads, regions, n, d)``, n tokens in each region.
        k: ``(batch, heads, key_regions, m, d)``.
        v: ``(batch, heads, key_regions, m, e)``.
        routes: int64 ``(batch, regions, topk)``: for each region of queries the different regions of keys that it
            reads, in any order; all heads read the same.
        weights: ``(batch, regions, topk)``: keys and values of a route are multiplied by its weight (soft routing, by
            the definition in every backend, with its copies); None: as they are.
        scale: factor on the products; None: ``1 / sqrt(d)``.
        return_attention: return the weights of the attention too (by the definition).

    Returns:
        ``(batch, heads, regions, n, e)`` in the dtype of ``v``; with ``return_attention`` a tuple, behind it
        ``(batch, heads, regions, n, topk * m)``, in the order of ``routes``.

    Raises:
        InvalidValue: shapes that do not fit, or routes to regions that do not exist.
        InvalidType: mixed dtypes, or routes that are not int64.
    """
    _check(q, k, v, routes, weights)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    if weights is not None or return_attention:
        out, attention = _defined(q, k, v, routes, weights, scale)
        return (out, attention) if return_attention else out
    return choose(reference, _by_blocks)(q, k, v, routes, scale)


def reference(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, scale: float) -> Tensor:
    """The definition, in float32 (float64 for float64 input)."""
    return _defined(q, k, v, routes, None, scale)[0]


def _defined(
    q: Tensor, k: Tensor, v: Tensor, routes: Tensor, weights: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    real, batch = sum_dtype(q.dtype), q.shape[0]
    samples = torch.arange(batch, device=q.device).view(-1, 1, 1)
    # (batch, regions, topk, heads, m, width): gathered before heads move to the front
    k, v = (m.transpose(1, 2)[samples, routes].to(real) for m in (k, v))
    if weights is not None:
        k, v = (m * weights[..., None, None, None].to(real) for m in (k, v))
    k, v = (m.movedim(3, 1).flatten(3, 4) for m in (k, v))
    attention = ((q.to(real) * scale) @ k.mT).softmax(-1)
    return (attention @ v).to(q.dtype), attention.to(q.dtype)


def _by_blocks(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, scale: float) -> Tensor:
    """The same by attention to blocks: a region is a block."""
    indices = routes.sort(-1).values.to(torch.int32)[:, None]
    counts = torch.full_like(indices[..., 0], routes.shape[-1])
    out = block_sparse_attention(
        q.flatten(2, 3),
        k.flatten(2, 3),
        v.flatten(2, 3),
        BlockIndices(indices, counts),
        block_size=(q.shape[3], k.shape[3]),
        causal=False,
        scale=scale,
    )
    assert isinstance(out, Tensor)
    return out.unflatten(2, q.shape[2:4])


def _check(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, weights: Tensor | None) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not (q.ndim == k.ndim == v.ndim == 5):
        raise InvalidValue(f"q, k and v must have 5 axes (batch, heads, regions, tokens, width), not {shapes}.")
    if q.shape[:2] != k.shape[:2] or k.shape[:4] != v.shape[:4] or q.shape[-1] != k.shape[-1]:
        raise InvalidValue(f"q, k and v must agree in batch and heads, q and k in width, k and v in tokens: {shapes}.")
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise InvalidType(f"q, k and v must share one floating dtype, not {q.dtype}, {k.dtype}, {v.dtype}.")
    if routes.dtype != torch.int64:
        raise InvalidType(f"routes must be int64, not {routes.dtype}.")
    batch, _, regions = q.shape[:3]
    most = k.shape[2]
    if routes.ndim != 3 or tuple(routes.shape[:2]) != (batch, regions) or not 1 <= routes.shape[2] <= most:
        raise InvalidValue(
            f"routes have shape {tuple(routes.shape)}: ({batch}, {regions}, topk) is needed, topk at most the {most} "
            f"regions of keys."
        )
    if weights is not None and weights.shape != routes.shape:
        raise InvalidValue(f"weights have shape {tuple(weights.shape)}: {tuple(routes.shape)} is needed, as routes.")
