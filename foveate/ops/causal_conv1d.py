"""The short causal depthwise convolution in front of a state-space scan.

Each channel sees its own last K inputs, as in H3 (arXiv 2212.14052) and Mamba (arXiv 2312.00752, section 3.4):

    y_t = act(b + sum_k w_k x_{t - K + 1 + k}).

The convolution is one call; its backward pass is written by hand, in blocks that stay in the cache, and saves the
input only: autograd's would keep a padded copy and the sum before the activation as well.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidValue
from ..registry import register
from .backend import choose
from .documents import document_numbers
from .handwritten import Results, handwritten, planning_batch, sum_dtype
from .native import causal_conv1d as native

Activation = Literal["silu"] | None

#: Numbers (batch, positions, channels) in a block of the backward pass.
BLOCK_NUMBERS = 2**17


@register("op", "causal_conv1d", system="mamba")
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: Activation = None,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    seq_idx: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve every channel with its own causal filter.

    Args:
        x: ``(batch, channels, L)``, L >= 1.
        weight: ``(channels, K)``; the last column meets the current input.
        bias: ``(channels,)``.
        activation: "silu" or None.
        initial_state: ``(batch, channels, K)``, the last K inputs before ``x``, latest last; None: zeros.
        return_state: return the last K inputs too, to go on with.
        seq_idx: int ``(batch, L)``: inputs of another document are not seen (packed documents; the initial state
            belongs to the first one).

    Returns:
        ``(batch, channels, L)`` in x's dtype, or that and the new state ``(batch, channels, K)`` in x's dtype. Sums
        are made in float32 (float64 for float64).

    Raises:
        InvalidValue: shapes that do not fit together, an unknown activation.
    """
    _check(x, weight, bias, activation, initial_state, seq_idx)
    width = weight.shape[1]
    before = None if initial_state is None else initial_state.to(x.dtype)[:, :, 1:].transpose(1, 2)
    documents = None if seq_idx is None else document_numbers(seq_idx)
    inputs = x.transpose(1, 2), weight, bias, before, documents
    run = choose(reference, _fused, native.causal_conv1d_native if native.fits(*inputs) else None)
    (y,) = run(*inputs, activation == "silu")
    y = y.transpose(1, 2)
    if not return_state:
        return y
    state = x[:, :, -width:]
    missing = width - state.shape[2]
    if missing and initial_state is not None:
        state = torch.cat((initial_state[:, :, -missing:].to(x.dtype), state), dim=2)
    elif missing:
        state = F.pad(state, (missing, 0))
    if documents is not None:
        last = F.pad(documents, (width, 0))[:, -width:]
        state = state * (last == documents[:, -1:]).unsqueeze(1)
    return y, state.contiguous()


def causal_conv1d_update(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Activation = None
) -> tuple[Tensor, Tensor]:
    """One step of :func:`causal_conv1d`.

    Args:
        x: ``(batch, channels)``, one position.
        state: ``(batch, channels, K)``, the last K inputs, latest last.
        weight, bias, activation: as in :func:`causal_conv1d`.

    Returns:
        The output ``(batch, channels)`` in x's dtype, and the new state; ``state`` itself is not changed.

    Raises:
        InvalidValue: more than one position, a state of another shape, an unknown activation.
    """
    _check_activation(activation)
    if x.ndim != 2:
        raise InvalidValue(f"x has shape {tuple(x.shape)}: a step takes one position, (batch, channels).")
    if tuple(state.shape) != (*x.shape, weight.shape[1]):
        raise InvalidValue(f"state has shape {tuple(state.shape)}: it must be {(*x.shape, weight.shape[1])}.")
    state = torch.cat((state[:, :, 1:], x.to(state.dtype).unsqueeze(-1)), dim=-1)
    real = sum_dtype(x.dtype)
    y = (state.to(real) * weight).sum(-1)
    y = y if bias is None else y + bias
    return (F.silu(y) if activation == "silu" else y).to(x.dtype), state


def reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None, documents: Tensor | None, silu: bool
) -> tuple[Tensor]:
    """The definition, position by position. Time before channels: x (batch, L, C), before (batch, K - 1, C)."""
    real, width = sum_dtype(x.dtype), weight.shape[1]
    window = _window(x, before, width, 0, x.shape[1])
    y = []
    for t in range(x.shape[1]):
        seen = window[:, t : t + width]
        if documents is not None:
            seen = seen * _same(documents, width)[:, t].unsqueeze(-1)
        y.append((seen * weight.T.to(real)).sum(1))
    out = torch.stack(y, dim=1)
    out = out if bias is None else out + bias
    return ((F.silu(out) if silu else out).to(x.dtype),)


def _window(x: Tensor, before: Tensor | None, width: int, start: int, stop: int) -> Tensor:
    """Inputs ``start - K + 1 .. stop - 1``, with those before the sequence, in the precision of the sums."""
    missing = max(0, width - 1 - start)
    window = x[:, max(0, start - width + 1) : stop].to(sum_dtype(x.dtype))
    if before is None or not missing:
        return F.pad(window, (0, 0, missing, 0))
    return torch.cat((before[:, -missing:].to(window.dtype), window), dim=1)


def _same(documents: Tensor, width: int) -> Tensor:
    """Bool ``(batch, L, K)``: whether tap k of position t lies in t's document (before the sequence: the first's)."""
    return F.pad(documents, (width - 1, 0)).unfold(1, width, 1) == documents.unsqueeze(-1)


def _taps(window: Tensor, weight: Tensor, bias: Tensor | None, same: Tensor | None) -> Tensor:
    """The weighted sum over taps: window (batch, n + K - 1, C) to (batch, n, C)."""
    n = window.shape[1] - weight.shape[1] + 1
    out = window.new_zeros(window.shape[0], n, window.shape[2]) if bias is None else bias.to(window.dtype)
    for k, w in enumerate(weight.T.to(window.dtype)):
        seen = window[:, k : k + n]
        out = torch.addcmul(out, seen if same is None else seen * same[:, :, k, None], w)
    return out


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None, documents: Tensor | None, silu: bool
) -> tuple[Tensor]:
    width = weight.shape[1]
    window = _window(x, before, width, 0, x.shape[1])
    if documents is None:
        # As a two-dimensional convolution with channels last, for which CPUs have a fast depthwise kernel.
        image = window.transpose(1, 2).unsqueeze(2)
        filters = weight.to(window.dtype)[:, None, None]
        out = F.conv2d(image, filters, None if bias is None else bias.to(window.dtype), groups=weight.shape[0])
        out = out.squeeze(2).transpose(1, 2).contiguous()
    else:
        out = _taps(window, weight, bias, _same(documents, width))
    return ((F.silu(out, inplace=True) if silu else out).to(x.dtype),)


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    before: Tensor | None,
    documents: Tensor | None,
    silu: bool,
) -> Results:
    batch, length, channels = x.shape
    width, real = weight.shape[1], sum_dtype(x.dtype)
    same = None if documents is None else _same(documents, width)
    taps = weight.T.to(real)
    grad_window = torch.zeros(batch, length + width - 1, channels, dtype=real, device=x.device)
    grad_taps = torch.zeros_like(taps)
    grad_bias = torch.zeros(channels, dtype=real, device=x.device)
    block = max(16, BLOCK_NUMBERS // (planning_batch(x) * channels))
    for start in range(0, length, block):
        stop = min(length, start + block)
        window = _window(x, before, width, start, stop)
        here = None if same is None else same[:, start:stop]
        g = grad[:, start:stop].to(real)
        if silu:
            g = torch.ops.aten.silu_backward(g, _taps(window, weight, bias, here))
        grad_bias += g.sum((0, 1))
        for k in range(width):
            g_k = g if here is None else g * here[:, :, k, None]
            grad_window[:, start + k : stop + k].addcmul_(g_k, taps[k])
            grad_taps[k] += (g_k * window[:, k : k + stop - start]).sum((0, 1))
    return (
        grad_window[:, width - 1 :],
        grad_taps.T,
        None if bias is None else grad_bias,
        None if before is None else grad_window[:, : width - 1],
        None,
    )


def _shapes(
    x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None, documents: Tensor | None, silu: bool
) -> tuple[Tensor]:
    return (torch.empty(x.shape, dtype=x.dtype, device=x.device),)


_fused = handwritten(
    "causal_conv1d",
    "Tensor x, Tensor weight, Tensor? bias, Tensor? before, Tensor? documents, bool silu",
    outputs=1,
    extras=0,
    forward=_forward,
    backward=_backward,
    shapes=_shapes,
)


def _check_activation(activation: object) -> None:
    if activation not in ("silu", None):
        raise InvalidValue(f"activation={activation!r} is not possible: legal are 'silu' and None.")


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
) -> None:
    _check_activation(activation)
    if x.ndim != 3 or x.shape[2] < 1:
        raise InvalidValue(f"x has shape {tuple(x.shape)}: it must be (batch, channels, L) with L >= 1.")
    batch, channels, length = x.shape
    if weight.ndim != 2 or weight.shape[0] != channels or weight.shape[1] < 1:
        raise InvalidValue(f"weight has shape {tuple(weight.shape)}: it must be ({channels}, K) with K >= 1.")
    wanted = {
        "bias": (bias, (channels,)),
        "initial_state": (initial_state, (batch, channels, weight.shape[1])),
        "seq_idx": (seq_idx, (batch, length)),
    }
    for name, (m, shape) in wanted.items():
        if m is not None and tuple(m.shape) != shape:
            raise InvalidValue(f"{name} has shape {tuple(m.shape)}: it must be {shape} for this x and weight.")
