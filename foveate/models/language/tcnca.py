"""TCNCA and MEGA as language models: gated layers as released, with their normalised feed-forwards.

Terzic et al., "TCNCA" (arXiv 2312.05605) keep MEGA's trunk (Ma et al., arXiv 2209.10655, section 3.6) and change what
stands before attention::

    x = sqrt(dim) E[token]
    repeat:   x = gated mean of x and attention(norm(x));   x = x + W_2 silu(W_1 norm(x))
    logits = norm(x) E^T

With ``prenorm=False`` each norm stands behind its residual instead. There are no absolute positions: the bias by
distance knows places inside a chunk, and what stands before attention the order of everything else.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InvalidType, invalid, unknown_name
from ...mixers.chunked_attention import ChunkState, GatedChunkedAttention
from ...mixers.layout import TokenLayout
from ...mixers.parts import Linear
from ...mixers.state import State, state
from ...mixers.tcnca import MEGA_KEYS, TCNCA, Mega
from ...registry import check_options, register
from ...spec import ModelSpec
from ..base import Model
from .tokens import check_size, check_tokens

Norm = Literal["layernorm", "rmsnorm", "scalenorm"]
#: MEGA on enwik8 (released code); TCNCA has the same trunk, its convolutions could not be checked.
PUBLISHED: dict[str, dict[str, Any]] = {
    "enwik8": {
        "vocabulary": 256,
        "dim": 512,
        "depth": 12,
        "ffn_dim": 1024,
        "dropout": 0.1,
        "mixer_options": {"z_dim": 128, "h_dim": 1024, "chunk_size": 2048, "rel_bias": "rotary"},
    }
}


class ScaleNorm(nn.Module):
    """RMS norm with one learned number for all channels.

    Args:
        eps: added to the mean square.
    """

    def __init__(self, eps: float, affine: bool) -> None:
        super().__init__()
        self.eps = eps
        self.scalar = nn.Parameter(torch.ones(1)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(..., dim)``."""
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return y if self.scalar is None else self.scalar * y


def build_norm(kind: Norm, dim: int, affine: bool = True, eps: float = 1e-5) -> nn.Module:
    """One of MEGA's norms over channels.

    Raises:
        InvalidValue: another kind.
    """
    if kind not in get_args(Norm):
        raise invalid("norm", kind, f"it must be one of {', '.join(get_args(Norm))}")
    if kind == "layernorm":
        return nn.LayerNorm(dim, eps, elementwise_affine=affine)
    return nn.RMSNorm(dim, eps, elementwise_affine=affine) if kind == "rmsnorm" else ScaleNorm(eps, affine)


class GatedLayer(nn.Module):
    """MEGA's gated attention with its norm and residual: ``u h + (1 - u) x``.

    Args:
        mixer: :class:`~foveate.mixers.tcnca.TCNCA` or :class:`~foveate.mixers.tcnca.Mega`.
        prenorm: the norm stands before the mixer; False: behind the residual.
        norm: "layernorm", "rmsnorm" or "scalenorm".
        affine: the norm has weights.
    """

    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "mega": {
            r"norm\.norm\.(weight|bias|scalar)": r"norm.\1",
            **{pattern: f"mixer.{ours}" if ours else "" for pattern, ours in MEGA_KEYS.items()},
        }
    }

    def __init__(
        self, mixer: GatedChunkedAttention, *, prenorm: bool = True, norm: Norm = "layernorm", affine: bool = True
    ) -> None:
        super().__init__()
        self.mixer, self.prenorm = mixer, prenorm
        self.norm = build_norm(norm, mixer.dim, affine)

    def forward(self, x: Tensor, mask: Tensor | None = None, layout: TokenLayout | None = None) -> Tensor:
        """``(batch, length, dim)`` in and out."""
        return self._behind(x + self.mixer.mix(self._ahead(x), x, mask, layout))

    def prefill(self, x: Tensor, past: ChunkState, mask: Tensor | None = None) -> tuple[Tensor, ChunkState]:
        """Read ``(batch, length, dim)`` after ``past``."""
        y, past = self.mixer.mix_more(self._ahead(x), x, past, mask)
        return self._behind(x + y), past

    def step(self, x_t: Tensor, past: ChunkState) -> tuple[Tensor, ChunkState]:
        """Read one token ``(batch, dim)``."""
        y, past = self.mixer.mix_next(self._ahead(x_t), x_t, past)
        return self._behind(x_t + y), past

    def _ahead(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.prenorm else x

    def _behind(self, x: Tensor) -> Tensor:
        return x if self.prenorm else self.norm(x)


class FeedForward(nn.Module):
    """MEGA's normalised feed-forward: ``x + W_2 silu(W_1 norm(x))``.

    Args:
        dim: channels of a token.
        hidden: inner width.
        prenorm, norm: as in :class:`GatedLayer`.
        dropout: of the hidden layer and the result.
    """

    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "mega": {
            r"norm\.norm\.(weight|bias|scalar)": r"norm.\1",
            r"(fc1|fc2)\.(weight|bias)": r"\1.\2",
        }
    }

    def __init__(
        self, dim: int, hidden: int, *, prenorm: bool = True, norm: Norm = "layernorm", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.prenorm, self.norm = prenorm, build_norm(norm, dim)
        self.fc1, self.fc2 = Linear(dim, hidden), Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dim)`` in and out."""
        h = F.silu(self.fc1(self.norm(x) if self.prenorm else x))
        x = x + self.dropout(self.fc2(self.dropout(h)))
        return x if self.prenorm else self.norm(x)


@state
class TCNCAState(State):
    """Streaming state: one per layer, of constant size if there are chunks."""

    layers: tuple[ChunkState, ...]


@register("model", "tcnca_lm", system="tcnca")
class TCNCALanguageModel(Model):
    """Decoder-only language model of TCNCA's layers: O(n) training, a stream of constant size.

    Args:
        vocabulary: number of different tokens.
        dim: channels of a token.
        depth: number of layers.
        ffn_dim: inner width of the feed-forwards; None: ``2 dim``; 0: none.
        prenorm: norms stand before what they belong to; False: behind the residuals.
        norm: "layernorm", "rmsnorm" or "scalenorm".
        dropout: share of numbers dropped while training.
        tie: the output layer is the embedding matrix.
        mixer_options: of :class:`~foveate.mixers.tcnca.TCNCA`.

    Raises:
        InvalidValue: a size below 1, or an option that is not legal.
    """

    spec = ModelSpec(reads="tokens", tasks=("language",), streaming="exact", onnx=True)
    #: It takes a padding mask.
    masks: ClassVar[bool] = True
    #: What stands in each layer.
    layer_mixer: ClassVar[type[GatedChunkedAttention]] = TCNCA

    def __init__(
        self,
        *,
        vocabulary: int,
        dim: int = 128,
        depth: int = 4,
        ffn_dim: int | None = None,
        prenorm: bool = True,
        norm: Norm = "layernorm",
        dropout: float = 0.0,
        tie: bool = True,
        mixer_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for option, size in (("vocabulary", vocabulary), ("dim", dim), ("depth", depth)):
            check_size(option, size)
        hidden = 2 * dim if ffn_dim is None else ffn_dim
        if not isinstance(hidden, int) or hidden < 0:
            raise invalid("ffn_dim", ffn_dim, "a whole number, 0 for no feed-forward, is needed")
        cls = self.layer_mixer
        options: dict[str, Any] = {"causal": True, "dropout": dropout, **(mixer_options or {})}
        check_options(cls.__name__, cls, {"dim": dim, **options})
        self.vocabulary, self.dim, self.scale = vocabulary, dim, math.sqrt(dim)
        self.embed = nn.Embedding(vocabulary, dim)
        self.layers = nn.ModuleList(GatedLayer(cls(dim, **options), prenorm=prenorm, norm=norm) for _ in range(depth))
        self.feed_forwards = nn.ModuleList(
            FeedForward(dim, hidden, prenorm=prenorm, norm=norm, dropout=dropout) if hidden else nn.Identity()
            for _ in range(depth)
        )
        self.norm = build_norm(norm, dim) if prenorm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.lm_head = None if tie else Linear(dim, vocabulary, bias=False)
        for module in (*self.feed_forwards.modules(), self.embed, self.lm_head):
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

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
    def of_size(cls, name: str, **options: Any) -> Self:
        """A published size, a key of :data:`PUBLISHED`, with random weights; options replace its own.

        Raises:
            UnknownName: no such size.
        """
        if name not in PUBLISHED:
            raise unknown_name("published size", name, PUBLISHED)
        return cls(**{**PUBLISHED[name], **options})

    def forward(self, tokens: Tensor, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Logits of the next token after each.

        Args:
            tokens: int64 ``(batch, length)``.
            mask: bool ``(batch, length)``, True = a real token; masked ones influence no other.
            segments: int64 ``(batch, length)``: documents that share a sample; neighbours with different numbers do not
                see each other.

        Returns:
            ``(batch, length, vocabulary)``.
        """
        return self._head(self.forward_features(tokens, mask, segments))

    def forward_features(self, tokens: Tensor, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """What the output layer reads: ``(batch, length, dim)``."""
        x = self._read(tokens, 2)
        layout = None if segments is None else TokenLayout((tokens.shape[1],), segments=segments)
        for layer, feed_forward in self._blocks():
            x = feed_forward(layer(x, mask, layout))
        return self.norm(x)

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> TCNCAState:
        """The state before the first token."""
        return TCNCAState(tuple(layer.mixer.init_state(batch_size, device, dtype) for layer, _ in self._blocks()))

    def prefill(
        self, x: Tensor, state: TCNCAState, mask: Tensor | None = None, *, last_only: bool = False
    ) -> tuple[Tensor, TCNCAState]:
        """Read token numbers ``(batch, length)``; returns logits ``(batch, length, vocabulary)`` and the new state.

        Args:
            last_only: make the logits of the last token alone, ``(batch, 1, vocabulary)``: what a text goes on from.
        """
        h, layers = self._read(x, 2), []
        for (layer, feed_forward), past in zip(self._blocks(), state.layers, strict=True):
            h, past = layer.prefill(h, past, mask)
            h = feed_forward(h)
            layers.append(past)
        return self._head(self.norm(h[:, -1:] if last_only else h)), TCNCAState(tuple(layers))

    def step(self, x_t: Tensor, state: TCNCAState) -> tuple[Tensor, TCNCAState]:
        """Read one token number per sample ``(batch,)``; returns logits ``(batch, vocabulary)`` and the new state."""
        h, layers = self._read(x_t, 1), []
        for (layer, feed_forward), past in zip(self._blocks(), state.layers, strict=True):
            h, past = layer.step(h, past)
            h = feed_forward(h)
            layers.append(past)
        return self._head(self.norm(h)), TCNCAState(tuple(layers))

    def _blocks(self) -> list[tuple[GatedLayer, nn.Module]]:
        return list(zip(self.layers, self.feed_forwards, strict=True))  # type: ignore[arg-type]

    def _read(self, tokens: Tensor, axes: int) -> Tensor:
        check_tokens(type(self).__name__, tokens, axes)
        return self.dropout(self.embed(tokens) * self.scale)

    def _head(self, x: Tensor) -> Tensor:
        return F.linear(x, self.embed.weight) if self.lm_head is None else self.lm_head(x)


@register("model", "mega_lm", system="tcnca")
class MegaLanguageModel(TCNCALanguageModel):
    """The same trunk with MEGA's moving average in place of the convolutions.

    Args:
        vocabulary, dim, depth, ffn_dim, prenorm, norm, dropout, tie: as in :class:`TCNCALanguageModel`.
        mixer_options: of :class:`~foveate.mixers.tcnca.Mega`.
    """

    spec = ModelSpec(
        reads="tokens",
        tasks=("language",),
        streaming="exact",
        export_note="its scan is unrolled: an ONNX graph of it takes minutes to convert",
    )
    layer_mixer: ClassVar[type[GatedChunkedAttention]] = Mega
