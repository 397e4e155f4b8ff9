"""Softmax attention through its CPU kernel; what it is stands in :mod:`foveate.ops.softmax_attention`."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int64, c_void_p

import torch
from torch import Tensor

from ..handwritten import Results, handwritten, sum_dtype
from ..linear import SLOW_MKL, transformed
from . import SCALARS, address, call, chosen, fresh, rows, takes, through_autograd

#: Queries of a tile in the kernel. What one tile reads is divided into parts of this many keys, up to so many.
TILE, PART_KEYS, MOST_PARTS = 64, 2048, 16
#: Backward, heads are divided into parts of at least this many queries where there are fewer heads than MOST_PARTS.
#: Results depend on the number of parts to rounding, so that it must not depend on the threads.
PART_QUERIES = 512

#: Whether PyTorch's form is slow here: where MKL, which it multiplies with, leaves the processor's AVX-512 unused.
#: On AVX2 the kernel was measured to be no faster on short sequences, or not at all.
PAYS = chosen() == "v4" and SLOW_MKL
#: Queries, pairs of each head, and multiplications from which it was no slower there, forward or backward.
FROM_QUERIES, FROM_PAIRS, FROM_WORK = 32, 2**11, 2**22
#: Whether MKL uses AVX-512 here, and how many pairs, in how narrow heads, the kernel then is faster with: forward, and
#: causal backward too.
PAYS_BESIDE_MKL = chosen() == "v4" and not SLOW_MKL
BESIDE_MKL_PAIRS, BESIDE_MKL_WIDTH = 2**14, 64


class _Arguments(ctypes.Structure):
    """``SoftmaxArguments`` of kernels/softmax_attention.h, field for field."""

    _numbers = ["scalar", "batch", "heads", "length", "keys", "width", "value_width", "causal", "parts"]
    _numbers += [f"{m}_{n}" for m in ("q", "k", "v", "grad") for n in ("batch", "time", "head")]
    _numbers += ["mask_batch", "mask_key"]
    _numbers += [f"{m}_{n}" for m in ("pairs", "bias") for n in ("batch", "head", "query", "key")]
    _pointers = "q k v mask pairs bias out lse rest grad_out grad_q grad_k grad_v"
    _fields_ = [(n, c_int64) for n in _numbers]
    _fields_ += [("scale", c_double)]
    _fields_ += [(n, c_void_p) for n in _pointers.split()]


def fits(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None) -> bool:
    """Whether the kernel takes these: real numbers on the CPU, in a storage type that it knows, and several queries.

    A single query is a step of a stream, which enters no kernel. The gradient of a bias is torch's to find.
    """
    if q.dtype not in SCALARS or q.shape[2] == 1 or not takes(q, k, v, mask, bias):
        return False
    return bias is None or not (bias.requires_grad and torch.is_grad_enabled())


def pays(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, causal: bool) -> bool:
    """Whether "auto" takes the kernel: where it :func:`fits` and is faster, by the processor and sizes alone."""
    batch, heads, length, width = q.shape
    if length < FROM_QUERIES or (not torch.compiler.is_compiling() and transformed()):
        return False
    pairs, work = length * k.shape[2], batch * heads * length * k.shape[2] * (width + v.shape[-1])
    if PAYS:
        enough = pairs >= FROM_PAIRS
    else:
        forward_only = not (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad))
        narrow = max(width, v.shape[-1]) <= BESIDE_MKL_WIDTH
        enough = PAYS_BESIDE_MKL and pairs >= BESIDE_MKL_PAIRS and narrow and (causal or forward_only)
    return enough and work >= FROM_WORK and fits(q, k, v, mask, bias)


def _prepared(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    pairs: Tensor | None,
    bias: Tensor | None,
    causal: bool,
    scale: float,
    parts: int,
    **others: Tensor,
) -> tuple[_Arguments, list[Tensor]]:
    """The structure, and the tensors that it points into: keep them while it is used."""
    batch, length, heads, width = q.shape
    keys, value_width, real = k.shape[1], v.shape[-1], sum_dtype(q.dtype)
    q, k, v = rows(q), rows(k), rows(v)
    arguments = _Arguments(
        SCALARS[q.dtype],
        *(batch, heads, length, keys, width, value_width, causal, parts),
        *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]),
        scale=scale,
    )
    given = {"q": q, "k": k, "v": v, **others}
    if mask is not None:
        given["mask"] = mask = mask.expand(batch, keys)
        arguments.mask_batch, arguments.mask_key = mask.stride()
    for name, m in (("pairs", pairs), ("bias", None if bias is None else bias.to(real))):
        if m is not None:
            given[name] = m = m.expand(batch, heads, length, keys)
            for axis, stride in zip(("batch", "head", "query", "key"), m.stride(), strict=True):
                setattr(arguments, f"{name}_{axis}", stride)
    if "grad_out" in given:
        arguments.grad_batch, arguments.grad_time, arguments.grad_head = given["grad_out"].stride()[:3]
    for name, m in given.items():
        setattr(arguments, name, address(m))
    return arguments, list(given.values())


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    pairs: Tensor | None,
    bias: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    out, lse, rest = map(fresh, _shapes(q, k, v, mask, pairs, bias, causal, scale))
    parts = min(MOST_PARTS, max(1, k.shape[1] // PART_KEYS)) if q.shape[1] <= TILE else 1
    arguments, _given = _prepared(q, k, v, mask, pairs, bias, causal, scale, parts, out=out, lse=lse, rest=rest)
    call("foveate_softmax_attention", arguments, 0)
    return out, lse, rest


def _backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    pairs: Tensor | None,
    bias: Tensor | None,
    causal: bool,
    scale: float,
    out: Tensor,
    lse: Tensor,
    rest: Tensor,
) -> Results:
    if torch.is_grad_enabled():  # to be differentiated once more: by what autograd sees through
        definition = lambda q, k, v: (_definition(q, k, v, mask, pairs, bias, causal, scale),)  # noqa: E731
        return [*through_autograd(definition, (q, k, v), (grad_out,)), None, None, None]
    batch, length, heads, _ = q.shape
    parts = max(1, min(MOST_PARTS // (batch * heads), length // PART_QUERIES))
    real = sum_dtype(q.dtype)
    grad_q = fresh(torch.empty(q.shape, dtype=q.dtype))
    grad_k, grad_v = (fresh(torch.empty(parts, *m.shape, dtype=real)) for m in (k, v))
    others = {
        "out": out,
        "lse": lse,
        "rest": rest,
        "grad_out": rows(grad_out),
        "grad_q": grad_q,
        "grad_k": grad_k,
        "grad_v": grad_v,
    }
    arguments, _given = _prepared(q, k, v, mask, pairs, bias, causal, scale, parts, **others)
    call("foveate_softmax_attention", arguments, 1)
    grad_k, grad_v = (m[0] if parts == 1 else m.sum(0) for m in (grad_k, grad_v))
    return grad_q, grad_k, grad_v, None, None, None


def _definition(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    pairs: Tensor | None,
    bias: Tensor | None,
    causal: bool,
    scale: float,
) -> Tensor:
    from ..softmax_attention import reference  # which imports this file

    mask = None if mask is None else mask[:, None, None]
    visible = mask if pairs is None else pairs
    q, k, v = (m.transpose(1, 2) for m in (q, k, v))
    return reference(q, k, v, causal, visible, bias, scale).transpose(1, 2)


def _shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    pairs: Tensor | None,
    bias: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, heads, _ = q.shape
    out = torch.empty(batch, length, heads, v.shape[-1], dtype=v.dtype, device=v.device)
    lse = torch.empty(batch, heads, length, dtype=sum_dtype(q.dtype), device=q.device)
    # What rounding to 16 bits takes from outputs: gradients of scores are differences with them.
    rest = torch.empty_like(out) if v.dtype == torch.bfloat16 else v.new_empty(0)
    return out, lse, rest


_kernel = handwritten(
    "softmax_attention_native",
    "Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? pairs, Tensor? bias, bool causal, float scale",
    outputs=1,
    extras=2,
    forward=_forward,
    backward=_backward,
    shapes=_shapes,
    reads_outputs=True,
    constants=("bias",),
)


def softmax_attention_native(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None, bias: Tensor | None, scale: float
) -> Tensor:
    """As :func:`foveate.ops.softmax_attention.fused`, for what :func:`fits`.

    Time comes before heads in the kernel's tensors: projections then need no copy, nor do outputs to be merged.
    """
    pairs = mask
    if mask is not None and mask.shape[1] == mask.shape[2] == 1:
        mask, pairs = mask[:, 0, 0], None
    elif mask is not None:
        mask = None
    q, k, v = (m.transpose(1, 2) for m in (q, k, v))
    return _kernel(q, k, v, mask, pairs, bias, causal, float(scale))[0].transpose(1, 2)
