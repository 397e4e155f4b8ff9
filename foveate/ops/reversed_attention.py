"""Reversed attention: every token sends its value to others, by weights that sum to one over the receivers.

Ding et al., "Visual Dependency Transformers" (CVPR 2023, arXiv 2304.03282), section 3.1. Child i sends to parent j::

    A_ij = softmax_j(q_i . k_j scale)        o_j = sum_i A_ij v_i

The softmax is that of ordinary attention, and its transpose is applied: a popular parent gets a sum of up to n values,
an unpopular one next to nothing. Because a child's weights need nothing from other children, the torch form walks
through the children tile by tile, adds what each tile sends, and never holds more than one tile of weights. Its
backward pass, by hand, makes the weights again; with G the gradient of o::

    dv = A G,    dA = v G^T,    dS = A (dA - rowsum(A dA)),    dq = dS k scale,    dk = dS^T q scale
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InvalidType, InvalidValue
from ..registry import register
from .backend import choose
from .handwritten import Results, handwritten, sample_groups, sum_dtype

#: Weights (samples, heads, children, parents) that a tile should have at most: what stays in the cache.
TILE_NUMBERS = 2**19


@register("op", "reversed_attention", system="dependency_vit")
def reversed_attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Reversed attention.

    Args:
        q: of the children, ``(batch, heads, children, d)``.
        k: of the parents, ``(batch, heads, parents, d)``.
        v: what the children send, ``(batch, heads, children, e)``.
        mask: bool ``(batch, parents)``, True = may receive. Children that must not send have zeros in ``v``.
        scale: factor on the products; None: ``1 / sqrt(d)``.

    Returns:
        ``(batch, heads, parents, e)`` in the dtype of ``v``; zeros for parents that may not receive.

    Raises:
        InvalidValue: shapes do not fit.
        InvalidType: mixed dtypes, or a mask that is not bool.
    """
    _check(q, k, v, mask)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return choose(reference, _tiles, None)(q, k, v, mask, scale)


def reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The definition, with the whole matrix of weights, in float32 (float64 for float64 input)."""
    real = sum_dtype(q.dtype)
    return (_weights(q.to(real), k.to(real), mask, scale).transpose(-1, -2) @ v.to(real)).to(v.dtype)


def _weights(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """``(batch, heads, children, parents)``: rows sum to one, or are zeros where nobody may receive."""
    scores = (q @ k.transpose(-1, -2)) * scale
    if mask is None:
        return scores.softmax(-1)
    hidden = ~mask[:, None, None, :]
    return scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(hidden, 0)


def _tiles(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    return _handwritten(q, k, v, mask, scale)[0]


def _pieces(q: Tensor, k: Tensor) -> list[tuple[slice, slice]]:
    """Samples and children of every tile."""
    heads, children, parents = q.shape[1], q.shape[2], k.shape[2]
    rows = max(16, TILE_NUMBERS // (heads * parents))
    cuts = [slice(start, start + rows) for start in range(0, children, rows)]
    groups = sample_groups(q.shape[0], TILE_NUMBERS // (heads * parents * min(rows, children)))
    return [(group, cut) for group in groups for cut in cuts]


def _forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor]:
    real = sum_dtype(q.dtype)
    out = torch.zeros((*k.shape[:3], v.shape[3]), dtype=real, device=q.device)
    for group, cut in _pieces(q, k):
        kept = None if mask is None else mask[group]
        weights = _weights(q[group, :, cut].to(real), k[group].to(real), kept, scale)
        out[group] += weights.transpose(-1, -2) @ v[group, :, cut].to(real)
    return (out.to(v.dtype),)


def _backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Results:
    real = sum_dtype(q.dtype)
    grad_q, grad_k, grad_v = (torch.zeros(t.shape, dtype=real, device=t.device) for t in (q, k, v))
    for group, cut in _pieces(q, k):
        kept = None if mask is None else mask[group]
        rows, keys, pull = q[group, :, cut].to(real), k[group].to(real), grad[group].to(real)
        weights = _weights(rows, keys, kept, scale)
        grad_v[group, :, cut] = weights @ pull
        inner = v[group, :, cut].to(real) @ pull.transpose(-1, -2)
        inner = weights * (inner - (inner * weights).sum(-1, keepdim=True)) * scale
        grad_q[group, :, cut] = inner @ keys
        grad_k[group] += inner.transpose(-1, -2) @ rows
    return grad_q, grad_k, grad_v, None


def _shapes(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor]:
    return (torch.empty((*k.shape[:3], v.shape[3]), dtype=v.dtype, device=v.device),)


_handwritten = handwritten(
    "reversed_attention",
    "Tensor q, Tensor k, Tensor v, Tensor? mask, float scale",
    outputs=1,
    extras=0,
    forward=_forward,
    backward=_backward,
    shapes=_shapes,
)


def _check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not (q.ndim == k.ndim == v.ndim == 4):
        raise InvalidValue(f"q, k and v must have 4 axes (batch, heads, length, width), not {shapes}.")
    if q.shape[:2] != k.shape[:2] or q.shape[:3] != v.shape[:3] or q.shape[-1] != k.shape[-1]:
        raise InvalidValue(f"q, k and v must agree in batch and heads, q and k in width, q and v in length: {shapes}.")
    if q.shape[2] < 1 or k.shape[2] < 1:
        raise InvalidValue(f"a sequence is empty ({shapes}): at least one token is needed.")
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise InvalidType(f"q, k and v must share one floating dtype, not {q.dtype}, {k.dtype}, {v.dtype}.")
    if mask is not None and mask.dtype != torch.bool:
        raise InvalidType(f"mask must be bool (True = may receive), not {mask.dtype}.")
    if mask is not None and mask.shape != (k.shape[0], k.shape[2]):
        raise InvalidValue(f"mask has shape {tuple(mask.shape)}; ({k.shape[0]}, {k.shape[2]}) is needed.")
