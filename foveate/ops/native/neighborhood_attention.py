"""Neighborhood attention through its CPU kernel; what it is stands in :mod:`foveate.ops.neighborhood_attention`."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int64, c_void_p

import torch
from torch import Tensor

from ..handwritten import Results, handwritten, sum_dtype
from ..neighborhood_boxes import ARGUMENTS, shapes_of
from ..neighborhood_windows import axes_of
from . import LIBRARY, SCALARS, address, call, rows, takes, through_autograd, whole

#: The grid's axes as the kernel counts them; those that a grid has not, from the first on, have one position.
AXES = ("t", "y", "x")
#: Positions along an axis are 32-bit numbers in the kernel.
LONGEST_AXIS = 2**24


class _Arguments(ctypes.Structure):
    """``NeighborhoodArguments`` of kernels/neighborhood_tasks.h, field for field."""

    _numbers = ["scalar", "batch", "heads", "key_heads", "width", "value_width"]
    _numbers += [f"{axis}_{n}" for axis in AXES for n in ("size", "window", "dilation", "stride", "causal")]
    _numbers += [f"{m}_{n}" for m in ("q", "k", "v", "out", "grad_out") for n in ("batch", "head", *AXES)]
    _pointers = "q k v bias out lse grad_out grad_lse delta grad_q grad_k grad_v grad_bias"
    _fields_ = [(n, c_int64) for n in _numbers]
    _fields_ += [("scale", c_double)]
    _fields_ += [(n, c_void_p) for n in _pointers.split()]


def fits(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernel takes these: real numbers on the CPU, in a storage type that it knows."""
    return q.dtype in SCALARS and takes(q, k, v, bias) and max(q.shape[2:-1]) <= LONGEST_AXIS


class _Prepared:
    """The structure, and every tensor that a pointer of it points into."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        window: list[int],
        dilation: list[int],
        stride: list[int],
        causal: list[bool],
        scale: float,
    ) -> None:
        batch, heads, *grid, width = q.shape
        self.axes = AXES[3 - len(grid) :]
        sizes = {"batch": batch, "heads": heads, "key_heads": k.shape[1], "width": width, "value_width": v.shape[-1]}
        self.arguments = _Arguments(scalar=SCALARS[q.dtype], scale=scale, **sizes)
        for axis in AXES:
            self._axis(axis, 1, 1, 1, 1, False)
        for axis, *values in zip(self.axes, grid, window, dilation, stride, causal, strict=True):
            self._axis(axis, *values)
        self.kept = [self.give("bias", whole(bias, sum_dtype(q.dtype)))]
        self.kept += [self.place(name, rows(m)) for name, m in (("q", q), ("k", k), ("v", v))]

    def _axis(self, axis: str, size: int, window: int, dilation: int, stride: int, causal: bool) -> None:
        values = {"size": size, "window": window, "dilation": dilation, "stride": stride, "causal": causal}
        for name, value in values.items():
            setattr(self.arguments, f"{axis}_{name}", value)

    def give(self, name: str, m: Tensor | None) -> Tensor | None:
        """Point at a contiguous tensor."""
        setattr(self.arguments, name, address(m))
        return m

    def place(self, name: str, m: Tensor) -> Tensor:
        """Point at a tensor (batch, heads, grid, numbers), with its strides."""
        for axis, stride in zip(("batch", "head", *self.axes), m.stride(), strict=False):
            setattr(self.arguments, f"{name}_{axis}", stride)
        setattr(self.arguments, name, address(m))
        return m


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    window: list[int],
    dilation: list[int],
    stride: list[int],
    causal: list[bool],
    scale: float,
) -> tuple[Tensor, Tensor]:
    given = _Prepared(q, k, v, bias, window, dilation, stride, causal, scale)
    out, lse = shapes_of(q, k, v, bias, window, dilation, stride, causal, scale)
    given.place("out", out)
    given.give("lse", lse)
    call("foveate_neighborhood_attention", given.arguments, 0)
    return out, lse


def _backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    window: list[int],
    dilation: list[int],
    stride: list[int],
    causal: list[bool],
    scale: float,
    out: Tensor,
    lse: Tensor,
) -> Results:
    if torch.is_grad_enabled():  # to be differentiated once more: by what autograd sees through
        from ..neighborhood_attention import reference  # which imports this file

        axes = axes_of(tuple(q.shape[2:-1]), tuple(window), tuple(dilation), tuple(stride), tuple(causal))
        definition = lambda q, k, v, bias: reference(q, k, v, bias, None, None, axes, scale)  # noqa: E731
        return through_autograd(definition, (q, k, v, bias), (grad_out, grad_lse))
    real = sum_dtype(q.dtype)
    given = _Prepared(q, k, v, bias, window, dilation, stride, causal, scale)
    grad_out, out, grad_lse, lse = rows(grad_out.to(q.dtype)), rows(out), whole(grad_lse, real), whole(lse, real)
    delta = torch.empty_like(lse)
    grad_q, grad_k, grad_v = (torch.empty(m.shape, dtype=m.dtype) for m in (q, k, v))
    grad_bias = None
    if bias is not None:
        parts = getattr(LIBRARY, "foveate_neighborhood_attention_parts")(ctypes.byref(given.arguments))  # noqa: B009
        grad_bias = torch.zeros(parts * q.shape[0], *bias.shape, dtype=real)
    given.place("out", out)
    given.place("grad_out", grad_out)
    results = {"grad_q": grad_q, "grad_k": grad_k, "grad_v": grad_v, "grad_bias": grad_bias}
    for name, m in {"lse": lse, "grad_lse": grad_lse, "delta": delta, **results}.items():
        given.give(name, m)
    call("foveate_neighborhood_attention", given.arguments, 1)
    return grad_q, grad_k, grad_v, None if grad_bias is None else grad_bias.sum(0)


#: As :func:`foveate.ops.neighborhood_boxes.neighborhood_boxes`, for what :func:`fits`.
neighborhood_attention_native = handwritten(
    "neighborhood_attention_native",
    ARGUMENTS,
    outputs=2,
    extras=0,
    forward=_forward,
    backward=_backward,
    shapes=shapes_of,
    reads_outputs=True,
)
