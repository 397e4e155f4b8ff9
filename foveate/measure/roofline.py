"""This machine's roofline: how fast it multiplies, exponentiates and streams, measured, and where a call stands on it.

Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance Model for Multicore Architectures"
(Communications of the ACM, 2009), with a third roof for exponentials: attention and scans are often bound by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ..errors import invalid
from .cost import Cost
from .latency import measure_latency

#: Numbers in the tests: square matrices, an exponential whose numbers stay in the cache, a copy that fits in none.
GEMM_EDGE, EXP_NUMBERS, STREAM_NUMBERS = 768, 2**17, 2**25

Bound = Literal["gemm", "exp", "memory"]


@dataclass(frozen=True, slots=True)
class Peaks:
    """What the machine reaches in float32, medians of repeated calls through torch's own kernels.

    Attributes:
        threads: torch threads that it was reached with.
        gemm_flops: FLOP/s of a square matrix product.
        exps: exponentials per second on numbers in the cache, by the quicker of ``torch.exp`` and ``torch.exp2``.
        stream_bytes: bytes read and written per second by a copy far larger than the caches.
    """

    threads: int
    gemm_flops: float
    exps: float
    stream_bytes: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call stands on the roofline.

    Attributes:
        bound: the roof above it: "gemm" (arithmetic), "exp" (exponentials) or "memory".
        least_seconds: no call with this cost can be faster, if everything overlaps.
        intensity: arithmetic per byte moved.
        share: ``least_seconds`` over the measured time; None without one.
    """

    bound: Bound
    least_seconds: float
    intensity: float
    share: float | None = None


def measure_peaks(threads: int = 1, *, seconds: float = 0.4) -> Peaks:
    """Measure the three peaks, taking turns.

    Args:
        threads: torch threads; pinning them is the caller's business.
        seconds: time given to each.

    Raises:
        InvalidValue: ``threads`` or ``seconds`` is not positive.
    """
    a, b = torch.randn(2, GEMM_EDGE, GEMM_EDGE)
    product, numbers = torch.empty_like(a), torch.randn(EXP_NUMBERS)
    room = torch.empty_like(numbers)
    source = torch.ones(STREAM_NUMBERS)
    target = torch.empty_like(source)
    found = measure_latency(
        {
            "gemm": lambda: torch.mm(a, b, out=product),
            "exp": lambda: torch.exp(numbers, out=room),
            "exp2": lambda: torch.exp2(numbers, out=room),
            "stream": lambda: target.copy_(source),
        },
        seconds=seconds,
        threads=threads,
        minimum=7,
    )
    per_second = {name: 1e3 / latency.median for name, latency in found.items()}
    return Peaks(
        threads,
        gemm_flops=2 * GEMM_EDGE**3 * per_second["gemm"],
        exps=EXP_NUMBERS * max(per_second["exp"], per_second["exp2"]),
        stream_bytes=8 * STREAM_NUMBERS * per_second["stream"],
    )


def place(cost: Cost, peaks: Peaks, seconds: float | None = None) -> Place:
    """Where a forward pass of this cost stands.

    Args:
        cost: analytic; elementwise arithmetic counts as if it reached the peak of products.
        seconds: its measured time.

    Raises:
        InvalidValue: ``seconds`` is not positive.
    """
    if seconds is not None and seconds <= 0:
        raise invalid("seconds", seconds, "a measured time is positive")
    needs: dict[Bound, float] = {
        "gemm": (cost.flops + cost.elementwise) / peaks.gemm_flops,
        "exp": cost.exps / peaks.exps,
        "memory": cost.traffic_bytes / peaks.stream_bytes,
    }
    bound = max(needs, key=lambda roof: needs[roof])
    least = needs[bound]
    return Place(bound, least, cost.intensity, None if seconds is None else least / seconds)


def roofline(intensity: float, peak: float, bandwidth: float) -> float:
    """FLOP/s within reach at so many FLOPs per byte: ``min(peak, intensity * bandwidth)``."""
    return min(peak, intensity * bandwidth)
