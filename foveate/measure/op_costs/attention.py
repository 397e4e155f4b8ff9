"""Attention to all keys, or to those near by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import starmap

from ..cost import Cost
from .formulas import formula
from .pairs import attention_cost, visible_pairs


@formula("softmax_attention")
def softmax_attention(
    *,
    length: int,
    d: int,
    batch: int = 1,
    heads: int = 1,
    key_length: int | None = None,
    e: int | None = None,
    causal: bool = False,
) -> Cost:
    """Kept: inputs, output and one number for each row."""
    many, m = batch * heads, key_length or length
    return attention_cost(
        many * visible_pairs(length, m, causal), many * length, many * m, d, d if e is None else e, many * length
    )


@formula("sigmoid_attention")
def sigmoid_attention(
    *,
    length: int,
    d: int,
    batch: int = 1,
    heads: int = 1,
    key_length: int | None = None,
    e: int | None = None,
    causal: bool = False,
) -> Cost:
    """Kept: the inputs alone, for the weights are computed again."""
    many, m, width = batch * heads, key_length or length, d if e is None else e
    pairs = many * visible_pairs(length, m, causal)
    return attention_cost(pairs, many * length, many * m, d, width, -many * length * width)


@formula("neighborhood_attention")
def neighborhood_attention(
    *,
    grid: Sequence[int],
    window: Sequence[int],
    d: int,
    batch: int = 1,
    heads: int = 1,
    dilation: Sequence[int] | None = None,
    causal: Sequence[bool] | None = None,
) -> Cost:
    """Every token sees a window of its grid, whole along every axis unless that is causal."""
    rank = len(grid)
    axes = zip(grid, window, dilation or (1,) * rank, causal or (False,) * rank, strict=True)
    tokens, many = math.prod(grid), batch * heads
    pairs = many * math.prod(starmap(_neighbours, axes))
    return attention_cost(pairs, many * tokens, many * tokens, d, d, many * tokens)


def _neighbours(size: int, window: int, dilation: int, causal: bool) -> int:
    """Visible pairs along one axis."""
    return sum(min(i // dilation + 1, window) for i in range(size)) if causal else size * window


@formula("prefix_attention")
def prefix_attention(*, length: int, width: int, batch: int = 1, heads: int = 1) -> Cost:
    """A running maximum, sum and weighted sum: two exponentials and a rescaled row for each token."""
    tokens = batch * heads * length
    return Cost(
        elementwise=tokens * (4 * width + 6),
        exps=2 * tokens,
        activation_bytes=4 * tokens * (width + 1),
        state_bytes=4 * batch * heads * (width + 2),
        moved_bytes=4 * tokens * (2 * width + 1),
    )


@formula("chunked_attention")
def chunked_attention(*, length: int, d: int, e: int, chunk: int, batch: int = 1, causal: bool = False) -> Cost:
    """One head inside chunks, whose weights are kept where they are no softmax."""
    whole, rest = divmod(length, chunk)
    pairs = batch * (whole * visible_pairs(chunk, chunk, causal) + visible_pairs(rest, rest, causal))
    return attention_cost(pairs, batch * length, batch * length, d, e, 0)


@formula("window_attention")
def window_attention(
    *, length: int, window: int, d: int, e: int, heads: int = 1, batch: int = 1, sinks: int = 0, key_length: int = 0
) -> Cost:
    """Each query sees its window, as far as it reaches into the keys, and the sinks; key_length 0: as the queries."""
    keys = key_length or length
    full = max(0, min(length, keys - window + 1))  # queries whose window is whole
    first = keys - length + 1  # keys that the first query could see
    pairs = full * window + sum(range(first, first + length - full)) + length * sinks
    return attention_cost(
        batch * heads * pairs, batch * heads * length, batch * heads * keys, d, e, batch * heads * length
    )


@formula("shifted_window_attention")
def shifted_window_attention(
    *, grid: Sequence[int], window: Sequence[int], d: int, e: int | None = None, batch: int = 1, heads: int = 1
) -> Cost:
    """Whole windows, padding and pairs that a shift hides among them: what is computed by everybody."""
    windows = math.prod(-(-size // w) for size, w in zip(grid, window, strict=True))
    pairs = batch * heads * windows * math.prod(window) ** 2
    tokens = batch * heads * math.prod(grid)
    return attention_cost(pairs, tokens, tokens, d, d if e is None else e, tokens)


@formula("sample_at")
def sample_at(*, points: int, d: int, height: int, width: int, batch: int = 1, heads: int = 1) -> Cost:
    """Four pixels for each point; a map that is read all over is read from memory once."""
    many, pixels = batch * heads * points, batch * heads * height * width
    moved = 4 * (pixels * d + many * (d + 2))
    return Cost(elementwise=many * (8 * d + 12), activation_bytes=4 * (pixels * d + 2 * many), moved_bytes=moved)


@formula("reversed_attention")
def reversed_attention(
    *, length: int, d: int, batch: int = 1, heads: int = 1, parents: int | None = None, e: int | None = None
) -> Cost:
    """As many pairs as attention has; kept are the inputs, for the weights are made again."""
    many, m, width = batch * heads, parents or length, d if e is None else e
    moved = many * (length * (d + width) + m * (d + width))
    kept = 4 * many * (length * (d + width) + m * d)
    pairs = many * length * m
    return Cost(
        flops=2 * pairs * (d + width), activation_bytes=kept, elementwise=3 * pairs, exps=pairs, moved_bytes=4 * moved
    )
