"""What causal linear-attention mixers with a decay per head share: state, masks, segments, streaming.

A subclass says how tokens become queries, keys and values and what becomes of the heads' outputs; everything about
time is here, around :func:`foveate.ops.linear_attention.lightning_attention`.
"""

from __future__ import annotations

from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from ..errors import invalid
from ..ops.handwritten import sum_dtype
from ..ops.linear_attention import default_block, layer_rates, lightning_attention, lightning_state, lightning_step
from ..ops.linear_attention_chunks import chunked_flops
from .base import Mixer, check_heads
from .layout import TokenLayout
from .ssm import Packing
from .state import State, state

Decay = Literal["official", "paper", "none"]
DECAYS = get_args(Decay)


@state
class LinearState(State):
    """Streaming state; its size does not depend on how much was read.

    Attributes:
        kv: float32 ``(batch, heads, key width, value width)``: decayed sum of the outer products of keys and values.
        position: int64 ``(batch,)``: number of real tokens read, which is the next token's position.
    """

    kv: Tensor
    position: Tensor


class LinearAttention(Mixer):
    """Base of the mixers: causal, rank 1, linear time.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim``.
        causal: must be True.
        decay: rule of the decay rates, see :func:`~foveate.ops.linear_attention.layer_rates`.
        layer, depth: index of the layer and number of layers, which the rates depend on.
        block: chunk length of the op; None: the fastest on CPU for this width.

    Raises:
        InvalidValue: ``causal=False``, heads that do not divide, or an option that is not legal.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        causal: bool,
        decay: Decay,
        layer: int,
        depth: int,
        block: int | None,
    ) -> None:
        super().__init__(dim, causal=causal)
        self.num_heads, self.head_dim = num_heads, check_heads(dim, num_heads)
        self.key_dim = self.value_dim = self.head_dim  # of the state; a subclass may set others
        if decay not in DECAYS:
            raise invalid("decay", decay, f"it must be one of {', '.join(DECAYS)}")
        if not isinstance(depth, int) or depth < 1:
            raise invalid("depth", depth, "a positive whole number is needed")
        if not isinstance(layer, int) or not 0 <= layer < depth:
            raise invalid("layer", layer, f"it must be in 0 ... depth - 1 = {depth - 1}")
        if block is not None and (not isinstance(block, int) or block < 1):
            raise invalid("block", block, "a positive whole number, or None, is needed")
        # Numbers, not a buffer: a buffer would follow the module to bfloat16, where slow rates lose most digits.
        self.rates = None if decay == "none" else layer_rates(num_heads, layer, depth, decay)
        self.block = block

    @classmethod
    def for_layer(cls, index: int, depth: int, dim: int, **options: Any) -> Self:
        """Layer ``index`` of ``depth``, with its decay rates."""
        return cls(dim, layer=index, depth=depth, **options)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k and v as :meth:`heads` of ``(batch, length, dim)``, and the output gate ``(batch, length, dim)``."""
        raise NotImplementedError

    def turn(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys with their positions, int64 ``(length,)`` or ``(batch, length)``; default: unchanged."""
        return q, k

    def emit(self, o: Tensor, gate: Tensor) -> Tensor:
        """The output of what the heads read, ``(batch, length, dim)``, and the gate."""
        raise NotImplementedError

    def heads(self, x: Tensor) -> Tensor:
        """``(batch, length, dim)`` as ``(batch, heads, length, head_dim)``."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

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
        return self._mix(x, mask, layout, None)[0]

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> LinearState:
        """Zeros: sums in float32 (float64 if ``dtype``, by default that of the weights, is), positions 0."""
        weight = next(self.parameters())
        device, dtype = device or weight.device, sum_dtype(dtype or weight.dtype)
        shape = (batch_size, self.num_heads, self.key_dim, self.value_dim)
        return LinearState(
            kv=torch.zeros(shape, device=device, dtype=dtype),
            position=torch.zeros(batch_size, device=device, dtype=torch.int64),
        )

    def prefill(self, x: Tensor, state: LinearState, mask: Tensor | None = None) -> tuple[Tensor, LinearState]:
        """Read ``(batch, length, dim)`` after ``state``; a masked token leaves the state as it is."""
        self.check_stream(x, state, mask)
        y, kv = self._mix(x, mask, None, state)
        assert kv is not None
        count = x.shape[1] if mask is None else mask.sum(1)
        return y, LinearState(kv, state.position + count)

    def step(self, x_t: Tensor, state: LinearState) -> tuple[Tensor, LinearState]:
        """Read one token ``(batch, dim)``.

        Raises:
            InvalidValue: anything but one token per sample, or a state that does not fit.
        """
        self.check_step(x_t, state)
        q, k, v, gate = self.project(x_t[:, None])
        q, k = self.turn(q, k, state.position[:, None])
        o, kv = lightning_step(q[:, :, 0], k[:, :, 0], v[:, :, 0], self._slope(x_t), state.kv)
        return self.emit(o.flatten(1)[:, None], gate)[:, 0], LinearState(kv, state.position + 1)

    def attention_flops(self, length: int, batch: int) -> int:
        """FLOPs of the op, by which costs are counted."""
        block = self.block or default_block(self.key_dim)
        return chunked_flops(length, self.num_heads, self.key_dim, self.value_dim, block, batch)

    def state_bytes(self, batch: int) -> int:
        """Bytes of a streaming state in float32."""
        return batch * (4 * self.num_heads * self.key_dim * self.value_dim + 8)

    def _slope(self, x: Tensor) -> Tensor | None:
        return None if self.rates is None else torch.tensor(self.rates, dtype=sum_dtype(x.dtype), device=x.device)

    def _mix(
        self, x: Tensor, mask: Tensor | None, layout: TokenLayout | None, past: LinearState | None
    ) -> tuple[Tensor, Tensor | None]:
        """The output, and with ``past`` the sums after the last real token."""
        positions = None if layout is None else layout.positions
        segments = None if layout is None else layout.segments
        packing, x, segments = Packing.take_out(x, mask, segments)
        if packing is not None and positions is not None:
            positions = positions.expand(x.shape[:2]).gather(1, packing.order)
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)
            positions = positions if past is None else positions + past.position[:, None]
        q, k, v, gate = self.project(x)
        q, k = self.turn(q, k, positions)
        if packing is not None:  # behind the real tokens the biases are left
            v = v.masked_fill(~packing.valid[:, None, :, None], 0)
        slope = self._slope(x)
        if past is None:
            o, kv = lightning_attention(q, k, v, slope, block=self.block, segments=segments), None
        else:
            o, kv = lightning_attention(q, k, v, slope, block=self.block, state=past.kv, return_state=True)
            if mask is not None:
                kv = lightning_state(k, v, slope, mask.sum(1), past.kv)
        y = self.emit(o.transpose(1, 2).flatten(2), gate)
        return (y if packing is None else packing.unpack(y)), kv
