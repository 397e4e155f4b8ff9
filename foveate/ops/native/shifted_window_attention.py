"""Shifted window attention through its CPU kernel; what it is stands in :mod:`foveate.ops.shifted_window_attention`."""

from __future__ import annotations

import ctypes
import math
from ctypes import c_double, c_int64, c_void_p

import torch
from torch import Tensor

from ..handwritten import Results, handwritten, sum_dtype
from ..shifted_windows import Axis
from . import SCALARS, address, call, fresh, rows, takes, through_autograd, whole

#: The grid's axes as the kernel counts them; those that a grid has not, from the first on, have one place.
AXES = ("t", "y", "x")
#: Places along an axis, and tokens of a window, that the kernel counts in 32 bits.
LONGEST_AXIS, MOST_TOKENS = 2**24, 2**15
#: Backward, windows are divided into so many sets at most, whose gradients of biases and padding are added up at the
#: end. Results depend on their number to rounding, so that it must not depend on the threads.
MOST_SLOTS = 16


class _Arguments(ctypes.Structure):
    """``ShiftedArguments`` of kernels/shifted_windows.h, field for field."""

    _numbers = ["scalar", "batch", "heads", "width", "value_width"]
    _numbers += [f"{axis}_{n}" for axis in AXES for n in ("size", "window", "shift")]
    _numbers += ["dilated", "masked", "by_window", "slots"]
    _numbers += [f"{m}_{n}" for m in ("q", "k", "v", "grad") for n in ("batch", *AXES, "head")]
    _numbers += [*(f"bias_{n}" for n in ("window", "head", "query", "key")), "index_row"]
    _pointers = "q k v bias pad_k pad_v out grad_out grad_q grad_k grad_v grad_bias grad_pad_k grad_pad_v index"
    _fields_ = [(n, c_int64) for n in _numbers]
    _fields_ += [("scale", c_double)]
    _fields_ += [(f"at_{n}", c_void_p) for n in _pointers.split()]


def fits(q: Tensor, k: Tensor, v: Tensor, extras: tuple[Tensor | None, ...], axes: tuple[Axis, ...]) -> bool:
    """Whether the kernel takes these: real numbers on the CPU, in a storage type that it knows."""
    small = max(axis.padded for axis in axes) <= LONGEST_AXIS and math.prod([a.window for a in axes]) <= MOST_TOKENS
    return q.dtype in SCALARS and small and takes(q, k, v, *extras)


class _Prepared:
    """The structure, and every tensor that a pointer of it points into."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        pad_k: Tensor | None,
        pad_v: Tensor | None,
        window: list[int],
        shift: list[int],
        dilated: bool,
        masked: bool,
        scale: float,
    ) -> None:
        batch, *grid, heads, width = q.shape
        self.axes, real = AXES[3 - len(grid) :], sum_dtype(q.dtype)
        self.grid, self.windows = grid, math.prod(-(-n // w) for n, w in zip(grid, window, strict=True))
        sizes = {"batch": batch, "heads": heads, "width": width, "value_width": v.shape[-1], "slots": 1}
        flags = {"dilated": dilated, "masked": masked, "by_window": bias is not None and bias.shape[0] > 1}
        self.arguments = _Arguments(scalar=SCALARS[q.dtype], scale=scale, **sizes, **flags)
        for axis in AXES:
            self._axis(axis, 1, 1, 0)
        for axis, *values in zip(self.axes, grid, window, shift, strict=True):
            self._axis(axis, *values)
        self.kept: list[Tensor | None] = [self.place(name, rows(m)) for name, m in (("q", q), ("k", k), ("v", v))]
        for name, pad in (("pad_k", pad_k), ("pad_v", pad_v)):
            self.kept.append(self.give(name, whole(pad, real)))
        if bias is not None:
            bias = bias.to(real)
            for axis, stride in zip(("window", "head", "query", "key"), bias.stride(), strict=True):
                setattr(self.arguments, f"bias_{axis}", stride)
            self.kept.append(self.give("bias", bias))

    def _axis(self, axis: str, size: int, window: int, shift: int) -> None:
        for name, value in {"size": size, "window": window, "shift": shift}.items():
            setattr(self.arguments, f"{axis}_{name}", value)

    def give(self, name: str, m: Tensor | None) -> Tensor | None:
        """Point at a tensor."""
        setattr(self.arguments, f"at_{name}", address(m))
        return m

    def place(self, name: str, m: Tensor, pointer: str | None = None) -> Tensor:
        """Point at a tensor (batch, grid, heads, numbers), with its strides."""
        for axis, stride in zip(("batch", *self.axes, "head"), m.stride(), strict=False):
            setattr(self.arguments, f"{name}_{axis}", stride)
        self.give(pointer or name, m)
        return m


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    pad_k: Tensor | None,
    pad_v: Tensor | None,
    window: list[int],
    shift: list[int],
    dilated: bool,
    masked: bool,
    scale: float,
) -> tuple[Tensor]:
    given = _Prepared(q, k, v, bias, pad_k, pad_v, window, shift, dilated, masked, scale)
    out = fresh(torch.empty(v.shape, dtype=v.dtype))
    given.give("out", out)
    call("foveate_shifted_window_attention", given.arguments, 0)
    return (out,)


def _backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    pad_k: Tensor | None,
    pad_v: Tensor | None,
    window: list[int],
    shift: list[int],
    dilated: bool,
    masked: bool,
    scale: float,
) -> Results:
    if torch.is_grad_enabled():  # to be differentiated once more: by what autograd sees through
        from ..shifted_window_attention import reference  # which imports this file

        grid = q.shape[1:-2]
        axes = tuple(Axis(*values) for values in zip(grid, window, shift, strict=True))
        names = "grid" if dilated else "blocks", "masked" if masked else "tokens"

        def definition(q: Tensor, k: Tensor, v: Tensor, *extras: Tensor | None) -> tuple[Tensor]:
            bias, pad_k, pad_v = extras
            q, k, v = (m.movedim(-2, 1) for m in (q, k, v))
            return (reference(q, k, v, bias, pad_k, pad_v, axes, *names, scale).movedim(1, -2),)

        return through_autograd(definition, (q, k, v, bias, pad_k, pad_v), (grad_out,))
    given = _Prepared(q, k, v, bias, pad_k, pad_v, window, shift, dilated, masked, scale)
    slots = given.windows if given.arguments.by_window else min(MOST_SLOTS, q.shape[0] * given.windows)
    given.arguments.slots, real = slots, sum_dtype(q.dtype)
    grad_out = given.place("grad", rows(grad_out.to(q.dtype)), "grad_out")
    grads: list[Tensor | None] = [fresh(torch.empty(m.shape, dtype=m.dtype)) for m in (q, k, v)]
    for m, first in ((bias, 1), (pad_k, 0), (pad_v, 0)):
        grads.append(None if m is None else torch.empty(slots, *m.shape[first:], dtype=real))
    for name, m in zip(("grad_q", "grad_k", "grad_v", "grad_bias", "grad_pad_k", "grad_pad_v"), grads, strict=True):
        given.give(name, m)
    call("foveate_shifted_window_attention", given.arguments, 1)
    grad_q, grad_k, grad_v, grad_bias, grad_pad_k, grad_pad_v = grads
    if grad_bias is not None and not given.arguments.by_window:
        grad_bias = grad_bias.sum(0, keepdim=True)
    return grad_q, grad_k, grad_v, grad_bias, *(None if m is None else m.sum(0) for m in (grad_pad_k, grad_pad_v))


def _shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    pad_k: Tensor | None,
    pad_v: Tensor | None,
    window: list[int],
    shift: list[int],
    dilated: bool,
    masked: bool,
    scale: float,
) -> tuple[Tensor]:
    return (torch.empty(v.shape, dtype=v.dtype, device=v.device),)


_kernel = handwritten(
    "shifted_window_attention_native",
    "Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? pad_k, Tensor? pad_v, int[] window, int[] shift, "
    "bool dilated, bool masked, float scale",
    outputs=1,
    extras=0,
    forward=_forward,
    backward=_backward,
    shapes=_shapes,
)


def shifted_window_attention_native(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    pad_k: Tensor | None,
    pad_v: Tensor | None,
    axes: tuple[Axis, ...],
    partition: str,
    padding: str,
    scale: float,
) -> Tensor:
    """As :func:`foveate.ops.shifted_window_attention.fused`, for what :func:`fits`.

    Heads stand behind the grid in the kernel's tensors: projections then need no copy, nor do outputs to be joined.
    """
    if bias is not None:
        tokens = math.prod([axis.window for axis in axes])
        bias = bias if bias.ndim == 4 else bias[None]
        bias = bias.expand(bias.shape[0], q.shape[1], tokens, tokens)
    q, k, v = (m.movedim(1, -2) for m in (q, k, v))
    window, shift = [axis.window for axis in axes], [axis.shift for axis in axes]
    options = (window, shift, partition == "grid", padding == "masked", scale)
    return _kernel(q, k, v, bias, pad_k, pad_v, *options)[0].movedim(-2, 1)
