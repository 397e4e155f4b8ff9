"""Packed documents of different lengths, read as if each had a sample of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def read_documents(
    read: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    numbers: Tensor,
    valid: Tensor | None,
) -> Tensor:
    """Attention inside documents, those of about one length at a time.

    Args:
        read: attention of queries, keys and values, ``(documents, heads, length, head_dim)``; its last argument, bool
            ``(documents, length)``, says where there is no padding behind the tokens.
        q: ``(batch, heads, length, head_dim)``.
        k, v: ``(batch, key_heads, length, head_dim)``.
        numbers: int64 ``(batch, length)``, which document a token belongs to, ascending from 0.
        valid: bool ``(batch, length)``, False for padding behind the real tokens; None: all are.

    Returns:
        ``(batch, heads, length, head_dim)``, zeros for padding.
    """
    batch, length = numbers.shape
    real = torch.ones_like(numbers, dtype=torch.bool) if valid is None else valid
    samples = torch.arange(batch, device=q.device)[:, None]
    document = torch.where(real, numbers, length) + samples * (length + 1)
    found, sizes = document.flatten().unique_consecutive(return_counts=True)
    starts = sizes.cumsum(0) - sizes
    has_tokens = found % (length + 1) < length
    starts, sizes = starts[has_tokens], sizes[has_tokens]
    flat = [m.transpose(1, 2).flatten(0, 1) for m in (q, k, v)]  # (batch * length, heads, head_dim)
    o = torch.zeros_like(flat[0])
    longest = 1
    while longest < 2 * int(sizes.max() if len(sizes) else 0):
        these = (sizes <= longest) & (sizes > longest // 2)
        if these.any():
            offsets = torch.arange(int(sizes[these].max()), device=q.device)
            inside = offsets < sizes[these, None]
            place = torch.where(inside, starts[these, None] + offsets, starts[these, None])
            some_q, some_k, some_v = (m[place].transpose(1, 2) for m in flat)
            part = read(some_q, some_k, some_v, inside).transpose(1, 2)
            o = o.index_put((place[inside],), part[inside])
        longest *= 2
    return o.unflatten(0, (batch, length)).transpose(1, 2)
