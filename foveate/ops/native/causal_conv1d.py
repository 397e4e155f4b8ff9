"""The causal depthwise convolution of :mod:`foveate.ops.causal_conv1d` through its CPU kernel."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p
from functools import partial

import torch
from torch import Tensor

from ..handwritten import Results, handwritten, sum_dtype
from . import SCALARS, address, call, fresh, rows, takes, through_autograd, whole

#: The kernel keeps the last inputs in registers.
MOST_TAPS = 16


class _Arguments(ctypes.Structure):
    """``ConvArguments`` of kernels/causal_conv1d.cpp, field for field."""

    _numbers = "scalar batch length channels taps silu x_batch x_time before_batch before_time"
    _pointers = "x before weight bias documents y grad_y grad_x grad_before grad_weight grad_bias"
    _fields_ = [(n, c_int64) for n in _numbers.split()] + [(n, c_void_p) for n in _pointers.split()]


def fits(x: Tensor, weight: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernel takes these: real numbers on the CPU, in a storage type that it knows, few taps."""
    return x.dtype in SCALARS and weight.shape[1] <= MOST_TAPS and takes(x, weight, *others)


def _prepared(
    x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None, documents: Tensor | None, silu: bool
) -> tuple[_Arguments, dict[str, Tensor | None]]:
    """The structure, and the tensors that it points into: keep them while it is used."""
    real = sum_dtype(x.dtype)
    batch, length, channels = x.shape
    x = rows(x)
    before = None if before is None or weight.shape[1] == 1 else rows(before.to(x.dtype))
    inputs = {"x": x, "before": before, "weight": whole(weight.T, real), "bias": whole(bias, real)}
    inputs["documents"] = whole(documents, torch.int64)
    sizes = {"batch": batch, "length": length, "channels": channels, "taps": weight.shape[1]}
    arguments = _Arguments(scalar=SCALARS[x.dtype], silu=silu, **sizes)
    arguments.x_batch, arguments.x_time = x.stride()[:2]
    if before is not None:
        arguments.before_batch, arguments.before_time = before.stride()[:2]
    for name, m in inputs.items():
        setattr(arguments, name, address(m))
    return arguments, inputs


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None, documents: Tensor | None, silu: bool
) -> tuple[Tensor]:
    (y,) = map(fresh, _shapes(x, weight, bias, before, documents, silu))
    arguments, _inputs = _prepared(x, weight, bias, before, documents, silu)
    arguments.y = address(y)
    call("foveate_causal_conv1d", arguments, 0)
    return (y,)


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    before: Tensor | None,
    documents: Tensor | None,
    silu: bool,
) -> Results:
    if torch.is_grad_enabled():  # to be differentiated once more: by what autograd sees through
        from ..causal_conv1d import reference  # which imports this file

        return through_autograd(partial(reference, silu=silu), (x, weight, bias, before, documents), (grad,))
    real, (batch, length, channels), taps = sum_dtype(x.dtype), x.shape, weight.shape[1]
    arguments, _inputs = _prepared(x, weight, bias, before, documents, silu)
    grad = whole(grad, x.dtype)
    grad_x = fresh(torch.empty(batch, length, channels, dtype=x.dtype))
    grad_before = None if before is None else torch.empty(batch, taps - 1, channels, dtype=x.dtype)
    grad_weight = torch.empty(batch, taps, channels, dtype=real)
    grad_bias = None if bias is None else torch.empty(batch, channels, dtype=real)
    arguments.grad_y, arguments.grad_x, arguments.grad_before = address(grad), address(grad_x), address(grad_before)
    arguments.grad_weight, arguments.grad_bias = address(grad_weight), address(grad_bias)
    call("foveate_causal_conv1d", arguments, 1)
    return grad_x, grad_weight.sum(0).T, None if grad_bias is None else grad_bias.sum(0), grad_before, None


def _shapes(
    x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None, documents: Tensor | None, silu: bool
) -> tuple[Tensor]:
    return (torch.empty(x.shape, dtype=x.dtype, device=x.device),)


#: As the torch form of :mod:`foveate.ops.causal_conv1d`, for what :func:`fits`: time before channels.
causal_conv1d_native = handwritten(
    "causal_conv1d_native",
    "Tensor x, Tensor weight, Tensor? bias, Tensor? before, Tensor? documents, bool silu",
    outputs=1,
    extras=0,
    forward=_forward,
    backward=_backward,
    shapes=_shapes,
)
