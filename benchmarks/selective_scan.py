"""How much faster the fast forms of S6 and SSD are than the loop over positions, at growing lengths.

    python benchmarks/selective_scan.py               # 1 thread
    python benchmarks/selective_scan.py --threads 2

The sizes are those of a Mamba block of width 64: 128 inner channels, 16 states (S6) or two heads of 64 with 128 states
(SSD). Each form gets the same inputs; calls take turns, so that a drift of the machine hits all of them. Gradients of
the loop are left out at 65,536 positions, where it keeps several gigabytes. Refuses to measure on a busy machine, or
when two forms disagree.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import psutil
import torch
from torch import Tensor

from foveate.measure.latency import measure_latency
from foveate.measure.machine import machine_facts
from foveate.ops import backend
from foveate.ops.selective_scan import selective_scan
from foveate.ops.ssd import ssd

LENGTHS = (256, 4096, 65536)
LONGEST_LOOP_WITH_GRADIENTS = 4096

Op = Callable[[], Tensor]


def s6(length: int) -> tuple[Op, list[Tensor]]:
    """A selective scan over ``length`` positions, and the tensors it has gradients for."""
    channels, states = 128, 16
    # Stored as a mixer has them: time before channels.
    u, z, B, C = (torch.randn(1, length, n).mT for n in (channels, channels, states, states))
    delta = (torch.randn(1, length, channels) * 0.5 - 3).mT
    A = -torch.arange(1, states + 1.0).repeat(channels, 1)
    given = [v.requires_grad_() for v in (u, delta, A, B, C, torch.randn(channels), z)]
    return lambda: selective_scan(*given, delta_softplus=True), given  # type: ignore[return-value]


def ssd_op(length: int) -> tuple[Op, list[Tensor]]:
    """SSD over ``length`` positions, and the tensors it has gradients for."""
    heads, width, states = 2, 64, 128
    x, B, C = (torch.randn(1, length, n, m) for n, m in ((heads, width), (1, states), (1, states)))
    dt, A = torch.rand(1, length, heads) * 0.1, -torch.rand(heads) * 15 - 1
    given = [v.requires_grad_() for v in (x, dt, A, B, C)]
    return lambda: ssd(*given, D=A), given  # type: ignore[return-value]


def under(name: str, call: Callable[[], object]) -> Callable[[], None]:
    """``call`` with this form of the ops."""

    def run() -> None:
        with backend(name):
            call()

    return run


def with_gradients(op: Op, given: list[Tensor]) -> Callable[[], None]:
    """The op and its backward pass."""

    def run() -> None:
        with torch.inference_mode(False), torch.enable_grad():
            torch.autograd.grad(op().sum(), given)

    return run


def measure(name: str, length: int, threads: int, seconds: float) -> None:
    """Print times and ratios of one op at one length."""
    torch.manual_seed(0)
    op, given = {"S6": s6, "SSD": ssd_op}[name](length)
    with torch.no_grad():
        with backend("reference"):
            expected = op()
        torch.testing.assert_close(op(), expected, rtol=1e-3, atol=1e-3)
    for what, call in (("forward", op), ("forward and backward", with_gradients(op, given))):
        forms = {"blocks": under("torch", call)}
        if what == "forward" or length <= LONGEST_LOOP_WITH_GRADIENTS:
            forms["loop"] = under("reference", call)
        found = measure_latency(forms, seconds=seconds, threads=threads, warmup=1)
        fast, slow = found["blocks"], found.get("loop")
        ratio = f"loop {slow.median:9.1f} ms   ratio {slow.median / fast.median:5.1f}" if slow else ""
        print(
            f"{name:4} {length:6} positions  {what:21} blocks {fast.median:8.2f} ms "
            f"({fast.low:.2f}-{fast.high:.2f})   {ratio}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each measurement (default: 2)")
    parser.add_argument("--busy", action="store_true", help="measure although the machine is busy")
    options = parser.parse_args()
    load = psutil.cpu_percent(interval=1)
    if load > 25 and not options.busy:
        sys.exit(f"the machine is {load:.0f} % busy: times would mean nothing (--busy measures anyway)")
    facts = machine_facts()
    print(f"{facts['cpu']}, {options.threads} thread(s), torch {torch.__version__}, machine {load:.0f} % busy before")
    for name in ("S6", "SSD"):
        for length in LENGTHS:
            measure(name, length, options.threads, options.seconds)


if __name__ == "__main__":
    main()
