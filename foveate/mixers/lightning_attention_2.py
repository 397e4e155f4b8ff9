"""TnlAttention: the example layer of Lightning Attention-2.

Qin et al., "Lightning Attention-2: A Free Lunch for Handling Unlimited Sequence Lengths in Large Language Models"
(2024, arXiv 2401.04658); the layer is in the authors' lightning-attention repository. The operator is that of
:mod:`foveate.mixers.lightning_attention`, the rest differs in three places::

    q = silu(x W_q),  k = silu(x W_k),  v = silu(x W_v)         the values too
    y = (sigmoid(x W_down W_up) * layernorm(o)) W_out           a gate of rank dim / heads, a norm with weights
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..measure.cost import Cost, linear_flops
from ..registry import register
from ..spec import MixerSpec, Order
from .linear_attention import Decay, LinearAttention
from .parts import Linear


@register("mixer", "lightning_attention_2")
class TnlAttention(LinearAttention):
    """Causal linear attention with a fixed decay per head and a low-rank output gate: linear time, fixed-size state.

    Masks, segments and streams are those of :class:`~foveate.mixers.lightning_attention.LightningAttention`.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim``.
        causal: must be True.
        decay: rule of the decay rates, see :func:`~foveate.ops.linear_attention.layer_rates`: "official", "paper",
            or "none".
        layer, depth: index of the layer and number of layers, which the rates depend on.
        bias: all six linear layers have biases.
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
        "OpenNLPLab/lightning-attention": {
            r"([qkvo]_proj|norm|output_gate\.[01])\.(weight|bias)": r"\1.\2",
            r"slope_rate": "",
        }
    }

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = True,
        decay: Decay = "official",
        layer: int = 0,
        depth: int = 1,
        bias: bool = False,
        block: int | None = None,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal, decay=decay, layer=layer, depth=depth, block=block)
        self.q_proj = Linear(dim, dim, bias=bias)
        self.k_proj = Linear(dim, dim, bias=bias)
        self.v_proj = Linear(dim, dim, bias=bias)
        self.o_proj = Linear(dim, dim, bias=bias)
        self.norm = nn.LayerNorm(dim)
        self.output_gate = nn.Sequential(Linear(dim, self.head_dim, bias=bias), Linear(self.head_dim, dim, bias=bias))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, v = (self.heads(F.silu(layer(x))) for layer in (self.q_proj, self.k_proj, self.v_proj))
        return q, k, v, F.sigmoid(self.output_gate(x))

    def emit(self, o: Tensor, gate: Tensor) -> Tensor:
        return self.o_proj(gate * self.norm(o))

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Linear layers and the op's products."""
        n, dim = grid[0], self.dim
        flops = linear_flops(batch * n, dim, 4 * dim) + 2 * linear_flops(batch * n, dim, self.head_dim)
        # Saved: x; q, k, v before and after silu; o, its norm, the gate, the gated norm; the gate's inner layer.
        saved = batch * n * (11 * dim + self.head_dim)
        return Cost(
            flops=flops + self.attention_flops(n, batch),
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * saved,
            state_bytes=self.state_bytes(batch),
        )
