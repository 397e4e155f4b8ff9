"""Checks of what a mixer says it costs, against what PyTorch counts."""

from __future__ import annotations

import math

import torch

from foveate.measure.cost import Cost
from foveate.measure.flops import count_flops
from foveate.measure.memory import saved_bytes
from foveate.ops import backend

from .cases import MixerCase
from .checking import Broken, check, expect

#: How far ``cost().activation_bytes`` may be from the bytes that autograd keeps, either way. A formula counts whole
#: activations; what it leaves out are masks, normalisers and paddings.
MEMORY_FACTOR = 1.3
#: ... and the small tensors that no formula needs to name (row sums, indices), per token of the example.
MEMORY_SLACK_PER_TOKEN = 16
#: How far the measured growth may be above or below the claimed exponent. At the lengths used, lower-order terms move
#: it by less than 0.1.
ORDER_SLACK = 0.2


def _cost_grids(case: MixerCase) -> list[tuple[int, ...]]:
    grids = [g for rank in case.spec.ranks for g in case.grids(rank)[1:]]
    if 1 in case.spec.ranks and not case.spec.grid.fixed:
        grids.append((case.length,))
    return grids or [case.grid()]


@check("mixer", variants_nightly=True)
def flops_are_those_counted(case: MixerCase) -> None:
    for causal in case.directions:
        for grid in _cost_grids(case):
            with torch.device("meta"):
                mixer = case.build(causal=causal, grid=grid)
            for batch in (1, 3):
                with torch.device("meta"), backend("torch"):
                    x = torch.empty(batch, *grid, 16)
                    counted = count_flops(lambda m=mixer, x=x: case.run(m, x))
                claimed = mixer.cost(grid, batch)
                expect(isinstance(claimed, Cost), f"cost() returns a {type(claimed).__name__}, not a Cost")
                what = f"grid {grid}, batch {batch}, causal={causal}"
                expect(claimed.flops == counted, f"{what}: cost() says {claimed.flops:,} FLOPs; counted: {counted:,}")
                expect(counted > 0, f"{what}: no FLOP was counted: nothing is held against anything")


@check("mixer")
def parameters_are_those_counted(case: MixerCase) -> None:
    for dim, heads in ((16, 2), (32, 4)):
        mixer = case.build(dim=dim, num_heads=heads)
        counted = sum(p.numel() for p in mixer.parameters())
        claimed = mixer.cost(case.grid()).parameters
        expect(claimed == counted, f"dim {dim}: cost() says {claimed} parameters; the module has {counted}")


@check("mixer")
def activation_bytes_are_near_those_kept(case: MixerCase) -> None:
    # Counted: storages that autograd keeps for the backward pass, each once, the mixer's parameters left out; the input
    # counts if the mixer keeps it, as it does in a network (foveate.measure.memory.saved_bytes).
    grids = [(case.length,)] if 1 in case.spec.ranks and not case.spec.grid.fixed else []
    grids += [case.grid(rank, tokens=64) for rank in case.spec.ranks]
    for causal in case.directions:
        for grid in grids:
            mixer, x = case.build(causal=causal, grid=grid), case.input(grid)
            wide, layout = case.widen(mixer, x)
            with backend("torch"):
                kept = saved_bytes(mixer, wide.requires_grad_(), **({} if layout is None else {"layout": layout}))
            claimed, slack = mixer.cost(grid, 2).activation_bytes, MEMORY_SLACK_PER_TOKEN * wide[..., 0].numel()
            low, high = kept / MEMORY_FACTOR - slack, kept * MEMORY_FACTOR + slack
            expect(
                low <= claimed <= high,
                f"grid {grid}, causal={causal}: cost() says {claimed:,} bytes are saved for backward; "
                f"{kept:,} are (a factor of {MEMORY_FACTOR} is allowed)",
            )


@check("mixer", lambda spec: spec.streaming != "no" and 1 in spec.ranks)
def state_bytes_are_near_those_held(case: MixerCase) -> None:
    for length in (case.block // 2 + 1, case.length):
        mixer = case.build(causal=True, grid=(case.length,))
        slots, _ = case.widen(mixer, case.input((length,)))
        _, state = mixer.prefill(slots, mixer.init_state(2))
        claimed = mixer.cost((length,), 2).state_bytes
        low, high = state.nbytes / MEMORY_FACTOR - 64, state.nbytes * MEMORY_FACTOR + 64
        expect(
            low <= claimed <= high, f"{length} tokens: cost() says {claimed:,} bytes of state; it has {state.nbytes:,}"
        )


@check("mixer", lambda spec: spec.streaming == "no")
def no_state_no_bytes(case: MixerCase) -> None:
    claimed = case.build().cost(case.grid()).state_bytes
    expect(claimed == 0, f"cost() says {claimed} bytes of state, but the spec says streaming='no'")


def _growing_grids(case: MixerCase, tokens: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [case.grid(min(case.spec.ranks), n) for n in tokens]


def _exponent(grids: list[tuple[int, ...]], values: list[int]) -> float:
    """Growth of the values in the number of tokens, by the last two grids."""
    tokens = [math.prod(g) for g in grids]
    return math.log(values[-1] / values[-2]) / math.log(tokens[-1] / tokens[-2])


@check("mixer", lambda spec: not spec.grid.fixed, variants_nightly=True)
def flops_grow_as_claimed(case: MixerCase) -> None:
    claimed, counts, grids = case.spec.order.flops, [], []
    for grid in _growing_grids(case, (1024, 2048, 4096)):
        with torch.device("meta"), backend("torch"):
            mixer = case.build(grid=grid)
            x = torch.empty(1, *grid, 16)
            counts.append(count_flops(lambda m=mixer, x=x: case.run(m, x)))
        grids.append(grid)
        # The largest grid, seconds for some mixers, is for those whose leading term shows late.
        if len(grids) > 1 and abs(_exponent(grids, counts) - claimed) <= ORDER_SLACK:
            return
    raise Broken(
        f"FLOPs grow as n^{_exponent(grids, counts):.2f} ({counts} at grids {grids}); the spec says n^{claimed}"
    )


@check("mixer", lambda spec: not spec.grid.fixed)
def memory_grows_as_claimed(case: MixerCase) -> None:
    kept, grids = [], _growing_grids(case, (256, 512, 1024))
    for grid in grids:
        mixer = case.build(grid=grid)
        wide, layout = case.widen(mixer, case.input(grid, 1))
        with backend("torch"):
            kept.append(saved_bytes(mixer, wide.requires_grad_(), **({} if layout is None else {"layout": layout})))
    claimed, found = case.spec.order.memory, _exponent(grids, kept)
    expect(
        abs(found - claimed) <= ORDER_SLACK,
        f"bytes saved for backward grow as n^{found:.2f} ({kept} at grids {grids}); the spec says n^{claimed}",
    )
