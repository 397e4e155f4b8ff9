"""Attention inside chunks: one head, a bias by distance, and softmax or an elementwise function of the scores.

MEGA (arXiv 2209.10655), sections 3.2 to 3.5, whose attention TCNCA (arXiv 2312.05605) keeps. The sequence is cut into
chunks of C tokens, and a query reads the keys of its own chunk, if causal those up to itself::

    softmax:   A = softmax(q k^T / sqrt(z) + b_{j - i})
    laplace:   A = (1 + erf((s - mu) / (sigma sqrt 2))) / 2,   s = q k^T / n + b_{j - i}
    relu2:     A = relu(s)^2

with n the number of keys that the query sees, mu = sqrt(1/2) and sigma = sqrt(1 / (4 pi)) as released (to six digits),
O(L C). Packed documents have chunks of their own, counted from their first token: there a block of C queries meets the
keys of its neighbours too, of which a mask leaves those of the query's chunk.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidValue, invalid
from ..registry import register
from .backend import choose
from .documents import document_numbers
from .handwritten import sum_dtype
from .softmax_attention import softmax_attention

Scores = Literal["softmax", "laplace", "relu2"]
SCORES = get_args(Scores)
MU, SIGMA = 0.707107, 0.282095


@register("op", "chunked_attention", system="tcnca")
def chunked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    *,
    chunk: int | None = None,
    scores: Scores = "softmax",
    causal: bool = False,
    lengths: Tensor | None = None,
    segments: Tensor | None = None,
) -> Tensor:
    """Attention of every query to the keys of its chunk.

    Args:
        q, k: ``(batch, L, z)``, L >= 1.
        v: ``(batch, L, h)``.
        bias: ``(2 P - 1,)``: entry ``P - 1 + j - i`` is added to the score of query i and key j. P must be at least
            the length of the longest chunk.
        chunk: tokens of a chunk, C; None: all. The last chunk may be shorter.
        scores: "softmax", "laplace" or "relu2".
        causal: a query sees keys up to itself.
        lengths: int64 ``(batch,)``: only so many tokens from the first on are real. None: all.
        segments: int ``(batch, L)``: each run of equal numbers is a sequence of its own.

    Returns:
        ``(batch, L, h)`` in v's dtype; what stands behind ``lengths`` is finite and without meaning. Sums are made in
        float32 (float64 for float64).

    Raises:
        InvalidValue: shapes that do not fit together, unknown scores, an illegal chunk, a bias that is too short.
    """
    _check(q, k, v, bias, chunk, scores, lengths, segments)
    run = choose(_reference, _fast)
    return run(q, k, v, bias, chunk or q.shape[1], scores, causal, lengths, segments)


def chunked_attention_flops(length: int, z: int, h: int, chunk: int | None, batch: int = 1) -> int:
    """FLOPs of both products over whole chunks, 2 per multiply-add."""
    size = min(chunk or length, length)
    return 2 * batch * -(-length // size) * size * size * (z + h)


def weigh(s: Tensor, visible: Tensor | None, scores: Scores) -> Tensor:
    """The elementwise functions of scores; 0 where the key is not visible."""
    weights = s.relu().square() if scores == "relu2" else (1 + torch.erf((s - MU) / (SIGMA * math.sqrt(2)))) / 2
    return weights if visible is None else weights * visible


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, visible: Tensor | None, scores: Scores) -> Tensor:
    """Attention with everything made: ``bias`` and ``visible`` (None: all) broadcast to ``(..., queries, keys)``.

    Queries that see no key get zeros.
    """
    real = sum_dtype(q.dtype)
    s = q.to(real) @ k.to(real).transpose(-1, -2)
    if scores != "softmax":
        count = k.shape[-2] if visible is None else visible.sum(-1, keepdim=True).clamp(min=1)
        return (weigh(s / count + bias, visible, scores) @ v.to(real)).to(v.dtype)
    s = s * q.shape[-1] ** -0.5 + bias
    if visible is None:
        return (s.softmax(-1) @ v.to(real)).to(v.dtype)
    empty = ~visible.any(-1, keepdim=True)
    weights = s.masked_fill(~(visible | empty), -math.inf).softmax(-1).masked_fill(empty, 0)
    return (weights @ v.to(real)).to(v.dtype)


def _reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    chunk: int,
    scores: Scores,
    causal: bool,
    lengths: Tensor | None,
    segments: Tensor | None,
) -> Tensor:
    """The definition: all queries meet all keys, of which those of the same chunk are visible."""
    length = q.shape[1]
    place = torch.arange(length, device=q.device)
    chunks = _chunk_numbers(length, chunk, segments, q.device)
    visible = chunks.unsqueeze(-1) == chunks.unsqueeze(-2)
    lag = place - place[:, None]
    if causal:
        visible = visible & (lag <= 0)
    if lengths is not None:
        visible = visible & (place < lengths[:, None, None])
    middle = bias.shape[0] // 2
    return attend(q, k, v, bias[(middle + lag).clamp(0, bias.shape[0] - 1)], visible, scores)


def _chunk_numbers(length: int, chunk: int, segments: Tensor | None, device: torch.device) -> Tensor:
    """int64 ``(1 or batch, L)``: the chunk of each token, counted over all documents."""
    place = torch.arange(length, device=device)
    if segments is None:
        return (place // chunk).unsqueeze(0)
    documents = document_numbers(segments)
    begins = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
    start = place.where(begins, 0).cummax(1).values
    return (begins | ((place - start) % chunk == 0)).cumsum(1)


def _fast(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    chunk: int,
    scores: Scores,
    causal: bool,
    lengths: Tensor | None,
    segments: Tensor | None,
) -> Tensor:
    batch, length, _ = q.shape
    size = min(chunk, length)
    count = -(-length // size)
    if count * size > length and lengths is None:
        lengths = torch.full((batch,), length, device=q.device)
    q, k, v = (_whole(m, count * size) for m in (q, k, v))
    if segments is None:
        o = _aligned(q, k, v, bias, size, scores, causal, lengths)
    else:
        o = _shifted(q, k, v, bias, size, scores, causal, lengths, _chunk_numbers(length, chunk, segments, q.device))
    return o.reshape(batch, count * size, -1)[:, :length]


def _whole(m: Tensor, length: int) -> Tensor:
    """Widen ``(batch, L, width)`` to whole chunks."""
    return F.pad(m, (0, 0, 0, length - m.shape[1])) if length > m.shape[1] else m


def _aligned(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    size: int,
    scores: Scores,
    causal: bool,
    lengths: Tensor | None,
) -> Tensor:
    """Chunks that begin at multiples of their size: ``(batch * chunks, 1, size, h)``."""
    batch, place = q.shape[0], torch.arange(size, device=q.device)
    q, k, v = (m.unflatten(1, (-1, size)).flatten(0, 1).unsqueeze(1) for m in (q, k, v))
    matrix, visible = _toeplitz(bias, size, size, 0), None
    if causal:  # what is not real stands behind, where no query looks
        visible = (place <= place[:, None])[None, None]
    elif lengths is not None:
        start = size * torch.arange(q.shape[0] // batch, device=q.device)
        visible = (start[:, None] + place < lengths[:, None, None]).flatten(0, 1)[:, None, None]
    if scores != "softmax":
        return attend(q, k, v, matrix, visible, scores)
    return softmax_attention(q, k, v, causal=causal, mask=None if causal else visible, bias=matrix[None, None])


def _shifted(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    size: int,
    scores: Scores,
    causal: bool,
    lengths: Tensor | None,
    chunks: Tensor,
) -> Tensor:
    """Chunks that begin anywhere: a block of queries meets its own keys and those of the blocks beside it."""
    length = q.shape[1]
    blocks = length // size
    place = torch.arange(length, device=q.device)
    real = place < chunks.shape[1] if lengths is None else place < lengths[:, None]
    mine = F.pad(chunks, (0, length - chunks.shape[1])).masked_fill(~real, -1)
    before = 0 if blocks == 1 else size
    behind = 0 if causal else before
    width = before + size + behind

    def around(m: Tensor, value: float) -> Tensor:  # (batch, blocks, width, ...)
        padded = F.pad(m, (0, 0) * (m.ndim - 2) + (before, behind), value=value)
        return padded.unfold(1, width, size).movedim(-1, 2)

    visible = mine.unflatten(1, (blocks, size)).unsqueeze(-1) == around(mine, -2).unsqueeze(-2)
    if causal:
        lag = torch.arange(-before, size, device=q.device) - torch.arange(size, device=q.device)[:, None]
        visible = visible & (lag <= 0)
    q = q.unflatten(1, (blocks, size)).flatten(0, 1).unsqueeze(1)
    k, v = (around(m, 0.0).flatten(0, 1).unsqueeze(1) for m in (k, v))
    matrix, visible = _toeplitz(bias, size, width, before), visible.flatten(0, 1).unsqueeze(1)
    if scores != "softmax":
        return attend(q, k, v, matrix, visible, scores)
    return softmax_attention(q, k, v, mask=visible, bias=matrix[None, None])


def _toeplitz(bias: Tensor, rows: int, columns: int, before: int) -> Tensor:
    """``(rows, columns)``: entry (i, c) is the bias of distance ``c - before - i``; 0 beyond the longest chunk."""
    middle = bias.shape[0] // 2
    lowest, highest = -before - rows + 1, columns - before - 1
    values = bias[max(0, middle + lowest) : middle + highest + 1]
    values = F.pad(values, (max(0, -lowest - middle), max(0, highest - middle)))
    return values.unfold(0, columns, 1).flip(0)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    chunk: int | None,
    scores: Scores,
    lengths: Tensor | None,
    segments: Tensor | None,
) -> None:
    if scores not in SCORES:
        raise invalid("scores", scores, f"it must be one of {', '.join(SCORES)}")
    if chunk is not None and (not isinstance(chunk, int) or chunk < 1):
        raise invalid("chunk", chunk, "a positive whole number, or None, is needed")
    if q.ndim != 3 or q.shape[1] < 1 or k.shape != q.shape or v.ndim != 3 or v.shape[:2] != q.shape[:2]:
        shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        raise InvalidValue(f"{shapes} do not fit: (batch, L, z) twice and (batch, L, h), L >= 1, are needed.")
    longest = min(chunk or q.shape[1], q.shape[1])
    if bias.ndim != 1 or bias.shape[0] % 2 == 0 or bias.shape[0] < 2 * longest - 1:
        raise InvalidValue(
            f"bias has shape {tuple(bias.shape)}: an odd number of distances, at least {2 * longest - 1} for chunks of "
            f"{longest}, is needed."
        )
    wanted = {"lengths": (lengths, (q.shape[0],)), "segments": (segments, tuple(q.shape[:2]))}
    for name, (m, shape) in wanted.items():
        if m is not None and tuple(m.shape) != shape:
            raise InvalidValue(f"{name} has shape {tuple(m.shape)}: it must be {shape} for this q.")
