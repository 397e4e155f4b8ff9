"""Landmark attention: softmax attention that finds blocks of a long text by their landmark tokens.

Mohtashami and Jaggi, "Random-Access Infinite Context Length for Transformers" (NeurIPS 2023, arXiv 2305.16300). A
landmark stands after every ``block_size`` tokens (:meth:`LandmarkAttention.plan_tokens`). In training a query gives its
weight to earlier blocks by their landmarks, and within a block to its tokens
(:mod:`foveate.ops.landmark_attention`): so landmarks' keys learn to say what is in their block. A stream then asks the
landmarks of everything read, fetches the ``top_k`` best blocks for each token and head, and attends to those, to the
open block and to the running chunk, with the same two-level softmax.
Positions are rotary and count landmarks too; in a stream they stay within what was trained
(:mod:`foveate.mixers.landmark_stream`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidType, InvalidValue, invalid
from ..measure.cost import Cost, linear_flops
from ..ops.landmark_attention import landmark_attention, landmark_weights
from ..ops.landmark_tiles import KINDS, Softmax, attention_flops
from ..ops.positions import apply_rope
from ..registry import register
from ..spec import MixerSpec, Order
from .base import Mixer, check_heads
from .kv_cache import KVCache, capacity
from .landmark_cache import STORAGES, LandmarkCache, LandmarkState, Storage, block_capacity, check_folder
from .landmark_stream import SELECTIONS, LandmarkStream, Selection, seen_slots
from .layout import TokenLayout
from .parts import Linear
from .ssm import check_positive

StreamPositions = Literal["fitting", "released"]


@register("mixer", "landmark_attention")
class LandmarkAttention(Mixer):
    """Causal softmax attention with landmarks, and streams that fetch the blocks they need.

    ``forward`` is the form for training: every block is read, as far as its landmark lets a query. Of a layout,
    landmarks must stand where :meth:`plan_tokens` has them; without one there are none, and this is softmax attention.
    Masked slots are never seen; the landmark of a block whose tokens are all masked neither. Blocks, positions and
    chunks count slots, masked ones too.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim``.
        causal: must be True.
        block_size: tokens between landmarks.
        top_k: blocks that a token of a stream fetches.
        max_blocks: blocks that a stream keeps, at least ``top_k``; the oldest are forgotten. None: all.
        chunk: tokens of a stream that are read together: they see each other and the open block before them without
            fetching, and ask for blocks that were closed before the chunk. Chunks are counted from the stream's start,
            so that it does not matter how the stream is cut into calls. None: every call is a chunk, as released.
        selection: "per_token_and_head": each fetches its own blocks; "max_over_heads": the heads of a token fetch the
            blocks that any of them wants most; "max_over_tokens": so do the tokens of a chunk up to this one (with
            ``chunk=None`` all tokens of the call, later ones too, as released).
        storage: where a stream keeps closed blocks: "memory", or "memory-mapped", in temporary files that are gone with
            the state (:meth:`init_state` takes their folder). Gradients do not pass through blocks on disk.
        stream_positions: "fitting": while ``top_k`` blocks hold all that was read, they stand where they stood in
            training, so that the stream equals ``forward``; "released": as the released code has it, one block
            further back, where with exactly ``top_k`` blocks the last one stands in the chunk's place.
        rotary: turn queries and keys by their positions (channels 2 i and 2 i + 1 form a pair; even head width).
        rope_base: of the rotary embedding.
        position_jump: in training, positions jump by a random number below this after every landmark, the same for all
            samples of a batch; 0: never.
        bias: the projections have biases.
        group_dropout: in training, share of earlier blocks that a query does not look into.
        dropout: in training, of the weights; makes a matrix of weights for each head.
        softmax: "grouped"; "plain" and "ignored": the comparisons of the released code, see
            :func:`~foveate.ops.landmark_attention.landmark_attention`.

    Raises:
        InvalidValue: an option that is not legal; when called: landmarks in other places, a state of another mixer or
            batch.
    """

    spec = MixerSpec(
        ranks=(1,),
        causal="strict",
        bidirectional=False,
        streaming="own",
        layout=True,
        segments=True,
        order=Order(flops=2.0, memory=1.0),
        export_note="landmarks stand between the tokens of a network, with which the layer is exported",
    )

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = True,
        block_size: int = 50,
        top_k: int = 2,
        max_blocks: int | None = None,
        chunk: int | None = 250,
        selection: Selection = "per_token_and_head",
        storage: Storage = "memory",
        stream_positions: StreamPositions = "fitting",
        rotary: bool = True,
        rope_base: float = 10000.0,
        position_jump: int = 0,
        bias: bool = False,
        group_dropout: float = 0.0,
        dropout: float = 0.0,
        softmax: Softmax = "grouped",
    ) -> None:
        super().__init__(dim, causal=causal)
        self.num_heads, self.head_dim = num_heads, check_heads(dim, num_heads)
        check_positive(block_size=block_size, top_k=top_k)
        if max_blocks is not None and (not isinstance(max_blocks, int) or max_blocks < top_k):
            raise invalid("max_blocks", max_blocks, f"it must be a whole number of at least top_k={top_k}, or None")
        if chunk is not None and (not isinstance(chunk, int) or chunk < 1):
            raise invalid("chunk", chunk, "a positive whole number of tokens is needed, or None")
        for option, value, legal in (
            ("selection", selection, SELECTIONS),
            ("storage", storage, STORAGES),
            ("stream_positions", stream_positions, get_args(StreamPositions)),
            ("softmax", softmax, KINDS),
        ):
            if value not in legal:
                raise invalid(option, value, f"it must be one of {', '.join(legal)}")
        if rotary and self.head_dim % 2:
            raise invalid("rotary", rotary, f"channel pairs are turned, and dim / num_heads is {self.head_dim}")
        if not 0 < rope_base < math.inf:
            raise invalid("rope_base", rope_base, "it must be positive and finite")
        if not isinstance(position_jump, int) or position_jump < 0:
            raise invalid("position_jump", position_jump, "it must be a whole number of at least 0")
        for option, share in (("group_dropout", group_dropout), ("dropout", dropout)):
            if not 0 <= share < 1:
                raise invalid(option, share, "it must be in [0, 1)")
        self.block_size, self.width = block_size, block_size + 1
        self.max_blocks, self.chunk = max_blocks, chunk
        self.storage = storage
        self.rotary, self.rope_base, self.position_jump = rotary, rope_base, position_jump
        self.group_dropout, self.dropout = group_dropout, dropout
        self.softmax: Softmax = softmax
        self.stream = LandmarkStream(
            width=self.width,
            top_k=top_k,
            chunk=chunk,
            selection=selection,
            released=stream_positions == "released",
            rope_base=rope_base if rotary else None,
            softmax=softmax,
        )
        self.qkv_proj = Linear(dim, 3 * dim, bias=bias)
        self.out_proj = Linear(dim, dim, bias=bias)

    @classmethod
    def options_for(cls, grid: tuple[int, ...]) -> dict[str, Any]:
        """Blocks of a tenth of the sequence and chunks of half of it, at most the published 50 and 250 (of 512)."""
        return {"block_size": min(50, max(1, grid[0] // 10)), "chunk": min(250, max(1, grid[0] // 2))}

    # The sequence with its landmarks ----------------------------------------------------------------------------------

    def slots(self, tokens: int) -> int:
        """Slots of so many tokens, landmarks included."""
        return tokens + tokens // self.block_size

    def plan_tokens(self, grid: tuple[int, ...]) -> TokenLayout:
        """A landmark after every ``block_size`` tokens; with ``position_jump``, in training, new random positions."""
        plan = self._plan(0, grid[0])
        if not (self.training and self.position_jump > 1):
            return plan
        assert plan.source is not None
        positions = jumped_positions(plan.source[None] < 0, self.position_jump)[0]
        return replace(plan, positions=positions)

    def plan_next(self, read: int, count: int) -> TokenLayout:
        return self._plan(read, count)

    def _plan(self, read: int, count: int) -> TokenLayout:
        slots = torch.arange(self.slots(read), self.slots(read + count))
        source = torch.where(slots % self.width == self.block_size, -1, slots - slots // self.width - read)
        return TokenLayout((count,), source, ("landmark",), (1,))

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor:
        """Mix ``(batch, length, dim)``, landmarks among the tokens; see :class:`~foveate.mixers.Mixer`."""
        self.check_input(x, mask, context, layout)
        special = layout is not None and layout.source is not None
        if special:
            self._check_plan(layout)
        y = self.mix(
            _clear(x, mask),
            block_size=self.block_size if special else None,
            mask=mask if mask is None or not special else seen_slots(mask, self.width),
            segments=None if layout is None else layout.segments,
            positions=None if layout is None else layout.positions,
        )
        return _clear(y, mask)

    def mix(
        self,
        x: Tensor,
        *,
        block_size: int | None = None,
        is_landmark: Tensor | None = None,
        mask: Tensor | None = None,
        segments: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """The layer with landmarks anywhere; arguments as :func:`foveate.ops.landmark_attention.landmark_attention`'s.

        Args:
            positions: int64 ``(length,)`` or ``(batch, length)``; None: 0, 1, 2, ...
        """
        q, k, v = self._heads(x)
        if self.rotary:
            positions = torch.arange(x.shape[1], device=x.device) if positions is None else positions.to(x.device)
            q, k = (apply_rope(t, positions, self.rope_base, interleaved=True) for t in (q, k))
        group_dropout, dropout = (self.group_dropout, self.dropout) if self.training else (0.0, 0.0)
        if dropout:
            o = self._dropped(q, k, v, block_size, is_landmark, mask, segments, group_dropout)
        else:
            o = landmark_attention(
                q,
                k,
                v,
                block_size=block_size,
                is_landmark=is_landmark,
                mask=mask,
                segments=segments,
                group_dropout=group_dropout,
                softmax=self.softmax,
            )
        return self.out_proj(o.transpose(1, 2).flatten(2))

    def _dropped(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        block_size: int | None,
        is_landmark: Tensor | None,
        mask: Tensor | None,
        segments: Tensor | None,
        group_dropout: float,
    ) -> Tensor:
        if is_landmark is None:
            slots = torch.arange(q.shape[2], device=q.device)
            is_landmark = slots < 0 if block_size is None else slots % self.width == block_size
        visible = None if mask is None else mask[:, None, None, :]
        if segments is not None:
            same = (segments[:, :, None] == segments[:, None, :])[:, None]
            visible = same if visible is None else visible & same
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.head_dim)
        weights = landmark_weights(scores, is_landmark, self.softmax, visible=visible, group_dropout=group_dropout)
        return F.dropout(weights, self.dropout).to(v.dtype) @ v

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv_proj(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)

    def _check_plan(self, layout: TokenLayout | None) -> None:
        assert layout is not None
        plan = self._plan(0, layout.grid[0])
        fits = layout.length == plan.length and layout.roles == plan.roles
        if fits and not torch.compiler.is_compiling():  # compilers and the meta device see lengths only
            assert layout.source is not None
            assert plan.source is not None
            unknown = layout.source.is_meta or plan.source.is_meta
            fits = unknown or torch.equal(layout.source.to(plan.source.device), plan.source)
        if not fits:
            raise InvalidValue(
                f"{type(self).__name__}: the layout's special tokens are not a landmark after every "
                f"{self.block_size} tokens: make it with plan_tokens."
            )

    # Streams ----------------------------------------------------------------------------------------------------------

    def init_state(
        self,
        batch_size: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        folder: str | Path | None = None,
    ) -> LandmarkState:
        """The state before the first token, which will hold keys and values in ``dtype`` (default: the weights').

        Args:
            folder: where files of ``storage="memory-mapped"`` take their space; None: where the system keeps temporary
                files.

        Raises:
            InvalidValue: the folder does not exist, or nothing would be written to it.
            InvalidType: a dtype that is not floating.
        """
        check_folder(folder, self.storage)
        weight = self.qkv_proj.weight
        device, dtype = device or weight.device, dtype or weight.dtype
        if not dtype.is_floating_point:
            raise InvalidType(f"{type(self).__name__}: a state holds keys and values in a floating dtype, not {dtype}.")
        local = KVCache.empty(batch_size, self.num_heads, self.head_dim, device, dtype)
        sizes = (batch_size, self.num_heads, self.width, self.head_dim)
        where = None if folder is None else str(folder)
        blocks = LandmarkCache.empty(*sizes, device, dtype, self.max_blocks, self.storage, where)
        return LandmarkState(local, blocks, None, 0)

    def prefill(self, x: Tensor, state: LandmarkState, mask: Tensor | None = None) -> tuple[Tensor, LandmarkState]:
        """Read slots ``(batch, length, dim)`` after ``state``, landmarks among them as :meth:`plan_next` has them."""
        self.check_stream(x, state, mask)
        q, k, v = self._heads(_clear(x, mask))
        outputs, at = [], 0
        while at < x.shape[1]:
            end = self.stream.chunk_end(state.read) or state.read + x.shape[1] - at
            count = min(end - state.read, x.shape[1] - at)
            here = slice(at, at + count)
            real = None if mask is None else mask[:, here]
            o, state = self.stream.read_on(q[:, :, here], k[:, :, here], v[:, :, here], real, state)
            outputs.append(o)
            if state.read == end:
                state = self.stream.close(state)
            at += count
        o = torch.cat(outputs, 2) if len(outputs) > 1 else outputs[0]
        return _clear(self.out_proj(o.transpose(1, 2).flatten(2)), mask), state

    def step(self, x_t: Tensor, state: LandmarkState) -> tuple[Tensor, LandmarkState]:
        """Read one slot ``(batch, dim)``.

        Raises:
            InvalidValue: anything but one slot per sample.
        """
        self.check_step(x_t, state)
        y, state = self.prefill(x_t[:, None], state)
        return y[:, 0], state

    # Cost -------------------------------------------------------------------------------------------------------------

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections and the op's products over tokens and landmarks; the state after a stream of so many tokens."""
        n, dim, heads = self.slots(grid[0]), self.dim, self.num_heads
        # Saved: x, queries, keys, values, the heads' outputs and their merged copy; unturned, the projections as well.
        saved = batch * n * dim * (6 if self.rotary else 8) + (n * self.head_dim if self.rotary else 0)
        done = n if self.chunk is None else self.slots(grid[0] // self.chunk * self.chunk)
        kept, places = block_capacity(0, done // self.width, self.max_blocks)
        local = capacity(n - done // self.width * self.width)
        state = 2 * dim * local + places * (2 * self.width + 1) * dim if kept else 2 * dim * local
        return Cost(
            flops=linear_flops(batch * n, dim, 4 * dim)
            + batch * heads * attention_flops(n, self.block_size, self.head_dim, self.head_dim),
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * saved,
            state_bytes=batch * (4 * state + 8) + 16,
        )


def jumped_positions(is_landmark: Tensor, below: int) -> Tensor:
    """Positions that jump by a random number below ``below`` after every landmark.

    Args:
        is_landmark: bool ``(batch, slots)``.

    Returns:
        int64 ``(batch, slots)``.
    """
    jumps = torch.randint(below, is_landmark.shape, device=is_landmark.device) * is_landmark
    return torch.arange(is_landmark.shape[1], device=jumps.device) + jumps.cumsum(1) - jumps


def _clear(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zeros where the mask is False."""
    return x if mask is None else x.masked_fill(~mask[..., None], 0)
