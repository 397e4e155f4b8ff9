"""SSD: the state-space recurrence with one decay per head, as a masked matrix product in chunks.

Mamba-2: Dao and Gu, "Transformers are SSMs", arXiv 2405.21060 (section 6). A head keeps a P by N matrix,

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T,        y_t = h_t C_t + D x_t,

which over a whole sequence is attention without softmax, ``Y = (L * C B^T) X``, with the mask
``L_ij = exp(sum of dt_k A over j < k <= i)`` for j <= i. The loop over positions below is the definition; the chunked
form, linear in the length, is in :mod:`foveate.ops.ssd_chunks`, its CPU kernel in :mod:`foveate.ops.native.ssd`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidType, InvalidValue
from ..registry import register
from .backend import choose
from .documents import document_starts
from .handwritten import sum_dtype
from .native import ssd as native
from .ssd_chunks import ssd_chunks


@register("op", "ssd", system="mamba2")
def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int = 64,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    seq_idx: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The recurrence of Mamba-2 over a whole sequence.

    Args:
        x: ``(batch, L, H, P)``, L >= 1; any length (the last chunk is padded with steps of 0).
        dt: step sizes ``(batch, L, H)``; -inf before a softplus makes a step of 0 (unless
            ``dt_limit`` forbids it), which leaves the state as it is.
        A: ``(H,)``, negative.
        B, C: ``(batch, L, G, N)``; group g serves heads ``g H / G`` and following.
        chunk_size: largest number of positions of a chunk of the torch form, whose memory and time grow with the length
            times this. The CPU kernel has its own.
        D: skip weights ``(H,)`` or ``(H, P)``.
        z: gate ``(batch, L, H, P)``; the output, skip included, is multiplied by ``silu(z)``.
        dt_bias: ``(H,)``, added to ``dt``.
        dt_softplus: apply softplus to ``dt`` (after the bias).
        dt_limit: smallest and largest step size, applied last.
        initial_states: ``(batch, H, P, N)``, float32; None: zeros.
        return_final_states: return the states after the last position too.
        seq_idx: int ``(batch, L)``: the state starts from zero wherever this number changes (packed documents; the
            initial state belongs to the first one).

    Returns:
        ``(batch, L, H, P)`` in x's dtype, or that and the final states ``(batch, H, P, N)`` in float32. States and
        sums are kept in float32 whatever the inputs' dtype (float64 for float64 ``x``).

    Raises:
        InvalidValue: shapes that do not fit together, ``chunk_size`` below 1, ``dt_limit`` out of order.
        InvalidType: initial states in another precision.
    """
    real = sum_dtype(x.dtype)
    _check_sequence(x)
    if tuple(dt.shape) != tuple(x.shape[:3]):
        raise InvalidValue(f"dt has shape {tuple(dt.shape)}: it must be (batch, L, H) = {tuple(x.shape[:3])} as in x.")
    if A.ndim != 1 or A.shape[0] != dt.shape[2]:
        raise InvalidValue(f"A has shape {tuple(A.shape)}: it must be (H,) with H={dt.shape[2]} as in x.")
    low, high = check_step_limit(dt_limit)
    dt = dt.to(real) if dt_bias is None else dt.to(real) + dt_bias.to(real)
    dt = F.softplus(dt) if dt_softplus else dt
    dt = dt if (low, high) == (0.0, math.inf) else dt.clamp(low, high)
    y, final = ssd_discrete(x, dt * A.to(real), B, C, chunk_size, D, dt, initial_states, seq_idx)
    if z is not None:
        y = (y.to(real) * F.silu(z.to(real))).to(x.dtype)
    return (y, final) if return_final_states else y


def ssd_discrete(
    x: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int = 64,
    D: Tensor | None = None,
    dt: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """SSD after discretisation: ``h_t = exp(log_decay_t) h_{t-1} + dt_t x_t B_t^T`` and ``y_t = h_t C_t + D x_t``.

    Args:
        x: ``(batch, L, H, P)``.
        log_decay: ``(batch, L, H)``, at most 0.
        dt: weights of the inputs ``(batch, L, H)``; None: 1 (``x`` is multiplied by its step size already).

    The other arguments are those of :func:`ssd`.

    Returns:
        ``(batch, L, H, P)`` in x's dtype, and the final states ``(batch, H, P, N)``.
    """
    _check(x, log_decay, B, C, chunk_size, D, initial_states, seq_idx)
    if D is not None and D.ndim == 1:
        D = D.unsqueeze(-1).expand(-1, x.shape[3])
    reset = None if seq_idx is None else document_starts(seq_idx)
    fits = native.fits(x, B, C, dt, log_decay, D, initial_states, reset)
    run = choose(reference, ssd_chunks, native.ssd_native if fits else None)
    y, final = run(x, dt, log_decay, B, C, D, initial_states, reset, chunk_size)
    return y, final


def check_step_limit(dt_limit: tuple[float, float]) -> tuple[float, float]:
    """Refuse anything but ``0 <= smallest <= largest``; returns the two."""
    if not isinstance(dt_limit, tuple | list) or len(dt_limit) != 2 or not 0 <= dt_limit[0] <= dt_limit[1]:
        raise InvalidValue(f"dt_limit={dt_limit!r} is not possible: it must be (smallest, largest), 0 <= smallest.")
    return float(dt_limit[0]), float(dt_limit[1])


def reference(
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
    """The definition, one position after the other; it has no chunks."""
    real, heads = sum_dtype(x.dtype), x.shape[2]
    B, C = (m.to(real).repeat_interleave(heads // m.shape[2], dim=2) for m in (B, C))
    X = x.to(real) if dt is None else x.to(real) * dt.unsqueeze(-1)
    decay = log_decay.to(real).exp()
    if reset is not None:
        decay = decay.masked_fill(reset.unsqueeze(-1), 0)
    h = X.new_zeros(*X.shape[:1], *X.shape[2:], B.shape[-1]) if initial is None else initial
    y = []
    for t in range(x.shape[1]):
        h = decay[:, t, :, None, None] * h + X[:, t, :, :, None] * B[:, t, :, None, :]
        y.append((h * C[:, t, :, None, :]).sum(-1))
    out = torch.stack(y, dim=1)
    out = out if D is None else out + D * x
    return out.to(x.dtype), h


def _check_sequence(x: Tensor) -> None:
    if x.ndim != 4 or x.shape[1] < 1:
        raise InvalidValue(f"x has shape {tuple(x.shape)}: it must be (batch, L, H, P) with L >= 1.")


def _check(
    x: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
) -> None:
    _check_sequence(x)
    if not isinstance(chunk_size, int) or chunk_size < 1:
        raise InvalidValue(f"chunk_size={chunk_size!r} is not possible: a positive whole number is needed.")
    batch, length, heads, width = x.shape
    if tuple(log_decay.shape) != (batch, length, heads):
        raise InvalidValue(
            f"log_decay has shape {tuple(log_decay.shape)}: it must be {(batch, length, heads)}, (batch, L, H) as in x."
        )
    if B.ndim != 4 or tuple(B.shape[:2]) != (batch, length):
        raise InvalidValue(f"B has shape {tuple(B.shape)}: it must be (batch, L, G, N) with {(batch, length)} as in x.")
    if B.shape != C.shape:
        raise InvalidValue(f"C has shape {tuple(C.shape)}: it must be that of B, {tuple(B.shape)}.")
    if heads % B.shape[2]:
        raise InvalidValue(f"B has {B.shape[2]} groups: they must divide H={heads}.")
    if D is not None and tuple(D.shape) not in ((heads,), (heads, width)):
        raise InvalidValue(f"D has shape {tuple(D.shape)}: it must be {(heads,)} or {(heads, width)}.")
    state = (batch, heads, width, B.shape[3])
    if initial_states is not None and tuple(initial_states.shape) != state:
        raise InvalidValue(f"initial_states has shape {tuple(initial_states.shape)}: it must be {state}.")
    if initial_states is not None and initial_states.dtype != sum_dtype(x.dtype):
        raise InvalidType(f"initial_states must be {sum_dtype(x.dtype)} here, not {initial_states.dtype}.")
    if seq_idx is not None and tuple(seq_idx.shape) != (batch, length):
        raise InvalidValue(f"seq_idx has shape {tuple(seq_idx.shape)}: it must be {(batch, length)}.")
