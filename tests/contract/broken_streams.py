"""Mixers that each break one promise about streaming; ``breaks`` names the checks that must notice."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from foveate.mixers import State, shared, state

from .honest import Honest, HonestState, Plain


class StreamForgets(Honest):
    """Streams with a window of 40 tokens and calls it exact."""

    breaks: ClassVar = {"streaming_equals_forward", "streaming_with_masks_equals_forward"}

    def prefill(self, x, state, mask=None):
        self.check_stream(x, state, mask)
        keep = replace(state, keys=state.keys[:, :, -40:], values=state.values[:, :, -40:], real=state.real[:, -40:])
        return super().prefill(x, keep, mask)


class StreamIgnoresMask(Honest):
    """Reads masked tokens while streaming."""

    breaks: ClassVar = {"streaming_with_masks_equals_forward"}

    def prefill(self, x, state, mask=None):
        y, state = super().prefill(x, state)
        return y if mask is None else y.masked_fill(~mask[..., None], 0.0), state


@state
class WrittenState(State):
    """A cache with room for 600 tokens, written in place."""

    keys: torch.Tensor
    values: torch.Tensor
    real: torch.Tensor
    count: int = shared(default=0)


class CacheWrittenInPlace(Honest):
    """Continues a state by writing into it, so that two continuations of one state disturb each other."""

    breaks: ClassVar = {"a_state_is_a_value"}

    def init_state(self, batch_size, device=None, dtype=None):
        fresh = super().init_state(batch_size, device, dtype)
        room = torch.zeros(batch_size, self.num_heads, 600, self.head_dim, device=device, dtype=dtype)
        return WrittenState(room, room.clone(), fresh.real.new_zeros(batch_size, 600), 0)

    def prefill(self, x, state, mask=None):
        self.check_stream(x, state, mask)
        old, new = state.count, state.count + x.shape[1]
        past = Honest.init_state(self, x.shape[0])
        past = replace(past, keys=state.keys[:, :, :old], values=state.values[:, :, :old], real=state.real[:, :old])
        y, filled = self._continue(x, past, mask)
        with torch.no_grad():
            state.keys[:, :, old:new] = filled.keys[:, :, old:]
            state.values[:, :, old:new] = filled.values[:, :, old:]
            state.real[:, old:new] = filled.real[:, old:]
        return y, replace(state, count=new)

    def cost(self, grid, batch=1):
        return replace(super().cost(grid, batch), state_bytes=super().cost((600,), batch).state_bytes)


@state
class StuckState(State):
    """Keys and values that a beam search cannot re-order."""

    keys: torch.Tensor = shared()
    values: torch.Tensor = shared()
    real: torch.Tensor = shared()


class StateStaysPut(Honest):
    """Declares that its state has no batch axis."""

    breaks: ClassVar = {"a_state_can_be_reordered", "refuses_a_foreign_state"}

    def init_state(self, batch_size, device=None, dtype=None):
        fresh = super().init_state(batch_size, device, dtype)
        return StuckState(fresh.keys, fresh.values, fresh.real)

    def prefill(self, x, state, mask=None):
        y, new = self._continue(x, state, mask)
        return y, StuckState(new.keys, new.values, new.real)

    def step(self, x_t, state):
        y, state = self.prefill(x_t[:, None], state)
        return y[:, 0], state


class StatesOfItsOwnKind(Honest):
    """Streams with a bare tuple."""

    breaks: ClassVar = {
        "a_state_is_a_pytree_of_tensors",
        "a_state_can_be_reordered",
        "state_bytes_are_near_those_held",
        "refuses_a_foreign_state",
    }

    def init_state(self, batch_size, device=None, dtype=None):
        fresh = super().init_state(batch_size, device, dtype)
        return (fresh.keys, fresh.values, fresh.real)

    def prefill(self, x, state, mask=None):
        y, new = self._continue(x, HonestState(*state), mask)
        return y, (new.keys, new.values, new.real)

    def step(self, x_t, state):
        y, state = self.prefill(x_t[:, None], state)
        return y[:, 0], state


class TakesAnyState(Honest):
    """Reads on after whatever it is given, as long as the arithmetic works."""

    breaks: ClassVar = {"refuses_a_foreign_state"}

    def _check_state(self, given, batch):
        pass


class WrongStateBytes(Honest):
    """Says that its state does not grow."""

    breaks: ClassVar = {"state_bytes_are_near_those_held"}

    def cost(self, grid, batch=1):
        return replace(super().cost(grid, batch), state_bytes=1024)


class StateWithoutStreaming(Plain):
    """Counts bytes of a state that it does not have."""

    breaks: ClassVar = {"no_state_no_bytes"}

    def cost(self, grid, batch=1):
        return replace(super().cost(grid, batch), state_bytes=1)


class StreamsSilently(Plain):
    """Does not say that it cannot stream."""

    breaks: ClassVar = {"refuses_streaming"}

    def init_state(self, batch_size, device=None, dtype=None):
        return None


class StreamsBothWays(Honest):
    """Streams although it was built to look both ways."""

    breaks: ClassVar = {"refuses_streaming_both_ways"}

    def init_state(self, batch_size, device=None, dtype=None):
        causal, self.causal = self.causal, True
        fresh = super().init_state(batch_size, device, dtype)
        self.causal = causal
        return fresh
