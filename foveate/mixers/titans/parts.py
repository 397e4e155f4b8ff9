"""What the hybrids of Titans share: the gate between attention and memory, persistent tokens, the memory's options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InvalidType, invalid
from ...ops.documents import document_numbers
from ...registry import check_options
from ..ssm import Packing
from .lmm import TitansLMM

Activation = Literal["silu", "sigmoid"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "sigmoid": torch.sigmoid}
EPS = 1e-5


class Gate(nn.Module):
    """``sigma(norm(y) * a) * sigma(norm(m) * b)``: one stream gates the other (Titans, section 4.2).

    The norms are RMS norms, a and b learned vectors; the paper names neither norm nor nonlinearity.

    Args:
        dim: channels.
        activation: "silu" or "sigmoid".
    """

    def __init__(self, dim: int, activation: Activation) -> None:
        super().__init__()
        if activation not in get_args(Activation):
            raise invalid("activation", activation, f"it must be one of {', '.join(get_args(Activation))}")
        self.activation = activation
        self.attended = nn.Parameter(torch.ones(dim))
        self.recalled = nn.Parameter(torch.ones(dim))

    def forward(self, y: Tensor, m: Tensor) -> Tensor:
        """``(..., dim)`` of the attention and of the memory; same shape."""
        sigma, shape = ACTIVATIONS[self.activation], y.shape[-1:]
        y, m = (F.rms_norm(x, shape, gain, EPS) for x, gain in ((y, self.attended), (m, self.recalled)))
        return sigma(y) * sigma(m)

    def saved(self, dim: int) -> int:
        """Numbers per token that are kept for the backward pass: both streams, normed, scaled, and through sigma."""
        return 8 * dim


def build_memory(dim: int, num_heads: int, options: dict[str, Any] | None) -> TitansLMM:
    """The memory of a hybrid.

    Args:
        num_heads: of the hybrid; ``options`` may have another number.
        options: of :class:`~foveate.mixers.titans.lmm.TitansLMM`.

    Raises:
        InvalidType: an option that it does not have.
        InvalidValue: a value that is not legal.
    """
    if options is not None and not isinstance(options, dict):
        raise InvalidType(f"memory must be a dictionary of options of titans_lmm, not a {type(options).__name__}.")
    given = {"num_heads": num_heads, **(options or {})}
    check_options("titans_lmm", TitansLMM, {"dim": dim, **given})
    return TitansLMM(dim, **given)


def persistent_tokens(number: int, dim: int) -> nn.Parameter | None:
    """Learned tokens ``(number, dim)`` that stand before every document; None: there are none."""
    if not isinstance(number, int) or number < 0:
        raise invalid("num_persistent", number, "a whole number, 0 or more, is needed")
    return nn.Parameter(torch.randn(number, dim) * 0.02) if number else None


class Preceded:
    """A sequence with tokens put before every document.

    Args:
        x: ``(batch, length, dim)``.
        tokens: ``(number, dim)``.
        mask: bool ``(batch, length)``, True = a real token.
        segments: int64 ``(batch, length)``; the length of the new sequence depends on the number of documents.

    Attributes:
        x: ``(batch, longer, dim)``.
        mask: bool ``(batch, longer)``; None: all tokens are real.
        segments: int64 ``(batch, longer)``; None: there is one document.
    """

    def __init__(self, x: Tensor, tokens: Tensor, mask: Tensor | None, segments: Tensor | None) -> None:
        batch, length, dim = x.shape
        number, tokens = len(tokens), tokens.to(x.dtype)
        self.mask = self.segments = self._places = None
        self._number, self._length = number, length
        if segments is None:
            self.x = torch.cat([tokens.expand(batch, -1, -1), x], 1)
            self.mask = None if mask is None else F.pad(mask, (number, 0), value=True)
            return
        packing = Packing.of(torch.ones(batch, length, dtype=torch.bool, device=x.device) if mask is None else mask)
        numbers = document_numbers(segments.gather(1, packing.order))
        # Behind the real tokens there may be any numbers: they belong to the last document.
        count = torch.where(packing.valid, numbers, 0).amax(1, keepdim=True)
        numbers = torch.minimum(numbers, count)
        documents = int(count.max()) + 1
        places = torch.arange(length, device=x.device) + number * (numbers + 1)
        longer = length + number * documents
        # Where nothing is put stand the tokens, in turn: a document's place of its first token, less their number.
        first = torch.full((batch, documents), longer, device=x.device)
        first = first.scatter_reduce(1, numbers, places, "amin").unsqueeze(-1)
        lead = (first - number + torch.arange(number, device=x.device)).flatten(1)  # without a document: at the end
        source = torch.full((batch, longer + number), length, device=x.device)
        source = source.scatter(1, places, torch.arange(length, device=x.device).expand(batch, -1))
        source = source.scatter(1, lead, length + 1 + torch.arange(number, device=x.device).repeat(batch, documents))
        table = torch.cat([packing.pack(x), x.new_zeros(batch, 1, dim), tokens.expand(batch, -1, -1)], 1)
        source = source[:, :longer]
        self.x = table.gather(1, source.unsqueeze(-1).expand(-1, -1, dim))
        real = F.pad(packing.valid, (0, 1 + number), value=True)
        real[:, length] = False
        self.mask = real.gather(1, source)
        where = torch.full((batch, longer), documents, device=x.device).scatter(1, places, numbers)
        lead_numbers = torch.arange(documents, device=x.device).repeat_interleave(number).expand(batch, -1)
        spare = F.pad(where, (0, number), value=documents)
        self.segments = spare.scatter(1, lead, lead_numbers)[:, :longer]
        self._places, self._packing = places, packing

    def take(self, y: Tensor) -> Tensor:
        """The original tokens of ``(batch, longer, dim)``."""
        if self._places is None:
            return y[:, self._number :]
        y = y.gather(1, self._places.unsqueeze(-1).expand(-1, -1, y.shape[2]))
        return self._packing.unpack(y)
