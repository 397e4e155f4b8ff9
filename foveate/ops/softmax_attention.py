"""Softmax attention: ``softmax(q k^T scale + bias) v`` over the keys that a query may see.

Vaswani et al. 2017 (arXiv 1706.03762, eq. 1). The torch form is PyTorch's ``scaled_dot_product_attention``. Without
mask and bias, and with as many queries as keys, it runs in O(length) memory; any other visibility needs a matrix of
queries times keys. That matrix has no batch axis unless the mask or the bias has one: a causal offset costs one bool
matrix, a bias per head one float matrix per head. The CPU kernel makes none: causality with any offset and masks of
keys cost nothing, masks of pairs and biases are read as they are given.

Two rules are the same in every form: a query with no visible key gives zeros (not NaN, and zero gradients), and with
fewer queries than keys the queries are the last ones, so that a KV cache can be put before them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidType, InvalidValue
from ..registry import register
from .backend import choose, current_backend
from .handwritten import sum_dtype
from .native import softmax_attention as native


@register("op", "softmax_attention", system="softmax_attention")
def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention.

    Args:
        q: ``(batch, heads, length, d)``.
        k: ``(batch, heads, key_length, d)``.
        v: ``(batch, heads, key_length, e)``.
        causal: query i sees keys up to ``key_length - length + i``: the last query sees every key.
        mask: bool, True = visible: ``(batch, key_length)`` for keys, or broadcastable to
            ``(batch, heads, length, key_length)`` for pairs (1 on an axis broadcasts).
        bias: added to the scores; broadcastable to ``(batch, heads, length, key_length)``.
        scale: factor on the products; None: ``1 / sqrt(d)``.

    Returns:
        ``(batch, heads, length, e)`` in the dtype of ``v``; rows of queries that see no key are zeros.

    Raises:
        InvalidValue: shapes do not fit, or more queries than keys with ``causal``.
        InvalidType: mixed dtypes, or a mask that is not bool.
    """
    _check(q, k, v, causal, mask, bias)
    if mask is not None and mask.ndim == 2:
        mask = mask[:, None, None, :]
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if current_backend() == "native":
        takes = native.fits(q, k, v, mask, bias)
    else:
        takes = current_backend() == "auto" and native.pays(q, k, v, mask, bias, causal)
    kernel = native.softmax_attention_native if takes else None
    return choose(reference, fused, kernel)(q, k, v, causal, mask, bias, scale)


def reference(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None, bias: Tensor | None, scale: float
) -> Tensor:
    """The definition, in float32 (float64 for float64 input); ``mask`` has 4 axes."""
    precise = sum_dtype(q.dtype)
    scores = (q.to(precise) @ k.to(precise).transpose(-1, -2)) * scale
    if bias is not None:
        scores = scores + bias
    visible = _visible(q, k, causal, mask)
    if visible is None:
        return (scores.softmax(-1) @ v.to(precise)).to(v.dtype)
    empty = ~visible.any(-1, keepdim=True)
    weights = scores.masked_fill(~(visible | empty), -math.inf).softmax(-1)
    return (weights.masked_fill(empty, 0.0) @ v.to(precise)).to(v.dtype)


def fused(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None, bias: Tensor | None, scale: float
) -> Tensor:
    """The fast form; same arguments as :func:`reference`."""
    if causal and mask is None and bias is None and q.shape[2] == k.shape[2]:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    visible = _visible(q, k, causal, mask)
    bias = None if bias is None else bias.to(q.dtype)
    if visible is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    if mask is None:  # a causal mask alone leaves no query without a key
        given = visible if bias is None else bias.masked_fill(~visible, -math.inf)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=given, scale=scale)
    # Kernels differ in what a row without keys gives: such a row sees all keys instead, and is cleared afterwards.
    empty = ~visible.any(-1, keepdim=True)
    visible = visible | empty
    given = visible if bias is None else bias.masked_fill(~visible, -math.inf)
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=given, scale=scale)
    return o.masked_fill(empty, 0.0)


def causal_mask(length: int, key_length: int, device: torch.device | str | None = None) -> Tensor:
    """Bool ``(length, key_length)``: which keys each of the last ``length`` positions of ``key_length`` sees."""
    last = torch.arange(key_length - length, key_length, device=device)
    return torch.arange(key_length, device=device) <= last[:, None]


def _visible(q: Tensor, k: Tensor, causal: bool, mask: Tensor | None) -> Tensor | None:
    """Mask and causality together; None: everything is visible."""
    if not causal or q.shape[2] == 1:  # the last query sees every key
        return mask
    ordered = causal_mask(q.shape[2], k.shape[2], q.device)[None, None]
    return ordered if mask is None else mask & ordered


def _check(q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None, bias: Tensor | None) -> None:
    if not (q.ndim == k.ndim == v.ndim == 4):
        raise InvalidValue(f"q, k and v must have 4 axes (batch, heads, length, width), not {_shapes(q, k, v)}.")
    if q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3] or q.shape[-1] != k.shape[-1]:
        raise InvalidValue(
            f"q, k and v must agree in batch and heads, q and k in width, k and v in length: {_shapes(q, k, v)}."
        )
    if q.shape[2] < 1 or k.shape[2] < 1:
        raise InvalidValue(f"a sequence is empty ({_shapes(q, k, v)}): at least one token is needed.")
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise InvalidType(f"q, k and v must share one floating dtype, not {q.dtype}, {k.dtype}, {v.dtype}.")
    if causal and q.shape[2] > k.shape[2]:
        raise InvalidValue(
            f"causal=True is not possible with more queries than keys ({_shapes(q, k, v)}): queries are the last."
        )
    if mask is None and bias is None:
        return
    full = (*q.shape[:3], k.shape[2])
    if mask is not None:
        if mask.dtype != torch.bool:
            raise InvalidType(f"mask must be bool (True = visible), not {mask.dtype}.")
        if mask.ndim == 2 and mask.shape != (q.shape[0], k.shape[2]):
            raise InvalidValue(f"mask has shape {tuple(mask.shape)}; for keys ({q.shape[0]}, {k.shape[2]}) is needed.")
        if mask.ndim != 2 and not _fits(mask, full):
            raise InvalidValue(f"mask has shape {tuple(mask.shape)}; it must broadcast to {full} with 4 axes.")
    if bias is not None and not _fits(bias, full):
        raise InvalidValue(f"bias has shape {tuple(bias.shape)}; it must broadcast to {full} with 4 axes.")


def _shapes(q: Tensor, k: Tensor, v: Tensor) -> str:
    return f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"


def _fits(given: Tensor, full: tuple[int, ...]) -> bool:
    return given.ndim == 4 and all(a in (1, b) for a, b in zip(given.shape, full, strict=True))
