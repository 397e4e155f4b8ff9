"""Run a benchmark: test, then time everything interleaved, and leave a record of numbers.

At each size, all contenders of a pass take turns in short slices (:func:`foveate.measure.latency.measure_times`), so
that a drift of the machine hits all alike and ratios hold. Thread counts are runs of their own, one after the other.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import torch

from ..measure.allocated import peak_allocated_bytes
from ..measure.latency import measure_times
from ..measure.machine import machine_facts, versions
from ..measure.roofline import Peaks, measure_peaks, place
from ..ops import native
from . import agreement
from .cases import OURS, Case, Problem
from .numbers import ratio, summary
from .peers import Contender, Peer, Unfit, all_peers
from .pinning import BUSY, Others, pinned, refuse_if_busy
from .results import slower_than_a_peer, with_growth
from .settings import BenchSettings

#: Calls that are timed at least, and those of what takes longer than so many seconds.
FEWEST_CALLS, FEWEST_SLOW_CALLS, SLOW = 7, 3, 3.0
#: Memory is measured by listening to every allocation: a call of very many small operators would fill the memory with
#: what was heard.
LONGEST_FOR_MEMORY = 1.0

Event = Callable[[str], None]


def run_benchmark(
    cases: Sequence[Case],
    settings: BenchSettings,
    *,
    peers: Sequence[Peer] | None = None,
    command: str = "",
    on_event: Event = lambda _: None,
) -> dict[str, Any]:
    """Measure.

    Args:
        cases: what to time.
        settings: how.
        peers: None: every adapter, if the settings want peers.
        command: put on record.
        on_event: told what is being done, a line each.

    Returns:
        The record, plain values for JSON: "machine", "versions", "settings", "peaks", "rows" (one for each case, size,
        pass, thread count and contender, with its status), "growth", "slower", "left_out".

    Raises:
        InvalidValue: the machine is busy, and the settings do not say to measure anyway.
    """
    load = refuse_if_busy(allowed=100.0 if settings.busy else BUSY)
    peers = (all_peers() if settings.peers else []) if peers is None else peers
    others = Others()
    run = _Run(settings, peers, on_event)
    for case in cases:
        run.check(case)
    for threads in settings.threads:
        with pinned(threads) as cores, _threads(threads):
            run.pins[threads] = cores
            run.peaks[threads] = measure_peaks(threads, seconds=min(0.4, settings.seconds))
            for case in cases:
                run.time(case, threads)
    record = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "machine": machine_facts() | {"kernels": native.chosen() or "none", "pinned_to": _by_text(run.pins)},
        "versions": versions() | _peer_versions(peers),
        "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(settings).items()},
        "busy": {
            "before": load,
            "during": others.percent(),
            "allowed": BUSY,
            "measured_anyway": settings.busy and load > BUSY,
        },
        "peaks": {str(threads): asdict(peaks) for threads, peaks in run.peaks.items()},
        "cases": [
            {k: getattr(c, k) for k in ("name", "kind", "about", "unit")} | {"sizes": list(settings.sizes_of(c))}
            for c in cases
        ],
        "rows": run.rows,
        "left_out": run.left_out,
    }
    record["growth"] = with_growth(run.rows, {c.name: c.order for c in cases})
    record["slower"] = slower_than_a_peer(run.rows)
    return record


def _by_text(values: Mapping[int, Any]) -> dict[str, Any]:
    return {str(k): v for k, v in values.items()}


def _peer_versions(peers: Sequence[Peer]) -> dict[str, str]:
    """Versions of the libraries that take part."""
    names = sorted({p.package for p in peers if p.package and p.package in sys.modules})
    distributions = metadata.packages_distributions() if names else {}  # seconds: it reads what every package installed
    return {name: metadata.version(distributions[name][0]) for name in names if name in distributions}


class _Run:
    """What is known so far."""

    def __init__(self, settings: BenchSettings, peers: Sequence[Peer], on_event: Event) -> None:
        self.settings, self.on_event = settings, on_event
        self.absent = {peer.name: peer.absent() for peer in peers}
        self.peers = list(peers)
        self.rows: list[dict[str, Any]] = []
        self.left_out: list[dict[str, str]] = []
        self.refused: dict[str, dict[str, str]] = {}  # case -> contender -> why it is not timed
        self.memory: dict[tuple[Any, ...], int | None] = {}
        self.peaks: dict[int, Peaks] = {}
        self.pins: dict[int, list[int]] = {}

    def check(self, case: Case) -> None:
        """Hold every contender of a case against the definition."""
        size = case.check_size(self.settings.sizes_of(case))
        self.on_event(f"{case.name}: does it agree with its definition at {size:,} {case.unit}?")
        try:
            problem = _problem(case, size)
        except Exception as error:  # a case that cannot even be built is told, and the others go on
            self.refused[case.name] = {OURS: f"it cannot be built: {agreement.first_line(error)}"}
            self._leave_out(case, OURS, self.refused[case.name][OURS])
            return
        contenders, same, unfit = self._contenders(case, problem)
        passes = self._passes(case)
        found = agreement.disagreements(problem, contenders, passes, same)
        for name, reason in {**unfit, **found}.items():
            self._leave_out(case, name, reason)
        self.refused[case.name] = found

    def time(self, case: Case, threads: int) -> None:
        """Time a case at all sizes and passes."""
        refused = self.refused[case.name]
        if OURS in refused:
            return
        for size in self.settings.sizes_of(case):
            problem = _problem(case, size)
            contenders, same, unfit = self._contenders(case, problem)
            for name, reason in unfit.items():
                here = "" if reason == self.absent.get(name) else f" ({size:,} {case.unit})"
                self._leave_out(case, name, reason + here)
            if size > case.reference_up_to:
                contenders.pop(f"{OURS}, reference form", None)
            contenders = {name: c for name, c in contenders.items() if name not in refused}
            for which in self._passes(case):
                self.on_event(f"{case.name}: {size:,} {case.unit}, {which}, {threads} thread{'s' * (threads > 1)}")
                self._group(case, problem, contenders, same, (size, which, threads))

    def _group(
        self,
        case: Case,
        problem: Problem,
        contenders: Mapping[str, Contender],
        same: Mapping[str, bool],
        at: tuple[int, str, int],
    ) -> None:
        """Time the contenders of one size, pass and thread count, taking turns."""
        size, which, threads = at
        calls: dict[str, Callable[[], Any]] = {}
        slow = False
        for name, contender in contenders.items():
            if "backward" in which and contender.no_backward:
                self._leave_out(case, name, f"forward only: {contender.no_backward}")
                continue
            call = _timed(problem, contender, which)
            seconds = _one_call(call)
            if seconds > self.settings.limit:
                reason = f"one call takes {seconds:.0f} s ({size:,} {case.unit}, {which})"
                if name == OURS:
                    self._leave_out(case, name, reason)
                    return
                self._leave_out(case, name, reason)
                continue
            calls[name], slow = call, slow or seconds > SLOW
            key = (case.name, name, which, size)
            if key not in self.memory:
                self.memory[key] = _peak_bytes(call) if seconds < LONGEST_FOR_MEMORY else None
        times = measure_times(
            calls,
            seconds=self.settings.seconds,
            threads=threads,
            warmup=1,
            minimum=FEWEST_SLOW_CALLS if slow else FEWEST_CALLS,
        )
        ours = times[OURS]
        for name, durations in times.items():
            figures = summary(durations)
            middle, low, high = (1.0, 1.0, 1.0) if name == OURS else ratio(durations, ours)
            row = {
                "case": case.name,
                "kind": case.kind,
                "size": size,
                "unit": case.unit,
                "pass": which,
                "threads": threads,
                "contender": name,
                "ours": name.startswith(OURS),
                "same_function": same.get(name, True),
                **figures,
                "ratio": middle,
                "ratio_low": low,
                "ratio_high": high,
                "peak_bytes": self.memory[case.name, name, which, size],
            }
            if problem.cost is not None and which == "forward" and name == OURS:
                row |= _on_the_roofline(problem, self.peaks[threads], figures["median_ms"] / 1e3)
            self.rows.append(row)

    def _contenders(self, case: Case, problem: Problem) -> tuple[dict[str, Contender], dict[str, bool], dict[str, str]]:
        """All contenders by name, whether each computes the same, and why others cannot do this problem."""
        contenders, same, unfit = agreement.our_contenders(problem, case.forms), {}, {}
        for peer in self.peers:
            if not peer.serves(case):
                continue
            if self.absent[peer.name]:
                unfit[peer.name] = self.absent[peer.name]
                continue
            torch.manual_seed(0)
            try:
                contenders[peer.name] = peer.make(problem)
            except Unfit as error:
                unfit[peer.name] = str(error)
            except Exception as error:  # a foreign library may fail in any way; the others go on
                unfit[peer.name] = f"it fails: {agreement.first_line(error)}"
            same[peer.name] = peer.same
        return contenders, same, unfit

    def _passes(self, case: Case) -> list[str]:
        return [name for name in self.settings.passes if name in case.passes]

    def _leave_out(self, case: Case, contender: str, reason: str) -> None:
        told = {"case": case.name, "contender": contender, "reason": reason}
        if told not in self.left_out:
            self.left_out.append(told)


def _problem(case: Case, size: int) -> Problem:
    """The same numbers at every call."""
    torch.manual_seed(0)
    return case.make(size)


def _timed(problem: Problem, contender: Contender, which: str) -> Callable[[], Any]:
    """One call, as it is timed. Gradients are those of a fixed direction; of a sum, they would be one number."""
    if which == "forward":
        return lambda: contender.call(**problem.inputs)
    inputs, leaves = agreement.trainable(problem, contender)
    direction = torch.randn(contender.call(**inputs).shape)

    def call() -> None:
        with torch.inference_mode(False), torch.enable_grad():
            torch.autograd.grad(contender.call(**inputs), leaves, direction, allow_unused=True)

    return call


def _one_call(call: Callable[[], Any]) -> float:
    """Seconds of the second call; the first one compiles and warms up."""
    with torch.inference_mode():
        call()
        before = time.perf_counter()
        call()
        return time.perf_counter() - before


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _peak_bytes(call: Callable[[], Any]) -> int:
    with torch.inference_mode():
        return peak_allocated_bytes(call)


def _on_the_roofline(problem: Problem, peaks: Peaks, seconds: float) -> dict[str, Any]:
    """Arithmetic of the forward pass, and the share of what the machine could do."""
    cost = problem.cost
    if cost is None:
        return {}
    found = place(cost, peaks, seconds)
    return {
        "flops": cost.flops,
        "elementwise": cost.elementwise,
        "exps": cost.exps,
        "moved_bytes": cost.traffic_bytes,
        "intensity": found.intensity,
        "bound": found.bound,
        "roof_share": found.share,
    }
