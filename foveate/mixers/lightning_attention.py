"""Lightning attention as the token mixer of TransNormerLLM (TNL).

Qin et al., "Various Lengths, Constant Speed: Efficient Language Modeling with Lightning Attention" (ICML 2024, arXiv
2405.17381), section 4; the architecture first in arXiv 2307.14995. Per head, with a fixed decay rate s::

    [q | k | v | u] = x W,   q = silu(q),  k = silu(k)
    o_t = sum_{j <= t} exp(-s (t - j)) (q_t . k_j) v_j          no softmax, no scaling, no denominator
    y   = (u * srmsnorm(o)) W_out                               the norm spans all heads

Early layers forget fast, the last one hardly at all. In the first layer queries and keys are turned by LRPE: channel i
becomes the pair ``x_i cos(t theta_i), x_i sin(t theta_i)`` with a learned ``theta``, so that products carry
``cos((t - j) theta_i)``. Time and memory grow linearly with the length; a stream needs one matrix per head.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..measure.cost import Cost, linear_flops
from ..ops.handwritten import sum_dtype
from ..registry import register
from ..spec import MixerSpec, Order
from .linear_attention import Decay, LinearAttention
from .parts import Linear, SRMSNorm


class Lrpe(nn.Module):
    """Linearized relative positional encoding with learned frequencies; doubles the width of queries and keys.

    Args:
        heads, head_dim: the first frequencies fall from 1 to 1e-8 over *all* channels of all heads, as released.
    """

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        width = heads * head_dim
        frequencies = 10000.0 ** (-2.0 * torch.arange(width) / width)
        self.theta = nn.Parameter(frequencies.reshape(heads, 1, head_dim))

    def forward(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Turn queries and keys.

        Args:
            q, k: ``(batch, heads, length, head_dim)``.
            positions: int64 ``(length,)`` or ``(batch, length)``.

        Returns:
            Both ``(batch, heads, length, 2 * head_dim)``.
        """
        theta = self.theta.to(sum_dtype(self.theta.dtype))
        positions = positions.to(theta.dtype)[..., None]
        angles = theta * (positions if positions.ndim == 2 else positions[:, None])
        cos, sin = angles.cos().to(q.dtype), angles.sin().to(q.dtype)
        return torch.cat([q * cos, q * sin], -1), torch.cat([k * cos, k * sin], -1)


@register("mixer", "lightning_attention")
class LightningAttention(LinearAttention):
    """Causal linear attention with a fixed decay per head (TransNormerLLM): linear time, a fixed-size state.

    Masked tokens are taken out of the sequence: decays and positions go on as if they had never been there. (The
    released code only zeroes their values, so that its decays count them.) Of a layout, segments are kept apart, each
    run of equal numbers by itself, and positions are read by LRPE; decays count tokens.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim``.
        causal: must be True; no form in both directions is defined.
        decay: rule of the decay rates, see :func:`~foveate.ops.linear_attention.layer_rates`: "official", "paper",
            or "none", plain linear attention.
        layer, depth: index of the layer and number of layers, which the rates depend on.
        lrpe: turn queries and keys by learned frequencies. A stack built with ``for_layer`` does so in its first layer.
        bias: the projections have biases.
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
        "TransNormerLLM": {r"(qkvu_proj|out_proj)\.(weight|bias)": r"\1.\2", r"lrpe\.theta": "lrpe.theta"}
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
        lrpe: bool = False,
        bias: bool = False,
        block: int | None = None,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal, decay=decay, layer=layer, depth=depth, block=block)
        self.qkvu_proj = Linear(dim, 4 * dim, bias=bias)
        self.out_proj = Linear(dim, dim, bias=bias)
        self.norm = SRMSNorm()
        self.lrpe = Lrpe(num_heads, self.head_dim) if lrpe else None
        self.key_dim = self.head_dim * (2 if lrpe else 1)

    @classmethod
    def for_layer(cls, index: int, depth: int, dim: int, **options: Any) -> Self:
        """Layer ``index`` of ``depth``: its decay rates, and LRPE in the first layer unless ``lrpe`` is given."""
        return super().for_layer(index, depth, dim, **{"lrpe": index == 0, **options})

    def no_weight_decay(self) -> list[nn.Parameter]:
        """Frequencies: pulling them to zero would undo the encoding."""
        return [] if self.lrpe is None else [self.lrpe.theta]

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, v, u = self.qkvu_proj(x).chunk(4, dim=-1)
        return self.heads(F.silu(q)), self.heads(F.silu(k)), self.heads(v), u

    def turn(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return (q, k) if self.lrpe is None else self.lrpe(q, k, positions)

    def emit(self, o: Tensor, gate: Tensor) -> Tensor:
        return self.out_proj(gate * self.norm(o))

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections and the op's products; the norm, the gate and LRPE are elementwise."""
        n, dim = grid[0], self.dim
        # Saved: x, [q k v u], silu(q) and silu(k), o, its norm, the gated norm.
        saved = 10 * batch * n * dim
        if self.lrpe is not None:  # both turned; the angles, their cosines and sines
            saved += 4 * batch * n * dim + 3 * n * dim
        return Cost(
            flops=linear_flops(batch * n, dim, 5 * dim) + self.attention_flops(n, batch),
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * saved,
            state_bytes=self.state_bytes(batch),
        )
