"""Linear attention with a decay per head in Triton; what it computes stands in :mod:`foveate.ops.linear_attention`.

A program owns some value columns of one head and walks through time in chunks, with its part of the state in registers.
The backward pass makes the states before all chunks once more, keeps them in a scratch buffer of its own, and goes back
to the start with the gradient of the state. Sums over value columns, samples and time are written once per program and
added up outside, so that results do not depend on the order in which programs run. Decays are always formed as
exp(-slope * distance) with distance >= 0, and the gradient of the slope is summed over distances, pair by pair.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..handwritten import Results, handwritten, sum_dtype
from ..linear_attention_chunks import backward
from . import power_of_two, precision, takes

#: Positions of a chunk, fewer where keys are wide: a chunk of keys has at most so many bytes.
BLOCK, CHUNK_BYTES = 32, 16384
#: Value columns of one program.
VALUES = 32
#: Bytes of the widest key whose chunks and state fit the shared memory of a GPU, at least 16 positions at a time.
WIDEST = 1024
_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def fits(
    q: Tensor, k: Tensor, v: Tensor, slope: Tensor, state: Tensor | None = None, run: Tensor | None = None
) -> bool:
    """Whether the kernel takes these: real numbers on the device of the kernels, keys not too wide."""
    narrow = power_of_two(q.shape[-1]) * sum_dtype(q.dtype).itemsize <= WIDEST
    return q.dtype in _TYPES and narrow and takes(q, k, v, slope, state, run)


@triton.jit
def _decays(rate, run, sample, start, length, BLOCK: tl.constexpr):
    """Decays of a chunk: a key for a later query, the old state for a query, a key and the old state in the new one."""
    r = tl.arange(0, BLOCK)
    size = tl.minimum(BLOCK, length - start)
    apart = r[:, None] - r[None, :]
    pair = tl.where(apart >= 0, tl.exp(-rate * tl.maximum(apart, 0)), 0.0)
    read = tl.exp(-rate * (r + 1))
    write = tl.exp(-rate * tl.maximum(size - 1 - r, 0))
    through = tl.exp(-rate * size)
    if run is not None:
        here = run + sample * length + start
        own = tl.load(here + r, mask=r < size, other=-1)
        before = tl.load(here - 1, mask=start > 0, other=0)
        last = tl.load(here + size - 1)
        pair = tl.where(own[:, None] == own[None, :], pair, 0.0)
        read = tl.where(own == before, read, 0.0)
        write = tl.where(own == last, write, 0.0)
        through = tl.where(before == last, through, 0.0)
    return pair, read, write, through


@triton.jit
def _rows(base, sample, head, t, t_mask, c, c_mask, batch_stride, head_stride, time_stride, column_stride):
    """A chunk of q, k or v, zeros outside."""
    place = sample * batch_stride + head * head_stride + t[:, None] * time_stride + c[None, :] * column_stride
    return tl.load(base + place, mask=t_mask[:, None] & c_mask[None, :], other=0.0)


@triton.jit
def _forward_kernel(
    q, k, v, slope, initial, run, out, last,
    length, heads, keys, values,
    q_batch, q_head, q_time, q_column, k_batch, k_head, k_time, k_column, v_batch, v_head, v_time, v_column,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0).to(tl.int64)  # offsets may pass 2^31
    sample, head = line // heads, line % heads
    d, e = tl.arange(0, KEYS), tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    d_mask, e_mask = d < keys, e < values
    square = line * keys * values + d[:, None] * values + e[None, :]
    rate = tl.load(slope + head)
    real = rate.dtype
    state = tl.zeros((KEYS, VALUES), dtype=real)
    if initial is not None:
        state = tl.load(initial + square, mask=d_mask[:, None] & e_mask[None, :], other=0.0)
    for i in range(tl.cdiv(length, BLOCK)):
        start = i * BLOCK
        t = (start + tl.arange(0, BLOCK)).to(tl.int64)
        t_mask = t < length
        pair, read, write, through = _decays(rate, run, sample, start, length, BLOCK)
        qs = _rows(q, sample, head, t, t_mask, d, d_mask, q_batch, q_head, q_time, q_column).to(real)
        ks = _rows(k, sample, head, t, t_mask, d, d_mask, k_batch, k_head, k_time, k_column).to(real)
        vs = _rows(v, sample, head, t, t_mask, e, e_mask, v_batch, v_head, v_time, v_column).to(real)
        scores = tl.dot(qs, tl.trans(ks), input_precision=PRECISION) * pair
        o = tl.dot(scores, vs, input_precision=PRECISION)
        o += tl.dot(qs, state, input_precision=PRECISION) * read[:, None]
        state = state * through + tl.dot(tl.trans(ks * write[:, None]), vs, input_precision=PRECISION)
        place = out + (line * length + t[:, None]) * values + e[None, :]
        tl.store(place, o.to(out.dtype.element_ty), mask=t_mask[:, None] & e_mask[None, :])
    if last is not None:
        tl.store(last + square, state, mask=d_mask[:, None] & e_mask[None, :])


@triton.jit
def _backward_kernel(
    grad_out, grad_last, q, k, v, slope, initial, run, scratch, grad_q, grad_k, grad_v, grad_slope, grad_initial,
    length, heads, keys, values,
    q_batch, q_head, q_time, q_column, k_batch, k_head, k_time, k_column, v_batch, v_head, v_time, v_column,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0).to(tl.int64)  # offsets may pass 2^31
    sample, head = line // heads, line % heads
    part = tl.program_id(1) * tl.num_programs(0) + line
    d, e = tl.arange(0, KEYS), tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    d_mask, e_mask = d < keys, e < values
    r = tl.arange(0, BLOCK)
    square = line * keys * values + d[:, None] * values + e[None, :]
    square_mask = d_mask[:, None] & e_mask[None, :]
    rate = tl.load(slope + head)
    real = rate.dtype
    chunks = tl.cdiv(length, BLOCK)
    # States before the chunks, this program's own.
    tile = d[:, None] * VALUES + tl.arange(0, VALUES)[None, :]
    mine = scratch + part * chunks * KEYS * VALUES + tile
    state = tl.zeros((KEYS, VALUES), dtype=real)
    if initial is not None:
        state = tl.load(initial + square, mask=square_mask, other=0.0)
    for i in range(chunks):
        tl.store(mine + i * KEYS * VALUES, state)
        start = i * BLOCK
        t = (start + r).to(tl.int64)
        t_mask = t < length
        _, _, write, through = _decays(rate, run, sample, start, length, BLOCK)
        ks = _rows(k, sample, head, t, t_mask, d, d_mask, k_batch, k_head, k_time, k_column).to(real)
        vs = _rows(v, sample, head, t, t_mask, e, e_mask, v_batch, v_head, v_time, v_column).to(real)
        state = state * through + tl.dot(tl.trans(ks * write[:, None]), vs, input_precision=PRECISION)
    tl.debug_barrier()  # what was stored above is read below
    carry = tl.zeros((KEYS, VALUES), dtype=real)
    if grad_last is not None:
        carry = tl.load(grad_last + square, mask=square_mask, other=0.0)
    moved = tl.zeros((BLOCK,), dtype=real)
    moved_states = tl.zeros((KEYS,), dtype=real)
    for j in range(chunks):
        i = chunks - 1 - j
        start = i * BLOCK
        t = (start + r).to(tl.int64)
        t_mask = t < length
        pair, read, write, through = _decays(rate, run, sample, start, length, BLOCK)
        state = tl.load(mine + i * KEYS * VALUES)
        qs = _rows(q, sample, head, t, t_mask, d, d_mask, q_batch, q_head, q_time, q_column).to(real)
        ks = _rows(k, sample, head, t, t_mask, d, d_mask, k_batch, k_head, k_time, k_column).to(real)
        vs = _rows(v, sample, head, t, t_mask, e, e_mask, v_batch, v_head, v_time, v_column).to(real)
        place = (line * length + t[:, None]) * values + e[None, :]
        place_mask = t_mask[:, None] & e_mask[None, :]
        go = tl.load(grad_out + place, mask=place_mask, other=0.0).to(real)
        scores = tl.dot(qs, tl.trans(ks), input_precision=PRECISION) * pair
        grad_scores = tl.dot(go, tl.trans(vs), input_precision=PRECISION)
        if grad_slope is not None:
            apart = tl.maximum(r[:, None] - r[None, :], 0)
            moved += tl.sum(apart * scores * grad_scores, axis=1)
        grad_scores *= pair
        from_state = tl.dot(go, tl.trans(state), input_precision=PRECISION) * read[:, None]
        into_state = tl.dot(vs, tl.trans(carry), input_precision=PRECISION) * write[:, None]
        gq = tl.dot(grad_scores, ks, input_precision=PRECISION) + from_state
        gk = tl.dot(tl.trans(grad_scores), qs, input_precision=PRECISION) + into_state
        gv = tl.dot(tl.trans(scores), go, input_precision=PRECISION)
        gv += tl.dot(ks, carry, input_precision=PRECISION) * write[:, None]
        tl.store(grad_v + place, gv.to(grad_v.dtype.element_ty), mask=place_mask)
        row = (part * length + t[:, None]) * keys + d[None, :]
        row_mask = t_mask[:, None] & d_mask[None, :]
        tl.store(grad_q + row, gq.to(grad_q.dtype.element_ty), mask=row_mask)
        tl.store(grad_k + row, gk.to(grad_k.dtype.element_ty), mask=row_mask)
        if grad_slope is not None:
            size = tl.minimum(BLOCK, length - start)
            moved += (r + 1) * tl.sum(qs * from_state, axis=1)
            moved += tl.maximum(size - 1 - r, 0) * tl.sum(ks * into_state, axis=1)
            moved_states += size * through * tl.sum(state * carry, axis=1)
        carry = carry * through + tl.dot(tl.trans(qs * read[:, None]), go, input_precision=PRECISION)
    if grad_slope is not None:
        tl.store(grad_slope + part, -tl.sum(moved, axis=0) - tl.sum(moved_states, axis=0))
    if grad_initial is not None:
        tl.store(grad_initial + square, carry, mask=square_mask)


def _inputs(
    q: Tensor, k: Tensor, v: Tensor, slope: Tensor, state: Tensor | None, run: Tensor | None
) -> tuple[dict[str, Tensor | None], dict[str, int | str]]:
    """Tensors by name as the kernels take them, and sizes, strides and flags."""
    real = sum_dtype(q.dtype)
    tensors = {"q": q, "k": k, "v": v, "slope": slope.to(real).contiguous()}
    tensors["initial"] = None if state is None else state.to(real).contiguous()
    tensors["run"] = None if run is None else run.contiguous()
    sizes: dict[str, int | str] = {"length": q.shape[2], "heads": q.shape[1]}
    sizes |= {"keys": q.shape[3], "values": v.shape[3], "PRECISION": precision(q.dtype)}
    for name, m in (("q", q), ("k", k), ("v", v)):
        axes = (f"{name}_batch", f"{name}_head", f"{name}_time", f"{name}_column")
        sizes |= dict(zip(axes, m.stride(), strict=True))
    # Products have at least 16 rows and columns.
    width = max(16, power_of_two(q.shape[3]))
    sizes |= {"KEYS": width, "VALUES": min(VALUES, max(16, power_of_two(v.shape[3])))}
    return tensors, sizes | {"BLOCK": min(BLOCK, CHUNK_BYTES // (width * real.itemsize)), "num_stages": 1}


def _grid(q: Tensor, v: Tensor, sizes: dict[str, int | str]) -> tuple[int, int]:
    return q.shape[0] * q.shape[1], triton.cdiv(v.shape[3], sizes["VALUES"])


def _forward(
    q: Tensor, k: Tensor, v: Tensor, slope: Tensor, state: Tensor | None, run: Tensor | None,
    block: int, return_state: bool, learn_slope: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out, last = _shapes(q, k, v, slope, state, run, block, return_state, learn_slope)
    tensors, sizes = _inputs(q, k, v, slope, state, run)
    _forward_kernel[_grid(q, v, sizes)](**tensors, out=out, last=last if return_state else None, **sizes)
    return out, last


def _backward(
    grad_out: Tensor, grad_last: Tensor, q: Tensor, k: Tensor, v: Tensor, slope: Tensor, state: Tensor | None,
    run: Tensor | None, block: int, return_state: bool, learn_slope: bool,
) -> Results:  # fmt: skip
    if torch.is_grad_enabled():  # to be differentiated once more: by what autograd sees through
        return backward(grad_out, grad_last, q, k, v, slope, state, run, block, return_state, learn_slope)
    tensors, sizes = _inputs(q, k, v, slope, state, run)
    real, grid = sum_dtype(q.dtype), _grid(q, v, sizes)
    lines, parts = grid

    def room(*shape: int, dtype: torch.dtype = real) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=q.device)

    found = {name: room(parts, *q.shape, dtype=q.dtype if parts == 1 else real) for name in ("grad_q", "grad_k")}
    found |= {"grad_v": room(*v.shape, dtype=v.dtype), "grad_initial": None if state is None else room(*state.shape)}
    found["grad_slope"] = room(parts, q.shape[0], q.shape[1]) if learn_slope else None
    scratch = room(parts * lines, triton.cdiv(q.shape[2], sizes["BLOCK"]), sizes["KEYS"], sizes["VALUES"])
    inward = {"grad_out": grad_out.contiguous()}
    inward["grad_last"] = grad_last.to(real).contiguous() if return_state else None
    _backward_kernel[grid](**inward, **tensors, scratch=scratch, **found, **sizes)
    return (
        found["grad_q"][0] if parts == 1 else found["grad_q"].sum(0),
        found["grad_k"][0] if parts == 1 else found["grad_k"].sum(0),
        found["grad_v"],
        found["grad_slope"].sum((0, 1)) if learn_slope else torch.zeros_like(slope),
        found["grad_initial"],
        None,
    )


def _shapes(
    q: Tensor, k: Tensor, v: Tensor, slope: Tensor, state: Tensor | None, run: Tensor | None,
    block: int, return_state: bool, learn_slope: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    after = (*q.shape[:2], q.shape[3], v.shape[3]) if return_state else (0,)
    return torch.empty(v.shape, dtype=v.dtype, device=v.device), slope.new_empty(after)


#: As :func:`foveate.ops.linear_attention_chunks.chunked`, for what :func:`fits`; ``block`` is not read.
linear_attention_triton = handwritten(
    "linear_attention_triton",
    "Tensor q, Tensor k, Tensor v, Tensor slope, Tensor? state, Tensor? run, "
    "int block, bool return_state, bool learn_slope",
    outputs=2,
    extras=0,
    forward=_forward,
    backward=_backward,
    shapes=_shapes,
)
