"""Lightning attention as the token mixer of TransNormerLLM (TNL).

Qin et al., "Various Lengths, Constant Speed: Efficient Language Modeling with Lightning Attention" (ICML 2024, arXiv
2405.17381), section 4; the architecture first in arXiv 2307.14995. Per head, with a fixed decay rate s::

    [q | k | v | u] = x W,   q = silu(q),  k = silu(k)
    o_t = sum_{j <= t} exp(-s (t - j)) (q_t . k_j) v_j          no softmax, no scaling, no denominator
    y   = (u * srmsnorm(o)) W_out                               the norm spans all heads

Early layers forget fast, the last one hardly at all. In the first layer queries and keys are turned by LRPE: channel i
becomes the pair ``x_i cos(t theta_i), x_i sin(t theta_i)`` with a learned ``theta``, so that products carry
``cos((t - j) theta_i)``. Time and memory grow linearly with the length; a stream needs one matrix per head.
"""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidValue, invalid
from ..measure.cost import Cost, linear_flops
from ..ops.handwritten import sum_dtype
from ..ops.linear_attention import default_block, layer_slopes, lightning_attention, lightning_state, lightning_step
from ..ops.linear_attention_chunks import chunked_flops
from ..registry import register
from ..spec import MixerSpec, Order
from .base import Mixer, check_heads
from .layout import TokenLayout
from .parts import SRMSNorm
from .ssm import Packing, check_token
from .state import State, state

DECAYS = ("official", "paper", "none")


@state
class LightningState(State):
    """Streaming state; its size does not depend on how much was read.

    Attributes:
        kv: float32 ``(batch, heads, key width, value width)``: decayed sum of the outer products of keys and values.
        position: int64 ``(batch,)``: number of real tokens read, which is the next token's position.
    """

    kv: Tensor
    position: Tensor


class Lrpe(nn.Module):
    """Linearized relative positional encoding with learned frequencies; doubles the width of queries and keys.

    Args:
        heads, head_dim: the first frequencies fall from 1 to 1e-8 over *all* channels of all heads, as released.
    """

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        width = heads * head_dim
        frequencies = 10000.0 ** (-2.0 * torch.arange(width) / width)
        self.theta = nn.Parameter(frequencies.reshape(heads, 1, head_dim))

    def forward(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Turn queries and keys.

        Args:
            q, k: ``(batch, heads, length, head_dim)``.
            positions: int64 ``(length,)`` or ``(batch, length)``.

        Returns:
            Both ``(batch, heads, length, 2 * head_dim)``.
        """
        theta = self.theta.to(sum_dtype(self.theta.dtype))
        positions = positions.to(theta.dtype)[..., None]
        angles = theta * (positions if positions.ndim == 2 else positions[:, None])
        cos, sin = angles.cos().to(q.dtype), angles.sin().to(q.dtype)
        return torch.cat([q * cos, q * sin], -1), torch.cat([k * cos, k * sin], -1)


@register("mixer", "lightning_attention")
class LightningAttention(Mixer):
    """Causal linear attention with a fixed decay per head (TransNormerLLM): linear time, a fixed-size state.

    Masked tokens are taken out of the sequence: decays and positions go on as if they had never been there. (The
    released code only zeroes their values, so that its decays count them.) Of a layout, segments are kept apart, each
    run of equal numbers by itself, and positions are read by LRPE; decays count tokens.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim``.
        causal: must be True; no form in both directions is defined.
        decay: rule of the decay rates, see :func:`~foveate.ops.linear_attention.layer_slopes`: "official", "paper",
            or "none", plain linear attention.
        layer, depth: index of the layer and number of layers, which the rates depend on.
        lrpe: turn queries and keys by learned frequencies. A stack built with ``for_layer`` does so in its first layer.
        bias: the projections have biases.
        block: chunk length of the op; None: the fastest on CPU for this width. Changes speed only.

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
    )

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = True,
        decay: str = "official",
        layer: int = 0,
        depth: int = 1,
        lrpe: bool = False,
        bias: bool = False,
        block: int | None = None,
    ) -> None:
        super().__init__(dim, causal=causal)
        self.num_heads, self.head_dim = num_heads, check_heads(dim, num_heads)
        if decay not in DECAYS:
            raise invalid("decay", decay, f"it must be one of {', '.join(DECAYS)}")
        if not isinstance(depth, int) or depth < 1:
            raise invalid("depth", depth, "a positive whole number is needed")
        if not isinstance(layer, int) or not 0 <= layer < depth:
            raise invalid("layer", layer, f"it must be in 0 ... depth - 1 = {depth - 1}")
        if block is not None and (not isinstance(block, int) or block < 1):
            raise invalid("block", block, "a positive whole number, or None, is needed")
        # Numbers, not a buffer: a buffer would follow the module to bfloat16, where slow rates lose most digits.
        self.slopes = None if decay == "none" else tuple(layer_slopes(num_heads, layer, depth, decay).tolist())
        self.block = block
        self.qkvu_proj = nn.Linear(dim, 4 * dim, bias=bias)
        self.out_proj = nn.Linear(dim, dim, bias=bias)
        self.lrpe = Lrpe(num_heads, self.head_dim) if lrpe else None
        self.norm = SRMSNorm()

    @classmethod
    def for_layer(cls, index: int, depth: int, dim: int, **options: Any) -> Self:
        """Layer ``index`` of ``depth``: its decay rates, and LRPE in the first layer unless ``lrpe`` is given."""
        return cls(dim, layer=index, depth=depth, **{"lrpe": index == 0, **options})

    def no_weight_decay(self) -> list[nn.Parameter]:
        """Frequencies: pulling them to zero would undo the encoding."""
        return [] if self.lrpe is None else [self.lrpe.theta]

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
    ) -> LightningState:
        """Zeros: sums in float32 (float64 if ``dtype``, by default that of the weights, is), positions 0."""
        weight = self.out_proj.weight
        device, dtype = device or weight.device, sum_dtype(dtype or weight.dtype)
        shape = (batch_size, self.num_heads, self._key_dim, self.head_dim)
        return LightningState(
            kv=torch.zeros(shape, device=device, dtype=dtype),
            position=torch.zeros(batch_size, device=device, dtype=torch.int64),
        )

    def prefill(self, x: Tensor, state: LightningState, mask: Tensor | None = None) -> tuple[Tensor, LightningState]:
        """Read ``(batch, length, dim)`` after ``state``; a masked token leaves the state as it is."""
        self.check_input(x, mask)
        y, kv = self._mix(x, mask, None, state)
        assert kv is not None
        count = x.shape[1] if mask is None else mask.sum(1)
        return y, LightningState(kv, state.position + count)

    def step(self, x_t: Tensor, state: LightningState) -> tuple[Tensor, LightningState]:
        """Read one token ``(batch, dim)``.

        Raises:
            InvalidValue: anything but one token per sample, or a state that does not fit.
        """
        check_token("LightningAttention", x_t, self.dim)
        self._check_state(x_t, state)
        q, k, v, gate = self._project(x_t[:, None])
        if self.lrpe is not None:
            q, k = self.lrpe(q, k, state.position[:, None])
        o, kv = lightning_step(q[:, :, 0], k[:, :, 0], v[:, :, 0], self._slope(x_t), state.kv)
        return self._emit(o[:, :, None], gate)[:, 0], LightningState(kv, state.position + 1)

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections and the op's products; the norm, the gate and LRPE are elementwise."""
        n, d, h = grid[0], self.head_dim, self.num_heads
        block = self.block or default_block(self._key_dim)
        # Saved: x, [q k v u], silu(q) and silu(k), o, its norm, the gated norm; LRPE's inputs, outputs and angles.
        saved = batch * n * self.dim * 10
        if self.lrpe is not None:
            saved += batch * n * self.dim * 4 + 3 * n * self.dim
        return Cost(
            flops=linear_flops(batch * n, self.dim, 5 * self.dim) + chunked_flops(n, h, self._key_dim, d, block, batch),
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * saved,
            state_bytes=batch * (4 * h * self._key_dim * d + 8),
        )

    @property
    def _key_dim(self) -> int:
        return self.head_dim if self.lrpe is None else 2 * self.head_dim

    def _slope(self, x: Tensor) -> Tensor | None:
        return None if self.slopes is None else torch.tensor(self.slopes, dtype=sum_dtype(x.dtype), device=x.device)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k, v ``(batch, heads, length, head_dim)`` and the output gate ``(batch, length, dim)``."""
        q, k, v, u = self.qkvu_proj(x).chunk(4, dim=-1)
        return self._heads(F.silu(q)), self._heads(F.silu(k)), self._heads(v), u

    def _emit(self, o: Tensor, gate: Tensor) -> Tensor:
        """The output of what the op gave, ``(batch, heads, length, head_dim)``."""
        return self.out_proj(gate * self.norm(o.transpose(1, 2).flatten(2)))

    def _mix(
        self, x: Tensor, mask: Tensor | None, layout: TokenLayout | None, past: LightningState | None
    ) -> tuple[Tensor, Tensor | None]:
        """The output, and with ``past`` the sums after the last real token."""
        positions = None if layout is None else layout.positions
        segments = None if layout is None else layout.segments
        packing = None if mask is None else Packing.of(mask)
        if packing is not None:
            x = packing.pack(x)
            segments = None if segments is None else segments.gather(1, packing.order)
            positions = None if positions is None else positions.expand(x.shape[:2]).gather(1, packing.order)
        q, k, v, gate = self._project(x)
        if self.lrpe is not None:
            if positions is None:
                positions = torch.arange(x.shape[1], device=x.device)
                positions = positions if past is None else positions + past.position[:, None]
            q, k = self.lrpe(q, k, positions)
        if packing is not None:  # behind the real tokens biases are left
            v = v.masked_fill(~packing.valid[:, None, :, None], 0)
        slope = self._slope(x)
        if past is None:
            o, kv = lightning_attention(q, k, v, slope, block=self.block, segments=segments), None
        else:
            self._check_state(x, past)
            o, kv = lightning_attention(q, k, v, slope, block=self.block, state=past.kv, return_state=True)
            if mask is not None:
                kv = lightning_state(k, v, slope, mask.sum(1), past.kv)
        y = self._emit(o, gate)
        return (y if packing is None else packing.unpack(y)), kv

    def _check_state(self, x: Tensor, past: LightningState) -> None:
        shape = (x.shape[0], self.num_heads, self._key_dim, self.head_dim)
        if past.kv.shape != shape:
            raise InvalidValue(f"{type(self).__name__}: the state has shape {tuple(past.kv.shape)}; x needs {shape}.")
