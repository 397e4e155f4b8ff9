"""Recurrences, linear attention, memories and convolutions."""

from __future__ import annotations

import itertools

from ..cost import Cost
from .formulas import formula


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
