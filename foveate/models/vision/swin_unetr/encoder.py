"""The Swin transformer of Swin UNETR: patches, blocks, and a merging of places behind every stage."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ....errors import invalid
from ....mixers.neighborhood import check_rate
from ....mixers.parts import Linear
from ....mixers.swin_unetr import ShrinkingWindows
from ..parts import drop_path_rates, to_channels_first, to_channels_last
from ..swin_stage import SwinBlock
from .convolutions import ResidualBlock, channels_last
from .weights import BLOCK, encoder_keys

Merging = Literal["merging", "merging_legacy", "mergingv2"]

#: Which corners of 2 x 2 x 2 places are read, in this order, as (depth, height, width).
CORNERS: dict[str, tuple[str, ...]] = {
    "merging": ("000", "100", "010", "001", "110", "101", "011", "111"),
    "merging_legacy": ("000", "100", "010", "001", "101", "010", "001", "111"),
    "mergingv2": ("000", "001", "010", "011", "100", "101", "110", "111"),
}
#: Of 2 x 2 places there is one order.
CORNERS_2D = ("00", "10", "01", "11")


class PatchMerging(nn.Module):
    """Put the channels of neighbouring places together, norm them, and map them to twice the channels.

    Odd sides are padded with zeros.

    Args:
        rank: axes of the grid.
        dim: channels that come in.
        order: of the corners of a volume, see :data:`CORNERS`.
    """

    official_keys: ClassVar[dict[str, dict[str, str]]] = {"monai": {r"((?:norm|reduction)\.\w+)": r"\1"}}

    def __init__(self, rank: int, dim: int, order: Merging = "merging") -> None:
        super().__init__()
        corners = CORNERS[order] if rank == 3 else CORNERS_2D
        self.corners = [tuple(int(n) for n in corner) for corner in corners]
        self.norm = nn.LayerNorm(len(corners) * dim)
        self.reduction = Linear(len(corners) * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, *grid, dim)`` to ``(B, *half, 2 dim)``, halves rounded up."""
        odd = [size % 2 for size in x.shape[1:-1]]
        if any(odd):
            x = F.pad(x, (0, 0, *itertools.chain(*((0, n) for n in reversed(odd)))))
        every = slice(None)
        places = [x[(every, *(slice(n, None, 2) for n in corner))] for corner in self.corners]
        return self.reduction(self.norm(torch.cat(places, -1)))


class VolumeBlock(SwinBlock):
    """Swin's block, which can be computed again in the backward pass instead of being kept.

    Args:
        dim: channels of a token.
        attn: the mixer.
        mlp_ratio: hidden channels of the feed-forward, in ``dim``.
        drop_path: rate of stochastic depth for both.
        dropout: inside of the feed-forward.
        use_checkpoint: compute it again.
    """

    official_keys: ClassVar[dict[str, dict[str, str]]] = {"monai": BLOCK}

    def __init__(
        self,
        dim: int,
        attn: ShrinkingWindows,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__(dim, attn, mlp_ratio, drop_path, dropout)
        self.use_checkpoint = use_checkpoint

    def forward(self, x: Tensor) -> Tensor:
        """``(B, *grid, dim)`` in and out."""
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(super().forward, x, use_reentrant=False)  # type: ignore[return-value]
        return super().forward(x)


class PatchEmbed(nn.Module):
    """Cut images or volumes into patches and map each to a token; they are padded behind their ends to whole patches.

    Args:
        rank: axes of the grid.
        in_chans: channels that come in.
        dim: channels of a token.
        patch_size: along each axis.
        norm: tokens pass a layer norm.
    """

    def __init__(self, rank: int, in_chans: int, dim: int, patch_size: int, norm: bool) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = (nn.Conv2d if rank == 2 else nn.Conv3d)(in_chans, dim, patch_size, patch_size)
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_chans, *size)`` to ``(B, *grid, dim)``."""
        spare = [-size % self.patch_size for size in x.shape[2:]]
        if any(spare):
            x = F.pad(x, tuple(itertools.chain(*((0, n) for n in reversed(spare)))))
        return self.norm(to_channels_last(self.proj(channels_last(x))))


class Stage(nn.Module):
    """Blocks on maps of one size, perhaps behind a residual convolution (version 2), and a merging behind them."""

    def __init__(self, blocks: Sequence[VolumeBlock], merge: PatchMerging, conv: ResidualBlock | None) -> None:
        super().__init__()
        self.conv = conv
        self.blocks = nn.Sequential(*blocks)
        self.merge = merge

    def forward(self, x: Tensor) -> Tensor:
        """``(B, *grid, dim)`` to ``(B, *half, 2 dim)``."""
        if self.conv is not None:
            x = to_channels_last(self.conv(to_channels_first(x)))
        return self.merge(self.blocks(x))


class SwinEncoder(nn.Module):
    """A Swin transformer that merges places behind every stage, the last one too, and shows the map before each.

    Args:
        in_chans: channels of the image or volume.
        feature_size: channels of the first map; each further one has twice as many.
        patch_size: along a token.
        depths: blocks by stage.
        num_heads: heads by stage.
        window_size: tokens along a window, one number or one for each axis.
        mlp_ratio: hidden channels of the feed-forwards, in those of their stage.
        qkv_bias: queries, keys and values have biases.
        drop_rate: dropout of tokens, behind projections and in feed-forwards.
        attn_drop_rate: dropout of attention's weights.
        drop_path_rate: of the last block; it rises from 0 linearly.
        patch_norm: tokens pass a layer norm.
        use_checkpoint: blocks are computed again in the backward pass.
        spatial_dims: 2 for images, 3 for volumes.
        downsample: order of the corners of a merging.
        use_v2: a residual convolution before each stage.

    Raises:
        InvalidValue: an option that is not possible.
    """

    #: "ssl": checkpoints of monai's pretraining, whose heads are left out.
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "monai": encoder_keys(r"(?:swinViT\.)?"),
        "ssl": {
            **encoder_keys(r"(?:module\.|encoder\.)?"),
            r"(?:module\.|encoder\.)?(?:norm|rotation_\w+|contrastive_\w+|conv|convTrans3d|decoder|out)\..*": "",
            r"(?:module\.|encoder\.)?mask_token": "",
        },
    }

    def __init__(
        self,
        in_chans: int,
        feature_size: int = 24,
        *,
        patch_size: int = 2,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int | Sequence[int] = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        patch_norm: bool = False,
        use_checkpoint: bool = False,
        spatial_dims: int = 3,
        downsample: Merging = "merging",
        use_v2: bool = False,
    ) -> None:
        super().__init__()
        if downsample not in get_args(Merging):
            raise invalid("downsample", downsample, f"it must be one of {', '.join(get_args(Merging))}")
        window = (window_size,) * spatial_dims if isinstance(window_size, int) else tuple(window_size)
        if len(window) != spatial_dims:
            raise invalid("window_size", window_size, f"one number, or {spatial_dims}, are needed")
        for name, rate in (("attn_drop_rate", attn_drop_rate), ("drop_rate", drop_rate)):
            check_rate(name, rate)
        self.patch_embed = PatchEmbed(spatial_dims, in_chans, feature_size, patch_size, patch_norm)
        self.dropout = nn.Dropout(drop_rate)
        common: dict[str, Any] = {"qkv_bias": qkv_bias, "attn_drop": attn_drop_rate, "proj_drop": drop_rate}
        self.stages = nn.ModuleList()
        for i, rates in enumerate(drop_path_rates(drop_path_rate, tuple(depths))):
            dim, blocks = feature_size * 2**i, []
            for j, rate in enumerate(rates):
                shift = tuple(w // 2 for w in window) if j % 2 else 0
                mixer = ShrinkingWindows(dim, num_heads=num_heads[i], window=window, shift=shift, **common)
                blocks.append(VolumeBlock(dim, mixer, mlp_ratio, rate, drop_rate, use_checkpoint))
            conv = ResidualBlock(spatial_dims, dim, dim) if use_v2 else None
            self.stages.append(Stage(blocks, PatchMerging(spatial_dims, dim, downsample), conv))

    @staticmethod
    def convert_official(state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """The encoder's part of a whole network's state dict, where it is one."""
        inside = {k: v for k, v in state_dict.items() if k.startswith("swinViT.")}
        return inside if source == "monai" and inside else dict(state_dict)

    def forward(self, x: Tensor, normalize: bool = True) -> list[Tensor]:
        """``(B, in_chans, *size)`` to one map more than there are stages, ``(B, channels, *grid)``, the finest first.

        Args:
            normalize: maps are normed over their channels, without weights, on their way out.
        """
        x = self.dropout(self.patch_embed(x))
        maps = [x]
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return [to_channels_first(F.layer_norm(m, m.shape[-1:]) if normalize else m) for m in maps]
