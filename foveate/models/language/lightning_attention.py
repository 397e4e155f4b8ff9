"""TransNormerLLM (TNL): a language model of linear attention.

Qin et al., "TransNormerLLM: A Faster and Better Large Language Model with Improved TransNormer" (2023, arXiv
2307.14995) and "Various Lengths, Constant Speed" (ICML 2024, arXiv 2405.17381)::

    x = scale * E[token]
    repeat:   x = x + mixer(srmsnorm(x));   x = x + sglu(srmsnorm(x))
    logits = srmsnorm(x) W_head

The mixer is :class:`~foveate.mixers.lightning_attention.LightningAttention` with the layer's decay. There are no
absolute positions and no dropout. The two releases differ in where LRPE stands, in the embeddings' scale and in the
head, and the options cover both: the defaults are those of the models released on the Hugging Face hub
(``TransNormerLLM``); the first author's trainer (``nanoTransNormer``) turns every layer but the first, does not scale,
and ties the head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InvalidType, invalid, unknown_name
from ...mixers.layout import TokenLayout
from ...mixers.lightning_attention import LightningAttention
from ...mixers.linear_attention import Decay, LinearState
from ...mixers.parts import SGLU, Linear, SRMSNorm
from ...mixers.state import State, state
from ...registry import register
from ...spec import ModelSpec
from ..base import Model
from .tokens import check_size, check_tokens

#: Published sizes; vocabularies of 64,000 (released models) and 50,304 (nanoTransNormer).
PUBLISHED: dict[str, dict[str, Any]] = {
    "TNL-385M": {"vocabulary": 64_000, "dim": 1024, "depth": 24, "num_heads": 8, "glu_dim": 2816},
    "TNL-1B": {"vocabulary": 64_000, "dim": 2048, "depth": 16, "num_heads": 16, "glu_dim": 5632},
    "TNL-7B": {"vocabulary": 64_000, "dim": 4096, "depth": 30, "num_heads": 32, "glu_dim": 11_264},
    "nanoTransNormer": {
        "vocabulary": 50_304,
        "dim": 768,
        "depth": 12,
        "num_heads": 12,
        "glu_dim": 1536,
        "lrpe_layers": tuple(range(1, 12)),
        "scale_embedding": False,
        "tie": True,
    },
}


@state
class TransNormerState(State):
    """Streaming state: one matrix per head and layer, whatever was read."""

    layers: tuple[LinearState, ...]


class TransNormerBlock(nn.Module):
    """One pre-norm layer: token mixer and gated feed-forward, both added to the stream.

    Args:
        mixer: the token mixer.
        glu_dim: inner width of the feed-forward.
        bias: the feed-forward has biases.
    """

    def __init__(self, mixer: LightningAttention, glu_dim: int, bias: bool) -> None:
        super().__init__()
        self.token_mixer = mixer
        self.channel_mixer = SGLU(mixer.dim, glu_dim, bias)
        self.norm = SRMSNorm()

    def forward(self, x: Tensor, mask: Tensor | None = None, layout: TokenLayout | None = None) -> Tensor:
        return self._channels(x + self.token_mixer(self.norm(x), mask=mask, layout=layout))

    def prefill(self, x: Tensor, past: LinearState, mask: Tensor | None = None) -> tuple[Tensor, LinearState]:
        y, past = self.token_mixer.prefill(self.norm(x), past, mask)
        return self._channels(x + y), past

    def step(self, x_t: Tensor, past: LinearState) -> tuple[Tensor, LinearState]:
        y, past = self.token_mixer.step(self.norm(x_t), past)
        return self._channels(x_t + y), past

    def _channels(self, x: Tensor) -> Tensor:
        return x + self.channel_mixer(self.norm(x))


@register("model", "transnormer_llm", system="lightning_attention")
class TransNormerLLM(Model):
    """Decoder-only language model of linear attention: O(n) training, O(1) memory per decoded token.

    Args:
        vocabulary: number of different tokens.
        dim: channels of a token.
        depth: number of layers.
        num_heads: heads of each layer; must divide ``dim``.
        glu_dim: inner width of the feed-forwards; None: ``dim``.
        lrpe_layers: indices of the layers that turn queries and keys by learned frequencies.
        decay: rule of the decay rates: "official", "paper" or "none".
        scale_embedding: multiply embeddings by sqrt(dim).
        tie: the output layer is the embedding matrix.
        bias: the linear layers inside the blocks have biases.
        block: chunk length of the attention op; None: the fastest on CPU. Changes speed only.

    Raises:
        InvalidValue: a size below 1, heads that do not divide, or a layer that does not exist.
    """

    spec = ModelSpec(reads="tokens", tasks=("language",), streaming="exact", onnx=True, dynamic_length=True)
    #: It takes a padding mask.
    masks: ClassVar[bool] = True
    official_keys = {
        "TransNormerLLM": {
            r"model\.embed_tokens\.weight": "embed.weight",
            r"model\.layers\.(\d+)\.(token_mixer|channel_mixer)\.(.+)": r"blocks.\1.\2.\3",
            r"lm_head\.weight": "lm_head.weight",
        },
        "nanoTransNormer": {
            r"transnormer\.wte\.weight": "",  # the same tensor as the head's
            r"transnormer\.h\.(\d+)\.(token_mixer|channel_mixer)\.(.+)": r"blocks.\1.\2.\3",
            r"lm_head\.weight": "embed.weight",
        },
    }

    def __init__(
        self,
        *,
        vocabulary: int,
        dim: int = 256,
        depth: int = 4,
        num_heads: int = 4,
        glu_dim: int | None = None,
        lrpe_layers: Sequence[int] = (0,),
        decay: Decay = "official",
        scale_embedding: bool = True,
        tie: bool = False,
        bias: bool = False,
        block: int | None = None,
    ) -> None:
        super().__init__()
        for option, size in (("vocabulary", vocabulary), ("depth", depth)):
            check_size(option, size)
        if any(not 0 <= index < depth for index in lrpe_layers):
            raise invalid("lrpe_layers", tuple(lrpe_layers), f"layers are 0 ... {depth - 1}")
        options = {"num_heads": num_heads, "decay": decay, "bias": bias, "block": block}
        mixers = [LightningAttention(dim, layer=i, depth=depth, lrpe=i in lrpe_layers, **options) for i in range(depth)]
        self.vocabulary, self.dim = vocabulary, dim
        self.scale = math.sqrt(dim) if scale_embedding else 1.0
        self.embed = nn.Embedding(vocabulary, dim)
        self.blocks = nn.ModuleList(TransNormerBlock(m, dim if glu_dim is None else glu_dim, bias) for m in mixers)
        self.norm = SRMSNorm()
        self.lm_head = None if tie else Linear(dim, vocabulary, bias=False)
        self.apply(_initialise)

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
    def of_size(cls, name: str, **options: Any) -> TransNormerLLM:
        """A published size, a key of :data:`PUBLISHED`, with random weights; options replace its own."""
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
        for block in self._blocks():
            x = block(x, mask, layout)
        return self.norm(x)

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> TransNormerState:
        """The state before the first token."""
        return TransNormerState(tuple(b.token_mixer.init_state(batch_size, device, dtype) for b in self._blocks()))

    def prefill(
        self, x: Tensor, state: TransNormerState, mask: Tensor | None = None, *, last_only: bool = False
    ) -> tuple[Tensor, TransNormerState]:
        """Read token numbers ``(batch, length)``; returns logits ``(batch, length, vocabulary)`` and the new state.

        Args:
            last_only: make the logits of the last token alone, ``(batch, 1, vocabulary)``: what a text goes on from.
        """
        h, layers = self._read(x, 2), []
        for block, past in zip(self._blocks(), state.layers, strict=True):
            h, past = block.prefill(h, past, mask)
            layers.append(past)
        return self._head(self.norm(h[:, -1:] if last_only else h)), TransNormerState(tuple(layers))

    def step(self, x_t: Tensor, state: TransNormerState) -> tuple[Tensor, TransNormerState]:
        """Read one token number per sample ``(batch,)``; returns logits ``(batch, vocabulary)`` and the new state."""
        h, layers = self._read(x_t, 1), []
        for block, past in zip(self._blocks(), state.layers, strict=True):
            h, past = block.step(h, past)
            layers.append(past)
        return self._head(self.norm(h)), TransNormerState(tuple(layers))

    def _blocks(self) -> list[TransNormerBlock]:
        return list(self.blocks)  # type: ignore[arg-type]

    def _read(self, tokens: Tensor, axes: int) -> Tensor:
        check_tokens(type(self).__name__, tokens, axes)
        return self.embed(tokens) * self.scale

    def _head(self, x: Tensor) -> Tensor:
        return F.linear(x, self.embed.weight) if self.lm_head is None else self.lm_head(x)


def _initialise(module: nn.Module) -> None:
    """As published: normal weights of deviation 0.02, biases 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
