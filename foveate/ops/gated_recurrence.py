"""A first-order recurrence per channel: ``h_t = decay_t h_{t-1} + x_t``, with decays that depend on the token.

The core of gated recurrences whose gates do not read the state: the quasi-LSTM (arXiv 2405.15731, section 3.3), RG-LRU
(arXiv 2402.19427, section 2.4), minimal RNNs. Unlike the selective scan the input is not tied to the decay by a step
size, and each channel keeps one number.

The loop over positions is the definition. The fast form scans chunks side by side (:mod:`foveate.ops.chunk_scan`), in
about twice the square root of the length many steps; nothing is divided, so decays of 0 are fine. Its backward pass,

    g_t = dy_t + decay_{t+1} g_{t+1},        dx_t = g_t,        ddecay_t = g_t h_{t-1},

scans again, and needs nothing but the inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidType, InvalidValue
from ..registry import register
from .backend import choose
from .chunk_scan import scan_in_place, scan_traced
from .documents import document_starts
from .handwritten import Results, handwritten, sum_dtype
from .selective_scan_blocks import chunk_length


@register("op", "gated_recurrence", system="dsf")
def gated_recurrence(
    x: Tensor,
    decay: Tensor,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    seq_idx: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """``h_t = decay_t h_{t-1} + x_t`` over a whole sequence.

    Args:
        x: ``(batch, L, D)``, L >= 1.
        decay: ``(batch, L, D)``, of any floating dtype: near 1 half precision has few digits.
        initial_state: ``(batch, D)``, float32; None: zeros.
        return_last_state: return the state after the last position too.
        seq_idx: int ``(batch, L)``: the state starts from zero wherever this number changes (packed documents; the
            initial state belongs to the first one).

    Returns:
        ``(batch, L, D)`` in x's dtype, or that and the last state ``(batch, D)``. States are kept in float32 whatever
        the inputs' dtype (float64 for float64 ``x``).

    Raises:
        InvalidValue: shapes that do not fit together.
        InvalidType: an initial state in another precision.
    """
    _check(x, decay, initial_state, seq_idx)
    real = sum_dtype(x.dtype)
    decay = decay.to(real)
    if seq_idx is not None:
        decay = decay.masked_fill(document_starts(seq_idx).unsqueeze(-1), 0)
    initial = x.new_zeros(x.shape[0], x.shape[2], dtype=real) if initial_state is None else initial_state
    h, last = choose(reference, _op)(x, decay, initial)
    return (h, last) if return_last_state else h


def reference(x: Tensor, decay: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, one position after the other."""
    h, states = initial, []
    for t in range(x.shape[1]):
        h = decay[:, t] * h + x[:, t]
        states.append(h)
    return torch.stack(states, 1).to(x.dtype), h


def _padded(m: Tensor, chunk: int, value: float) -> Tensor:
    """A copy widened to whole chunks along axis 1."""
    return F.pad(m, (0, 0, 0, -m.shape[1] % chunk), value=value) if m.shape[1] % chunk else m.clone()


def _states(x: Tensor, decay: Tensor, initial: Tensor) -> Tensor:
    """All states in the precision of the sums, ``(batch, L, D)``."""
    length, chunk = x.shape[1], chunk_length(x.shape[1])
    h, decay = _padded(x.to(decay.dtype), chunk, 0.0), _padded(decay, chunk, 1.0)
    if torch.compiler.is_compiling():
        return scan_traced(decay, h, initial, chunk)[0][:, :length]
    scan_in_place(decay, h, initial, chunk)
    return h[:, :length]


def _forward(x: Tensor, decay: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    h = _states(x, decay, initial)
    return h.to(x.dtype).contiguous(), h[:, -1].clone()


def _backward(grad: Tensor, grad_last: Tensor, x: Tensor, decay: Tensor, initial: Tensor) -> Results:
    length, chunk = x.shape[1], chunk_length(x.shape[1])
    g = grad.to(decay.dtype, copy=True)
    g[:, -1] += grad_last
    after = _padded(F.pad(decay[:, 1:], (0, 0, 0, 1)), chunk, 0.0)
    g = _padded(g, chunk, 0.0)
    scan_in_place(after, g, torch.zeros_like(initial), chunk, reverse=True)
    g = g[:, :length]
    before = torch.cat([initial[:, None], _states(x, decay, initial)[:, :-1]], 1)
    return g, g * before, g[:, 0] * decay[:, 0]


def _shapes(x: Tensor, decay: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(initial)


_op = handwritten(
    "gated_recurrence",
    "Tensor x, Tensor decay, Tensor initial",
    outputs=2,
    extras=0,
    forward=_forward,
    backward=_backward,
    shapes=_shapes,
)


def _check(x: Tensor, decay: Tensor, initial_state: Tensor | None, seq_idx: Tensor | None) -> None:
    if x.ndim != 3 or x.shape[1] < 1:
        raise InvalidValue(f"x has shape {tuple(x.shape)}: it must be (batch, L, D) with L >= 1.")
    batch, length, channels = x.shape
    wanted = {
        "decay": (decay, (batch, length, channels)),
        "initial_state": (initial_state, (batch, channels)),
        "seq_idx": (seq_idx, (batch, length)),
    }
    for name, (m, shape) in wanted.items():
        if m is not None and tuple(m.shape) != shape:
            raise InvalidValue(f"{name} has shape {tuple(m.shape)}: it must be {shape} for this x.")
    if initial_state is not None and initial_state.dtype != sum_dtype(x.dtype):
        raise InvalidType(f"initial_state must be {sum_dtype(x.dtype)} here, not {initial_state.dtype}.")
