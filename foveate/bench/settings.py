"""What a benchmark is told."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InvalidValue, invalid, unknown_name
from ..measure.machine import usable_cores
from .cases import PASSES, Case


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """How to measure.

    Attributes:
        sizes: instead of each case's own; () for those.
        passes: of :data:`~foveate.bench.cases.PASSES`.
        threads: torch threads, one run after the other, each pinned to as many cores.
        seconds: time given to each contender at each size; seven calls are timed in any case (three, of a slow one).
        limit: seconds that one call may take; slower ones are left out.
        busy: measure although the machine is busy.
        peers: measure other libraries too.

    Raises:
        InvalidValue: a number that is not positive, more threads than cores, an empty list.
        UnknownName: an unknown pass.
    """

    sizes: tuple[int, ...] = ()
    passes: tuple[str, ...] = PASSES
    threads: tuple[int, ...] = (1, 2)
    seconds: float = 0.5
    limit: float = 30.0
    busy: bool = False
    peers: bool = True

    def __post_init__(self) -> None:
        for name in self.passes:
            if name not in PASSES:
                raise unknown_name("pass", name, PASSES)
        for option in ("passes", "threads"):
            if not getattr(self, option):
                raise invalid(option, getattr(self, option), "at least one is needed")
        for option in ("seconds", "limit"):
            if not getattr(self, option) > 0:
                raise invalid(option, getattr(self, option), "a positive number of seconds is needed")
        for size in self.sizes:
            if size < 1:
                raise invalid("sizes", size, "a size is a positive whole number")
        cores = usable_cores()
        for count in self.threads:
            if not 1 <= count <= cores:
                raise InvalidValue(f"threads={count!r} is not possible: this process may use {cores} cores.")

    def sizes_of(self, case: Case) -> tuple[int, ...]:
        """The sizes at which a case is timed, ascending."""
        return tuple(sorted(set(self.sizes or case.sizes)))
