"""Attention to selected keys: blocks, clusters, what a search or landmarks find."""

from __future__ import annotations

import math
from dataclasses import replace

from ..cost import Cost
from .formulas import formula
from .pairs import attention_cost, visible_pairs


@formula("block_sparse_attention")
def block_sparse_attention(
    *,
    pairs: int,
    length: int,
    d: int,
    batch: int = 1,
    heads: int = 1,
    key_heads: int | None = None,
    key_length: int | None = None,
    e: int | None = None,
) -> Cost:
    """``pairs``: that see each other, of all samples and heads (``foveate.ops.block_sparse_gather.visible_pairs``)."""
    rows, keys = batch * heads * length, batch * (key_heads or heads) * (key_length or length)
    return attention_cost(pairs, rows, keys, d, d if e is None else e, rows)


@formula("routed_region_attention")
def routed_region_attention(
    *,
    regions: int,
    tokens: int,
    topk: int,
    d: int,
    e: int | None = None,
    key_regions: int | None = None,
    key_tokens: int | None = None,
    heads: int = 1,
    batch: int = 1,
) -> Cost:
    """Each of a region's ``tokens`` reads the ``key_tokens`` of ``topk`` regions (None: as queries have them)."""
    rows, each = batch * heads * regions * tokens, key_tokens or tokens
    keys = batch * heads * (key_regions or regions) * each
    return attention_cost(rows * topk * each, rows, keys, d, d if e is None else e, rows)


@formula("hip_mask")
def hip_mask(
    *, length: int, d: int, mask_k: int, block_size_q: int, block_size_k: int, heads: int = 1, batch: int = 1
) -> Cost:
    """Of each half of m nodes one block of keys against one block of queries, until a node is one block."""
    nodes, products = mask_k // block_size_k, 0
    for end in range(block_size_q, length + block_size_q, block_size_q):
        blocks = -(-min(end, length) // block_size_k)
        rounds = math.ceil(math.log2(-(-blocks // nodes))) if blocks > nodes else 0
        products += rounds * 2 * nodes * block_size_k * block_size_q
    products *= heads * batch
    moved = 2 * length * d * heads * batch
    return Cost(flops=2 * products * d, activation_bytes=4 * moved, elementwise=products, moved_bytes=4 * moved)


@formula("hip_attention")
def hip_attention(
    *,
    length: int,
    d: int,
    mask_k: int,
    block_size_q: int,
    block_size_k: int,
    window: int,
    sinks: int = 0,
    heads: int = 1,
    batch: int = 1,
) -> Cost:
    """The search, and for each query what it may keep, its window and the sinks, as far as there are such keys."""
    found = hip_mask(
        length=length,
        d=d,
        mask_k=mask_k,
        block_size_q=block_size_q,
        block_size_k=block_size_k,
        heads=heads,
        batch=batch,
    )
    most = min(length, mask_k + window + sinks)
    pairs = batch * heads * (most * (most + 1) // 2 + (length - most) * most)
    rows = batch * heads * length
    read = attention_cost(pairs, rows, rows, d, d, kept=rows)
    return replace(
        read,
        flops=read.flops + found.flops,
        elementwise=read.elementwise + found.elementwise,
    )


@formula("routing_attention")
def routing_attention(
    *, length: int, clusters: int, window: int, d: int, e: int, heads: int = 1, batch: int = 1, causal: bool = False
) -> Cost:
    """Each set of ``window`` tokens attends to itself; what several sets say of a token is averaged."""
    sets, members = batch * heads * clusters, min(window, length)
    pairs, rows = sets * visible_pairs(members, members, causal), sets * members
    cost = attention_cost(pairs, rows, rows, d, e, rows)
    return replace(cost, elementwise=cost.elementwise + rows * e + batch * heads * length * e)


@formula("cluster_window_attention")
def cluster_window_attention(
    *, length: int, clusters: int, window: int, d: int, e: int, heads: int = 1, batch: int = 1
) -> Cost:
    """Each query sees its window of its cluster, as far as it reaches; clusters that are equally large."""
    rows, pairs = batch * heads * length, 0
    for i in range(clusters):
        members = length // clusters + (i < length % clusters)
        short = min(members, window)
        pairs += short * (short + 1) // 2 + (members - short) * window
    return attention_cost(batch * heads * pairs, rows, rows, d, e, rows)


@formula("local_block_attention")
def local_block_attention(
    *, length: int, block: int, d: int, e: int, back: int = 1, ahead: int = 0, heads: int = 1, batch: int = 1,
    causal: bool = True,
) -> Cost:  # fmt: skip
    """Each query sees its block and its neighbours, as far as there are any."""
    pairs = 0
    for start in range(0, length, block):
        here = min(block, length - start)
        behind = min(length - start - here, ahead * block)
        pairs += visible_pairs(here, here, causal) + here * (min(start, back * block) + behind)
    rows = batch * heads * length
    return attention_cost(batch * heads * pairs, rows, rows, d, e, rows)


@formula("landmark_attention")
def landmark_attention(*, length: int, block_size: int, d: int, e: int, heads: int = 1, batch: int = 1) -> Cost:
    """Causal attention to tokens, and to the landmarks of closed blocks, whose values are not read.

    A landmark stands behind every ``block_size`` tokens and counts in ``length``.
    """
    pairs = visible_pairs(length, length, True)
    landmarks, width = length // (block_size + 1), block_size + 1
    # Landmark number i stands at (i + 1) width - 1 and is seen from there on, by nobody of its own block.
    seen = sum(length - (i + 1) * width for i in range(landmarks))
    own = landmarks  # a landmark as a query does not see itself
    rows = batch * heads * length
    cost = attention_cost(batch * heads * (pairs - own), rows, rows, d, e, 2 * rows)
    return replace(cost, flops=cost.flops - 2 * batch * heads * seen * e)


@formula("landmark_grouped_softmax")
def landmark_grouped_softmax(*, length: int, key_length: int, heads: int = 1, batch: int = 1) -> Cost:
    """An exponential for each score, the largest and the sum of each group, and a landmark's share."""
    scores = batch * heads * length * key_length
    return Cost(elementwise=5 * scores, exps=scores, activation_bytes=4 * scores, moved_bytes=8 * scores)


@formula("pooled_attention_target")
def pooled_attention_target(*, length: int, d: int, block_size: int, batch: int = 1, heads: int = 1) -> Cost:
    """The products of causal pairs, an exponential and two comparisons for each; one number for a pair of blocks."""
    pairs = batch * heads * visible_pairs(length, length, True)
    moved = batch * heads * (2 * length * d + (-(-length // block_size)) ** 2)
    return Cost(flops=2 * pairs * d, elementwise=4 * pairs, exps=pairs, moved_bytes=4 * moved)
