"""Parts of NAT and DiNAT: tokens by convolutions or patches, their merging, and blocks of neighborhood attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....mixers.dinat import NeighborhoodAttention
from ....mixers.parts import Linear
from ..parts import DropPath, Mlp, convolve, feed, to_channels_last


class ConvTokenizer(nn.Module):
    """Two convolutions 3 x 3 of stride 2 with nothing between them, and a norm; with ``stride`` 2 the second has 1."""

    def __init__(self, in_chans: int, dim: int, stride: int) -> None:
        super().__init__()
        first = nn.Conv2d(in_chans, dim // 2, 3, 2, 1)
        self.proj = nn.Sequential(first, nn.Conv2d(dim // 2, dim, 3, stride // 2, 1))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, h, w, dim)``, sides rounded up."""
        return self.norm(to_channels_last(self.proj(x.contiguous(memory_format=torch.channels_last))))


class ConvDownsampler(nn.Module):
    """A convolution 3 x 3 of stride 2 to twice the channels, and a norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(dim, 2 * dim, 3, 2, 1, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, h, w, dim)`` to ``(B, ceil(h / 2), ceil(w / 2), 2 dim)``."""
        return self.norm(convolve(self.reduction, x))


class PatchTokenizer(nn.Module):
    """A linear map of each patch, and a norm; images are filled up with zeros at the right and the bottom."""

    def __init__(self, in_chans: int, dim: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(in_chans, dim, patch, patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, ceil(H / patch), ceil(W / patch), dim)``."""
        down, right = (-size % self.patch for size in x.shape[2:])
        if down or right:
            x = F.pad(x, (0, right, 0, down))
        return self.norm(to_channels_last(self.proj(x.contiguous(memory_format=torch.channels_last))))


class PatchMerging(nn.Module):
    """Four neighbouring tokens, column by column, normed and mapped to one of twice the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, h, w, dim)`` to ``(B, ceil(h / 2), ceil(w / 2), 2 dim)``; odd sides are filled up with zeros."""
        down, right = (size % 2 for size in x.shape[1:3])
        if down or right:
            x = F.pad(x, (0, 0, 0, right, 0, down))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, h / 2, 2, w / 2, 2, dim)
        return self.reduction(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))


class Block(nn.Module):
    """Attention to neighbours and a feed-forward, each behind a norm.

    Args:
        dim: channels.
        mlp_ratio: hidden channels of the feed-forward over ``dim``.
        drop: dropout of the feed-forward.
        drop_path: rate of stochastic depth.
        layer_scale: what the factors of both branches start at; None: there are none.
        attention: options of :class:`~foveate.mixers.dinat.NeighborhoodAttention`.
    """

    def __init__(
        self,
        dim: int,
        mlp_ratio: float,
        drop: float,
        drop_path: float,
        layer_scale: float | None,
        attention: dict[str, Any],
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = NeighborhoodAttention(dim, proj_drop=drop, **attention)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)
        self.drop_path = DropPath(drop_path)
        self.gamma1, self.gamma2 = (
            None if layer_scale is None else nn.Parameter(torch.full((dim,), float(layer_scale))) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, h, w, dim)`` in and out."""
        y = self.attn(self.norm1(x))
        x = x + self.drop_path(y if self.gamma1 is None else y * self.gamma1)
        return feed(x, self.norm2, self.mlp, self.drop_path, self.gamma2)


class Level(nn.Module):
    """Blocks of one width, and what makes the next level's tokens of theirs."""

    def __init__(self, blocks: list[Block], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample
