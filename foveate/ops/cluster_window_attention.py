"""Attention of every token to the last members of its own cluster: routing that never looks ahead.

The strictly causal relative of :mod:`foveate.ops.routing_attention`: a token is in one cluster, known from itself
alone, and reads the last ``window`` tokens of that cluster up to itself. Members are laid out one cluster after the
other, each beginning a block of ``window`` places; a query's keys then lie in its own block and the one before.
What a token computes depends on its place inside its cluster, never on how much follows, so that outputs keep every bit
when the future changes. Blocks number at most ``length / window + clusters``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidType, InvalidValue, invalid
from ..registry import register
from .backend import choose
from .handwritten import sum_dtype
from .set_attention import attend, attend_flops, between, clipped


@register("op", "cluster_window_attention", system="routing_transformer")
def cluster_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    clusters: Tensor,
    num_clusters: int,
    window: int,
    *,
    segments: Tensor | None = None,
    scale: float = 1.0,
    rel_k: Tensor | None = None,
    rel_v: Tensor | None = None,
) -> Tensor:
    """Causal attention to the last ``window`` members of the own cluster.

    Args:
        q: ``(batch, heads, length, d)``.
        k: ``(batch, heads, key_length, d)``; the queries are the last ``length`` tokens of ``key_length``.
        v: ``(batch, heads, key_length, e)``.
        clusters: int64 ``(batch, heads, key_length)``, below ``num_clusters``; -1: in no cluster, seen by nobody.
        num_clusters: how many there are.
        window: members that a query sees, its own token among them.
        segments: int64 ``(batch, key_length)``, documents: a query sees members of its own; None: one for all.
        scale: factor on the products.
        rel_k: ``(2 m + 1, d)``, embeddings of distances inside the cluster, clipped at m, added to keys; None: none.
        rel_v: ``(2 m + 1, e)``, added to values.

    Returns:
        ``(batch, heads, length, e)`` in the dtype of ``v``; zeros for queries in no cluster.

    Raises:
        InvalidValue: shapes do not fit, more queries than keys, or a size below 1.
        InvalidType: mixed dtypes, or clusters that are not whole numbers.
    """
    _check(q, k, v, clusters, num_clusters, window)
    if (rel_k is None) != (rel_v is None):
        raise InvalidValue("rel_k and rel_v come together: one of them is missing.")
    return choose(reference, laid_out)(q, k, v, clusters, num_clusters, window, segments, scale, rel_k, rel_v)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    clusters: Tensor,
    num_clusters: int,
    window: int,
    segments: Tensor | None,
    scale: float,
    rel_k: Tensor | None,
    rel_v: Tensor | None,
) -> Tensor:
    """The definition: the whole matrix, in float32 (float64 for float64 input)."""
    precise, length, keys = sum_dtype(q.dtype), q.shape[2], k.shape[2]
    member = F.one_hot(clusters.clamp(min=0), num_clusters) * (clusters >= 0)[..., None]
    rank = (member.cumsum(2) * member).sum(-1)
    age = rank[:, :, -length:, None] - rank[:, :, None, :]
    token = torch.arange(keys, device=q.device)
    visible = (clusters[:, :, -length:, None] == clusters[:, :, None, :]) & (clusters >= 0)[:, :, None, :]
    visible = visible & (token <= token[-length:, None]) & (age < window)
    if segments is not None:
        visible = visible & (segments[:, -length:, None] == segments[:, None, :])[:, None]
    scores = q.to(precise) @ k.to(precise).transpose(-1, -2)
    row = clipped(-age, rel_k)
    if rel_k is not None and row is not None:
        scores = scores + torch.einsum("bhld,bhlkd->bhlk", q.to(precise), rel_k.to(precise)[row])
    empty = ~visible.any(-1, keepdim=True)
    weights = (scores * scale).masked_fill(~(visible | empty), -math.inf).softmax(-1).masked_fill(empty, 0.0)
    o = weights @ v.to(precise)
    if rel_v is not None and row is not None:
        o = o + torch.einsum("bhlk,bhlke->bhle", weights, rel_v.to(precise)[row])
    return o.to(v.dtype)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Where members stand when clusters are laid out in blocks.

    Attributes:
        place: int64 ``(rows, tokens)``: the place of each token; one behind the last block for tokens in no cluster.
        token: int64 ``(rows, blocks, window)``: the token in each place, 0 where there is none.
        rank: int64 ``(rows, blocks, window)``: how many members of its cluster stand before it, -1 where nobody is.
    """

    place: Tensor
    token: Tensor
    rank: Tensor

    @classmethod
    def of(cls, clusters: Tensor, num_clusters: int, window: int) -> Blocks:
        """The layout of clusters ``(rows, tokens)``, as :func:`cluster_window_attention` takes them."""
        rows, tokens = clusters.shape
        label = torch.where(clusters < 0, num_clusters, clusters)
        order = label.argsort(dim=1, stable=True)
        counts = label.new_zeros(rows, num_clusters + 1).scatter_add(1, label, torch.ones_like(label))
        before = counts.cumsum(1) - counts
        needed = (counts + window - 1) // window
        first = needed.cumsum(1) - needed
        ordered = label.gather(1, order)
        rank = torch.arange(tokens, device=label.device) - before.gather(1, ordered)
        blocks = block_count(tokens, num_clusters, window)
        place = torch.where(ordered < num_clusters, first.gather(1, ordered) * window + rank, blocks * window)
        spaces = label.new_zeros(rows, blocks * window + 1)
        token = spaces.scatter(1, place, order)[:, :-1]
        rank = (spaces - 1).scatter(1, place, rank)[:, :-1]
        where = torch.zeros_like(label).scatter(1, order, place)
        return cls(where, token.unflatten(1, (blocks, window)), rank.unflatten(1, (blocks, window)))


def block_count(tokens: int, num_clusters: int, window: int) -> int:
    """Blocks that are enough, however the tokens are spread."""
    return min(tokens, (tokens + num_clusters * (window - 1)) // window)


def laid_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    clusters: Tensor,
    num_clusters: int,
    window: int,
    segments: Tensor | None,
    scale: float,
    rel_k: Tensor | None,
    rel_v: Tensor | None,
) -> Tensor:
    """The fast form; same arguments as :func:`reference`."""
    batch, heads, length = q.shape[:3]
    keys = k.shape[2]
    window = min(window, keys)
    blocks = Blocks.of(clusters.flatten(0, 1), num_clusters, window)
    # Queries of what was read before are not asked for: they are zeros, and their answers are left out.
    q = F.pad(q, (0, 0, keys - length, 0))
    queries, own_k, own_v = (_take(x, blocks.token) for x in (q, k, v))
    read_k, read_v = (torch.cat([F.pad(x[:, :-1], (0, 0, 0, 0, 1, 0)), x], 2) for x in (own_k, own_v))
    age = -between(window, 2 * window, 0, q.device)
    visible = (age >= 0) & (age < window) & (age <= blocks.rank[..., None])
    if segments is not None:
        numbers = segments[:, None].expand(-1, heads, -1).flatten(0, 1)
        numbers = numbers.gather(1, blocks.token.flatten(1)).unflatten(1, blocks.token.shape[1:])
        read = torch.cat([F.pad(numbers[:, :-1], (0, 0, 1, 0)), numbers], 2)
        visible = visible & (numbers[..., None] == read[:, :, None, :])
    distances = clipped(-age, rel_k)
    o = attend(
        queries, read_k, read_v, scale=scale, visible=visible, distances=distances, rel_k=rel_k, rel_v=rel_v
    ).flatten(1, 2)
    o = F.pad(o, (0, 0, 0, 1))  # the place of tokens in no cluster
    place = blocks.place[:, keys - length :, None].expand(-1, -1, o.shape[2])
    return o.gather(1, place).unflatten(0, (batch, heads))


def cluster_window_flops(
    tokens: int, num_clusters: int, window: int, heads: int, d: int, e: int, batch: int = 1, relative: bool = False
) -> int:
    """FLOPs of the products of :func:`laid_out` over so many tokens, those read before included."""
    window = min(window, tokens)
    sets = batch * heads * block_count(tokens, num_clusters, window)
    return attend_flops(sets, window, 2 * window, d, e, relative)


def _take(x: Tensor, tokens: Tensor) -> Tensor:
    """``(rows, blocks, window, width)`` of ``(batch, heads, tokens, width)``."""
    index = tokens.flatten(1)[..., None].expand(-1, -1, x.shape[3])
    return x.flatten(0, 1).gather(1, index).unflatten(1, tokens.shape[1:])


def _check(q: Tensor, k: Tensor, v: Tensor, clusters: Tensor, num_clusters: int, window: int) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    for name, size in (("num_clusters", num_clusters), ("window", window)):
        if not isinstance(size, int) or size < 1:
            raise invalid(name, size, "a positive whole number is needed")
    if not (q.ndim == k.ndim == v.ndim == 4):
        raise InvalidValue(f"q, k and v must have 4 axes (batch, heads, length, width), not {shapes}.")
    if q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3] or q.shape[-1] != k.shape[-1]:
        raise InvalidValue(f"q, k and v must agree in batch and heads, q and k in width, k and v in length: {shapes}.")
    if not 1 <= q.shape[2] <= k.shape[2]:
        raise InvalidValue(f"the queries are the last of the keys ({shapes}): at least one, and no more than keys.")
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise InvalidType(f"q, k and v must share one floating dtype, not {q.dtype}, {k.dtype}, {v.dtype}.")
    if clusters.dtype != torch.int64:
        raise InvalidType(f"clusters must be int64, not {clusters.dtype}.")
    if clusters.shape != k.shape[:3]:
        raise InvalidValue(f"clusters have shape {tuple(clusters.shape)}; the keys need {tuple(k.shape[:3])}.")
