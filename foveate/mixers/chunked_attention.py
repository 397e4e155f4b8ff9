"""Attention in chunks behind a module that moves information over time: what TCNCA and MEGA share.

MEGA (arXiv 2209.10655) puts a moving average before single-head attention, TCNCA (arXiv 2312.05605) a temporal
convolution network. With ``m = move(x)`` (:class:`GatedChunkedAttention`, the gated form of both)::

    v = silu(W_v x)                                      of the input itself
    [u | z | r | c] = W_m m,   u = sigmoid(u),  [z | r] = silu([z | r])
    q = gamma_1 z + beta_1,   k = gamma_2 z + beta_2
    o = attention of q, k, v inside chunks               (:mod:`foveate.ops.chunked_attention`)
    h = silu(c + W_h (o r)),   y = u (h - x)

so that ``x + y`` is the gated mean of x and h. Nothing but ``move`` crosses the border of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidValue, invalid
from ..measure.cost import Cost, linear_flops
from ..ops.chunked_attention import SCORES, Scores, attend, chunked_attention, chunked_attention_flops
from ..ops.handwritten import sum_dtype
from ..spec import Order
from .base import Mixer
from .damped_ema import EMAState, MultiHeadEMA
from .dilated_tcn import DilatedTCN, TCNState
from .layout import TokenLayout
from .parts import Linear
from .ssm import Packing, check_positive
from .state import State, state

RelBias = Literal["simple", "rotary"]


@state
class ChunkState(State):
    """Streaming state: what ``move`` keeps, and the running chunk.

    Attributes:
        move: :class:`~foveate.mixers.dilated_tcn.TCNState` or :class:`~foveate.mixers.damped_ema.EMAState`.
        keys: ``(batch, slots, z_dim)``: chunk - 1 slots, or, without chunks, one per token read.
        values: ``(batch, slots, h_dim)``.
        count: int64 ``(batch,)``: slots taken.
    """

    move: TCNState | EMAState
    keys: Tensor
    values: Tensor
    count: Tensor


class SimpleBias(nn.Module):
    """A learned number for every distance below ``longest``."""

    def __init__(self, longest: int) -> None:
        super().__init__()
        self.longest = longest
        self.rel_pos_bias = nn.Parameter(torch.randn(2 * longest - 1) * 0.02)

    def distances(self, length: int) -> Tensor:
        """``(2 length - 1,)``: the bias of each distance ``j - i``, from ``1 - length`` on."""
        if length > self.longest:
            raise InvalidValue(
                f"{length} tokens are more than the learned bias has distances for: give max_positions (now "
                f"{self.longest}), a chunk_size, or rel_bias='rotary'."
            )
        return self.rel_pos_bias[self.longest - length : self.longest + length - 1]


class RotaryBias(nn.Module):
    """The inner product of two learned vectors, each turned by its position: a function of their distance."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.randn(1, width) * 0.02)
        self.beta = nn.Parameter(torch.randn(1, width) * 0.02)

    def distances(self, length: int) -> Tensor:
        """``(2 length - 1,)``: the bias of each distance ``j - i``, from ``1 - length`` on."""
        real = sum_dtype(self.alpha.dtype)
        (a, b), half = (m.to(real).squeeze(0) for m in (self.alpha, self.beta)), self.alpha.shape[1] // 2
        device = self.alpha.device
        frequency = 10000.0 ** (-torch.arange(half, device=device, dtype=real) / half)
        angle = torch.arange(1 - length, length, device=device, dtype=real)[:, None] * frequency
        even = a[:half] * b[:half] + a[half:] * b[half:]
        odd = a[half:] * b[:half] - a[:half] * b[half:]
        return (angle.cos() * even + angle.sin() * odd).sum(-1)


class ChunkedAttention(Mixer):
    """Base: masks, documents and streams of attention in chunks behind ``move``.

    A subclass says what attention reads (:meth:`before`) and what becomes of it (:meth:`after`).

    Args:
        dim: channels of a token.
        causal: a token reads itself and earlier ones.
        move: reads the whole sequence, before attention.
        z_dim: width of queries and keys; None: a quarter of ``dim``, rounded up to an even number.
        h_dim: width of values; None: ``2 dim``.
        chunk_size: tokens of a chunk; None: no chunks.
        attention: "softmax", "laplace" or "relu2".
        rel_bias: bias by distance: "simple", a learned number each, or "rotary".
        max_positions: distances of the simple bias where there are no chunks.
        dropout: of what attention reads and of the result, while training.

    Raises:
        InvalidValue: an option that is not legal.
    """

    def __init__(
        self,
        dim: int,
        *,
        causal: bool,
        move: DilatedTCN | MultiHeadEMA,
        z_dim: int | None,
        h_dim: int | None,
        chunk_size: int | None,
        attention: Scores,
        rel_bias: RelBias,
        max_positions: int,
        dropout: float,
    ) -> None:
        super().__init__(dim, causal=causal)
        self.z_dim, self.h_dim = (dim + 7) // 8 * 2 if z_dim is None else z_dim, 2 * dim if h_dim is None else h_dim
        check_positive(z_dim=self.z_dim, h_dim=self.h_dim, max_positions=max_positions)
        if chunk_size is not None:
            check_positive(chunk_size=chunk_size)
        if attention not in SCORES:
            raise invalid("attention", attention, f"it must be one of {', '.join(SCORES)}")
        if rel_bias not in get_args(RelBias):
            raise invalid("rel_bias", rel_bias, "it must be 'simple' or 'rotary'")
        if rel_bias == "rotary" and self.z_dim % 2:
            raise invalid("rel_bias", rel_bias, f"it turns pairs of channels, and z_dim is {self.z_dim}")
        if not 0 <= dropout < 1:
            raise invalid("dropout", dropout, "it must be at least 0 and below 1")
        self.chunk_size = chunk_size
        self.attention: Scores = attention
        if chunk_size is None:
            self.spec = replace(self.spec, order=Order(flops=2.0, memory=2.0))
        self.move = move
        self.gamma = nn.Parameter(torch.randn(2, self.z_dim) * 0.02)
        self.beta = nn.Parameter(torch.zeros(2, self.z_dim))
        longest = max_positions if chunk_size is None else chunk_size
        self.rel_pos_bias = SimpleBias(longest) if rel_bias == "simple" else RotaryBias(self.z_dim)
        self.dropout = nn.Dropout(dropout)

    def before(self, x: Tensor, moved: Tensor) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        """What queries and keys are made of ``(..., z_dim)``, values ``(..., h_dim)``, and what :meth:`after` needs."""
        raise NotImplementedError

    def after(self, o: Tensor, kept: Sequence[Tensor], residual: Tensor) -> Tensor:
        """The output of what attention read, to be added to ``residual``."""
        raise NotImplementedError

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
        return self.mix(x, x, mask, layout)

    def mix(self, x: Tensor, residual: Tensor, mask: Tensor | None = None, layout: TokenLayout | None = None) -> Tensor:
        """:meth:`forward` for a layer whose norm stands between ``x`` and what the output is added to, ``residual``."""
        segments = None if layout is None else layout.segments
        packing = None if mask is None else Packing.of(mask)
        lengths = valid = None
        if packing is not None:
            x, residual = packing.pack(x), packing.pack(residual)
            segments = None if segments is None else segments.gather(1, packing.order)
            valid, lengths = packing.valid, packing.valid.sum(1)
        moved = self.dropout(self.move(x, valid=valid, segments=segments))
        z, v, kept = self.before(x, moved)
        q, k = self._queries_and_keys(z)
        o = chunked_attention(
            q,
            k,
            v,
            self.rel_pos_bias.distances(min(self.chunk_size or x.shape[1], x.shape[1])),
            chunk=self.chunk_size,
            scores=self.attention,
            causal=self.causal,
            lengths=lengths,
            segments=segments,
        )
        y = self.after(o, kept, residual)
        return y if packing is None else packing.unpack(y)

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> ChunkState:
        """An empty chunk and a past of zeros, in ``dtype`` (default: that of the weights).

        Raises:
            InvalidType: the mixer is not causal.
        """
        if not self.causal:
            raise self._no_streaming()
        device, dtype = device or self.gamma.device, dtype or self.gamma.dtype
        slots = 0 if self.chunk_size is None else self.chunk_size - 1
        keys, values = (torch.zeros(batch_size, slots, n, device=device, dtype=dtype) for n in (self.z_dim, self.h_dim))
        count = torch.zeros(batch_size, device=device, dtype=torch.int64)
        return ChunkState(self.move.init_state(batch_size, device, dtype), keys, values, count)

    def prefill(self, x: Tensor, state: ChunkState, mask: Tensor | None = None) -> tuple[Tensor, ChunkState]:
        """Read ``(batch, length, dim)`` after ``state``; a masked token leaves the state as it is."""
        return self.mix_more(x, x, state, mask)

    def mix_more(
        self, x: Tensor, residual: Tensor, state: ChunkState, mask: Tensor | None = None
    ) -> tuple[Tensor, ChunkState]:
        """:meth:`prefill`, with a residual as in :meth:`mix`."""
        if not self.causal:
            raise self._no_streaming()
        self.check_stream(x, state, mask)
        packing = None if mask is None else Packing.of(mask)
        if packing is not None:
            x, residual = packing.pack(x), packing.pack(residual)
        moved, after = self.move.prefill(x, state.move, packing)  # type: ignore[arg-type]
        z, v, kept = self.before(x, self.dropout(moved))
        q, k = self._queries_and_keys(z)
        read, given = state.count, x.shape[1] if packing is None else packing.valid.sum(1)
        # Slots and new tokens in one row, each sample's new ones right behind the slots that it has taken.
        slots, width = state.keys.shape[1], state.keys.shape[1] + x.shape[1]
        place = torch.arange(width, device=x.device)
        source = place.where(place < read[:, None], slots + place - read[:, None]).clamp(max=width - 1)
        keys = _take(torch.cat([state.keys.to(k.dtype), k], 1), source)
        values = _take(torch.cat([state.values.to(v.dtype), v], 1), source)
        own = read[:, None] + torch.arange(x.shape[1], device=x.device)
        total = read + given
        if self.chunk_size is None:
            o = self._attend(q, keys, values, place - own.unsqueeze(-1))
        else:
            queries = _take(q, (place - read[:, None]).clamp(0, x.shape[1] - 1))
            bias = self.rel_pos_bias.distances(min(self.chunk_size, width))
            o = chunked_attention(
                queries, keys, values, bias, chunk=self.chunk_size, scores=self.attention, causal=True
            )
            o = _take(o, own)
            kept_slots = total % self.chunk_size
            last = (total - kept_slots)[:, None] + torch.arange(slots, device=x.device)
            keys, values = (_take(m, last.clamp(max=width - 1)) for m in (keys, values))
            total = kept_slots
        y = self.after(o, kept, residual)
        following = ChunkState(after, keys.to(state.keys.dtype), values.to(state.values.dtype), total)
        return (y if packing is None else packing.unpack(y)), following

    def step(self, x_t: Tensor, state: ChunkState) -> tuple[Tensor, ChunkState]:
        """Read one token ``(batch, dim)``.

        Raises:
            InvalidType: the mixer is not causal.
            InvalidValue: anything but one token per sample, or a state that does not fit.
        """
        return self.mix_next(x_t, x_t, state)

    def mix_next(self, x_t: Tensor, residual: Tensor, state: ChunkState) -> tuple[Tensor, ChunkState]:
        """:meth:`step`, with a residual as in :meth:`mix`."""
        if not self.causal:
            raise self._no_streaming()
        self.check_step(x_t, state)
        moved, after = self.move.step(x_t, state.move)  # type: ignore[arg-type]
        z, v, kept = self.before(x_t, self.dropout(moved))
        q, k = self._queries_and_keys(z)
        slots = state.keys.shape[1]
        lag = torch.arange(slots + 1, device=x_t.device) - state.count[:, None]
        keys, values = (
            torch.where((lag == 0).unsqueeze(-1), new.unsqueeze(1).to(old.dtype), F.pad(old, (0, 0, 0, 1)))
            for new, old in ((k, state.keys), (v, state.values))
        )
        o = self._attend(q[:, None], keys.to(q.dtype), values.to(v.dtype), lag[:, None])[:, 0]
        count = state.count + 1
        if self.chunk_size is not None:
            keys, values, count = keys[:, :slots], values[:, :slots], count % self.chunk_size
        return self.after(o, kept, residual), ChunkState(after, keys, values, count)

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections, ``move`` and the products inside chunks; gates are elementwise."""
        n = grid[0]
        size = min(self.chunk_size or n, n)
        whole = -(-n // size) * size
        matrices = {"softmax": 1, "laplace": 2, "relu2": 2}[self.attention]
        saved = self.move.saved(batch, n) + self.saved(batch * n) + batch * n * 2 * self.z_dim
        saved += batch * whole * (size * matrices + self.h_dim + (2 * self.z_dim if whole > n else 0))
        slots = n if self.chunk_size is None else self.chunk_size - 1
        state_numbers = self.move.state_numbers(batch, n) + batch * slots * (self.z_dim + self.h_dim)
        return Cost(
            flops=self.projection_flops(batch * n)
            + self.move.flops(batch, n)
            + chunked_attention_flops(n, self.z_dim, self.h_dim, self.chunk_size, batch),
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * saved,
            state_bytes=4 * state_numbers + 8 * batch if self.causal else 0,
        )

    def projection_flops(self, tokens: int) -> int:
        """FLOPs of the linear layers."""
        raise NotImplementedError

    def saved(self, tokens: int) -> int:
        """Numbers kept for the backward pass outside of ``move``, attention and its queries and keys."""
        raise NotImplementedError

    def _queries_and_keys(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z * self.gamma[0] + self.beta[0], z * self.gamma[1] + self.beta[1]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, lag: Tensor) -> Tensor:
        """Queries ``(batch, n, z)`` to keys ``(batch, m, z)``; ``lag (batch, n, m)``: how far each key is ahead."""
        longest = k.shape[1]
        bias = self.rel_pos_bias.distances(longest)[(lag + longest - 1).clamp(0, 2 * longest - 2)]
        return attend(q, k, v, bias, lag <= 0, self.attention)


def _take(m: Tensor, source: Tensor) -> Tensor:
    """Per sample, the tokens ``source (batch, n)`` of ``(batch, m, width)``."""
    return m.gather(1, source.unsqueeze(-1).expand(-1, -1, m.shape[2]))


class GatedChunkedAttention(ChunkedAttention):
    """The gated form; see the module's first lines."""

    def __init__(self, dim: int, **options: Any) -> None:
        super().__init__(dim, **options)
        self.v_proj = Linear(dim, self.h_dim)
        self.mx_proj = Linear(dim, self.z_dim + self.h_dim + 2 * dim)
        self.h_proj = Linear(self.h_dim, dim)
        for linear in (self.v_proj, self.mx_proj, self.h_proj):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def before(self, x: Tensor, moved: Tensor) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        u, zr, candidate = self.mx_proj(moved).split((self.dim, self.z_dim + self.h_dim, self.dim), -1)
        z, r = F.silu(zr).split((self.z_dim, self.h_dim), -1)
        return z, F.silu(self.v_proj(x)), (u.sigmoid(), r, candidate)

    def after(self, o: Tensor, kept: Sequence[Tensor], residual: Tensor) -> Tensor:
        u, r, candidate = kept
        return u * (self.dropout(F.silu(candidate + self.h_proj(o * r))) - residual)

    def projection_flops(self, tokens: int) -> int:
        inner = self.z_dim + self.h_dim + 2 * self.dim
        return linear_flops(tokens, self.dim, self.h_dim + inner) + linear_flops(tokens, self.h_dim, self.dim)

    def saved(self, tokens: int) -> int:
        # x, what was moved; [u z r c] and silu of the middle; sigmoid(u); v before silu; o, o r; the sum before silu,
        # h - x.
        return tokens * (7 * self.dim + 2 * (self.z_dim + self.h_dim) + 3 * self.h_dim)
