"""The language model of landmark attention: a GPT whose text has landmarks.

Mohtashami and Jaggi, "Random-Access Infinite Context Length for Transformers" (NeurIPS 2023, arXiv 2305.16300), section
4.1, as released in ``lm_benchmark``::

    x = E[token]                                    a landmark is a token too, after every ``block_size`` others
    repeat:   x = x + mixer(norm(x));   x = x + mlp(norm(x))
    logits = norm(x) E^T

The mixer is :class:`~foveate.mixers.landmark_attention.LandmarkAttention`; norms are layer norms, the feed-forward is
four times as wide with a GELU. Read as any other language model it places and drops its landmarks itself;
:meth:`LandmarkGPT.forward_slots` takes text that has them, wherever they stand, and answers for them as well, which is
how the authors train.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....errors import InvalidType, InvalidValue, invalid, unknown_name
from ....mixers.landmark_attention import LandmarkAttention, StreamPositions, jumped_positions
from ....mixers.landmark_cache import LandmarkState, Storage
from ....mixers.landmark_stream import Selection
from ....mixers.layout import TokenLayout
from ....mixers.parts import Linear
from ....mixers.state import State, state
from ....ops.landmark_tiles import Softmax
from ....registry import register
from ....spec import ModelSpec
from ...base import Model
from ..tokens import check_size, check_tokens

#: Published sizes.
PUBLISHED: dict[str, dict[str, Any]] = {
    "PG19": {"vocabulary": 50_304, "landmark_id": 50_260, "dim": 1024, "depth": 12, "num_heads": 8, "block_size": 50},
}


def insert_landmarks(tokens: Tensor, block_size: int, landmark_id: int) -> Tensor:
    """Text with a landmark after every ``block_size`` tokens.

    Args:
        tokens: int64 ``(..., length)``, without landmarks.
        block_size: tokens between landmarks.
        landmark_id: token number of the landmark.

    Returns:
        int64 ``(..., length + length // block_size)``.

    Raises:
        InvalidValue: a block size below 1, or a landmark among the tokens.
    """
    check_size("block_size", block_size)
    if bool((tokens == landmark_id).any()):
        raise InvalidValue(f"landmark_id={landmark_id} is among the tokens: landmarks are placed where none are.")
    length = tokens.shape[-1]
    slots = torch.arange(length + length // block_size, device=tokens.device)
    landmark = slots % (block_size + 1) == block_size
    text = tokens.index_select(-1, (slots - slots // (block_size + 1)).clamp(max=max(0, length - 1)))
    return text.masked_fill(landmark, landmark_id)


def remove_landmarks(tokens: Tensor, landmark_id: int) -> Tensor:
    """The text alone.

    Args:
        tokens: int64 ``(..., slots)``, with equally many landmarks in every row.
        landmark_id: token number of the landmark.

    Returns:
        int64 ``(..., slots - landmarks)``.

    Raises:
        InvalidValue: rows with different numbers of landmarks.
    """
    text = tokens != landmark_id
    counts = text.sum(-1).unique().tolist()
    if len(counts) > 1:
        raise InvalidValue(f"rows have {counts} tokens besides landmarks: take landmarks out of one at a time.")
    return tokens[text].unflatten(0, (*tokens.shape[:-1], counts[0] if counts else 0))


@state
class LandmarkGPTState(State):
    """Streaming state of :class:`LandmarkGPT`.

    Attributes:
        layers: states of the layers.
        read: tokens read, landmarks not counted.
    """

    layers: tuple[LandmarkState, ...]
    read: int = 0


class LandmarkBlock(nn.Module):
    """One pre-norm layer.

    Args:
        mixer: the attention.
        bias: norms and linear layers have biases.
        dropout: behind the attention and the feed-forward.
    """

    def __init__(self, mixer: LandmarkAttention, bias: bool, dropout: float) -> None:
        super().__init__()
        dim = mixer.dim
        self.mixer = mixer
        self.mixer_norm = nn.LayerNorm(dim, bias=bias)
        self.mlp_norm = nn.LayerNorm(dim, bias=bias)
        self.mlp = nn.Sequential(Linear(dim, 4 * dim, bias=bias), nn.GELU(), Linear(4 * dim, dim, bias=bias))
        self.dropout = nn.Dropout(dropout)

    def add(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The layer's output for its input and the attention's."""
        x = x + self.dropout(mixed)
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


@register("model", "landmark_gpt", system="landmark_attention")
class LandmarkGPT(Model):
    """Decoder-only language model with landmark tokens: trained on short texts, it reads long ones block by block.

    Args:
        vocabulary: number of different tokens.
        landmark_id: token number of the landmark, one of the vocabulary that no text uses; None: it has a number behind
            the vocabulary, which logits leave out.
        dim: channels of a token.
        depth: number of layers.
        num_heads: heads of each layer; must divide ``dim``.
        context: longest text, landmarks included, that ``forward`` reads; None: any.
        max_groups: landmarks that a text may have, and two more (the released code asks for such a number); None: any.
        bias: norms and linear layers have biases.
        dropout: of embeddings, of attention weights, behind attention and feed-forward.
        block_size, top_k, max_blocks, chunk, selection, storage: of
            :class:`~foveate.mixers.landmark_attention.LandmarkAttention`.
        stream_positions, rotary, group_dropout, softmax: of it, too.
        position_jump: of it; here positions differ between samples.

    Raises:
        InvalidValue: a size below 1, heads that do not divide, or a landmark outside the vocabulary.
    """

    spec = ModelSpec(
        reads="tokens",
        tasks=("language",),
        streaming="own",
        export_note="landmarks stand where the length of the text has them",
    )
    #: It takes a padding mask.
    masks: ClassVar[bool] = True
    #: Padding in front of a sample moves its landmarks.
    pads: ClassVar[bool] = False
    official_keys = {
        "lm_benchmark": {
            r"transformer\.wte\.weight": "",  # the same tensor as the head's
            r"transformer\.wpe\.freqs": "",  # the constant frequencies of the rotary embedding
            r"transformer\.h\.\d+\.attn\.(bias|rem_token_embedding\.(weight|bias))": "",  # a mask; an unused layer
            r"transformer\.h\.(\d+)\.attn\.c_attn\.(weight|bias)": r"blocks.\1.mixer.qkv_proj.\2",
            r"transformer\.h\.(\d+)\.attn\.c_proj\.(weight|bias)": r"blocks.\1.mixer.out_proj.\2",
            r"transformer\.h\.(\d+)\.ln_1\.(weight|bias)": r"blocks.\1.mixer_norm.\2",
            r"transformer\.h\.(\d+)\.ln_2\.(weight|bias)": r"blocks.\1.mlp_norm.\2",
            r"transformer\.h\.(\d+)\.mlp\.c_fc\.(weight|bias)": r"blocks.\1.mlp.0.\2",
            r"transformer\.h\.(\d+)\.mlp\.c_proj\.(weight|bias)": r"blocks.\1.mlp.2.\2",
            r"transformer\.ln_f\.(weight|bias)": r"norm.\1",
            r"lm_head\.weight": "embed.weight",
        }
    }

    def __init__(
        self,
        *,
        vocabulary: int,
        landmark_id: int | None = None,
        dim: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        context: int | None = None,
        max_groups: int | None = None,
        bias: bool = False,
        dropout: float = 0.0,
        block_size: int = 50,
        top_k: int = 2,
        max_blocks: int | None = None,
        chunk: int | None = 250,
        selection: Selection = "per_token_and_head",
        storage: Storage = "memory",
        stream_positions: StreamPositions = "fitting",
        rotary: bool = True,
        position_jump: int = 0,
        group_dropout: float = 0.0,
        softmax: Softmax = "grouped",
    ) -> None:
        super().__init__()
        for option, size in (("vocabulary", vocabulary), ("depth", depth)):
            check_size(option, size)
        for option, limit in (("context", context), ("max_groups", max_groups)):
            if limit is not None:
                check_size(option, limit)
        if landmark_id is not None and not 0 <= landmark_id < vocabulary:
            raise invalid("landmark_id", landmark_id, f"it must be in the vocabulary, 0 ... {vocabulary - 1}, or None")
        options = {
            "num_heads": num_heads,
            "bias": bias,
            "dropout": dropout,
            "block_size": block_size,
            "top_k": top_k,
            "max_blocks": max_blocks,
            "chunk": chunk,
            "selection": selection,
            "storage": storage,
            "stream_positions": stream_positions,
            "rotary": rotary,
            "position_jump": position_jump,
            "group_dropout": group_dropout,
            "softmax": softmax,
        }
        self.vocabulary, self.dim, self.block_size = vocabulary, dim, block_size
        self.context, self.max_groups, self.position_jump = context, max_groups, position_jump
        self.reserved = landmark_id is not None
        self.landmark_id = vocabulary if landmark_id is None else landmark_id
        self.embed = nn.Embedding(vocabulary + (not self.reserved), dim)
        self.dropout = nn.Dropout(dropout)
        mixers = [LandmarkAttention(dim, **options) for _ in range(depth)]  # type: ignore[arg-type]
        self.blocks = nn.ModuleList(LandmarkBlock(mixer, bias, dropout) for mixer in mixers)
        self.norm = nn.LayerNorm(dim, bias=bias)
        self.apply(_initialise)
        for block in self._blocks():
            for last in (block.mixer.out_proj, block.mlp[2]):
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * depth))  # type: ignore[arg-type]

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        """The model for a vocabulary of ``info.vocabulary`` tokens, packed or not.

        Raises:
            InvalidType: another task.
        """
        if info.task not in cls.spec.tasks:
            raise InvalidType(f"{cls.__name__} cannot be built for the task {info.task!r}: it is for token numbers.")
        return cls(**{"vocabulary": info.vocabulary, **options})

    @classmethod
    def of_size(cls, name: str, **options: Any) -> LandmarkGPT:
        """A published size, a key of :data:`PUBLISHED`, with random weights; options replace its own."""
        if name not in PUBLISHED:
            raise unknown_name("published size", name, PUBLISHED)
        return cls(**{**PUBLISHED[name], **options})

    def forward(self, tokens: Tensor, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Logits of the next token after each.

        Args:
            tokens: int64 ``(batch, length)``, without landmarks.
            mask: bool ``(batch, length)``, True = a real token; masked ones influence no other, but take a position.
            segments: int64 ``(batch, length)``: documents that share a sample, one number each; they do not see each
                other. Landmarks stand where the sample has them, so a document's first block may be shorter.

        Returns:
            ``(batch, length, vocabulary)``.

        Raises:
            InvalidType: fractions as tokens.
            InvalidValue: another shape, a landmark among the tokens, or a text that is too long.
        """
        return self._head(self.forward_features(tokens, mask, segments))

    def forward_features(self, tokens: Tensor, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """What the output layer reads: ``(batch, length, dim)``."""
        self._check(tokens, 2)
        layout = self._blocks()[0].mixer.plan_next(0, tokens.shape[1])
        self._check_length(layout.length, layout.length - tokens.shape[1])
        if segments is not None:
            layout = layout.with_segments(segments)
        ids, mask = self._widen(tokens, mask, layout)
        if self.training and self.position_jump > 1:
            layout = replace(layout, positions=jumped_positions(ids == self.landmark_id, self.position_jump))
        x = self.dropout(self.embed(ids))
        for block in self._blocks():
            x = block.add(x, block.mixer(block.mixer_norm(x), mask=mask, layout=layout))
        return layout.extract(self.norm(x))

    def forward_slots(self, tokens: Tensor) -> Tensor:
        """Logits of the next token after each token and each landmark of a text that has landmarks.

        Args:
            tokens: int64 ``(batch, slots)``; every ``landmark_id`` is a landmark, wherever it stands.

        Returns:
            ``(batch, slots, vocabulary)``.

        Raises:
            InvalidType: fractions as tokens.
            InvalidValue: another shape, a text that is too long, or too many landmarks.
        """
        check_tokens(type(self).__name__, tokens, 2)
        landmark = tokens == self.landmark_id
        self._check_length(tokens.shape[1], int(landmark.sum(1).max()))
        positions = None
        if self.training and self.position_jump > 1:
            positions = jumped_positions(landmark, self.position_jump)
        x = self.dropout(self.embed(tokens))
        for block in self._blocks():
            x = block.add(x, block.mixer.mix(block.mixer_norm(x), is_landmark=landmark, positions=positions))
        return self._head(self.norm(x))

    # Streams ----------------------------------------------------------------------------------------------------------

    def init_state(
        self,
        batch_size: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        folder: str | Path | None = None,
    ) -> LandmarkGPTState:
        """The state before the first token; ``folder`` as
        :meth:`foveate.mixers.landmark_attention.LandmarkAttention.init_state` has it."""
        mixers = [block.mixer for block in self._blocks()]
        return LandmarkGPTState(tuple(mixer.init_state(batch_size, device, dtype, folder) for mixer in mixers))

    def prefill(
        self, x: Tensor, state: LandmarkGPTState, mask: Tensor | None = None, *, last_only: bool = False
    ) -> tuple[Tensor, LandmarkGPTState]:
        """Read token numbers ``(batch, length)``; returns logits ``(batch, length, vocabulary)`` and the new state.

        Landmarks that are due are read in between.

        Args:
            last_only: make the logits of the last token alone, ``(batch, 1, vocabulary)``: what a text goes on from.
        """
        self._check(x, 2)
        if not isinstance(state, LandmarkGPTState) or len(state.layers) != len(self.blocks):
            raise InvalidValue(f"{type(self).__name__}: the state is of another model: take one of init_state.")
        layout, layers = self._blocks()[0].mixer.plan_next(state.read, x.shape[1]), []
        ids, mask = self._widen(x, mask, layout)
        h = self.embed(ids)
        for block, past in zip(self._blocks(), state.layers, strict=True):
            y, past = block.mixer.prefill(block.mixer_norm(h), past, mask)
            h = block.add(h, y)
            layers.append(past)
        h = layout.extract(h)
        h = self.norm(h[:, -1:] if last_only else h)
        return self._head(h), LandmarkGPTState(tuple(layers), state.read + x.shape[1])

    def step(self, x_t: Tensor, state: LandmarkGPTState) -> tuple[Tensor, LandmarkGPTState]:
        """Read one token number per sample ``(batch,)``; returns logits ``(batch, vocabulary)`` and the new state."""
        check_tokens(type(self).__name__, x_t, 1)
        logits, state = self.prefill(x_t[:, None], state)
        return logits[:, 0], state

    def _blocks(self) -> list[LandmarkBlock]:
        return list(self.blocks)  # type: ignore[arg-type]

    def _widen(self, tokens: Tensor, mask: Tensor | None, layout: TokenLayout) -> tuple[Tensor, Tensor | None]:
        """Tokens and mask with the layout's landmarks in place; these are real."""
        assert layout.source is not None
        source = layout.source.to(tokens.device)
        ids = tokens.index_select(1, source.clamp(min=0)).masked_fill(source < 0, self.landmark_id)
        return ids, layout.widen_mask(mask)

    def _head(self, x: Tensor) -> Tensor:
        return F.linear(x, self.embed.weight[: self.vocabulary])

    def _check(self, tokens: Tensor, axes: int) -> None:
        name = type(self).__name__
        check_tokens(name, tokens, axes)
        if self.reserved and not torch.compiler.is_compiling() and bool((tokens == self.landmark_id).any()):
            raise InvalidValue(
                f"{name}: token {self.landmark_id}, the landmark, is among the tokens: it is placed by the model; "
                f"forward_slots takes text that has landmarks."
            )

    def _check_length(self, slots: int, landmarks: int) -> None:
        name = type(self).__name__
        if self.context is not None and slots > self.context:
            raise InvalidValue(
                f"{name}: the text has {slots} tokens, landmarks included, and context is {self.context}: read it in "
                f"pieces with prefill."
            )
        if self.max_groups is not None and landmarks + 2 > self.max_groups:
            raise InvalidValue(
                f"{name}: the text has {landmarks} landmarks, for which max_groups must be at least {landmarks + 2}, "
                f"not {self.max_groups}."
            )


def _initialise(module: nn.Module) -> None:
    """As published: normal weights of deviation 0.02, biases 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
