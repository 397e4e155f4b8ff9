"""Processor time of a call, for claims about growth: unlike the wall clock it does not count waiting for others."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from ..measure.heap import keep_freed_memory


def cpu_seconds(call: Callable[[], object], repeats: int) -> float:
    """Least processor time of several calls on one thread, after one to warm up.

    The process keeps the memory that it frees from here on: growth would else be that of page faults, which begin
    where tensors outgrow the C library's heap.
    """
    keep_freed_memory()
    threads, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for _ in range(repeats + 1):
            before = time.process_time()
            call()
            times.append(time.process_time() - before)
    finally:
        torch.set_num_threads(threads)
    return min(times[1:])


def exponent(seconds: tuple[float, float], lengths: tuple[int, int]) -> float:
    """The power of the length with which a time grows between two lengths."""
    return math.log(seconds[1] / seconds[0]) / math.log(lengths[1] / lengths[0])
