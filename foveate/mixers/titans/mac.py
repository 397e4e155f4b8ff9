"""Titans' memory as context (MAC): segments of attention that read what the memory knew before them, then teach it.

Behrouz, Zhong and Mirrokni, "Titans: Learning to Memorize at Test Time", arXiv 2501.00663, section 4.1. The sequence is
cut into segments S of C tokens; with learned persistent tokens P::

    h = M_before(S)                          what the memory of all earlier segments recalls for each token
    y = Attn([P | h | S])                    token j sees P, and h_i and S_i for i <= j
    o = sigma(norm(y) * a) * sigma(norm(M(y)) * b)         the memory reads y as it comes, and recalls

The paper draws all of h before all of S, so that token j would see ``h_i`` of later tokens, which come from their own
queries; and it gates with the memory *after* the segment, for the first token too. Here both are causal: h is seen up
to the token's own, and ``M(y)`` is written and read token by token, as the memory does. Only the memory goes from
segment to segment, so segments follow one another, and what does not need it is computed for all at once.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from ...errors import invalid
from ...measure.cost import Cost, linear_flops
from ...ops.positions import apply_rope
from ...ops.softmax_attention import softmax_attention
from ...registry import register
from ...spec import MixerSpec, Order
from ..base import Mixer, check_heads
from ..layout import TokenLayout
from ..parts import Linear
from ..ssm import Packing, check_positive
from ..state import State, state
from .frame import Frame
from .lmm import MemoryState
from .parts import Activation, Gate, build_memory, persistent_tokens

Position = Literal["rope", "none"]


@state
class ContextState(State):
    """Streaming state of constant size.

    Attributes:
        keys, values: ``(batch, heads, 2 C, head_dim)``: of what was recalled for the open segment, and of its tokens,
            each at its place.
        tail: ``(batch, n, dim)``: the last tokens, latest last, for the convolution of the memory's queries.
        before: the memory's weights when the open segment began.
        memory: the memory now; it counts the tokens.
    """

    keys: Tensor
    values: Tensor
    tail: Tensor
    before: tuple[Tensor, ...]
    memory: MemoryState


@register("mixer", "titans_mac", system="titans")
class TitansMAC(Mixer):
    """Memory as context: attention inside segments, to which a neural memory tells what came before; linear time.

    Masked tokens are taken out of the sequence. Of a layout, segments (documents) are kept apart: each begins with a
    new memory, at the border of a segment of attention; positions are not read, for only places in a segment count.

    Args:
        dim: channels of a token.
        num_heads: of the attention; must divide ``dim``.
        causal: must be True.
        segment: tokens of a segment, C; a multiple of the memory's chunk.
        num_persistent: learned tokens that every token sees.
        memory: options of the memory, see :class:`~foveate.mixers.titans.lmm.TitansLMM`; ``num_heads`` is the
            attention's unless given.
        activation: sigma of the gate, which the paper does not name.
        position: "rope", rotary embedding of the places in ``[P | h | S]``, or "none".
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
        export_note="its loop over segments is unrolled: the graph grows with the length",
    )

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        causal: bool = True,
        segment: int = 64,
        num_persistent: int = 4,
        memory: dict[str, Any] | None = None,
        activation: Activation = "silu",
        position: Position = "rope",
        rope_base: float = 10000.0,
    ) -> None:
        super().__init__(dim, causal=causal)
        self.num_heads, self.head_dim = num_heads, check_heads(dim, num_heads)
        check_positive(segment=segment)
        if position not in get_args(Position):
            raise invalid("position", position, f"it must be one of {', '.join(get_args(Position))}")
        if position == "rope" and self.head_dim % 2:
            raise invalid("position", position, f"RoPE turns channel pairs, and dim / num_heads is {self.head_dim}")
        if not 0 < rope_base < math.inf:
            raise invalid("rope_base", rope_base, "it must be positive and finite")
        self.segment, self.position, self.rope_base = segment, position, rope_base
        self.persistent = persistent_tokens(num_persistent, dim)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (Linear(dim, dim, bias=False) for _ in range(4))
        self.memory = build_memory(dim, num_heads, memory)
        if segment % self.memory.chunk:
            raise invalid("segment", segment, f"it must be a multiple of the memory's chunk, {self.memory.chunk}")
        self.gate = Gate(dim, activation)

    def no_weight_decay(self) -> list[nn.Parameter]:
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
        if mask is not None or segments is not None:
            return self._mix(x, mask, segments, None)[0]
        memory = self.memory.init_state(x.shape[0], x.device, x.dtype)
        fixed, (q, k, v) = self._fixed(x), self._project(x, None)
        outputs = []
        for start in range(0, x.shape[1], self.segment):
            here = slice(start, start + self.segment)
            h_k, h_v = self._remember(self.memory.retrieve(x[:, here], memory))
            y = self._attend(q[:, :, here], (h_k, k[:, :, here]), (h_v, v[:, :, here]), fixed)
            m, memory = self.memory.prefill(y, memory, aligned=True)
            outputs.append(self.gate(y, m))
        return torch.cat(outputs, 1)

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> ContextState:
        """An empty segment, and the memory's learned start."""
        weight = self.k_proj.weight
        device, dtype = device or weight.device, dtype or weight.dtype
        memory = self.memory.init_state(batch_size, device, dtype)
        none = torch.zeros(batch_size, self.num_heads, 2 * self.segment, self.head_dim, device=device, dtype=dtype)
        tail = torch.zeros(batch_size, max(self.memory.conv_width - 1, 0), self.dim, device=device, dtype=dtype)
        return ContextState(none, none, tail, memory.memory, memory)

    def prefill(self, x: Tensor, state: ContextState, mask: Tensor | None = None) -> tuple[Tensor, ContextState]:
        """Read ``(batch, length, dim)`` after ``state``; a masked token leaves the state as it is.

        Raises:
            InvalidValue: a state of another mixer or batch.
        """
        self.check_stream(x, state, mask)
        return self._mix(x, mask, None, state)

    def step(self, x_t: Tensor, state: ContextState) -> tuple[Tensor, ContextState]:
        """Read one token ``(batch, dim)``, in time that does not depend on what was read.

        Raises:
            InvalidValue: anything but one token per sample, or a state of another mixer or batch.
        """
        self.check_step(x_t, state)
        place = state.memory.count % self.segment  # (batch,)
        opens, tail = place == 0, torch.cat([state.tail, x_t[:, None]], 1)
        before = _chosen(opens, state.memory.memory, state.before)
        # What stands before the segment's first token is not the convolution's business.
        ages = torch.arange(tail.shape[1] - 1, -1, -1, device=x_t.device)
        recent = tail.masked_fill((ages > place[:, None])[..., None], 0)
        h = self.memory.retrieve(recent, replace(state.memory, memory=before))[:, -1:]
        q, k, v = self._project(x_t[:, None], place[:, None])
        h_k, h_v = self._remember(h, place[:, None])
        keys, values = (
            _put(_put(old.to(k.dtype), first, place), second, place + self.segment)
            for old, first, second in ((state.keys, h_k, k), (state.values, h_v, v))
        )
        seen = torch.arange(self.segment, device=x_t.device) <= place[:, None]
        y = self._attend(q, (keys,), (values,), self._fixed(x_t[:, None]), torch.cat([seen, seen], 1)[:, None, None])
        m, memory = self.memory.step(y[:, 0], state.memory)
        return self.gate(y[:, 0], m), ContextState(keys, values, tail[:, 1:], before, memory)

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections, segments of attention, and the memory, which is read for every token, then written and read."""
        n, dim, memory = grid[0], self.dim, self.memory
        number = 0 if self.persistent is None else len(self.persistent)
        flops = linear_flops(batch * n, dim, 6 * dim) + linear_flops(number, dim, 2 * dim)
        read = linear_flops(n, dim, 2 * memory.inner) + linear_flops(n, memory.inner, dim + memory.conv_width)
        read += sum(linear_flops(n, i, o) for i, o in memory.sizes) * memory.num_heads
        flops += batch * read
        kept = memory_kept = 0
        for start in range(0, n, self.segment):
            c = min(self.segment, n - start)
            flops += 4 * batch * dim * c * (2 * c + number) + memory.cost((c,), batch).flops
            memory_kept += memory.cost((c,), batch).activation_bytes
            kept += batch * self._saved(c, number) + c * (2 * c + number)
        weights = sum(w.numel() for w in memory.weights)
        held = 4 * self.segment * dim + max(memory.conv_width - 1, 0) * dim + weights
        return Cost(
            flops=flops,
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * kept + memory_kept,
            state_bytes=4 * batch * held + memory.cost(grid, batch).state_bytes,
        )

    def _saved(self, c: int, number: int) -> int:
        """Numbers that a segment of ``c`` tokens keeps for the backward pass, without those of the memory's writing."""
        dim, inner, hidden = self.dim, self.memory.inner, sum(o for _, o in self.memory.sizes[:-1])
        recall = 7 * inner + 2 * hidden * self.memory.num_heads  # queries, their convolution and norm; activations
        attention = 2 * dim * (2 * c + number) + 3 * c * dim + c * self.num_heads
        return c * (2 * dim + recall + self.gate.saved(dim)) + attention

    # Pieces -----------------------------------------------------------------------------------------------------------

    def _project(self, x: Tensor, places: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``(batch, heads, length, head_dim)`` of tokens, turned by their places behind h.

        Args:
            places: int64 ``(batch, length)``, places in a segment; None: those of segments in a row.
        """
        if places is None:
            places = torch.arange(x.shape[1], device=x.device) % self.segment
        places = places + self._number + self.segment
        q, k, v = (self._heads(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        return self._turn(q, places), self._turn(k, places), v

    def _remember(self, h: Tensor, places: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values of what was recalled for the tokens at ``places``; None: 0, 1, 2, ..."""
        if places is None:
            places = torch.arange(h.shape[1], device=h.device)
        return self._turn(self._heads(self.k_proj(h)), places + self._number), self._heads(self.v_proj(h))

    def _fixed(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the persistent tokens, for every sample of ``x``."""
        if self.persistent is None:
            return None
        k, v = self._heads(self.k_proj(self.persistent)), self._heads(self.v_proj(self.persistent))
        k = self._turn(k[None], torch.arange(self._number, device=x.device))
        return k.expand(x.shape[0], -1, -1, -1), v.expand(x.shape[0], -1, -1, -1)

    def _attend(
        self,
        q: Tensor,
        keys: tuple[Tensor, ...],
        values: tuple[Tensor, ...],
        fixed: tuple[Tensor, Tensor] | None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """The attention's output ``(batch, length, dim)``.

        Args:
            keys, values: in parts; all together ``[h | S]``.
            fixed: those of the persistent tokens, which all see.
            seen: bool ``(batch or 1, 1, length, keys)``; None: each token up to its own, in h and in S.
        """
        if seen is None:
            until = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
            seen = torch.cat([until, until], 1)[None, None]
        if fixed is not None:
            keys, values = (fixed[0], *keys), (fixed[1], *values)
            seen = torch.cat([torch.ones_like(seen[..., :1]).expand(-1, -1, -1, self._number), seen], -1)
        o = softmax_attention(q, torch.cat(keys, 2), torch.cat(values, 2), mask=seen)
        return self.out_proj(o.transpose(1, 2).flatten(2))

    # Sequences with gaps, documents, streams --------------------------------------------------------------------------

    def _mix(
        self, x: Tensor, mask: Tensor | None, segments: Tensor | None, past: ContextState | None
    ) -> tuple[Tensor, ContextState]:
        """As :meth:`forward`, where samples stand at different places of a segment."""
        batch, length, _ = x.shape
        packing, x, segments = Packing.take_out(x, mask, segments)
        real = torch.ones(batch, length, dtype=torch.bool, device=x.device) if packing is None else packing.valid
        fresh = self.memory.init_state(batch, x.device, x.dtype)
        held = self.init_state(batch, x.device, x.dtype) if past is None else past
        place = held.memory.count % self.segment
        frame = Frame.of(real, self.segment, None if past is None else place, segments)
        wide, memory, before = frame.place(x), held.memory, held.before
        places = torch.arange(frame.size, device=x.device) % self.segment
        (q, k, v), fixed = self._project(wide, places.expand(batch, -1)), self._fixed(x)
        keys, values, outputs = held.keys.to(k.dtype), held.values.to(v.dtype), []
        for start in range(0, frame.size, self.segment):
            here = slice(start, start + self.segment)
            new, tokens = frame.valid[:, here], wide[:, here]
            if frame.starts is not None:
                memory = _chosen(frame.starts[:, start // self.segment], fresh, memory)
            before = _chosen(new[:, 0], memory.memory, before)
            if start == 0 and past is not None:
                tokens = _lead(tokens, held.tail, place)
            h_k, h_v = self._remember(self.memory.retrieve(tokens, replace(memory, memory=before)))
            fill = torch.cat([new, new], 1)[:, None, :, None]
            keys = torch.where(fill, torch.cat([h_k, k[:, :, here]], 2), keys)
            values = torch.where(fill, torch.cat([h_v, v[:, :, here]], 2), values)
            y = self._attend(q[:, :, here], (keys,), (values,), fixed)
            m, memory = self.memory.prefill(y, memory, new)
            outputs.append(self.gate(y, m))
        y = frame.take(torch.cat(outputs, 1))
        tail = torch.cat([held.tail.to(x.dtype), x], 1)
        last = real.sum(1, keepdim=True) + torch.arange(held.tail.shape[1], device=x.device)
        tail = tail.gather(1, last.unsqueeze(-1).expand(-1, -1, self.dim))
        after = ContextState(keys, values, tail, before, memory)
        return (y if packing is None else packing.unpack(y)), after

    @property
    def _number(self) -> int:
        return 0 if self.persistent is None else self.persistent.shape[0]

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(-2, -3)

    def _turn(self, x: Tensor, places: Tensor) -> Tensor:
        return apply_rope(x, places, self.rope_base) if self.position == "rope" else x


def _chosen(flags: Tensor, yes: Any, no: Any) -> Any:
    """For each sample one of two states: ``yes`` where the flag ``(batch,)`` is True."""
    return _pytree.tree_map(lambda a, b: torch.where(flags.view(-1, *[1] * (a.ndim - 1)), a, b), yes, no)


def _put(buffer: Tensor, new: Tensor, place: Tensor) -> Tensor:
    """A copy of ``(batch, heads, n, width)`` with ``new``, of length 1, at each sample's place."""
    return buffer.scatter(2, place.view(-1, 1, 1, 1).expand_as(new), new)


def _lead(tokens: Tensor, tail: Tensor, place: Tensor) -> Tensor:
    """Tokens of a segment ``(batch, C, dim)`` with the last ones read before in front of each sample's place."""
    count = tail.shape[1]
    if not count:
        return tokens
    index = torch.arange(tokens.shape[1], device=tokens.device) - place[:, None] + count
    inside = (index >= 0) & (index < count)
    old = tail.to(tokens.dtype).gather(1, index.clamp(0, count - 1).unsqueeze(-1).expand_as(tokens))
    return torch.where(inside.unsqueeze(-1), old, tokens)
