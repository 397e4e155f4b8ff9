"""Mixers that keep every promise: what the suite itself is developed and tested on."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from foveate.errors import InvalidValue
from foveate.measure.cost import Cost, linear_flops
from foveate.mixers import Mixer, MixerSpec, Order, State, TokenLayout, state
from foveate.mixers.base import check_heads, grid_size

QUADRATIC = Order(flops=2.0, memory=2.0)


@state
class HonestState(State):
    """Keys and values of the tokens so far, their count, and which of them are real."""

    keys: Tensor
    values: Tensor
    real: Tensor


class Honest(Mixer):
    """Softmax attention, written the plain way: quadratic, every promise of the contract kept.

    Args:
        dim: channels of a token.
        num_heads: attention heads.
        causal: outputs at t depend on tokens up to t only.
        slope: how fast scores fall with distance, per token; at least 0.
    """

    spec = MixerSpec(
        ranks=(1, 2),
        causal="strict",
        streaming="exact",
        cross=True,
        layout=True,
        segments=True,
        order=QUADRATIC,
        onnx=True,
        dynamic_length=True,
    )

    def __init__(self, dim: int, *, num_heads: int = 8, causal: bool = False, slope: float = 0.1) -> None:
        super().__init__(dim, causal=causal)
        self.head_dim = check_heads(dim, num_heads)
        if not slope >= 0:
            raise InvalidValue(f"slope={slope!r} is not possible: at least 0 is needed.")
        self.num_heads, self.slope = num_heads, slope
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, distance: Tensor, visible: Tensor) -> Tensor:
        """``q (B, h, Q, d)``, ``k, v (B, h, K, d)``; ``distance (.., Q, K)``; ``visible`` bool ``(B or 1, Q, K)``."""
        scores = q @ k.transpose(-1, -2) * self.head_dim**-0.5 - self.slope * distance.abs().to(q)[..., None, :, :]
        scores = scores.masked_fill(~visible[:, None], -torch.inf)
        nobody = ~visible.any(-1)[:, None, :, None]
        weights = scores.masked_fill(nobody, 0.0).softmax(-1).masked_fill(nobody, 0.0)
        return (weights @ v).transpose(1, 2).flatten(2)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor:
        self.check_input(x, mask, context, layout)
        grid, x = x.shape[1:-1], x.flatten(1, -2)
        other = x if context is None else context
        size, length = x.shape[1], other.shape[1]
        here = torch.arange(size, device=x.device)
        there = torch.arange(length, device=x.device)
        visible = torch.ones(1, size, length, dtype=torch.bool, device=x.device)
        if context is None:
            if self.causal:
                visible = visible & (here[:, None] >= there)
            if mask is not None:
                visible = visible & mask.flatten(1)[:, None, :]
            if layout is not None and layout.segments is not None:
                visible = visible & (layout.segments[:, :, None] == layout.segments[:, None, :])
            if layout is not None and layout.positions is not None:
                here = there = layout.positions
        distance = here[..., :, None] - there[..., None, :]
        q, k, v = self._heads(self.q(x)), self._heads(self.k(other)), self._heads(self.v(other))
        y = self._close(self._attend(q, k, v, distance, visible), None if mask is None else mask.flatten(1))
        return y.unflatten(1, grid)

    def _close(self, y: Tensor, mask: Tensor | None) -> Tensor:
        y = self.out(y)
        return y if mask is None else y.masked_fill(~mask[..., None], 0.0)

    def init_state(self, batch_size, device=None, dtype=None) -> HonestState:
        if not self.causal:
            raise self._no_streaming()
        empty = torch.zeros(batch_size, self.num_heads, 0, self.head_dim, device=device, dtype=dtype)
        return HonestState(empty, empty, torch.zeros(batch_size, 0, dtype=torch.bool, device=device))

    def prefill(self, x, state, mask=None):
        self.check_stream(x, state, mask)
        return self._continue(x, state, mask)

    def _continue(self, x, state, mask=None):
        past, size = state.real.shape[1], x.shape[1]
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        state = HonestState(
            torch.cat([state.keys, self._heads(self.k(x))], 2),
            torch.cat([state.values, self._heads(self.v(x))], 2),
            torch.cat([state.real, real], 1),
        )
        there = torch.arange(past + size, device=x.device)
        here = there[past:]
        visible = (here[:, None] >= there) & state.real[:, None, :]
        y = self._attend(self._heads(self.q(x)), state.keys, state.values, here[:, None] - there, visible)
        return self._close(y, mask), state

    def step(self, x_t, state):
        self.check_step(x_t, state)
        y, state = self.prefill(x_t[:, None], state)
        return y[:, 0], state

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        n, d = grid_size(grid), self.dim
        return Cost(
            flops=batch * (4 * linear_flops(n, d, d) + 4 * n * n * d),
            parameters=4 * (d * d + d),
            activation_bytes=4 * batch * (6 * n * d + 2 * self.num_heads * n * n) + 2 * n * n,
            state_bytes=batch * n * (2 * d * 4 + 1),
        )


class Plain(Honest):
    """Honest with few promises: the base of mixers that each break one."""

    spec = MixerSpec(order=QUADRATIC)

    def __init__(self, dim: int, *, num_heads: int = 8, causal: bool = False) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)

    init_state, prefill, step = Mixer.init_state, Mixer.prefill, Mixer.step

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        return replace(super().cost(grid, batch), state_bytes=0)


class Landmarks(Honest):
    """Honest with a special token after every fourth token, streamed slot by slot."""

    spec = MixerSpec(causal="strict", streaming="exact", layout=True, segments=True, order=QUADRATIC)

    def plan_tokens(self, grid: tuple[int, ...]) -> TokenLayout:
        source = []
        for token in range(grid[0]):
            source += [token, -1] if token % 4 == 3 else [token]
        return TokenLayout(tuple(grid), torch.tensor(source), ("landmark",), (2,))

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        return super().cost((grid[0] + grid[0] // 4,), batch)
