"""The fast form of SSD: matrix products within chunks, a short recurrence between them, a backward pass by hand.

Within a chunk of Q positions, ``Y = (L * C B^T) X`` as it stands. What came before the chunk is one state S, read with
``Y_i += exp(a_1 + .. + a_i) C_i S``; what the chunk adds to it is ``sum_j L_Qj X_j B_j^T``. Sums of log decays are made
from the terms between j and i, never as a difference of two running sums: with strong decay such a difference is noise.

A few chunks at a time form a block that stays in the processor's cache. Only the states between blocks are saved; the
backward pass makes everything inside a block again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .handwritten import Results, handwritten, planning_batch, sample_groups, sum_dtype

#: Numbers (batch, chunks, heads, Q, Q + P + N) in a block.
BLOCK_NUMBERS = 2**19

#: A logarithm (base 2) whose power is 0 in every precision, yet finite: 0 times it is 0.
NOTHING = -(2.0**14)


@dataclass(slots=True)
class _Block:
    """A block of c chunks. Heads are (G, R) with H = G R; ``j`` is the reading, ``i`` the written position.

    Attributes:
        span: its positions, n of them (the last chunk may be padded).
        x: input without its step size ``(batch, n, H, P)``.
        dt: ``(batch, n, H)`` or None.
        X: ``dt x``, padded, ``(batch, c, G, Q, R, P)``.
        B, C: ``(batch, c, G, Q, N)``.
        decay: from j to i, ``(batch, c, G, R, Q_j, Q_i)``, zero for j > i.
        entered: from the chunk's start to i, ``(batch, c, G, R, Q_i)``.
    """

    span: slice
    x: Tensor
    dt: Tensor | None
    X: Tensor
    B: Tensor
    C: Tensor
    decay: Tensor
    entered: Tensor

    @property
    def left(self) -> Tensor:
        """Decay from j to the chunk's end, against X: ``(batch, c, G, Q, R, 1)``."""
        return self.decay[..., -1].transpose(-1, -2).unsqueeze(-1)

    @property
    def carried(self) -> Tensor:
        """Decay from the chunk's start to i, against X: ``(batch, c, G, Q, R, 1)``."""
        return self.entered.transpose(-1, -2).unsqueeze(-1)

    @property
    def through(self) -> Tensor:
        """Decay of a whole chunk, against its states ``(batch, c, G, R, P, N)``."""
        return self.entered[..., -1, None, None]


class _Blocks:
    """The inputs of ``some`` samples cut into blocks of ``chunks`` chunks of ``chunk`` positions."""

    def __init__(
        self,
        some: slice,
        x: Tensor,
        dt: Tensor | None,
        log_decay: Tensor,
        B: Tensor,
        C: Tensor,
        reset: Tensor | None,
        chunk: int,
        chunks: int,
    ) -> None:
        self.x, self.log_decay, self.B, self.C = x[some], log_decay[some], B[some], C[some]
        self.dt = None if dt is None else dt[some]
        self.reset = None if reset is None else reset[some]
        self.length, self.width, self.groups = x.shape[1], x.shape[3], B.shape[2]
        self.real = sum_dtype(x.dtype)
        self.chunk, self.block = chunk, chunk * chunks
        self.count = -(-self.length // self.block)
        self.after = torch.ones(chunk, chunk, dtype=self.real, device=x.device).triu(1)

    def padded(self, m: Tensor) -> Tensor:
        """``(batch, n, ...)`` to ``(batch, c, Q, ...)``, zeros in the padding."""
        missing = -m.shape[1] % self.chunk
        m = F.pad(m, (0, 0) * (m.ndim - 2) + (0, missing)) if missing else m
        return m.unflatten(1, (-1, self.chunk))

    def by_head(self, m: Tensor) -> Tensor:
        """``(batch, n, H, P)`` to ``(batch, c, G, Q, R, P)``."""
        return self.padded(m).unflatten(3, (self.groups, -1)).transpose(2, 3)

    def flat(self, m: Tensor, n: int) -> Tensor:
        """Back: ``(batch, c, G, Q, ...)`` to ``(batch, n, G, ...)``."""
        return m.transpose(2, 3).flatten(1, 2)[:, :n]

    def read(self, index: int) -> _Block:
        """Block number ``index``."""
        span = slice(index * self.block, min(self.length, (index + 1) * self.block))
        x = self.x[:, span].to(self.real)
        dt = None if self.dt is None else self.dt[:, span].to(self.real)
        B, C = (self.padded(m[:, span].to(self.real)).transpose(2, 3) for m in (self.B, self.C))
        a = self.log_decay[:, span].to(self.real) * math.log2(math.e)
        if self.reset is not None:
            a = a.masked_fill(self.reset[:, span].unsqueeze(-1), NOTHING)
        a = self.padded(a).unflatten(3, (self.groups, -1)).permute(0, 1, 3, 4, 2).contiguous()
        decay = (a.unsqueeze(-2) * self.after).cumsum(-1).exp2_().triu_()
        X = self.by_head(x if dt is None else x * dt.unsqueeze(-1))
        return _Block(span, x, dt, X, B, C, decay, a.cumsum(-1).exp2_())

    def grouped(self, state: Tensor) -> Tensor:
        """States ``(batch, H, P, N)`` to ``(batch, G, R, P, N)``, in their precision."""
        return state.to(self.real).unflatten(1, (self.groups, -1))

    def walk(self, block: _Block, state: Tensor) -> tuple[Tensor, Tensor]:
        """States before each chunk ``(batch, c, G, R, P, N)``, and the one after the block."""
        added = (block.X * block.left).flatten(-2).mT @ block.B
        added = added.unflatten(-2, (-1, self.width))
        before = torch.empty_like(added)
        for c, (through, new) in enumerate(zip(block.through.unbind(1), added.unbind(1), strict=True)):
            before[:, c] = state
            state = torch.addcmul(new, through, state)
        return before, state


def _groups_of_samples(x: Tensor, B: Tensor, chunk: int, chunks: int) -> list[slice]:
    return sample_groups(x.shape[0], BLOCK_NUMBERS // (chunks * _numbers(x.shape[2], x.shape[3], B.shape[3], chunk)))


def _numbers(heads: int, width: int, states: int, chunk: int) -> int:
    """Numbers that belong to a chunk of one sample: decays, inputs and maps."""
    return heads * chunk * (chunk + width + states)


def _forward(
    x: Tensor,
    dt: Tensor | None,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial: Tensor | None,
    reset: Tensor | None,
    chunk: int,
    chunks: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, final states, and the states before each block ``(blocks, batch, H, P, N)``."""
    out, final, starts = _shapes(x, dt, log_decay, B, C, D, initial, reset, chunk, chunks)
    for some in _groups_of_samples(x, B, chunk, chunks):
        blocks = _Blocks(some, x, dt, log_decay, B, C, reset, chunk, chunks)
        state = blocks.grouped(torch.zeros_like(final[some]) if initial is None else initial[some])
        for index in range(blocks.count):
            starts[index, some] = state.flatten(1, 2)
            block = blocks.read(index)
            weights = (block.B @ block.C.mT).unsqueeze(3) * block.decay
            inside = (weights.mT @ block.X.transpose(3, 4)).transpose(3, 4)
            before, state = blocks.walk(block, state)
            from_before = block.C @ before.flatten(-3, -2).mT
            y = torch.addcmul(inside, block.carried, from_before.unflatten(-1, (-1, blocks.width)))
            y = blocks.flat(y, block.x.shape[1]).flatten(2, 3)
            out[some, block.span] = y if D is None else torch.addcmul(y, D.to(y.dtype), block.x)
        final[some] = state.flatten(1, 2)
    return out, final, starts


def _backward(
    grad_out: Tensor,
    grad_final: Tensor,
    x: Tensor,
    dt: Tensor | None,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial: Tensor | None,
    reset: Tensor | None,
    chunk: int,
    chunks: int,
    starts: Tensor,
) -> Results:
    """Gradients of every input, block by block from the end."""
    grad_x, grad_log_decay = torch.empty_like(x), torch.empty_like(log_decay)
    grad_dt = None if dt is None else torch.empty_like(dt)
    grad_B, grad_C = torch.empty_like(B), torch.empty_like(C)
    grad_D = torch.zeros(x.shape[2:], dtype=sum_dtype(x.dtype), device=x.device)
    grad_initial = torch.empty_like(grad_final)
    for some in _groups_of_samples(x, B, chunk, chunks):
        blocks = _Blocks(some, x, dt, log_decay, B, C, reset, chunk, chunks)
        carry = blocks.grouped(grad_final[some])
        for index in reversed(range(blocks.count)):
            block = blocks.read(index)
            span, n = block.span, block.x.shape[1]
            before, _ = blocks.walk(block, blocks.grouped(starts[index, some]))
            states = before.flatten(-3, -2)
            gy = grad_out[some, span].to(blocks.real)
            g = blocks.by_head(gy)

            # The part read from the state before the chunk.
            g_carried = (g * block.carried).flatten(-2)
            g_C = g_carried @ states
            grad_before = (g_carried.mT @ block.C).unflatten(-2, (-1, blocks.width))
            read = (block.C @ states.mT).unflatten(-1, (-1, blocks.width))
            grad_entered = (g * read).sum(-1).transpose(-1, -2).contiguous()

            # The recurrence between chunks, backward: the gradient of what each chunk added.
            grad_added = torch.empty_like(before)
            for c in reversed(range(before.shape[1])):
                grad_added[:, c] = carry
                grad_entered[:, c, ..., -1] += (carry * before[:, c]).sum((-1, -2))
                carry = torch.addcmul(grad_before[:, c], block.through[:, c], carry)
            grad_added = grad_added.flatten(-3, -2)
            grad_left = (block.B @ grad_added.mT).unflatten(-1, (-1, blocks.width))
            g_B = (block.X * block.left).flatten(-2) @ grad_added
            grad_X = grad_left * block.left
            grad_left = (grad_left * block.X).sum(-1).transpose(-1, -2)

            # The product inside the chunk.
            scores = (block.B @ block.C.mT).unsqueeze(3)
            weights = scores * block.decay
            X, g = block.X.transpose(3, 4), g.transpose(3, 4)
            grad_weights = X @ g.mT
            grad_X += (weights @ g).transpose(3, 4)
            grad_scores = (grad_weights * block.decay).sum(3)
            g_C += grad_scores.mT @ block.B
            g_B += grad_scores @ block.C

            # log decay k is a term of every sum with j < k <= i, and of every running sum with k <= i.
            grad_sums = grad_weights.mul_(weights)
            grad_sums[..., -1] += grad_left * block.decay[..., -1]
            grad_a = (grad_entered * block.entered).flip(-1).cumsum(-1).flip(-1)
            grad_a[..., 1:] += grad_sums.cumsum(-2).triu_(1).sum(-1)[..., :-1]
            grad_a = grad_a.permute(0, 1, 4, 2, 3).flatten(3, 4).flatten(1, 2)[:, :n]

            gx = blocks.flat(grad_X, n).flatten(2, 3)
            grad_log_decay[some, span] = grad_a
            if block.dt is not None and grad_dt is not None:
                grad_dt[some, span] = (gx * block.x).sum(-1)
                gx = gx * block.dt.unsqueeze(-1)
            grad_x[some, span] = gx if D is None else torch.addcmul(gx, D.to(gx.dtype), gy)
            grad_D += (gy * block.x).sum((0, 1))
            grad_B[some, span] = blocks.flat(g_B, n)
            grad_C[some, span] = blocks.flat(g_C, n)
        grad_initial[some] = carry.flatten(1, 2)
    return (
        grad_x,
        grad_dt,
        grad_log_decay,
        grad_B,
        grad_C,
        None if D is None else grad_D,
        None if initial is None else grad_initial,
        None,
    )


def _shapes(
    x: Tensor,
    dt: Tensor | None,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial: Tensor | None,
    reset: Tensor | None,
    chunk: int,
    chunks: int,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, heads, width = x.shape
    state = (batch, heads, width, B.shape[3])
    real = sum_dtype(x.dtype)
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        torch.empty(state, dtype=real, device=x.device),
        torch.empty(-(-length // (chunk * chunks)), *state, dtype=real, device=x.device),
    )


_op = handwritten(
    "ssd",
    "Tensor x, Tensor? dt, Tensor log_decay, Tensor B, Tensor C, Tensor? D, Tensor? initial, Tensor? reset, "
    "int chunk, int chunks",
    outputs=2,
    extras=1,
    forward=_forward,
    backward=_backward,
    shapes=_shapes,
)


def ssd_chunks(
    x: Tensor,
    dt: Tensor | None,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial: Tensor | None,
    reset: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Output and final states; D is ``(H, P)``, ``reset`` bool ``(batch, L)``, the rest as in ``ssd_discrete``."""
    _, length, heads, width = x.shape
    chunk = chunk_length(length, chunk_size)
    chunks = block_chunks(planning_batch(x), length, heads, width, B.shape[3], chunk)
    out, final = _op(x, dt, log_decay, B, C, D, initial, reset, chunk, chunks)
    return out, final


def chunk_length(length: int, chunk_size: int) -> int:
    """Positions of a chunk: as few chunks as ``chunk_size`` allows, and these as even as can be (little padding)."""
    return -(-length // -(-length // chunk_size))


def block_chunks(batch: int, length: int, heads: int, width: int, states: int, chunk: int) -> int:
    """Chunks of a block."""
    numbers = batch * _numbers(heads, width, states, chunk)
    return max(1, min(-(-length // chunk), BLOCK_NUMBERS // numbers))


def ssd_flops(batch: int, length: int, heads: int, width: int, groups: int, states: int, chunk_size: int) -> int:
    """FLOPs of the matrix products of a forward pass, padding included (2 per multiply-add)."""
    chunk = chunk_length(length, chunk_size)
    positions = batch * -(-length // chunk) * chunk
    scores = groups * chunk * states
    inside = heads * chunk * width
    through_states = 2 * heads * width * states
    return 2 * positions * (scores + inside + through_states)
