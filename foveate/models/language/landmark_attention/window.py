"""The language model that landmark attention is compared with: the same network, whose streams see a window.

Mohtashami and Jaggi, 2023 (arXiv 2305.16300), section 4.1, as released in ``lm_benchmark`` with ``lm_cache="kv"``: the
cache of Transformer-XL (Dai et al., 2019, arXiv 1901.02860) without its positions. A text is read chunk by chunk, and
every token of a chunk sees the last ``window`` tokens before it, all of them, and its own chunk up to itself::

    o_t = softmax(q_t [k_(c - window) ... k_t]) [v_(c - window) ... v_t]          the chunk begins at c

No landmarks are placed. Text may have some: within their chunk they are landmarks, in the window tokens as any other.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ....errors import InvalidValue, invalid, unknown_name
from ....mixers.kv_cache import KVCache
from ....mixers.landmark_attention import LandmarkAttention
from ....mixers.state import State, state
from ....ops.handwritten import sum_dtype
from ....ops.landmark_attention import landmark_weights
from ....ops.landmark_tiles import Softmax
from ....ops.positions import apply_rope
from ....registry import register
from ....spec import ModelSpec
from ..tokens import check_mask, check_tokens
from .gpt import PUBLISHED, LandmarkBlock, LandmarkGPT


@state
class WindowGPTState(State):
    """Streaming state of :class:`WindowGPT`.

    Attributes:
        layers: keys, not turned, and values of each layer: of the window, then of the open chunk.
        landmarks: bool ``(batch, n)``: which of these slots are landmarks of the open chunk.
        opened: slots of the window.
        read: tokens read.
    """

    layers: tuple[KVCache, ...]
    landmarks: Tensor
    opened: int = 0
    read: int = 0


@register("model", "landmark_gpt_window", system="landmark_attention")
class WindowGPT(LandmarkGPT):
    """Decoder-only language model whose streams see a window of what came before the chunk: no token is looked for.

    Args:
        vocabulary: number of different tokens.
        landmark_id: token number of the landmark, where texts have some; None: they have none.
        dim: channels of a token.
        depth: number of layers.
        num_heads: heads of each layer; must divide ``dim``.
        context: longest text that ``forward`` reads, which sees all of it; None: any.
        max_groups: landmarks that a text may have, and two more; None: any.
        bias: norms and linear layers have biases.
        dropout: of embeddings, of attention weights, behind attention and feed-forward.
        window: tokens before a chunk that a stream keeps and its tokens see.
        chunk: tokens of a stream that are read together, counted from its start; None: every call is a chunk, as
            released.
        rotary: turn queries and keys by their places.
        group_dropout: in training, share of earlier blocks that a query does not look into, where there are landmarks.
        softmax: what landmarks are, of :func:`~foveate.ops.landmark_attention.landmark_attention`.

    Raises:
        InvalidValue: a size below 1, heads that do not divide, or a landmark outside the vocabulary.
    """

    spec = ModelSpec(
        reads="tokens",
        tasks=("language",),
        streaming="own",
        export_note="its layers are landmark attention's, for which ONNX has no form",
    )

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
        window: int = 256,
        chunk: int | None = 256,
        rotary: bool = True,
        group_dropout: float = 0.0,
        softmax: Softmax = "plain",
    ) -> None:
        if not isinstance(window, int) or window < 0:
            raise invalid("window", window, "a whole number of at least 0 is needed")
        super().__init__(
            vocabulary=vocabulary,
            landmark_id=landmark_id,
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            context=context,
            max_groups=max_groups,
            bias=bias,
            dropout=dropout,
            chunk=chunk,
            rotary=rotary,
            group_dropout=group_dropout,
            softmax=softmax,
        )
        self.window, self.chunk = window, chunk
        if not self.reserved:  # no text has landmarks
            self.embed = nn.Embedding(vocabulary, dim)
            nn.init.normal_(self.embed.weight, std=0.02)

    @classmethod
    def of_size(cls, name: str, **options: Any) -> WindowGPT:
        """As :meth:`LandmarkGPT.of_size`: what it was compared with has its sizes."""
        if name not in PUBLISHED:
            raise unknown_name("published size", name, PUBLISHED)
        sizes = {key: value for key, value in PUBLISHED[name].items() if key not in ("block_size", "landmark_id")}
        return cls(**{**sizes, **options})

    def forward_features(self, tokens: Tensor, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """What the output layer reads: ``(batch, length, dim)``. Every token sees all before it.

        Args:
            tokens: int64 ``(batch, length)``.
            mask: bool ``(batch, length)``, True = a real token; masked ones influence no other, but take a position.
            segments: int64 ``(batch, length)``: documents that share a sample; they do not see each other.

        Raises:
            InvalidType: fractions as tokens, or a mask that is not bool.
            InvalidValue: another shape, a text that is too long, or too many landmarks.
        """
        check_tokens(type(self).__name__, tokens, 2)
        check_mask(type(self).__name__, mask, tokens)
        landmarks = tokens == self.landmark_id if self.reserved else None
        few = landmarks is None or self.max_groups is None
        self._check_length(tokens.shape[1], 0 if few else int(landmarks.sum(1).max()))  # type: ignore[union-attr]
        x = self.dropout(self.embed(tokens))
        for block in self._blocks():
            z = block.mixer_norm(x)
            y = block.mixer.mix(z, is_landmark=landmarks, mask=mask, segments=segments)
            x = block.add(x, y if mask is None else y.masked_fill(~mask[..., None], 0))
        return self.norm(x)

    def forward_slots(self, tokens: Tensor) -> Tensor:
        """As :meth:`forward`, which takes text that has landmarks too."""
        return self(tokens)

    def init_state(
        self,
        batch_size: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        folder: str | Path | None = None,
    ) -> WindowGPTState:
        """The state before the first token; there is nothing to keep in a ``folder``.

        Raises:
            InvalidValue: a folder.
        """
        if folder is not None:
            raise invalid("folder", str(folder), "a window is kept in memory")
        weight = self.embed.weight
        device, dtype = device or weight.device, dtype or weight.dtype
        mixers = [cast(LandmarkAttention, block.mixer) for block in self._blocks()]
        layers = tuple(KVCache.empty(batch_size, m.num_heads, m.head_dim, device, dtype) for m in mixers)
        return WindowGPTState(layers, torch.zeros(batch_size, 0, dtype=torch.bool, device=device))

    def prefill(  # type: ignore[override]
        self, x: Tensor, state: WindowGPTState, mask: Tensor | None = None, *, last_only: bool = False
    ) -> tuple[Tensor, WindowGPTState]:
        """Read token numbers ``(batch, length)``; returns logits ``(batch, length, vocabulary)`` and the new state.

        Args:
            last_only: make the logits of the last token alone, ``(batch, 1, vocabulary)``: what a text goes on from.
        """
        name = type(self).__name__
        check_tokens(name, x, 2)
        check_mask(name, mask, x)
        if not isinstance(state, WindowGPTState) or len(state.layers) != len(self.blocks):
            raise InvalidValue(f"{name}: the state is of another model: take one of init_state.")
        if len(state.landmarks) != len(x):
            raise InvalidValue(f"{name}: the state has {len(state.landmarks)} samples, and the tokens {len(x)}.")
        outputs, at = [], 0
        while at < x.shape[1]:
            left = x.shape[1] - at
            count = left if self.chunk is None else min(left, self.chunk - state.read % self.chunk)
            here = slice(at, at + count)
            h, state = self._read_on(x[:, here], state, None if mask is None else mask[:, here])
            if self.chunk is None or state.read % self.chunk == 0:
                state = self._close(state)
            outputs = [h] if last_only else [*outputs, h]
            at += count
        return self._head(outputs[-1][:, -1:] if last_only else torch.cat(outputs, 1)), state

    def _read_on(self, tokens: Tensor, state: WindowGPTState, mask: Tensor | None) -> tuple[Tensor, WindowGPTState]:
        """Tokens of one chunk: what the output layer reads, and the state with them."""
        own = tokens == self.landmark_id if self.reserved else torch.zeros_like(tokens, dtype=torch.bool)
        landmarks, h, layers = torch.cat([state.landmarks, own], 1), self.embed(tokens), []
        for block, past in zip(self._blocks(), state.layers, strict=True):
            y, past = _attend(block, h, past, landmarks, mask)
            h = block.add(h, y)
            layers.append(past)
        return self.norm(h), WindowGPTState(tuple(layers), landmarks, state.opened, state.read + tokens.shape[1])

    def _close(self, state: WindowGPTState) -> WindowGPTState:
        """The state after a chunk: what its tokens saw is forgotten but for the window."""
        kept = min(self.window, state.layers[0].length)
        layers = []
        for past in state.layers:
            last = slice(past.length - kept, past.length)
            batch, heads, _, width = past.keys.shape
            rest = KVCache.empty(batch, heads, width, past.keys.device, past.keys.dtype)
            real = None if past.slots is None else past.slots[:, last] >= 0
            layers.append(rest.extend(past.keys[:, :, last], past.values[:, :, last], real))
        none = state.landmarks.new_zeros(len(state.landmarks), kept)
        return WindowGPTState(tuple(layers), none, kept, state.read)


def _attend(
    block: LandmarkBlock, x: Tensor, past: KVCache, landmarks: Tensor, mask: Tensor | None
) -> tuple[Tensor, KVCache]:
    """A layer's attention from the last tokens to all that are kept, and the cache with them."""
    mixer = block.mixer
    q, k, v = mixer._heads(block.mixer_norm(x))
    past, count = past.extend(k, v, mask), x.shape[1]
    precise = sum_dtype(q.dtype)
    q = q.to(precise)
    k, v = (t[:, :, : past.length].to(precise) for t in (past.keys, past.values))
    if mixer.rotary:
        places = torch.arange(past.length, device=x.device)
        k = apply_rope(k, places, mixer.rope_base, interleaved=True)
        q = apply_rope(q, places[past.length - count :], mixer.rope_base, interleaved=True)
    visible = None if past.slots is None else (past.slots >= 0)[:, None, None]
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    o = (landmark_weights(scores, landmarks, mixer.softmax, visible=visible) @ v).to(x.dtype)
    y = mixer.out_proj(o.transpose(1, 2).flatten(2))
    return y if mask is None else y.masked_fill(~mask[..., None], 0), past
