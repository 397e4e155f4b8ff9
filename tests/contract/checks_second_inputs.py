"""Checks of what a mixer may read besides its tokens: context, layouts, segments."""

from __future__ import annotations

import torch

from foveate.errors import InvalidValue
from foveate.mixers import TokenLayout

from .cases import MixerCase
from .checking import check, close, expect, refused


@check("mixer", lambda spec: spec.cross)
def reads_a_context_instead_of_itself(case: MixerCase) -> None:
    mixer, grid = case.build(causal=False) if case.spec.bidirectional else case.build(), case.grid()
    x, context = case.input(grid), case.input((7,), seed=7)
    y = mixer(x, context=context)
    expect(y.shape == x.shape, f"with context the output has shape {tuple(y.shape)}, not {tuple(x.shape)}")
    expect(not torch.allclose(y, mixer(x, context=case.input((7,), seed=8))), "the context has no influence")
    other = case.input(grid, seed=9)
    other.flatten(1, -2)[:, 0] = x.flatten(1, -2)[:, 0]
    first, again = (mixer(tokens, context=context).flatten(1, -2)[:, 0] for tokens in (x, other))
    close(again, first, "with context, a token's output after the other tokens of x were replaced")
    with refused(InvalidValue, (case.cls.__name__, "context"), "a context of another width"):
        mixer(x, context=case.input((7,), dim=15))
    with refused(InvalidValue, (case.cls.__name__, "context"), "a context of another batch"):
        mixer(x, context=case.input((7,), batch=3))


@check("mixer", lambda spec: spec.cross and spec.masks)
def a_context_leaves_masked_tokens_zero(case: MixerCase) -> None:
    mixer, mask = case.build(), case.mask()
    y = mixer(case.input(), mask=mask, context=case.input((7,), seed=7))
    expect((y[~mask] == 0).all(), "with context, masked tokens come out as something else than zeros")


@check("mixer", lambda spec: not spec.cross, once=True)
def refuses_a_context(case: MixerCase) -> None:
    with refused(InvalidValue, (case.cls.__name__, "context"), "a context, against the spec"):
        case.build()(case.input(), context=case.input((7,)))


@check("mixer", lambda spec: not spec.layout)
def refuses_a_layout(case: MixerCase) -> None:
    mixer, grid = case.build(), case.grid()
    x = case.input(grid)
    close(mixer(x, layout=TokenLayout(grid)), mixer(x), "a layout that says nothing")
    with refused(InvalidValue, (case.cls.__name__, "layout"), "positions, against the spec"):
        mixer(x, layout=TokenLayout(grid, positions=torch.arange(x[0, ..., 0].numel())))


@check("mixer", lambda spec: spec.layout and 1 in spec.ranks)
def reads_positions(case: MixerCase) -> None:
    grid = case.grid(1)
    for causal in case.directions:
        mixer, x = case.build(causal=causal, grid=grid), case.input(grid)
        if mixer.plan_tokens(grid).source is not None:
            continue  # its own layout decides
        y, counted = mixer(x), torch.arange(grid[0])
        for positions in (counted, counted.expand(2, -1)):
            layout = TokenLayout(grid, positions=positions)
            close(mixer(x, layout=layout), y, f"causal={causal}: positions 0, 1, 2, ... of shape {positions.shape}")
        # Read in another order with the positions to match: a mixer that is blind to order but for them agrees.
        expect(mixer(x, layout=TokenLayout(grid, positions=counted * 3)).isfinite().all(), "spread positions fail")


@check("mixer")
def its_plan_holds_its_grid(case: MixerCase) -> None:
    for rank in case.spec.ranks:
        for grid in case.grids(rank):
            mixer, x = case.build(grid=grid), case.input(grid)
            wide, layout = case.widen(mixer, x)
            if layout is None:
                continue
            expect(case.spec.layout, "the mixer plans a layout, but its spec says layout=False")
            close(layout.extract(wide), x, f"grid {grid}: insert and extract through its plan")
            expect(len(layout.roles) == len(layout.role_sizes), "roles and role_sizes differ in length")


@check("mixer", lambda spec: spec.streaming != "no" and spec.layout)
def its_plan_for_n_begins_its_plan_for_more(case: MixerCase) -> None:
    mixer = case.build(causal=True)
    longest = mixer.plan_tokens((case.length,)).source
    if longest is None:
        return
    for n in range(1, case.length):
        source = mixer.plan_tokens((n,)).source
        begins = source is not None and torch.equal(source, longest[: source.numel()])
        expect(begins, f"the plan for {n} tokens does not begin the plan for {case.length}: it cannot be streamed")


@check("mixer", lambda spec: spec.segments)
def segments_are_apart(case: MixerCase) -> None:
    first, second = case.length // 3, case.length - case.length // 3
    segments = (torch.arange(case.length) >= first).long().expand(2, -1)
    positions = torch.cat([torch.arange(first), torch.arange(second)])
    for causal in case.directions:
        mixer, x = case.build(causal=causal, grid=(case.length,)), case.input((case.length,))
        layout = TokenLayout((case.length,), positions=positions, segments=segments)
        packed = mixer(x, layout=layout)
        alone = torch.cat([mixer(x[:, :first]), mixer(x[:, first:])], 1)
        close(packed, alone, f"causal={causal}: two packed documents against each alone", times=2)
        other = x.clone()
        other[:, first:] = case.input((second,), seed=10, scale=10.0)
        close(mixer(other, layout=layout)[:, :first], packed[:, :first], f"causal={causal}: after document 2 changed")
        other = x.clone()
        other[:, :first] = case.input((first,), seed=10, scale=10.0)
        close(mixer(other, layout=layout)[:, first:], packed[:, first:], f"causal={causal}: after document 1 changed")


@check("mixer", lambda spec: spec.segments and spec.masks)
def segments_and_masks_combine(case: MixerCase) -> None:
    grid = case.grid(1, tokens=24)
    segments = (torch.arange(grid[0]) >= grid[0] // 2).long().expand(2, -1)
    for causal in case.directions:
        mixer, x, mask = case.build(causal=causal, grid=grid), case.input(grid), case.mask(grid)
        layout = TokenLayout(grid, segments=segments)
        y = mixer(x, mask=mask, layout=layout)
        other = torch.where(mask[..., None], x, case.input(grid, seed=5, scale=100.0))
        close(mixer(other, mask=mask, layout=layout), y, f"causal={causal}: masked content inside segments")
        expect((y[~mask] == 0).all(), f"causal={causal}: masked tokens inside segments are not zero")


@check("mixer", lambda spec: not spec.segments, once=True)
def refuses_segments(case: MixerCase) -> None:
    grid = case.grid()
    segments = torch.zeros(2, len(case.input(grid)[0].flatten(0, -2)), dtype=torch.int64)
    with refused(InvalidValue, case.cls.__name__, "segments, against the spec"):
        case.build()(case.input(grid), layout=TokenLayout(grid, segments=segments))
