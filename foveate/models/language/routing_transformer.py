"""The language model of the Routing Transformer: the PyTorch peer's, weights included, and the released sizes.

Roy et al., "Efficient Content-Based Sparse Attention with Routing Transformers" (TACL 2021, arXiv 2003.05997). The
official code is TensorFlow 1; the version in use, whose weights load here, is lucidrains/routing-transformer::

    x = P E[token]                              P where the embedding is narrower
    repeat:   x = x + attention(norm(x));   x = x + mlp(norm(x))
    logits = W norm(x)

``form`` says whose layers these are: "peer" (rotary positions turned before routing, products over sqrt(head width),
biases everywhere but in the routed heads) or "released"
(:class:`~foveate.mixers.routing_transformer.RoutingAttention` with learned distances, feed-forwards without bias). In
both, which tokens are routed together depends on what follows, so this model scores texts and does not write them;
``LanguageModel("strict_routing_attention")`` writes.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InvalidValue, invalid, unknown_name
from ...mixers.parts import Linear
from ...mixers.routing_transformer import RoutingAttention
from ...registry import register
from ...spec import ModelSpec
from ..base import Model
from .routing_layers import FeedForward, PeerAttention, RoutedLayer
from .tokens import check_size, check_tokens

Form = Literal["peer", "released"]

_RELEASED = {"form": "released", "num_heads": 16, "local_heads": 8, "window": 512, "local_window": 256, "glu": True}
#: Sizes of the released configurations; the vocabulary is that of the data, and must be given.
PUBLISHED: dict[str, dict[str, Any]] = {
    "wikitext103_4k": {**_RELEASED, "dim": 1024, "embedding_dim": 256, "depth": 14, "context": 4096, "hidden": 3072},
    "wikitext103_1k": {**_RELEASED, "dim": 1024, "embedding_dim": 256, "depth": 20, "context": 1024, "hidden": 3072},
    "enwik8_8k": {
        **_RELEASED, "dim": 1024, "depth": 12, "num_heads": 8, "local_heads": 4, "context": 8192, "hidden": 3072,
    },
    "enwik8_12k": {
        **_RELEASED, "dim": 1024, "depth": 12, "num_heads": 8, "local_heads": 4, "context": 12288, "hidden": 3072,
        "window": 256, "local_window": 128,
    },
    "pg19_8k": {
        **_RELEASED, "dim": 1032, "depth": 22, "num_heads": 8, "local_heads": [8] * 21 + [6], "context": 8192,
        "hidden": 4096,
    },
}  # fmt: skip


@register("model", "routing_transformer")
class RoutingTransformer(Model):
    """Language model of routed and local heads; scores texts, and does not write them (see above).

    Args:
        vocabulary: number of different tokens.
        context: longest text; a multiple of ``window``, for there are ``context / window`` clusters.
        dim: channels of a token.
        depth: number of layers.
        num_heads: heads of each layer.
        local_heads: how many of them are local; a list has one number for each layer; None: half.
        head_dim: width of a head; None: ``dim / num_heads``. With "released" it is that.
        window: tokens that a centroid takes.
        local_window: places of a local block; None: ``window``.
        local_radius: blocks that a local query sees before its own (and behind it, if not causal).
        causal: values of later tokens have no influence.
        share_qk: routed keys are the queries; None: if causal.
        num_mem_kv: learned keys and values of each routed head and cluster.
        form: "peer" or "released", whose layers these are.
        embedding_dim: width of the embedding; None: ``dim``.
        hidden: width of the feed-forwards; None: ``4 dim``.
        glu: feed-forwards are gated.
        rezero: no norms; what a layer adds is scaled by a learned number that begins at 0.
        scale_norm: norms scale vectors to one learned length.
        shift_tokens: parts of the channels come from the neighbouring tokens (not causal: of both sides).
        reversible: two streams, each layer's halves reading one and adding to the other.
        tie: the output layer is the embedding matrix.
        features: leave out the output layer: the normed channels are the answer.
        rotate_values: values of routed heads are turned with queries and keys, as in the peer, which looks like a slip.
        decay, commitment: of the centroids.
        dropout: of layers and feed-forwards.

    Raises:
        InvalidValue: an option that is not legal.
    """

    spec = ModelSpec(reads="tokens", tasks=())
    #: It takes a padding mask.
    masks: ClassVar[bool] = True
    #: Why :func:`foveate.generation.generate` refuses it.
    cannot_write: ClassVar[str] = (
        "which tokens its centroids select depends on what follows; LanguageModel('strict_routing_attention') writes"
    )
    _LAYER = r"(?:routing_transformer\.)(?:fn\.)?layers\.(?:layers|blocks)\.(\d+)\."
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "lucidrains": {
            r"sinu_pos_emb\.emb|.*\.rel_pos\.inv_freq|.*\.kmeans\.initted|out\.tensor": "",
            r"token_emb\.weight": "embed.weight",
            r"routing_transformer\.project_(in|out)\.(weight|bias)": r"project_\1.\2",
            r"norm\.(weight|bias)": r"norm.\1",
            r"out\.(weight|bias)": r"head.\1",
            _LAYER + r"(?:0|f\.net)\.norm\.(weight|bias|g)": r"layers.\1.norms.0.\2",
            _LAYER + r"(?:1|g\.net)\.norm\.(weight|bias|g)": r"layers.\1.norms.1.\2",
            _LAYER + r"(?:0|f\.net)\.residual_weight": r"layers.\1.scales.0",
            _LAYER + r"(?:1|g\.net)\.residual_weight": r"layers.\1.scales.1",
            _LAYER
            + r"(?:0|f\.net)\.(?:fn\.)+global_attn\.(kmeans\.means|mem_key|mem_value)": r"layers.\1.attention.\2",
            _LAYER + r"(?:0|f\.net)\.(?:fn\.)+local_to_qkv\.(weight|bias)": r"layers.\1.attention.local_qkv.\2",
            _LAYER + r"(?:0|f\.net)\.(?:fn\.)+(to_[qkv]|to_out)\.weight": r"layers.\1.attention.\2.weight",
            _LAYER + r"(?:1|g\.net)\.(?:fn\.)+(w[12])\.(weight|bias)": r"layers.\1.mlp.\2.\3",
        }
    }

    def __init__(
        self,
        *,
        vocabulary: int,
        context: int = 256,
        dim: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        local_heads: int | list[int] | None = None,
        head_dim: int | None = None,
        window: int = 64,
        local_window: int | None = None,
        local_radius: int = 1,
        causal: bool = True,
        share_qk: bool | None = None,
        num_mem_kv: int = 0,
        form: Form = "peer",
        embedding_dim: int | None = None,
        hidden: int | None = None,
        glu: bool = False,
        rezero: bool = False,
        scale_norm: bool = False,
        shift_tokens: bool = False,
        reversible: bool = False,
        tie: bool = False,
        features: bool = False,
        rotate_values: bool = False,
        decay: float = 0.999,
        commitment: float = 1e-4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = {"vocabulary": vocabulary, "context": context, "dim": dim, "depth": depth, "num_heads": num_heads}
        narrow = dim if embedding_dim is None else embedding_dim
        local_window = window if local_window is None else local_window
        for option, size in {**sizes, "window": window, "local_window": local_window, "embedding_dim": narrow}.items():
            check_size(option, size)
        if context % window:
            raise invalid("context", context, f"it must be a multiple of window={window}: that many clusters there are")
        if form not in get_args(Form):
            raise invalid("form", form, f"it must be one of {', '.join(get_args(Form))}")
        if dim % num_heads and (head_dim is None or form == "released"):
            raise invalid("num_heads", num_heads, f"it must divide dim={dim}, or head_dim must be given")
        each = num_heads // 2 if local_heads is None else local_heads
        each = [each] * depth if isinstance(each, int) else list(each)
        if len(each) != depth or not all(isinstance(n, int) and 0 <= n <= num_heads for n in each):
            raise invalid("local_heads", local_heads, f"one number in 0 ... {num_heads}, or {depth} of them, is needed")
        self.vocabulary, self.context, self.reversible = vocabulary, context, reversible
        share_qk = causal if share_qk is None else share_qk
        shared: dict[str, Any] = {
            "num_heads": num_heads, "num_clusters": context // window, "window": window, "causal": causal,
            "share_qk": share_qk, "num_mem_kv": num_mem_kv, "decay": decay, "commitment": commitment,
        }  # fmt: skip

        def attention(local: int) -> nn.Module:
            if form == "released":
                position = {"position": "relative", "max_relative": 2 * local_window + 1}
                around = {"block": local_window, "look_back": local_radius}
                return RoutingAttention(dim, local_heads=local, **shared, **position, **around)  # type: ignore[arg-type]
            around = {"local_window": local_window, "local_radius": local_radius, "rotate_values": rotate_values}
            width = dim // num_heads if head_dim is None else head_dim
            return PeerAttention(dim, local_heads=local, head_dim=width, dropout=dropout, **shared, **around)

        shifts = () if not shift_tokens else (0, 1) if causal else (-1, 0, 1)
        self.embed = nn.Embedding(vocabulary, narrow)
        nn.init.normal_(self.embed.weight, std=0.02)
        released = form == "released"
        self.project_in = Linear(narrow, dim) if narrow != dim else None
        self.layers = nn.ModuleList(
            RoutedLayer(
                attention(local),
                FeedForward(dim, hidden or 4 * dim, glu, not released, dropout),
                dim, rezero, scale_norm, shifts,
            )
            for local in each
        )  # fmt: skip
        self.project_out = Linear(dim, narrow) if narrow != dim and not features else None
        self.norm_first = released
        self.norm = nn.LayerNorm(dim if released else narrow)
        self.head = Linear(narrow, vocabulary) if not (tie or features) else None
        self.tie = tie and not features

    @classmethod
    def of_size(cls, name: str, **options: Any) -> RoutingTransformer:
        """A released size, a key of :data:`PUBLISHED`, with random weights; options replace its own.

        The release takes the vocabulary from its data, so ``vocabulary`` must be among the options.
        """
        if name not in PUBLISHED:
            raise unknown_name("published size", name, PUBLISHED)
        return cls(**{**PUBLISHED[name], **options})

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits of the next token after each.

        Args:
            tokens: int64 ``(batch, length)``, at most ``context``.
            mask: bool ``(batch, length)``, True = a real token; others influence none, and what is said of them means
                nothing.

        Returns:
            ``(batch, length, vocabulary)``; with ``features`` ``(batch, length, dim)``.

        Raises:
            InvalidType: fractions as tokens.
            InvalidValue: another shape, or a text that is too long.
        """
        check_tokens(type(self).__name__, tokens, 2)
        if tokens.shape[1] > self.context:
            raise InvalidValue(
                f"{type(self).__name__}: the text has {tokens.shape[1]} tokens, and context is {self.context}: make "
                f"the model with a larger context, or cut the text."
            )
        x = self.embed(tokens)
        x = x if self.project_in is None else self.project_in(x)
        x = self._two_streams(x, mask) if self.reversible else self._one_stream(x, mask)
        x = self.norm(x) if self.norm_first else x
        x = x if self.project_out is None else self.project_out(x)
        x = x if self.norm_first else self.norm(x)
        if self.tie:
            return F.linear(x, self.embed.weight)
        return x if self.head is None else self.head(x)

    def _one_stream(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for layer in self._layers():
            x = x + layer.attend(x, mask)
            x = x + layer.feed(x, mask)
        return x

    def _two_streams(self, x: Tensor, mask: Tensor | None) -> Tensor:
        first = second = x
        for layer in self._layers():
            first = first + layer.attend(second, mask)
            second = second + layer.feed(first, mask)
        return (first + second) / 2

    def _layers(self) -> list[RoutedLayer]:
        return list(self.layers)  # type: ignore[arg-type]
