"""Peak of the bytes that tensors hold during a call, as torch's allocators count them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.autograd.profiler import profile


def peak_allocated_bytes(call: Callable[[], Any]) -> int:
    """Most bytes that tensors made during ``call`` hold at once; gradients and temporaries of kernels included.

    Every allocation and release is seen, on whatever device, so the number is exact and the same in every run, which
    resident memory is not. What kernels take elsewhere (scratch space of BLAS, Python objects) is not in it.

    The profiler that tells may write two lines to the standard error stream.
    """
    found = profile(profile_memory=True)
    with found:
        call()
    held = peak = 0
    events: Any = found.kineto_results
    for event in sorted((e for e in events.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
