"""The trained language model with its tokeniser: what ``best/`` ships."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import InvalidValue
from ..base import asked_at_once
from ..next_token import NOT_ASKED, token_losses
from ..packaged import Packaged
from ..prepared import scoring
from .protocol import LanguageInfo, scoring_windows
from .tokenise import Decoder, from_plain

#: Logits that are held at once where texts are scored.
LOGITS = 1 << 25


@dataclass(frozen=True, slots=True)
class Score:
    """How well a model foresees a text.

    Attributes:
        nats: minus the natural logarithm of the text's probability.
        tokens: number of predicted tokens.
        bytes: of the text in UTF-8.
    """

    nats: float
    tokens: int
    bytes: int

    @property
    def bits_per_byte(self) -> float:
        """What a byte of the text costs, in bits; NaN without any."""
        return self.nats / self.bytes / math.log(2) if self.bytes else math.nan

    @property
    def nats_per_token(self) -> float:
        """What a token costs, in nats; NaN without any."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp of :attr:`nats_per_token`."""
        return math.exp(min(self.nats_per_token, 700.0))


class TextModel(Packaged):
    """A language model that takes text: token numbers to logits, and text to scores.

    Args:
        model: token numbers ``(B, L)`` to logits ``(B, L, vocabulary)``.
        info: sizes.
        tokeniser: plain values of the tokeniser, everything that it is made of.
        stride: tokens that each window scores, see :meth:`score`.
        reading: how files were read: "column" and "encoding".
    """

    reads = "tokens"

    def __init__(
        self,
        model: nn.Module,
        info: LanguageInfo,
        *,
        tokeniser: Mapping[str, Any],
        stride: int,
        reading: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.model, self.info = model, info
        self.tokeniser = from_plain(tokeniser)
        self.stride, self.reading = stride, dict(reading)

    @property
    def vocabulary(self) -> int:
        """Number of different tokens, with the one between documents."""
        return self.info.vocabulary

    @property
    def config(self) -> dict[str, Any]:
        """All constructor options except the model, as JSON values; the tokeniser is whole in it."""
        return {
            "info": asdict(self.info),
            "tokeniser": self.tokeniser.plain,
            "stride": self.stride,
            "reading": self.reading,
        }

    def interface(self) -> dict[str, Any]:
        """See :meth:`Packaged.interface`."""
        info = self.info
        return {
            "inputs": {
                "tokens": f"int64 `(batch, length)`, token numbers (`model.encode(text)`; tokenizer: "
                f"{self.tokeniser.name}); trained on {info.context}, the first of a text is {self.end_of_document}"
            },
            "output": f"float `(batch, length, {info.vocabulary})`, logits of the token after each",
            "example": f"torch.zeros(1, {info.context}, dtype=torch.int64)",
            "shape": f"(1, {info.context}, {info.vocabulary})",
        }

    @classmethod
    def from_config(cls, model: nn.Module, config: Mapping[str, Any]) -> Self:
        """The wrapper that :attr:`config` describes, around ``model``."""
        info = LanguageInfo.from_plain(config["info"])
        return cls(model, info, **{k: v for k, v in config.items() if k != "info"})

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        """Random arguments of :meth:`forward`."""
        generator = torch.Generator().manual_seed(seed)
        return {"tokens": torch.randint(self.info.vocabulary, (batch, self.info.context), generator=generator)}

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token after each.

        Args:
            tokens: int64 ``(B, L)``; a text begins with :attr:`end_of_document`.

        Returns:
            ``(B, L, vocabulary)``.

        Raises:
            InvalidValue: another shape or dtype, or a number that is not in the vocabulary.
        """
        if tokens.ndim != 2 or tokens.dtype != torch.int64:
            raise InvalidValue(
                f"tokens have shape {tuple(tokens.shape)} and dtype {tokens.dtype}: int64 (batch, length) is needed."
            )
        if not torch.compiler.is_compiling() and tokens.numel():
            low, high = int(tokens.min()), int(tokens.max())
            if low < 0 or high >= self.info.vocabulary:
                raise InvalidValue(
                    f"token {low if low < 0 else high} is not in the vocabulary: numbers are 0 ... "
                    f"{self.info.vocabulary - 1}."
                )
        return self.model(tokens)

    # ----- text

    @property
    def end_of_document(self) -> int:
        """Number of the token that every text begins with, and that ends it where the model learned ends."""
        return self.tokeniser.end_of_document

    @property
    def ends_documents(self) -> bool:
        """Whether the model has seen where documents end: False where it was trained on one text alone."""
        return self.info.packed

    def encode(self, text: str) -> list[int]:
        """Token numbers of a text, without the opening token.

        Raises:
            InvalidValue: the tokeniser has no tokens for all of it.
        """
        return self.tokeniser.tokens(text)[0].tolist()

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token numbers; ends of documents are left out, bytes that are no character are replaced."""
        return self.tokeniser.decode(tokens)

    def decoder(self) -> Decoder:
        """A decoder for a stream of tokens: ``push(token)`` gives the characters that it completes."""
        return self.tokeniser.decoder()

    def score(self, texts: Sequence[str], batch_size: int = 64) -> list[Score]:
        """How well the model foresees texts, each a document of its own.

        As in a comparison: windows of ``info.context`` tokens, each scoring the next ``stride`` of them; where the
        model learned ends of documents (:attr:`ends_documents`), the end is predicted too.

        Args:
            batch_size: windows at a time; one by one where a model's answer depends on the others of its batch.

        Raises:
            InvalidValue: a text that the tokeniser has no tokens for.
        """
        info, end = self.info, self.end_of_document
        scores, streams, rows = [], [], []
        for i, text in enumerate(texts):
            tokens, widths = self.tokeniser.tokens(text)
            stream = np.concatenate([[end], tokens, [end] if self.ends_documents else []]).astype(np.int64)
            streams.append(stream)
            scores.append([0.0, len(stream) - 1, int(widths.sum())])
            if len(stream) > 1:
                w = scoring_windows(0, len(stream) - 1, info.context, self.stride)
                rows += [(i, *map(int, row)) for row in zip(w.begin, w.first, w.end, strict=True)]
        at_once = max(1, min(batch_size, LOGITS // (info.context * info.vocabulary)))
        at_once = asked_at_once(self.model, at_once)
        with scoring(self) as device, torch.no_grad():
            for at in range(0, len(rows), at_once):
                chosen = rows[at : at + at_once]
                longest = max(stop - begin for _, begin, _, stop in chosen)
                x = torch.full((len(chosen), longest), end)
                y = torch.full((len(chosen), longest), NOT_ASKED)
                for row, (i, begin, first, stop) in enumerate(chosen):
                    stream = torch.from_numpy(streams[i])
                    x[row, : stop - begin] = stream[begin:stop]
                    y[row, first - begin : stop - begin] = stream[first + 1 : stop + 1]
                nats = window_nats(self(x.to(device)), y.to(device)).tolist()
                for (i, *_), value in zip(chosen, nats, strict=True):
                    scores[i][0] += value
        return [Score(*score) for score in scores]


def window_nats(logits: Tensor, y: Tensor) -> Tensor:
    """Nats of the targets ``y`` int64 ``(B, L)`` under logits ``(B, L, vocabulary)``, added up: float64 ``(B,)``."""
    return token_losses(logits, y).double().sum(1)
