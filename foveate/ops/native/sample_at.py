"""Sampling at points through its CPU kernel; what it is stands in :mod:`foveate.ops.sample_at`."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from ..handwritten import Results, handwritten, sum_dtype
from . import SCALARS, address, call, fresh, rows, takes, through_autograd


class _Arguments(ctypes.Structure):
    """``SampleArguments`` of kernels/sample_at.cpp, field for field."""

    _numbers = ["scalar", "batch", "heads", "height", "width", "channels", "points"]
    _numbers += [f"x_{n}" for n in ("batch", "head", "row", "column")]
    _numbers += [f"{m}_{n}" for m in ("grad", "at") for n in ("batch", "head", "point")]
    _fields_ = [(n, c_int64) for n in _numbers]
    _fields_ += [(f"at_{n}", c_void_p) for n in ("x", "at", "out", "grad_out", "grad_x", "grad_at")]


def fits(x: Tensor, points: Tensor) -> bool:
    """Whether the kernel takes these: real numbers on the CPU, in a storage type that it knows."""
    return x.dtype in SCALARS and takes(x, points)


def _prepared(x: Tensor, points: Tensor, **others: Tensor) -> tuple[_Arguments, list[Tensor]]:
    """The structure, and the tensors that it points into: keep them while it is used."""
    x, points = rows(x), rows(points.to(sum_dtype(x.dtype)))
    given = {"x": x, "at": points, **others}
    strides = [*x.stride()[:4], *(given["grad_out"].stride()[:3] if "grad_out" in given else (0, 0, 0))]
    arguments = _Arguments(SCALARS[x.dtype], *x.shape, points.shape[2], *strides, *points.stride()[:3])
    for name, m in given.items():
        setattr(arguments, f"at_{name}", address(m))
    return arguments, list(given.values())


def _forward(x: Tensor, points: Tensor) -> tuple[Tensor]:
    out = fresh(_shapes(x, points)[0])
    arguments, _given = _prepared(x, points, out=out)
    call("foveate_sample_at", arguments, 0)
    return (out,)


def _backward(grad_out: Tensor, x: Tensor, points: Tensor) -> Results:
    if torch.is_grad_enabled():  # to be differentiated once more: by what autograd sees through
        from ..sample_at import reference  # which imports this file

        return through_autograd(lambda x, points: (reference(x, points),), (x, points), (grad_out,))
    real = sum_dtype(x.dtype)
    grad_x, grad_points = torch.zeros(x.shape, dtype=real), torch.empty(points.shape, dtype=real)
    others = {"grad_out": rows(grad_out), "grad_x": grad_x, "grad_at": grad_points}
    arguments, _given = _prepared(x, points, **others)
    call("foveate_sample_at", arguments, 1)
    return grad_x, grad_points


def _shapes(x: Tensor, points: Tensor) -> tuple[Tensor]:
    return (torch.empty(*points.shape[:3], x.shape[-1], dtype=x.dtype, device=x.device),)


_kernel = handwritten(
    "sample_at_native",
    "Tensor x, Tensor points",
    outputs=1,
    extras=0,
    forward=_forward,
    backward=_backward,
    shapes=_shapes,
)


def sample_at_native(x: Tensor, points: Tensor) -> Tensor:
    """As :func:`foveate.ops.sample_at.by_grid_sample`, for what :func:`fits`."""
    return _kernel(x, points)[0]
