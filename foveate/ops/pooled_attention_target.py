"""The map of causal attention, max-pooled by blocks: what a block gate is to predict.

SeerAttention (Gao et al. 2024, arXiv 2410.13276, section 3.2): of the probabilities ``softmax(q k^T scale)`` of every
block of queries and block of keys the largest is taken, and each row of the result is divided by its sum. The map
itself has length times length numbers for each head; here a tile of queries is looked at at a time, so that memory
grows with the length and with the square of the number of blocks.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidType, InvalidValue, invalid
from ..registry import register
from .backend import choose
from .handwritten import sum_dtype

#: Scores that are looked at at once, at most, as long as one block of queries has fewer.
TILE = 1 << 21


@register("op", "pooled_attention_target", system="seer_attention")
def pooled_attention_target(
    q: Tensor,
    k: Tensor,
    *,
    block_size: int | tuple[int, int],
    scale: float | None = None,
    mask: Tensor | None = None,
    visible: Tensor | None = None,
) -> Tensor:
    """The normalised block maxima of causal attention, without gradient.

    Args:
        q: ``(batch, heads, length, d)``, turned by their positions.
        k: ``(batch, key_heads, length, d)``, likewise; ``key_heads`` divides ``heads``.
        block_size: tokens of a block, one number or two for queries and keys; the last one may have fewer.
        scale: factor on the products; None: ``1 / sqrt(d)``.
        mask: bool ``(batch, length)``, True = a real token; others are neither seen nor do they ask.
        visible: bool, broadcastable to ``(batch, heads, rows, blocks)``: pairs of blocks that see each other, as far
            as causality lets them; None: all.

    Returns:
        float32 (float64 for float64 input) ``(batch, heads, rows, blocks)``: rows sum to one, or are zeros where
        nothing is seen.

    Raises:
        InvalidValue: shapes do not fit, or a block without tokens.
        InvalidType: mixed dtypes, or a mask that is not bool.
    """
    size = (block_size, block_size) if isinstance(block_size, int) else tuple(block_size)
    _check(q, k, size, mask, visible)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    with torch.no_grad():
        return normalised(choose(reference, tiled)(q, k, (size[0], size[1]), scale, mask, visible))


def normalised(largest: Tensor) -> Tensor:
    """Block maxima ``(batch, heads, rows, blocks)``, each row divided by its sum; rows of zeros stay."""
    total = largest.sum(-1, keepdim=True)
    return largest / total.where(total > 0, 1.0)


def reference(
    q: Tensor, k: Tensor, size: tuple[int, int], scale: float, mask: Tensor | None, visible: Tensor | None
) -> Tensor:
    """The definition: the largest probability of each pair of blocks, from the whole map."""
    precise, length = sum_dtype(q.dtype), q.shape[2]
    scores = q.to(precise) @ k.to(precise).repeat_interleave(q.shape[1] // k.shape[1], 1).mT * scale
    seen = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        seen = seen & mask[:, None, None, :] & mask[:, None, :, None]
    if visible is not None:
        pairs = visible.repeat_interleave(size[0], 2).repeat_interleave(size[1], 3)
        seen = seen & pairs[:, :, :length, :length]
    some = seen.any(-1, keepdim=True)
    weights = scores.masked_fill(~seen & some, -math.inf).softmax(-1) * (seen & some)
    tiles = F.pad(weights, (0, -length % size[1], 0, -length % size[0]))
    return tiles.unflatten(3, (-1, size[1])).unflatten(2, (-1, size[0])).amax((3, 5))


def tiled(
    q: Tensor, k: Tensor, size: tuple[int, int], scale: float, mask: Tensor | None, visible: Tensor | None
) -> Tensor:
    """As :func:`reference`, some blocks of queries at a time and no key behind them."""
    precise = sum_dtype(q.dtype)
    (batch, heads, length, _), key_heads = q.shape, k.shape[1]
    rows, blocks = -(-length // size[0]), -(-length // size[1])
    q = F.pad(q.to(precise), (0, 0, 0, rows * size[0] - length)).unflatten(1, (key_heads, -1))
    k = F.pad(k.to(precise), (0, 0, 0, blocks * size[1] - length))
    real = torch.ones(1, length, dtype=torch.bool, device=q.device) if mask is None else mask
    asks, seen = F.pad(real, (0, q.shape[3] - length)), F.pad(real, (0, k.shape[2] - length))
    out = q.new_zeros(batch, heads, rows, blocks)
    step = max(1, TILE // (batch * heads * size[0] * blocks * size[1]))
    for first in range(0, rows, step):
        last = min(first + step, rows)
        some = slice(first * size[0], last * size[0])
        many = -(-min(some.stop, length) // size[1])  # blocks of keys that the last of these queries sees
        keys = slice(0, many * size[1])
        scores = (q[:, :, :, some] @ k[:, :, None, keys].mT).flatten(1, 2).mul_(scale)
        time = torch.arange(some.start, some.stop, device=q.device)
        hidden = (torch.arange(keys.stop, device=q.device) > time[:, None]) | ~seen[:, None, None, keys]
        scores = scores.masked_fill_(hidden, -math.inf).unflatten(3, (-1, size[1]))
        if visible is not None:
            pairs = visible[:, :, first:last, :many].repeat_interleave(size[0], 2)
            scores = scores.masked_fill_(~pairs[..., None], -math.inf)
        largest = scores.amax(-1)  # (batch, heads, queries, blocks): of a query in each block of keys
        top = largest.amax(-1, keepdim=True)
        top = top.masked_fill(top.isinf(), 0.0)
        total = scores.sub_(top[..., None]).exp_().sum((3, 4))[..., None]
        share = (largest - top).exp() / total.where(total > 0, 1.0) * asks[:, None, some, None]
        out[:, :, first:last, :many] = share.unflatten(2, (-1, size[0])).amax(3)
    return out


def _check(q: Tensor, k: Tensor, size: tuple[int, ...], mask: Tensor | None, visible: Tensor | None) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}"
    if q.ndim != 4 or k.ndim != 4:
        raise InvalidValue(f"q and k must have 4 axes (batch, heads, length, d), not {shapes}.")
    if q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:] or q.shape[1] % k.shape[1]:
        raise InvalidValue(f"q and k must agree in all but heads, and the heads of k divide those of q: {shapes}.")
    if q.dtype != k.dtype or not q.is_floating_point():
        raise InvalidType(f"q and k must share one floating dtype, not {q.dtype}, {k.dtype}.")
    if len(size) != 2 or not all(isinstance(s, int) and s >= 1 for s in size):
        raise invalid("block_size", size, "one positive whole number, or two for queries and keys, is needed")
    rows, blocks = (-(-q.shape[2] // s) for s in size)
    for name, given, wanted in (
        ("mask", mask, (q.shape[0], q.shape[2])),
        ("visible", visible, (q.shape[0], q.shape[1], rows, blocks)),
    ):
        if given is None:
            continue
        if given.dtype != torch.bool:
            raise InvalidType(f"{name} must be bool, not {given.dtype}.")
        fits = [a == b or (a == 1 and given is visible) for a, b in zip(given.shape, wanted, strict=False)]
        if given.ndim != len(wanted) or not all(fits):
            raise InvalidValue(f"{name} has shape {tuple(given.shape)}; {wanted} is needed.")
