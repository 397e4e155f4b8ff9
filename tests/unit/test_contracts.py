"""What the contracts themselves do: layouts, states, input checks, hooks around the optimiser."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foveate.errors import InvalidType, InvalidValue
from foveate.mixers import Fuser, Mixer, MixerSpec, State, TokenLayout, aux_losses, shared, state
from foveate.tasks.base import Progress, Recipe

# Layout -------------------------------------------------------------------------------------------------------------


def landmarks(grid: tuple[int, ...], every: int = 3, size: int = 2) -> TokenLayout:
    """A "start" token in front, a "landmark" (of ``size`` kinds in turn) after every few tokens."""
    source, tokens = [-1], 1
    for axis in grid:
        tokens *= axis
    for token in range(tokens):
        source += [token, -2] if token % every == every - 1 else [token]
    return TokenLayout(grid, torch.tensor(source), ("start", "landmark"), (1, size))


@pytest.mark.parametrize("grid", [(7,), (2, 5), (2, 3, 2)])
def test_insert_puts_every_token_in_its_slot(grid: tuple[int, ...]) -> None:
    layout, x = landmarks(grid), torch.randn(2, *grid, 4)
    special = {"start": torch.full((1, 4), 100.0), "landmark": torch.tensor([[200.0], [300.0]]).expand(2, 4)}
    wide = layout.insert(x, special)
    assert wide.shape == (2, layout.length, 4)
    flat, expected, turn = x.flatten(1, -2), [], 0
    assert layout.source is not None
    for source in layout.source.tolist():
        if source >= 0:
            expected.append(flat[:, source])
        elif source == -1:
            expected.append(special["start"][0].expand(2, 4))
        else:
            expected.append(special["landmark"][turn % 2].expand(2, 4))
            turn += 1
    assert torch.equal(wide, torch.stack(expected, 1))
    assert torch.equal(layout.extract(wide), x)
    assert layout.role_mask("landmark").sum() == turn


def test_extract_restores_the_order_of_a_shuffled_layout() -> None:
    source = torch.tensor([4, -1, 0, 3, -1, 1, 2])
    layout, x = TokenLayout((5,), source, ("class",), (2,)), torch.randn(3, 5, 2)
    wide = layout.insert(x, {"class": torch.zeros(2, 2)})
    assert torch.equal(wide[:, 0], x[:, 4])
    assert torch.equal(layout.extract(wide), x)


def test_insert_and_extract_trace_without_data_dependent_shapes() -> None:
    layout, special = landmarks((7,)), {"start": torch.randn(1, 4), "landmark": torch.randn(2, 4)}
    x = torch.randn(2, 7, 4)
    there = torch.compile(lambda x: layout.insert(x, special), backend="aot_eager", fullgraph=True)
    back = torch.compile(layout.extract, backend="aot_eager", fullgraph=True)
    assert torch.equal(there(x), layout.insert(x, special))
    assert torch.equal(back(layout.insert(x, special)), x)
    torch.compiler.reset()
    on_meta = layout.insert(x.to("meta"), {k: v.to("meta") for k, v in special.items()})
    assert layout.extract(on_meta).shape == x.shape


def test_special_tokens_learn_and_follow_the_dtype() -> None:
    layout, x = landmarks((7,)), torch.randn(2, 7, 4, dtype=torch.bfloat16)
    special = {"start": torch.randn(1, 4, requires_grad=True), "landmark": torch.randn(2, 4, requires_grad=True)}
    wide = layout.insert(x, special)
    assert wide.dtype == torch.bfloat16
    wide.float().sum().backward()
    assert special["start"].grad is not None
    assert torch.equal(special["start"].grad, torch.full((1, 4), 2.0))  # a batch of two


def test_a_plain_layout_changes_nothing() -> None:
    layout, x = TokenLayout((3, 2)), torch.randn(1, 3, 2, 4)
    assert layout.is_plain
    assert layout.length == 6
    assert layout.insert(x, {}) is x
    assert layout.extract(x) is x
    with pytest.raises(InvalidValue, match="role='landmark' is not in this layout: it has none"):
        layout.role_mask("landmark")


# States -------------------------------------------------------------------------------------------------------------


@state
class Inner(State):
    memory: Tensor
    table: Tensor = shared()


@state
class Outer(State):
    layers: tuple[Any, ...]
    last: Tensor | None
    position: int = shared(default=0)


def outer() -> Outer:
    layers = tuple(Inner(torch.arange(3.0)[:, None] + i, torch.arange(5.0)) for i in range(2))
    return Outer(layers, None, 7)


def test_reorder_reaches_nested_states_and_leaves_shared_fields() -> None:
    one = outer().reorder(torch.tensor([2, 2, 0, 1]))
    assert [layer.memory[:, 0].tolist() for layer in one.layers] == [[2, 2, 0, 1], [3, 3, 1, 2]]
    assert torch.equal(one.layers[0].table, torch.arange(5.0))
    assert (one.last, one.position) == (None, 7)


def test_nbytes_counts_every_tensor() -> None:
    assert outer().nbytes == 2 * (3 * 4 + 5 * 4)


def test_detach_cuts_the_graph_everywhere_and_keeps_the_rest() -> None:
    weight = torch.ones(3, 1, requires_grad=True)
    one = Outer((Inner(weight * 2, torch.zeros(1)),), weight * 3, 4)
    cut = one.detach()
    assert type(cut) is Outer
    assert cut.last is not None
    assert not cut.last.requires_grad
    assert not cut.layers[0].memory.requires_grad
    assert cut.position == 4
    assert one.layers[0].memory.requires_grad, "the state itself must stay as it was"


# Input checks -------------------------------------------------------------------------------------------------------


class Grid2(Mixer):
    spec = MixerSpec(ranks=(2,), cross=True, layout=True)

    def __init__(self, dim: int = 4, *, causal: bool = False) -> None:
        super().__init__(dim, causal=causal)

    def forward(self, x, *, mask=None, context=None, layout=None):
        self.check_input(x, mask, context, layout)
        self.aux_losses = {"size": x.square().mean()}
        return x


def test_with_a_layout_the_spec_speaks_of_its_grid() -> None:
    mixer, layout = Grid2(), landmarks((2, 3))
    assert mixer(torch.zeros(1, layout.length, 4), layout=layout).shape == (1, layout.length, 4)
    with pytest.raises(InvalidValue, match=r"x has shape \(1, 6, 4\); its layout needs \(batch, 9, 4\)"):
        mixer(torch.zeros(1, 6, 4), layout=layout)
    with pytest.raises(InvalidValue, match=r"the layout's grid \(6,\) has rank 1; legal are \(2,\)"):
        mixer(torch.zeros(1, 9, 4), layout=landmarks((6,)))


@pytest.mark.parametrize("shape", [(2, 5), (1, 7, 4), (2, 7, 3), (2, 7, 7, 4)])
def test_a_context_must_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidValue, match=r"Grid2: context has shape .*; it must be \(2, length, 4\)"):
        Grid2()(torch.zeros(2, 3, 3, 4), context=torch.zeros(shape))


def test_a_copy_made_after_a_call_has_no_losses() -> None:
    net = nn.Sequential(Grid2(), Grid2())
    net(torch.ones(1, 2, 2, 4, requires_grad=True) * 1.0)
    assert float(aux_losses(net)["size"].detach()) == 2.0
    assert aux_losses(copy.deepcopy(net)) == {}
    assert float(aux_losses(net)["size"].detach()) == 2.0


class Gate(Fuser):
    spec = MixerSpec(ranks=(1, 2))

    def forward(self, x, other, *, mask=None, other_mask=None):
        self.check_input(x, other, mask, other_mask)
        return x


def test_a_fuser_refuses_streams_that_do_not_fit() -> None:
    gate, x, other = Gate(4, 3), torch.zeros(2, 5, 5, 4), torch.zeros(2, 3)
    assert gate(x, other).shape == x.shape
    assert gate(x, torch.zeros(2, 7, 3), other_mask=torch.ones(2, 7, dtype=torch.bool)).shape == x.shape
    for wrong in (torch.zeros(2, 5), torch.zeros(2, 1, 1, 1, 4), x[..., :3]):
        with pytest.raises(InvalidValue, match=r"Gate: x has shape .* the grid of rank 1 or 2"):
            gate(wrong, other)
    for wrong in (torch.zeros(3), torch.zeros(1, 3), torch.zeros(2, 4)):
        with pytest.raises(InvalidValue, match=r"Gate: other has shape .*; it must be \(2, \*grid, 3\)"):
            gate(x, wrong)
    with pytest.raises(InvalidType, match="Gate: other_mask must be bool"):
        gate(x, torch.zeros(2, 7, 3), other_mask=torch.ones(2, 7))
    with pytest.raises(InvalidValue, match=r"Gate: mask has shape \(2, 5\); \(2, 5, 5\) fits"):
        gate(x, other, mask=torch.ones(2, 5, dtype=torch.bool))
    for option, arguments in (("dim", (0, 3)), ("other_dim", (4, 2.0))):
        with pytest.raises(InvalidValue, match=f"{option}=.* a positive whole number"):
            Gate(*arguments)


# Hooks around the optimiser -----------------------------------------------------------------------------------------


class Centroids(nn.Module):
    """Counts the calls that a recipe makes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def before_step(self, progress: Progress) -> None:
        self.calls.append(("before", progress.step))

    def after_step(self, progress: Progress) -> None:
        self.calls.append(("after", progress.step))

    def on_epoch(self, progress: Progress) -> None:
        self.calls.append(("epoch", progress.epoch))


def test_a_recipe_calls_the_hooks_of_modules_deep_inside() -> None:
    inner = Centroids()
    model = nn.Sequential(nn.Linear(2, 2), nn.ModuleDict({"mixer": inner}))
    recipe = Recipe(SimpleNamespace())  # type: ignore[arg-type]
    progress = Progress(step=3, steps=9, epoch=1, batch=0, batches=4)
    recipe.on_epoch(model, progress)
    recipe.before_step(model, progress)
    recipe.after_step(model, progress)
    assert inner.calls == [("epoch", 1), ("before", 3), ("after", 3)]
