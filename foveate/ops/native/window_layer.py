"""A whole layer of shifted window attention through its CPU kernel: projections and attention, window by window.

What :class:`foveate.mixers.swin.ShiftedWindows` takes where nothing is differentiated: no op of its own.
"""

from __future__ import annotations

import ctypes
import math
from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from ..shifted_windows import Axis
from . import address, call, rows, takes_float32
from .shifted_window_attention import AXES, LONGEST_AXIS, MOST_TOKENS
from .shifted_window_attention import _Arguments as _Windows

#: Channels of a token, up to which the weights stay in a core's second cache level beside a window.
MOST_CHANNELS = 192


class _Arguments(ctypes.Structure):
    """``LayerArguments`` of kernels/window_layer.cpp, field for field."""

    _numbers = ["x_batch", *(f"x_{axis}" for axis in AXES)]
    _pointers = "x in_weight in_bias out_weight out_bias y"
    _fields_ = [("windows", _Windows)]
    _fields_ += [(n, c_int64) for n in _numbers] + [(n, c_void_p) for n in _pointers.split()]


def fits(x: Tensor, axes: tuple[Axis, ...], *weights: Tensor | None) -> bool:
    """Whether the kernel takes these and is the faster way: float32 on the CPU, few channels."""
    if x.shape[-1] > MOST_CHANNELS or x.numel() == 0 or math.prod(a.window for a in axes) > MOST_TOKENS:
        return False
    return max(axis.padded for axis in axes) <= LONGEST_AXIS and takes_float32(x, *weights)


def window_layer(
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    bias: Tensor | None,
    axes: tuple[Axis, ...],
    heads: int,
) -> Tensor:
    """Attention in blocks of a grid, from its tokens to projected outputs, for what :func:`fits`.

    Padding is tokens of zeros, which real tokens see.

    Args:
        x: ``(batch, *grid, dim)``.
        in_weight, in_bias: ``(3 dim, dim)`` and ``(3 dim,)``: queries, keys and values of all heads.
        out_weight, out_bias: ``(dim, dim)`` and ``(dim,)``.
        bias: ``(heads, n, n)``, added to the scores of a window's ``n`` tokens.
        axes: size, window and shift along each axis.
        heads: their number; products of queries and keys are divided by the root of a head's channels.

    Returns:
        ``(batch, *grid, dim)``, contiguous.
    """
    x, in_weight, out_weight = rows(x), in_weight.contiguous(), out_weight.contiguous()
    in_bias, out_bias = (None if m is None else m.contiguous() for m in (in_bias, out_bias))
    width, y = x.shape[-1] // heads, torch.empty(x.shape, dtype=x.dtype)
    sizes = {"batch": x.shape[0], "heads": heads, "width": width, "value_width": width, "slots": 1}
    arguments = _Arguments(windows=_Windows(scale=1 / math.sqrt(width), **sizes), x_batch=x.stride(0))
    windows = arguments.windows
    for name in AXES[: 3 - len(axes)]:
        _axis(windows, name, Axis(1, 1, 0))
    for name, axis, stride in zip(AXES[3 - len(axes) :], axes, x.stride()[1:-1], strict=True):
        _axis(windows, name, axis)
        setattr(arguments, f"x_{name}", stride)
    if bias is not None:
        windows.bias_head, windows.bias_query, windows.bias_key = bias.stride()
        windows.at_bias = address(bias)
    given = x, in_weight, in_bias, out_weight, out_bias, y
    for name, m in zip(_Arguments._pointers.split(), given, strict=True):
        setattr(arguments, name, address(m))
    call("foveate_window_layer", arguments)
    return y


def _axis(windows: _Windows, name: str, axis: Axis) -> None:
    for part in ("size", "window", "shift"):
        setattr(windows, f"{name}_{part}", getattr(axis, part))
