"""Neighborhood attention in one, two or three dimensions, with everything its operator can do chosen per axis.

Hassani, Hwu and Shi, "Faster Neighborhood Attention" (NeurIPS 2024, arXiv 2403.04690); strides from "Generalized
Neighborhood Attention" (arXiv 2504.16922). A token reads the keys of its window along each axis of a sequence, an image
or a clip, and in the same softmax a few tokens without a place that all others see::

    y_i = sum_{j in N(i) + extra} softmax_j(q_i . k_j / sqrt(d)) v_j

On causal axes the window ends with the token. A causal sequence is a sliding window: its stream keeps the keys and
values of one window.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import InvalidValue, invalid
from ..measure.cost import Cost, linear_flops
from ..ops.neighborhood_windows import Axis
from ..ops.positions import apply_rope
from ..ops.softmax_attention import softmax_attention
from ..registry import register
from ..spec import MixerSpec, Order
from .layout import TokenLayout
from .neighborhood import NeighborhoodMixer, PerAxis, PerAxisFlag, check_axes, per_axis
from .state import State, state

Position = Literal["none", "rope"]


@state
class NeighborhoodState(State):
    """Keys and values of the last tokens, at most ``(window - 1) dilation``, latest last; keys are not turned yet.

    Attributes:
        keys, values: ``(batch, kv_heads, n, head_dim)``.
    """

    keys: Tensor
    values: Tensor


@register("mixer", "faster_neighborhood_attention")
class FasterNeighborhoodAttention(NeighborhoodMixer):
    """Attention to a window along each axis of a grid of 1, 2 or 3 axes.

    ``window``, ``dilation``, ``stride`` and ``causal`` are one value for all axes or a tuple with one per axis, which
    fixes the rank. The operator refuses an axis shorter than window times dilation; this layer takes what the axis has
    room for: on a causal axis nothing changes, for the window is cut at the beginning anyway; on any other the dilation
    shrinks first, then the window. With a stride above 1 the last group of a causal axis depends on where the axis
    ends, so there is no stream then.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim``.
        causal: a token sees itself and earlier ones along the axis.
        num_kv_heads: heads of keys and values, which neighbouring heads of queries share; None: ``num_heads``.
        window: keys that a token sees along an axis: at least 2, odd or even (one more to the left).
        dilation: distance of neighbouring keys.
        stride: so many neighbouring tokens share a window; at most the window.
        num_registers: learned tokens without a place that every token sees.
        position: "none", or "rope": rotary embedding (rotate-half convention), for sequences without registers.
        rope_base: of the rotary embedding.
        qkv_bias: the first projection has a bias.
        scale: factor on the products; None: ``1 / sqrt(dim / num_heads)``.
        proj_drop: share of outputs dropped while training.

    Raises:
        InvalidValue: heads that do not divide, or an option that is not legal.
    """

    spec = MixerSpec(
        ranks=(1, 2, 3),
        causal="strict",
        streaming="exact",
        masks=False,
        padding="masked",
        order=Order(flops=1.0, memory=1.0),
    )
    #: A text needs a longer window than an image, and without positions a window is a bag of words.
    for_language: ClassVar[dict[str, Any]] = {"window": 64, "position": "rope"}
    official_keys: ClassVar[dict[str, dict[str, str]]] = {"natten": {r"((?:qkv|proj)\.(?:weight|bias))": r"\1"}}

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: PerAxisFlag = False,
        num_kv_heads: int | None = None,
        window: PerAxis = 7,
        dilation: PerAxis = 1,
        stride: PerAxis = 1,
        num_registers: int = 0,
        position: Position = "none",
        rope_base: float = 10000.0,
        qkv_bias: bool = True,
        scale: float | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        ranks = check_axes(window, dilation, stride, causal)
        super().__init__(dim, causal=causal if isinstance(causal, bool) else causal[0])
        self.window, self.dilation, self.stride, self.causal_axes = window, dilation, stride, causal
        self.rpb = None
        self.build(num_heads, num_kv_heads, scale, qkv_bias, proj_drop)
        if not isinstance(num_registers, int) or num_registers < 0:
            raise invalid("num_registers", num_registers, "a whole number, 0 or more, is needed")
        if position not in get_args(Position):
            raise invalid("position", position, f"it must be one of {', '.join(get_args(Position))}")
        if not 0 < rope_base < math.inf:
            raise invalid("rope_base", rope_base, "it must be positive and finite")
        self.position, self.rope_base = position, rope_base
        if position == "rope":
            if num_registers or 1 not in ranks or self.head_dim % 2:
                why = f"registers have no position; num_registers={num_registers}, ranks {ranks}, width {self.head_dim}"
                raise invalid("position", position, f"it is for sequences, even head widths and no registers ({why})")
            ranks = (1,)
        self.registers = nn.Parameter(torch.randn(num_registers, dim) * 0.02) if num_registers else None
        streams = 1 in ranks and per_axis(stride, 1) == (1,)
        self.spec = replace(self.spec, ranks=ranks, streaming="exact" if streams else "no")

    def no_weight_decay(self) -> list[nn.Parameter]:
        """The registers, which are tokens."""
        return [] if self.registers is None else [self.registers]

    def axes(self, grid: tuple[int, ...]) -> tuple[Axis, ...]:
        """What the operator takes for this grid, see the class."""
        options = (per_axis(value, len(grid)) for value in (self.window, self.dilation, self.stride, self.causal_axes))
        return tuple(_fitted(*each) for each in zip(grid, *options, strict=True))

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
        return self.mix(x, self._extra(None))

    def read_with(self, x: Tensor, extra: Tensor) -> Tensor:
        """Mix ``(batch, *grid, dim)``, where every token sees ``extra`` besides its window.

        Args:
            extra: ``(batch, n, dim)``, tokens without a place; registers are seen too.

        Raises:
            InvalidValue: as :meth:`check_input`; extra tokens of another shape, or with rotary positions.
        """
        self.check_input(x)
        name = type(self).__name__
        if extra.ndim != 3 or (extra.shape[0], extra.shape[2]) != (len(x), self.dim) or not extra.shape[1]:
            raise InvalidValue(
                f"{name}: extra has shape {tuple(extra.shape)}; it must be ({len(x)}, n, {self.dim}) with n >= 1."
            )
        if self.position == "rope":
            raise InvalidValue(f"{name}: extra tokens have no position, and position='rope' needs one.")
        return self.mix(x, self._extra(extra))

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> NeighborhoodState:
        """Nothing read yet; keys and values will be in ``dtype`` (default: that of the weights).

        Raises:
            InvalidType: the mixer is not causal, its grids are no sequences, or it has a stride.
        """
        self._check_streams()
        weight = self.qkv.weight
        shape = (batch_size, self.num_kv_heads, 0, self.head_dim)
        none = torch.zeros(shape, device=device or weight.device, dtype=dtype or weight.dtype)
        return NeighborhoodState(none, none)

    def prefill(
        self, x: Tensor, state: NeighborhoodState, mask: Tensor | None = None
    ) -> tuple[Tensor, NeighborhoodState]:
        """Read ``(batch, length, dim)`` after ``state``.

        Raises:
            InvalidValue: a mask, or a state that is not of this mixer or of another batch.
        """
        self._check_streams()
        self.check_stream(x, state, mask)
        q, k, v = self.heads_of(x)
        past = state.keys.shape[2]
        k, v = torch.cat([state.keys.to(k.dtype), k], 2), torch.cat([state.values.to(v.dtype), v], 2)
        (axis,) = self.axes((k.shape[2],))
        behind = axis.size - k.shape[2]
        # The operator has as many queries as keys: what was read before, and what fills up, asks nothing.
        queries = nn.functional.pad(q, (0, 0, past, behind))
        keys, values = (nn.functional.pad(m, (0, 0, 0, behind)) for m in (k, v))
        extra_k, extra_v = self._registers(len(x))
        y = self.attend(queries, keys, values, (axis,), extra_k, extra_v)[:, :, past : past + q.shape[2]]
        return self.proj_drop(self.proj(y.transpose(1, 2).flatten(2))), self._keep(k, v)

    def step(self, x_t: Tensor, state: NeighborhoodState) -> tuple[Tensor, NeighborhoodState]:
        """Read one token ``(batch, dim)``.

        Raises:
            InvalidValue: anything but one token per sample, or a state that does not fit.
        """
        self._check_streams()
        self.check_step(x_t, state)
        q, k, v = self.heads_of(x_t[:, None])
        k, v = torch.cat([state.keys.to(k.dtype), k], 2), torch.cat([state.values.to(v.dtype), v], 2)
        dilation = per_axis(self.dilation, 1)[0]
        seen = slice((k.shape[2] - 1) % dilation, None, dilation)  # those of the token's own residue
        q, keys = self._turned(q, k[:, :, seen], k.shape[2] - 1, seen)
        values = v[:, :, seen]
        extra_k, extra_v = self._registers(len(x_t))
        if extra_k is not None and extra_v is not None:
            keys, values = torch.cat([keys, extra_k], 2), torch.cat([values, extra_v], 2)
        group = self.num_heads // self.num_kv_heads
        lines = q[:, :, 0].unflatten(1, (-1, group))  # queries that share keys
        y = softmax_attention(lines, keys, values, scale=self.scale).flatten(1)
        return self.proj_drop(self.proj(y)), self._keep(k, v)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, axes: tuple[Axis, ...], extra_k: Tensor | None, extra_v: Tensor | None
    ) -> Tensor:
        """As in :class:`~foveate.mixers.neighborhood.NeighborhoodMixer`, keys and queries turned by their places."""
        q, k = self._turned(q, k, 0, slice(0, None))
        return super().attend(q, k, v, axes, extra_k, extra_v)

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """That of :class:`~foveate.mixers.neighborhood.NeighborhoodMixer`, registers and the stream's state."""
        cost, n, dim = super().cost(grid, batch), math.prod(grid), self.dim
        streams = self.causal and len(grid) == 1 and self.spec.streaming == "exact"
        if streams:
            kept = min(n, (per_axis(self.window, 1)[0] - 1) * per_axis(self.dilation, 1)[0])
            cost += Cost(state_bytes=8 * batch * kept * self.kv_dim)
        filled = batch * math.prod(axis.size for axis in self.axes(tuple(grid)))
        if self.position == "rope":
            cost += Cost(activation_bytes=4 * (filled * (dim + self.kv_dim) + 2 * n * self.head_dim))
        if self.registers is not None:
            count = len(self.registers)
            flops = linear_flops(count, dim, 2 * self.kv_dim) + 4 * filled * count * dim
            saved = filled * (2 * self.num_heads * count + 3 * dim + 6 * self.num_heads)
            cost += Cost(flops=flops, activation_bytes=4 * saved)
        return cost

    def _extra(self, extra: Tensor | None) -> Tensor | None:
        """Registers and further tokens, ``(batch or 1, n, dim)``."""
        if self.registers is None:
            return extra
        registers = self.registers[None]
        return registers if extra is None else torch.cat([registers.expand(len(extra), -1, -1), extra], 1)

    def _registers(self, batch: int) -> tuple[Tensor, Tensor] | tuple[None, None]:
        return (None, None) if self.registers is None else self.keys_of(self.registers[None], batch)

    def _turned(self, q: Tensor, k: Tensor, start: int, seen: slice) -> tuple[Tensor, Tensor]:
        """Queries from place ``start`` on and keys at ``seen``, turned; distances alone count."""
        if self.position == "none":
            return q, k
        places = torch.arange(start + q.shape[2] if start else k.shape[2], device=q.device)
        return apply_rope(q, places[start:], self.rope_base), apply_rope(k, places[seen], self.rope_base)

    def _keep(self, k: Tensor, v: Tensor) -> NeighborhoodState:
        """The last tokens that one to come can see; copied, for a view would keep all that was read."""
        room = (per_axis(self.window, 1)[0] - 1) * per_axis(self.dilation, 1)[0]
        kept = slice(max(k.shape[2] - room, 0), None)
        return NeighborhoodState(k[:, :, kept].clone(), v[:, :, kept].clone())

    def _check_streams(self) -> None:
        if not self.causal or self.spec.streaming == "no":
            raise self._no_streaming()


def _fitted(size: int, window: int, dilation: int, stride: int, causal: bool) -> Axis:
    """The axis as the operator takes it; where it is longer than ``size``, what is behind that is not seen."""
    if causal or size == 1:  # what fills up lies behind all that asks
        window = min(window, max(2, -(-size // dilation)))
        size, causal = max(size, window * dilation), True
    else:
        dilation = max(1, min(dilation, size // window))
        window = min(window, size)
    return Axis(size, window, dilation, min(stride, window), causal)
