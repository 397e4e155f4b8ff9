"""What a profile found: shares, lengths, intensity, and what a faster attention would bring."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..errors import unknown_name
from .beyond_llms import amdahl
from .operators import Record

By = Literal["kind", "module", "operator"]
Of = Literal["seconds", "flops", "bytes"]

#: What the path of a module says about its attention, tried in this order; where it says nothing, one length means
#: self attention, and several lengths cross attention or, with a single query, a step of decoding.
ATTENTION_NAMES = (("temporal", re.compile(r"temporal|motion|time_attn")), ("cross", re.compile(r"cross|attn2")))


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention of a call.

    Attributes:
        module: path of the module that ran it.
        maps: batch times heads.
        queries, keys: their numbers.
        kind: "self", "cross", "temporal" or "decode", see :data:`ATTENTION_NAMES`.
    """

    module: str
    maps: int
    queries: int
    keys: int
    kind: str

    def similarity_bytes(self, each: int = 2) -> int:
        """Bytes of the matrices of all its maps; a fused attention never writes them."""
        return each * self.maps * self.queries * self.keys


@dataclass(frozen=True, slots=True)
class Report:
    """All operators of one or more calls.

    Attributes:
        records: in order.
        wall_seconds: of the calls, less the time that recording took.
        unattributed: share of them that no operator took.
        parameters: of the model.
        steps: calls.
    """

    records: tuple[Record, ...]
    wall_seconds: float
    unattributed: float
    parameters: int
    steps: int = 1

    @property
    def seconds(self) -> float:
        """Time in operators."""
        return sum(r.seconds for r in self.records)

    def totals(self, by: By = "kind", of: Of = "seconds") -> dict[str, float]:
        """Seconds, FLOPs or bytes of each kind, module or operator, the largest first.

        Raises:
            UnknownName: ``by`` or ``of`` is none of these.
        """
        groups: dict[str, Callable[[Record], str]] = {
            "kind": lambda r: r.kind,
            "module": lambda r: r.module,
            "operator": lambda r: r.name,
        }
        figures: dict[str, Callable[[Record], float]] = {
            "seconds": lambda r: r.seconds,
            "flops": lambda r: r.flops,
            "bytes": lambda r: r.moved_bytes,
        }
        if by not in groups:
            raise unknown_name("grouping", by, groups)
        if of not in figures:
            raise unknown_name("figure", of, figures)
        found: dict[str, float] = {}
        for record in self.records:
            group = groups[by](record)
            found[group] = found.get(group, 0) + figures[of](record)
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def breakdown(self, by: By = "kind", of: Of = "seconds") -> dict[str, float]:
        """:meth:`totals` as shares of 1."""
        totals = self.totals(by, of)
        whole = sum(totals.values())
        return {group: value / whole if whole else 0.0 for group, value in totals.items()}

    def flops(self) -> int:
        """FLOPs of products, convolutions and attention."""
        return sum(r.flops for r in self.records)

    def bytes(self) -> int:
        """Bytes that all operators read and write, each for itself."""
        return sum(r.moved_bytes for r in self.records)

    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.flops() / self.bytes() if self.bytes() else 0.0

    def sequence_lengths(self) -> list[Attention]:
        """Every attention in the order of the calls: how the length changes over the depth."""
        return [_attention(r) for r in self.records if r.lengths is not None and r.kind == "attention"]

    def seconds_by_length(self) -> dict[int, float]:
        """Seconds of attention for each number of queries, the longest first."""
        found: dict[int, float] = {}
        for record in self.records:
            lengths = self.records[record.part_of].lengths if record.part_of >= 0 else None
            if lengths is not None:
                found[lengths[1]] = found.get(lengths[1], 0.0) + record.seconds
        return dict(sorted(found.items(), reverse=True))

    @property
    def phase(self) -> str:
        """ "decode" if every attention but a cross one has a single query, "prefill" otherwise."""
        own = [a for a in self.sequence_lengths() if a.kind in ("self", "decode")]
        return "decode" if own and all(a.queries == 1 for a in own) else "prefill"

    def accelerated(self, kind: str, times: float) -> dict[str, float]:
        """Shares of the time if one kind were so many times as fast, by Amdahl's law."""
        return amdahl(self.breakdown(), kind, times)

    def compare(self, other: Report) -> dict[str, Any]:
        """This report against one of the same model made faster.

        Returns:
            "times": how many times as fast each kind is there; "predicted": the whole by Amdahl's law, from these
            shares and the attention's gain alone; "measured": the whole.
        """
        here, there = self.totals(), other.totals()
        times = {kind: here[kind] / there[kind] for kind in here if there.get(kind)}
        share, gain = self.breakdown().get("attention", 0.0), times.get("attention", 1.0)
        return {
            "times": times,
            "predicted": 1 / (1 - share * (1 - 1 / gain)),
            "measured": self.seconds / other.seconds if other.seconds else float("inf"),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values: the totals, the lengths and every record."""
        figures: Mapping[str, Of] = {"seconds": "seconds", "flops": "flops", "bytes": "bytes"}
        return {
            "steps": self.steps,
            "parameters": self.parameters,
            "wall_seconds": self.wall_seconds,
            "unattributed": self.unattributed,
            "intensity": self.intensity(),
            "phase": self.phase,
            "kinds": {name: self.totals("kind", of) for name, of in figures.items()},
            "sequence_lengths": [asdict(a) for a in self.sequence_lengths()],
            "records": [asdict(r) for r in self.records],
        }

    def text(self) -> str:
        """The breakdown by kind as lines of text."""
        lines = [f"{'kind':12} {'time':>6} {'FLOPs':>6} {'bytes':>6}"]
        time, flops, moved = self.breakdown(), self.breakdown(of="flops"), self.breakdown(of="bytes")
        for kind, share in time.items():
            lines.append(f"{kind:12} {share:6.1%} {flops[kind]:6.1%} {moved[kind]:6.1%}")
        lengths = [f"{a.queries}" if a.queries == a.keys else f"{a.queries}x{a.keys}" for a in self.sequence_lengths()]
        return "\n".join([*lines, f"{self.intensity():.1f} FLOPs per byte", f"lengths: {' '.join(lengths) or 'none'}"])


def _attention(record: Record) -> Attention:
    maps, queries, keys = record.lengths or (0, 0, 0)
    named = next((kind for kind, pattern in ATTENTION_NAMES if pattern.search(record.module.lower())), None)
    kind = named or ("self" if queries == keys else "decode" if queries == 1 else "cross")
    return Attention(record.module, maps, queries, keys, kind)
