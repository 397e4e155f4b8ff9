"""LanguageModel: a standard pre-norm decoder that makes any causal mixer of sequences into a language model.

The plainest decoder a mixer can stand in, so that a comparison of two mixers compares the mixers::

    x = sqrt(dim) E[token] + positions
    repeat depth times:   x = x + mixer(norm(x));   x = x + mlp(norm(x))
    logits = norm(x) E^T

Sources: the pre-norm decoder of Radford et al., 2019 ("Language Models are Unsupervised Multitask Learners"); the
output layer that is the embedding matrix, and its scale, of Vaswani et al., 2017 (arXiv 1706.03762, section 3.4).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import InvalidType, InvalidValue, invalid
from ...mixers.base import Mixer
from ...mixers.kv_cache import token_positions
from ...mixers.parts import Linear
from ...mixers.state import State, state
from ...ops.documents import document_numbers, document_starts
from ...registry import find
from ...spec import ModelSpec
from ..base import Model
from ..mixer_stack import MixerStack, StackState
from ..readers import learned_positions
from .tokens import check_mask, check_size, check_tokens

Positions = Literal["none", "learned"]


@state
class LanguageState(State):
    """Streaming state of a :class:`LanguageModel`.

    Attributes:
        stack: states of the layers.
        position: int64 ``(batch,)``: real tokens read, which is the next one's position; None without positions.
    """

    stack: StackState
    position: Tensor | None


class LanguageModel(Model):
    """A causal mixer as a language model.

    Where a mixer knows positions of its own (rotary embeddings), it is told to use them, see
    :attr:`~foveate.mixers.Mixer.for_language`; ``mixer_options`` win.

    Args:
        mixer: registered name (or, for a mixer of your own, its class).
        vocabulary: number of different tokens.
        context: longest sequence that is trained on. Only learned positions are bound to it; mixers that tie options to
            the length (:meth:`~foveate.mixers.Mixer.options_for`) are told.
        dim: channels of a token.
        depth: number of layers.
        num_heads: given to mixers that have heads.
        mlp_ratio: hidden width of the feed-forwards over ``dim``; 0 leaves them out.
        dropout: of embeddings, behind mixers and in feed-forwards.
        positions: "none": the mixer's own are all there are; "learned": one vector for each of ``context`` places.
        tie: the output layer is the embedding matrix.
        mixer_options: further options of the mixer.

    Raises:
        UnknownName: no such mixer.
        InvalidValue: a size below 1, or a mixer that cannot be strictly causal or does not read sequences.
    """

    spec = ModelSpec(
        reads="tokens",
        tasks=("language",),
        streaming="exact",
        onnx=True,
        dynamic_length=True,
    )
    named_by_mixer: ClassVar[bool] = True

    def __init__(
        self,
        mixer: str | type[Mixer],
        *,
        vocabulary: int,
        context: int = 256,
        dim: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        positions: Positions = "none",
        tie: bool = True,
        mixer_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for option, size in (("vocabulary", vocabulary), ("context", context), ("dim", dim)):
            check_size(option, size)
        if positions not in get_args(Positions):
            raise invalid("positions", positions, f"it must be one of {', '.join(get_args(Positions))}")
        cls: type[Mixer] = find(mixer, "mixer").load() if isinstance(mixer, str) else mixer
        if cls.spec.causal != "strict" or 1 not in cls.spec.ranks:
            raise InvalidValue(
                f"mixer={mixer!r} is not possible here: a language model needs one that reads sequences and is "
                f"strictly causal."
            )
        self.mixer, self.vocabulary, self.dim, self.context = mixer, vocabulary, dim, context
        self.embed = nn.Embedding(vocabulary, dim)
        self.scale = math.sqrt(dim)
        self.positions = learned_positions((context,), dim) if positions == "learned" else None
        self.dropout = nn.Dropout(dropout)
        self.stack = MixerStack(
            mixer,
            dim,
            depth,
            num_heads=num_heads,
            causal=True,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            mixer_options={**cls.for_language, **cls.options_for((context,)), **(mixer_options or {})},
        )
        promised = cls.spec
        self.spec = replace(
            self.spec,
            streaming=promised.streaming,
            batch_independent=promised.batch_independent,
            deterministic=promised.deterministic,
        )
        self.lm_head = None if tie else Linear(dim, vocabulary, bias=False)
        for matrix in (self.embed, self.lm_head):
            if matrix is not None:
                nn.init.normal_(matrix.weight, std=0.02)

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        """The model for sequences of ``info.context`` tokens of a vocabulary of ``info.vocabulary``.

        Raises:
            InvalidType: another task, or packed documents (``info.packed``) and a mixer that cannot keep them apart.
        """
        if info.task not in cls.spec.tasks:
            raise InvalidType(f"{cls.__name__} cannot be built for the task {info.task!r}: it is for token numbers.")
        model = cls(**{"vocabulary": info.vocabulary, "context": info.context, **options})
        if getattr(info, "packed", False) and not model.stack.layers[0].mixer.spec.segments:
            raise InvalidType("several documents share a sample, and this mixer cannot keep them apart.")
        return model

    @property
    def masks(self) -> bool:
        """Whether it takes a padding mask."""
        return self.stack.masks

    @property
    def pads(self) -> bool:
        """Whether padding in front of a sample leaves everything as it is without: not with special tokens."""
        return self.masks and not self.stack.special

    @property
    def longest(self) -> int | None:
        """Most tokens that it reads; None: any number."""
        return None if self.positions is None else self.context

    def forward(self, tokens: Tensor, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Logits of the next token after each.

        Args:
            tokens: int64 ``(batch, length)``.
            mask: bool ``(batch, length)``, True = a real token; masked ones influence no other and take no position,
                but special tokens of the mixer stand where they would if all were real.
            segments: int64 ``(batch, length)``: documents that share a sample; neighbours with different numbers do not
                see each other.

        Returns:
            ``(batch, length, vocabulary)``.

        Raises:
            InvalidType: fractions as tokens, or a mask that is not bool.
            InvalidValue: another shape; a mask or segments that the mixer does not take; more tokens than there are
                learned positions.
        """
        return self._head(self.forward_features(tokens, mask, segments))

    def forward_features(self, tokens: Tensor, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """What the output layer reads: ``(batch, length, dim)``."""
        check_tokens(type(self).__name__, tokens, 2)
        check_mask(type(self).__name__, mask, tokens)
        segments, places = None if segments is None else document_numbers(segments), None
        if self.positions is not None:
            places = torch.arange(tokens.shape[1], device=tokens.device)
            if segments is not None:
                starts = torch.where(document_starts(segments), places, 0).cummax(1).values
                places = places - starts
            if mask is not None:
                places = token_positions(mask)
        return self.stack(self._read(tokens, places), mask, segments)

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> LanguageState:
        """The state before the first token.

        Raises:
            InvalidType: the mixer does not stream.
        """
        stack = self.stack.init_state(batch_size, device, dtype)
        if self.positions is None:
            return LanguageState(stack, None)
        return LanguageState(stack, torch.zeros(batch_size, dtype=torch.int64, device=device or self.positions.device))

    def prefill(
        self, x: Tensor, state: LanguageState, mask: Tensor | None = None, *, last_only: bool = False
    ) -> tuple[Tensor, LanguageState]:
        """Read token numbers ``(batch, length)``; returns logits ``(batch, length, vocabulary)`` and the new state.

        Args:
            last_only: make the logits of the last token alone, ``(batch, 1, vocabulary)``: what a text goes on from.
        """
        check_tokens(type(self).__name__, x, 2)
        check_mask(type(self).__name__, mask, x)
        places, position = None, state.position
        if position is not None:
            new = torch.arange(x.shape[1], device=x.device) if mask is None else token_positions(mask)
            places = position[:, None] + new
            position = position + (x.shape[1] if mask is None else mask.sum(1))
        features, stack = self.stack.prefill(self._read(x, places), state.stack, mask)
        return self._head(features[:, -1:] if last_only else features), LanguageState(stack, position)

    def step(self, x_t: Tensor, state: LanguageState) -> tuple[Tensor, LanguageState]:
        """Read one token number per sample ``(batch,)``; returns logits ``(batch, vocabulary)`` and the new state."""
        check_tokens(type(self).__name__, x_t, 1)
        features, stack = self.stack.step(self._read(x_t, state.position), state.stack)
        return self._head(features), LanguageState(stack, None if state.position is None else state.position + 1)

    def _read(self, tokens: Tensor, places: Tensor | None) -> Tensor:
        x = self.embed(tokens) * self.scale
        if places is not None and self.positions is not None:
            if not torch.compiler.is_compiling() and int(places.max()) >= self.context:
                raise InvalidValue(
                    f"{type(self).__name__}: there are {self.context} learned positions, and token "
                    f"{int(places.max())} has none: give it less, or make the model with a larger context."
                )
            x = x + self.positions[places]
        return self.dropout(x)

    def _head(self, x: Tensor) -> Tensor:
        return F.linear(x, self.embed.weight) if self.lm_head is None else self.lm_head(x)
