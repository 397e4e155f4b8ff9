"""Depthwise convolutions of maps whose channels are neighbours in memory, through their CPU kernel.

A step inside of :func:`foveate.ops.activated.conv2d_activated`, where nothing is differentiated: no op of its own.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p

from torch import Tensor

from . import address, call, takes_float32
from .epilogue import FUNCTIONS

#: The kernel keeps a filter in its own room.
MOST_TAPS = 225


class _Arguments(ctypes.Structure):
    """``DepthwiseArguments`` of kernels/depthwise_conv.cpp, field for field."""

    _numbers = "batch height width channels rows columns tall wide top left stride function x_batch x_row x_column"
    _pointers = "x weight bias y"
    _fields_ = [(n, c_int64) for n in _numbers.split()] + [(n, c_void_p) for n in _pointers.split()]


def fits(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int], groups: int
) -> bool:
    """Whether the kernel takes these: float32 on the CPU, a filter for each channel, no larger than the padded map."""
    if weight.shape[1] != 1 or weight.shape[0] != groups or x.ndim != 4 or x.shape[1] != groups:
        return False
    if stride not in ((1, 1), (2, 2)) or x.stride(1) != 1 or x.shape[0] == 0:
        return False
    (height, width), (tall, wide) = x.shape[2:], weight.shape[2:]
    if tall > height + 2 * padding[0] or wide > width + 2 * padding[1] or tall * wide > MOST_TAPS:
        return False
    return takes_float32(x, weight, bias)


def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, stride: int, padding: tuple[int, int]
) -> Tensor:
    """``activation(conv(x) + b)`` for what :func:`fits`.

    Args:
        x: ``(B, C, H, W)``, channels neighbours in memory.
        weight: ``(C, 1, kh, kw)``.
        bias: ``(C,)``.
        activation: one of :data:`~foveate.ops.native.epilogue.FUNCTIONS`.
        stride, padding: along height and width.

    Returns:
        ``(B, C, h, w)``, channels neighbours in memory; h and w at least 1.
    """
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    (batch, channels, height, width), (tall, wide), (top, left) = x.shape, weight.shape[2:], padding
    rows, columns = (height + 2 * top - tall) // stride + 1, (width + 2 * left - wide) // stride + 1
    y = x.new_empty(batch, rows, columns, channels)
    sizes = batch, height, width, channels, rows, columns, tall, wide, top, left, stride, FUNCTIONS[activation]
    strides = x.stride(0), x.stride(2), x.stride(3)
    call("foveate_depthwise_conv", _Arguments(*sizes, *strides, *map(address, (x, weight, bias, y))))
    return y.movedim(-1, 1)
