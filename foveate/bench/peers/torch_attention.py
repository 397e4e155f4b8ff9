"""Torch's own attention: SDPA, with a mask where the case has one, and compiled flex attention."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cases import Problem
from . import Contender, Unfit, peer

#: A dense mask above this many bytes is not made.
LARGEST_MASK = 2**31


@peer("SDPA", of=("softmax_core", "softmax_causal_core"))
def sdpa(problem: Problem) -> Contender:
    causal = bool(problem.sizes.get("causal"))
    return Contender(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal))


@peer("SDPA with a mask", of=("softmax_prefill_core", "softmax_masked_core"))
def masked_sdpa(problem: Problem) -> Contender:
    length, tokens = problem.inputs["q"].shape[2], problem.sizes["length"]
    seen = torch.ones(length, tokens, dtype=torch.bool).tril(tokens - length)
    if "mask" in problem.inputs:
        seen = seen & problem.inputs["mask"][:, None, None]
    numbers = torch.where(seen, 0.0, -math.inf)  # from a bool mask SDPA makes these at every call
    return Contender(lambda q, k, v, mask=None: F.scaled_dot_product_attention(q, k, v, attn_mask=numbers))


@peer("causal SDPA (softmax)", of=("linear_attention",), same=False)
def sdpa_for_linear(problem: Problem) -> Contender:
    return Contender(lambda q, k, v, slope: F.scaled_dot_product_attention(q, k, v, is_causal=True))


@peer("SDPA (softmax)", of=("sigmoid_core", "sigmoid_dense_core"), same=False)
def sdpa_for_sigmoid(problem: Problem) -> Contender:
    return sdpa(problem)


@peer("causal SDPA (all blocks)", of=("block_sparse_core",), same=False)
def sdpa_for_blocks(problem: Problem) -> Contender:
    return Contender(lambda q, k, v, blocks: F.scaled_dot_product_attention(q, k, v, is_causal=True))


@peer("flex attention", of=("block_sparse_core",))
def block_flex(problem: Problem) -> Contender:
    """Kept blocks given as such: those of the diagonal are masked inside, all others are whole."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    torch._dynamo.reset()
    whole = problem.inputs["blocks"].tril(-1)
    n, block = whole.shape[-1], problem.sizes["block"]
    cut = torch.eye(n, dtype=torch.bool).expand_as(whole)
    lists = [f(m) for m in (cut, whole) for f in (_counts, _numbers)]
    mask = BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=block, mask_mod=lambda b, h, i, j: i >= j)
    compiled: Any = torch.compile(flex_attention, dynamic=False)
    return Contender(
        lambda q, k, v, blocks: compiled(q, k, v, block_mask=mask),
        no_backward="flex attention has no backward pass on CPUs",
    )


def _counts(blocks: Tensor) -> Tensor:
    return blocks.sum(-1, dtype=torch.int32)


def _numbers(blocks: Tensor) -> Tensor:
    return torch.argsort((~blocks).to(torch.uint8), stable=True, dim=-1).to(torch.int32)


def _flex(mask_mod: Any, tokens: int, block: int, queries: int | None = None) -> Contender:
    """Compiled flex attention over flat tokens, of as many queries unless told.

    ``mask_mod`` None: everything is visible.
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    # Compiled anew for each problem: the cache of another size would fill up and end in the uncompiled form.
    torch._dynamo.reset()
    mask = (
        None if mask_mod is None else create_block_mask(mask_mod, None, None, queries or tokens, tokens, "cpu", block)
    )
    compiled: Any = torch.compile(flex_attention, dynamic=False)

    def call(q: Tensor, k: Tensor, v: Tensor, **visible: Tensor) -> Tensor:  # which is in the mask already
        shape = q.shape
        q, k, v = (m.flatten(2, -2) for m in (q, k, v))
        return compiled(q, k, v, block_mask=mask).view(shape)

    return Contender(call, no_backward="flex attention has no backward pass on CPUs")


@peer("flex attention", of=("softmax_core", "softmax_causal_core"))
def flex(problem: Problem) -> Contender:
    causal = (lambda b, h, i, j: i >= j) if problem.sizes["causal"] else None
    return _flex(causal, problem.sizes["length"], 64)


@peer("flex attention", of=("softmax_prefill_core", "softmax_masked_core"))
def masked_flex(problem: Problem) -> Contender:
    length, tokens = problem.inputs["q"].shape[2], problem.sizes["length"]
    real = int(problem.inputs["mask"].sum()) if "mask" in problem.inputs else tokens
    return _flex(lambda b, h, i, j: (i + (tokens - length) >= j) & (j < real), tokens, 64, length)


def _axis(i: Tensor, j: Tensor, size: int, window: int, dilation: int, stride: int, causal: bool) -> Tensor:
    """Whether query ``i`` sees key ``j`` along one axis, by the rules of neighborhood attention.

    Tokens that are ``dilation`` apart form a group, and a window lies in one. Queries of a stride share the window of
    their leader: the middle one, or the last one if causal. A window that is not causal stays whole at the borders.
    """
    group, place, other = i % dilation, i // dilation, j // dilation
    length = (size - group + dilation - 1) // dilation
    first = place // stride * stride
    if causal:
        leader = torch.minimum(first + stride - 1, length - 1)
        seen = (other > leader - window) & (other <= place)
    else:
        before = window // 2
        leader = torch.minimum(first + stride // 2, length - 1)
        start = torch.minimum((leader - before).clamp(min=0), length - window)
        seen = (other >= start) & (other < start + window)
    return seen & (j % dilation == group)


def neighborhood(problem: Problem) -> Any:
    """``sees(i, j)`` of the problem: whether flat query ``i`` sees flat key ``j``."""
    grid, sizes = problem.sizes["grid"], problem.sizes
    plain = {"dilation": 1, "stride": 1, "causal": False}
    options = [sizes.get(name, (value,) * len(grid)) for name, value in plain.items()]
    rests = [math.prod(grid[axis + 1 :]) for axis in range(len(grid))]
    axes = list(zip(rests, grid, sizes["window"], *options, strict=True))

    def sees(i: Tensor, j: Tensor) -> Tensor:
        seen = (i >= 0) & (j >= 0)
        for rest, size, *window in axes:
            seen = seen & _axis(i // rest % size, j // rest % size, size, *window)
        return seen

    return sees


def _visible(problem: Problem) -> Tensor:
    """:func:`neighborhood` for all pairs, bool ``(tokens, tokens)``."""
    tokens = math.prod(problem.sizes["grid"])
    if tokens**2 * 4 > LARGEST_MASK:
        raise Unfit(f"the dense mask of {tokens:,} tokens would take {tokens**2 * 4 / 2**30:.1f} GiB")
    places = torch.arange(tokens)
    return neighborhood(problem)(places[:, None], places)


def _neighborhood_flex(problem: Problem, block: int) -> Contender:
    sees = neighborhood(problem)
    return _flex(lambda b, h, i, j: sees(i, j), math.prod(problem.sizes["grid"]), block)


@peer("flex attention, block 32", of=("neighborhood_attention_*",))
def neighborhood_flex_32(problem: Problem) -> Contender:
    return _neighborhood_flex(problem, 32)


@peer("flex attention, block 64", of=("neighborhood_attention_*",))
def neighborhood_flex_64(problem: Problem) -> Contender:
    return _neighborhood_flex(problem, 64)


@peer("SDPA, dense mask", of=("neighborhood_attention_*",))
def neighborhood_sdpa(problem: Problem) -> Contender:
    # As numbers: from a bool mask SDPA makes these at every call.
    mask = torch.where(_visible(problem), 0.0, -math.inf)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shape = q.shape
        q, k, v = (m.flatten(2, -2) for m in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).view(shape)

    return Contender(call)


@peer("gather", of=("neighborhood_attention_*",))
def neighborhood_gather(problem: Problem) -> Contender:
    if any(problem.sizes.get("causal", ())):
        raise Unfit("causal windows differ in size: there is nothing even to gather")
    keys, k = math.prod(problem.sizes["window"]), problem.inputs["k"]
    if (gathered := k.numel() * keys * k.element_size()) > LARGEST_MASK:
        raise Unfit(f"the gathered keys would take {gathered / 2**30:.1f} GiB")
    index = _visible(problem).nonzero()[:, 1].view(-1, keys)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shape, scale = q.shape, q.shape[-1] ** -0.5
        q, k, v = (m.flatten(2, -2) for m in (q, k, v))
        weights = torch.einsum("bhnd,bhnkd->bhnk", q * scale, k[:, :, index]).softmax(-1)
        return torch.einsum("bhnk,bhnkd->bhnd", weights, v[:, :, index]).reshape(shape)

    return Contender(call)
