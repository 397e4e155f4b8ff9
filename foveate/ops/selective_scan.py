"""The selective scan (S6): a linear recurrence whose step size, input and output maps depend on the token.

Mamba: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752. Every channel d
keeps N numbers,

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,        y_t = <C_t, h_t> + D u_t,        out_t = y_t silu(z_t),

with A (D, N) diagonal and, written without their bars, B_t and C_t read from the token. The decay is the exact
zero-order hold; the input map is its first-order form ``delta B``, as in every kernel (the paper prints the zero-order
hold for both). With complex A the output is twice the real part.

The loop over positions below is the definition; the fast form is in :mod:`foveate.ops.selective_scan_blocks`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidType, InvalidValue
from ..registry import register
from . import triton as gpu
from .backend import choose
from .documents import document_starts
from .handwritten import sum_dtype
from .native import selective_scan as native
from .selective_scan_blocks import selective_scan_blocks


@register("op", "selective_scan", system="mamba")
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    seq_idx: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The recurrence of Mamba (S6) over a whole sequence.

    Args:
        u: input ``(batch, D, L)``, L >= 1.
        delta: step sizes ``(batch, D, L)``; -inf before a softplus makes a step of 0, which leaves the state as it is.
        A: ``(D, N)``, real or complex, with negative (real) parts.
        B, C: ``(batch, N, L)``, or ``(batch, G, N, L)`` in G groups of D / G neighbouring channels, or constant
            ``(D, N)``. With complex A the variable ones hold real and imaginary part in turn: length ``2 L``.
        D: skip weights ``(D,)``.
        z: gate ``(batch, D, L)``; the output, skip included, is multiplied by ``silu(z)``.
        delta_bias: ``(D,)``, added to ``delta``.
        delta_softplus: apply softplus to ``delta`` (after the bias).
        initial_state: ``(batch, D, N)``, float32 (complex64 with complex A); None: zeros.
        return_last_state: return the state after the last position too.
        seq_idx: int ``(batch, L)``: the state starts from zero wherever this number changes (packed documents; the
            initial state belongs to the first one).

    Returns:
        ``(batch, D, L)`` in u's dtype, or that and the last state ``(batch, D, N)`` in float32 (complex64). States
        and sums are kept in float32 whatever the inputs' dtype (float64 for float64 ``u``).

    Raises:
        InvalidValue: shapes that do not fit together.
        InvalidType: an initial state in another precision.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx)
    if A.is_complex():
        B, C = (_interleaved(m) if m.ndim > 2 else m for m in (B, C))
    # Inside, time comes before channels; in a mixer these transpositions cost nothing.
    u, delta, z = u.transpose(1, 2), delta.transpose(1, 2), None if z is None else z.transpose(1, 2)
    groups = B.shape[1] if B.ndim == 4 else C.shape[1] if C.ndim == 4 else 1
    B, C = (_time_first(m, groups) if m.ndim > 2 else m for m in (B, C))
    reset = None if seq_idx is None else document_starts(seq_idx)
    fits = native.fits(u, delta, A, B, C, D, z, delta_bias, initial_state, reset)
    kernel = native.selective_scan_native if fits else None
    inputs = u, delta, A, B, C, D, z, delta_bias, initial_state, reset
    run = choose(reference, selective_scan_blocks, kernel, gpu.form("selective_scan", inputs))
    out, last = run(*inputs, delta_softplus)
    return (out.transpose(1, 2), last) if return_last_state else out.transpose(1, 2)


@register("op", "selective_state_update", system="mamba")
def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """One step of the recurrence, for streaming; with heads it is the step of Mamba-2 too.

    Args:
        state: ``(batch, D, N)``, or ``(batch, H, P, N)`` with heads, float32.
        x, dt, z: ``(batch, D)`` or ``(batch, H, P)``.
        A: ``(D, N)`` or ``(H, P, N)``; ``D``, ``dt_bias``: ``(D,)`` or ``(H, P)``. What a head shares may have size 1
            in place of P and N.
        B, C: ``(batch, N)``, or ``(batch, G, N)`` where group g serves heads ``g H / G`` and following (channels,
            without heads).
        dt_softplus: apply softplus to ``dt`` (after the bias).

    Returns:
        The output, in x's shape and dtype, and the new state; ``state`` itself is not changed.

    Raises:
        InvalidValue: more than one token, or groups that do not divide the heads.
    """
    if x.ndim != state.ndim - 1:
        raise InvalidValue(
            f"x has shape {tuple(x.shape)}: a step takes one token of shape {tuple(state.shape[:-1])}, "
            f"without an axis of time."
        )
    if state.dtype not in (torch.float32, torch.float64):
        raise InvalidType(f"state must be float32, not {state.dtype}.")
    heads, real = state.shape[1], state.dtype
    if B.ndim == 3 and heads % B.shape[1]:
        raise InvalidValue(f"B has {B.shape[1]} groups: they must divide the {heads} of the state's second axis.")

    def per_state(m: Tensor) -> Tensor:
        m = m.to(real) if m.ndim == 3 else m.to(real).unsqueeze(1)
        m = m if m.shape[1] == 1 else m.repeat_interleave(heads // m.shape[1], dim=1)
        return m if state.ndim == 3 else m.unsqueeze(2)

    step = dt.to(real) if dt_bias is None else dt.to(real) + dt_bias
    step = F.softplus(step) if dt_softplus else step
    u = x.to(real)
    state = torch.exp(step.unsqueeze(-1) * A.to(real)) * state + (step * u).unsqueeze(-1) * per_state(B)
    y = (state * per_state(C)).sum(-1)
    y = y if D is None else y + D * u
    y = y if z is None else y * F.silu(z.to(real))
    return y.to(x.dtype), state


def reference(
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
    """The definition, one position after the other. Time before channels: u (batch, L, D), B (batch, L, G, N)."""
    real = sum_dtype(u.dtype)
    number = real.to_complex() if A.is_complex() else real
    batch, length, channels = u.shape
    step = delta.to(real) if bias is None else delta.to(real) + bias
    step = F.softplus(step) if softplus else step

    def at(m: Tensor, t: int) -> Tensor:  # (D, N) or (batch, D, N)
        return m if m.ndim == 2 else m[:, t].repeat_interleave(channels // m.shape[2], dim=1).to(number)

    h = u.new_zeros(batch, channels, A.shape[1], dtype=number) if initial is None else initial
    y = []
    for t in range(length):
        decay = torch.exp(step[:, t, :, None] * A)
        if reset is not None:
            decay = decay.masked_fill(reset[:, t, None, None], 0)
        h = decay * h + (step[:, t] * u[:, t])[:, :, None] * at(B, t)
        y_t = (h * at(C, t)).sum(-1)
        y.append(2 * y_t.real if A.is_complex() else y_t)
    out = torch.stack(y, dim=1)
    out = out if D is None else out + D * u
    out = out if z is None else out * F.silu(z.to(real))
    return out.to(u.dtype), h


def _interleaved(m: Tensor) -> Tensor:
    """Real ``(..., 2 L)`` with real and imaginary parts in turn, to complex ``(..., L)``."""
    real = sum_dtype(m.dtype)
    return torch.view_as_complex(m.to(real).unflatten(-1, (-1, 2)).contiguous())


def _time_first(m: Tensor, groups: int) -> Tensor:
    """``(batch, N, L)``, the same for all groups, or ``(batch, G, N, L)`` to ``(batch, L, G, N)``."""
    m = m.unsqueeze(1).expand(-1, groups, -1, -1) if m.ndim == 3 else m
    return m.permute(0, 3, 1, 2)


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
) -> None:
    if u.ndim != 3 or u.shape[2] < 1:
        raise InvalidValue(f"u has shape {tuple(u.shape)}: it must be (batch, D, L) with L >= 1.")
    batch, channels, length = u.shape
    if A.ndim != 2 or A.shape[0] != channels:
        raise InvalidValue(f"A has shape {tuple(A.shape)}: it must be (D, N) with D={channels} as in u.")
    states = A.shape[1]
    groups = 0
    for name, m in (("B", B), ("C", C)):
        if m.ndim == 4:
            groups = groups or m.shape[1]
            if channels % m.shape[1] or m.shape[1] != groups:
                raise InvalidValue(
                    f"{name} has {m.shape[1]} groups: they must divide D={channels}, and B and C must agree."
                )
        read = length * 2 if A.is_complex() else length
        legal = {2: (channels, states), 3: (batch, states, read), 4: (batch, groups, states, read)}
        if m.ndim not in legal or tuple(m.shape) != legal[m.ndim]:
            raise InvalidValue(
                f"{name} has shape {tuple(m.shape)}: it must be (batch, N, L), (batch, G, N, L) or (D, N) with "
                f"batch={batch}, N={states}, D={channels} and {'2 L' if A.is_complex() else 'L'}={read}."
            )
    wanted = {
        "delta": (delta, (batch, channels, length)),
        "z": (z, (batch, channels, length)),
        "D": (D, (channels,)),
        "delta_bias": (delta_bias, (channels,)),
        "initial_state": (initial_state, (batch, channels, states)),
        "seq_idx": (seq_idx, (batch, length)),
    }
    for name, (m, shape) in wanted.items():
        if m is not None and tuple(m.shape) != shape:
            raise InvalidValue(f"{name} has shape {tuple(m.shape)}: it must be {shape} for this u and A.")
    if initial_state is not None:
        number = sum_dtype(u.dtype)
        number = number.to_complex() if A.is_complex() else number
        if initial_state.dtype != number:
            raise InvalidType(f"initial_state must be {number} here, not {initial_state.dtype}.")
