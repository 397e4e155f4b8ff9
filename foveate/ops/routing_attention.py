"""Routing attention: attention inside sets of tokens that centroids gather.

Roy et al., "Efficient Content-Based Sparse Attention with Routing Transformers" (TACL 2021, arXiv 2003.05997, section
4.1, algorithm 1), with the released code's sets: every centroid takes the tokens that are nearest to it, a token may be
in several sets or in none, and what several sets say is averaged::

    S_c = the w tokens with the largest x_t . mu_c            for queries and for keys, or one list for both
    o_t = sum over c with t in S_c of [softmax(q_t K_{S_c}^T scale) V_{S_c}] / (count_t + eps)

With n tokens in k sets of w = n / k the products are ``n k d`` for finding the sets and ``n w d`` inside them: n^1.5 d
for k = sqrt(n).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidType, InvalidValue, invalid
from ..registry import register
from .backend import choose
from .handwritten import sum_dtype
from .set_attention import attend, between, clipped


def routing_scores(x: Tensor, means: Tensor) -> Tensor:
    """How near each token is to each centroid, as inner products.

    Args:
        x: ``(batch, heads, length, d)``.
        means: ``(heads, clusters, d)``.

    Returns:
        ``(batch, heads, length, clusters)``.
    """
    return x @ means.to(x.dtype).transpose(-1, -2)


def top_members(scores: Tensor, window: int, mask: Tensor | None = None) -> Tensor:
    """The tokens that each centroid takes, in order of time.

    Args:
        scores: ``(batch, heads, length, clusters)``.
        window: tokens of a set; of shorter sequences all are taken.
        mask: bool ``(batch, length)``, True = a real token: others are taken where there are too few.

    Returns:
        int64 ``(batch, heads, clusters, min(window, length))``, ascending token numbers.
    """
    if not isinstance(window, int) or window < 1:
        raise invalid("window", window, "a positive whole number is needed")
    scores = scores.detach().transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -math.inf)
    return scores.topk(min(window, scores.shape[-1]), dim=-1, sorted=False).indices.sort(-1).values


@register("op", "routing_attention", system="routing_transformer")
def routing_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_sets: Tensor,
    k_sets: Tensor | None = None,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    scale: float = 1.0,
    count_eps: float = 1e-2,
    avoid_self: bool = False,
    memory_k: Tensor | None = None,
    memory_v: Tensor | None = None,
    rel_k: Tensor | None = None,
    rel_v: Tensor | None = None,
) -> Tensor:
    """Attention inside given sets, averaged over the sets of a token.

    Args:
        q: ``(batch, heads, length, d)``.
        k: ``(batch, heads, length, d)``.
        v: ``(batch, heads, length, e)``.
        q_sets: int64 ``(batch, heads, clusters, w)``: token numbers, ascending, each once: whose queries are in a set.
        k_sets: int64 ``(batch, heads, clusters, u)``: whose keys are in it; None: the same tokens.
        causal: a query sees keys of its own token and of earlier ones, by token numbers.
        mask: bool ``(batch, length)``, True = a real token; others are in no set, whatever the lists say.
        scale: factor on the products; the released code has none, for its queries and keys are normalised.
        count_eps: added to the number of a token's sets: 1e-2 in the released code, 1e-5 in the peer; 0: a mean.
        avoid_self: a query sees its own token only where it sees nothing else (the peer's rule for shared keys).
        memory_k: ``(heads, clusters, m, d)``, keys that every query of a set sees before the others; None: none.
        memory_v: ``(heads, clusters, m, e)``, their values.
        rel_k: ``(2 m + 1, d)``, embeddings of distances between places in the lists, clipped at m, added to keys.
        rel_v: ``(2 m + 1, e)``, added to values.

    Returns:
        ``(batch, heads, length, e)``; zeros for tokens in no set, and for queries that see nothing.

    Raises:
        InvalidValue: shapes do not fit, a negative count_eps, or memory together with distances.
        InvalidType: mixed dtypes, or sets that are not whole numbers.
    """
    _check(q, k, v, q_sets, k_sets, mask, count_eps)
    for one, other, names in ((memory_k, memory_v, "memory_k and memory_v"), (rel_k, rel_v, "rel_k and rel_v")):
        if (one is None) != (other is None):
            raise InvalidValue(f"{names} come together: one of them is missing.")
    if memory_k is not None and rel_k is not None:
        raise InvalidValue("memory_k and rel_k exclude each other: a memory has no place that a distance could go to.")
    form = choose(reference, gathered)
    return form(q, k, v, q_sets, k_sets, causal, mask, scale, count_eps, avoid_self, memory_k, memory_v, rel_k, rel_v)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_sets: Tensor,
    k_sets: Tensor | None,
    causal: bool,
    mask: Tensor | None,
    scale: float,
    count_eps: float,
    avoid_self: bool,
    memory_k: Tensor | None,
    memory_v: Tensor | None,
    rel_k: Tensor | None,
    rel_v: Tensor | None,
) -> Tensor:
    """The definition: one dense attention for each set, in float32 (float64 for float64 input)."""
    precise, length = sum_dtype(q.dtype), q.shape[2]
    q, k, v = q.to(precise), k.to(precise), v.to(precise)
    token = torch.arange(length, device=q.device)
    real = torch.ones(q.shape[0], length, dtype=torch.bool, device=q.device) if mask is None else mask
    total, count = torch.zeros_like(v), torch.zeros_like(v[..., :1])
    for c in range(q_sets.shape[2]):
        asks = torch.zeros(q.shape[:3], dtype=torch.bool, device=q.device).scatter(2, q_sets[:, :, c], True)
        reads = asks if k_sets is None else torch.zeros_like(asks).scatter(2, k_sets[:, :, c], True)
        asks, reads = asks & real[:, None], reads & real[:, None]
        visible = asks[..., :, None] & reads[..., None, :]
        if causal:
            visible = visible & (token <= token[:, None])
        if avoid_self:
            others = visible & (token != token[:, None])
            alone = ~others.any(-1, keepdim=True)
            visible = others | (visible & alone) if memory_k is None or not memory_k.shape[2] else others
        values, scores = v, q @ k.transpose(-1, -2)
        if memory_k is not None and memory_v is not None:
            own_k, own_v = (m[:, c].to(precise).expand(q.shape[0], -1, -1, -1) for m in (memory_k, memory_v))
            values, scores = torch.cat([own_v, v], 2), torch.cat([q @ own_k.transpose(-1, -2), scores], 3)
            visible = F.pad(visible, (own_k.shape[2], 0), value=True) & asks[..., None]
        near_v = None
        if rel_k is not None and rel_v is not None:
            ranks = [chosen.cumsum(-1) for chosen in (asks, reads)]
            row = clipped(ranks[1][..., None, :] - ranks[0][..., :, None], rel_k)
            scores = scores + torch.einsum("bhld,bhlkd->bhlk", q, rel_k.to(precise)[row])
            near_v = rel_v.to(precise)[row]
        empty = ~visible.any(-1, keepdim=True)
        weights = (scores * scale).masked_fill(~(visible | empty), -math.inf).softmax(-1).masked_fill(empty, 0.0)
        total = total + weights @ values
        if near_v is not None:
            total = total + torch.einsum("bhlk,bhlke->bhle", weights, near_v)
        count = count + asks[..., None]
    return (total / torch.where(count > 0, count + count_eps, 1.0)).to(v.dtype)


def gathered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_sets: Tensor,
    k_sets: Tensor | None,
    causal: bool,
    mask: Tensor | None,
    scale: float,
    count_eps: float,
    avoid_self: bool,
    memory_k: Tensor | None,
    memory_v: Tensor | None,
    rel_k: Tensor | None,
    rel_v: Tensor | None,
) -> Tensor:
    """The fast form; same arguments as :func:`reference`."""
    batch, heads, length = q.shape[:3]
    asked = q_sets.flatten(0, 1)  # (rows, clusters, w)
    read = asked if k_sets is None else k_sets.flatten(0, 1)
    queries = _take(q, asked)
    keys, values = _take(k, read), _take(v, read)
    real = reads = None
    if mask is not None:
        real = mask[:, None].expand(-1, heads, -1).flatten(0, 1)
        real, reads = (real.gather(1, of.flatten(1)).unflatten(1, of.shape[1:]) for of in (asked, read))
    visible, ordered = None if reads is None else reads[:, :, None, :], causal
    if k_sets is not None or avoid_self:
        visible, ordered = _pairs(asked, read, visible, causal, avoid_self, memory_k), False
    if memory_k is not None and memory_v is not None and memory_k.shape[2]:
        if ordered:
            visible, ordered = _pairs(asked, read, visible, causal, avoid_self, memory_k), False
        own_k, own_v = (m.to(q.dtype).repeat(batch, 1, 1, 1) for m in (memory_k, memory_v))
        keys, values = torch.cat([own_k, keys], 2), torch.cat([own_v, values], 2)
        visible = None if visible is None else F.pad(visible, (own_k.shape[2], 0), value=True)
    distances = clipped(_ranks(asked.shape[2], read.shape[2], q.device), rel_k)
    o = attend(
        queries, keys, values, scale=scale, causal=ordered, visible=visible,
        distances=distances, rel_k=rel_k, rel_v=rel_v,
    )  # fmt: skip
    o, index = o.flatten(1, 2).to(sum_dtype(v.dtype)), asked.flatten(1)[..., None]
    weight = torch.ones_like(o[..., :1])
    if real is not None:
        weight = real.flatten(1)[..., None].to(o.dtype)
        o = o * weight
    total = o.new_zeros(batch * heads, length, o.shape[2]).scatter_add(1, index.expand_as(o), o)
    count = weight.new_zeros(batch * heads, length, 1).scatter_add(1, index, weight)
    o = total / torch.where(count > 0, count + count_eps, 1.0)
    return o.to(v.dtype).unflatten(0, (batch, heads))


def _take(x: Tensor, sets: Tensor) -> Tensor:
    """``(rows, clusters, w, width)`` of ``(batch, heads, length, width)``."""
    index = sets.flatten(1)[..., None].expand(-1, -1, x.shape[3])
    return x.flatten(0, 1).gather(1, index).unflatten(1, sets.shape[1:])


def _ranks(length: int, key_length: int, device: torch.device) -> Tensor:
    return between(length, key_length, key_length - length, device)


def _pairs(
    asked: Tensor, read: Tensor, visible: Tensor | None, causal: bool, avoid_self: bool, memory: Tensor | None
) -> Tensor | None:
    """Bool, broadcastable to ``(rows, clusters, w, u)``: pairs that see each other by their token numbers."""
    mine, theirs = asked[..., None], read[:, :, None, :]
    if causal:
        visible = mine >= theirs if visible is None else visible & (mine >= theirs)
    if avoid_self:
        others = mine != theirs if visible is None else visible & (mine != theirs)
        if memory is not None and memory.shape[2]:
            return others
        alone = ~others.any(-1, keepdim=True)
        seen = alone if visible is None else visible & alone
        return others | (seen & (mine == theirs))
    return visible


def _check(
    q: Tensor, k: Tensor, v: Tensor, q_sets: Tensor, k_sets: Tensor | None, mask: Tensor | None, count_eps: float
) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not (q.ndim == k.ndim == v.ndim == 4):
        raise InvalidValue(f"q, k and v must have 4 axes (batch, heads, length, width), not {shapes}.")
    if q.shape != k.shape or k.shape[:3] != v.shape[:3]:
        raise InvalidValue(f"q, k and v must agree in batch, heads and length, q and k in width: {shapes}.")
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise InvalidType(f"q, k and v must share one floating dtype, not {q.dtype}, {k.dtype}, {v.dtype}.")
    for name, sets in (("q_sets", q_sets), ("k_sets", k_sets)):
        if sets is None:
            continue
        if sets.dtype != torch.int64:
            raise InvalidType(f"{name} must be int64, not {sets.dtype}.")
        if sets.ndim != 4 or sets.shape[:2] != q.shape[:2] or sets.shape[2] != q_sets.shape[2]:
            raise InvalidValue(
                f"{name} has shape {tuple(sets.shape)}; ({q.shape[0]}, {q.shape[1]}, clusters, members) is needed."
            )
    if mask is not None and mask.shape != (q.shape[0], q.shape[2]):
        raise InvalidValue(f"mask has shape {tuple(mask.shape)}; the tokens need {(q.shape[0], q.shape[2])}.")
    if not 0 <= count_eps < math.inf:
        raise invalid("count_eps", count_eps, "it must be finite and not negative")
