"""What a record's rows say: growth with size, and peers that are faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..measure.growth import fit_growth
from .cases import OURS

#: Sizes, the largest ones, that growth is fitted to: small problems measure how long a call takes to begin.
LARGEST_SIZES = 4
#: A peer counts as faster if we take so many times its time, where it takes at least so many milliseconds.
NOISE, SHORTEST_MS = 1.05, 1.0


def with_growth(rows: Sequence[Mapping[str, Any]], orders: Mapping[str, int]) -> list[dict[str, Any]]:
    """The exponents of time and memory in the number of tokens, for each contender with two sizes or more.

    Args:
        orders: by case, see :attr:`foveate.bench.cases.Case.order`.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["contender"], row["pass"], row["threads"]), []).append(row)
    found = []
    for (case, contender, which, threads), members in groups.items():
        largest = sorted(members, key=lambda row: row["size"])[-LARGEST_SIZES:]
        if len(largest) < 2:
            continue
        tokens = [row["size"] ** orders.get(case, 1) for row in largest]
        time = fit_growth(tokens, [row["median_ms"] for row in largest])
        held = [row["peak_bytes"] for row in largest]
        memory = fit_growth(tokens, held) if all(held) else None
        found.append(
            {
                "case": case,
                "contender": contender,
                "pass": which,
                "threads": threads,
                "sizes": [row["size"] for row in largest],
                "time": time.exponent,
                "time_error": time.error,
                "memory": None if memory is None else memory.exponent,
            }
        )
    return found


def slower_than_a_peer(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Where a peer that takes a millisecond or more is faster than ours, the worst first."""
    ours = {_place(row): row for row in rows if row["contender"] == OURS}
    found = []
    for row in rows:
        mine = ours.get(_place(row))
        if mine is None or row["ours"] or row["median_ms"] < SHORTEST_MS:
            continue
        times = mine["median_ms"] / row["median_ms"]
        if times > NOISE:
            kept = {k: row[k] for k in (*_PLACE, "unit", "contender", "same_function", "ratio_high")}
            found.append({**kept, "times": times})
    return sorted(found, key=lambda f: -f["times"])


_PLACE = ("case", "size", "pass", "threads")


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in _PLACE)


def sentence(found: Mapping[str, Any]) -> str:
    """One finding of :func:`slower_than_a_peer` in words."""
    threads = f"{found['threads']} thread{'s' * (found['threads'] > 1)}"
    other = "" if found["same_function"] else ", which computes something else,"
    unsure = ", within the noise of this run" if found["ratio_high"] >= 1 else ""
    return (
        f"{found['case']} at {found['size']:,} {found['unit']}, {found['pass']}, {threads}: "
        f"{found['contender']}{other} is {found['times']:.2f} times as fast{unsure}."
    )
