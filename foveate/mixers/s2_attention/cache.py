"""The streaming state of S2-Attention: of each head, the blocks that its shard still needs.

A block that leaves the window of a head and is not on its stripes is never needed again
(:func:`~foveate.ops.s2_pattern.is_kv_cache_efficient`): it is dropped. What is left of n tokens is, for each sparse
head, ``local_blocks`` blocks and one in ``vert_stride`` of all before. Slots need no numbers, for they follow from how
many tokens were read::

    stripes, in their order  |  the window before the open block  |  the open block
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

from ...ops.block_sparse_attention import block_sparse_attention
from ...ops.s2_pattern import LocalStride
from ..kv_cache import KVCache
from ..state import State, shared, state


class Places(NamedTuple):
    """How slots are laid out.

    Attributes:
        stripes: blocks of stripes, those of the head that has most.
        window: whole blocks behind them, up to the open one.
        open: int64 ``(batch or 1,)``, number of the open block of each sample.
    """

    stripes: int
    window: int
    open: Tensor


@state
class ShardCache(State):
    """Keys and values of the sparse heads.

    A state is a value, as :class:`~foveate.mixers.kv_cache.KVCache` is: free slots of the buffers are written to once,
    and while gradients are recorded never.

    Attributes:
        keys, values: ``(batch, heads, slots, head_dim)``.
        position: int64 ``(batch,)``: real tokens read.
        written: int64 scalar on the CPU, shared by all states on the same buffers: slots taken so far; -1: all.
        pattern: what the slots are laid out for: block size, window, stride, and the residues of the heads.
        stripes, window: see :class:`Places`.
        tail: tokens of the open block, those of the sample that has most.
        read: tokens read by all samples alike; -1: samples differ.
    """

    keys: Tensor
    values: Tensor
    position: Tensor
    written: Tensor = shared()
    pattern: tuple[int, ...] = ()
    stripes: int = 0
    window: int = 0
    tail: int = 0
    read: int = 0

    @classmethod
    def empty(
        cls, pattern: LocalStride, batch_size: int, head_dim: int, device: torch.device | str | None, dtype: torch.dtype
    ) -> Self:
        """The state before the first token."""
        none = torch.zeros(batch_size, pattern.sparse_heads, 0, head_dim, device=device, dtype=dtype)
        position = torch.zeros(batch_size, dtype=torch.int64, device=device)
        return cls(none, none, position, torch.zeros((), device="cpu", dtype=torch.int64), signature(pattern))

    @property
    def used(self) -> int:
        """Slots that this state knows of, but for the block size's share of :class:`Places`."""
        return (self.stripes + self.window) * self.pattern[0] + self.tail

    def places(self) -> Places:
        """How its slots are laid out."""
        position = self.position if self.read < 0 else torch.full_like(self.position[:1], self.read)
        return Places(self.stripes, self.window, position // self.pattern[0])

    def begun(self) -> Tensor:
        """int64 ``(batch or 1,)``: tokens of the open block."""
        if self.read < 0:
            return self.position % self.pattern[0]
        return torch.full_like(self.position[:1], self.read % self.pattern[0])


def signature(pattern: LocalStride) -> tuple[int, ...]:
    """What two patterns must have in common for one's state to serve the other."""
    return (pattern.block_size, pattern.window[0], pattern.vert_stride, *pattern.residues)


def extended(
    pattern: LocalStride, cache: ShardCache, keys: Tensor, values: Tensor, counts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, ShardCache]:
    """What the next tokens see of everything read, and the state after them.

    Args:
        keys, values: ``(batch, heads, n, head_dim)``, of the next tokens, real ones in front.
        counts: int64 ``(batch,)``, how many of them are real; None: all.

    Returns:
        Keys and values ``(batch, heads, slots, head_dim)``, in the layout of ``cache`` with the next tokens behind its
        own; which of them hold something, bool ``(batch or 1, heads, slots)``, None if all; the state.
    """
    n = keys.shape[2]
    same = cache.read >= 0 and counts is None
    after = counted(cache, n, counts)
    if same and _open(cache, pattern) + n < pattern.block_size:  # the open block stays open
        grown = _appended(cache, keys, values, after)
        k, v = (x[:, :, : grown.used].to(keys.dtype) for x in (grown.keys, grown.values))
        return k, v, _stripes_held(pattern, cache.places(), grown.used), grown
    tail = (int(cache.begun().max()) if cache.read < 0 else _open(cache, pattern)) + n
    found = _collected(pattern, cache, keys, values, cache.places(), tail, after)
    return *found, settled(pattern, cache, keys, values, after)


def settled(pattern: LocalStride, cache: ShardCache, keys: Tensor, values: Tensor, after: ShardCache) -> ShardCache:
    """The state after the next tokens, laid out for what comes then; ``after`` says how many were read."""
    open_ = after.places().open
    last, size = int(open_.max()) if after.read < 0 else after.read // pattern.block_size, pattern.block_size
    window = min(pattern.window[0] - 1, last)
    older = max(0, last - pattern.window[0] + 1)
    stripes = max(len(range(residue, older, pattern.vert_stride)) for residue in pattern.residues)
    tail = int((after.position % size).max()) if after.read < 0 else after.read % size
    k, v, _ = _collected(pattern, cache, keys, values, Places(stripes, window, open_), size, after)
    k, v = k.to(cache.keys.dtype), v.to(cache.values.dtype)
    used = (stripes + window) * size + tail
    written = torch.full_like(cache.written, -1 if torch.is_grad_enabled() else used)
    return ShardCache(k, v, after.position, written, cache.pattern, stripes, window, tail, after.read)


def counted(cache: ShardCache, n: int, counts: Tensor | None) -> ShardCache:
    """The state with ``n`` more tokens counted, not kept yet; ``counts`` ``(batch,)`` of them are real, None: all."""
    read = cache.read + n if cache.read >= 0 and counts is None else -1
    position = cache.position + (n if counts is None else counts)
    return ShardCache(
        cache.keys, cache.values, position, cache.written, cache.pattern, cache.stripes, cache.window, cache.tail, read
    )


def _open(cache: ShardCache, pattern: LocalStride) -> int:
    """Tokens of the open block, where samples do not differ."""
    return cache.read % pattern.block_size


def _appended(cache: ShardCache, keys: Tensor, values: Tensor, after: ShardCache) -> ShardCache:
    """The state with further tokens in its open block."""
    used, recording = cache.used, torch.is_grad_enabled()
    end = used + keys.shape[2]
    free = not recording and end <= cache.keys.shape[2] and int(cache.written) == used

    def grown(buffer: Tensor, new: Tensor) -> Tensor:
        new = new.to(buffer.dtype)
        if free:
            buffer[:, :, used:end] = new
            return buffer
        room = -(-end // cache.pattern[0]) * cache.pattern[0]
        spare = new.new_zeros(*new.shape[:2], room - end, new.shape[3])
        return torch.cat([buffer[:, :, :used], new, spare], 2)

    k, v = grown(cache.keys, keys), grown(cache.values, values)
    written = cache.written.fill_(end) if free else torch.full_like(cache.written, -1 if recording else end)
    tail = cache.tail + keys.shape[2]
    return ShardCache(k, v, after.position, written, cache.pattern, cache.stripes, cache.window, tail, after.read)


def _stripes_held(pattern: LocalStride, places: Places, slots: int) -> Tensor | None:
    """Bool ``(1, heads, slots)`` for samples that do not differ: heads may have one stripe less than others."""
    older = max(0, int(places.open[0]) - pattern.window[0] + 1)
    counts = [len(range(residue, older, pattern.vert_stride)) for residue in pattern.residues]
    if min(counts) == places.stripes:
        return None
    slot = torch.arange(slots, device=places.open.device)
    ends = torch.tensor(counts, device=slot.device)[:, None] * pattern.block_size
    return ((slot < ends) | (slot >= places.stripes * pattern.block_size))[None]


def _collected(
    pattern: LocalStride,
    cache: ShardCache,
    keys: Tensor,
    values: Tensor,
    places: Places,
    tail: int,
    after: ShardCache,
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values by places, of the old state and the next tokens, and which of them hold something.

    Args:
        tail: slots behind the window.
    """
    size, stride, left = pattern.block_size, pattern.vert_stride, pattern.window[0]
    heads, device = pattern.sparse_heads, keys.device
    residue = torch.tensor(pattern.residues, device=device)[:, None]
    slot = torch.arange(places.stripes * size, device=device)
    block = residue + slot // size * stride
    held = block <= (places.open - left)[:, None, None]
    first = ((places.open - places.window) * size)[:, None]
    near = first + torch.arange(places.window * size + tail, device=device)
    end = after.position if after.read < 0 else torch.full_like(after.position[:1], after.read)
    samples = max(len(near), len(end))
    of_window = near[:, None].expand(samples, heads, -1)
    position = torch.cat([(block * size + slot % size).expand(samples, -1, -1), of_window], 2)
    seen = torch.cat([held.expand(samples, -1, -1), of_window >= 0], 2) & (position < end[:, None, None])
    # Where each of these positions is now: on the old state's stripes, in its window, or among the next tokens.
    before = cache.position if cache.read < 0 else torch.full_like(cache.position[:1], cache.read)
    old = cache.places()
    begins, limit = ((old.open - old.window) * size)[:, None, None], (old.open - left)[:, None, None]
    on_stripes = (position // size - residue) // stride * size + position % size
    index = torch.where(position // size <= limit, on_stripes, old.stripes * size + position - begins)
    index = torch.where(position >= before[:, None, None], cache.used + position - before[:, None, None], index)
    index = torch.where(seen, index, 0)[..., None]
    found = []
    for buffer, new in ((cache.keys, keys), (cache.values, values)):
        every = torch.cat([buffer[:, :, : cache.used].to(new.dtype), new], 2)
        picked = every.gather(2, index.expand(len(new), -1, -1, new.shape[3]))
        found.append(picked.masked_fill(~seen[..., None], 0))
    return found[0], found[1], seen


def read_on(
    pattern: LocalStride,
    places: Places,
    begun: Tensor,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    held: Tensor | None,
) -> Tensor:
    """Attention of several tokens after a state: ``(batch, heads, n, head_dim)``.

    Queries come in the blocks of the pattern, so that in front of them stand as many as the open block has tokens.

    Args:
        places, begun: of the state before these tokens, and how many tokens its open block has.
        q: ``(batch, heads, n, head_dim)``; heads of keys divide heads.
        keys, values, held: as :func:`extended` returns them.
    """
    size, (batch, heads, n, width), device = pattern.block_size, q.shape, q.device
    rows = keys.shape[2] - (places.stripes + places.window) * size
    index = (torch.arange(rows, device=device) - begun[:, None]).clamp(0, n - 1)
    count = -(-rows // size)
    here = places.open[:, None] + torch.arange(count, device=device)
    there = (places.open - places.window)[:, None] + torch.arange(places.window + count, device=device)
    kept = pattern.keeps(here, there).expand(-1, pattern.sparse_heads, -1, -1)
    kept = torch.cat([kept.new_ones(*kept.shape[:3], places.stripes), kept], 3)

    def alone(x: Tensor, group: int) -> Tensor:
        """Every head of keys as a sample of its own, for each has other ones: ``(batch * heads, group, ...)``."""
        return x.expand(batch, *x.shape[1:]).unflatten(1, (pattern.sparse_heads, group)).flatten(0, 1)

    o = block_sparse_attention(
        alone(q.gather(2, index[:, None, :, None].expand(batch, heads, -1, width)), heads // pattern.sparse_heads),
        alone(keys, 1),
        alone(values, 1),
        alone(kept, 1),
        block_size=size,
        mask=None if held is None else alone(held, 1)[:, 0],
    )
    index = begun[:, None] + torch.arange(n, device=device)
    o = o.unflatten(0, (batch, -1)).flatten(1, 2)  # type: ignore[union-attr]
    return o.gather(2, index[:, None, :, None].expand(batch, heads, -1, o.shape[3]))


@state
class S2State(State):
    """Streaming state of :class:`~foveate.mixers.s2_attention.S2Attention`.

    Attributes:
        sparse: of the heads that drop what their shard does not need; None where all heads are dense.
        dense: of the heads that keep everything; None where there are none.
    """

    sparse: ShardCache | None
    dense: KVCache | None
