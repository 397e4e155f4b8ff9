"""The recurrence ``x_t <- x_t + decay_t x_{t-1}`` in chunks that are scanned side by side.

Position t of all chunks is taken at once; then the state that enters each chunk is added with the product of the decays
since the chunk's start. :func:`scan_in_place` spares memory; :func:`scan_traced` is the same without writing into its
inputs, for exporters, who cannot follow a write into one of many views.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def scan_in_place(decay: Tensor, x: Tensor, state: Tensor, chunk: int, reverse: bool = False) -> Tensor:
    """In place ``x_t <- x_t + decay_t x_{t-1}`` along axis 1, from ``state``; returns the last one (a view).

    ``decay`` is overwritten with the products since each chunk's start. ``reverse`` runs from the end to the front.
    ``chunk`` divides the length.
    """
    decay, x = decay.unflatten(1, (-1, chunk)), x.unflatten(1, (-1, chunk))
    decays, values = decay.unbind(2), x.unbind(2)
    order = list(reversed(range(chunk))) if reverse else list(range(chunk))
    for before, t in itertools.pairwise(order):
        values[t].addcmul_(decays[t], values[before])
        decays[t].mul_(decays[before])
    for c in reversed(range(x.shape[1])) if reverse else range(x.shape[1]):
        x[:, c].addcmul_(decay[:, c], state.unsqueeze(1))
        state = x[:, c, order[-1]]
    return state


def scan_traced(decay: Tensor, x: Tensor, state: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """The scanned ``x``, newly made, and its last state; arguments as those of :func:`scan_in_place`."""
    decays, values = (list(m.unflatten(1, (-1, chunk)).unbind(2)) for m in (decay, x))
    for t in range(1, chunk):
        values[t] = values[t] + decays[t] * values[t - 1]
        decays[t] = decays[t] * decays[t - 1]
    inside, since_start = torch.stack(values, 2), torch.stack(decays, 2)
    outputs = []
    for c in range(inside.shape[1]):
        outputs.append(inside[:, c] + since_start[:, c] * state.unsqueeze(1))
        state = outputs[-1][:, -1]
    return torch.cat(outputs, 1), state
