"""Sigmoid attention as a layer, with the rules that make it train like softmax.

Ramapuram et al., "Theory, Analysis, and Best Practices for Sigmoid Self-Attention" (ICLR 2025, arXiv 2409.04431). Per
head, with constants t and b that are not learned::

    y_i = sum_j sigmoid((q_i . k_j / sqrt(head_dim) - slope |i - j|) exp(t) + b) v_j

Weights are not normalised, so ``b = -ln n`` for n keys keeps the output as small at the start of training as a
softmax's; that is the paper's key finding. Its other rules are options here: a norm on queries and keys, rotary
positions or ALiBi, LayerScale for vision, and a second norm behind the layer ("hybrid norm") for long sequences.
The modules and their names are those of the authors' ``attention_simulator``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import invalid
from ..measure.cost import Cost, linear_flops
from ..ops.handwritten import sum_dtype
from ..ops.linear import linear
from ..ops.positions import alibi_bias, apply_rope, slope_values
from ..ops.sigmoid_attention import recommended_bias, sigmoid_attention, sigmoid_flops
from ..ops.softmax_attention import softmax_attention
from ..registry import register
from ..spec import MixerSpec, Order
from .base import Mixer, check_heads, grid_size
from .kv_cache import KVCache, capacity, token_positions
from .layout import TokenLayout
from .parts import Linear

Activation = Literal["sigmoid", "seq_len_normalized_sigmoid", "sqrt_seq_len_normalized_sigmoid", "softmax"]
Positions = Literal["rope", "alibi"]
#: -ln 256: for networks that do not say how many tokens they have.
DEFAULT_BIAS = -5.545177444479562


@register("mixer", "sigmoid_attention")
class SigmoidAttention(Mixer):
    """Attention with an element-wise sigmoid in place of the softmax, in memory linear in the length.

    Grids of rank 2 and 3 are read as one sequence, row by row, unless ``pos`` is given. Masked tokens do not count as
    positions. Of a layout, positions go to RoPE, ALiBi and the variants that count rows, and tokens of different
    segments do not see each other. A ``context`` is read as a whole, without causality and positions. A stream keeps
    keys and values of all tokens, see :class:`~foveate.mixers.kv_cache.KVCache`.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim``.
        causal: outputs at t depend on tokens up to t only.
        bias: the two projections have biases.
        qk_norm: LayerNorm on queries and keys, one for all heads.
        attn_bias: the constant b. A network that knows its number n of tokens gets ``-ln n`` from ``options_for``; it
            stays what it was in training when sequences grow. Default: -ln 256.
        attn_temp: the constant t; scores are multiplied by its exponential.
        pos: "rope" (pairs of neighbouring channels turn, base 10000), "alibi", or None.
        activation: "sigmoid"; "seq_len_normalized_sigmoid" or "sqrt_seq_len_normalized_sigmoid", which divide the
            output at position i, from 0, by i + 1 or its root; "softmax", for comparison.
        layer_scale: initial value of one learned factor per channel of the output (the paper: 1e-4 in vision); None:
            no factors.
        hybrid_norm: LayerNorm on the output, for a network that has one in front of the layer as well.

    Raises:
        InvalidValue: heads that do not divide, an odd head width with "rope", or an option that is not legal.
    """

    spec = MixerSpec(
        ranks=(1, 2, 3),
        causal="strict",
        streaming="exact",
        cross=True,
        layout=True,
        segments=True,
        order=Order(flops=2.0, memory=1.0),
        onnx=True,
        dynamic_length=True,
    )
    #: Section 5 of the paper: rotary positions, and norms on queries, keys and the output that keep training stable.
    for_language = {"pos": "rope", "qk_norm": True, "hybrid_norm": True}

    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "attention_simulator": {r"((?:qkv|proj|q_norm|k_norm)\.(?:weight|bias)|attn_bias|attn_temp)": r"\1"}
    }

    attn_bias: Tensor
    attn_temp: Tensor

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = False,
        bias: bool = False,
        qk_norm: bool = False,
        attn_bias: float = DEFAULT_BIAS,
        attn_temp: float = 0.0,
        pos: Positions | None = None,
        activation: Activation = "sigmoid",
        layer_scale: float | None = None,
        hybrid_norm: bool = False,
    ) -> None:
        super().__init__(dim, causal=causal)
        self.num_heads, self.head_dim = num_heads, check_heads(dim, num_heads)
        for name, number in (("attn_bias", attn_bias), ("attn_temp", attn_temp), ("layer_scale", layer_scale)):
            if number is not None and not math.isfinite(number):
                raise invalid(name, number, "a finite number is needed")
        if pos not in (None, *get_args(Positions)):
            raise invalid("pos", pos, "it must be 'rope', 'alibi' or None")
        if activation not in get_args(Activation):
            raise invalid("activation", activation, f"it must be one of {', '.join(get_args(Activation))}")
        if pos == "rope" and self.head_dim % 2:
            raise invalid("pos", pos, f"it turns pairs of channels, and dim / num_heads = {self.head_dim} is odd")
        self.pos, self.activation = pos, activation
        if pos is not None:
            self.spec = replace(self.spec, ranks=(1,))
        self.qkv = Linear(dim, 3 * dim, bias=bias)
        self.proj = Linear(dim, dim, bias=bias)
        self.q_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.layer_scale = None if layer_scale is None else nn.Parameter(torch.full((dim,), float(layer_scale)))
        self.out_norm = nn.LayerNorm(dim) if hybrid_norm else nn.Identity()
        self.register_buffer("attn_bias", torch.full((1,), float(attn_bias)))
        self.register_buffer("attn_temp", torch.full((1,), float(attn_temp)))

    @classmethod
    def options_for(cls, grid: tuple[int, ...]) -> dict[str, Any]:
        """``attn_bias = -ln n`` for the n tokens of the grid."""
        return {"attn_bias": recommended_bias(math.prod(grid))}

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor:
        """Mix ``(batch, *grid, dim)``; see :class:`~foveate.mixers.Mixer`."""
        self.check_input(x, mask, context, layout)
        grid, x, mask = x.shape[1:-1], x.flatten(1, -2), None if mask is None else mask.flatten(1)
        x = _clear(x, mask)  # what is masked may be anything, NaN included
        if context is not None:
            y = self._attend(*self._project(x, context))
            return self._emit(y, mask).unflatten(1, grid)
        positions = None if layout is None else layout.positions
        segments = None if layout is None else layout.segments
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device) if mask is None else token_positions(mask)
        q, k, v = self._project(x, x)
        q, k = self._turn(q, positions), self._turn(k, positions)
        y = self._attend(q, k, v, mask, positions, positions, causal=self.causal, segments=segments)
        return self._emit(y, mask).unflatten(1, grid)

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> KVCache:
        """An empty cache that will hold keys and values in ``dtype`` (default: that of the weights).

        Raises:
            InvalidType: the mixer is not causal.
        """
        if not self.causal:
            raise self._no_streaming()
        weight = self.qkv.weight
        return KVCache.empty(batch_size, self.num_heads, self.head_dim, device or weight.device, dtype or weight.dtype)

    def prefill(self, x: Tensor, state: KVCache, mask: Tensor | None = None) -> tuple[Tensor, KVCache]:
        """Read ``(batch, length, dim)`` after ``state``; masked tokens are never seen and take no position."""
        if not self.causal:
            raise self._no_streaming()
        self.check_stream(x, state, mask)
        x = _clear(x, mask)
        q, k, v = self._project(x, x)
        positions = state.positions(x.shape[1], mask)
        if self.pos == "rope":  # at once: in a step the angles are most of the work
            q, k = self._turn(torch.cat([q, k], 1), positions).chunk(2, 1)
        state = state.extend(k, v, mask)
        k, v = (buffer[:, :, : state.length].to(q.dtype) for buffer in (state.keys, state.values))
        slots = state.positions_of_slots()
        real = None if state.slots is None else slots >= 0
        return self._emit(self._attend(q, k, v, real, positions, slots, causal=True), mask), state

    def step(self, x_t: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        """Read one token ``(batch, dim)``.

        Raises:
            InvalidValue: anything but one token per sample.
        """
        self.check_step(x_t, state)
        y, state = self.prefill(x_t[:, None], state)
        return y[:, 0], state

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections and tiles; of the attention only queries, keys and values are saved, its weights never."""
        n, d = grid_size(grid), self.dim
        saved = 5 * d  # x, [q k v], what the output projection reads
        saved += 2 * d if self.pos == "rope" else 0
        saved += 2 * d if isinstance(self.q_norm, nn.LayerNorm) else 0
        saved += d if self.layer_scale is not None else 0
        saved += d if isinstance(self.out_norm, nn.LayerNorm) else 0
        if self.activation == "softmax":
            saved += 2 * d + self.num_heads  # scaled queries, the heads' outputs, one number per row
            attention = 4 * batch * n * n * d
        else:
            width = self.head_dim
            attention = sigmoid_flops(n, n, self.num_heads, width, width, batch, causal=self.causal)
        return Cost(
            flops=4 * linear_flops(batch * n, d, d) + attention,
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * batch * n * saved,
            state_bytes=8 * batch * (capacity(n) * d + 1) + 8 if self.causal else 0,
        )

    def _project(self, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of ``x``, keys and values of ``other``, ``(batch, heads, length, head_dim)``, normed."""
        if other is x:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        else:
            weights, biases = self.qkv.weight.split((self.dim, 2 * self.dim)), (None, None)
            if self.qkv.bias is not None:
                biases = self.qkv.bias.split((self.dim, 2 * self.dim))
            q = linear(x, weights[0], biases[0])
            k, v = linear(other, weights[1], biases[1]).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for t in (q, k, v))
        return self.q_norm(q), self.k_norm(k), v

    def _turn(self, x: Tensor, positions: Tensor) -> Tensor:
        return apply_rope(x, positions, interleaved=True) if self.pos == "rope" else x

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        key_positions: Tensor | None = None,
        *,
        causal: bool = False,
        segments: Tensor | None = None,
    ) -> Tensor:
        """The heads' outputs ``(batch, heads, length, head_dim)``, with the layer's constants.

        Args:
            mask: bool ``(batch, key_length)``.
            positions, key_positions: None where there are none (a context).
        """
        slopes, factor = None, self.attn_temp.to(sum_dtype(q.dtype)).exp()
        if self.pos == "alibi" and positions is not None:
            slopes = torch.tensor(slope_values(self.num_heads), device=q.device, dtype=factor.dtype) * factor
        scale = factor * self.head_dim**-0.5
        if self.activation == "softmax":
            visible = None if mask is None else mask[:, None, None, :]
            if segments is not None:
                same = (segments[:, :, None] == segments[:, None, :])[:, None]
                visible = same if visible is None else visible & same
            bias = None
            if slopes is not None and positions is not None and key_positions is not None:
                bias = alibi_bias(slopes, positions, key_positions)
            return softmax_attention(q * scale.to(q.dtype), k, v, causal=causal, mask=visible, bias=bias, scale=1.0)
        y = sigmoid_attention(
            q,
            k,
            v,
            bias=self.attn_bias,
            scale=scale,
            causal=causal,
            mask=mask,
            segments=segments,
            alibi_slopes=slopes,
            positions=positions,
            key_positions=key_positions,
        )
        if self.activation == "sigmoid" or positions is None:
            return y
        count = (positions + 1).to(y.dtype)[..., None]
        count = count if positions.ndim == 1 else count[:, None]
        return y / (count.sqrt() if self.activation.startswith("sqrt") else count)

    def _emit(self, y: Tensor, mask: Tensor | None) -> Tensor:
        """Heads put together, projected, normed, scaled; zeros where masked."""
        y = self.out_norm(self.proj(y.transpose(1, 2).flatten(2)))
        y = y if self.layer_scale is None else y * self.layer_scale
        return _clear(y, mask)


def _clear(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zeros where the mask is False."""
    return x if mask is None else x.masked_fill(~mask[..., None], 0.0)
