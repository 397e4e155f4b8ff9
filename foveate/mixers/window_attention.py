"""Sliding-window attention with rotary positions and learned sinks: the baseline of long-context layers.

Longformer's causal window (Beltagy et al. 2020, arXiv 2004.05150, section 3.1), as in Mistral 7B (arXiv 2310.06825);
sinks are learned tokens in front that every query sees (StreamingLLM, Xiao et al. 2023, arXiv 2309.17453, section 3.3;
the persistent tokens of Titans, arXiv 2501.00663). A token reads itself, the ``window - 1`` before it, and the sinks;
stacked, a layer reaches ``window - 1`` tokens further back than the one below. Time and memory grow with
``length * window``, and a stream keeps the keys and values of one window.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import InvalidValue, invalid
from ..measure.cost import Cost, linear_flops
from ..ops.documents import document_numbers
from ..ops.positions import apply_rope
from ..ops.window_attention import window_attention, window_flops
from ..registry import register
from ..spec import MixerSpec, Order
from .base import Mixer, check_heads
from .layout import TokenLayout
from .parts import Linear
from .ssm import Packing, check_positive
from .state import State, state

Position = Literal["rope", "none"]


@state
class WindowState(State):
    """Keys and values of the last tokens, at most ``window - 1``, latest last; keys are not turned yet.

    Attributes:
        keys, values: ``(batch, heads, n, head_dim)``.
        real: bool ``(batch, n)``, False where a sample has read fewer tokens than others; None: all are real.
    """

    keys: Tensor
    values: Tensor
    real: Tensor | None


@register("mixer", "window_attention")
class WindowAttention(Mixer):
    """Causal attention to the last ``window`` tokens: linear time, and a stream of constant size.

    Masked tokens are taken out of the sequence: windows count real tokens. Of a layout, segments are kept apart, each
    run of equal numbers by itself (the sinks serve them all), and positions go to RoPE. What a token reads depends on
    distances alone, so a stream may go on for ever.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim``.
        causal: must be True.
        window: tokens that a token sees, itself among them.
        num_sinks: learned tokens that every token sees. They have no position: with them, "rope" turns the first half
            of a head's channels, and their keys have the other half alone.
        position: "rope", rotary embedding (rotate-half convention), or "none".
        rope_base: of the rotary embedding.
        bias: the four projections have biases.

    Raises:
        InvalidValue: ``causal=False``, heads that do not divide, or an option that is not legal.
    """

    spec = MixerSpec(
        ranks=(1,),
        causal="strict",
        bidirectional=False,
        streaming="exact",
        layout=True,
        segments=True,
        order=Order(flops=1.0, memory=1.0),
        onnx=True,
    )

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = True,
        window: int = 64,
        num_sinks: int = 0,
        position: Position = "rope",
        rope_base: float = 10000.0,
        bias: bool = True,
    ) -> None:
        super().__init__(dim, causal=causal)
        self.num_heads, self.head_dim = num_heads, check_heads(dim, num_heads)
        check_positive(window=window)
        if not isinstance(num_sinks, int) or num_sinks < 0:
            raise invalid("num_sinks", num_sinks, "a whole number, 0 or more, is needed")
        if position not in get_args(Position):
            raise invalid("position", position, f"it must be one of {', '.join(get_args(Position))}")
        if not 0 < rope_base < math.inf:
            raise invalid("rope_base", rope_base, "it must be positive and finite")
        self.window, self.position, self.rope_base = window, position, rope_base
        self.turned = 0 if position == "none" else self.head_dim // (2 if num_sinks else 1)
        if self.turned % 2 or (position == "rope" and not self.turned):
            what = f"dim / num_heads = {self.head_dim}" + (", half of it with sinks" if num_sinks else "")
            raise invalid("position", position, f"RoPE turns channel pairs, and there are {what}")
        self.sinks = nn.Parameter(torch.randn(num_sinks, dim) * 0.02) if num_sinks else None
        self.q_proj = Linear(dim, dim, bias=bias)
        self.k_proj = Linear(dim, dim, bias=bias)
        self.v_proj = Linear(dim, dim, bias=bias)
        self.out_proj = Linear(dim, dim, bias=bias)

    def no_weight_decay(self) -> list[nn.Parameter]:
        """The sinks, which are tokens."""
        return [] if self.sinks is None else [self.sinks]

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
        positions = None if layout is None else layout.positions
        segments = None if layout is None else layout.segments
        packing, x, segments = Packing.take_out(x, mask, segments)  # padding behind comes too late to be seen
        if packing is not None and positions is not None:
            positions = positions.expand(x.shape[:2]).gather(1, packing.order)
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)
        numbers = None if segments is None else document_numbers(segments)
        q, k, v = (self._heads(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        y = self._read(self._turn(q, positions), self._turn(k, positions), v, numbers)
        return y if packing is None else packing.unpack(y)

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> WindowState:
        """Nothing read yet; keys and values will be in ``dtype`` (default: that of the weights)."""
        weight = self.k_proj.weight
        shape = (batch_size, self.num_heads, 0, self.head_dim)
        none = torch.zeros(shape, device=device or weight.device, dtype=dtype or weight.dtype)
        return WindowState(none, none, None)

    def prefill(self, x: Tensor, state: WindowState, mask: Tensor | None = None) -> tuple[Tensor, WindowState]:
        """Read ``(batch, length, dim)`` after ``state``; masked tokens are taken out.

        Raises:
            InvalidValue: the state is not of this mixer or of another batch.
        """
        self.check_stream(x, state, mask)
        packing, x, _ = Packing.take_out(x, mask)
        q, k, v = (self._heads(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        k, v = torch.cat([state.keys.to(k.dtype), k], 2), torch.cat([state.values.to(v.dtype), v], 2)
        read, past = k.shape[2], state.keys.shape[2]
        real = state.real
        if packing is not None:
            before = real if real is not None else torch.ones(len(x), past, dtype=torch.bool, device=x.device)
            real = torch.cat([before, packing.valid], 1)
        elif real is not None:
            real = torch.cat([real, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)], 1)
        positions = torch.arange(read, device=x.device)  # distances are all that counts
        numbers = None if real is None else torch.where(real, 0, -1)
        y = self._read(self._turn(q, positions[past:]), self._turn(k, positions), v, numbers)
        y = y if packing is None else packing.unpack(y)
        return y, self._keep(k, v, real, trailing=packing is not None)

    def step(self, x_t: Tensor, state: WindowState) -> tuple[Tensor, WindowState]:
        """Read one token ``(batch, dim)``.

        Raises:
            InvalidValue: anything but one token per sample, or a state that does not fit.
        """
        self.check_step(x_t, state)
        y, state = self.prefill(x_t[:, None], state)
        return y[:, 0], state

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections, and the products of the blocks."""
        n, dim, sinks = grid[0], self.dim, self.num_sinks
        flops = linear_flops(batch * n + sinks, dim, 2 * dim) + linear_flops(batch * n, dim, 2 * dim)
        return Cost(
            flops=flops + window_flops(n, n, self.window, sinks, self.num_heads, self.head_dim, self.head_dim, batch),
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * self.saved(n, batch),
            state_bytes=8 * batch * dim * min(n, self.window - 1),
        )

    def saved(self, n: int, batch: int = 1) -> int:
        """Numbers that are kept for the backward pass."""
        dim, sinks, heads, window = self.dim, self.num_sinks, self.num_heads, self.window
        rotations = 2 * n * self.turned  # cosines and sines, of queries and of keys
        if n <= window:  # x, q, k, v, the heads' outputs, one number per row of the softmax
            mask = n * (n + sinks) if sinks else 0
            return batch * (n * (5 * dim + bool(self.turned) * dim + heads) + 2 * sinks * dim) + rotations + mask
        later = -(-n // window) - 1  # blocks after the first
        mask = window * (2 * window + sinks) + (window * (window + sinks) if sinks else 0)
        # x and what is projected at the end; q, keys, values and outputs of the blocks, keys and values twice.
        kept = 2 * n * dim + window * ((4 + 6 * later) * dim + (1 + later) * heads) + 2 * (1 + later) * sinks * dim
        return batch * kept + rotations + mask

    @property
    def num_sinks(self) -> int:
        """How many learned tokens all others see."""
        return 0 if self.sinks is None else self.sinks.shape[0]

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(-2, -3)

    def _turn(self, x: Tensor, positions: Tensor) -> Tensor:
        if self.turned == self.head_dim:
            return apply_rope(x, positions, self.rope_base)
        if not self.turned:
            return x
        return torch.cat([apply_rope(x[..., : self.turned], positions, self.rope_base), x[..., self.turned :]], -1)

    def _read(self, q: Tensor, k: Tensor, v: Tensor, numbers: Tensor | None) -> Tensor:
        """The output ``(batch, length, dim)`` of turned queries and keys."""
        sink_k = sink_v = None
        if self.sinks is not None:
            sink_k, sink_v = self._heads(self.k_proj(self.sinks)), self._heads(self.v_proj(self.sinks))
            sink_k = torch.cat([torch.zeros_like(sink_k[..., : self.turned]), sink_k[..., self.turned :]], -1)
        o = window_attention(q, k, v, self.window, sink_k=sink_k, sink_v=sink_v, segments=numbers)
        return self.out_proj(o.transpose(1, 2).flatten(2))

    def _keep(self, k: Tensor, v: Tensor, real: Tensor | None, trailing: bool) -> WindowState:
        """The last ``window - 1`` tokens of what was read; with ``trailing`` padding may stand behind the real ones."""
        read, room = k.shape[2], self.window - 1
        if not trailing or real is None:
            kept = slice(max(read - room, 0), None)  # copied, for a view would keep all that was read
            return WindowState(k[:, :, kept].clone(), v[:, :, kept].clone(), None if real is None else real[:, kept])
        places = torch.arange(1, read + 1, device=k.device)
        index = (real * places).amax(1, keepdim=True) - torch.arange(min(room, read), 0, -1, device=k.device)
        real = real.gather(1, index.clamp(min=0)) & (index >= 0)
        index = index.clamp(min=0)[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[3])
        return WindowState(k.gather(2, index), v.gather(2, index), real)

    def _check_state(self, given: Any, batch: int) -> None:
        super()._check_state(given, batch)
        if given.keys.shape[2] >= self.window:
            raise InvalidValue(
                f"{type(self).__name__}: keys of the state has {given.keys.shape[2]} tokens; a window of {self.window} "
                f"keeps {self.window - 1}."
            )
