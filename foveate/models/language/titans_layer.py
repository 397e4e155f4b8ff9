"""A layer of titans-pytorch's transformer (:mod:`.titans`): a memory (in some layers), attention, a feed-forward."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...mixers.parts import Linear
from ...mixers.state import State, state
from ...mixers.titans.chunk_places import ChunkMemoryState
from ...mixers.titans.neural_memory import NeuralMemory
from .hyper_connections import HyperConnection
from .titans_attention import SegmentedAttention, SegmentState, ViewSelector


@state
class TitansLayerState(State):
    """What a layer has read: its memory, if it has one, and its attention."""

    memory: ChunkMemoryState | None
    attention: SegmentState


@dataclass
class Carried:
    """What goes from layer to layer beside the stream, within a call.

    Attributes:
        streams: what each attention and feed-forward so far read and gave, ``(batch, length, dim)``.
        weights: those of the last memory before each chunk.
    """

    streams: list[Tensor] = field(default_factory=list)
    weights: tuple[Tensor, ...] | None = None


class TitansLayer(nn.Module):
    """Memory (in some layers), attention and feed-forward.

    Args:
        attention, memory: built.
        ff_mult: inner width of the feed-forward, times 2/3, over ``dim``.
        streams: residual streams; one has plain sums.
        gates: the memory gates the attention's output.
        choices: streams of earlier layers that its memory chooses from; None: it reads its own input.
    """

    def __init__(
        self,
        attention: SegmentedAttention,
        memory: NeuralMemory | None,
        ff_mult: float,
        streams: int,
        gates: bool,
        choices: int | None,
    ) -> None:
        super().__init__()
        dim = attention.qkv.in_features
        inner = int(dim * ff_mult * 2 / 3)
        self.attention, self.memory, self.gates = attention, memory, gates
        self.ff_norm, self.ff_in, self.ff_out = nn.RMSNorm(dim), Linear(dim, 2 * inner), Linear(inner, dim)

        def connection(adds: bool = True) -> HyperConnection | None:
            first = int(torch.randint(streams, ()))
            return HyperConnection(streams, dim, first=first, adds=adds) if streams > 1 else None

        self.views = None if memory is None or choices is None else ViewSelector(dim, choices + 1)
        self.memory_connection = connection(not gates) if memory is not None else None
        self.attention_connection, self.ff_connection = connection(), connection()

    def forward(
        self, x: Tensor, first: Tensor | None, past: TitansLayerState | None, position: int, carried: Carried
    ) -> tuple[Tensor, Tensor, TitansLayerState | None]:
        """``x`` ``(batch, length, [streams,] dim)`` and the first layer's values; the same, and the layer's state."""
        gate = memory = None
        if self.memory is not None:
            given, x_mixed, beta = _enter(self.memory_connection, x)
            given = given if self.views is None else self.views(given, carried.streams)
            other = carried.weights if self.memory.extras["accept_weight_residual"] else None
            recalled, memory, carried.weights = self.memory.read_views(given, past and past.memory, other)
            if self.gates:
                gate = recalled.sigmoid()
            else:
                x = _leave(self.memory_connection, recalled, x_mixed, beta)
        given, x, beta = _enter(self.attention_connection, x)
        y, values, after = self.attention(given, first, None if past is None else past.attention, position)
        y = y if gate is None else y * gate
        carried.streams += [given, y]
        x = _leave(self.attention_connection, y, x, beta)
        given, x, beta = _enter(self.ff_connection, x)
        u, g = self.ff_in(self.ff_norm(given)).chunk(2, -1)
        y = self.ff_out(F.silu(g) * u)
        carried.streams += [given, y]
        x = _leave(self.ff_connection, y, x, beta)
        return x, values, None if past is None else TitansLayerState(memory, after)


def _enter(connection: HyperConnection | None, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    return (x, x, None) if connection is None else connection(x)


def _leave(connection: HyperConnection | None, branch: Tensor, x: Tensor, beta: Tensor | None) -> Tensor:
    return x + branch if connection is None else connection.add(branch, x, beta)
