"""What a block gate computes: pooled queries and keys, scores of blocks, a choice of blocks, and what it learns from.

SeerAttention (Gao et al. 2024, arXiv 2410.13276, sections 3.1 and 3.2). Queries and keys, as they are before the rotary
embedding, are pooled over blocks of B tokens and projected; turned by the position of their block's first token they
give a score for each pair of blocks. Attention then reads the pairs of blocks that pass a threshold, or the best ones
of every row. A gate learns by the divergence of its scores from the map that attention really has, pooled by blocks
(:mod:`foveate.ops.pooled_attention_target`).

Which block a row may keep is causal: its own, the "diagonal", and earlier ones. A rule can leave a row without any
block, where attention is undefined; then the diagonal is kept, unless another answer is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidType, InvalidValue, invalid
from .positions import rope_angles

Pool = Literal["max", "min", "avg"]
POOLS: tuple[Pool, ...] = get_args(Pool)
Empty = Literal["diagonal", "refuse", "leave"]
#: Cosines and sines ``(1 or batch, blocks, width)``, each half of the width alike ("rotate half").
Rope = tuple[Tensor, Tensor]


def check_pools(option: str, pools: Sequence[str]) -> tuple[Pool, ...]:
    """The pools as a tuple; refuses unknown and repeated ones, and none at all."""
    legal = f"it must name one to three of {', '.join(POOLS)}, each once"
    if isinstance(pools, str) or not 1 <= len(pools) <= 3 or len(set(pools)) < len(pools):
        raise invalid(option, pools, legal)
    if not set(pools) <= set(POOLS):
        raise invalid(option, tuple(pools), legal)
    return tuple(pools)  # type: ignore[return-value]


def pool_blocks(x: Tensor, block_size: int, pools: Sequence[Pool], mask: Tensor | None = None) -> Tensor:
    """Queries or keys pooled over blocks of tokens, one pool after the other in the channels.

    Args:
        x: ``(batch, heads, length, d)``.
        block_size: tokens of a block; the last one may have fewer.
        pools: "max", "min" and "avg", in the order in which their results are wanted.
        mask: bool ``(batch, length)``, True = a real token; others are in no pool.

    Returns:
        ``(batch, heads, ceil(length / block_size), d * len(pools))``; zeros for a block without real tokens.
    """
    length = x.shape[2]
    blocks = -(-length // block_size)
    spare = blocks * block_size - length
    real = None
    if mask is not None or spare:
        real = torch.ones(1, length, dtype=torch.bool, device=x.device) if mask is None else mask
        real = F.pad(real, (0, spare)).view(-1, 1, blocks, block_size, 1)
        x = F.pad(x, (0, 0, 0, spare))
    x = x.unflatten(2, (blocks, block_size))
    found = []
    for pool in pools:
        if pool == "avg":
            found.append(x.mean(3) if real is None else (x * real).sum(3) / real.sum(3).clamp(min=1))
        elif pool == "max":
            found.append(x.amax(3) if real is None else x.masked_fill(~real, -math.inf).amax(3))
        else:
            found.append(x.amin(3) if real is None else x.masked_fill(~real, math.inf).amin(3))
    pooled = torch.cat(found, -1)
    if mask is None:
        return pooled
    assert real is not None
    return pooled.masked_fill(~real.any(3), 0.0)


def block_rope(positions: Tensor, width: int, base: float = 10000.0) -> Rope:
    """Cosines and sines of a rotary embedding at the positions of blocks.

    Args:
        positions: int64 ``(blocks,)`` or ``(batch, blocks)``: that of each block's first token.
        width: even width of the gate.
        base: as that of the model.
    """
    angles = rope_angles(positions, width, base)
    angles = torch.cat([angles, angles], -1)
    angles = angles[None] if angles.ndim == 2 else angles
    return angles.cos(), angles.sin()


def turn_blocks(x: Tensor, rope: Rope) -> Tensor:
    """Turn ``(batch, heads, blocks, width)``; channels beyond the rope's width stay, as with partial embeddings."""
    cos, sin = (t[:, None].to(x.dtype) for t in rope)
    width = cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    first, second = turned.chunk(2, -1)
    turned = turned * cos + torch.cat([-second, first], -1) * sin
    return torch.cat([turned, rest], -1) if rest.shape[-1] else turned


def causal_blocks(rows: int, blocks: int, device: torch.device | str | None = None) -> Tensor:
    """Bool ``(1, 1, rows, blocks)``: which blocks the last ``rows`` blocks of ``blocks`` may read."""
    last = torch.arange(blocks - rows, blocks, device=device)
    return (torch.arange(blocks, device=device) <= last[:, None])[None, None]


def gate_logits(q: Tensor, k: Tensor, visible: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Scores of all pairs of blocks.

    Args:
        q: ``(batch, heads, rows, width)``, projected and turned.
        k: ``(batch, key_heads, blocks, width)``; ``key_heads`` divides ``heads``.
        visible: bool, broadcastable to ``(batch, heads, rows, blocks)``: pairs that may be kept; None: causal ones.
        scale: factor on the products; None: ``1 / sqrt(width)``.

    Returns:
        ``(batch, heads, rows, blocks)``, the smallest finite number where a pair is not visible.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = (q.unflatten(1, (k.shape[1], -1)) @ k[:, :, None].mT).flatten(1, 2) * scale
    visible = causal_blocks(q.shape[2], k.shape[2], q.device) if visible is None else visible
    return scores.masked_fill(~visible, torch.finfo(scores.dtype).min)


def gate_kl_loss(logits: Tensor, target: Tensor, *, skip_first: float = 0.25) -> Tensor:
    """Divergence of the gate's distribution over blocks from the pooled map: what a gate is trained by.

    The mean over all entries, invisible ones included, as in the release: it falls with the number of blocks.

    Args:
        logits: ``(batch, heads, rows, blocks)``, before the softmax.
        target: the same shape; rows sum to one.
        skip_first: share of the rows, the first ones, that is left out (rounded down).

    Returns:
        A float32 scalar.

    Raises:
        InvalidValue: shapes differ, or no row is left.
    """
    if logits.shape != target.shape:
        raise InvalidValue(
            f"logits have shape {tuple(logits.shape)} and target {tuple(target.shape)}: they must agree."
        )
    if not 0 <= skip_first < 1:
        raise invalid("skip_first", skip_first, "it must be at least 0 and below 1")
    first = int(skip_first * logits.shape[2])
    spread = logits[:, :, first:].float().log_softmax(-1)
    return F.kl_div(spread, target[:, :, first:].float(), reduction="none").mean()


def blocks_from_threshold(
    score: Tensor,
    threshold: float,
    *,
    last_block_dense: bool = True,
    empty: Empty = "diagonal",
    visible: Tensor | None = None,
    dense_rows: Tensor | None = None,
) -> Tensor:
    """Keep the blocks that score above a threshold.

    Args:
        score: ``(batch, heads, rows, blocks)``, the softmax of the gate's logits over blocks; the rows are those of
            the last blocks.
        threshold: below 0 everything is kept, at 1 nothing.
        last_block_dense: the last two rows read everything, as published.
        empty: what becomes of a row that keeps nothing: "diagonal": it keeps its own block; "refuse": an error;
            "leave": it keeps nothing, as in the release.
        visible: bool, broadcastable to ``score``: pairs that may be kept; None: causal ones.
        dense_rows: bool ``(1 or batch, rows)``: rows that read everything, in place of the last two.

    Returns:
        Bool, in the shape of ``score``.

    Raises:
        InvalidValue: a threshold that is no number; with "refuse", rows that keep nothing.
    """
    if not isinstance(threshold, int | float) or math.isnan(threshold):
        raise invalid("threshold", threshold, "a number is needed")
    visible = _visible(score, visible)
    return _finish(score > threshold, visible, last_block_dense, empty, dense_rows)


def blocks_from_ratio(
    logits: Tensor,
    ratio: float,
    *,
    last_block_dense: bool = True,
    empty: Empty = "diagonal",
    visible: Tensor | None = None,
    dense_rows: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Keep the best blocks of every row, so many that ``ratio`` of the causal pairs is kept.

    Of n blocks each row keeps ``row_budget(ratio, n)``, a row that has fewer keeps them all.

    Args:
        logits: ``(batch, heads, rows, blocks)``, or scores: only their order counts.
        ratio: above 0 and at most 1.
        last_block_dense, empty, visible, dense_rows: as in :func:`blocks_from_threshold`.
        counts: int64 ``(1 or batch, rows)``: n of each row, where documents or samples differ; None: ``blocks``.

    Returns:
        Bool, in the shape of ``logits``.

    Raises:
        InvalidValue: a ratio out of range; with "refuse", rows that keep nothing.
    """
    share = _row_share(ratio)
    options = {"last_block_dense": last_block_dense, "empty": empty, "visible": visible, "dense_rows": dense_rows}
    if counts is None:
        return blocks_from_top_k(logits, row_budget(ratio, logits.shape[-1]), **options)  # type: ignore[arg-type]
    budgets = (share * counts).long().clamp(min=1)[:, None, :, None]
    visible = _visible(logits, visible)
    ranks = logits.masked_fill(~visible, -math.inf).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return _finish(ranks < budgets, visible, last_block_dense, empty, dense_rows)


def blocks_from_top_k(
    logits: Tensor,
    k: int,
    *,
    last_block_dense: bool = True,
    empty: Empty = "diagonal",
    visible: Tensor | None = None,
    dense_rows: Tensor | None = None,
) -> Tensor:
    """Keep the k best blocks of every row.

    Args:
        logits: ``(batch, heads, rows, blocks)``, or scores: only their order counts.
        k: at least 1 and at most ``blocks``; a row that may keep fewer keeps them all.
        last_block_dense, empty, visible, dense_rows: as in :func:`blocks_from_threshold`.

    Returns:
        Bool, in the shape of ``logits``.

    Raises:
        InvalidValue: k out of range; with "refuse", rows that keep nothing.
    """
    blocks = logits.shape[-1]
    if not isinstance(k, int) or not 1 <= k <= blocks:
        raise invalid("k", k, f"it must be a whole number of at least 1 and at most {blocks}, the number of blocks")
    visible = _visible(logits, visible)
    best = logits.masked_fill(~visible, -math.inf).topk(k, -1).indices
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, best, True)
    return _finish(kept, visible, last_block_dense, empty, dense_rows)


def row_budget(ratio: float, blocks: int) -> int:
    """Blocks of each row that make up ``ratio`` of a causal triangle: ``max(1, int((1 - sqrt(1 - ratio)) blocks))``.

    Rows at the beginning have fewer; the square root makes up for them.

    Raises:
        InvalidValue: a ratio out of range.
    """
    return max(1, int(_row_share(ratio) * blocks))


def kept_share(kept: Tensor, visible: Tensor | None = None) -> float:
    """The density of a choice of blocks: the share of the pairs that may be kept (None: causal ones) which are.

    Args:
        kept: bool ``(batch, heads, rows, blocks)``.
    """
    visible = _visible(kept, visible)
    return float((kept & visible).sum() / visible.expand_as(kept).sum().clamp(min=1))


def _row_share(ratio: float) -> float:
    if not isinstance(ratio, int | float) or not 0 < ratio <= 1:
        raise invalid("ratio", ratio, "it must be above 0 and at most 1")
    return 1 - math.sqrt(1 - ratio)


def _visible(score: Tensor, visible: Tensor | None) -> Tensor:
    rows, blocks = score.shape[-2:]
    if rows > blocks:
        raise InvalidValue(f"{rows} rows cannot choose among {blocks} blocks: rows are those of the last blocks.")
    if visible is None:
        return causal_blocks(rows, blocks, score.device)
    if visible.dtype != torch.bool:
        raise InvalidType(f"visible must be bool (True = may be kept), not {visible.dtype}.")
    if visible.ndim != 4 or any(a not in (1, b) for a, b in zip(visible.shape, score.shape, strict=True)):
        raise InvalidValue(f"visible has shape {tuple(visible.shape)}; it must broadcast to {tuple(score.shape)}.")
    return visible


def _finish(kept: Tensor, visible: Tensor, last_block_dense: bool, empty: str, dense_rows: Tensor | None) -> Tensor:
    """Dense rows, invisible blocks, and rows that keep nothing."""
    if empty not in get_args(Empty):
        raise invalid("empty", empty, f"it must be one of {', '.join(get_args(Empty))}")
    if dense_rows is None and last_block_dense:
        rows = kept.shape[2]
        dense_rows = (torch.arange(rows, device=kept.device) >= rows - 2)[None]
    if dense_rows is not None:
        kept = kept | dense_rows[:, None, :, None]
    kept = kept & visible
    if empty == "leave":
        return kept
    bare = visible.any(-1, keepdim=True) & ~kept.any(-1, keepdim=True)
    if empty == "refuse":
        if bool(bare.any()):
            raise InvalidValue(
                f"{int(bare.sum())} rows keep no block: lower the threshold, or keep the diagonal with "
                f"empty='diagonal'."
            )
        return kept
    rows, blocks = kept.shape[-2:]
    diagonal = torch.eye(rows, dtype=torch.bool, device=kept.device)
    return kept | (bare & F.pad(diagonal, (blocks - rows, 0)) & visible)
