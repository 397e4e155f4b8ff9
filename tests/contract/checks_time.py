"""Checks of time: causality and streaming."""

from __future__ import annotations

import random

import torch
from torch import Tensor
from torch.utils import _pytree

from foveate.errors import InvalidType, InvalidValue
from foveate.mixers import Mixer, State
from foveate.mixers.state import state as declare_state

from .cases import MixerCase
from .checking import check, close, expect, refused, same_bits

DRAWS = 20


def _borders(case: MixerCase, length: int) -> list[int]:
    """20 last tokens to look at, the first and the second of a sequence and block borders +-1 among them."""
    borders = {b * k + shift for b in (case.block, 16) for k in range(1, length) for shift in (-2, -1, 0)}
    near = sorted(b for b in borders if 0 <= b < length - 1)
    chosen = {0, 1, length - 2}
    for index in range(DRAWS):  # a draw is its number: a failure can be repeated
        chosen.add(random.Random(index).choice(near if index % 3 and near else range(length - 1)))
    return sorted(t for t in chosen if 0 <= t < length - 1)


def _time_grid(case: MixerCase) -> tuple[int, ...]:
    """A grid whose first axis is time and holds several blocks; of rank 1 or 3."""
    if 1 in case.spec.ranks:
        return (case.length,)
    return (9, *case.grid(max(case.spec.ranks))[1:])


@check("mixer", lambda spec: spec.causal == "strict" and not spec.grid.fixed)
def the_future_does_not_matter(case: MixerCase) -> None:
    grid = _time_grid(case)
    mixer, x = case.build(causal=True, grid=grid), case.input(grid, 1)
    y = case.run(mixer, x)
    for t in _borders(case, grid[0]):
        other = x.clone()
        other[:, t + 1 :] = case.input(grid, 1, seed=100 + t, scale=5.0)[:, t + 1 :]
        changed = case.run(mixer, other)
        same_bits(changed[:, : t + 1], y[:, : t + 1], f"outputs up to token {t} after everything later was replaced")


@check("mixer", lambda spec: spec.causal == "strict" and not spec.grid.fixed)
def the_past_matters(case: MixerCase) -> None:
    grid = _time_grid(case)
    mixer, x = case.build(causal=True, grid=grid), case.input(grid, 1)
    other = x.clone()
    other[:, 2] = case.input(grid, 1, seed=11)[:, 2]
    before, after = case.run(mixer, x), case.run(mixer, other)
    expect(not torch.equal(before[:, 3:], after[:, 3:]), "a causal mixer's later outputs ignore an earlier token")


@check("mixer", lambda spec: spec.causal == "strict" and spec.masks and not spec.grid.fixed)
def the_future_does_not_matter_with_a_mask(case: MixerCase) -> None:
    grid = _time_grid(case)
    mixer, x, mask = case.build(causal=True, grid=grid), case.input(grid, 1), case.mask(grid, 1)
    y = case.run(mixer, x, mask)
    for t in _borders(case, grid[0])[:: DRAWS // 5]:
        other, other_mask = x.clone(), mask.clone()
        other[:, t + 1 :] = case.input(grid, 1, seed=100 + t)[:, t + 1 :]
        other_mask[:, t + 1 :] = True
        changed = case.run(mixer, other, other_mask)
        same_bits(changed[:, : t + 1], y[:, : t + 1], f"outputs up to {t} after later tokens and their mask changed")


@check("mixer", lambda spec: spec.causal == "values" and not spec.grid.fixed)
def later_values_do_not_matter(case: MixerCase) -> None:
    # Which tokens are selected may look ahead, and a hard selection has no gradient: what gradients see is the values.
    grid = _time_grid(case)
    mixer, x = case.build(causal=True, grid=grid), case.input(grid, 1).requires_grad_()
    for t in _borders(case, grid[0]):
        (gradient,) = torch.autograd.grad(case.run(mixer, x)[:, : t + 1].square().sum(), x)
        expect((gradient[:, t + 1 :] == 0).all(), f"outputs up to token {t} have a gradient to later tokens")


@check("mixer", lambda spec: spec.causal == "never", once=True)
def refuses_causal(case: MixerCase) -> None:
    with refused(InvalidValue, "causal", "causal=True, against the spec"):
        case.build(causal=True)


@check("mixer", lambda spec: not spec.bidirectional, once=True)
def refuses_not_causal(case: MixerCase) -> None:
    with refused(InvalidValue, "causal", "causal=False, against the spec"):
        case.build(causal=False)


# Streaming ----------------------------------------------------------------------------------------------------------


def _stream(mixer: Mixer, x: Tensor, pieces: list[int], mask: Tensor | None = None) -> Tensor:
    """Outputs of reading ``x`` in pieces: a positive number is a stretch for prefill, each -1 one step."""
    state, outputs, at = mixer.init_state(x.shape[0], x.device, x.dtype), [], 0
    for piece in pieces:
        if piece < 0:
            y, state = mixer.step(x[:, at], state)
            outputs.append(y[:, None])
        else:
            y, state = mixer.prefill(x[:, at : at + piece], state, None if mask is None else mask[:, at : at + piece])
            outputs.append(y)
        at += abs(piece)
    expect(at == x.shape[1], f"the suite's pieces {pieces} do not add up")
    return torch.cat(outputs, 1)


def _pieces(case: MixerCase, length: int) -> dict[str, list[int]]:
    rest = length - case.block - 6
    steps = min(24, rest)
    return {
        "all at once": [length],
        "steps only": [-1] * length if length <= 160 else [length - 40, *[-1] * 40],
        "pieces, then steps": [1, case.block, 5, *([rest - steps] if rest > steps else []), *[-1] * steps],
        "steps, then a piece": [*[-1] * 3, length - 3],
    }


def _long_stream(case: MixerCase, mixer: Mixer, batch: int) -> tuple[Tensor, Tensor]:
    """A stream of slots as the network feeds it, special tokens among them, and what forward makes of it."""
    wide, layout = case.widen(mixer, case.input((case.length,), batch))
    return wide, mixer(wide, layout=layout) if layout is not None else mixer(wide)


@check("mixer", lambda spec: spec.streaming == "exact" and 1 in spec.ranks)
def streaming_equals_forward(case: MixerCase) -> None:
    for batch in (1, 3):
        mixer = case.build(causal=True, grid=(case.length,))
        slots, expected = _long_stream(case, mixer, batch)
        for name, pieces in _pieces(case, slots.shape[1]).items():
            close(_stream(mixer, slots, pieces), expected, f"batch {batch}, {name}, against forward", times=2)


@check("mixer", lambda spec: spec.streaming == "own" and 1 in spec.ranks)
def streaming_equals_itself(case: MixerCase) -> None:
    # Its own rule need not be forward's; but a stretch must be what its steps are, as far as its rule is per token.
    mixer = case.build(causal=True, grid=(case.length,))
    slots, _ = _long_stream(case, mixer, 2)
    first = case.block
    whole = _stream(mixer, slots, [first, *[-1] * 8, *([slots.shape[1] - first - 8])])
    expect(whole.shape == slots.shape and whole.isfinite().all(), "streaming gives another shape or no numbers")
    short = slots[:, :3]
    close(_stream(mixer, short, [3]), mixer(short), "three tokens, well inside any budget, against forward")


@check("mixer", lambda spec: spec.streaming == "exact" and spec.masks and 1 in spec.ranks)
def streaming_with_masks_equals_forward(case: MixerCase) -> None:
    mixer = case.build(causal=True, grid=(case.length,))
    x = case.input((case.length,), 3)
    if mixer.plan_tokens((case.length,)).source is not None:
        return
    mask = case.mask((case.length,), 3)
    mask[1, : case.block + 2] = False  # left padding over a whole block
    mask[:, -8:] = True  # steps read real tokens
    expected, rest = mixer(x, mask=mask), case.length - case.block - 11
    got = _stream(mixer, x, [3, case.block, rest, *[-1] * 8], mask)
    close(got, expected, "masked prefill, then steps, against forward", times=2)
    expect((got[~mask] == 0).all(), "masked tokens of a prefill do not come out as zeros")
    other = torch.where(mask[..., None], x, case.input((case.length,), 3, seed=5, scale=100.0))
    again = _stream(mixer, other, [3, case.block, rest, *[-1] * 8], mask)
    close(again, got, "the stream after the content of its masked tokens was replaced")


def _some_state(case: MixerCase, batch: int = 3) -> tuple[Mixer, State, Tensor]:
    mixer = case.build(causal=True, grid=(case.length,))
    x = case.input((case.block + 12,), batch)
    _, state = mixer.prefill(x[:, :-8], mixer.init_state(batch, x.device, x.dtype))
    return mixer, state, x[:, -8:]


@check("mixer", lambda spec: spec.streaming != "no" and 1 in spec.ranks)
def a_state_is_a_pytree_of_tensors(case: MixerCase) -> None:
    mixer, state, _ = _some_state(case)
    for when, one in (("fresh", mixer.init_state(3)), ("after prefill", state)):
        expect(isinstance(one, State), f"the {when} state is a {type(one).__name__}, not a State")
        leaves, tree = _pytree.tree_flatten(one)
        expect(type(_pytree.tree_unflatten(leaves, tree)) is type(one), f"the {when} state does not survive a pytree")
        expect(leaves is not None and any(isinstance(x, Tensor) for x in leaves), f"the {when} state has no tensors")
    held = sum(x.nbytes for x in _pytree.tree_leaves(state) if isinstance(x, Tensor))
    expect(state.nbytes == held > 0, f"state.nbytes is {state.nbytes}; its tensors hold {held}")
    expect(all(not x.requires_grad for x in _pytree.tree_leaves(state.detach()) if isinstance(x, Tensor)), "detach()")


@check("mixer", lambda spec: spec.streaming != "no" and 1 in spec.ranks)
def a_state_can_be_reordered(case: MixerCase) -> None:
    mixer, state, x = _some_state(case)
    index = torch.tensor([2, 0, 0, 1])
    expected, _ = _stream_on(mixer, x, state)
    got, _ = _stream_on(mixer, x[index], state.reorder(index))
    close(got, expected[index], "steps after reorder([2, 0, 0, 1])")


@check("mixer", lambda spec: spec.streaming != "no" and 1 in spec.ranks)
def a_state_is_a_value(case: MixerCase) -> None:
    # Two futures of one state, taken in turns: neither may disturb the other (beam search, speculative decoding).
    mixer, state, x = _some_state(case)
    other = case.input((8,), 3, seed=12)
    alone, _ = _stream_on(mixer, x, state)
    mine, theirs, interleaved = state, state, []
    for t in range(8):
        y, mine = mixer.step(x[:, t], mine)
        _, theirs = mixer.step(other[:, t], theirs)
        interleaved.append(y[:, None])
    same_bits(torch.cat(interleaved, 1), alone, "a stream after its state was also continued otherwise")


@declare_state
class _Foreign(State):
    """No mixer's state."""


@check("mixer", lambda spec: spec.streaming != "no" and 1 in spec.ranks)
def refuses_a_foreign_state(case: MixerCase) -> None:
    mixer, state, x = _some_state(case)
    strangers = {
        "another batch": state.reorder(torch.tensor([0, 1])),
        "another width": case.build(causal=True, grid=(case.length,), dim=32).init_state(3),
        "whole numbers": _pytree.tree_map(lambda t: t.long() if isinstance(t, Tensor) else t, state),
        "another mechanism": _Foreign(),
    }
    name = type(mixer).__name__
    for what, stranger in strangers.items():
        with refused((InvalidValue, InvalidType), (name, "state"), f"step after a state of {what}"):
            mixer.step(x[:, 0], stranger)
        with refused((InvalidValue, InvalidType), (name, "state"), f"prefill after a state of {what}"):
            mixer.prefill(x, stranger)


def _stream_on(mixer: Mixer, x: Tensor, state: State) -> tuple[Tensor, State]:
    outputs = []
    for t in range(x.shape[1]):
        y, state = mixer.step(x[:, t], state)
        outputs.append(y[:, None])
    return torch.cat(outputs, 1), state


@check("mixer", lambda spec: spec.streaming == "no", once=True)
def refuses_streaming(case: MixerCase) -> None:
    mixer, name = case.build(), case.cls.__name__
    with refused(InvalidType, (name, "streaming"), "init_state, against the spec"):
        mixer.init_state(2)
    with refused(InvalidType, (name, "streaming"), "prefill, against the spec"):
        mixer.prefill(case.input(), None)
    with refused(InvalidType, (name, "streaming"), "step, against the spec"):
        mixer.step(torch.zeros(2, 16), None)


@check("mixer", lambda spec: spec.streaming != "no" and spec.bidirectional, once=True)
def refuses_streaming_both_ways(case: MixerCase) -> None:
    with refused(InvalidType, (case.cls.__name__, "causal=False"), "streaming with causal=False"):
        case.build(causal=False).init_state(2)
