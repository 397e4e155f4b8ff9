"""The selective scan in Triton; what it computes stands in :mod:`foveate.ops.selective_scan`.

A program owns some neighbouring channels of one sample and walks through time with their states in registers. The
backward pass goes from block to block towards the start: it makes the states of a block again from a checkpoint, keeps
them in a scratch buffer of its own, and reads them in reverse. Sums over channels are written once per program and
added up outside, so that results do not depend on the order in which programs run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..handwritten import Results, handwritten, sum_dtype
from ..selective_scan_blocks import groups_of
from . import power_of_two, takes

#: Positions between saved states.
BLOCK = 64
#: Channels of one program.
CHANNELS = 32
_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def fits(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernel takes these: real numbers on the device of the kernels."""
    return u.dtype in _TYPES and takes(u, delta, A, B, C, *others)


@triton.jit
def _softplus(x):
    small = tl.exp(-tl.abs(x))
    # log(1 + small), which loses the digits of a small argument unless its series is taken.
    log1p = tl.where(small < 1e-4, small - 0.5 * small * small, tl.log(1 + small))
    return tl.where(x > 20, x, tl.maximum(x, 0.0) + log1p)


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _map_row(base, sample, t, group, n, n_mask, batch_stride, time_stride, group_stride, state_stride):
    """B or C of one position, where they vary: (STATES,)."""
    place = base + sample * batch_stride + t * time_stride + group * group_stride + n * state_stride
    return tl.load(place, mask=n_mask, other=0.0)


@triton.jit
def _forward_kernel(
    u, delta, A, B, C, D, z, bias, initial, reset, out, last, starts,
    length, channels, per_group, states,
    u_batch, u_time, u_channel, delta_batch, delta_time, delta_channel, z_batch, z_time, z_channel,
    B_batch, B_time, B_group, B_state, C_batch, C_time, C_group, C_state,
    SOFTPLUS: tl.constexpr, VARIABLE_B: tl.constexpr, VARIABLE_C: tl.constexpr, BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)  # offsets may pass 2^31
    parts = tl.cdiv(per_group, CHANNELS)
    group = tl.program_id(1) // parts
    inside = (tl.program_id(1) % parts) * CHANNELS + tl.arange(0, CHANNELS)
    c_mask = inside < per_group
    c = group * per_group + inside
    n = tl.arange(0, STATES)
    n_mask = n < states
    mask = c_mask[:, None] & n_mask[None, :]
    square = c[:, None] * states + n[None, :]
    decay_rates = tl.load(A + square, mask=mask, other=0.0)
    real = decay_rates.dtype
    h = tl.zeros((CHANNELS, STATES), dtype=real)
    if initial is not None:
        h = tl.load(initial + sample * channels * states + square, mask=mask, other=0.0)
    if not VARIABLE_B:
        b = tl.load(B + square, mask=mask, other=0.0)
    if not VARIABLE_C:
        read = tl.load(C + square, mask=mask, other=0.0)
    for t in range(length):
        if t % BLOCK == 0:
            row = (t // BLOCK * tl.num_programs(0) + sample) * channels * states
            tl.store(starts + row + square, h, mask=mask)
        x = tl.load(u + sample * u_batch + t * u_time + c * u_channel, mask=c_mask, other=0.0).to(real)
        step = tl.load(delta + sample * delta_batch + t * delta_time + c * delta_channel, mask=c_mask, other=0.0).to(
            real
        )
        if bias is not None:
            step += tl.load(bias + c, mask=c_mask, other=0.0)
        if SOFTPLUS:
            step = _softplus(step)
        if VARIABLE_B:
            b = _map_row(B, sample, t, group, n, n_mask, B_batch, B_time, B_group, B_state).to(real)[None, :]
        if VARIABLE_C:
            read = _map_row(C, sample, t, group, n, n_mask, C_batch, C_time, C_group, C_state).to(real)[None, :]
        decay = tl.exp(step[:, None] * decay_rates)
        if reset is not None:
            decay *= 1 - tl.load(reset + sample * length + t).to(real)
        h = decay * h + (step * x)[:, None] * b
        y = tl.sum(h * read, axis=1)
        if D is not None:
            y += tl.load(D + c, mask=c_mask, other=0.0) * x
        if z is not None:
            gate = tl.load(z + sample * z_batch + t * z_time + c * z_channel, mask=c_mask, other=0.0).to(real)
            y *= gate * _sigmoid(gate)
        tl.store(out + (sample * length + t) * channels + c, y.to(out.dtype.element_ty), mask=c_mask)
    tl.store(last + sample * channels * states + square, h, mask=mask)


@triton.jit
def _backward_kernel(
    grad_out, grad_last, u, delta, A, B, C, D, z, bias, reset, starts, scratch,
    grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias, grad_initial,
    length, channels, per_group, states,
    u_batch, u_time, u_channel, delta_batch, delta_time, delta_channel, z_batch, z_time, z_channel,
    B_batch, B_time, B_group, B_state, C_batch, C_time, C_group, C_state,
    SOFTPLUS: tl.constexpr, VARIABLE_B: tl.constexpr, VARIABLE_C: tl.constexpr, BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)  # offsets may pass 2^31
    parts = tl.cdiv(per_group, CHANNELS)
    groups = channels // per_group
    group, part = tl.program_id(1) // parts, tl.program_id(1) % parts
    inside = part * CHANNELS + tl.arange(0, CHANNELS)
    c_mask = inside < per_group
    c = group * per_group + inside
    n = tl.arange(0, STATES)
    n_mask = n < states
    mask = c_mask[:, None] & n_mask[None, :]
    square = c[:, None] * states + n[None, :]
    whole = sample * channels * states + square
    decay_rates = tl.load(A + square, mask=mask, other=0.0)
    real = decay_rates.dtype
    if not VARIABLE_B:
        b = tl.load(B + square, mask=mask, other=0.0)
    if not VARIABLE_C:
        read = tl.load(C + square, mask=mask, other=0.0)
    carry = tl.load(grad_last + whole, mask=mask, other=0.0)
    sum_A = tl.zeros((CHANNELS, STATES), dtype=real)
    sum_B = tl.zeros((CHANNELS, STATES), dtype=real)
    sum_C = tl.zeros((CHANNELS, STATES), dtype=real)
    sum_D = tl.zeros((CHANNELS,), dtype=real)
    sum_bias = tl.zeros((CHANNELS,), dtype=real)
    blocks = tl.cdiv(length, BLOCK)
    # States of one block, this program's own.
    mine = (sample * tl.num_programs(1) + tl.program_id(1)) * BLOCK * CHANNELS * STATES
    tile = tl.arange(0, CHANNELS)[:, None] * STATES + n[None, :]
    for i in range(blocks):
        from_ = (blocks - 1 - i) * BLOCK
        steps = tl.minimum(BLOCK, length - from_)
        row = (from_ // BLOCK * tl.num_programs(0) + sample) * channels * states
        h = tl.load(starts + row + square, mask=mask, other=0.0)
        for k in range(steps):
            t = from_ + k
            tl.store(scratch + mine + k * CHANNELS * STATES + tile, h)
            x = tl.load(u + sample * u_batch + t * u_time + c * u_channel, mask=c_mask, other=0.0).to(real)
            step = tl.load(delta + sample * delta_batch + t * delta_time + c * delta_channel, mask=c_mask, other=0.0)
            step = step.to(real)
            if bias is not None:
                step += tl.load(bias + c, mask=c_mask, other=0.0)
            if SOFTPLUS:
                step = _softplus(step)
            if VARIABLE_B:
                b = _map_row(B, sample, t, group, n, n_mask, B_batch, B_time, B_group, B_state).to(real)[None, :]
            decay = tl.exp(step[:, None] * decay_rates)
            if reset is not None:
                decay *= 1 - tl.load(reset + sample * length + t).to(real)
            h = decay * h + (step * x)[:, None] * b
        tl.debug_barrier()  # what was stored above is read below
        for j in range(steps):
            k = steps - 1 - j
            t = from_ + k
            before = tl.load(scratch + mine + k * CHANNELS * STATES + tile)
            place = (sample * length + t) * channels + c
            x = tl.load(u + sample * u_batch + t * u_time + c * u_channel, mask=c_mask, other=0.0).to(real)
            raw = tl.load(delta + sample * delta_batch + t * delta_time + c * delta_channel, mask=c_mask, other=0.0)
            raw = raw.to(real)
            if bias is not None:
                raw += tl.load(bias + c, mask=c_mask, other=0.0)
            step = raw
            if SOFTPLUS:
                step = _softplus(raw)
            if VARIABLE_B:
                b = _map_row(B, sample, t, group, n, n_mask, B_batch, B_time, B_group, B_state).to(real)[None, :]
            if VARIABLE_C:
                read = _map_row(C, sample, t, group, n, n_mask, C_batch, C_time, C_group, C_state).to(real)[None, :]
            decay = tl.exp(step[:, None] * decay_rates)
            if reset is not None:
                decay *= 1 - tl.load(reset + sample * length + t).to(real)
            h = decay * before + (step * x)[:, None] * b
            gy = tl.load(grad_out + place, mask=c_mask, other=0.0).to(real)
            skip = tl.zeros((CHANNELS,), dtype=real)
            if D is not None:
                skip = tl.load(D + c, mask=c_mask, other=0.0)
            if z is not None:
                gate = tl.load(z + sample * z_batch + t * z_time + c * z_channel, mask=c_mask, other=0.0).to(real)
                open_ = _sigmoid(gate)
                y = tl.sum(h * read, axis=1) + skip * x
                slope = gy * y * open_ * (1 + gate * (1 - open_))
                tl.store(grad_z + place, slope.to(grad_z.dtype.element_ty), mask=c_mask)
                gy *= gate * open_
            sum_D += gy * x
            g = carry + gy[:, None] * read
            if VARIABLE_C:
                row = (((part * tl.num_programs(0) + sample) * length + t) * groups + group) * states
                tl.store(grad_C + row + n, tl.sum(gy[:, None] * h, axis=0), mask=n_mask)
            else:
                sum_C += gy[:, None] * h
            if VARIABLE_B:
                row = (((part * tl.num_programs(0) + sample) * length + t) * groups + group) * states
                tl.store(grad_B + row + n, tl.sum(g * (step * x)[:, None], axis=0), mask=n_mask)
            else:
                sum_B += g * (step * x)[:, None]
            inward = tl.sum(g * b, axis=1)
            carry = g * decay
            back = carry * before
            grad_step = tl.sum(back * decay_rates, axis=1) + inward * x
            sum_A += back * step[:, None]
            tl.store(grad_u + place, (gy * skip + inward * step).to(grad_u.dtype.element_ty), mask=c_mask)
            if SOFTPLUS:
                grad_step *= tl.where(raw > 20, 1.0, _sigmoid(raw))
            tl.store(grad_delta + place, grad_step.to(grad_delta.dtype.element_ty), mask=c_mask)
            sum_bias += grad_step
        tl.debug_barrier()  # the next block stores where this one read
    tl.store(grad_initial + whole, carry, mask=mask)
    tl.store(grad_A + whole, sum_A, mask=mask)
    if not VARIABLE_B:
        tl.store(grad_B + whole, sum_B, mask=mask)
    if not VARIABLE_C:
        tl.store(grad_C + whole, sum_C, mask=mask)
    tl.store(grad_D + sample * channels + c, sum_D, mask=c_mask)
    tl.store(grad_bias + sample * channels + c, sum_bias, mask=c_mask)


def _inputs(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    bias: Tensor | None, initial: Tensor | None, reset: Tensor | None, softplus: bool,
) -> tuple[dict[str, Tensor | None], dict[str, int | bool]]:  # fmt: skip
    """Tensors by name as the kernels take them, and sizes, strides and flags."""
    real = sum_dtype(u.dtype)
    tensors = {"A": A, "D": D, "bias": bias, "initial": initial}
    tensors = {k: None if m is None else m.to(real).contiguous() for k, m in tensors.items()}
    maps = {k: m if m.ndim == 4 else m.to(real).contiguous() for k, m in (("B", B), ("C", C))}
    tensors |= {"u": u, "delta": delta, "z": z, **maps}
    tensors["reset"] = None if reset is None else reset.to(torch.uint8).contiguous()
    sizes: dict[str, int | bool] = {"length": u.shape[1], "channels": u.shape[2], "states": A.shape[1]}
    sizes["per_group"] = u.shape[2] // groups_of(B, C)
    for name in ("u", "delta", "z"):
        axes, m = (f"{name}_batch", f"{name}_time", f"{name}_channel"), tensors[name]
        sizes |= dict(zip(axes, (0, 0, 0) if m is None else m.stride(), strict=True))
    for name, m in maps.items():
        axes = (f"{name}_batch", f"{name}_time", f"{name}_group", f"{name}_state")
        sizes |= dict(zip(axes, m.stride() if m.ndim == 4 else (0, 0, 0, 0), strict=True))
    sizes |= {"SOFTPLUS": softplus, "VARIABLE_B": B.ndim == 4, "VARIABLE_C": C.ndim == 4, "BLOCK": BLOCK}
    sizes |= {"CHANNELS": min(CHANNELS, power_of_two(u.shape[2])), "STATES": power_of_two(A.shape[1])}
    return tensors, sizes


def _grid(batch: int, groups: int, sizes: dict[str, int | bool]) -> tuple[int, int]:
    return batch, groups * -(-sizes["per_group"] // sizes["CHANNELS"])


def _forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    bias: Tensor | None, initial: Tensor | None, reset: Tensor | None, softplus: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output, last state, and the states before each block ``(blocks, batch, D, N)``."""
    out, last, starts = _shapes(u, delta, A, B, C, D, z, bias, initial, reset, softplus)
    tensors, sizes = _inputs(u, delta, A, B, C, D, z, bias, initial, reset, softplus)
    grid = _grid(u.shape[0], groups_of(B, C), sizes)
    _forward_kernel[grid](**tensors, out=out, last=last, starts=starts, **sizes)
    return out, last, starts


def _backward(
    grad_out: Tensor, grad_last: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, z: Tensor | None, bias: Tensor | None, initial: Tensor | None, reset: Tensor | None,
    softplus: bool, starts: Tensor,
) -> Results:  # fmt: skip
    tensors, sizes = _inputs(u, delta, A, B, C, D, z, bias, initial, reset, softplus)
    del tensors["initial"]
    real, groups, (batch, length, channels), states = sum_dtype(u.dtype), groups_of(B, C), u.shape, A.shape[1]
    grid = _grid(batch, groups, sizes)

    def room(*shape: int, dtype: torch.dtype = real) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=u.device)

    def sums(m: Tensor) -> Tensor:
        return room(grid[1] // groups, batch, length, groups, states) if m.ndim == 4 else room(batch, channels, states)

    found = {name: room(*u.shape, dtype=u.dtype) for name in ("grad_u", "grad_delta")}
    found["grad_z"] = None if z is None else room(*u.shape, dtype=u.dtype)
    found |= {"grad_A": room(batch, channels, states), "grad_initial": room(batch, channels, states)}
    found |= {"grad_B": sums(B), "grad_C": sums(C), "grad_D": room(batch, channels), "grad_bias": room(batch, channels)}
    scratch = room(grid[0] * grid[1], BLOCK, sizes["CHANNELS"], sizes["STATES"])
    inward = {"grad_out": grad_out.contiguous(), "grad_last": grad_last.to(real).contiguous()}
    _backward_kernel[grid](**inward, **tensors, starts=starts, scratch=scratch, **found, **sizes)
    summed = {name: found[f"grad_{name}"].sum(0) for name in ("A", "D", "bias")}
    # Partial sums stand before the axes of the map; those of constant maps are over samples.
    maps = {name: found[f"grad_{name}"].sum(0) for name in ("B", "C")}
    return (
        found["grad_u"],
        found["grad_delta"],
        summed["A"],
        maps["B"],
        maps["C"],
        None if D is None else summed["D"],
        found["grad_z"],
        None if bias is None else summed["bias"],
        None if initial is None else found["grad_initial"],
        None,
    )


def _shapes(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    bias: Tensor | None, initial: Tensor | None, reset: Tensor | None, softplus: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, length, channels = u.shape
    real, states = sum_dtype(u.dtype), A.shape[1]
    return (
        torch.empty(batch, length, channels, dtype=u.dtype, device=u.device),
        torch.empty(batch, channels, states, dtype=real, device=u.device),
        torch.empty(-(-length // BLOCK), batch, channels, states, dtype=real, device=u.device),
    )


#: As :func:`~foveate.ops.selective_scan_blocks.selective_scan_blocks`, for what :func:`fits`.
selective_scan_triton = handwritten(
    "selective_scan_triton",
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? bias, Tensor? initial, "
    "Tensor? reset, bool softplus",
    outputs=2,
    extras=1,
    forward=_forward,
    backward=_backward,
    shapes=_shapes,
)
