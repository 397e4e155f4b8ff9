"""What hierarchical transformers for images are made of: patches, merging of places, blocks around any mixer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ...mixers.base import Mixer
from ...mixers.parts import Conv2d, Linear
from .parts import DropPath, Mlp, feed, to_channels_first, to_channels_last

#: Makes the mixer of block ``index`` of a stage.
MakeMixer = Callable[[int], Mixer]


class PatchEmbed(nn.Module):
    """Cut an image into patches and map each to a token; the image is padded behind its ends to whole patches.

    Args:
        in_chans: channels of the image.
        dim: channels of a token.
        patch_size: pixels along a patch.
        norm: tokens pass a layer norm.
        norm_eps: of that.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int, norm: bool = True, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size)
        self.norm = nn.LayerNorm(dim, norm_eps) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_chans, H, W)`` to ``(B, h, w, dim)``."""
        spare = [-size % self.patch_size for size in x.shape[2:]]
        if any(spare):
            x = F.pad(x, (0, spare[1], 0, spare[0]))
        return self.norm(to_channels_last(self.proj(x)))


class PatchMerging(nn.Module):
    """Put the channels of 2 x 2 places together, norm them, and map them to ``out_dim``: Swin's way to halve a map.

    Odd sides are padded with zeros. The four places come column by column, as in the release.

    Args:
        dim: channels that come in.
        out_dim: channels of the merged map.
        norm_eps: of the layer norm.
    """

    def __init__(self, dim: int, out_dim: int, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, norm_eps)
        self.reduction = Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, h, w, dim)`` to ``(B, ceil(h / 2), ceil(w / 2), out_dim)``."""
        h, w = x.shape[1:3]
        if h % 2 or w % 2:
            x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))


class SwinBlock(nn.Module):
    """Pre-norm residuals around a mixer and a feed-forward.

    Args:
        dim: channels of a token.
        attn: the mixer.
        mlp_ratio: hidden channels of the feed-forward, in ``dim``.
        drop_path: rate of stochastic depth for both.
        dropout: inside of the feed-forward.
        norm_eps: of the layer norms.
        cpe: what a depthwise convolution 7 x 7 makes of the map is added first, to tell the mixer positions.
    """

    def __init__(
        self,
        dim: int,
        attn: Mixer,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
        cpe: bool = False,
    ) -> None:
        super().__init__()
        self.pos = Conv2d(dim, dim, 7, padding=3, groups=dim) if cpe else None
        self.norm1 = nn.LayerNorm(dim, norm_eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, *grid, dim)`` in and out."""
        if self.pos is not None:
            x = x + to_channels_last(self.pos(to_channels_first(x)))
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return feed(x, self.norm2, self.mlp, self.drop_path)


class SwinStage(nn.Module):
    """Blocks on maps of one size, perhaps behind a merging of places.

    Args:
        dim: channels of the stage.
        make: the mixer of each block.
        drop_path: rate of each block; there are as many blocks.
        in_dim: channels that come in, which 2 x 2 places are merged from; None: nothing is merged.
        mlp_ratio, dropout, norm_eps, cpe: as in :class:`SwinBlock`.
    """

    def __init__(
        self,
        dim: int,
        make: MakeMixer,
        drop_path: Sequence[float],
        in_dim: int | None = None,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
        cpe: bool = False,
    ) -> None:
        super().__init__()
        self.downsample = nn.Identity() if in_dim is None else PatchMerging(in_dim, dim, norm_eps)
        self.blocks = nn.Sequential(
            *(SwinBlock(dim, make(i), mlp_ratio, rate, dropout, norm_eps, cpe) for i, rate in enumerate(drop_path))
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, h, w, channels)`` to ``(B, h', w', dim)``."""
        return self.blocks(self.downsample(x))
