"""Dilated convolution over time: what temporal convolution networks stack.

Bai, Kolter and Koltun, "An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence Modeling"
(arXiv 1803.01271), section 3.2; TCNCA (arXiv 2312.05605) replaces MEGA's moving average by it. With K taps that lie D
positions apart::

    y_t = b + sum_k w_k x_{t - (K - 1 - k) D},        zeros before the sequence

A depthwise convolution of dilation D is one of dilation 1 whose channels are D neighbouring positions side by side: a
view of the same memory, so :func:`~foveate.ops.causal_conv1d.causal_conv1d` and its kernel do the work.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidType, InvalidValue, invalid
from ..registry import register
from .backend import choose
from .causal_conv1d import causal_conv1d
from .documents import document_numbers
from .handwritten import sum_dtype
from .linear import linear


@register("op", "dilated_conv", system="tcnca")
def dilated_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dilation: int = 1,
    causal: bool = True,
    before: Tensor | None = None,
    segments: Tensor | None = None,
) -> Tensor:
    """Convolve over time with taps that lie apart.

    Args:
        x: ``(batch, L, channels)``, L >= 1.
        weight: ``(channels, 1, K)``, a filter per channel, or ``(out, channels, K)``, dense; the last tap meets the
            current input.
        bias: ``(out,)``.
        dilation: distance D of the taps, at least 1.
        causal: look back only; otherwise the taps are centred, the larger part of an odd number in the past.
        before: ``(batch, (K - 1) D, channels)``, the inputs before ``x``, latest last; None: zeros. Only if causal.
        segments: int ``(batch, L)``: inputs of another document are not seen (each run of equal numbers is one). Not
            together with ``before``.

    Returns:
        ``(batch, L, out)`` in x's dtype. Sums are made in float32 (float64 for float64).

    Raises:
        InvalidValue: shapes that do not fit together, an illegal dilation, ``before`` where there is no place for it.
        InvalidType: mixed dtypes.
    """
    _check(x, weight, bias, dilation, causal, before, segments)
    documents = None if segments is None else document_numbers(segments)
    return choose(_reference, _fast)(x, weight, bias, dilation, causal, before, documents)


def reach(kernel_size: int, dilation: int, causal: bool = True) -> tuple[int, int]:
    """How many positions back and ahead the taps reach."""
    ahead = 0 if causal else (kernel_size - 1) // 2 * dilation
    return (kernel_size - 1) * dilation - ahead, ahead


def dilated_conv_flops(
    length: int, channels: int, outputs: int, kernel_size: int, dilation: int, *, depthwise: bool, causal: bool
) -> int:
    """FLOPs of :func:`dilated_conv` for one sample, 2 per multiply-add; taps that meet nothing but zeros are left out.

    A depthwise convolution works on whole rows of D positions.
    """
    if not depthwise:
        first, last = _met(length, kernel_size, dilation, causal)
        return 2 * length * channels * outputs * (last - first)
    length += reach(kernel_size, dilation, causal)[1]
    taps = min(kernel_size, -(-length // dilation))
    rows = -(-length // dilation) * dilation if taps > 1 else length
    return 2 * rows * channels * taps


def dilated_conv_saved(
    length: int, channels: int, kernel_size: int, dilation: int, *, depthwise: bool, causal: bool
) -> tuple[int, int]:
    """Numbers kept for the backward pass per sample, and once per call."""
    if not depthwise:
        first, last = _met(length, kernel_size, dilation, causal)
        return (length + (last - first - 1) * dilation) * channels, 0
    length += reach(kernel_size, dilation, causal)[1]
    taps = min(kernel_size, -(-length // dilation))
    if taps == 1:
        return length * channels, 0
    return -(-length // dilation) * dilation * channels, dilation * channels * (taps + 1) if dilation > 1 else 0


def _met(length: int, kernel_size: int, dilation: int, causal: bool) -> tuple[int, int]:
    """Taps ``first .. last - 1``, those that meet an input of a sequence of this length; the current one does."""
    back, _ = reach(kernel_size, dilation, causal)
    inside = [k for k in range(kernel_size) if abs(k * dilation - back) < length]
    return inside[0], inside[-1] + 1


def _reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: int,
    causal: bool,
    before: Tensor | None,
    documents: Tensor | None,
) -> Tensor:
    """The definition, tap by tap."""
    window = _window(x, *reach(weight.shape[2], dilation, causal), before)
    return _taps(window, weight, bias, dilation, _same(documents, weight, dilation, causal)).to(x.dtype)


def _window(x: Tensor, back: int, ahead: int, before: Tensor | None) -> Tensor:
    """The inputs with what lies around them, in the precision of the sums."""
    wide = x.to(sum_dtype(x.dtype))
    if before is not None:
        return torch.cat((before.to(wide.dtype), wide), 1)
    return F.pad(wide, (0, 0, back, ahead))


def _same(documents: Tensor | None, weight: Tensor, dilation: int, causal: bool) -> list[Tensor] | None:
    """Per tap, bool ``(batch, L, 1)``: it meets an input of the position's own document."""
    if documents is None:
        return None
    back, ahead = reach(weight.shape[2], dilation, causal)
    around = F.pad(documents, (back, ahead), value=-1)
    length = documents.shape[1]
    return [
        (around[:, k * dilation : k * dilation + length] == documents).unsqueeze(-1) for k in range(weight.shape[2])
    ]


def _taps(
    window: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, same: list[Tensor] | None = None
) -> Tensor:
    """The weighted sum over shifted windows ``(batch, L + (K - 1) D, channels)``: ``(batch, L, out)``."""
    taps = weight.to(window.dtype).unbind(-1)
    length = window.shape[1] - (len(taps) - 1) * dilation
    y = None if bias is None else bias.to(window.dtype)
    for k, w in enumerate(taps):
        seen = window[:, k * dilation : k * dilation + length]
        seen = seen if same is None else seen * same[k]
        term = seen * w[:, 0] if _is_depthwise(weight, window) else linear(seen, w)
        y = term if y is None else y + term
    assert y is not None
    return y


def _fast(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: int,
    causal: bool,
    before: Tensor | None,
    documents: Tensor | None,
) -> Tensor:
    width, depthwise = weight.shape[2], _is_depthwise(weight, x)
    if before is not None or (documents is not None and not (causal and depthwise)):
        return _reference(x, weight, bias, dilation, causal, before, documents)
    back, ahead = reach(width, dilation, causal)
    if depthwise:
        x = F.pad(x, (0, 0, 0, ahead)) if ahead else x
        return _rows(x, weight[:, 0], bias, dilation, documents)[:, ahead:]
    first, last = _met(x.shape[1], width, dilation, causal)
    window = F.pad(x, (0, 0, back - first * dilation, (last - 1) * dilation - back))
    filters = weight[:, :, first:last].to(x.dtype)
    return F.conv1d(window.transpose(1, 2), filters, bias, dilation=dilation).transpose(1, 2)


def _rows(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, documents: Tensor | None) -> Tensor:
    """Causal and depthwise: D positions beside each other are channels of a convolution without dilation."""
    batch, length, channels = x.shape
    rows = -(-length // dilation)
    weight = weight[:, -rows:]  # earlier taps meet nothing
    if weight.shape[1] == 1:
        dilation, rows = 1, length
    x = F.pad(x, (0, 0, 0, rows * dilation - length)) if rows * dilation > length else x
    if documents is None:
        wide = x.reshape(batch, rows, dilation * channels).transpose(1, 2)
        weight = weight.repeat(dilation, 1) if dilation > 1 else weight
        bias = bias.repeat(dilation) if bias is not None and dilation > 1 else bias
        y = _of(causal_conv1d(wide, weight, bias)).transpose(1, 2).reshape(batch, rows * dilation, channels)
        return y[:, :length]
    # Which document it is differs between positions of a row: every phase is a sequence of its own instead.
    phases = x.unflatten(1, (rows, dilation)).transpose(1, 2).flatten(0, 1)
    numbers = F.pad(documents, (0, rows * dilation - length), value=-1).unflatten(1, (rows, dilation))
    numbers = numbers.transpose(1, 2).flatten(0, 1)
    y = _of(causal_conv1d(phases.transpose(1, 2), weight, bias, seq_idx=numbers)).transpose(1, 2)
    return y.unflatten(0, (batch, dilation)).transpose(1, 2).flatten(1, 2)[:, :length]


def _of(found: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return found if isinstance(found, Tensor) else found[0]


def _is_depthwise(weight: Tensor, x: Tensor) -> bool:
    return weight.shape[1] == 1 and weight.shape[0] == x.shape[-1]


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: int,
    causal: bool,
    before: Tensor | None,
    segments: Tensor | None,
) -> None:
    if not isinstance(dilation, int) or dilation < 1:
        raise invalid("dilation", dilation, "a positive whole number is needed")
    if x.ndim != 3 or x.shape[1] < 1:
        raise InvalidValue(f"x has shape {tuple(x.shape)}: it must be (batch, L, channels) with L >= 1.")
    batch, length, channels = x.shape
    if weight.ndim != 3 or weight.shape[2] < 1 or not (_is_depthwise(weight, x) or weight.shape[1] == channels):
        raise InvalidValue(
            f"weight has shape {tuple(weight.shape)}: it must be ({channels}, 1, K) or (out, {channels}, K), K >= 1."
        )
    for name, m in (("weight", weight), ("bias", bias)):
        if m is not None and not m.is_floating_point():
            raise InvalidType(f"{name} must be floating, not {m.dtype}.")
    wanted = {
        "bias": (bias, (weight.shape[0],)),
        "before": (before, (batch, (weight.shape[2] - 1) * dilation, channels)),
        "segments": (segments, (batch, length)),
    }
    for name, (m, shape) in wanted.items():
        if m is not None and tuple(m.shape) != shape:
            raise InvalidValue(f"{name} has shape {tuple(m.shape)}: it must be {shape} for this x and weight.")
    if before is not None and (not causal or segments is not None):
        raise InvalidValue("before is for causal convolutions of one document.")
