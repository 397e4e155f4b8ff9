"""Pairs of queries and keys, and what attention to so many of them costs."""

from __future__ import annotations

from ..cost import Cost


def visible_pairs(length: int, key_length: int, causal: bool) -> int:
    """Pairs of query and key that see each other; with ``causal`` the last query sees every key."""
    return length * key_length - length * (length - 1) // 2 if causal else length * key_length


def attention_cost(pairs: int, rows: int, keys: int, d: int, e: int, kept: int) -> Cost:
    """Any attention by pairs: products with keys and values, an exponential for each pair."""
    moved = rows * (d + e) + keys * (d + e)
    return Cost(
        flops=2 * pairs * (d + e),
        activation_bytes=4 * (moved + kept),
        elementwise=3 * pairs,
        exps=pairs,
        moved_bytes=4 * moved,
    )
