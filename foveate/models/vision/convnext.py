"""ConvNeXt: a convolutional network with the proportions of a Swin Transformer.

Liu et al., "A ConvNet for the 2020s" (CVPR 2022, arXiv 2201.03545). A block is a depthwise convolution of 7 x 7, a
layer norm over channels, and a feed-forward of four times the width whose output has a learned factor for each channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...mixers.parts import Conv2d
from ...registry import register
from ...spec import ModelSpec
from .backbone import Backbone, Feature, make_classifier
from .parts import DropPath, Mlp, check_stages, convolve, drop_path_rates, to_channels_first, to_channels_last

_EPS = 1e-6
_IN_BLOCK = r"stages\.(\d+)\.(\d+)\."
_PEER = r"(?:convnext\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\."


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution and a feed-forward, as one residual.

    Args:
        dim: channels.
        layer_scale: starting value of the channels' factors.
        drop_path: rate of stochastic depth.
        kernel_size: of the convolution.
    """

    def __init__(self, dim: int, layer_scale: float, drop_path: float, kernel_size: int = 7) -> None:
        super().__init__()
        self.conv_dw = Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, _EPS)
        self.mlp = Mlp(dim, 4 * dim)
        self.gamma = nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, h, w, dim)`` in and out."""
        y = self.norm(self._filtered(x))
        if self.drop_path.drops:
            return x + self.drop_path(self.mlp(y) * self.gamma)
        return self.mlp.added_to(x, y, self.gamma)

    def _filtered(self, x: Tensor) -> Tensor:
        return to_channels_last(self.conv_dw(to_channels_first(x)))


class Shrink(nn.Module):
    """A convolution whose stride is its width, and a layer norm over channels before or behind it."""

    def __init__(self, in_dim: int, dim: int, stride: int, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.conv = nn.Conv2d(in_dim, dim, stride, stride)
        self.norm = nn.LayerNorm(in_dim if norm_first else dim, _EPS)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, h, w, in_dim)`` to ``(B, h // stride, w // stride, dim)``."""
        x = self.norm(x) if self.norm_first else x
        x = convolve(self.conv, x)
        return x if self.norm_first else self.norm(x)


@register("model", "convnext")
class ConvNeXt(Backbone):
    """ConvNeXt: depthwise convolutions of 7 x 7 between feed-forwards, on a pyramid of maps.

    Sides that a stride does not divide lose their last pixels, as in the release.

    Args:
        in_chans: channels of the image.
        num_classes: 0: no classifier.
        depths: blocks by stage.
        dims: channels by stage.
        patch_size: pixels along a place of the first map.
        layer_scale: starting value of the factors behind feed-forwards.
        dropout: before the classifier.
        drop_path_rate: of the last block; it rises from 0 linearly.

    Raises:
        InvalidValue: depths and dims of different length; when called, an image that the strides leave nothing of.
    """

    spec = ModelSpec(reads="image", tasks=("classify-images",))
    configurations: ClassVar[dict[str, dict[str, Any]]] = {
        "convnext_tiny": {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768), "drop_path_rate": 0.1},
        "convnext_small": {"depths": (3, 3, 27, 3), "dims": (96, 192, 384, 768), "drop_path_rate": 0.4},
        "convnext_base": {"depths": (3, 3, 27, 3), "dims": (128, 256, 512, 1024), "drop_path_rate": 0.5},
        "convnext_large": {"depths": (3, 3, 27, 3), "dims": (192, 384, 768, 1536), "drop_path_rate": 0.5},
        "convnext_xlarge": {"depths": (3, 3, 27, 3), "dims": (256, 512, 1024, 2048), "drop_path_rate": 0.2},
    }
    published_costs: ClassVar[dict[str, tuple[float, float, int]]] = {
        "convnext_tiny": (29, 4.5, 224),
        "convnext_small": (50, 8.7, 224),
        "convnext_base": (89, 15.4, 224),
        "convnext_large": (198, 34.4, 224),
        "convnext_xlarge": (350, 60.9, 224),
    }
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "official": {
            r"downsample_layers\.0\.0\.(\w+)": r"stem.conv.\1",
            r"downsample_layers\.0\.1\.(\w+)": r"stem.norm.\1",
            r"downsample_layers\.(\d+)\.0\.(\w+)": r"stages.\1.downsample.norm.\2",
            r"downsample_layers\.(\d+)\.1\.(\w+)": r"stages.\1.downsample.conv.\2",
            rf"{_IN_BLOCK}dwconv\.(\w+)": r"stages.\1.blocks.\2.conv_dw.\3",
            rf"{_IN_BLOCK}norm\.(\w+)": r"stages.\1.blocks.\2.norm.\3",
            rf"{_IN_BLOCK}pwconv([12])\.(\w+)": r"stages.\1.blocks.\2.mlp.fc\3.\4",
            rf"{_IN_BLOCK}gamma": r"stages.\1.blocks.\2.gamma",
            r"(norm|head)\.(\w+)": r"\1.\2",
        },
        "timm": {
            r"stem\.0\.(\w+)": r"stem.conv.\1",
            r"stem\.1\.(\w+)": r"stem.norm.\1",
            r"stages\.(\d+)\.downsample\.0\.(\w+)": r"stages.\1.downsample.norm.\2",
            r"stages\.(\d+)\.downsample\.1\.(\w+)": r"stages.\1.downsample.conv.\2",
            r"(stages\.\d+\.blocks\.\d+\.(?:gamma|(?:conv_dw|norm|mlp\.fc[12])\.\w+))": r"\1",
            r"head\.norm\.(\w+)": r"norm.\1",
            r"head\.fc\.(\w+)": r"head.\1",
        },
        "transformers": {
            r"(?:convnext\.)?embeddings\.patch_embeddings\.(\w+)": r"stem.conv.\1",
            r"(?:convnext\.)?embeddings\.layernorm\.(\w+)": r"stem.norm.\1",
            r"(?:convnext\.)?encoder\.stages\.(\d+)\.downsampling_layer\.0\.(\w+)": r"stages.\1.downsample.norm.\2",
            r"(?:convnext\.)?encoder\.stages\.(\d+)\.downsampling_layer\.1\.(\w+)": r"stages.\1.downsample.conv.\2",
            rf"{_PEER}dwconv\.(\w+)": r"stages.\1.blocks.\2.conv_dw.\3",
            rf"{_PEER}layernorm\.(\w+)": r"stages.\1.blocks.\2.norm.\3",
            rf"{_PEER}pwconv([12])\.(\w+)": r"stages.\1.blocks.\2.mlp.fc\3.\4",
            rf"{_PEER}layer_scale_parameter": r"stages.\1.blocks.\2.gamma",
            r"(?:convnext\.)?layernorm\.(\w+)": r"norm.\1",
            r"classifier\.(\w+)": r"head.\1",
        },
    }

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        *,
        depths: tuple[int, ...] = (3, 3, 9, 3),
        dims: tuple[int, ...] = (96, 192, 384, 768),
        patch_size: int = 4,
        layer_scale: float = 1e-6,
        dropout: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_stages("ConvNeXt", depths=depths, dims=dims)
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, dims[-1]
        self.minimum_size = patch_size * 2 ** (len(dims) - 1)
        self.stem = Shrink(in_chans, dims[0], patch_size, norm_first=False)
        rates = drop_path_rates(drop_path_rate, depths)
        self.stages = nn.ModuleList()
        for i, dim in enumerate(dims):
            blocks = [ConvNeXtBlock(dim, layer_scale, rate) for rate in rates[i]]
            down = Shrink(dims[i - 1], dim, 2, norm_first=True) if i else nn.Identity()
            self.stages.append(ConvNeXtStage(down, blocks))
        self.feature_info = tuple(Feature(f"stages.{i}", dim, patch_size * 2**i) for i, dim in enumerate(dims))
        self.norm = nn.LayerNorm(dims[-1], _EPS)
        self.dropout = nn.Dropout(dropout)
        self.head = make_classifier(dims[-1], num_classes)
        self.apply(_initialise)

    @classmethod
    def small(cls, info: Any) -> dict[str, Any]:
        """Two or three stages; places of 2 pixels below 64."""
        few = min(info.size) < 64
        return {
            "depths": (2, 2) if few else (2, 2, 2),
            "dims": (32, 64) if few else (32, 64, 128),
            "patch_size": 2 if few else 4,
            "layer_scale": 1.0,
        }

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Maps of all stages, without the last norm; see :class:`Backbone`."""
        x, maps = self.stem(to_channels_last(x)), []
        for stage in self.stages:
            x = stage(x)
            maps.append(to_channels_first(x))
        return maps

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """The mean of the map, normed and classified; see :class:`Backbone`."""
        mean = self.dropout(self.norm(to_channels_last(features).mean((1, 2))))
        return mean if pre_logits else self.head(mean)


class ConvNeXtStage(nn.Module):
    """Blocks on maps of one size, behind what makes the maps that small."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, h, w, channels)`` to ``(B, h', w', dim)``."""
        return self.blocks(self.downsample(x))


def _initialise(module: nn.Module) -> None:
    """Weights from a normal of 0.02 cut at two deviations, zero biases."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
