"""The fast form of the selective scan: blocks, chunks side by side, and a backward pass written by hand.

The sequence is walked in blocks of a few hundred positions. A block is cut into short chunks that are scanned side by
side: position t of all chunks at once, then the state that enters each chunk is added with the product of the decays
since the chunk's start. Every factor is a decay, nothing is divided, so strong decay underflows to zero instead of
overflowing. Only the states between blocks are saved; the backward pass scans each block again, forward to have its
states, then backward for the gradient of the states

    g_t = C_t dy_t + exp(delta_{t+1} A) g_{t+1},

from which every other gradient is a product. Memory grows with the length times D, not times D N.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunk_scan import scan_in_place, scan_traced
from .handwritten import Results, handwritten, planning_batch, sample_groups, sum_dtype

#: Numbers (batch, positions, D, N) in a block: its tensors stay in the processor's last-level cache.
BLOCK_NUMBERS = 2**19
LONGEST_BLOCK = 512


def groups_of(B: Tensor, C: Tensor) -> int:
    """Groups of channels that share a map, time first ``(batch, L, G, N)``; 1 where both are constant ``(D, N)``."""
    return B.shape[2] if B.ndim == 4 else C.shape[2] if C.ndim == 4 else 1


def block_length(batch: int, numbers: int) -> int:
    """Positions of a block for states of ``numbers`` = D N per sample: a power of two, at least 16."""
    positions = max(1, BLOCK_NUMBERS // max(1, batch * numbers))
    return min(LONGEST_BLOCK, max(16, 2 ** int(math.log2(positions))))


def chunk_length(positions: int) -> int:
    """Positions of a chunk: about the square root of a block's, so that steps and chunks are equally few."""
    return 2 ** math.ceil(math.log2(positions) / 2)


class _Blocks:
    """The inputs of some samples cut into blocks: casts, pads to whole chunks and groups channels, a block at a time.

    Shapes inside a block of n positions: channels as (G, P) with D = G P; states (batch, n, G, N, P), so that the
    innermost axis is the long one.
    """

    def __init__(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, bias: Tensor | None, block: int
    ) -> None:
        self.batch, self.length, channels = u.shape
        self.groups = groups_of(B, C)
        self.real = sum_dtype(u.dtype)
        self.number = self.real.to_complex() if A.is_complex() else self.real
        self.block, self.chunk = block, chunk_length(min(block, self.length))
        self.count = -(-self.length // block)
        self.delta, self.u = delta, u
        self.B, self.C = (m if m.ndim == 4 else self.grouped(m) for m in (B, C))
        self.A = self.grouped(A)
        # On CPUs exp2 of a prescaled A is four times faster than exp; complex numbers have the latter only.
        self.A2 = self.A if self.A.is_complex() else self.A * math.log2(math.e)
        self.bias = None if bias is None else bias.to(self.real)
        self.zeros = torch.zeros(channels, dtype=self.real, device=u.device)

    def grouped(self, m: Tensor) -> Tensor:
        """``(..., D, N)`` to ``(..., G, N, P)``, in the precision of the states."""
        return m.to(self.number).unflatten(-2, (self.groups, -1)).transpose(-1, -2).contiguous()

    def ungrouped(self, m: Tensor) -> Tensor:
        """``(..., G, N, P)`` to ``(..., D, N)``."""
        return m.transpose(-1, -2).flatten(-3, -2)

    def span(self, index: int) -> slice:
        """The positions of a block."""
        return slice(index * self.block, min(self.length, (index + 1) * self.block))

    def padded(self, m: Tensor, value: float = 0.0) -> Tensor:
        """Widen axis 1 to whole chunks."""
        missing = -m.shape[1] % self.chunk
        return F.pad(m, (0, 0) * (m.ndim - 2) + (0, missing), value=value) if missing else m

    def by_group(self, m: Tensor) -> Tensor:
        """``(batch, n, D)`` to ``(batch, n, G, P)``."""
        return m.unflatten(-1, (self.groups, -1))

    def steps(self, span: slice, softplus: bool) -> tuple[Tensor, Tensor]:
        """Raw and effective step sizes of a block, ``(batch, n, D)``."""
        raw = self.delta[:, span].to(self.real)
        raw = raw if self.bias is None else raw + self.bias
        return raw, F.softplus(raw) if softplus else raw

    def maps(self, m: Tensor, span: slice) -> Tensor:
        """B or C of a block, broadcastable to the states: ``(batch, n, G, N, 1)`` or, constant, ``(G, N, P)``."""
        return m if m.ndim == 3 else m[:, span].to(self.number).unsqueeze(-1)

    def buffer(self) -> Tensor:
        """Room for one number per state and position of a block: made once, for fresh memory costs more than sums."""
        positions = self.batch * self.chunk * -(-min(self.block, self.length) // self.chunk)
        return torch.empty((positions, *self.A.shape), dtype=self.number, device=self.u.device)

    def cut(self, buffer: Tensor, positions: int) -> Tensor:
        """The part of a buffer that whole chunks over ``positions`` need: ``(batch, n, G, N, P)``, contiguous."""
        positions += -positions % self.chunk
        return buffer[: self.batch * positions].unflatten(0, (self.batch, positions))

    def decays(self, out: Tensor | None, step: Tensor, reset: Tensor | None) -> Tensor:
        """``exp(step A)``, 0 at a reset, over whole chunks; padding has step 0: the state passes it untouched."""
        step = self.by_group(self.padded(step)).unsqueeze(-2)
        decay = _product(step, self.A2, None if out is None else self.cut(out, step.shape[1]))
        decay = decay.exp_() if decay.is_complex() else decay.exp2_()
        if reset is not None:
            keep = self.padded((~reset).to(self.real).unsqueeze(-1), 1.0)
            decay *= keep[..., None, None]
        return decay

    def spread(self, out: Tensor | None, maps: Tensor, values: Tensor) -> Tensor:
        """Outer product of ``maps`` with ``(batch, n, G, P)`` over whole chunks: ``(batch, n, G, N, P)``."""
        maps = self.padded(maps) if maps.ndim == 5 else maps
        values = self.padded(values).unsqueeze(-2)
        return _product(values, maps, None if out is None else self.cut(out, values.shape[1]))

    def output(self, states: Tensor, x: Tensor, span: slice, D: Tensor | None) -> Tensor:
        """What is read from the states of a block, skip included, before the gate: ``(batch, n, D)``."""
        y = _gather(self.maps(self.C, span), states[:, : x.shape[1]]).flatten(-2)
        y = 2 * y.real if y.is_complex() else y
        return y if D is None else y + D * x


def _product(a: Tensor, b: Tensor, room: Tensor | None) -> Tensor:
    """``a b``, in ``room``; compilers plan memory themselves, and cannot follow a write into part of a buffer."""
    return a * b if room is None or torch.compiler.is_compiling() else torch.mul(a, b, out=room)


def _gather(maps: Tensor, states: Tensor) -> Tensor:
    """Sum over N of ``maps`` times states: ``(batch, n, G, P)``."""
    if maps.ndim == 5:
        return (maps.mT @ states).squeeze(-2)
    return (states * maps).sum(-2)


def _maps_gradient(like: Tensor, states: Tensor, values: Tensor) -> Tensor:
    """Gradient with respect to ``maps`` of :func:`_gather`, in the shape of ``like`` before its last axis."""
    values = values.to(states.dtype)
    if like.ndim == 5:
        return (values.unsqueeze(-2) @ states.mT).squeeze(-2)  # row times matrix: the fast order on CPUs
    return (states * values.unsqueeze(-2)).sum((0, 1))


def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    reset: Tensor | None,
    softplus: bool,
    block: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, last state, and the states before each block ``(blocks, batch, G, N, P)``."""
    if torch.compiler.is_compiling():
        return _forward_traced(u, delta, A, B, C, D, z, bias, initial, reset, softplus, block)
    out, last, starts = _shapes(u, delta, A, B, C, D, z, bias, initial, reset, softplus, block)
    for some in sample_groups(u.shape[0], BLOCK_NUMBERS // (block * A.numel())):
        blocks = _Blocks(u[some], delta[some], A, _of(B, some), _of(C, some), bias, block)
        state = torch.zeros_like(starts[0, some]) if initial is None else blocks.grouped(initial[some])
        room_h, room_decay = blocks.buffer(), blocks.buffer()
        for index in range(blocks.count):
            starts[index, some] = state
            span = blocks.span(index)
            _, step = blocks.steps(span, softplus)
            x = blocks.u[:, span].to(blocks.real)
            h = blocks.spread(room_h, blocks.maps(blocks.B, span), blocks.by_group(step * x))
            decay = blocks.decays(room_decay, step, None if reset is None else reset[some, span])
            state = scan_in_place(decay, h, state, blocks.chunk).clone()
            y = blocks.output(h, x, span, D)
            out[some, span] = y if z is None else y * F.silu(z[some, span].to(blocks.real))
        last[some] = blocks.ungrouped(state)
    return out, last, starts


def _forward_traced(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    reset: Tensor | None,
    softplus: bool,
    block: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """What :func:`_forward` computes, without a write into anything: what an exporter can follow."""
    blocks = _Blocks(u, delta, A, B, C, bias, block)
    shape = (u.shape[0], *blocks.A.shape)
    state = blocks.zeros.new_zeros(shape, dtype=blocks.number) if initial is None else blocks.grouped(initial)
    outputs, starts = [], []
    for index in range(blocks.count):
        starts.append(state)
        span = blocks.span(index)
        _, step = blocks.steps(span, softplus)
        x = blocks.u[:, span].to(blocks.real)
        h = blocks.spread(None, blocks.maps(blocks.B, span), blocks.by_group(step * x))
        decay = blocks.decays(None, step, None if reset is None else reset[:, span])
        h, state = scan_traced(decay, h, state, blocks.chunk)
        y = blocks.output(h, x, span, D)
        outputs.append((y if z is None else y * F.silu(z[:, span].to(blocks.real))).to(u.dtype))
    return torch.cat(outputs, 1), blocks.ungrouped(state).contiguous(), torch.stack(starts)


def _backward(
    grad_out: Tensor,
    grad_last: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    reset: Tensor | None,
    softplus: bool,
    block: int,
    starts: Tensor,
) -> Results:
    """Gradients of every input: the blocks in reverse, each scanned again forward, then backward."""
    grad_u, grad_delta, grad_initial = torch.empty_like(u), torch.empty_like(delta), torch.empty_like(grad_last)
    grad_z = None if z is None else torch.empty_like(z)
    every = _Blocks(u, delta, A, B, C, bias, block)
    grad_A, grad_B, grad_C = (torch.zeros_like(m) for m in (every.A, every.B, every.C))
    grad_D, grad_bias = every.zeros.clone(), every.zeros.clone()
    for some in sample_groups(u.shape[0], BLOCK_NUMBERS // (block * A.numel())):
        blocks = _Blocks(u[some], delta[some], A, _of(B, some), _of(C, some), bias, block)
        carry = blocks.grouped(grad_last[some])
        room_h, room_decay, room_g, room = (blocks.buffer() for _ in range(4))
        for index in reversed(range(blocks.count)):
            span, start = blocks.span(index), starts[index, some]
            raw, step = blocks.steps(span, softplus)
            x, n = blocks.u[:, span].to(blocks.real), raw.shape[1]
            maps_B, maps_C = blocks.maps(blocks.B, span), blocks.maps(blocks.C, span)
            decay = blocks.decays(room_decay, step, None if reset is None else reset[some, span])
            h = blocks.spread(room_h, maps_B, blocks.by_group(step * x))
            scratch = blocks.cut(room, n).copy_(decay)
            scan_in_place(scratch, h, start, blocks.chunk)

            gy = grad_out[some, span].to(blocks.real)
            if z is not None and grad_z is not None:
                gate = z[some, span].to(blocks.real)
                sigmoid = torch.sigmoid(gate)
                y = blocks.output(h, x, span, D)
                grad_z[some, span] = gy * y * sigmoid * (1 + gate * (1 - sigmoid))
                gy = gy * gate * sigmoid
            gx = blocks.zeros if D is None else gy * D
            grad_D += (gy * x).sum((0, 1))

            # The gradient of the state: what y_t asks for, plus the decayed gradient of the state after it.
            gy = blocks.by_group(2 * gy if A.is_complex() else gy)
            _put(grad_C, _maps_gradient(maps_C, h[:, :n].conj(), gy), some, span)
            g = blocks.spread(room_g, maps_C.conj(), gy)
            decay = decay.conj()
            scratch[:, :-1] = decay[:, 1:]
            scratch[:, -1] = 1
            carry = decay[:, 0] * scan_in_place(scratch, g, carry, blocks.chunk, reverse=True)
            _put(grad_B, _maps_gradient(maps_B, g[:, :n], blocks.by_group(step * x)), some, span)
            inward = _real(_gather(maps_B.conj(), g[:, :n])).flatten(-2)

            # exp(step A) h_{t-1} has the gradient g; through the exponent it reaches step A.
            g *= decay
            g[:, 1:] *= h[:, :-1].conj()
            g[:, 0] *= start.conj()
            grad_step = _product(g, blocks.A.conj(), scratch).sum(-2)
            grad_step = _real(grad_step[:, :n]).flatten(-2) + inward * x
            grad_A += g.mul_(blocks.by_group(blocks.padded(step)).unsqueeze(-2)).sum((0, 1))
            grad_u[some, span] = gx + inward * step
            if softplus:
                grad_step = torch.ops.aten.softplus_backward(grad_step, raw, 1, 20)
            grad_delta[some, span] = grad_step
            grad_bias += grad_step.sum((0, 1))
        grad_initial[some] = blocks.ungrouped(carry)
    return (
        grad_u,
        grad_delta,
        every.ungrouped(grad_A),
        *(m if m.ndim == 4 else every.ungrouped(m) for m in (grad_B, grad_C)),
        None if D is None else grad_D,
        grad_z,
        None if bias is None else grad_bias,
        None if initial is None else grad_initial,
        None,
    )


def _of(maps: Tensor, some: slice) -> Tensor:
    """B or C of some samples; constant ones are everybody's."""
    return maps[some] if maps.ndim == 4 else maps


def _put(gradient: Tensor, found: Tensor, some: slice, span: slice) -> None:
    """A block's share of the gradient of B or C: its positions, or a term of the sum where they are constant."""
    if gradient.ndim == 4:
        gradient[some, span] = found
    else:
        gradient += found


def _real(m: Tensor) -> Tensor:
    return m.real if m.is_complex() else m


def _shapes(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    reset: Tensor | None,
    softplus: bool,
    block: int,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, channels = u.shape
    number = sum_dtype(u.dtype)
    number = number.to_complex() if A.is_complex() else number
    groups = groups_of(B, C)
    states = (A.shape[1], channels // groups)
    return (
        torch.empty(batch, length, channels, dtype=u.dtype, device=u.device),
        torch.empty(batch, *A.shape, dtype=number, device=u.device),
        torch.empty(-(-length // block), batch, groups, *states, dtype=number, device=u.device),
    )


_op = handwritten(
    "selective_scan",
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? bias, Tensor? initial, "
    "Tensor? reset, bool softplus, int block",
    outputs=2,
    extras=1,
    forward=_forward,
    backward=_backward,
    shapes=_shapes,
)


def selective_scan_blocks(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    reset: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, Tensor]:
    """Output and last state. Time before channels: u, delta, z (batch, L, D); B, C (batch, L, G, N) or (D, N)."""
    block = block_length(planning_batch(u), A.numel())
    out, last = _op(u, delta, A, B, C, D, z, bias, initial, reset, softplus, block)
    return out, last
