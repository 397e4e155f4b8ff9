"""What each op must do at least, by its sizes: one formula for each registered op.

A formula counts the definition, not a form: visible pairs of an attention, a rank-one update and a read of the state
for each token of a recurrence. A form that does more (a dense product under a causal mask, the products inside a chunk)
is then less efficient, which is what a place on the roofline should tell. Batch and heads multiply everything, so that
sizes are plain whole numbers; everything is in float32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import starmap

from ..errors import InvalidType, unknown_name
from .cost import Cost

Formula = Callable[..., Cost]
_FORMULAS: dict[str, Formula] = {}


def formula(name: str) -> Callable[[Formula], Formula]:
    """Register the decorated function as the cost of the op ``name``; its parameters are the op's sizes."""

    def mark(function: Formula) -> Formula:
        _FORMULAS[name] = function
        return function

    return mark


def known_ops() -> list[str]:
    """Names of the ops that have a formula, sorted."""
    return sorted(_FORMULAS)


def op_cost(name: str, **sizes: int | bool | Sequence[int] | Sequence[bool]) -> Cost:
    """The cost of one forward call of an op.

    Args:
        name: as registered.
        sizes: what the op's formula here asks for, by name.

    Raises:
        UnknownName: no formula has this name.
        InvalidType: a size is missing, or is not one of the formula's.
    """
    if name not in _FORMULAS:
        raise unknown_name("op", name, _FORMULAS)
    try:
        return _FORMULAS[name](**sizes)
    except TypeError as error:
        said = str(error).replace(f"{_FORMULAS[name].__name__}()", f"the cost of {name!r}")
        raise InvalidType(f"{said}.") from None


def visible_pairs(length: int, key_length: int, causal: bool) -> int:
    """Pairs of query and key that see each other; with ``causal`` the last query sees every key."""
    return length * key_length - length * (length - 1) // 2 if causal else length * key_length


def _attention(pairs: int, rows: int, keys: int, d: int, e: int, kept: int) -> Cost:
    """Any attention by pairs: products with keys and values, an exponential for each pair."""
    moved = rows * (d + e) + keys * (d + e)
    return Cost(
        flops=2 * pairs * (d + e),
        activation_bytes=4 * (moved + kept),
        elementwise=3 * pairs,
        exps=pairs,
        moved_bytes=4 * moved,
    )


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
    return _attention(
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
    return _attention(pairs, many * length, many * m, d, width, -many * length * width)


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
    return _attention(pairs, many * tokens, many * tokens, d, d, many * tokens)


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


@formula("lightning_attention")
def lightning_attention(*, length: int, d: int, batch: int = 1, heads: int = 1, e: int | None = None) -> Cost:
    """For each token one rank-one update of a ``d x e`` state and one product with it."""
    tokens, width = batch * heads * length, d if e is None else e
    return Cost(
        flops=4 * tokens * d * width,
        elementwise=tokens * d * width,
        activation_bytes=4 * tokens * (2 * d + width),
        state_bytes=4 * batch * heads * d * width,
        moved_bytes=4 * tokens * (2 * d + 2 * width),
    )


@formula("ssd")
def ssd(*, length: int, heads: int, width: int, states: int, batch: int = 1, groups: int = 1) -> Cost:
    """As linear attention with a decay for each token and head; B and C are shared by the heads of a group."""
    tokens = batch * length
    read = tokens * (heads * width + heads + 2 * groups * states)
    return Cost(
        flops=4 * tokens * heads * width * states,
        elementwise=tokens * heads * width * (states + 1),
        exps=tokens * heads,
        activation_bytes=4 * read,
        state_bytes=4 * batch * heads * width * states,
        moved_bytes=4 * (read + tokens * heads * width),
    )


@formula("selective_scan")
def selective_scan(
    *,
    length: int,
    channels: int,
    states: int,
    batch: int = 1,
    groups: int = 1,
    gate: bool = False,
    softplus: bool = False,
) -> Cost:
    """An exponential for each token, channel and state; everything else is elementwise."""
    tokens = batch * length
    wide, deep = tokens * channels, tokens * channels * states
    read = wide * (2 + gate) + 2 * tokens * groups * states + channels * (states + 1)
    return Cost(
        elementwise=6 * deep + wide * (3 + 2 * gate + softplus),
        exps=deep + wide * (gate + 2 * softplus),
        activation_bytes=4 * read,
        state_bytes=4 * batch * channels * states,
        moved_bytes=4 * (read + wide),
    )


@formula("selective_state_update")
def selective_state_update(*, channels: int, states: int, batch: int = 1) -> Cost:
    """One token of the scan: the state is read and written."""
    one = selective_scan(length=1, channels=channels, states=states, batch=batch)
    state = one.state_bytes
    return Cost(elementwise=one.elementwise, exps=one.exps, state_bytes=state, moved_bytes=one.moved_bytes + 2 * state)


@formula("gated_recurrence")
def gated_recurrence(*, length: int, channels: int, batch: int = 1) -> Cost:
    """A multiply-add for each token and channel."""
    wide = batch * length * channels
    state = 4 * batch * channels
    return Cost(elementwise=2 * wide, activation_bytes=8 * wide, state_bytes=state, moved_bytes=12 * wide + 2 * state)


@formula("s4d")
def s4d(*, length: int, channels: int, states: int, batch: int = 1) -> Cost:
    """A complex multiply-add for each token, channel and state, and the real part of one product."""
    wide = batch * length * channels
    return Cost(
        elementwise=wide * states * 12,
        exps=channels * states,
        activation_bytes=4 * (wide + 4 * channels * states),
        state_bytes=8 * batch * channels * states,
        moved_bytes=4 * (2 * wide + 4 * channels * states),
    )


@formula("causal_conv1d")
def causal_conv1d(*, length: int, channels: int, taps: int, batch: int = 1, silu: bool = False) -> Cost:
    """A filter for each channel."""
    wide = batch * length * channels
    return Cost(
        flops=2 * wide * taps,
        elementwise=2 * wide * silu,
        exps=wide * silu,
        activation_bytes=4 * wide,
        state_bytes=4 * batch * channels * taps,
        moved_bytes=4 * (2 * wide + channels * (taps + 1)),
    )


@formula("dilated_conv")
def dilated_conv(*, length: int, channels: int, taps: int, batch: int = 1, dense: bool = False) -> Cost:
    """A filter for each channel, or for each pair of channels; the dilation moves nothing but the taps."""
    wide = batch * length * channels
    weights = taps * channels * (channels if dense else 1)
    return Cost(
        flops=2 * batch * length * weights,
        activation_bytes=4 * wide,
        moved_bytes=4 * (2 * wide + weights + channels),
    )


@formula("chunked_attention")
def chunked_attention(*, length: int, d: int, e: int, chunk: int, batch: int = 1, causal: bool = False) -> Cost:
    """One head inside chunks, whose weights are kept where they are no softmax."""
    whole, rest = divmod(length, chunk)
    pairs = batch * (whole * visible_pairs(chunk, chunk, causal) + visible_pairs(rest, rest, causal))
    return _attention(pairs, batch * length, batch * length, d, e, 0)


@formula("window_attention")
def window_attention(
    *, length: int, window: int, d: int, e: int, heads: int = 1, batch: int = 1, sinks: int = 0, key_length: int = 0
) -> Cost:
    """Each query sees its window, as far as it reaches into the keys, and the sinks; key_length 0: as the queries."""
    keys = key_length or length
    full = max(0, min(length, keys - window + 1))  # queries whose window is whole
    first = keys - length + 1  # keys that the first query could see
    pairs = full * window + sum(range(first, first + length - full)) + length * sinks
    return _attention(batch * heads * pairs, batch * heads * length, batch * heads * keys, d, e, batch * heads * length)


@formula("routing_attention")
def routing_attention(
    *, length: int, clusters: int, window: int, d: int, e: int, heads: int = 1, batch: int = 1, causal: bool = False
) -> Cost:
    """Each set of ``window`` tokens attends to itself; what several sets say of a token is averaged."""
    sets, members = batch * heads * clusters, min(window, length)
    pairs, rows = sets * visible_pairs(members, members, causal), sets * members
    cost = _attention(pairs, rows, rows, d, e, rows)
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
    return _attention(batch * heads * pairs, rows, rows, d, e, rows)


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
    return _attention(batch * heads * pairs, rows, rows, d, e, rows)


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
    cost = _attention(batch * heads * (pairs - own), rows, rows, d, e, 2 * rows)
    return replace(cost, flops=cost.flops - 2 * batch * heads * seen * e)


@formula("landmark_grouped_softmax")
def landmark_grouped_softmax(*, length: int, key_length: int, heads: int = 1, batch: int = 1) -> Cost:
    """An exponential for each score, the largest and the sum of each group, and a landmark's share."""
    scores = batch * heads * length * key_length
    return Cost(elementwise=5 * scores, exps=scores, activation_bytes=4 * scores, moved_bytes=8 * scores)


@formula("neural_memory")
def neural_memory(
    *, length: int, dim: int, hidden: int, depth: int, heads: int = 1, batch: int = 1, momentum: bool = True
) -> Cost:
    """Per token: the memory forward for its key, backward but for the input, an outer product for each matrix, and
    forward for its query; momentum, forgetting and the step are elementwise in all weights."""
    widths = [dim, *[hidden] * (depth - 1), dim]
    sizes = [a * b for a, b in itertools.pairwise(widths)]
    weights, tokens = sum(sizes), batch * heads * length
    moved = tokens * (4 * dim + 3)
    return Cost(
        flops=2 * tokens * (3 * weights + weights - sizes[0]),
        elementwise=tokens * weights * (4 if momentum else 2),
        exps=2 * tokens * hidden * (depth - 1),
        activation_bytes=4 * moved,
        state_bytes=4 * batch * heads * weights * (3 if momentum else 2),
        moved_bytes=4 * moved,
    )


@formula("gated_rms_norm")
def gated_rms_norm(*, tokens: int, channels: int) -> Cost:
    """A gate, a mean square and a scale."""
    wide = tokens * channels
    return Cost(elementwise=6 * wide, exps=wide, activation_bytes=8 * wide, moved_bytes=4 * (3 * wide + channels))
