"""Softmax attention: multi-head attention with rotary or linear-bias positions and a KV cache.

Vaswani et al., "Attention Is All You Need" (NeurIPS 2017, arXiv 1706.03762), section 3.2.2: every head h attends with
its own projections, ``head_h = softmax(q_h k_h^T / sqrt(d)) v_h``, and ``y = [head_1 | ... | head_H] W_out``. RoPE
(arXiv 2104.09864) and ALiBi (arXiv 2108.12409) are in :mod:`foveate.ops.positions`.

FLOPs grow with the square of the length. Memory grows linearly without mask, segments and ALiBi; with segments or ALiBi
one matrix of queries times keys is made, with a mask in the torch form alone
(:mod:`foveate.ops.softmax_attention` says of which size).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ..errors import InvalidValue, invalid
from ..measure.cost import Cost, linear_flops
from ..ops.positions import alibi_bias, apply_rope, slope_values
from ..ops.softmax_attention import softmax_attention
from ..registry import register
from ..spec import MixerSpec, Order
from .base import Mixer, check_heads, check_key_width, grid_size
from .kv_cache import KVCache, capacity, token_positions
from .layout import TokenLayout
from .look import Look, check_query, flat_place, read_weights
from .parts import Linear

Position = Literal["none", "rope", "alibi"]
POSITIONS = get_args(Position)


@register("mixer", "softmax_attention")
class SoftmaxAttention(Mixer):
    """Multi-head softmax attention: every token reads every other, or every earlier one, by content.

    Grids of rank 2 and 3 are read as one sequence, row by row. Masked tokens do not count as positions. Of a layout,
    positions go to RoPE and ALiBi, and tokens of different segments do not see each other. With a ``context`` keys and
    values come from there. A stream keeps keys and values of all tokens, see :class:`~foveate.mixers.kv_cache.KVCache`.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim``.
        causal: a token sees itself and earlier ones.
        position: "none"; "rope": rotary embedding (rotate-half convention, even head width); "alibi": linear biases
            with the published slopes. Both only for sequences, without context.
        rope_base: of the rotary embedding: long wavelengths grow with it.
        qk_dim: width of the queries of all heads, and of the keys; None: ``dim``. ``num_heads`` must divide it.
        bias: the projections have biases.
        out_bias: the output projection has one; None: as ``bias`` says.

    Raises:
        InvalidValue: an option that is not legal; when called: a context together with causality or segments.
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
    for_language = {"position": "rope"}
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "dsf-mqar": {r"W([qkv])\.(weight|bias)": r"\1_proj.\2", r"out_proj\.(weight|bias)": r"out_proj.\1"}
    }

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = False,
        position: Position = "none",
        rope_base: float = 10000.0,
        qk_dim: int | None = None,
        bias: bool = True,
        out_bias: bool | None = None,
    ) -> None:
        super().__init__(dim, causal=causal)
        self.num_heads, self.head_dim = num_heads, check_heads(dim, num_heads)
        self.qk_dim = check_key_width(qk_dim, dim, num_heads)
        self.key_dim = self.qk_dim // num_heads
        if position not in POSITIONS:
            raise invalid("position", position, f"it must be one of {', '.join(POSITIONS)}")
        if position == "rope" and self.key_dim % 2:
            raise invalid("position", position, f"RoPE turns channel pairs, and a head has {self.key_dim} channels")
        if not 0 < rope_base < math.inf:
            raise invalid("rope_base", rope_base, "it must be positive and finite")
        self.position, self.rope_base = position, rope_base
        if position != "none":
            order = Order(flops=2.0, memory=2.0 if position == "alibi" else 1.0)
            self.spec = replace(self.spec, ranks=(1,), cross=False, order=order)
        self.q_proj = Linear(dim, self.qk_dim, bias=bias)
        self.k_proj = Linear(dim, self.qk_dim, bias=bias)
        self.v_proj = Linear(dim, dim, bias=bias)
        self.out_proj = Linear(dim, dim, bias=bias if out_bias is None else out_bias)

    def convert_official(self, state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """The release has queries and keys in one projection."""
        found = {}
        for key, value in state_dict.items():
            halves = value.chunk(2) if key.startswith("Wqk.") else (value,)
            names = (key.replace("Wqk", "Wq"), key.replace("Wqk", "Wk")) if len(halves) == 2 else (key,)
            found.update(zip(names, halves, strict=True))
        return found

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
        grid = tuple(x.shape[1:-1])
        segments = None if layout is None else layout.segments
        if context is not None and (self.causal or segments is not None):
            raise InvalidValue(f"{type(self).__name__}: a context goes with neither causality nor segments.")
        x, mask = x.flatten(1, -2), None if mask is None else mask.flatten(1)
        x = _clear(x, mask)  # what is masked may be anything, NaN included
        source = x if context is None else context
        q, k, v = self._heads(self.q_proj(x)), self._heads(self.k_proj(source)), self._heads(self.v_proj(source))
        positions = None if self.position == "none" else self._positions(x, mask, layout)
        visible = None
        if context is None:
            visible = None if mask is None else mask[:, None, None, :]
            if segments is not None:
                same = (segments[:, :, None] == segments[:, None, :])[:, None]
                visible = same if visible is None else visible & same
        y = self._read(self._turn(q, positions), self._turn(k, positions), v, visible, positions, positions)
        return _clear(y, mask).unflatten(1, grid)

    def look(self, x: Tensor, query: tuple[int, ...] | None = None) -> list[Look]:
        """What a token reads of every other; see :class:`~foveate.mixers.Mixer`."""
        self.check_input(x)
        grid = tuple(x.shape[1:-1])
        place = check_query(type(self).__name__, query, grid)
        row = None if place is None else flat_place(place, grid)
        x = x.flatten(1, -2).detach()
        positions = torch.arange(x.shape[1], device=x.device)
        q, k = (self._turn(self._heads(project(x)), positions) for project in (self.q_proj, self.k_proj))

        def read(values: Tensor) -> Tensor:
            bias = self._bias(positions, positions)
            return softmax_attention(q, k, values, causal=self.causal, bias=bias)

        return [Look("weights", read_weights(read, q, row).unflatten(-1, grid), "attention")]

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> KVCache:
        """An empty cache that will hold keys and values in ``dtype`` (default: that of the weights).

        Raises:
            InvalidType: the mixer is not causal.
        """
        if not self.causal:
            raise self._no_streaming()
        weight = self.k_proj.weight
        widths = self.key_dim, self.head_dim
        return KVCache.empty(batch_size, self.num_heads, widths, device or weight.device, dtype or weight.dtype)

    def prefill(self, x: Tensor, state: KVCache, mask: Tensor | None = None) -> tuple[Tensor, KVCache]:
        """Read ``(batch, length, dim)`` after ``state``; masked tokens are never seen and take no position."""
        if not self.causal:
            raise self._no_streaming()
        self.check_stream(x, state, mask)
        x = _clear(x, mask)
        q, k, v = (self._heads(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        positions = state.positions(x.shape[1], mask)
        if self.position == "rope":  # at once: in a step the angles are most of the work
            q, k = self._turn(torch.cat([q, k], 1), positions).chunk(2, 1)
        state = state.extend(k, v, mask)
        k, v = (buffer[:, :, : state.length].to(q.dtype) for buffer in (state.keys, state.values))
        slots = state.positions_of_slots()
        visible = None if state.slots is None else (slots >= 0)[:, None, None, :]
        return _clear(self._read(q, k, v, visible, positions, slots), mask), state

    def step(self, x_t: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        """Read one token ``(batch, dim)``.

        Raises:
            InvalidValue: anything but one token per sample.
        """
        self.check_step(x_t, state)
        y, state = self.prefill(x_t[:, None], state)
        return y[:, 0], state

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections and the two products with all keys, also where causality would spare half of them."""
        n, dim, heads = grid_size(grid), self.dim, self.num_heads
        # Saved: x, q, k, v, the heads' outputs, and one number per row of the softmax. What RoPE turns is stored head
        # by head, and so are the outputs, which then need a copy to be merged.
        saved = batch * n * (3 * dim + 2 * self.qk_dim + heads)
        saved += batch * n * dim + n * self.key_dim if self.position == "rope" else 0
        saved += heads * n * n if self.position == "alibi" else 0
        return Cost(
            flops=linear_flops(batch * n, dim, 2 * dim + 2 * self.qk_dim) + 2 * batch * n * n * (dim + self.qk_dim),
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * saved,
            state_bytes=4 * batch * (capacity(n) * (dim + self.qk_dim) + 2) + 8 if self.causal else 0,
        )

    def _heads(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        return x.view(batch, length, self.num_heads, width // self.num_heads).transpose(1, 2)

    def _positions(self, x: Tensor, mask: Tensor | None, layout: TokenLayout | None) -> Tensor:
        """int64 ``(length,)``, or ``(batch, length)`` where samples differ."""
        if layout is not None and layout.positions is not None:
            return layout.positions
        return torch.arange(x.shape[1], device=x.device) if mask is None else token_positions(mask)

    def _turn(self, x: Tensor, positions: Tensor | None) -> Tensor:
        return x if self.position != "rope" or positions is None else apply_rope(x, positions, self.rope_base)

    def _read(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        visible: Tensor | None,
        query_positions: Tensor | None,
        key_positions: Tensor | None,
    ) -> Tensor:
        """The output ``(batch, length, dim)`` of queries and keys in their heads."""
        bias = self._bias(query_positions, key_positions)
        o = softmax_attention(q, k, v, causal=self.causal, mask=visible, bias=bias)
        return self.out_proj(o.transpose(1, 2).flatten(2))

    def _bias(self, query_positions: Tensor | None, key_positions: Tensor | None) -> Tensor | None:
        if self.position != "alibi" or query_positions is None or key_positions is None:
            return None
        return alibi_bias(
            torch.tensor(slope_values(self.num_heads), device=key_positions.device), query_positions, key_positions
        )


def _clear(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zeros where the mask is False."""
    return x if mask is None else x.masked_fill(~mask[..., None], 0)
