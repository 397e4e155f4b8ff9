"""titans-pytorch's transformer with memory as context: the public re-implementation of Titans' MAC.

lucidrains/titans-pytorch (MIT) after "Titans: Learning to Memorize at Test Time" (arXiv 2501.00663). It differs from
the paper's MAC (:mod:`foveate.mixers.titans.mac`): learned long-term tokens stand behind every segment of C tokens, and
the memory runs before the attention, on the residual stream::

    x = E[token] and long-term tokens, + axial positions
    repeat:   x = x + memory(x);   x = x + attention(x);   x = x + W (silu(g) * u),  [u | g] = norm(x) W
    logits = norm(x without long-term tokens) W_head

The memory may gate the attention's output instead of being added; the residual stream may be several, with
hyper-connections in place of the sums; a memory may take its gradients at weights to which those of the memory before
are added, and be asked and taught by what earlier layers read and gave.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from ...errors import InvalidType, InvalidValue, invalid
from ...mixers.parts import Linear
from ...mixers.ssm import check_positive
from ...mixers.state import State, state
from ...mixers.titans.neural_memory import NeuralMemory
from ...registry import check_options, register
from ...spec import ModelSpec
from ..base import Model
from .titans_attention import AxialPositions, SegmentedAttention
from .titans_layer import Carried, TitansLayer, TitansLayerState
from .tokens import check_size, check_tokens

#: The release's names of a hyper-connection's weights, where ours are others.
CONNECTION = {
    "dynamic_alpha_fn": "dynamic_alpha",
    "pre_branch_scale": "read_scale",
    "residual_scale": "mix_scale",
    "norm.gamma": "gamma",
    "dynamic_beta_fn": "dynamic_beta",
    "h_post_scale": "add_scale",
}


@state
class TitansState(State):
    """Streaming state; its size is bounded by a segment.

    Attributes:
        layers: one per layer.
        tokens: tokens read, the long-term ones not counted.
    """

    layers: tuple[TitansLayerState, ...]
    tokens: int = 0


@register("model", "titans_mac_transformer", system="titans")
class TitansTransformer(Model):
    """The language model of titans-pytorch, whose weights it loads: segments of attention, and neural memories.

    Args:
        vocabulary: number of different tokens.
        dim: channels of a token.
        depth: number of layers.
        num_heads, head_dim: of the attention; their product need not be ``dim``.
        segment: tokens of a segment, C.
        num_longterm: learned tokens behind every segment.
        num_persistent: learned keys and values that all tokens see.
        memory_layers: indices of layers with a memory, from 0; None: all.
        memory_chunk: chunk of the memories, and block of the axial positions; None: a segment with its long-term
            tokens.
        memory_rebase: tokens after which gradients are taken at the memory as it is then; None: never.
        memory: further options of :class:`~foveate.mixers.titans.neural_memory.NeuralMemory`; heads are those of the
            attention unless given.
        gate_attention: the memory gates the attention's output instead of being added.
        weight_residual: a memory takes its gradients at weights to which a learned share of those of the memory before
            is added.
        choose_views: queries, keys and values of a memory are learned blends of what earlier layers read and gave.
        ff_mult: inner width of the feed-forwards over ``dim``, times 2/3.
        streams: residual streams; above 1 with hyper-connections. (The release's own default is 4.)
        sliding: a sliding window as long as a segment instead of segments.

    Raises:
        InvalidValue: an option that is not legal.
        InvalidType: an option of the memory that does not exist.
    """

    spec = ModelSpec(
        reads="tokens",
        tasks=("language",),
        streaming="exact",
        export_note="loops over chunks are unrolled, which the exporter to ONNX takes many minutes for",
    )
    official_keys = {
        "titans_pytorch": {
            r"memory/(.+)": r"\1",
            r"token_emb\.weight": "embed.weight",
            r"axial_pos_emb\.mlps\.(.+)": r"axial.nets.\1",
            r"longterm_mems": "longterm",
            r"expand_streams\.stream_embed": "stream_embed",
            r"layers\.(\d+)\.0\.(.+)": r"layers.\1.memory_connection.\2",
            r"layers\.(\d+)\.1\.(.+)": r"layers.\1.attention_connection.\2",
            r"layers\.(\d+)\.2\.(.+)": r"layers.\1.ff_connection.\2",
            r"layers\.(\d+)\.3\.0\.weight": r"layers.\1.views.norm.weight",
            r"layers\.(\d+)\.3\.1\.(weight|bias)": r"layers.\1.views.scores.\2",
            r"layers\.(\d+)\.5\.(.+)": r"layers.\1.attention.\2",
            r"layers\.(\d+)\.6\.0\.weight": r"layers.\1.ff_norm.weight",
            r"layers\.(\d+)\.6\.1\.(weight|bias)": r"layers.\1.ff_in.\2",
            r"layers\.(\d+)\.6\.3\.(weight|bias)": r"layers.\1.ff_out.\2",
            r"norm\.weight": "norm.weight",
            r"to_logits\.weight": "lm_head.weight",
        }
    }

    def __init__(
        self,
        *,
        vocabulary: int,
        dim: int = 128,
        depth: int = 2,
        num_heads: int = 4,
        head_dim: int = 32,
        segment: int = 32,
        num_longterm: int = 4,
        num_persistent: int = 4,
        memory_layers: Sequence[int] | None = None,
        memory_chunk: int | None = None,
        memory_rebase: int | None = None,
        memory: dict[str, Any] | None = None,
        gate_attention: bool = False,
        weight_residual: bool = False,
        choose_views: bool = False,
        ff_mult: float = 4.0,
        streams: int = 1,
        sliding: bool = False,
    ) -> None:
        super().__init__()
        check_size("vocabulary", vocabulary)
        check_positive(dim=dim, depth=depth, segment=segment, streams=streams)
        layers = range(depth) if memory_layers is None else tuple(memory_layers)
        if any(not 0 <= index < depth for index in layers):
            raise invalid("memory_layers", tuple(layers), f"layers are 0 ... {depth - 1}")
        if not ff_mult > 0 or int(dim * ff_mult * 2 / 3) < 1:
            raise invalid("ff_mult", ff_mult, f"it must leave a channel of dim={dim}")
        attentions = [
            SegmentedAttention(
                dim,
                segment=segment,
                num_longterm=num_longterm,
                num_persistent=num_persistent,
                head_dim=head_dim,
                num_heads=num_heads,
                sliding=sliding,
                value_residual=i > 0,
            )
            for i in range(depth)
        ]
        chunk = memory_chunk or segment + num_longterm
        given = {"dim": dim, "num_heads": num_heads, "head_dim": head_dim, "chunk": chunk, "rebase": memory_rebase}
        given |= memory or {}
        check_options("titans_pytorch_memory", NeuralMemory, given)

        def memory_of(i: int) -> NeuralMemory | None:
            if i not in layers:
                return None
            extras = {**(given.get("extras") or {}), "qkv_receives_diff_views": choose_views and i > 0}
            extras["accept_weight_residual"] = weight_residual and i > min(layers)
            return NeuralMemory(**{**given, "extras": extras})

        self.vocabulary, self.dim, self.segment, self.num_longterm = vocabulary, dim, segment, num_longterm
        self.embed = nn.Embedding(vocabulary, dim)
        self.axial = AxialPositions(dim, chunk)
        self.longterm = nn.Parameter(torch.randn(num_longterm, dim) * 0.02)
        self.stream_embed = nn.Parameter(torch.zeros(streams, dim)) if streams > 1 else None
        self.layers = nn.ModuleList(
            TitansLayer(
                attention, memory_of(i), ff_mult, streams, gate_attention, 4 * i if choose_views and i else None
            )
            for i, attention in enumerate(attentions)
        )
        self.norm = nn.RMSNorm(dim)
        self.lm_head = Linear(dim, vocabulary, bias=False)

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        """The model for a vocabulary of ``info.vocabulary``.

        Raises:
            InvalidType: another task, or packed documents, which share the memory here.
        """
        if info.task not in cls.spec.tasks:
            raise InvalidType(f"{cls.__name__} cannot be built for the task {info.task!r}: it is for token numbers.")
        if getattr(info, "packed", False):
            raise InvalidType("several documents share a sample, and titans_mac_transformer cannot keep them apart.")
        return cls(**{"vocabulary": info.vocabulary, **options})

    @property
    def masks(self) -> bool:
        """Whether it takes a padding mask: segments and positions count every token."""
        return False

    def convert_official(self, state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """Weights by the names of :attr:`official_keys`: those of memories by their own table."""
        found: dict[str, Tensor] = {}
        memories: dict[str, dict[str, Tensor]] = {}
        first = self._layers()[0].attention
        for key, value in state_dict.items():
            inside = re.fullmatch(r"layers\.(\d+)\.(4|5|[012])\.(.+)", key)
            if inside and inside[2] == "4":
                memories.setdefault(inside[1], {})[inside[3]] = value
            elif inside and inside[2] == "5":
                found[f"layers.{inside[1]}.5.{_renamed(first.official_keys[source], inside[3])}"] = value
            elif inside:
                found[f"layers.{inside[1]}.{inside[2]}.{CONNECTION.get(inside[3], inside[3])}"] = value
            else:
                found[key] = value
        for index, weights in memories.items():
            memory = self._layers()[int(index)].memory if int(index) < len(self.layers) else None
            if memory is None:
                raise InvalidValue(f"these weights have a memory in layer {index}, and the model has none there.")
            for key, value in memory.convert_official(weights, source).items():
                name = _renamed(memory.official_keys[source], key)
                if name:
                    found[f"memory/layers.{index}.memory.{name}"] = value
        return found

    def forward(self, tokens: Tensor, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Logits of the next token after each.

        Args:
            tokens: int64 ``(batch, length)``.
            mask, segments: must be None.

        Returns:
            ``(batch, length, vocabulary)``.

        Raises:
            InvalidType: fractions as tokens.
            InvalidValue: another shape, a mask or segments.
        """
        if mask is not None or segments is not None:
            what = "mask" if mask is not None else "segments"
            raise InvalidValue(f"{type(self).__name__} takes no {what}: segments and positions count every token.")
        return self.lm_head(self.forward_features(tokens))

    def forward_features(self, tokens: Tensor) -> Tensor:
        """What the output layer reads: ``(batch, length, dim)``."""
        return self._run(tokens, None)[0]

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> TitansState:
        """The state before the first token."""
        return TitansState(
            tuple(
                TitansLayerState(
                    None if layer.memory is None else layer.memory.init_state(batch_size, device, dtype),
                    layer.attention.empty(batch_size, device, dtype),
                )
                for layer in self._layers()
            )
        )

    def prefill(
        self, x: Tensor, state: TitansState, mask: Tensor | None = None, *, last_only: bool = False
    ) -> tuple[Tensor, TitansState]:
        """Read token numbers ``(batch, length)``; returns logits ``(batch, length, vocabulary)`` and the new state.

        Args:
            last_only: make the logits of the last token alone, ``(batch, 1, vocabulary)``: what a text goes on from.

        Raises:
            InvalidValue: a mask, or a state of another batch.
        """
        if mask is not None:
            raise InvalidValue(f"{type(self).__name__} takes no mask: segments and positions count every token.")
        held = state.layers[0].attention.keys.shape[0]
        if len(state.layers) != len(self.layers) or held != x.shape[0]:
            raise InvalidValue(
                f"{type(self).__name__}: the state has {len(state.layers)} layers of batch {held}; "
                f"{len(self.layers)} of {x.shape[0]} are needed."
            )
        features, after = self._run(x, state)
        assert after is not None
        return self.lm_head(features[:, -1:] if last_only else features), after

    def step(self, x_t: Tensor, state: TitansState) -> tuple[Tensor, TitansState]:
        """Read one token number per sample ``(batch,)``; returns logits ``(batch, vocabulary)`` and the new state."""
        check_tokens(type(self).__name__, x_t, 1)
        logits, state = self.prefill(x_t[:, None], state)
        return logits[:, 0], state

    def _layers(self) -> list[TitansLayer]:
        return list(self.layers)  # type: ignore[arg-type]

    def _slot(self, token: int) -> int:
        """Slots before that of a token, those of the long-term tokens before it not counted if it begins a segment."""
        return token + max(token - 1, 0) // self.segment * self.num_longterm

    def _run(self, tokens: Tensor, past: TitansState | None) -> tuple[Tensor, TitansState | None]:
        check_tokens(type(self).__name__, tokens, 2)
        batch, length = tokens.shape
        read = 0 if past is None else past.tokens
        first, last, whole = self._slot(read), self._slot(read + length), self.segment + self.num_longterm
        # Tokens and long-term tokens in one table; every slot takes a row of it.
        table = torch.cat([self.embed(tokens), self.longterm.expand(batch, -1, -1)], 1)
        slots = torch.arange(first, last, device=tokens.device)
        place = slots % whole
        token = slots // whole * self.segment + place - read
        source = torch.where(place < self.segment, token, length + place - self.segment)
        x = table.index_select(1, source) + self.axial(first, last)
        if self.stream_embed is not None:
            x = x.unsqueeze(-2) + self.stream_embed
        values, layers, carried = None, [], Carried()
        for i, layer in enumerate(self._layers()):
            x, own, after = layer(x, values, None if past is None else past.layers[i], first, carried)
            values = own if values is None else values
            layers.append(after)
        x = x if self.stream_embed is None else x.sum(-2)
        numbers = torch.arange(read, read + length, device=tokens.device)
        x = self.norm(x.index_select(1, numbers + numbers // self.segment * self.num_longterm - first))
        return x, None if past is None else replace(past, layers=tuple(layers), tokens=read + length)


def _renamed(table: Mapping[str, str], key: str) -> str:
    """A key by a module's own table; itself if it is not there, so that it is named as left over."""
    for pattern, replacement in table.items():
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(replacement) if replacement else ""
    return key
