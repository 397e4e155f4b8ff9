"""Sigmoid attention through its CPU kernel; what it is stands in :mod:`foveate.ops.sigmoid_attention`.

The kernel is that of :mod:`.block_sparse_attention`, which takes all keys where it is told of no blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..handwritten import Results, handwritten
from ..linear import transformed
from . import SCALARS, call, fresh, softmax_attention, takes, through_autograd
from .block_sparse_attention import of_bias, prepared, run_backward

#: Whether PyTorch's products are slow here: the processors for which "auto" takes the kernel of softmax attention.
PAYS = softmax_attention.PAYS
#: Queries, and multiplications, from which "auto" takes the kernel.
FROM_QUERIES, FROM_WORK = 32, 2**20
#: Queries of a tile in the kernel.
TILE = 64


def fits(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None, mask: Tensor | None, segments: Tensor | None) -> bool:
    """Whether the kernel takes these: no slopes and documents, masks of keys alone, and several queries on the CPU."""
    if slopes is not None or segments is not None or q.dtype not in SCALARS or q.shape[2] == 1:
        return False
    return takes(q, k, v, mask) and (mask is None or mask.shape[1] == mask.shape[2] == 1)


def pays(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None, mask: Tensor | None, segments: Tensor | None) -> bool:
    """Whether "auto" takes the kernel: where it :func:`fits` and is faster, by the processor and sizes alone."""
    batch, heads, length, width = q.shape
    if not PAYS or length < FROM_QUERIES or (not torch.compiler.is_compiling() and transformed()):
        return False
    work = batch * heads * length * k.shape[2] * (width + v.shape[-1])
    return work >= FROM_WORK and fits(q, k, v, slopes, mask, segments)


def _options(left: int, right: int) -> dict[str, Any]:
    return {"sigmoid": True, "block_q": TILE, "block_k": TILE, "left": left, "right": right}


def _forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: Tensor, mask: Tensor | None, left: int, right: int, _: bool
) -> tuple[Tensor]:
    (out,) = map(fresh, _shapes(q, k, v))
    arguments, _given = prepared(q, k, v, mask, bias, float(scale), 1, out=out, **_options(left, right))
    call("foveate_block_sparse_attention", arguments, 0)
    return (out,)


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    left: int,
    right: int,
    learned: bool,
    out: Tensor,
) -> Results:
    if torch.is_grad_enabled():  # to be differentiated once more: by what autograd sees through
        definition = lambda *m: (_definition(m, mask, left, right),)  # noqa: E731
        return [*through_autograd(definition, (q, k, v, bias, scale), (grad,)), None]
    options = {"out": out, "grad_out": grad, **_options(left, right)}
    grad_q, grad_k, grad_v, sums = run_backward(q, k, v, mask, bias, float(scale), **options)
    of_scale = torch.zeros_like(scale)
    if learned:  # scores are scale times products, whose gradients with the queries are those of q but for the scale
        of_scale += (grad_q.double() * q.double()).sum() / scale
    return grad_q, grad_k, grad_v, of_bias(sums, bias), of_scale, None


def _definition(given: Sequence[Tensor], mask: Tensor | None, left: int, right: int) -> Tensor:
    from ..sigmoid_attention import _places, _reference  # which imports this file

    q, k, v, bias, scale = given
    q, k, v = (m.transpose(1, 2) for m in (q, k, v))
    here, there = (m[None] for m in _places(q, k))
    mask = None if mask is None else mask[:, None, None]
    return _reference(q, k, v, bias, scale, None, mask, None, here, there, left, right, 1, True)[0].transpose(1, 2)


def _shapes(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor]:
    return (torch.empty((*q.shape[:3], v.shape[3]), dtype=v.dtype, device=v.device),)


_kernel = handwritten(
    "sigmoid_attention_native",
    "Tensor q, Tensor k, Tensor v, Tensor bias, Tensor scale, Tensor? mask, int left, int right, bool learned",
    outputs=1,
    extras=0,
    forward=_forward,
    backward=_backward,
    shapes=_shapes,
    reads_outputs=True,
)


def sigmoid_attention_native(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    scale: Tensor,
    slopes: None,
    mask: Tensor | None,
    segments: None,
    positions: Tensor,
    key_positions: Tensor,
    left: int,
    right: int,
    block: int,
    learned: bool,
) -> tuple[Tensor]:
    """As the tiled form of :func:`foveate.ops.sigmoid_attention.sigmoid_attention`, for what :func:`fits`.

    Time comes before heads in the kernel's tensors: projections then need no copy, nor do outputs to be merged.
    """
    mask = None if mask is None else mask[:, 0, 0]
    out = _kernel(*(m.transpose(1, 2) for m in (q, k, v)), bias, scale, mask, left, right, learned)[0]
    return (out.transpose(1, 2),)
