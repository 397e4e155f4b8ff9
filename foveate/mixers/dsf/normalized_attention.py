"""Linear attention with its own sum as normaliser, and normalised attention, whose normaliser is learned.

Sieber et al., "Understanding the differences in Foundation Models" (NeurIPS 2024, arXiv 2405.15731, sections 3.1 and
4.1). Both are separable: the weight of token j for token i is a product of features over a normaliser eta_i,

    y_i = W_out  sum_{j <= i} phi(q_i) . psi(k_j) v_j / eta_i.

- Linear attention: ``phi = psi = elu + 1`` and ``eta_i = phi(q_i) . sum_{j <= i} psi(k_j)``, so that weights are
  positive and sum to one.
- Normalised attention: no feature map, and ``eta_i = exp(W_n x_i)`` is read from the token itself. What softmax and
  linear attention sum up from all keys is learned, so queries and keys need not be positive.

As linear systems (:mod:`foveate.analysis.dsf`) both keep one matrix per head; time and memory grow linearly.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import invalid
from ...measure.cost import Cost, linear_flops
from ...registry import register
from ...spec import MixerSpec, Order
from ..base import check_key_width
from ..linear_attention import LinearAttention
from ..parts import Linear

Normalizer = Literal["exp", "softplus", "sigmoid"]
NORMALIZERS = get_args(Normalizer)
#: Largest size of a normaliser's logarithm: what is divided by it stays far from where its square overflows.
FARTHEST = 20.0

#: The official code, IntelligentControlSystems/dsf-mqar, by the release's parameter names.
_PROJECTIONS = {
    r"Wqk\.(weight|bias)": r"qk_proj.\1",
    r"Wv\.(weight|bias)": r"v_proj.\1",
    r"out_proj\.(weight|bias)": r"out_proj.\1",
}


class SplitAttention(LinearAttention):
    """Base of the two: projections whose queries and keys have a width of their own.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim`` and ``qk_dim``.
        causal: must be True.
        qk_dim: width of the queries of all heads, and of the keys; None: ``dim``. The state grows with it.
        bias: the projections of queries, keys and values have biases; that of the output always has one, as released.
        block: chunk length of the op; None: the fastest on CPU for this width. Changes speed only.

    Raises:
        InvalidValue: ``causal=False``, heads that do not divide, or an option that is not legal.
    """

    def __init__(
        self, dim: int, *, num_heads: int, causal: bool, qk_dim: int | None, bias: bool, block: int | None
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal, decay="none", layer=0, depth=1, block=block)
        self.qk_dim = check_key_width(qk_dim, dim, num_heads)
        self.key_dim = self.qk_dim // num_heads
        self.qk_proj = Linear(dim, 2 * self.qk_dim, bias=bias)
        self.v_proj = Linear(dim, dim, bias=bias)
        self.out_proj = Linear(dim, dim)

    @classmethod
    def for_layer(cls, index: int, depth: int, dim: int, **options: Any) -> Self:
        """Layers are alike."""
        return cls(dim, **options)

    def queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both ``(batch, heads, length, qk_dim / num_heads)``, without feature map."""
        q, k = self.qk_proj(x).unflatten(-1, (2, self.num_heads, self.key_dim)).unbind(2)
        return q.transpose(1, 2), k.transpose(1, 2)

    def _projection_flops(self, tokens: int) -> int:
        return linear_flops(tokens, self.dim, 2 * self.qk_dim + 2 * self.dim)


@register("mixer", "dsf_linear_attention", system="dsf")
class DSFLinearAttention(SplitAttention):
    """Causal linear attention, normalised by its own sum (``elu + 1`` features, Katharopoulos et al. 2020).

    The normaliser is one more column of the values, so that numerator and denominator come from one product. Masked
    tokens are taken out of the sequence, segments of a layout are kept apart; positions are not read.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim`` and ``qk_dim``.
        causal: must be True.
        qk_dim: width of the queries of all heads, and of the keys; None: ``dim``. The state grows with it.
        bias: the projections of queries, keys and values have biases; that of the output always has one, as released.
        block: chunk length of the op; None: the fastest on CPU for this width. Changes speed only.

    Raises:
        InvalidValue: ``causal=False``, heads that do not divide, or an option that is not legal.
    """

    spec = MixerSpec(
        ranks=(1,),
        causal="strict",
        bidirectional=False,
        streaming="exact",
        layout=True,
        segments=True,
        order=Order(flops=1.0, memory=1.0),
        onnx=True,
        dynamic_length=True,
    )
    official_keys: ClassVar[dict[str, dict[str, str]]] = {"dsf-mqar": _PROJECTIONS}

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = True,
        qk_dim: int | None = None,
        bias: bool = True,
        block: int | None = None,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal, qk_dim=qk_dim, bias=bias, block=block)
        self.value_dim = self.head_dim + 1

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k = (F.elu(m) + 1 for m in self.queries_and_keys(x))
        return q, k, F.pad(self.heads(self.v_proj(x)), (0, 1), value=1.0), x

    def emit(self, o: Tensor, gate: Tensor) -> Tensor:
        o = o.unflatten(-1, (self.num_heads, self.value_dim))
        # Every real token has a positive sum; a sample without any has none, and its outputs are cleared.
        eta = o[..., -1:].clamp(min=torch.finfo(o.dtype).tiny)
        return self.out_proj((o[..., :-1] / eta).flatten(-2))

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections and the op's products, the normaliser's column among them."""
        tokens = batch * grid[0]
        # Saved: x, queries and keys before and after their feature map, values with the column, what the op says with
        # heads last, the normaliser, and the quotient.
        saved = 2 * self.dim + 4 * self.qk_dim + 2 * self.num_heads * self.value_dim + self.num_heads
        return Cost(
            flops=self._projection_flops(tokens) + self.attention_flops(grid[0], batch),
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * tokens * saved,
            state_bytes=self.state_bytes(batch),
        )


@register("mixer", "normalized_attention", system="dsf")
class NormalizedAttention(SplitAttention):
    """Causal attention without feature map, divided by a normaliser that each query learns to say (linear time).

    Masked tokens are taken out of the sequence, segments of a layout are kept apart; positions are not read.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim`` and ``qk_dim``.
        causal: must be True.
        qk_dim: width of the queries of all heads, and of the keys; None: ``dim``. The state grows with it.
        normalizer: what eta is of ``W_n x``: "exp", as released; "softplus" or "sigmoid", the paper's alternatives.
        bias: all projections but the output's have biases; that one always has, as released.
        block: chunk length of the op; None: the fastest on CPU for this width. Changes speed only.

    Raises:
        InvalidValue: ``causal=False``, heads that do not divide, or an option that is not legal.
    """

    spec = MixerSpec(
        ranks=(1,),
        causal="strict",
        bidirectional=False,
        streaming="exact",
        layout=True,
        segments=True,
        order=Order(flops=1.0, memory=1.0),
        onnx=True,
        dynamic_length=True,
    )
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "dsf-mqar": {**_PROJECTIONS, r"Wn\.(weight|bias)": r"n_proj.\1"}
    }

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = True,
        qk_dim: int | None = None,
        normalizer: Normalizer = "exp",
        bias: bool = True,
        block: int | None = None,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal, qk_dim=qk_dim, bias=bias, block=block)
        if normalizer not in NORMALIZERS:
            raise invalid("normalizer", normalizer, f"it must be one of {', '.join(NORMALIZERS)}")
        self.normalizer: Normalizer = normalizer
        self.n_proj = Linear(dim, num_heads, bias=bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return *self.queries_and_keys(x), self.heads(self.v_proj(x)), self.n_proj(x)

    def emit(self, o: Tensor, gate: Tensor) -> Tensor:
        inverse = torch.exp(-log_normalizer(gate, self.normalizer))
        return self.out_proj((o.unflatten(-1, (self.num_heads, self.head_dim)) * inverse[..., None]).flatten(-2))

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections and the op's products; the normaliser is elementwise."""
        tokens = batch * grid[0]
        # Saved: x, queries and keys, values, what the op says with heads last, the normaliser, and the product.
        saved = 4 * self.dim + 2 * self.qk_dim + 2 * self.num_heads
        return Cost(
            flops=self._projection_flops(tokens)
            + linear_flops(tokens, self.dim, self.num_heads)
            + self.attention_flops(grid[0], batch),
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * tokens * saved,
            state_bytes=self.state_bytes(batch),
        )


def log_normalizer(logits: Tensor, normalizer: Normalizer) -> Tensor:
    """``log eta`` of what a token says, in the shape of ``logits``, between plus and minus :data:`FARTHEST`."""
    if normalizer == "exp":
        log = logits
    else:
        log = F.logsigmoid(logits) if normalizer == "sigmoid" else F.softplus(logits).log()
    return log.clamp(-FARTHEST, FARTHEST)
