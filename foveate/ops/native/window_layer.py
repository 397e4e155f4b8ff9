"""A whole layer of shifted window attention through its CPU kernel: projections and attention, window by window.

What :class:`foveate.mixers.swin.ShiftedWindows` takes where nothing is differentiated: no op of its own.
"""

from __future__ import annotations

import ctypes
import math
from ctypes import c_int64, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor

from ..shifted_windows import Axis
from . import SCALARS, address, call, rows, takes_float32
from .shifted_window_attention import AXES, LONGEST_AXIS, MOST_TOKENS
from .shifted_window_attention import _Arguments as _Windows

#: Channels of a token, up to which the weights stay in a core's second cache level beside a window.
MOST_CHANNELS = 192


class Biases(NamedTuple):
    """Biases of all pairs of a window's ``n`` tokens: of query ``i`` and key ``j`` those in row ``index[i, j]``.

    Attributes:
        table: float32 ``(entries, heads)``.
        index: int64 ``(n, n)``, below "entries".
    """

    table: Tensor
    index: Tensor


class _Arguments(ctypes.Structure):
    """``LayerArguments`` of kernels/window_layer.cpp, field for field."""

    _numbers = ["x_batch", *(f"x_{axis}" for axis in AXES)]
    _pointers = "x in_weight in_bias out_weight out_bias y"
    _fields_ = [("windows", _Windows)]
    _fields_ += [(n, c_int64) for n in _numbers] + [(n, c_void_p) for n in _pointers.split()]


def fits(x: Tensor, axes: tuple[Axis, ...], *weights: Tensor | None) -> bool:
    """Whether the kernels take these: float32 on the CPU."""
    if x.numel() == 0 or math.prod(a.window for a in axes) > MOST_TOKENS:
        return False
    return max(axis.padded for axis in axes) <= LONGEST_AXIS and takes_float32(x, *weights)


def window_layer(
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    biases: Biases | None,
    axes: tuple[Axis, ...],
    heads: int,
) -> Tensor:
    """Attention in blocks of a grid, from its tokens to projected outputs, for what :func:`fits`.

    Padding is tokens of zeros, which real tokens see.

    Args:
        x: ``(batch, *grid, dim)``; the fewer channels, the faster, and up to :data:`MOST_CHANNELS` than by steps.
        in_weight, in_bias: ``(3 dim, dim)`` and ``(3 dim,)``: queries, keys and values of all heads.
        out_weight, out_bias: ``(dim, dim)`` and ``(dim,)``.
        biases: added to the scores of a window's tokens.
        axes: size, window and shift along each axis.
        heads: their number; products of queries and keys are divided by the root of a head's channels.

    Returns:
        ``(batch, *grid, dim)``, contiguous.
    """
    x, in_weight, out_weight = rows(x), in_weight.contiguous(), out_weight.contiguous()
    in_bias, out_bias = (None if m is None else m.contiguous() for m in (in_bias, out_bias))
    y = torch.empty(x.shape, dtype=x.dtype)
    windows, _kept = _windows(x.shape[0], x.shape[-1] // heads, heads, axes, biases)
    arguments = _Arguments(windows, x.stride(0))
    for axis, stride in zip(AXES[3 - len(axes) :], x.stride()[1:-1], strict=True):
        setattr(arguments, f"x_{axis}", stride)
    given = x, in_weight, in_bias, out_weight, out_bias, y
    for name, m in zip(_Arguments._pointers.split(), given, strict=True):
        setattr(arguments, name, address(m))
    call("foveate_window_layer", arguments)
    return y


def window_attention(
    qkv: Tensor, in_bias: Tensor | None, biases: Biases | None, axes: tuple[Axis, ...], heads: int
) -> Tensor:
    """What lies between the two projections of such a layer, for what :func:`fits`.

    Args:
        qkv: ``(batch, *grid, 3 dim)``, contiguous: queries, keys and values of all heads.
        in_bias: ``(3 dim,)``, that of their projection, which padding consists of.
        biases, axes, heads: as of :func:`window_layer`.

    Returns:
        ``(batch, *grid, dim)``, contiguous.
    """
    dim = qkv.shape[-1] // 3
    y = torch.empty(*qkv.shape[:-1], dim, dtype=qkv.dtype)
    windows, _kept = _windows(qkv.shape[0], dim // heads, heads, axes, biases)
    strides = dict(zip(("batch", *AXES[3 - len(axes) :]), qkv.stride(), strict=False), head=dim // heads)
    for i, name in enumerate("qkv"):
        for axis, stride in strides.items():
            setattr(windows, f"{name}_{axis}", stride)
        setattr(windows, f"at_{name}", qkv.data_ptr() + 4 * i * dim)
    if in_bias is not None:
        in_bias = in_bias.contiguous()
        windows.at_pad_k, windows.at_pad_v = (in_bias.data_ptr() + 4 * i * dim for i in (1, 2))
    windows.at_out = y.data_ptr()
    call("foveate_shifted_window_attention", windows, 0)
    return y


def _windows(
    batch: int, width: int, heads: int, axes: tuple[Axis, ...], biases: Biases | None
) -> tuple[_Windows, tuple[Tensor, ...]]:
    """Sizes and biases of windows, and the tensors that are pointed into."""
    whole = (Axis(1, 1, 0),) * (3 - len(axes)) + axes
    places = [n for axis in whole for n in (axis.size, axis.window, axis.shift)]
    windows = _Windows(SCALARS[torch.float32], batch, heads, width, width, *places, 0, 0, 0, 1)
    windows.scale = 1 / math.sqrt(width)
    if biases is None:
        return windows, ()
    table, index = biases.table.contiguous(), rows(biases.index)
    windows.index_row, windows.at_bias, windows.at_index = index.stride(0), table.data_ptr(), index.data_ptr()
    return windows, (table, index)
