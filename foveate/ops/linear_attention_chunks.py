"""The fast form of linear attention with a decay per head: chunks, exact, O(n) time and memory.

Lightning Attention-2 (arXiv 2401.04658, Algorithms 1 and 2), arranged for batched matrix products. Time is cut into
chunks of ``block`` tokens; a chunk attends to itself through a small masked product and to everything before it through
the state at its border. The states at the borders of up to 16 neighbouring chunks (a *piece*) come from one product
with a triangular matrix of decays; only from piece to piece is there a loop, which also keeps intermediate results in
cache. The backward pass walks the pieces in reverse with the gradient of the state and computes scores and
states again, so that nothing but the inputs is saved, and it can be differentiated once more.

Decays are always formed as exp(-slope * distance) with distance >= 0: the factored form exp(slope j) exp(-slope t)
of the paper overflows for steep slopes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .handwritten import handwritten

#: Most chunks per piece, and numbers of one tensor of a piece that its size aims at: fastest on CPU, measured from 1 to
#: 32 chunks for 4 to 256 heads in a batch, widths 8 to 64, 512 to 32,768 tokens.
MOST_CHUNKS, NUMBERS = 16, 2**17


class Piece(NamedTuple):
    """Consecutive chunks of equal size, whether they read a state, and whether anyone needs theirs."""

    start: int
    chunks: int
    size: int
    reads: bool
    leaves: bool

    @property
    def tokens(self) -> slice:
        return slice(self.start, self.start + self.chunks * self.size)


def chunks_per_piece(batch: int, heads: int, block: int, width: int) -> int:
    """Chunks of a piece; constant while a graph is traced, where sizes may be symbols."""
    if torch.compiler.is_compiling():
        return MOST_CHUNKS
    return max(1, min(MOST_CHUNKS, NUMBERS // (batch * heads * block * width)))


def pieces_of(n: int, block: int, most: int, has_state: bool, return_state: bool) -> list[Piece]:
    """Cut n tokens: pieces of ``most`` full chunks, one of the full chunks that remain, one short chunk."""
    full, rest = n // block, n % block
    cuts = [(most, block)] * (full // most) + [(full % most, block), (1, rest)]
    pieces, start = [], 0
    for chunks, size in cuts:
        stop = start + chunks * size
        if stop > start:
            reads = chunks > 1 or start > 0 or has_state
            leaves = chunks > 1 or stop < n or return_state
            pieces.append(Piece(start, chunks, size, reads, leaves))
        start = stop
    return pieces


def chunked_flops(n: int, heads: int, d: int, e: int, block: int, batch: int = 1, *, stateful: bool = False) -> int:
    """FLOPs of the forward pass, 2 per multiply-add; ``stateful``: with a state before and after."""
    macs = 0
    for piece in pieces_of(n, block, chunks_per_piece(batch, heads, block, max(d, e)), stateful, stateful):
        macs += piece.chunks * piece.size**2 * (d + e)
        macs += piece.chunks * piece.size * d * e * (piece.reads + piece.leaves)
        macs += (piece.chunks + 1) ** 2 * d * e if piece.leaves else 0
    return 2 * batch * heads * macs


class _Decays(NamedTuple):
    """Every decay inside a piece of C chunks of B tokens; with segments each has a batch axis, and zeros.

    The states at the C + 1 borders of the piece are ``border @ [state before it, total of chunk 0, of chunk 1, ...]``.
    """

    pair: Tensor  #: (h, 1, B, B): a key for a later query of its chunk, 0 for an earlier one
    read: Tensor  #: (h, 1, B, 1): the state at the chunk's start for a query
    write: Tensor  #: (h, 1, B, 1): a key in the total of its chunk
    border: Tensor  #: (h, C + 1, C + 1)


def decay(slope: Tensor, distance: Tensor) -> Tensor:
    """``exp(-slope distance)``, 0 where the distance is negative: ``(heads, *distance.shape)``."""
    slope = slope.view(-1, *[1] * distance.ndim)
    return torch.where(distance >= 0, torch.exp(-slope * distance.clamp(min=0)), 0.0)


def _decays(slope: Tensor, chunks: int, size: int, run: Tensor | None) -> _Decays:
    """Decays of a piece; ``run``: int64 ``(batch, 1 + chunks * size)``, that of the token before the piece first."""
    r = torch.arange(size, device=slope.device)
    i = torch.arange(chunks + 1, device=slope.device)
    pair = decay(slope, r[:, None] - r)[:, None]
    read = decay(slope, r + 1)[:, None, :, None]
    write = decay(slope, r.flip(0))[:, None, :, None]
    border = decay(slope, size * (i[:, None] - i))
    if run is None:
        return _Decays(pair, read, write, border)
    ends = run[:, ::size]  # the run that the state at each border belongs to
    inner = run[:, 1:].unflatten(1, (chunks, size))
    same = (inner[..., :, None] == inner[..., None, :])[:, None]
    from_start = (inner == ends[:, :-1, None])[:, None, :, :, None]
    into_end = (inner == ends[:, 1:, None])[:, None, :, :, None]
    across = (ends[:, :, None] == ends[:, None, :])[:, None]
    return _Decays(pair * same, read * from_start, write * into_end, border * across)


class _Plan:
    """What the two passes share: the pieces, their decays, and how tensors are cut into them."""

    def __init__(
        self, q: Tensor, v: Tensor, slope: Tensor, run: Tensor | None, block: int, has_state: bool, return_state: bool
    ) -> None:
        batch, heads, n, width = q.shape
        most = chunks_per_piece(batch, heads, block, max(width, v.shape[-1]))
        self.pieces = pieces_of(n, block, most, has_state, return_state)
        self._slope = slope
        self._run = None if run is None else torch.cat([torch.zeros_like(run[:, :1]), run], 1)
        self._known: dict[tuple[int, int], _Decays] = {}

    def decays(self, piece: Piece) -> _Decays:
        """Decays of a piece; without segments they depend on its shape only."""
        shape = piece.chunks, piece.size
        if self._run is not None:
            return _decays(self._slope, *shape, self._run[:, piece.start : piece.tokens.stop + 1])
        if shape not in self._known:
            self._known[shape] = _decays(self._slope, *shape, None)
        return self._known[shape]

    def cut(self, piece: Piece, *tensors: Tensor) -> Iterator[Tensor]:
        """The piece's part of ``(b, h, n, *)`` as ``(b, h, chunks, size, *)``, in the precision of the slopes."""
        for x in tensors:
            yield x[:, :, piece.tokens].to(self._slope.dtype).unflatten(2, (piece.chunks, piece.size)).contiguous()


def _borders(k: Tensor, v: Tensor, w: _Decays, state: Tensor) -> Tensor:
    """States at the borders of a piece, ``(b, h, chunks + 1, d, e)``, the one after it last."""
    totals = (k * w.write).transpose(-1, -2) @ v
    stack = torch.cat([state[:, :, None], totals], 2)
    return (w.border @ stack.flatten(3)).view_as(stack)


def _first_state(q: Tensor, v: Tensor, slope: Tensor, state: Tensor | None) -> Tensor:
    return slope.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1]) if state is None else state


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slope: Tensor,
    state: Tensor | None,
    run: Tensor | None,
    block: int,
    return_state: bool,
    learn_slope: bool,
) -> tuple[Tensor, Tensor]:
    if isinstance(q.shape[2], torch.SymInt) and not return_state:
        return _any_length(q, k, v, slope, state, run, block), slope.new_empty(0)
    plan = _Plan(q, v, slope, run, block, state is not None, return_state)
    past = _first_state(q, v, slope, state)
    outputs = []
    for piece in plan.pieces:
        w = plan.decays(piece)
        qs, ks, vs = plan.cut(piece, q, k, v)
        o = ((qs @ ks.transpose(-1, -2)) * w.pair) @ vs
        borders = _borders(ks, vs, w, past) if piece.leaves else past[:, :, None]
        if piece.reads:
            o = o + (qs @ borders[:, :, : piece.chunks]) * w.read
        past = borders[:, :, -1]
        outputs.append(o.flatten(2, 3).to(v.dtype))
    return torch.cat(outputs, 2), past.clone() if return_state else past.new_empty(0)


def _any_length(
    q: Tensor, k: Tensor, v: Tensor, slope: Tensor, state: Tensor | None, run: Tensor | None, block: int
) -> Tensor:
    """The output where an exporter knows the length by name only: whole chunks, zeros behind the end, all in one piece.

    Its triangle of decays grows with the square of the number of chunks: little beside the rest up to thousands. One
    chunk more than needed keeps their number above 1, which exporters would take for another case.
    """
    n = q.shape[2]
    chunks = (n + block - 1) // block + 1
    place = torch.arange(chunks, device=q.device)[:, None] * block + torch.arange(block, device=q.device)
    real, place = place < n, place.clamp(max=n - 1)
    qs, ks, vs = (x.to(slope.dtype)[:, :, place] for x in (q, k, v))
    ks = ks * real[..., None]
    if run is not None:
        run = torch.cat([torch.zeros_like(run[:, :1]), run[:, place].flatten(1)], 1)
    w = _decays(slope, chunks, block, run)
    borders = _borders(ks, vs, w, _first_state(q, v, slope, state))
    o = ((qs @ ks.transpose(-1, -2)) * w.pair) @ vs + (qs @ borders[:, :, :-1]) * w.read
    return o.flatten(2, 3).index_select(2, torch.arange(n, device=q.device)).to(v.dtype)


def backward(
    do: Tensor,
    dstate: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slope: Tensor,
    state: Tensor | None,
    run: Tensor | None,
    block: int,
    return_state: bool,
    learn_slope: bool,
) -> tuple[Tensor | None, ...]:
    """The gradients of :data:`chunked`; made of operations that autograd sees through."""
    plan = _Plan(q, v, slope, run, block, state is not None, return_state)
    states = [_first_state(q, v, slope, state)]  # before each piece, and after the last where it is needed
    for piece in plan.pieces if return_state and learn_slope else plan.pieces[:-1]:
        ks, vs = plan.cut(piece, k, v)
        states.append(_borders(ks, vs, plan.decays(piece), states[-1])[:, :, -1])
    dpast = dstate if return_state else torch.zeros_like(states[0])
    dslope = torch.zeros_like(slope)
    grads = []
    for index, piece in reversed(list(enumerate(plan.pieces))):
        w = plan.decays(piece)
        qs, ks, vs, dos = plan.cut(piece, q, k, v, do)
        scores = (qs @ ks.transpose(-1, -2)) * w.pair
        dscores = (dos @ vs.transpose(-1, -2)) * w.pair
        dq, dk, dv = dscores @ ks, dscores.transpose(-1, -2) @ qs, scores.transpose(-1, -2) @ dos
        if learn_slope and index + 1 < len(states):
            dslope = dslope - piece.chunks * piece.size * (states[index + 1] * dpast).sum((0, 2, 3))
        if piece.reads:
            borders = _borders(ks, vs, w, states[index]) if piece.chunks > 1 else states[index][:, :, None]
            dq = dq + (dos @ borders[:, :, : piece.chunks].transpose(-1, -2)) * w.read
        if piece.reads or piece.leaves:
            stack = torch.cat([(qs * w.read).transpose(-1, -2) @ dos, dpast[:, :, None]], 2)
            dtotals = (w.border.transpose(-1, -2) @ stack.flatten(3)).view_as(stack)
            dpast, dtotals = dtotals[:, :, 0], dtotals[:, :, 1:]
            dk = dk + (vs @ dtotals.transpose(-1, -2)) * w.write
            dv = dv + (ks @ dtotals) * w.write
        if learn_slope:
            # A pair enters with exp(-slope (t - j)), so its part of the gradient is -(t - j) = j - t times its weight.
            # That splits into one term per token, no matrix of pairs needed: t counts from 1 inside the piece, where
            # the state before it stands at 0 and the one after it at the last token.
            moved = (ks * dk - qs * dq).sum((0, 4)).flatten(1)
            dslope = dslope + moved @ torch.arange(1, moved.shape[1] + 1, device=q.device, dtype=slope.dtype)
        grads.append([x.flatten(2, 3) for x in (dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype))])
    dq, dk, dv = (torch.cat(parts, 2) for parts in zip(*reversed(grads), strict=True))
    return dq, dk, dv, dslope, dpast if state is not None else None, None


def _shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slope: Tensor,
    state: Tensor | None,
    run: Tensor | None,
    block: int,
    return_state: bool,
    learn_slope: bool,
) -> tuple[Tensor, Tensor]:
    after = (*q.shape[:2], q.shape[-1], v.shape[-1]) if return_state else (0,)
    return torch.empty(v.shape, dtype=v.dtype, device=v.device), slope.new_empty(after)


#: ``(q, k, v, slope, state, run, block, return_state, learn_slope) -> (o, state after; empty unless asked for)``.
#: ``slope`` has the precision of all sums; ``run`` counts segments from 0 on; see ``linear_attention.reference``.
chunked = handwritten(
    "lightning_attention",
    "Tensor q, Tensor k, Tensor v, Tensor slope, Tensor? state, Tensor? run, "
    "int block, bool return_state, bool learn_slope",
    2,
    0,
    _forward,
    backward,
    _shapes,
)
