"""A neural memory with one update per chunk, as titans-pytorch has it.

The gradients of a chunk's tokens are added up, all at the weights ``B`` of the last re-basing, and one forgetting alpha
and one momentum eta serve the whole chunk. With U_c the (negative) sum of chunk c,

    S_c = eta_c S_{c-1} + U_c,        M_c = (1 - alpha_c) M_{c-1} + S_c,

and every ``m`` chunks ``B`` becomes the memory; without re-basing it stays what it was. The weights of every chunk
exist here, so that updates can be changed as whole matrices (clamped, orthogonalised). A token reads the weights of the
chunks that are complete with it: only the last of a chunk reads that chunk's update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .memory_networks import recall, surprise
from .neural_memory_chunks import Weights, products, replaced, safe_log

#: Chunks whose recurrence is one product of matrices.
BLOCK = 16


@dataclass(frozen=True)
class Chunks:
    """What chunks say about their updates; batch and heads are one axis N, chunks another, n.

    Attributes:
        forget: alpha ``(N, n)``.
        momentum: eta ``(orders, N, n)``; each order runs over the one before. None: no momentum.
        combine: weights ``(orders or 1 + orders, N, n)`` of the momenta (the update itself first, if it counts); None:
            the last order alone.
        modulation: ``(weights, N, n)``, factors of the updates of each weight; None: 1.
        complete: bool ``(N, n)``: the others change nothing; None: all.
        starts: bool ``(N, n)``: chunks that begin a document; None: none.
        change: what becomes of a chunk's gradient ``(N, n, ...)`` of one weight, before momentum; None: nothing.
        shape: what becomes of its update after momentum; None: nothing.
    """

    forget: Tensor
    momentum: Tensor | None
    combine: Tensor | None = None
    modulation: Tensor | None = None
    complete: Tensor | None = None
    starts: Tensor | None = None
    change: Callable[[Tensor], Tensor] | None = None
    shape: Callable[[Tensor], Tensor] | None = None

    def part(self, where: slice) -> Chunks:
        """Some of the chunks."""

        def cut(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[..., where]

        return Chunks(
            self.forget[..., where],
            cut(self.momentum),
            cut(self.combine),
            cut(self.modulation),
            cut(self.complete),
            cut(self.starts),
            self.change,
            self.shape,
        )


def chunk_updates(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    step: Tensor,
    chunks: Chunks,
    start: Weights,
    memory: Weights,
    past: Weights | None,
    base: Weights,
    *,
    norm: bool,
    group: int,
    rebase: Tensor | None,
    transition: Tensor | None = None,
) -> tuple[Tensor, Weights, Weights | None, Weights]:
    """Write all chunks and read them with each token's query.

    Args:
        q: ``(N, n, chunk, dim)``.
        k, v: ``(N, n, writes, dim)``: a token may write several times.
        step: ``(N, n, writes)``, 0 where nothing is written.
        start, memory, base: weights ``(N, ...)``: of a new document, now, and those of gradients.
        past: the momenta, ``(N, orders, ...)``; None without.
        norm: as in :func:`foveate.ops.memory_networks.recall`.
        group: chunks that are done at once, because their gradients are taken at the same weights.
        rebase: bool ``(N, groups)``: the base becomes the memory after this group; None: never.
        transition: scalar in [0, 1]: how far base and memory go there from the old base to the memory; None: 1.

    Returns:
        ``(N, n, chunk, dim)``, memory, momenta and base.
    """
    outputs = []
    for i, first in enumerate(range(0, k.shape[1], group)):
        here = slice(first, first + group)
        some = chunks.part(here)
        if some.starts is not None and rebase is not None:
            base = replaced(some.starts[:, 0], start, base)
        updates = _updates(base, k[:, here], v[:, here], step[:, here], some, norm)
        before, after, last, last_past = [], [], [], []
        for number, (update, old, new) in enumerate(zip(updates, memory, start, strict=True)):
            moving = None if past is None else past[number]
            update, moving = _momentum(update, moving, some)
            if some.shape is not None:
                update = some.shape(update)
            keep = 1 - some.forget
            if some.complete is not None:
                update = update * like(some.complete, update)
                keep = keep.masked_fill(~some.complete, 1)
            if some.starts is not None:
                update = update + like(keep * some.starts, update) * new.unsqueeze(1)
                keep = keep.masked_fill(some.starts, 0)
            weights = linear_scan(keep, update, old)
            earlier = torch.cat([old.unsqueeze(1), weights[:, :-1]], 1)
            if some.starts is not None:
                earlier = torch.where(like(some.starts, earlier), new.unsqueeze(1), earlier)
            end = weights[:, -1]
            if rebase is not None:
                moved = end if transition is None else torch.lerp(base[number], end, transition)
                end = torch.where(like(rebase[:, i], end), moved, end)
                weights = torch.cat([weights[:, :-1], end.unsqueeze(1)], 1)
            before.append(earlier)
            after.append(weights)
            last.append(end)
            last_past.append(moving)
        memory = tuple(last)
        past = None if past is None else tuple(last_past)
        base = base if rebase is None else replaced(rebase[:, i], memory, base)
        outputs.append(_read(q[:, here], before, after, norm))
    return torch.cat(outputs, 1), memory, past, base


def like(flags: Tensor, weights: Tensor) -> Tensor:
    """Axes of size 1 behind ``flags``, for all that ``weights`` has more."""
    return flags.view(*flags.shape, *(1,) * (weights.ndim - flags.ndim))


def linear_scan(factors: Tensor, x: Tensor, initial: Tensor) -> Tensor:
    """``y_c = factors_c y_{c-1} + x_c`` along axis 1, a block of chunks by one product of matrices.

    Args:
        factors: ``(N, n)`` in [0, 1].
        x: ``(N, n, ...)``.
        initial: ``(N, ...)``.
    """
    outputs, shape = [], x.shape
    x, last = x.flatten(2), initial.flatten(1)
    for first in range(0, shape[1], BLOCK):
        log = safe_log(factors[:, first : first + BLOCK])
        y = products(log) @ x[:, first : first + BLOCK] + log.cumsum(1).exp().unsqueeze(-1) * last.unsqueeze(1)
        outputs.append(y)
        last = y[:, -1].clone()  # a view would keep the whole block for the backward pass
    return torch.cat(outputs, 1).view(shape)


def _updates(base: Weights, k: Tensor, v: Tensor, step: Tensor, chunks: Chunks, norm: bool) -> list[Tensor]:
    """Each chunk's negative gradient, ``(N, n, ...)`` per weight."""
    sizes = k.shape[1:3]
    trace = surprise(base, k.flatten(1, 2), v.flatten(1, 2), step.flatten(1), norm)
    inputs, deltas = ([t.unflatten(1, sizes) for t in parts] for parts in (trace.inputs, trace.deltas))
    gradients = [x.mT @ d for x, d in zip(inputs, deltas, strict=True)]
    if trace.gain is not None:
        gradients.append(trace.gain.unflatten(1, sizes).sum(2))
    if chunks.change is not None:
        gradients = [chunks.change(g) for g in gradients]
    if chunks.modulation is not None:
        gradients = [g * like(m, g) for g, m in zip(gradients, chunks.modulation, strict=True)]
    return [-g for g in gradients]


def _momentum(update: Tensor, past: Tensor | None, chunks: Chunks) -> tuple[Tensor, Tensor | None]:
    """The update after momentum, and the momenta ``(N, orders, ...)`` after the last chunk."""
    if past is None or chunks.momentum is None:
        return update, past
    kept = chunks.momentum
    if chunks.complete is not None:
        update = update * like(chunks.complete, update)
        kept = kept.masked_fill(~chunks.complete, 1)
    if chunks.starts is not None:
        kept = kept.masked_fill(chunks.starts, 0)
    momenta, moved = [update], update
    for order, eta in enumerate(kept):
        inflow = moved if chunks.complete is None or not order else moved * like(chunks.complete, moved)
        moved = linear_scan(eta, inflow, past[:, order])
        momenta.append(moved)
    last = torch.stack([m[:, -1] for m in momenta[1:]], 1)
    if chunks.combine is None:
        return moved, last
    momenta = momenta[len(momenta) - len(chunks.combine) :]
    combined = [m * like(w, m) for m, w in zip(momenta, chunks.combine, strict=True)]
    return torch.stack(combined).sum(0), last


def _read(q: Tensor, before: list[Tensor], after: list[Tensor], norm: bool) -> Tensor:
    """All but the last token of a chunk read the weights before its update, the last those after."""
    flat = q.flatten(0, 1)
    last = recall([w.flatten(0, 1) for w in after], flat[:, -1:], norm)
    if q.shape[2] == 1:
        return last.view(q.shape)
    return torch.cat([recall([w.flatten(0, 1) for w in before], flat[:, :-1], norm), last], 1).view(q.shape)


def soft_clamp(gradient: Tensor, largest: float) -> Tensor:
    """Norms of ``(N, n, ...)`` brought between half of ``largest`` and ``largest``: ``(tanh(2 |g| / m) + 1) m / 2``."""
    half = largest / 2
    size = gradient.flatten(2).norm(dim=-1)
    wanted = half * torch.tanh(size / half) + half
    return gradient * like(wanted / size.clamp(min=torch.finfo(size.dtype).tiny), gradient)


def orthogonalise(update: Tensor) -> Tensor:
    """Five Newton-Schulz steps towards the nearest orthogonal matrix (Muon); vectors stay as they are."""
    if update.ndim < 4:
        return update
    tall = update.shape[-2] > update.shape[-1]
    x = update.mT if tall else update
    x = x / x.flatten(-2).norm(dim=-1)[..., None, None].clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


def update_flops(
    chunks: int,
    group: int,
    chunk: int,
    writes: int,
    sizes: Sequence[tuple[int, int]],
    weights: int,
    orders: int,
    orthogonal: bool,
) -> int:
    """FLOPs of the matrix products of :func:`chunk_updates` for one sample and head.

    Args:
        chunks, group: their number, and how many are done at once.
        chunk, writes: tokens that read and tokens that write in each.
        sizes: ``(in, out)`` of every matrix.
        weights: numbers of the memory.
        orders: of momentum.
        orthogonal: updates are orthogonalised.
    """
    flops = 0
    for i, (before, after) in enumerate(sizes):
        # Forward, gradient, and back to the input of all but the first; reading.
        flops += 2 * before * after * (writes * (2 + (i > 0)) + chunk)
        if orthogonal:
            small, large = sorted((before, after))
            flops += 5 * (4 * small * small * large + 2 * small**3)
    flops *= chunks
    for first in range(0, chunks, group):
        for block in range(first, min(first + group, chunks), BLOCK):
            count = min(BLOCK, min(first + group, chunks) - block)
            flops += (1 + orders) * 2 * count * count * weights
    return flops


def update_saved(
    chunks: int, chunk: int, writes: int, sizes: Sequence[tuple[int, int]], weights: int, copies: int, norm: bool
) -> int:
    """Numbers kept for the backward pass, for one sample and head; arguments as those of :func:`update_flops`.

    Args:
        copies: of the weights of a chunk.
        norm: the memory normalises what it gives.
    """
    dim = sizes[-1][1]
    per_write, per_read = (9 if norm else 2) * dim, (4 if norm else 1) * dim
    for i, (before, after) in enumerate(sizes):
        per_write += after
        if i:  # sums and activations, GELU's slope and its parts, the error sent back
            per_write += 7 * before
            per_read += 2 * before
    return chunks * (writes * per_write + chunk * per_read + copies * weights)
