"""Layers of the Routing Transformer's language model (arXiv 2003.05997), as lucidrains/routing-transformer has them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...mixers.parts import Linear
from ...mixers.routing_transformer import OnlineKMeans
from ...mixers.routing_transformer.routing_attention import route
from ...ops.handwritten import sum_dtype
from ...ops.local_block_attention import local_block_attention
from ...ops.positions import apply_rope


class PeerAttention(nn.Module):
    """The peer's layer: local heads with rotary distances, routed heads with rotary places, local ones first.

    Args:
        dim: channels of a token.
        num_heads, head_dim: heads and their width; together they may be wider than ``dim``.
        local_heads: how many of the heads are local.
        num_clusters, window: of routed heads.
        local_window: places of a local block.
        local_radius: blocks before a local query's own (and behind it, if not causal).
        causal, share_qk: as the model has them.
        num_mem_kv: learned keys and values of each routed head and cluster.
        decay, commitment: of the centroids.
        rotate_values: values of routed heads are turned too, as in the peer.
        dropout: behind the layer.
    """

    aux_losses: dict[str, Tensor]

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        head_dim: int,
        local_heads: int,
        num_clusters: int,
        window: int,
        local_window: int,
        local_radius: int,
        causal: bool,
        share_qk: bool,
        num_mem_kv: int,
        decay: float,
        commitment: float,
        rotate_values: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.local_heads, self.routed_heads, self.head_dim = local_heads, num_heads - local_heads, head_dim
        self.window, self.local_window, self.local_radius = window, local_window, local_radius
        self.causal, self.rotate_values, self.aux_losses = causal, rotate_values, {}
        far, near = self.routed_heads * head_dim, local_heads * head_dim
        self.local_qkv = Linear(dim, 3 * near) if near else None
        self.to_q = Linear(dim, far, bias=False) if far else None
        self.to_k = Linear(dim, far, bias=False) if far and not share_qk else None
        self.to_v = Linear(dim, far, bias=False) if far else None
        self.kmeans, self.mem_key, self.mem_value = None, None, None
        if far:
            rules = {"decay": decay, "commitment": commitment}
            self.kmeans = OnlineKMeans(self.routed_heads, num_clusters, head_dim, norm="l2", rule="peer", **rules)
            memory = max(num_mem_kv, int(causal and not share_qk))
            if memory:
                shape = (self.routed_heads, num_clusters, memory, head_dim)
                self.mem_key, self.mem_value = (nn.Parameter(torch.randn(shape)) for _ in range(2))
        self.to_out = Linear(num_heads * head_dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "aux_losses": {}}  # they hang on a graph, which cannot be copied

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(batch, length, dim)`` in and out; what is masked, bool ``(batch, length)``, is seen by nobody."""
        outputs, places = [], torch.arange(x.shape[1], device=x.device)
        if self.local_qkv is not None:
            q, k, v = (self._heads(part) for part in self.local_qkv(x).chunk(3, -1))
            q, k = apply_rope(q, places), apply_rope(k, places)
            radius = self.local_radius
            o = local_block_attention(
                q, k, v, self.local_window, back=radius, ahead=0 if self.causal else radius, causal=self.causal,
                mask=mask,
            )  # fmt: skip
            outputs.append(o)
        if self.kmeans is not None and self.to_q is not None and self.to_v is not None:
            wide = sum_dtype(x.dtype)
            q = self._heads(F.linear(x.to(wide), self.to_q.weight.to(wide)))
            k = None if self.to_k is None else self._heads(F.linear(x.to(wide), self.to_k.weight.to(wide)))
            v = self._heads(self.to_v(x))
            q, k = (None if t is None else apply_rope(t, places, interleaved=True) for t in (q, k))
            v = apply_rope(v, places, interleaved=True) if self.rotate_values else v
            assert q is not None
            o, on, scores = route(
                self.kmeans, q, k, v, share_qk=k is None, window=self.window, causal=self.causal, mask=mask,
                count_eps=1e-5, memory_k=self.mem_key, memory_v=self.mem_value,
            )  # fmt: skip
            nearest = [s.argmax(-1) for s in scores]
            losses = [self.kmeans.loss(t, of, mask) for t, of in zip(on, nearest, strict=True)]
            self.aux_losses = {"commitment": torch.stack(losses).mean()}
            if self.training:
                for t, of in zip(on, nearest, strict=True):
                    self.kmeans.observe(t, of, mask)
            outputs.append(o)
        o = torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0]
        return self.dropout(self.to_out(o.transpose(1, 2).flatten(2)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers with a GELU between; gated: ``W2 (gelu(W1 x) * V x)``, both in one layer."""

    def __init__(self, dim: int, hidden: int, glu: bool, bias: bool, dropout: float) -> None:
        super().__init__()
        self.glu, self.dropout = glu, nn.Dropout(dropout)
        self.w1 = Linear(dim, hidden * (2 if glu else 1), bias=bias)
        self.w2 = Linear(hidden, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.w1(x)
        if self.glu:
            x, gate = x.chunk(2, -1)
            return self.w2(self.dropout(F.gelu(x) * gate))
        return self.w2(self.dropout(F.gelu(x)))


class ScaleNorm(nn.Module):
    """``g x / |x|`` with one learned g (Nguyen and Salazar 2019, arXiv 1910.05895)."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-5) * self.g


class RoutedLayer(nn.Module):
    """Attention and feed-forward around residuals: normed before, or scaled behind by a number that begins at 0."""

    def __init__(self, attention: nn.Module, mlp: FeedForward, dim: int, rezero: bool, scale_norm: bool, shifts: Any):
        super().__init__()
        self.attention, self.mlp, self.shifts = attention, mlp, tuple(shifts)
        self.norms = None
        if not rezero:
            self.norms = nn.ModuleList(ScaleNorm() if scale_norm else nn.LayerNorm(dim) for _ in range(2))
        self.scales = nn.ParameterList(torch.zeros(1) for _ in range(2)) if rezero else None

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """What the attention adds."""
        x = self._before(x, 0, mask)
        return self._behind(self.attention(x, mask=mask), 0)

    def feed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """What the feed-forward adds."""
        return self._behind(self.mlp(self._before(x, 1, mask)), 1)

    def _before(self, x: Tensor, which: int, mask: Tensor | None) -> Tensor:
        x = x if self.norms is None else self.norms[which](x)
        if not self.shifts:
            return x
        clear = x if mask is None else x.masked_fill(~mask[..., None], 0)
        width = x.shape[-1] // len(self.shifts)
        parts = [
            F.pad(clear[..., i * width : (i + 1) * width], (0, 0, by, -by)) if by else x[..., i * width :][..., :width]
            for i, by in enumerate(self.shifts)
        ]
        return torch.cat([*parts, x[..., width * len(self.shifts) :]], -1)

    def _behind(self, y: Tensor, which: int) -> Tensor:
        return y if self.scales is None else y * self.scales[which]
