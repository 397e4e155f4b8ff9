"""Checks of what a mixer shows of what it attends to: :meth:`foveate.mixers.Mixer.look`."""

from __future__ import annotations

import math

import torch

from foveate.errors import InvalidType, InvalidValue
from foveate.mixers import Mixer
from foveate.mixers.look import Look

from .cases import MixerCase
from .checking import check, expect, refused

#: How far shares may be from 1 in all.
SUM = 1e-4


@check("mixer")
def looks_are_legal(case: MixerCase) -> None:
    for rank in case.spec.ranks:
        grid = case.grid(rank, tokens=24)
        mixer, x = case.build(causal=case.directions[-1], grid=grid), case.input(grid)
        if mixer.plan_tokens(grid).source is not None:
            return  # a network with special tokens is looked at whole
        if case.cls.look is Mixer.look:
            with refused(InvalidType, case.cls.__name__, "look, which it does not define"):
                mixer.look(x)
            return
        for query in (None, (0,) * len(grid), tuple(n - 1 for n in grid)):
            what = f"grid {grid}, query {query}"
            looks = mixer.look(x, query)
            expect(isinstance(looks, list) and bool(looks), f"{what}: look() gives no looks")
            for look in looks:
                expect(isinstance(look, Look), f"{what}: look() gives a {type(look).__name__}")
                expect(bool(look.label.strip()), f"{what}: a look of kind {look.kind!r} has no label")
                _check_values(look, x.shape[0], grid, case.spec.padding == "as_published", what)
            if query is not None:
                _check_cover(looks, what)
        with refused(InvalidValue, (case.cls.__name__, "query"), f"a query outside of the grid {grid}"):
            mixer.look(x, grid)


def _check_values(look: Look, batch: int, grid: tuple[int, ...], leaks: bool, what: str) -> None:
    """Shapes and ranges; ``leaks``: a share may lie on padding."""
    values, what = look.values, f"{what}, {look.label!r}"
    over = tuple(values.shape[1:2]) if look.kind == "tree" else tuple(values.shape[2:])
    wanted = {"tree": (math.prod(grid),), "boxes": (*values.shape[2:3], 4)}.get(look.kind, grid)
    expect(values.shape[0] == batch and over == wanted, f"{what}: values have shape {tuple(values.shape)}")
    expect(not values.is_floating_point() or bool(values.isfinite().all()), f"{what}: values are not finite")
    if look.kind == "weights":
        total = values.double().flatten(2).sum(-1)
        expect(bool((values >= 0).all()), f"{what}: a weight is negative")
        whole = (total - 1).abs() <= SUM
        legal = whole | (total.abs() <= SUM) | (total <= 1 if leaks else whole)
        expect(bool(legal.all()), f"{what}: weights sum to {float(total.min()):.4g} to {float(total.max()):.4g}, not 1")
    if look.kind == "boxes":
        expect(bool((values[..., :2] <= values[..., 2:]).all()), f"{what}: a box ends before it begins")
    if look.kind == "tree":
        expect(bool(((values >= -1) & (values < math.prod(grid))).all()), f"{what}: a parent is no token")
        alone = values == torch.arange(values.shape[1], device=values.device)
        expect(not bool(alone.any()), f"{what}: a token is its own parent; a root has -1")


def _check_cover(looks: list[Look], what: str) -> None:
    """What is read may be read."""
    kinds = {look.kind: look.values for look in looks}
    if {"weights", "visible"} <= set(kinds):
        unseen = kinds["weights"].masked_fill(kinds["visible"].expand_as(kinds["weights"]), 0)
        expect(bool((unseen <= SUM).all()), f"{what}: a weight lies on what is not visible")
