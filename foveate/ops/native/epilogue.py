"""What stands behind a matrix product, through its CPU kernel: ``y = act(y + bias) * times + plus``, in place.

A step inside of :func:`foveate.ops.activated.linear_activated`, where nothing is differentiated: no op of its own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int64, c_void_p

from torch import Tensor

from . import address, call, matrix

#: Numbers of the functions in the kernel.
FUNCTIONS = {"none": 0, "gelu": 1, "gelu_tanh": 2, "silu": 3}


class _Arguments(ctypes.Structure):
    """``EpilogueArguments`` of kernels/epilogue.cpp, field for field."""

    _numbers = "rows channels function y_row times_row plus_row"
    _pointers = "y bias times plus"
    _fields_ = [(n, c_int64) for n in _numbers.split()] + [(n, c_void_p) for n in _pointers.split()]


def finish(
    y: Tensor, bias: Tensor | None, activation: str, factors: Sequence[Tensor] = (), plus: Tensor | None = None
) -> Tensor:
    """Write ``activation(y + bias) * times + plus`` over ``y``.

    Args:
        y: ``(..., channels)``, contiguous.
        bias: ``(channels,)``.
        activation: one of :data:`FUNCTIONS`.
        factors: ``times``, of the shape of ``y`` or ``(channels,)``, or of neighbouring channels each; none: 1.
        plus: what is added last, of the shape of ``y``.

    Returns:
        ``y``.
    """
    if bias is not None:
        bias = bias.contiguous()
    if len(factors) < 2:
        _finish(y, bias, activation, factors[0] if factors else None, plus)
        return y
    first = 0
    for times in factors:
        part = slice(first, first + times.shape[-1])
        first = part.stop
        added = None if plus is None else plus[..., part]
        if part.start < part.stop:
            _finish(y[..., part], None if bias is None else bias[part], activation, times, added)
    return y


def _finish(y: Tensor, bias: Tensor | None, activation: str, times: Tensor | None, plus: Tensor | None) -> None:
    channels, times_row, plus_row = y.shape[-1], 0, 0
    if times is not None and times.ndim > 1:
        times, times_row = matrix(times)
    if plus is not None:
        plus, plus_row = matrix(plus)
    strides = (y.stride(-2) if y.ndim > 1 else channels), times_row, plus_row
    pointers = address(y), address(bias), address(times), address(plus)
    call("foveate_epilogue", _Arguments(y.numel() // channels, channels, FUNCTIONS[activation], *strides, *pointers))
