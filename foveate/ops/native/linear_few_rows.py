"""The affine map of few rows through its CPU kernel, which reads weights as they lie: nothing is packed.

A step inside of :func:`foveate.ops.linear.linear`, where nothing is differentiated: no op of its own.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from . import address, call, chosen, matrix, takes_float32

#: Rows from and up to which libraries take longer, and channels in: a row less has a form of its own there, and beside
#: more rows, or a shorter product, packing the weights is soon paid back.
FEWEST_ROWS, MOST_ROWS, FEWEST_CHANNELS = 4, 56, 384
#: Whether it was measured to be the faster way with the kernels in use: those of 512 bits.
PAYS = chosen() == "v4"


class _Arguments(ctypes.Structure):
    """``FewRowsArguments`` of kernels/linear_few_rows.cpp, field for field."""

    _numbers = "rows inner columns x_row"
    _pointers = "x weight bias y"
    _fields_ = [(n, c_int64) for n in _numbers.split()] + [(n, c_void_p) for n in _pointers.split()]


def fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernel takes these and is the faster way: float32 on the CPU, few rows of whole registers."""
    inner = weight.shape[1]
    if not PAYS or inner < FEWEST_CHANNELS or inner % 16 or x.shape[-1] != inner:
        return False
    if not FEWEST_ROWS * inner <= x.numel() <= MOST_ROWS * inner:
        return False
    if not weight.is_contiguous() or (bias is not None and bias.shape != weight.shape[:1]):
        return False
    return takes_float32(x, weight, bias)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x W^T + b``.

    Args:
        x: ``(..., in)``; "in" is a multiple of 16.
        weight: ``(out, in)``, contiguous.
        bias: ``(out,)``.

    Returns:
        ``(..., out)``, contiguous.
    """
    columns, inner = weight.shape
    y = torch.empty(*x.shape[:-1], columns, dtype=x.dtype)
    x, x_row = matrix(x)
    bias = None if bias is None else bias.contiguous()
    sizes = x.numel() // inner, inner, columns, x_row
    call("foveate_linear_few_rows", _Arguments(*sizes, address(x), address(weight), address(bias), address(y)))
    return y
