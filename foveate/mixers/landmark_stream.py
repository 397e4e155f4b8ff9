"""How a stream of landmark attention reads: chunk by chunk, with the best blocks of what came before.

Mohtashami and Jaggi, 2023 (arXiv 2305.16300), sections 3.2 and 3.3. Positions stay within what was trained: with blocks
of ``W = block_size + 1`` slots, a chunk's tokens and the open block before them stand at
``min(blocks read, top_k + 1) W`` and behind. For asking, the landmarks of the last ``top_k`` blocks stand where they
are, all older ones in the first block's place; for reading, the r-th chosen block, in order of time, stands at ``r W``,
or at ``(r + 1) W`` if it is one of the last ``top_k``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.handwritten import sum_dtype
from ..ops.landmark_tiles import KINDS, Softmax, block_softmax, plain_weights
from ..ops.positions import apply_rope
from .kv_cache import KVCache
from .landmark_cache import LandmarkCache, LandmarkState

Selection = Literal["per_token_and_head", "max_over_heads", "max_over_tokens"]
SELECTIONS = get_args(Selection)
#: Numbers of fetched keys that are held at once, about.
FETCHED = 1 << 23


def seen_slots(real: Tensor, width: int) -> Tensor:
    """Slots ``(batch, slots)`` that can be seen, from a block's start on: real, and no landmark of a masked block.

    Args:
        real: bool ``(batch, slots)``.
        width: slots of a block, landmark included.
    """
    length = real.shape[1]
    blocks = F.pad(real, (0, -length % width)).unflatten(1, (-1, width))
    landmark = blocks[..., -1:] & blocks[..., :-1].any(-1, keepdim=True)
    return torch.cat([blocks[..., :-1], landmark], -1).flatten(1)[:, :length]


@dataclass(frozen=True)
class LandmarkStream:
    """The rule of a stream; :class:`~foveate.mixers.landmark_attention.LandmarkAttention` tells the rest.

    Attributes:
        width: slots of a block, landmark included.
        released: positions as the released code has them while ``top_k`` blocks hold everything.
        rope_base: of the rotary embedding; None: there is none.
    """

    width: int
    top_k: int
    chunk: int | None
    selection: Selection
    released: bool
    rope_base: float | None
    softmax: Softmax

    def chunk_end(self, read: int) -> int | None:
        """The slot behind the chunk of the next slot (a landmark is the token's before it); None: it is the call's."""
        if self.chunk is None:
            return None
        tokens = (read - read // self.width) // self.chunk * self.chunk
        end = tokens + tokens // (self.width - 1)
        return end if end > read else tokens + self.chunk + (tokens + self.chunk) // (self.width - 1)

    def read_on(
        self, q: Tensor, k: Tensor, v: Tensor, real: Tensor | None, state: LandmarkState
    ) -> tuple[Tensor, LandmarkState]:
        """Slots of one chunk: their outputs ``(batch, heads, count, head_dim)`` and the state with them."""
        count, blocks = q.shape[2], state.blocks
        local = state.local.extend(k, v, real)
        precise = sum_dtype(q.dtype)
        missing = -local.length % self.width
        k, v = (F.pad(t[:, :, : local.length].to(precise), (0, 0, 0, missing)) for t in (local.keys, local.values))
        start = min(blocks.total, self.top_k + 1) * self.width
        k = self._turn(k, start + torch.arange(k.shape[2], device=k.device))
        seen = None if local.slots is None else F.pad(seen_slots(local.slots >= 0, self.width), (0, missing))
        place = torch.arange(local.length - count, local.length, device=q.device)
        fetch = min(self.top_k, blocks.count)
        size = FETCHED // max(1, fetch * self.width * q[:, :, 0].numel())
        pieces = [slice(s, s + max(1, size)) for s in range(0, count, max(1, size))]
        turned = [self._queries(q[:, :, piece].to(precise), start + place[piece]) for piece in pieces]
        wanted, best = None, state.best
        if fetch and self.selection == "max_over_tokens":
            wanted, best = self._wanted_by_any([self._wanted(t, blocks) for t in turned], best, real)
        outputs = []
        for piece, queries in zip(pieces, turned, strict=True):
            scores = (queries[:, :, 0] @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
            hidden = torch.arange(k.shape[2], device=q.device) > place[piece, None]
            if seen is not None:
                hidden = hidden | ~seen[:, None, None, :]
            scores = scores.masked_fill(hidden, -math.inf).unflatten(-1, (-1, self.width))
            values = None
            if fetch:
                asked = self._wanted(queries, blocks) if wanted is None else wanted[:, :, piece]
                if self.selection == "max_over_heads":
                    asked = asked.amax(1, keepdim=True).expand_as(asked)
                fetched, values = self._fetch(queries, _best(asked, fetch, blocks), blocks)
                scores = torch.cat([fetched, scores], 3)
            own = torch.arange(scores.shape[3], device=q.device) == fetch + place[piece, None] // self.width
            if self.softmax == "grouped":
                p, g = block_softmax(scores, own)
                weights = p * g[..., None]
            else:
                weights = plain_weights(scores, own, KINDS.index(self.softmax))
            o = weights[..., fetch:, :].flatten(-2) @ v
            if values is not None:
                o = o + (weights[..., :fetch, :].flatten(-2)[..., None, :] @ values)[..., 0, :]
            outputs.append(o.to(q.dtype))
        return torch.cat(outputs, 2), LandmarkState(local, blocks, best, state.read + count)

    def _turn(self, x: Tensor, positions: Tensor) -> Tensor:
        return x if self.rope_base is None else apply_rope(x, positions, self.rope_base, interleaved=True)

    def _queries(self, q: Tensor, positions: Tensor) -> Tensor:
        """Queries seen from a key's block in place s, for s = 0 ... top_k: ``(batch, heads, top_k + 1, count, d)``.

        Keys keep the angle of their place within the block, so that a block is moved by turning queries.
        """
        moved = positions - self.width * torch.arange(self.top_k + 1, device=q.device)[:, None]
        repeated = q[:, :, None].expand(-1, -1, self.top_k + 1, -1, -1)
        if self.rope_base is None:
            return repeated
        return self._turn(repeated.flatten(2, 3), moved.flatten()).unflatten(2, moved.shape)

    def _wanted(self, queries: Tensor, blocks: LandmarkCache) -> Tensor:
        """How much each query wants each block: probabilities ``(batch, heads, count, blocks)``, in the ring's order.

        In a first layer all old landmarks look alike, and what is fetched hangs on the order of sums: one product over
        all blocks, as they lie in the released code's ring, breaks such ties as it does on the same processor.
        """
        gates = blocks.gates[:, :, blocks.live].to(queries.dtype)
        place = (torch.arange(blocks.count, device=gates.device) - blocks.count + self.top_k + 1).clamp(min=0)
        turned = self._turn(gates, place * self.width + self.width - 1)
        ring = turned.roll(_ring_start(blocks), 2)
        scores = (queries[:, :, 0] @ ring.transpose(-1, -2).contiguous()) * (1.0 / math.sqrt(gates.shape[-1]))
        if blocks.seen is not None:
            seen = blocks.seen[:, None, None, blocks.live, -1].roll(_ring_start(blocks), -1)
            seen = seen | ~seen.any(-1, keepdim=True)  # nothing to want: anything will do, it is not seen when read
            scores = scores.masked_fill(~seen, -math.inf)
        return scores.softmax(-1)

    def _wanted_by_any(
        self, wanted: list[Tensor], best: Tensor | None, real: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What the chunk's tokens want together: those up to each token, or with ``chunk=None`` all of the call."""
        each = torch.cat(wanted, 2)
        if real is not None:
            each = each.masked_fill(~real[:, None, :, None], -math.inf)
        if self.chunk is None:
            return each.amax(2, keepdim=True).expand_as(each), None
        if best is not None:
            each = torch.cat([best[:, :, None], each], 2)
        running = each.cummax(2).values
        return running if best is None else running[:, :, 1:], running[:, :, -1]

    def _fetch(self, queries: Tensor, chosen: Tensor, blocks: LandmarkCache) -> tuple[Tensor, Tensor]:
        """Scores of the chosen blocks' keys ``(batch, heads, count, fetch, width)`` and their values, flat."""
        fetch, device = chosen.shape[-1], queries.device
        sample = torch.arange(len(chosen), device=device)[:, None, None, None]
        head = torch.arange(chosen.shape[1], device=device)[:, None, None]
        index = tuple(i.to(blocks.keys.device) for i in (sample, head, chosen + blocks.first))
        k, v = (t[index].to(queries) for t in (blocks.keys, blocks.values))
        place = torch.arange(fetch, device=device).expand_as(chosen)
        if self.released or blocks.total > self.top_k:
            place = place + (chosen >= blocks.count - self.top_k)
        q = queries.transpose(2, 3).take_along_dim(place[..., None], 3)
        scores = (k @ q[..., None])[..., 0] / math.sqrt(q.shape[-1])
        if blocks.seen is not None:
            seen = blocks.seen[sample, chosen + blocks.first]
            scores = scores.masked_fill(~seen, -math.inf)
        return scores, v.flatten(3, 4)

    def close(self, state: LandmarkState) -> LandmarkState:
        """The state after a chunk: closed blocks join the others, what is left of it is the open block."""
        local, full = state.local, state.local.length // self.width * self.width
        k, v = local.keys[:, :, : local.length], local.values[:, :, : local.length]
        real = None if local.slots is None else local.slots >= 0
        blocks = state.blocks
        if full:
            keys, values = (t[:, :, :full].unflatten(2, (-1, self.width)) for t in (k, v))
            gates, places = keys[:, :, :, -1], torch.arange(self.width, device=k.device)
            keys = self._turn(keys.flatten(1, 2), places).view_as(keys)
            seen = None if real is None else seen_slots(real[:, :full], self.width).unflatten(1, (-1, self.width))
            blocks = blocks.append(keys, values, gates, seen)
        rest = KVCache.empty(k.shape[0], k.shape[1], k.shape[3], k.device, k.dtype)
        if full < local.length:
            rest = rest.extend(k[:, :, full:], v[:, :, full:], None if real is None else real[:, full:])
        return LandmarkState(rest, blocks, None, state.read)


def _ring_start(blocks: LandmarkCache) -> int:
    """The place of the oldest block where block i lies at i modulo the number of places."""
    return 0 if blocks.max_blocks is None else (blocks.total - blocks.count) % blocks.max_blocks


def _best(wanted: Tensor, count: int, blocks: LandmarkCache) -> Tensor:
    """The most wanted blocks ``(batch, heads, tokens, count)``, oldest first."""
    chosen = wanted.topk(count, -1).indices - _ring_start(blocks)
    return (chosen % blocks.count).sort(-1).values
