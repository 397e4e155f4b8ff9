"""The streaming state of landmark attention: closed blocks of text, in memory or in a mapped file, and the open chunk.

Mohtashami and Jaggi, 2023 (arXiv 2305.16300), section 3.2. Of every closed block the landmark's key stays at hand, for
it decides whether the block is read; keys and values of the block itself may lie on disk, where the few that are read
are fetched from.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor

from ..errors import invalid
from .kv_cache import KVCache, capacity
from .state import State, shared, state

Storage = Literal["memory", "memory-mapped"]
STORAGES = get_args(Storage)


def mapped_zeros(shape: tuple[int, ...], dtype: torch.dtype, folder: str | None) -> Tensor:
    """Zeros in a file that no folder lists and that is gone with the tensor, however the process ends.

    Args:
        folder: where the file takes its space; None: where the system keeps temporary files.
    """
    size = max(1, torch.Size(shape).numel() * dtype.itemsize)
    with tempfile.TemporaryFile(dir=folder) as file:
        buffer: Any = np.memmap(file, dtype=np.uint8, mode="w+", shape=(size,))
    return torch.from_numpy(buffer)[: torch.Size(shape).numel() * dtype.itemsize].view(dtype).view(shape)


def check_folder(folder: str | Path | None, storage: str) -> None:
    """Refuse a folder that does not exist, or that nothing would be written to."""
    if folder is None:
        return
    if storage != "memory-mapped":
        raise invalid("folder", str(folder), "only storage='memory-mapped' writes files")
    if not Path(folder).is_dir():
        raise invalid("folder", str(folder), "it must be a folder that exists")


def block_capacity(held: int, more: int, max_blocks: int | None) -> tuple[int, int]:
    """Blocks that are kept when ``more`` join ``held``, and places of a buffer for them.

    A bounded cache has up to a quarter more places than blocks, so that it is moved rarely.
    """
    if max_blocks is None:
        return held + more, capacity(held + more)
    kept = min(held + more, max_blocks)
    return kept, min(capacity(kept), max_blocks + max(1, max_blocks // 4))


@state
class LandmarkCache(State):
    """Closed blocks, oldest first; the oldest leave where their number is bounded (the paper's ring).

    A state is a value: :meth:`append` writes into places that no other state knows of, or moves the blocks that are
    kept to new buffers. While gradients are recorded, blocks in memory are always moved; blocks on disk are cut from
    the graph.

    Attributes:
        keys, values: ``(batch, heads, places, block_size + 1, head_dim)``, keys turned by their place in the block.
        gates: ``(batch, heads, places, head_dim)``: the landmarks' keys, not turned.
        seen: bool ``(batch, places, block_size + 1)``: real tokens, and landmarks of blocks that have any; None as long
            as no mask was given.
        written: int64 scalar on the CPU, shared by all states on the same buffers: places taken so far; -1: all.
        first, count: the places that this state knows of.
        total: blocks read so far, those that have left included.
        max_blocks: bound of ``count``, or None.
        storage, folder: where keys and values lie.
    """

    keys: Tensor
    values: Tensor
    gates: Tensor
    seen: Tensor | None
    written: Tensor = shared()
    first: int = 0
    count: int = 0
    total: int = 0
    max_blocks: int | None = None
    storage: str = "memory"
    folder: str | None = None

    @classmethod
    def empty(
        cls,
        batch_size: int,
        heads: int,
        width: int,
        head_dim: int,
        device: torch.device | str | None,
        dtype: torch.dtype,
        max_blocks: int | None,
        storage: str,
        folder: str | None,
    ) -> Self:
        """The state before the first block of ``width`` slots."""
        disk = "cpu" if storage == "memory-mapped" else device
        none = torch.zeros(batch_size, heads, 0, width, head_dim, device=disk, dtype=dtype)
        gates = torch.zeros(batch_size, heads, 0, head_dim, device=device, dtype=dtype)
        written = torch.zeros((), device="cpu", dtype=torch.int64)
        return cls(none, none, gates, None, written, 0, 0, 0, max_blocks, storage, folder)

    @property
    def live(self) -> slice:
        """The places of the blocks."""
        return slice(self.first, self.first + self.count)

    def append(self, keys: Tensor, values: Tensor, gates: Tensor, seen: Tensor | None) -> Self:
        """The state after further blocks.

        Args:
            keys, values: ``(batch, heads, blocks, block_size + 1, head_dim)``.
            gates: ``(batch, heads, blocks, head_dim)``.
            seen: bool ``(batch, blocks, block_size + 1)``; None: everything is seen.
        """
        added, space = keys.shape[2], self.keys.shape[2]
        kept, places = block_capacity(self.count, added, self.max_blocks)
        old = max(0, kept - added)  # of the blocks that are here; of the given ones the last that fit
        new, end = kept - old, self.first + self.count
        recording = torch.is_grad_enabled()
        free = not recording and int(self.written) == end and end + new <= space

        def join(held: Tensor, given: Tensor, axis: int, on_disk: bool = False) -> Tensor:
            given = given.narrow(axis, added - new, new).to(held)
            if free:
                held.narrow(axis, end, new).copy_(given)
                return held
            before, shape = held.narrow(axis, end - old, old), list(held.shape)
            if on_disk:
                shape[axis] = places
                made = mapped_zeros(tuple(shape), held.dtype, self.folder)
                made.narrow(axis, 0, old).copy_(before)
                made.narrow(axis, old, new).copy_(given.detach())
                return made
            shape[axis] = places - kept
            return torch.cat([before, given, held.new_zeros(shape)], axis)

        known = self.seen
        if known is not None or seen is not None:
            ones = torch.ones(len(keys), 1, keys.shape[3], dtype=torch.bool, device=self.gates.device)
            known = ones.repeat(1, space, 1) if known is None else known
            known = join(known, ones.expand(-1, added, -1) if seen is None else seen, 1)
        on_disk = self.storage == "memory-mapped"
        return replace(
            self,
            keys=join(self.keys, keys, 2, on_disk),
            values=join(self.values, values, 2, on_disk),
            gates=join(self.gates, gates, 2),
            seen=known,
            written=self.written.fill_(end + new) if free else torch.full_like(self.written, -1 if recording else kept),
            first=end + new - kept if free else 0,
            count=kept,
            total=self.total + added,
        )

    def reorder(self, batch_index: Tensor) -> Self:
        """As :meth:`State.reorder`; blocks on disk go to files of their own."""
        if self.storage != "memory-mapped":
            return super().reorder(batch_index)
        moved = {}
        for name in ("keys", "values"):
            old: Tensor = getattr(self, name)
            made = mapped_zeros((len(batch_index), *old.shape[1:]), old.dtype, self.folder)
            for sample, source in enumerate(batch_index.tolist()):  # never all of them in memory
                made[sample, :, self.live] = old[source, :, self.live]
            moved[name] = made
        rest = replace(self, keys=self.keys[:, :, :0], values=self.values[:, :, :0])
        return replace(super(LandmarkCache, rest).reorder(batch_index), **moved)


@state
class LandmarkState(State):
    """Streaming state of :class:`~foveate.mixers.landmark_attention.LandmarkAttention`.

    Attributes:
        local: keys, not turned, and values of the block that was open when the chunk began and of the chunk.
        blocks: the blocks that were closed before.
        best: ``(batch, heads, blocks)``: how much any token of the chunk so far wants each block; None unless the
            selection is "max_over_tokens".
        read: number of slots read, landmarks included.
    """

    local: KVCache
    blocks: LandmarkCache
    best: Tensor | None
    read: int = 0
