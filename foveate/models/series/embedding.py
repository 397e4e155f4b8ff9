"""How the models of Time-Series-Library embed a series and its time stamps (from Informer, AAAI 2021)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InvalidValue
from ...mixers.parts import Linear

#: Time-feature columns by frequency letter (hour, minute, second, month, year, week, day, business day).
FREQ_MARKS = {"h": 4, "t": 5, "s": 6, "m": 1, "a": 1, "w": 2, "d": 3, "b": 3}
#: Calendar tables in the order of the mark columns, with their sizes; "minute" (quarters of an hour) only for freq "t".
CALENDAR = {"month": 13, "day": 32, "weekday": 7, "hour": 24, "minute": 4}


def sinusoid(length: int, dim: int, start: int = 0) -> Tensor:
    """Fixed position code ``(length, dim)`` from ``start`` on: sines on even, cosines on odd channels, base 10000."""
    rate = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
    angle = torch.arange(start, start + length)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim]


class SeriesEmbedding(nn.Module):
    """Values (a circular convolution of width 3), positions (sinusoid) and time marks, summed, with dropout.

    Args:
        channels: variables of the series.
        dim: width of the embedding.
        length: steps of the series.
        embed: "timeF": a linear map of real-valued time features; "fixed" (sinusoids) and "learned": one table for
            each calendar column.
        freq: frequency letter; "t" adds the minute column to the tables.
        marks: columns of "timeF" features; 0: the series has none.
        dropout: dropout probability.
    """

    def __init__(self, channels: int, dim: int, length: int, embed: str, freq: str, marks: int, dropout: float) -> None:
        super().__init__()
        self.value = nn.Conv1d(channels, dim, 3, padding=1, padding_mode="circular", bias=False)
        nn.init.kaiming_normal_(self.value.weight, mode="fan_in", nonlinearity="leaky_relu")
        self.register_buffer("positions", sinusoid(length, dim), persistent=False)
        tables = {name: size for name, size in CALENDAR.items() if name != "minute" or freq == "t"}
        self.marks = marks if embed == "timeF" else len(tables)
        self.time: nn.Linear | nn.ModuleDict | None = None
        if embed == "learned":
            self.time = nn.ModuleDict({name: nn.Embedding(size, dim) for name, size in tables.items()})
        elif embed == "fixed":
            fixed = {name: nn.Embedding.from_pretrained(sinusoid(size, dim)) for name, size in tables.items()}
            self.time = nn.ModuleDict(fixed)
        elif marks:
            self.time = Linear(marks, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, marks: Tensor | None = None) -> Tensor:
        """``(B, T, channels)`` and marks ``(B, T, columns)`` to ``(B, T, dim)``."""
        h = self.value(x.transpose(1, 2)).transpose(1, 2) + self.positions
        if marks is not None and self.time is not None:
            h = h + self._embed_marks(marks)
        return self.dropout(h)

    def _embed_marks(self, marks: Tensor) -> Tensor:
        if isinstance(self.time, nn.Linear):
            return self.time(marks.to(self.time.weight.dtype))
        tables: dict[str, Any] = dict(self.time.items()) if self.time is not None else {}
        columns = marks.long()
        sizes = torch.tensor([table.num_embeddings for table in tables.values()], device=marks.device)
        if not torch.compiler.is_compiling() and bool(((columns < 0) | (columns >= sizes)).any()):
            legal = ", ".join(f"{name} below {table.num_embeddings}" for name, table in tables.items())
            raise InvalidValue(f"a calendar mark is out of range: the columns are {legal}, none negative.")
        return torch.stack([table(columns[..., i]) for i, table in enumerate(tables.values())]).sum(0)
