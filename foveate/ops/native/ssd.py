"""SSD through the CPU kernel of linear attention; what it computes stands in :mod:`foveate.ops.ssd`.

``C``, ``B`` and ``x`` are the queries, keys and values of ``linear_attention.py``, and step sizes weigh the values.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..handwritten import Results, handwritten, sum_dtype
from . import SCALARS, fresh, takes, through_autograd, whole
from .linear_attention import Prepared, chunks_between_states, pieces, total


def fits(x: Tensor, B: Tensor, C: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernel takes these: real numbers on the CPU, in one storage type that it knows."""
    return x.dtype in SCALARS and x.dtype == B.dtype == C.dtype and takes(x, B, C, *others)


def _prepared(
    x: Tensor,
    dt: Tensor | None,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial: Tensor | None,
    reset: Tensor | None,
    every: int,
    *,
    backward: bool,
) -> Prepared:
    initial = whole(initial, sum_dtype(x.dtype))
    return Prepared(C, B, x, log_decay, dt, D, None if initial is None else initial.mT, reset, every, backward)


def _forward(
    x: Tensor,
    dt: Tensor | None,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial: Tensor | None,
    reset: Tensor | None,
    every: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, last state, and states between the kernel's pieces ``(pieces, batch, H, P, N)``."""
    out, final, starts = map(fresh, _shapes(x, dt, log_decay, B, C, D, initial, reset, every))
    given = _prepared(x, dt, log_decay, B, C, D, initial, reset, every, backward=False)
    given.outputs(out=out)
    given.states(last=final.mT, starts=starts.mT)
    given.run()
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
    every: int,
    starts: Tensor,
) -> Results:
    if torch.is_grad_enabled():  # to be differentiated once more: by what autograd sees through
        from ..ssd import reference  # which imports this file

        inputs = x, dt, log_decay, B, C, D, initial, reset
        return through_autograd(partial(reference, chunk_size=1), inputs, (grad_out, grad_final))
    given = _prepared(x, dt, log_decay, B, C, D, initial, reset, every, backward=True)
    batch, length, heads, width = x.shape
    grad_x = fresh(torch.empty(x.shape, dtype=x.dtype))
    given.outputs(grad_out=grad_out.to(x.dtype).contiguous(), grad_v=grad_x)
    grad_B, grad_C = (given.room(given.shares, *B.shape) for _ in range(2))
    given.gradients(grad_C, grad_B)
    grad_initial = None if initial is None else given.room(*initial.shape)
    grad_final = whole(grad_final, given.real)
    given.states(
        starts=starts.mT, grad_last=grad_final.mT, grad_initial=None if grad_initial is None else grad_initial.mT
    )
    grad_log_decay = given.room(given.slices, batch, length, heads)
    grad_dt = None if dt is None else given.room(given.slices, batch, length, heads)
    grad_D = None if D is None else given.room(batch, heads, width)
    given.give(grad_decay=grad_log_decay, grad_dt=grad_dt, grad_skip=grad_D)
    given.run()
    return (
        grad_x,
        None if grad_dt is None else total(grad_dt),
        total(grad_log_decay),
        total(grad_B),
        total(grad_C),
        None if grad_D is None else total(grad_D),
        grad_initial,
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
    every: int,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, heads, width = x.shape
    state = batch, heads, width, B.shape[3]
    real = sum_dtype(x.dtype)
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        torch.empty(state, dtype=real, device=x.device),
        torch.empty(pieces(length, every), *state, dtype=real, device=x.device),
    )


_op = handwritten(
    "ssd_native",
    "Tensor x, Tensor? dt, Tensor log_decay, Tensor B, Tensor C, Tensor? D, Tensor? initial, Tensor? reset, int every",
    outputs=2,
    extras=1,
    forward=_forward,
    backward=_backward,
    shapes=_shapes,
)


def ssd_native(
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
    """As :func:`~foveate.ops.ssd_chunks.ssd_chunks`, for what :func:`fits`; its chunks have a length of their own."""
    out, final = _op(x, dt, log_decay, B, C, D, initial, reset, chunks_between_states())
    return out, final
