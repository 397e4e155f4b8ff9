"""Block-sparse attention through its CPU kernel; what it is stands in :mod:`foveate.ops.block_sparse_attention`."""

from __future__ import annotations

import ctypes
import math
from ctypes import c_double, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from ..block_sparse_gather import shapes, through_definition
from ..handwritten import Results, handwritten, sum_dtype
from ..linear import transformed
from . import SCALARS, address, call, fresh, rows, softmax_attention, takes

#: Backward, heads of keys are divided into parts of at least this many queries, up to so many parts in all and so many
#: for each head of queries that they serve: every part has gradients of its own. Results depend on the number of parts
#: to rounding, so that it must not depend on the threads.
PART_QUERIES, MOST_PARTS, EACH = 512, 8, 2

#: Whether PyTorch's products are slow here: the processors for which "auto" takes the kernel of softmax attention.
PAYS = softmax_attention.PAYS
#: Queries, and numbers of queries and keys that are gathered for each, from which "auto" takes the kernel.
FROM_QUERIES, FROM_NUMBERS = 16, 2**14


class Arguments(ctypes.Structure):
    """``ListedArguments`` of kernels/listed_attention.h, field for field."""

    _numbers = ["scalar", "batch", "heads", "key_heads", "length", "keys", "width", "value_width"]
    _numbers += ["block_q", "block_k", "most", "causal", "window", "sinks", "left", "right", "sigmoid", "parts"]
    _numbers += [f"{m}_{n}" for m in ("q", "k", "v", "grad") for n in ("batch", "time", "head")]
    _numbers += ["mask_batch", "mask_key"]
    _numbers += [f"blocks_{n}" for n in ("batch", "head", "row", "column")]
    _numbers += [f"{m}_{n}" for m in ("indices", "counts") for n in ("batch", "head", "row")]
    _pointers = "q k v mask blocks indices counts bias out lse rest largest grad_out grad_lse"
    _pointers += " grad_q grad_k grad_v grad_bias"
    _fields_ = [(n, c_int64) for n in _numbers]
    _fields_ += [("scale", c_double)]
    _fields_ += [(n, c_void_p) for n in _pointers.split()]


def fits(q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, counts: Tensor | None, mask: Tensor | None) -> bool:
    """Whether the kernel takes these: real numbers on the CPU, in a storage type that it knows, and several queries."""
    return q.dtype in SCALARS and q.shape[2] > 1 and takes(q, k, v, blocks, counts, mask)


def pays(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, counts: Tensor | None, mask: Tensor | None, block_k: int
) -> bool:
    """Whether "auto" takes the kernel: where it :func:`fits` and is faster, by the processor and sizes alone."""
    if not PAYS or q.shape[2] < FROM_QUERIES or (not torch.compiler.is_compiling() and transformed()):
        return False
    gathered = k.shape[2] if counts is None else blocks.shape[3] * block_k
    return q.shape[2] * gathered >= FROM_NUMBERS and fits(q, k, v, blocks, counts, mask)


def prepared(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, scale: float, parts: int, **others: Any
) -> tuple[Arguments, list[Tensor]]:
    """The structure, and the tensors that it points into: keep them while it is used.

    Args:
        q, k, v: ``(batch, length, heads, width)``.
        mask: bool ``(batch or 1, keys)``.
        bias: numbers that can be expanded to one for each head.
        others: numbers, and tensors for pointers, of the structure; what is None or empty is a null pointer.
    """
    (batch, length, heads, width), (keys, key_heads) = q.shape, k.shape[1:3]
    q, k, v = rows(q), rows(k), rows(v)
    given = {"q": q, "k": k, "v": v}
    arguments = Arguments(SCALARS[q.dtype], batch, heads, key_heads, length, keys, width, v.shape[-1])
    arguments.scale, arguments.parts = scale, parts
    if mask is not None:
        given["mask"] = mask = mask.expand(batch, keys)
        arguments.mask_batch, arguments.mask_key = mask.stride()
    if bias is not None:
        given["bias"] = bias.to(sum_dtype(q.dtype)).expand(heads).contiguous()
    for name, value in others.items():
        if isinstance(value, Tensor):
            given |= {name: value} if value.numel() else {}
        elif value is not None:
            setattr(arguments, name, int(value))
    if "grad_out" in given:
        given["grad_out"] = rows(given["grad_out"])
    for name, key in (("q", "q"), ("k", "k"), ("v", "v"), ("grad", "grad_out")):
        if key in given:
            for axis, stride in zip(("batch", "time", "head"), given[key].stride(), strict=False):
                setattr(arguments, f"{name}_{axis}", stride)
    for name, m in given.items():
        setattr(arguments, name, address(m))
    return arguments, list(given.values())


def run_backward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, scale: float, **others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, and the sums of those of scores, ``(batch, heads)``; empty for a softmax.

    Arguments as :func:`prepared` has them.
    """
    batch, length, heads, _ = q.shape
    key_heads, real = k.shape[2], sum_dtype(q.dtype)
    parts = max(1, min(MOST_PARTS // (batch * key_heads), EACH * heads // key_heads, length // PART_QUERIES))
    room = {"grad_q": fresh(torch.empty(q.shape, dtype=q.dtype))}
    room |= {f"grad_{n}": fresh(torch.empty(parts, *m.shape, dtype=real)) for n, m in (("k", k), ("v", v))}
    room["grad_bias"] = torch.empty((0,) if bias is None else (parts, batch, heads), dtype=real)
    arguments, _given = prepared(q, k, v, mask, bias, scale, parts, **others, **room)
    call("foveate_block_sparse_attention", arguments, 1)
    grad_k, grad_v = (room[n][0] if parts == 1 else room[n].sum(0) for n in ("grad_k", "grad_v"))
    return room["grad_q"], grad_k, grad_v, room["grad_bias"].sum(0)


def of_bias(sums: Tensor, bias: Tensor) -> Tensor:
    """The gradient of one bias, or of one for each head, from sums ``(batch, heads)``."""
    return sums.sum().expand(bias.shape) if bias.numel() == 1 else sums.sum(0)


def _listed(q: Tensor, blocks: Tensor, counts: Tensor | None, *rest: Any) -> dict[str, Any]:
    """The numbers of the structure, and which blocks are kept: one sample or head for all has stride 0."""
    block_q, block_k, causal, window, sinks, _, sigmoid, _ = rest
    found: dict[str, Any] = {"block_q": block_q, "block_k": block_k, "causal": causal, "window": window}
    found |= {"sinks": sinks, "sigmoid": sigmoid}
    blocks = blocks.expand(q.shape[0], q.shape[2], -1, -1)
    if counts is None:
        axes = zip(("batch", "head", "row", "column"), blocks.stride(), strict=True)
        return {**found, "blocks": blocks, **{f"blocks_{axis}": stride for axis, stride in axes}}
    blocks, counts = rows(blocks), counts.expand(q.shape[0], q.shape[2], -1)
    for name, m in (("indices", blocks), ("counts", counts)):
        found |= {f"{name}_{axis}": m.stride(place) for place, axis in enumerate(("batch", "head", "row"))}
    return {**found, "indices": blocks, "counts": counts, "most": blocks.shape[3]}


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    counts: Tensor | None,
    mask: Tensor | None,
    bias: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    out, lse, largest, remains, binary = map(fresh, _shapes(q, k, v, blocks, counts, mask, bias, *rest))
    others = {"out": out, "lse": binary, "rest": remains, "largest": largest, **_listed(q, blocks, counts, *rest)}
    arguments, _given = prepared(q, k, v, mask, bias if rest[6] else None, rest[5], 1, **others)
    call("foveate_block_sparse_attention", arguments, 0)
    torch.mul(binary, math.log(2), out=lse)
    return out, lse, largest, remains, binary


def _backward(
    grad: Tensor, grad_lse: Tensor, grad_largest: Tensor, q: Tensor, k: Tensor, v: Tensor, *more: Any
) -> Results:
    blocks, counts, mask, bias, *rest, out, _, _, remains, binary = more
    if torch.is_grad_enabled():  # to be differentiated once more: by what autograd sees through
        turned = [m.transpose(1, 2) for m in (grad, q, k, v)]
        found = through_definition(turned[0], grad_lse, *turned[1:], blocks, counts, mask, bias, *rest)
        return [None if m is None else m.transpose(1, 2) for m in found[:3]] + list(found[3:])
    sigmoid = rest[6]
    others = {"out": out, "lse": binary, "rest": remains, "grad_out": grad, "grad_lse": grad_lse.contiguous()}
    others |= _listed(q, blocks, counts, *rest)
    *found, sums = run_backward(q, k, v, mask, bias if sigmoid else None, rest[5], **others)
    return *found, None, None, None, of_bias(sums, bias) if sigmoid else torch.zeros_like(bias)


def _shapes(q: Tensor, k: Tensor, v: Tensor, *given: Any) -> tuple[Tensor, ...]:
    out, lse, largest = shapes(*(m.transpose(1, 2) for m in (q, k, v)), *given)
    out = torch.empty((*q.shape[:3], v.shape[3]), dtype=v.dtype, device=v.device)
    # What rounding to 16 bits takes from outputs: gradients of scores are differences with them.
    remains = torch.empty_like(out) if v.dtype == torch.bfloat16 and lse.numel() else v.new_empty(0)
    # Binary logarithms are the kernel's own: converted to and fro, those of large scores would be off by more than one.
    return out, lse, largest, remains, torch.empty_like(lse)


_kernel = handwritten(
    "block_sparse_attention_native",
    "Tensor q, Tensor k, Tensor v, Tensor blocks, Tensor? counts, Tensor? mask, Tensor bias, int block_q, int block_k, "
    "bool causal, int window, int sinks, float scale, bool sigmoid, bool block_max",
    outputs=3,
    extras=2,
    forward=_forward,
    backward=_backward,
    shapes=_shapes,
    reads_outputs=True,
)


def block_sparse_attention_native(q: Tensor, k: Tensor, v: Tensor, *given: Any) -> tuple[Tensor, ...]:
    """As :func:`foveate.ops.block_sparse_gather.gathered`, for what :func:`fits`.

    Time comes before heads in the kernel's tensors: projections then need no copy, nor do outputs to be merged.
    """
    out, lse, largest = _kernel(*(m.transpose(1, 2) for m in (q, k, v)), *given)
    return out.transpose(1, 2), lse, largest
