"""Checks of a mixer's forward call: shapes, masks, batches, dtypes."""

from __future__ import annotations

import torch

from foveate.errors import InvalidType, InvalidValue

from .cases import MixerCase
from .checking import check, close, expect, refused, same_bits


@check("mixer")
def keeps_the_shape(case: MixerCase) -> None:
    for rank in case.spec.ranks:
        for grid in case.grids(rank):
            for causal in case.directions:
                for batch, dim, heads in ((1, 16, 2), (3, 32, 4)):
                    mixer = case.build(causal=causal, dim=dim, num_heads=heads, grid=grid)
                    x = case.input(grid, batch, dim=dim)
                    y = case.run(mixer, x)
                    what = f"grid {grid}, batch {batch}, dim {dim}, causal={causal}"
                    expect(y.shape == x.shape, f"{what}: output has shape {tuple(y.shape)}, not {tuple(x.shape)}")
                    expect(y.dtype == x.dtype, f"{what}: output is {y.dtype}, not {x.dtype}")
                    expect(y.isfinite().all(), f"{what}: output is not finite")
                    expect(mixer.dim == dim, f"mixer.dim is {mixer.dim}, not {dim}")
                    expect(mixer.causal == causal, f"mixer.causal is {mixer.causal}, not {causal}")


@check("mixer")
def output_depends_on_input(case: MixerCase) -> None:
    for causal in case.directions:
        mixer, grid = case.build(causal=causal), case.grid()
        y, other = (case.run(mixer, case.input(grid, seed=seed)) for seed in (1, 4))
        expect(not torch.allclose(y, other), f"causal={causal}: two inputs give the same output")


@check("mixer")
def does_not_change_its_input(case: MixerCase) -> None:
    x, mixer = case.input(), case.build()
    kept = x.clone()
    mask = case.mask() if case.spec.masks else None
    kept_mask = None if mask is None else mask.clone()
    case.run(mixer, x, mask)
    same_bits(x, kept, "x after the call")
    if mask is not None and kept_mask is not None:
        same_bits(mask, kept_mask, "the mask after the call")


@check("mixer")
def non_contiguous_input_is_fine(case: MixerCase) -> None:
    mixer, x = case.build(), case.input()
    strided = torch.stack([x, x], -1).transpose(0, 1)[..., 0].transpose(0, 1)
    expect(not strided.is_contiguous(), "the suite made a contiguous input")
    close(case.run(mixer, strided), case.run(mixer, x), "a non-contiguous input")


@check("mixer", once=True)
def refuses_other_ranks(case: MixerCase) -> None:
    mixer, name = case.build(), case.cls.__name__
    for rank in {0, 1, 2, 3, 4} - set(case.spec.ranks):
        with refused(InvalidValue, name, f"a grid of rank {rank}"):
            mixer(torch.zeros(2, *(2,) * rank, 16))


@check("mixer", once=True)
def refuses_other_widths(case: MixerCase) -> None:
    with refused(InvalidValue, (case.cls.__name__, "15", "16"), "an input of 15 channels for dim 16"):
        case.build()(case.input(dim=15))


@check("mixer", lambda spec: spec.grid.fixed or spec.grid.minimum > 1 or spec.grid.multiple_of > 1)
def refuses_other_grids(case: MixerCase) -> None:
    rule, mixer, good = case.spec.grid, case.build(), case.grid()
    bad = [(good[0] + 1, *good[1:])] if rule.fixed or rule.multiple_of > 1 else []
    bad += [(rule.minimum - 1, *good[1:])] if rule.minimum > 1 else []
    for grid in bad:
        with refused(InvalidValue, case.cls.__name__, f"the grid {grid}"):
            mixer(case.input(grid))


# Masks --------------------------------------------------------------------------------------------------------------


@check("mixer", lambda spec: spec.masks)
def masked_content_does_not_matter(case: MixerCase) -> None:
    for rank in case.spec.ranks:
        for causal in case.directions:
            grid = case.grid(rank, tokens=24)
            mixer, x, mask = case.build(causal=causal, grid=grid), case.input(grid), case.mask(grid)
            other = torch.where(mask[..., None], x, case.input(grid, seed=5, scale=100.0))
            y, y_other = case.run(mixer, x, mask), case.run(mixer, other, mask)
            what = f"rank {rank}, causal={causal}: output after the content of masked tokens was replaced"
            close(y_other, y, what)


@check("mixer", lambda spec: spec.masks)
def masked_tokens_come_out_as_zeros(case: MixerCase) -> None:
    for rank in case.spec.ranks:
        grid = case.grid(rank, tokens=24)
        mask = case.mask(grid)
        y = case.run(case.build(grid=grid), case.input(grid), mask)
        expect((y[~mask] == 0).all(), f"rank {rank}: masked tokens come out as something else than zeros")
        expect((y[mask] != 0).any(), f"rank {rank}: real tokens come out as zeros")


@check("mixer", lambda spec: spec.masks)
def a_sample_without_real_tokens_is_zero(case: MixerCase) -> None:
    for causal in case.directions:
        mixer, x, mask = case.build(causal=causal), case.input(), case.mask()
        mask[0] = False
        x.requires_grad_()
        y = case.run(mixer, x, mask)
        expect((y[0] == 0).all(), f"causal={causal}: the sample does not come out as zeros (NaN: {y[0].isnan().any()})")
        expect(y[1].isfinite().all(), f"causal={causal}: it makes its neighbour not finite")
        y.square().sum().backward()
        expect(x.grad is not None and x.grad.isfinite().all(), f"causal={causal}: gradients are not finite")


@check("mixer", lambda spec: spec.masks)
def a_full_mask_changes_nothing(case: MixerCase) -> None:
    for rank in case.spec.ranks:
        for causal in case.directions:
            grid = case.grid(rank)
            mixer, x = case.build(causal=causal, grid=grid), case.input(grid)
            full = torch.ones(x.shape[:-1], dtype=torch.bool)
            close(case.run(mixer, x, full), case.run(mixer, x), f"rank {rank}, causal={causal}: a mask of ones")


@check("mixer", lambda spec: spec.masks and 1 in spec.ranks and not spec.grid.fixed and spec.padding != "as_published")
def a_masked_tail_is_a_shorter_sequence(case: MixerCase) -> None:
    long, short = case.grid(1, tokens=29), case.grid(1, tokens=17)
    for causal in case.directions:
        mixer, x = case.build(causal=causal, grid=long), case.input(long)
        if mixer.plan_tokens(long).source is not None:
            continue  # special tokens inside the masked tail are the mixer's own business
        mask = (torch.arange(long[0]) < short[0]).expand(2, -1)
        got = case.run(mixer, x, mask)[:, : short[0]]
        close(got, case.run(mixer, x[:, : short[0]]), f"causal={causal}: real tokens before a masked tail")


@check("mixer", lambda spec: spec.masks, once=True)
def refuses_masks_that_do_not_fit(case: MixerCase) -> None:
    mixer, x, mask, name = case.build(), case.input(), case.mask(), case.cls.__name__
    for wrong in (mask.float(), mask.long()):
        with refused(InvalidType, (name, "mask", "bool"), f"a mask of {wrong.dtype}"):
            mixer(x, mask=wrong)
    with refused(InvalidValue, (name, "mask"), "a mask of another batch"):
        mixer(x, mask=mask[:1])
    with refused(InvalidValue, (name, "mask"), "a mask with channels"):
        mixer(x, mask=mask[..., None])


@check("mixer", lambda spec: not spec.masks, once=True)
def refuses_a_mask(case: MixerCase) -> None:
    with refused(InvalidValue, (case.cls.__name__, "mask"), "a mask, against the spec"):
        case.build()(case.input(), mask=torch.ones(2, *case.grid(), dtype=torch.bool))


# Batches ------------------------------------------------------------------------------------------------------------


@check("mixer", lambda spec: spec.batch_independent)
def samples_do_not_see_each_other(case: MixerCase) -> None:
    for rank in case.spec.ranks:
        grid = case.grid(rank)
        mixer, x = case.build(grid=grid), case.input(grid, 3)
        y = case.run(mixer, x)
        other = torch.cat([x[:1], case.input(grid, 2, seed=6, scale=10.0)])
        same_bits(case.run(mixer, other)[0], y[0], f"rank {rank}: the first sample after the others were replaced")
        close(case.run(mixer, x[:1])[0], y[0], f"rank {rank}: the first sample alone")


@check("mixer", lambda spec: not spec.batch_independent)
def samples_see_each_other_as_said(case: MixerCase) -> None:
    mixer, grid = case.build(), case.grid(tokens=32)
    x = case.input(grid, 3)
    other = torch.cat([x[:1], case.input(grid, 2, seed=6, scale=10.0)])
    changed = not torch.equal(case.run(mixer, other)[0], case.run(mixer, x)[0])
    expect(changed, "the spec says batch_independent=False, but a sample does not depend on the others")


@check("mixer", lambda spec: spec.deterministic)
def two_calls_give_the_same_bits(case: MixerCase) -> None:
    for causal in case.directions:
        mixer, x = (
            case.build(causal=causal),
            case.input((case.length,) if 1 in case.spec.ranks and not case.spec.grid.fixed else None),
        )
        torch.manual_seed(1)
        y = case.run(mixer, x)
        torch.manual_seed(2)
        same_bits(case.run(mixer, x), y, f"causal={causal}: a second call in eval mode")


# Dtypes and losses --------------------------------------------------------------------------------------------------


@check("mixer")
def bfloat16_is_near_float32(case: MixerCase) -> None:
    grid = (case.length,) if 1 in case.spec.ranks and not case.spec.grid.fixed else case.grid(tokens=24)
    for causal in case.directions:
        half = case.build(causal=causal, grid=grid, dtype=torch.bfloat16)
        full = case.build(causal=causal, grid=grid)
        full.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in half.state_dict().items()})
        x = case.input(grid).bfloat16()
        y = case.run(half, x)
        expect(y.dtype == torch.bfloat16, f"causal={causal}: output is {y.dtype}")
        close(y, case.run(full, x.float()), f"causal={causal}: bfloat16 against float32")


@check("mixer")
def auxiliary_losses_are_scalars(case: MixerCase) -> None:
    mixer = case.build().train()
    case.run(mixer, case.input())
    for name, value in mixer.aux_losses.items():
        expect(isinstance(value, torch.Tensor) and value.ndim == 0, f"aux_losses[{name!r}] is not a scalar tensor")
        expect(value.isfinite(), f"aux_losses[{name!r}] is {value}")
