"""A series as overlapping patches, and the encoder layers that read them; parts of PatchTST (arXiv:2211.14730)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...mixers.parts import Linear
from .embedding import sinusoid


def patch_count(length: int, patch_len: int, stride: int) -> int:
    """Patches of a series whose end is padded by ``stride`` steps."""
    return (length - patch_len) // stride + 2


class PatchEmbedding(nn.Module):
    """Cut series into overlapping patches, repeating the last value ``stride`` times at the end, and embed each.

    Args:
        length: steps of a series.
        patch_len, stride: steps of a patch, and from one patch to the next.
        dim: width of a token.
        learned: True: a bias, and positions that are learned from noise in [-0.02, 0.02]; False: no bias, and fixed
            sinusoids.
        dropout: dropout probability.
    """

    def __init__(self, length: int, patch_len: int, stride: int, dim: int, learned: bool, dropout: float) -> None:
        super().__init__()
        self.patch_len, self.stride = patch_len, stride
        self.value = Linear(patch_len, dim, bias=learned)
        patches = patch_count(length, patch_len, stride)
        if learned:
            self.positions = nn.Parameter(torch.empty(patches, dim).uniform_(-0.02, 0.02))
        else:
            self.register_buffer("positions", sinusoid(patches, dim), persistent=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, length)`` to ``(N, patches, dim)``."""
        padded = torch.cat([x, x[:, -1:].expand(-1, self.stride)], 1)
        return self.dropout(self.value(padded.unfold(1, self.patch_len, self.stride)) + self.positions)


class TokenBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of channels over samples and tokens: ``(N, tokens, dim)`` to the same shape."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).view_as(x)


class PatchLayer(nn.Module):
    """A transformer layer with its norms behind the sums::

        s = q k' / sqrt(dim / heads) (+ the s of the layer before)
        x = norm(x + W softmax(s) v)          x = norm(x + W gelu(W x))

    Args:
        dim, heads, hidden: width, heads (they divide it), width of the feed-forward part.
        batch_norm: norms over the batch (:class:`TokenBatchNorm`) instead of over the channels.
        residual: scores are passed from layer to layer and summed (RealFormer).
        dropout: of what is added to ``x``, and inside the feed-forward part.
        attention_dropout: of the attention's weights.
        projection_dropout: of the attention's output, before it is dropped as a summand.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        batch_norm: bool,
        residual: bool,
        dropout: float,
        attention_dropout: float = 0.0,
        projection_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads, self.residual, self.attention_dropout = heads, residual, attention_dropout
        self.query, self.key, self.value, self.out = (Linear(dim, dim) for _ in range(4))
        self.up, self.down = Linear(dim, hidden), Linear(hidden, dim)
        norm = TokenBatchNorm if batch_norm else nn.LayerNorm
        self.attention_norm, self.feed_norm = norm(dim), norm(dim)
        self.dropout, self.projection_dropout = nn.Dropout(dropout), nn.Dropout(projection_dropout)

    def forward(self, x: Tensor, scores: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """``(N, tokens, dim)`` and the scores of the layer before to the same shape and scores to pass on."""
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for linear in (self.query, self.key, self.value)
        )
        rate = self.attention_dropout if self.training else 0.0
        if self.residual:
            product = q @ k.mT * q.shape[-1] ** -0.5
            summed = product if scores is None else product + scores
            y, scores = F.dropout(summed.softmax(-1), rate, rate > 0) @ v, summed
        else:
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=rate)
        y = self.projection_dropout(self.out(y.transpose(1, 2).flatten(2)))
        x = self.attention_norm(x + self.dropout(y))
        y = self.down(self.dropout(F.gelu(self.up(x))))
        return self.feed_norm(x + self.dropout(y)), scores
