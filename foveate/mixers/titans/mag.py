"""Titans' memory as a gate (MAG): sliding-window attention and the neural memory side by side, one gating the other.

Behrouz, Zhong and Mirrokni, "Titans: Learning to Memorize at Test Time", arXiv 2501.00663, section 4.2, with learned
persistent tokens P::

    y = SW-Attn*(x)              every token reads its window, and P
    m = M([P | x])               the memory reads P, then the tokens
    o = sigma(norm(y) * a) * sigma(norm(m) * b)

Attention is the exact short memory, the network the fading long one; nothing is cut into segments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...measure.cost import Cost
from ...registry import register
from ...spec import MixerSpec, Order
from ..base import Mixer
from ..layout import TokenLayout
from ..state import State, state
from ..window_attention import Position, WindowAttention, WindowState
from .lmm import MemoryState
from .parts import Activation, Gate, Preceded, build_memory, persistent_tokens


@state
class GateState(State):
    """Streaming state of constant size: the keys and values of one window, and the memory."""

    window: WindowState
    memory: MemoryState


@register("mixer", "titans_mag", system="titans")
class TitansMAG(Mixer):
    """Memory as a gate: windowed attention times what a neural memory recalls, in linear time.

    Masked tokens are taken out of the sequence. Of a layout, segments are kept apart, each with a new memory that
    begins with the persistent tokens; positions are not read, for only distances count.

    Args:
        dim: channels of a token.
        num_heads: of the attention; must divide ``dim``.
        causal: must be True.
        window: tokens that a token sees, itself among them.
        num_persistent: learned tokens that every token sees and the memory reads first.
        memory: options of the memory, see :class:`~foveate.mixers.titans.lmm.TitansLMM`; ``num_heads`` is the
            attention's unless given.
        activation: sigma of the gate, which the paper does not name.
        position: of the attention, see :class:`~foveate.mixers.window_attention.WindowAttention`.
        rope_base: of the rotary embedding.

    Raises:
        InvalidValue: ``causal=False``, or an option that is not legal.
        InvalidType: ``memory`` is no dictionary, or has an option that the memory has not.
    """

    spec = MixerSpec(
        ranks=(1,),
        causal="strict",
        bidirectional=False,
        streaming="exact",
        padding="masked",
        layout=True,
        segments=True,
        order=Order(flops=1.0, memory=1.0),
        onnx=True,
        export_note="the memory's loop over chunks is unrolled: the graph grows with the length",
    )

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        causal: bool = True,
        window: int = 64,
        num_persistent: int = 4,
        memory: dict[str, Any] | None = None,
        activation: Activation = "silu",
        position: Position = "rope",
        rope_base: float = 10000.0,
    ) -> None:
        super().__init__(dim, causal=causal)
        persistent_tokens(num_persistent, dim)  # refuses what is not a number of tokens, by its name here
        self.attention = WindowAttention(
            dim,
            num_heads=num_heads,
            window=window,
            num_sinks=num_persistent,
            position=position,
            rope_base=rope_base,
            bias=False,
        )
        self.memory = build_memory(dim, num_heads, memory)
        self.gate = Gate(dim, activation)

    def no_weight_decay(self) -> list[torch.nn.Parameter]:
        """The persistent tokens."""
        return self.attention.no_weight_decay()

    @property
    def persistent(self) -> Tensor | None:
        """The persistent tokens ``(number, dim)``: the sinks of the attention."""
        return self.attention.sinks

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor:
        """Mix ``(batch, length, dim)``; see :class:`~foveate.mixers.Mixer`."""
        self.check_input(x, mask, context, layout)
        segments = None if layout is None else layout.segments
        y = self.attention(x, mask=mask, layout=_apart(x, segments))
        if self.persistent is None:
            m = self.memory(x, mask=mask, layout=_apart(x, segments))
        else:
            wide = Preceded(x, self.persistent, mask, segments)
            m = wide.take(self.memory(wide.x, mask=wide.mask, layout=_apart(wide.x, wide.segments)))
        return _clear(self.gate(y, m), mask)

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> GateState:
        """An empty window, and the memory after the persistent tokens."""
        memory = self.memory.init_state(batch_size, device, dtype)
        if self.persistent is not None:
            memory = self.memory.store(self.persistent.expand(batch_size, -1, -1), memory)
        return GateState(self.attention.init_state(batch_size, device, dtype), memory)

    def prefill(self, x: Tensor, state: GateState, mask: Tensor | None = None) -> tuple[Tensor, GateState]:
        """Read ``(batch, length, dim)`` after ``state``; a masked token leaves the state as it is.

        Raises:
            InvalidValue: a state of another mixer or batch.
        """
        self.check_stream(x, state, mask)
        y, window = self.attention.prefill(x, state.window, mask)
        m, memory = self.memory.prefill(x, state.memory, mask)
        return _clear(self.gate(y, m), mask), GateState(window, memory)

    def step(self, x_t: Tensor, state: GateState) -> tuple[Tensor, GateState]:
        """Read one token ``(batch, dim)``.

        Raises:
            InvalidValue: anything but one token per sample, or a state of another mixer or batch.
        """
        self.check_step(x_t, state)
        y, window = self.attention.step(x_t, state.window)
        m, memory = self.memory.step(x_t, state.memory)
        return self.gate(y, m), GateState(window, memory)

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Attention, memory and gate; the memory reads the persistent tokens too."""
        persistent = 0 if self.persistent is None else len(self.persistent)
        attention, memory = self.attention.cost(grid, batch), self.memory.cost((grid[0] + persistent,), batch)
        tokens = batch * grid[0]
        return Cost(
            flops=attention.flops + memory.flops,
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=attention.activation_bytes
            + memory.activation_bytes
            + 4 * tokens * self.gate.saved(self.dim),
            state_bytes=attention.state_bytes + memory.state_bytes,
        )


def _apart(x: Tensor, segments: Tensor | None) -> TokenLayout | None:
    """A layout that says nothing but the documents."""
    return None if segments is None else TokenLayout((x.shape[1],), segments=segments)


def _clear(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zeros where the mask is False."""
    return x if mask is None else x.masked_fill(~mask[..., None], 0)
