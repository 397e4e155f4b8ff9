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

from ..errors import InvalidType, InvalidValue
from ..registry import register
from .backend import choose
from .block_gate import causal_blocks
from .handwritten import sum_dtype

#: Scores that are looked at at once, at most, as long as one block of queries has fewer.
TILE = 1 << 21


@register("op", "pooled_attention_target", system="seer_attention")
def pooled_attention_target(
    q: Tensor,
    k: Tensor,
    *,
    block_size: int,
    scale: float | None = None,
    mask: Tensor | None = None,
    visible: Tensor | None = None,
) -> Tensor:
    """The normalised block maxima of causal attention, without gradient.

    Args:
        q: ``(batch, heads, length, d)``, turned by their positions.
        k: ``(batch, key_heads, length, d)``, likewise; ``key_heads`` divides ``heads``.
        block_size: tokens of a block of queries and of keys; the last one may have fewer.
        scale: factor on the products; None: ``1 / sqrt(d)``.
        mask: bool ``(batch, length)``, True = a real token; others are neither seen nor do they ask.
        visible: bool, broadcastable to ``(batch, heads, blocks, blocks)``: pairs of blocks that see each other, as far
            as causality lets them; None: all.

    Returns:
        float32 (float64 for float64 input) ``(batch, heads, blocks, blocks)``: rows sum to one, or are zeros where
        nothing is seen.

    Raises:
        InvalidValue: shapes do not fit, or a block without tokens.
        InvalidType: mixed dtypes, or a mask that is not bool.
    """
    _check(q, k, block_size, mask, visible)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    with torch.no_grad():
        return normalised(choose(reference, tiled)(q, k, block_size, scale, mask, visible))


def normalised(largest: Tensor) -> Tensor:
    """Block maxima ``(batch, heads, rows, blocks)``, each row divided by its sum; rows of zeros stay."""
    total = largest.sum(-1, keepdim=True)
    return largest / total.where(total > 0, 1.0)


def reference(
    q: Tensor, k: Tensor, block_size: int, scale: float, mask: Tensor | None, visible: Tensor | None
) -> Tensor:
    """The definition: the largest probability of each pair of blocks, from the whole map."""
    precise, length = sum_dtype(q.dtype), q.shape[2]
    scores = q.to(precise) @ k.to(precise).repeat_interleave(q.shape[1] // k.shape[1], 1).mT * scale
    seen = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        seen = seen & mask[:, None, None, :] & mask[:, None, :, None]
    if visible is not None:
        pairs = visible.repeat_interleave(block_size, 2).repeat_interleave(block_size, 3)
        seen = seen & pairs[:, :, :length, :length]
    some = seen.any(-1, keepdim=True)
    weights = scores.masked_fill(~seen & some, -math.inf).softmax(-1) * (seen & some)
    spare = -length % block_size
    tiles = F.pad(weights, (0, spare, 0, spare)).unflatten(3, (-1, block_size)).unflatten(2, (-1, block_size))
    return tiles.amax((3, 5))


def tiled(q: Tensor, k: Tensor, block_size: int, scale: float, mask: Tensor | None, visible: Tensor | None) -> Tensor:
    """As :func:`reference`, some blocks of queries at a time and no key behind them."""
    precise = sum_dtype(q.dtype)
    (batch, heads, length, _), key_heads = q.shape, k.shape[1]
    blocks = -(-length // block_size)
    spare = blocks * block_size - length
    q, k = (F.pad(t.to(precise), (0, 0, 0, spare)) for t in (q, k))
    q = q.unflatten(1, (key_heads, -1))
    seen = causal_blocks(blocks, blocks, q.device)
    seen = seen if visible is None else seen & visible
    real = torch.arange(blocks * block_size, device=q.device)[None] < length
    real = real if mask is None else F.pad(mask, (0, spare))
    out = q.new_zeros(batch, heads, blocks, blocks)
    step = max(1, TILE // (batch * heads * block_size * blocks * block_size))
    for first in range(0, blocks, step):
        last = min(first + step, blocks)
        rows, keys = slice(first * block_size, last * block_size), slice(0, last * block_size)
        scores = (q[:, :, :, rows] @ k[:, :, None, keys].mT).flatten(1, 2).mul_(scale)
        time = torch.arange(rows.start, rows.stop, device=q.device)
        hidden = (torch.arange(keys.stop, device=q.device) > time[:, None]) | ~real[:, None, None, keys]
        scores = scores.masked_fill_(hidden, -math.inf).unflatten(3, (-1, block_size))
        pairs = seen[:, :, first:last, :last].repeat_interleave(block_size, 2)
        scores = scores.masked_fill_(~pairs[..., None], -math.inf)
        largest = scores.amax(-1)  # (batch, heads, queries, blocks): of a query in each block of keys
        top = largest.amax(-1, keepdim=True)
        top = top.masked_fill(top.isinf(), 0.0)
        total = scores.sub_(top[..., None]).exp_().sum((3, 4))[..., None]
        share = (largest - top).exp() / total.where(total > 0, 1.0)
        share = share * real[:, None, rows, None]
        out[:, :, first:last, :last] = share.unflatten(2, (-1, block_size)).amax(3)
    return out


def _check(q: Tensor, k: Tensor, block_size: int, mask: Tensor | None, visible: Tensor | None) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}"
    if q.ndim != 4 or k.ndim != 4:
        raise InvalidValue(f"q and k must have 4 axes (batch, heads, length, d), not {shapes}.")
    if q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:] or q.shape[1] % k.shape[1]:
        raise InvalidValue(f"q and k must agree in all but heads, and the heads of k divide those of q: {shapes}.")
    if q.dtype != k.dtype or not q.is_floating_point():
        raise InvalidType(f"q and k must share one floating dtype, not {q.dtype}, {k.dtype}.")
    if not isinstance(block_size, int) or block_size < 1:
        raise InvalidValue(f"block_size={block_size!r} is not possible: a positive whole number is needed.")
    blocks = -(-q.shape[2] // block_size)
    for name, given, wanted in (
        ("mask", mask, (q.shape[0], q.shape[2])),
        ("visible", visible, (q.shape[0], q.shape[1], blocks, blocks)),
    ):
        if given is None:
            continue
        if given.dtype != torch.bool:
            raise InvalidType(f"{name} must be bool, not {given.dtype}.")
        fits = [a == b or (a == 1 and given is visible) for a, b in zip(given.shape, wanted, strict=False)]
        if given.ndim != len(wanted) or not all(fits):
            raise InvalidValue(f"{name} has shape {tuple(given.shape)}; {wanted} is needed.")
