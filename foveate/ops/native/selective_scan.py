"""The selective scan through its CPU kernel; what it computes stands in :mod:`foveate.ops.selective_scan`."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p
from functools import partial

import torch
from torch import Tensor

from ..handwritten import Results, handwritten, sum_dtype
from ..selective_scan_blocks import groups_of
from . import LIBRARY, SCALARS, address, call, fresh, rows, takes, through_autograd, whole

#: Positions between saved states: the states of one block, and what belongs to them, stay in the cache.
BLOCK = 64
#: The same where nothing will be differentiated: fewer states to write.
BLOCK_WITHOUT_GRADIENTS = 256


class _Arguments(ctypes.Structure):
    """``ScanArguments`` of kernels/selective_scan.cpp, field for field."""

    _numbers = (
        "scalar batch length groups per_group states block softplus variable_B variable_C u_batch u_time delta_batch "
        "delta_time z_batch z_time out_batch out_time B_batch B_time B_group C_batch C_time C_group"
    )
    _pointers = (
        "u delta z B C A D bias initial reset out last starts grad_out grad_last grad_u grad_delta grad_z grad_A "
        "grad_D grad_bias grad_B grad_C grad_initial"
    )
    _fields_ = [(n, c_int64) for n in _numbers.split()] + [(n, c_void_p) for n in _pointers.split()]


def fits(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernel takes these: real numbers on the CPU, in one storage type that it knows."""
    return u.dtype in SCALARS and delta.dtype == u.dtype and takes(u, delta, A, B, C, *others)


class _Prepared:
    """The inputs as the kernel wants them, and the structure that points at them.

    Holds every tensor that a pointer of the structure points into.
    """

    def __init__(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        bias: Tensor | None,
        initial: Tensor | None,
        reset: Tensor | None,
        softplus: bool,
        block: int,
    ) -> None:
        real = sum_dtype(u.dtype)
        self.groups = groups_of(B, C)
        self.shape = batch, length, channels = u.shape
        variable = {"B": B.ndim == 4, "C": C.ndim == 4}
        self.inputs = {"u": u, "delta": delta, "z": z}
        self.inputs = {k: None if m is None else rows(m.to(u.dtype)) for k, m in self.inputs.items()}
        maps = {k: rows(m.to(u.dtype)) if variable[k] else whole(m, real) for k, m in (("B", B), ("C", C))}
        self.inputs |= maps
        self.inputs |= {k: whole(m, real) for k, m in (("A", A), ("D", D), ("bias", bias), ("initial", initial))}
        self.inputs["reset"] = None if reset is None else reset.to(torch.uint8).contiguous()
        self.arguments = arguments = _Arguments(
            scalar=SCALARS[u.dtype],
            batch=batch,
            length=length,
            groups=self.groups,
            per_group=channels // self.groups,
            states=A.shape[1],
            block=block,
            softplus=softplus,
            variable_B=variable["B"],
            variable_C=variable["C"],
        )
        for name in ("u", "delta", "z"):
            m = self.inputs[name]
            if m is not None:
                self._strides(name, m, "batch", "time")
        for name, m in maps.items():
            if variable[name]:
                self._strides(name, m, "batch", "time", "group")
        for name, m in self.inputs.items():
            setattr(arguments, name, address(m))

    def _strides(self, name: str, m: Tensor, *axes: str) -> None:
        for axis, stride in zip(axes, m.stride(), strict=False):
            setattr(self.arguments, f"{name}_{axis}", stride)

    def give(self, **rooms: Tensor | None) -> None:
        """Point the structure at where results go, or at further contiguous inputs."""
        for name, room in rooms.items():
            setattr(self.arguments, name, address(room))


def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    reset: Tensor | None,
    softplus: bool,
    block: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, last state, and the states before each block ``(blocks, batch, G, N, P)``."""
    out, last, starts = map(fresh, _shapes(u, delta, A, B, C, D, z, bias, initial, reset, softplus, block))
    given = _Prepared(u, delta, A, B, C, D, z, bias, initial, reset, softplus, block)
    given.give(out=out, last=last, starts=starts)
    given.arguments.out_batch, given.arguments.out_time = out.stride()[:2]
    call("foveate_selective_scan", given.arguments, 0)
    return out, last, starts


def _backward(
    grad_out: Tensor,
    grad_last: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    reset: Tensor | None,
    softplus: bool,
    block: int,
    starts: Tensor,
) -> Results:
    if torch.is_grad_enabled():  # to be differentiated once more: by what autograd sees through
        from ..selective_scan import reference  # which imports this file

        inputs = u, delta, A, B, C, D, z, bias, initial, reset
        return through_autograd(partial(reference, softplus=softplus), inputs, (grad_out, grad_last))
    given = _Prepared(u, delta, A, B, C, D, z, bias, initial, reset, softplus, block)
    batch, length, channels = u.shape
    real, states, groups = sum_dtype(u.dtype), A.shape[1], given.groups
    count = getattr(LIBRARY, "foveate_selective_scan_chunks")(ctypes.byref(given.arguments))  # noqa: B009

    def room(*shape: int, dtype: torch.dtype = real) -> Tensor:
        return fresh(torch.empty(shape, dtype=dtype))

    def sums(m: Tensor) -> Tensor:
        return room(count, batch, length, groups, states) if m.ndim == 4 else room(batch, channels, states)

    grad_u, grad_delta = room(*u.shape, dtype=u.dtype), room(*u.shape, dtype=u.dtype)
    grad_z = None if z is None else room(*u.shape, dtype=u.dtype)
    grad_A, grad_initial = room(batch, channels, states), room(batch, channels, states)
    grad_D = None if D is None else room(batch, channels)
    grad_bias = None if bias is None else room(batch, channels)
    grad_B, grad_C = sums(B), sums(C)
    inward = {"grad_out": grad_out.to(u.dtype).contiguous(), "grad_last": whole(grad_last, real), "starts": starts}
    given.give(**inward, grad_u=grad_u, grad_delta=grad_delta, grad_z=grad_z, grad_A=grad_A, grad_D=grad_D)
    given.give(grad_bias=grad_bias, grad_B=grad_B, grad_C=grad_C, grad_initial=grad_initial)
    call("foveate_selective_scan", given.arguments, 1)
    return (
        grad_u,
        grad_delta,
        grad_A.sum(0),
        grad_B.sum(0),
        grad_C.sum(0),
        None if grad_D is None else grad_D.sum(0),
        grad_z,
        None if grad_bias is None else grad_bias.sum(0),
        None if initial is None else grad_initial,
        None,
    )


def _shapes(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    reset: Tensor | None,
    softplus: bool,
    block: int,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, channels = u.shape
    real, states = sum_dtype(u.dtype), A.shape[1]
    groups = groups_of(B, C)
    return (
        torch.empty(batch, length, channels, dtype=u.dtype, device=u.device),
        torch.empty(batch, channels, states, dtype=real, device=u.device),
        torch.empty(-(-length // block), batch, groups, states, channels // groups, dtype=real, device=u.device),
    )


_op = handwritten(
    "selective_scan_native",
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? bias, Tensor? initial, "
    "Tensor? reset, bool softplus, int block",
    outputs=2,
    extras=1,
    forward=_forward,
    backward=_backward,
    shapes=_shapes,
)


def selective_scan_native(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    reset: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, Tensor]:
    """As :func:`~foveate.ops.selective_scan_blocks.selective_scan_blocks`, for what :func:`fits`."""
    block = BLOCK if torch.is_grad_enabled() else BLOCK_WITHOUT_GRADIENTS
    out, last = _op(u, delta, A, B, C, D, z, bias, initial, reset, softplus, block)
    return out, last
