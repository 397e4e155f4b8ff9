"""A neural memory with one update per chunk, as titans-pytorch has it.

The gradients of a chunk's tokens are added up, all at the weights ``B`` of the last re-basing, and one forgetting alpha
and one momentum eta serve the whole chunk. With U_c the (negative) sum of chunk c,

    S_c = eta_c S_{c-1} + U_c,        M_c = (1 - alpha_c) M_{c-1} + S_c,

and every ``m`` chunks ``B`` becomes the memory; without re-basing it stays what it was. The weights of every chunk
exist here, so that updates can be changed as whole matrices (clamped, orthogonalised). A token reads the weights of the
chunks that are complete with it: only the last of a chunk reads that chunk's update.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .memory_kinds import Network, matrices
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
        mix: ``(N, n)``: share of another memory's weights in those at which gradients are taken; None: none.
        complete: bool ``(N, n)``: the others change nothing; None: all.
        starts: bool ``(N, n)``: chunks that begin a document; None: none.
        change: what becomes of a chunk's gradient ``(N, n, ...)`` of one weight, before momentum; None: nothing.
        shape: what becomes of its update after momentum; None: nothing.
    """

    forget: Tensor
    momentum: Tensor | None
    combine: Tensor | None = None
    modulation: Tensor | None = None
    mix: Tensor | None = None
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
            cut(self.mix),
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
    net: Network,
    group: int,
    rebase: Tensor | None,
    transition: Tensor | None = None,
    lead: Tensor | None = None,
    other: Weights | None = None,
    trace: bool = False,
) -> tuple[Tensor, Weights, Weights | None, Weights, Weights | None]:
    """Write all chunks and read them with each token's query.

    Args:
        q: ``(N, n, chunk, dim)``.
        k, v: ``(N, n, writes, dim)``: a token may write several times.
        step: ``(N, n, writes)``, 0 where nothing is written.
        start, memory, base: weights ``(N, ...)``: of a new document, now, and those of gradients.
        past: the momenta, ``(N, orders, ...)``; None without.
        net: the memory's network.
        group: chunks that are done at once, because their gradients are taken at the same weights.
        rebase: bool ``(N, groups)``: the base becomes the memory after this group; None: never.
        transition: scalar in [0, 1]: how far base and memory go there from the old base to the memory; None: 1.
        lead: ``(N, dim)``: the query of the token before the first, with which a network that mixes tokens reads the
            first chunk; None: zeros.
        other: ``(N, n, ...)``: another memory's weights before each chunk, of which a share of ``chunks.mix`` is added
            to the base.
        trace: return this memory's.

    Returns:
        ``(N, n, chunk, dim)``, memory, momenta and base; the weights before each chunk, or None.
    """
    outputs, seen = [], []
    leads = _leads(q, lead, chunks.starts) if net.mixes else None
    for i, first in enumerate(range(0, k.shape[1], group)):
        here = slice(first, first + group)
        some = chunks.part(here)
        if some.starts is not None and rebase is not None:
            base = replaced(some.starts[:, 0], start, base)
        mixed = None if other is None else tuple(w[:, here] for w in other)
        updates = _updates(base, mixed, k[:, here], v[:, here], step[:, here], some, net)
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
        outputs.append(_read(q[:, here], None if leads is None else leads[:, here], before, after, net))
        seen.append(before)
    known = tuple(torch.cat(parts, 1) for parts in zip(*seen, strict=True)) if trace else None
    return torch.cat(outputs, 1), memory, past, base, known


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


def _updates(
    base: Weights, other: Weights | None, k: Tensor, v: Tensor, step: Tensor, chunks: Chunks, net: Network
) -> list[Tensor]:
    """Each chunk's negative gradient, ``(N, n, ...)`` per weight."""
    shape = k.shape[:3]
    if other is None or chunks.mix is None:
        k, v, step = (t.flatten(1, 2) for t in (k, v, step))
    else:  # every chunk has weights of its own
        base = tuple((b.unsqueeze(1) + o * like(chunks.mix, o)).flatten(0, 1) for b, o in zip(base, other, strict=True))
        k, v, step = (t.flatten(0, 1) for t in (k, v, step))
    y, back = net.run(base, k, shape[2])
    gradients = []
    for x, delta in back(2 * step.unsqueeze(-1) * (y - v)):
        delta = delta.reshape(*shape, -1)
        gradients.append(delta.sum(2) if x is None else x.reshape(*shape, -1).mT @ delta)
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


def _leads(q: Tensor, lead: Tensor | None, starts: Tensor | None) -> Tensor:
    """The query of the token before each chunk, ``(N, n, dim)``; zeros before a document."""
    first = torch.zeros_like(q[:, :1, -1]) if lead is None else lead.to(q.dtype).unsqueeze(1)
    leads = torch.cat([first, q[:, :-1, -1]], 1)
    return leads if starts is None else leads.masked_fill(like(starts, leads), 0)


def _read(q: Tensor, leads: Tensor | None, before: list[Tensor], after: list[Tensor], net: Network) -> Tensor:
    """All but the last token of a chunk read the weights before its update, the last those after.

    Tokens that read the same weights are given to the network together: the last of a chunk and all but the last of the
    next. ``leads`` are the former, for networks that mix tokens.
    """
    flat = q.flatten(0, 1)
    last = net.run([w.flatten(0, 1) for w in after], flat[:, -1:], 1)[0]
    if q.shape[2] == 1:
        return last.view(q.shape)
    early = flat[:, :-1] if leads is None else torch.cat([leads.flatten(0, 1).unsqueeze(1), flat[:, :-1]], 1)
    early = net.run([w.flatten(0, 1) for w in before], early, early.shape[1])[0]
    return torch.cat([early if leads is None else early[:, 1:], last], 1).view(q.shape)


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
    net: Network,
    weights: int,
    orders: int,
    orthogonal: bool,
) -> int:
    """FLOPs of the matrix products of :func:`chunk_updates` for one sample and head.

    Args:
        chunks, group: their number, and how many are done at once.
        chunk, writes: tokens that read and tokens that write in each.
        net: the memory's network.
        weights: numbers of the memory.
        orders: of momentum.
        orthogonal: updates are orthogonalised.
    """
    flops, reads = 0, chunk + (net.mixes and chunk > 1)
    for before, after, first in matrices(net):
        # Forward, gradient, and back to the input of all but the first; reading.
        flops += 2 * before * after * (writes * (3 - first) + reads)
        if orthogonal:
            small, large = sorted((before, after))
            flops += 5 * (4 * small * small * large + 2 * small**3)
    if net.mixes:  # products of tokens with each other: two forward, four backward
        dim = net.shapes[0][0]
        flops += 2 * dim * (6 * writes**2 + 2 * (1 + (chunk**2 if chunk > 1 else 0)))
    flops *= chunks
    for first in range(0, chunks, group):
        for block in range(first, min(first + group, chunks), BLOCK):
            count = min(BLOCK, min(first + group, chunks) - block)
            flops += (1 + orders) * 2 * count * count * weights
    return flops


def update_saved(chunks: int, chunk: int, writes: int, net: Network, weights: int, copies: int) -> int:
    """Numbers kept for the backward pass, for one sample and head; arguments as those of :func:`update_flops`.

    Args:
        copies: of the weights of a chunk.
    """
    dim, (write, read) = net.shapes[0][0], net.saved()
    pairs = 5 * writes**2 + 2 * chunk**2 if net.mixes else 0
    return chunks * (writes * (write + 2 * dim) + chunk * (read + dim) + pairs + copies * weights)
