"""Titans' memory as a layer (MAL): the neural memory first, sliding-window attention over what it recalls.

Behrouz, Zhong and Mirrokni, "Titans: Learning to Memorize at Test Time", arXiv 2501.00663, section 4.3, with learned
persistent tokens P::

    y = M([P | x])
    o = SW-Attn(y)

P are the first tokens of the sequence, no more: they pass out of the window, but not out of the memory.
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
from .parts import Preceded, build_memory, persistent_tokens


@state
class LayerState(State):
    """Streaming state of constant size: the memory, and the keys and values of one window."""

    memory: MemoryState
    window: WindowState


@register("mixer", "titans_mal", system="titans")
class TitansMAL(Mixer):
    """Memory as a layer: windowed attention reads what a neural memory recalls, in linear time.

    Masked tokens are taken out of the sequence. Of a layout, segments are kept apart, each with a new memory that
    begins with the persistent tokens; positions are not read, for only distances count.

    Args:
        dim: channels of a token.
        num_heads: of the attention; must divide ``dim``.
        causal: must be True.
        window: tokens that a token sees, itself among them.
        num_persistent: learned tokens in front of every document.
        memory: options of the memory, see :class:`~foveate.mixers.titans.lmm.TitansLMM`; ``num_heads`` is the
            attention's unless given.
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
        position: Position = "rope",
        rope_base: float = 10000.0,
    ) -> None:
        super().__init__(dim, causal=causal)
        self.persistent = persistent_tokens(num_persistent, dim)
        self.memory = build_memory(dim, num_heads, memory)
        self.attention = WindowAttention(
            dim, num_heads=num_heads, window=window, position=position, rope_base=rope_base, bias=False
        )

    def no_weight_decay(self) -> list[torch.nn.Parameter]:
        """The persistent tokens."""
        return [] if self.persistent is None else [self.persistent]

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
        if self.persistent is None:
            return self._mix(x, mask, segments)
        wide = Preceded(x, self.persistent, mask, segments)
        y = wide.take(self._mix(wide.x, wide.mask, wide.segments))
        return y if mask is None else y.masked_fill(~mask[..., None], 0)

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> LayerState:
        """Memory and window after the persistent tokens."""
        empty = LayerState(
            self.memory.init_state(batch_size, device, dtype), self.attention.init_state(batch_size, device, dtype)
        )
        if self.persistent is None:
            return empty
        return self.prefill(self.persistent.expand(batch_size, -1, -1), empty)[1]

    def prefill(self, x: Tensor, state: LayerState, mask: Tensor | None = None) -> tuple[Tensor, LayerState]:
        """Read ``(batch, length, dim)`` after ``state``; a masked token leaves the state as it is.

        Raises:
            InvalidValue: a state of another mixer or batch.
        """
        self.check_stream(x, state, mask)
        y, memory = self.memory.prefill(x, state.memory, mask)
        o, window = self.attention.prefill(y, state.window, mask)
        return o, LayerState(memory, window)

    def step(self, x_t: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """Read one token ``(batch, dim)``.

        Raises:
            InvalidValue: anything but one token per sample, or a state of another mixer or batch.
        """
        self.check_step(x_t, state)
        y, memory = self.memory.step(x_t, state.memory)
        o, window = self.attention.step(y, state.window)
        return o, LayerState(memory, window)

    def _sizes_of_a_state(self) -> LayerState:
        """Before the persistent tokens: the window's keys have not begun to grow."""
        return LayerState(self.memory._sizes_of_a_state(), self.attention._sizes_of_a_state())

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Memory and attention, over the persistent tokens too."""
        length = grid[0] + (0 if self.persistent is None else len(self.persistent))
        attention, memory = self.attention.cost((length,), batch), self.memory.cost((length,), batch)
        return Cost(
            flops=attention.flops + memory.flops,
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=attention.activation_bytes + memory.activation_bytes,
            state_bytes=attention.state_bytes + memory.state_bytes,
        )

    def _mix(self, x: Tensor, mask: Tensor | None, segments: Tensor | None) -> Tensor:
        layout = None if segments is None else TokenLayout((x.shape[1],), segments=segments)
        return self.attention(self.memory(x, mask=mask, layout=layout), mask=mask, layout=layout)
