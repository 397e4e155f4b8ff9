"""Small networks with the shapes of image and video generators, for the claims of ``beyond_llms``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Attention over ``(batch, length, channels)`` through torch's fused call."""

    def __init__(self, channels: int, heads: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Level(nn.Module):
    """A convolution, and self attention over the pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)
        self.attention = SelfAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.convolution(F.silu(self.norm(x)))
        return x + self.attention(x.flatten(2).mT).mT.unflatten(2, x.shape[2:])


class UNet(nn.Module):
    """A U-Net with attention at every level: halved on the way down, doubled on the way up."""

    def __init__(self, levels: int, channels: int = 32) -> None:
        super().__init__()
        self.down = nn.ModuleList([Level(channels) for _ in range(levels)])
        self.up = nn.ModuleList([Level(channels) for _ in range(levels - 1)])

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level in self.down:
            x = level(x if not kept else F.avg_pool2d(x, 2))
            kept.append(x)
        for level, skipped in zip(self.up, kept[-2::-1], strict=True):
            x = level(F.interpolate(x, scale_factor=2.0) + skipped)
        return x


class VideoAttention(nn.Module):
    """Attention over the pixels of each frame, or over the frames of each pixel: ``(batch, C, T, H, W)``."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        self.attention, self.temporal = SelfAttention(channels), temporal

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, frames, height, width = x.shape
        order = (0, 3, 4, 2, 1) if self.temporal else (0, 2, 3, 4, 1)
        tokens = x.permute(order).reshape(-1, frames if self.temporal else height * width, channels)
        y = self.attention(tokens)
        if self.temporal:
            return y.view(batch, height, width, frames, channels).permute(0, 4, 3, 1, 2)
        return y.view(batch, frames, height, width, channels).permute(0, 4, 1, 2, 3)


class Decoder(nn.Module):
    """One transformer layer that reads a cache of keys and values: prefill without one, decoding with one."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.up, self.down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor, keys: Tensor | None = None, values: Tensor | None = None) -> Tensor:
        """``x (batch, length, channels)``; the cache ``(batch, heads, length, width)`` holds this token already."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        k, v = (k if keys is None else keys), (v if values is None else values)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=keys is None)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(x)))
