"""The neural memory in chunks: products of matrices inside a chunk, a loop from chunk to chunk.

Inside a chunk all gradients are taken at the weights it starts from. What momentum and forgetting then do to them is
linear, with one number per pair of tokens,

    M_t = a_t M_0 + c_t S_0 - sum_{i <= t} A_ti u_i,        A = D E,

    D_ts = product of (1 - alpha_j), s < j <= t,        E_si = product of eta_j, i < j <= s,

made from sums of logarithms of one sign: no product is divided by another, nothing under- or overflows. Since ``u_i``
has rank one in each matrix (:mod:`foveate.ops.memory_networks`), a token reads weights that never exist,

    q_t M_t = a_t q_t M_0 + c_t q_t S_0 - sum_{i <= t} A_ti (q_t . x_i) delta_i,

layer by layer. So memories of any depth cost what attention in chunks and a few products per chunk cost.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .memory_networks import Trace, run, split, surprise

Weights = tuple[Tensor, ...]


def neural_memory_chunks(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    forget: Tensor,
    momentum: Tensor | None,
    step: Tensor,
    start: Weights,
    memory: Weights,
    past: Weights | None,
    base: Weights,
    chunk: int,
    norm: bool,
    scale: float,
    largest: float | None,
    valid: Tensor | None,
    starts: Tensor | None,
) -> tuple[Tensor | None, Weights, Weights | None, Weights]:
    """The torch form of :func:`foveate.ops.neural_memory.neural_memory`; batch and heads are one axis N.

    Args:
        q, k, v: ``(N, L, dim)``; L is a multiple of ``chunk``. Without ``q`` nothing is read.
        forget, momentum, step: ``(N, L)``.
        start, memory, past, base: weights ``(N, ...)``: of a new document, now, their momentum, and those of gradients.
        scale, largest: as in :func:`foveate.ops.memory_networks.surprise`.
        valid: bool ``(N, L)``; None: all.
        starts: bool ``(N, L / chunk)``; None: no document begins.

    Returns:
        Outputs ``(N, L, dim)``, memory, momentum and base.
    """
    k, v = (t.unflatten(1, (-1, chunk)) for t in (k, v))
    queries = None if q is None else q.unflatten(1, (-1, chunk))
    forget, step = (t.unflatten(1, (-1, chunk)) for t in (forget, step))
    inside = None if valid is None else valid.unflatten(1, (-1, chunk))
    keep_log = safe_log(1 - forget)
    if inside is not None:
        keep_log, step = keep_log.masked_fill(~inside, 0), step.masked_fill(~inside, 0)
    keep, from_memory = products(keep_log), keep_log.cumsum(-1).exp()
    carry = from_past = carry_end = None
    if momentum is not None:
        log = safe_log(momentum.unflatten(1, (-1, chunk)))
        log = log if inside is None else log.masked_fill(~inside, 0)
        carry = torch.cat([products(log), log.cumsum(-1).exp().unsqueeze(-1)], -1)
        carry_end = carry[..., -1, :]
        # A place without a token keeps its momentum but does not move the memory.
        both = keep @ (carry if inside is None else carry * inside.unsqueeze(-1))
        keep, from_past = both[..., :-1], both[..., -1]
    outputs = []
    for i in range(k.shape[1]):
        if starts is not None:
            new = starts[:, i]
            memory, base = (replaced(new, start, old) for old in (memory, base))
            past = None if past is None else replaced(new, tuple(map(torch.zeros_like, past)), past)
        trace = surprise(base, k[:, i], v[:, i], step[:, i], norm, scale, largest)
        pairs, now = keep[:, i], from_memory[:, i].unsqueeze(-1)
        before = None if from_past is None else from_past[:, i].unsqueeze(-1)
        if queries is not None:
            outputs.append(_read(queries[:, i], trace, pairs, now, before, memory, past, norm))
        after = _written(trace, pairs[:, -1], now[:, -1], memory, None if before is None else before[:, -1], past)
        if past is not None:
            assert carry_end is not None
            end = carry_end[:, i]
            past = _written(trace, end[:, :-1], end[:, -1:], past, None, None)
        memory = after
        base = memory if inside is None else replaced(inside[:, i, -1], memory, base)
    return (torch.stack(outputs, 1).flatten(1, 2) if outputs else None), memory, past, base


def safe_log(x: Tensor) -> Tensor:
    """The logarithm; -inf with a gradient of 0 where x is 0."""
    return torch.where(x > 0, x, 1).log().masked_fill(x <= 0, -torch.inf)


def products(log: Tensor) -> Tensor:
    """Products of factors between two places: ``(..., n)`` logarithms to ``(..., n, n)``.

    Entry (t, s) is the product over s < j <= t, 0 where s > t. Every entry is a sum of its own logarithms.
    """
    n = log.shape[-1]
    later = torch.ones(n, n, dtype=torch.bool, device=log.device).tril(-1)
    sums = log.unsqueeze(-1).expand(*log.shape, n).masked_fill(~later, 0).cumsum(-2)
    return sums.exp().tril()


def replaced(here: Tensor, new: Weights, old: Weights) -> Weights:
    """``new`` in the samples marked by ``here``, bool ``(N,)``."""
    return tuple(torch.where(here.view(-1, *(1,) * (o.ndim - 1)), n, o) for n, o in zip(new, old, strict=True))


def _read(
    q: Tensor,
    trace: Trace,
    pairs: Tensor,
    now: Tensor,
    before: Tensor | None,
    memory: Weights,
    past: Weights | None,
    norm: bool,
) -> Tensor:
    """``M_t(q_t)`` of all tokens of a chunk."""
    matrices, gain = split(memory, norm)
    moving, moving_gain = (None, None) if past is None else split(past, norm)

    def product(i: int, h: Tensor) -> Tensor:
        y = now * (h @ matrices[i]) - ((h @ trace.inputs[i].mT) * pairs) @ trace.deltas[i]
        return y if moving is None or before is None else y + before * (h @ moving[i])

    def gains() -> Tensor:
        assert gain is not None
        assert trace.gain is not None
        y = now * gain.unsqueeze(1) - pairs @ trace.gain
        return y if moving_gain is None or before is None else y + before * moving_gain.unsqueeze(1)

    return run(q, len(matrices), product, gains if norm else None)[0]


def _written(
    trace: Trace, last: Tensor, kept: Tensor, weights: Weights, moved: Tensor | None, past: Weights | None
) -> Weights:
    """``kept * weights + moved * past - sum_i last_i u_i``.

    Args:
        last: ``(N, chunk)``.
        kept, moved: ``(N, 1)``.
    """
    new = [(x * last.unsqueeze(-1)).mT @ d for x, d in zip(trace.inputs, trace.deltas, strict=True)]
    if trace.gain is not None:
        new.append((last.unsqueeze(-1) * trace.gain).sum(1))
    result = []
    for i, (weight, u) in enumerate(zip(weights, new, strict=True)):
        shape = (-1, *(1,) * (weight.ndim - 1))
        value = kept.view(shape) * weight - u
        if past is not None and moved is not None:
            value = value + moved.view(shape) * past[i]
        result.append(value)
    return tuple(result)


def pad_to(x: Tensor, length: int, axis: int) -> Tensor:
    """``x`` with zeros behind it along ``axis``, up to this length."""
    missing = length - x.shape[axis]
    return x if not missing else F.pad(x, (0, 0) * (x.ndim - 1 - axis) + (0, missing))


def memory_saved(
    length: int, chunk: int, sizes: Sequence[tuple[int, int]], norm: bool, momentum: bool, bounded: bool
) -> int:
    """Numbers kept for the backward pass, for one sample and head; arguments as those of :func:`memory_flops`."""
    chunk = min(chunk, length)
    chunks, runs, dim = -(-length // chunk), 1 + momentum, sizes[-1][1]
    # The matrices of products; q, k and the error; step and gates.
    per_token = (5 if momentum else 2) * chunk + 3 * dim + 10
    for i, (before, after) in enumerate(sizes):
        # Scores before and after weighting; what matrices of memory and momentum gave; the delta; weighted inputs.
        per_token += 2 * chunk + runs * after + after * (2 if bounded else 1) + runs * before
        # A hidden layer: sums and activations of keys and queries, GELU's slope and its parts, the error sent back.
        per_token += 9 * before if i else 0
    per_token += 10 * dim if norm else 0
    weights = sum(before * after for before, after in sizes)
    return chunks * (chunk * per_token + runs * weights)


def memory_flops(length: int, chunk: int, sizes: Sequence[tuple[int, int]], norm: bool, momentum: bool) -> int:
    """FLOPs of the matrix products for one sample and head.

    Args:
        length: tokens.
        chunk: the longest chunk.
        sizes: ``(in, out)`` of every matrix.
    """
    chunk = min(chunk, length)
    chunks = -(-length // chunk)
    per_chunk = 2 * chunk * chunk * (chunk + 1) if momentum else 0
    for i, (before, after) in enumerate(sizes):
        forward = 2 * chunk * before * after
        # Forward for keys, backward to the input of all but the first, reading, writing.
        per_chunk += forward * (1 + (i > 0) + (2 if momentum else 1) * 2)
        per_chunk += 2 * chunk * chunk * (before + after)
    if norm:
        per_chunk += 2 * chunk * chunk * sizes[-1][1]
    return chunks * per_chunk
