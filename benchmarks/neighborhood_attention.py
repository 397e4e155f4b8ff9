"""Neighborhood attention against what one would use instead, and its variants against the plain case.

    python benchmarks/neighborhood_attention.py               # 1 thread
    python benchmarks/neighborhood_attention.py --threads 2

Two sizes: a feature map of 56 x 56 with a window of 7 x 7, as in DiNAT's first stage, and a clip of 16 x 28 x 28 with a
window of 5 x 7 x 7; 4 heads of 32. Peers: dense attention under the same mask (PyTorch's SDPA, the mask made
beforehand), compiled flex attention with the rule as its mask function (no backward pass on CPUs), every window
gathered, and natten where it is installed. Calls take turns. Refuses to measure on a busy machine, or
when two answers disagree.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import sys
from collections.abc import Callable
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from foveate.measure.latency import Latency, measure_latency
from foveate.measure.machine import machine_facts
from foveate.ops import backend
from foveate.ops.neighborhood_attention import neighborhood_attention, neighborhood_mask
from foveate.ops.neighborhood_windows import axes_of, neighborhood_pairs

HEADS, WIDTH = 4, 32
SIZES = {"map": ((56, 56), (7, 7)), "clip": ((16, 28, 28), (5, 7, 7))}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "even, 6": {"window": 6},
    "even, 8": {"window": 8},
    "dilation 2": {"dilation": 2},
    "dilation 8": {"dilation": 8},
    "stride 2": {"stride": 2},
    "stride 4": {"stride": 4},
    "blocks, stride 7": {"stride": 7},
    "one axis causal": {"causal": (True, False)},
    "causal": {"causal": True},
}

Call = Callable[[Tensor, Tensor, Tensor], Tensor]


def flex(grid: tuple[int, ...], window: tuple[int, ...], block: int) -> Call:
    """Compiled flex attention; its mask function is the rule, written for one pair of positions."""

    def sees(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        seen = torch.ones((), dtype=torch.bool)
        for size, w in zip(reversed(grid), reversed(window), strict=True):
            start = (i % size - w // 2).clamp(0, size - w)
            seen = seen & (j % size >= start) & (j % size < start + w)
            i, j = i // size, j // size
        return seen

    n = math.prod(grid)
    mask = create_block_mask(sees, None, None, n, n, device="cpu", BLOCK_SIZE=block)
    compiled = torch.compile(flex_attention)
    return lambda q, k, v: compiled(*(m.flatten(2, -2) for m in (q, k, v)), block_mask=mask).view(q.shape)  # type: ignore


def peers(grid: tuple[int, ...], window: tuple[int, ...]) -> dict[str, Call]:
    """The same answer by other means, on ``(1, HEADS, *grid, WIDTH)``."""
    mask = neighborhood_mask(grid, window)
    added = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    found: dict[str, Call] = {}
    for name, given in (("SDPA, bool mask", mask), ("SDPA, float mask", added)):
        found[name] = lambda q, k, v, given=given: F.scaled_dot_product_attention(
            *(m.flatten(2, -2) for m in (q, k, v)), attn_mask=given
        ).view(q.shape)
    index = mask.nonzero()[:, 1].view(len(mask), -1)

    def gather(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        near, values = (m.flatten(2, -2)[:, :, index] for m in (k, v))
        scores = (near @ q.flatten(2, -2).unsqueeze(-1)).squeeze(-1) / math.sqrt(WIDTH)
        return (scores.softmax(-1).unsqueeze(-2) @ values).view(q.shape)

    if len(grid) < 3:  # three gigabytes of gathered keys otherwise
        found["gather"] = gather
    found |= {f"flex, block {block}": flex(grid, window, block) for block in (32, 64)}
    if importlib.util.find_spec("natten"):
        import natten  # type: ignore[import-not-found]

        official = {2: natten.na2d, 3: natten.na3d}[len(grid)]
        found["natten"] = lambda q, k, v: official(*(m.movedim(1, -2) for m in (q, k, v)), window).movedim(-2, 1)
    return found


def with_gradients(call: Call, given: list[Tensor], grad: Tensor) -> Callable[[], None]:
    """A call and its backward pass."""

    def run() -> None:
        with torch.inference_mode(False), torch.enable_grad():
            torch.autograd.grad(call(*given), given, grad)

    return run


def shown(name: str, each: Latency, ours: Latency) -> str:
    return f"    {name:18} {each.median:9.2f} ms ({each.low:.2f}-{each.high:.2f})   {each.median / ours.median:6.1f} x"


def against_peers(size: str, threads: int, seconds: float) -> None:
    """Times of ours and of each peer at one size, and ratios to ours."""
    grid, window = SIZES[size]
    torch.manual_seed(0)
    given = [torch.randn(1, HEADS, *grid, WIDTH, requires_grad=True) for _ in range(3)]
    grad = torch.randn(1, HEADS, *grid, WIDTH)
    others = peers(grid, window)
    plain: dict[str, Call] = {"foveate": lambda q, k, v: neighborhood_attention(q, k, v, window)}  # type: ignore
    with torch.no_grad():
        plainly = [m.detach() for m in given]  # flex refuses what has gradients
        expected = plain["foveate"](*plainly)
        for name, call in others.items():
            torch.testing.assert_close(
                call(*plainly), expected, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
    boxed = {"foveate, boxes": plain["foveate"]}
    forms = {
        "forward": {n: (lambda c=c: c(*plainly)) for n, c in (plain | boxed | others).items()},
        "forward and backward": {
            n: with_gradients(c, given, grad)
            for n, c in (plain | boxed | others).items()
            if not n.startswith(("flex", "natten"))
        },
    }
    for what, calls in forms.items():
        boxes = calls["foveate, boxes"]
        found = measure_latency({**calls, "foveate, boxes": under_torch(boxes)}, seconds=seconds, threads=threads)
        print(f"{size} {grid}, window {window}: {what}")
        for name, each in found.items():
            print(shown(name, each, found["foveate"]))


def under_torch(call: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        with backend("torch"):
            call()

    return run


def variants(threads: int, seconds: float) -> None:
    """Times per pair of query and key that see each other, and ratios to the plain case."""
    grid = SIZES["map"][0]
    given = [torch.randn(1, HEADS, *grid, WIDTH, requires_grad=True) for _ in range(3)]
    grad, table = torch.randn(1, HEADS, *grid, WIDTH), torch.randn(HEADS, 13, 13, requires_grad=True)
    calls, pairs = {}, {}
    for name, options in VARIANTS.items():
        options = {"window": 7, **options}
        biased = options.pop("bias", False)
        pairs[name] = neighborhood_pairs(axes_of(grid, **options)) * HEADS
        bias = table if biased else None
        call = lambda q, k, v, o=options, b=bias: neighborhood_attention(q, k, v, bias=b, **o)  # noqa: E731
        leaves = [*given, table] if biased else given
        both = with_gradients(lambda *m, c=call: c(*m[:3]), leaves, grad)  # type: ignore[arg-type]
        calls[name, "forward"], calls[name, "both"] = lambda c=call: c(*given), both
    named = {f"{name}/{what}": call for (name, what), call in calls.items()}
    found = measure_latency(named, seconds=seconds, threads=threads)
    print(f"variants on {grid}: nanoseconds per pair, and ratio to the plain case")
    for name, what in itertools.product(VARIANTS, ("forward", "both")):
        each, plain = (found[f"{n}/{what}"].median * 1e6 / pairs[n] for n in (name, "plain"))
        print(f"    {name:18} {what:8} {each:6.2f} ns   {each / plain:5.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each measurement (default: 1)")
    parser.add_argument("--busy", action="store_true", help="measure although the machine is busy")
    parser.add_argument("--only", choices=[*SIZES, "variants"], help="one table (default: all)")
    options = parser.parse_args()
    load = psutil.cpu_percent(interval=1)
    if load > 25 and not options.busy:
        sys.exit(f"the machine is {load:.0f} % busy: times would mean nothing (--busy measures anyway)")
    facts = machine_facts()
    torch.set_num_threads(options.threads)
    print(f"{facts['cpu']}, {options.threads} thread(s), torch {torch.__version__}, machine {load:.0f} % busy before")
    for size in SIZES:
        if options.only in (None, size):
            against_peers(size, options.threads, options.seconds)
    if options.only in (None, "variants"):
        variants(options.threads, options.seconds)


if __name__ == "__main__":
    main()
