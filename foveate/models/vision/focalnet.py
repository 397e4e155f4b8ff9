"""FocalNet: image classifiers and backbones of focal modulation.

Yang et al., "Focal Modulation Networks" (NeurIPS 2022, arXiv 2203.11926). Patches, stages of blocks
``x + modulation(norm(x))`` and ``x + mlp(norm(x))``, and patches of two by two between them. The large sizes embed by
overlapping convolutions and have their norms behind the branches, which begin scaled down.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import invalid
from ...mixers.focalnet import FocalModulation, unfiltered
from ...mixers.parts import add
from ...registry import register
from ...spec import ModelSpec
from .backbone import Backbone, Feature, make_classifier
from .parts import (
    DropPath,
    Mlp,
    check_stages,
    convolve,
    drop_path_rates,
    feed,
    init_transformer,
    to_channels_first,
    to_channels_last,
)

#: transformers' names of a modulation's parts, and ours.
_PORTED = {"projection_in": "f", "projection_context": "h", "projection_out": "proj", "layernorm": "ln"}
_PORT = re.compile(r"modulation\.(projection_in|projection_context|projection_out|layernorm)\.")


class Embedding(nn.Module):
    """A strided convolution and a norm: the stem, or what stands between two stages.

    Args:
        in_chans, dim: channels in and out.
        kernel, stride, padding: of the convolution.
        fill_up: pixels that a stride leaves over are filled up with zeros at the right and the bottom; False: without
            padding they are left out.
    """

    def __init__(self, in_chans: int, dim: int, kernel: int, stride: int, padding: int, fill_up: bool) -> None:
        super().__init__()
        self.stride, self.fill_up = stride, fill_up
        self.proj = nn.Conv2d(in_chans, dim, kernel, stride, padding)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_chans, H, W)`` to ``(B, h, w, dim)``."""
        down, right = (-size % self.stride for size in x.shape[2:])
        if self.fill_up and (down or right):
            x = F.pad(x, (0, right, 0, down))
        return self.norm(convolve(self.proj, to_channels_last(x.contiguous(memory_format=torch.channels_last))))


class Block(nn.Module):
    """Modulation and a feed-forward, each behind a norm or, with ``post_norm``, in front of one.

    Args:
        dim: channels.
        mlp_ratio: hidden channels of the feed-forward over ``dim``.
        drop: dropout of both branches.
        drop_path: rate of stochastic depth.
        layer_scale: what the factors of both branches start at; None: there are none.
        post_norm: norms stand behind the branches.
        modulation: options of :class:`~foveate.mixers.focalnet.FocalModulation`.
    """

    def __init__(
        self,
        dim: int,
        mlp_ratio: float,
        drop: float,
        drop_path: float,
        layer_scale: float | None,
        post_norm: bool,
        modulation: dict[str, Any],
    ) -> None:
        super().__init__()
        self.post_norm = post_norm
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.modulation = FocalModulation(dim, proj_drop=drop, **modulation)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)
        self.drop_path = DropPath(drop_path)
        self.gamma_1, self.gamma_2 = (
            None if layer_scale is None else nn.Parameter(torch.full((dim,), float(layer_scale))) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, h, w, dim)`` in and out."""
        x = self._with_branch(x, self.modulation, self.norm1, self.gamma_1)
        if not self.post_norm:
            return feed(x, self.norm2, self.mlp, self.drop_path, self.gamma_2)
        return self._with_branch(x, self.mlp, self.norm2, self.gamma_2)

    def _with_branch(self, x: Tensor, mix: nn.Module, norm: nn.Module, gamma: Tensor | None) -> Tensor:
        y = norm(mix(x)) if self.post_norm else mix(norm(x))
        return add(x, self.drop_path(y if gamma is None else y * gamma))


class Stage(nn.Module):
    """Blocks of one width, and what makes the next stage's tokens of theirs."""

    def __init__(self, blocks: list[Block], downsample: Embedding | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample


@register("model", "focalnet")
class FocalNet(Backbone):
    """The image classifier and backbone FocalNet.

    Pixels and tokens that patches leave over at the right and the bottom are not read, as in the release and in timm;
    transformers' port fills up (``fill_up``).

    Args:
        in_chans: channels of the image.
        num_classes: 0: no classifier. The released large sizes have 21,842.
        patch_size: pixels of a token's side; overlapping embeddings have 4.
        embed_dim: channels of the first stage; each has twice those of the one before.
        depths: blocks of each stage.
        focal_levels, focal_windows: of each stage, see :class:`~foveate.mixers.focalnet.FocalModulation`.
        mlp_ratio: hidden channels of the feed-forward over those of the stage.
        use_conv_embed: embed by overlapping convolutions: 7 x 7 of stride 4, then 3 x 3 of stride 2.
        use_layerscale: scale both branches of a block channel by channel.
        layerscale_value: what the scales start at.
        use_postln: norms stand behind the branches.
        use_postln_in_modulation, normalize_modulator: see :class:`~foveate.mixers.focalnet.FocalModulation`.
        fill_up: fill up with zeros what patches do not divide.
        drop_rate: dropout on tokens and branches.
        drop_path_rate: of the last block; earlier blocks have less.

    Raises:
        InvalidValue: an illegal option, or lists that differ in length.
    """

    spec = ModelSpec(reads="image", tasks=("classify-images",), onnx=True)
    configurations: ClassVar[dict[str, dict[str, Any]]] = {
        "focalnet_tiny_srf": {"depths": (2, 2, 6, 2)},
        "focalnet_tiny_lrf": {"depths": (2, 2, 6, 2), "focal_levels": (3, 3, 3, 3)},
        "focalnet_small_srf": {"depths": (2, 2, 18, 2)},
        "focalnet_small_lrf": {"depths": (2, 2, 18, 2), "focal_levels": (3, 3, 3, 3)},
        "focalnet_base_srf": {"embed_dim": 128, "depths": (2, 2, 18, 2)},
        "focalnet_base_lrf": {"embed_dim": 128, "depths": (2, 2, 18, 2), "focal_levels": (3, 3, 3, 3)},
        "focalnet_tiny_iso": {
            "patch_size": 16,
            "embed_dim": 192,
            "depths": (12,),
            "focal_levels": (3,),
            "focal_windows": (3,),
        },
        "focalnet_small_iso": {
            "patch_size": 16,
            "embed_dim": 384,
            "depths": (12,),
            "focal_levels": (3,),
            "focal_windows": (3,),
        },
        "focalnet_base_iso": {
            "patch_size": 16,
            "embed_dim": 768,
            "depths": (12,),
            "focal_levels": (3,),
            "focal_windows": (3,),
            "use_layerscale": True,
            "use_postln": True,
        },
        "focalnet_large_fl3": {
            "embed_dim": 192,
            "depths": (2, 2, 18, 2),
            "focal_levels": (3, 3, 3, 3),
            "focal_windows": (5, 5, 5, 5),
            "use_conv_embed": True,
            "use_layerscale": True,
            "use_postln": True,
        },
        "focalnet_large_fl4": {
            "embed_dim": 192,
            "depths": (2, 2, 18, 2),
            "focal_levels": (4, 4, 4, 4),
            "use_conv_embed": True,
            "use_layerscale": True,
            "use_postln": True,
            "normalize_modulator": True,
        },
        "focalnet_xlarge_fl3": {
            "embed_dim": 256,
            "depths": (2, 2, 18, 2),
            "focal_levels": (3, 3, 3, 3),
            "focal_windows": (5, 5, 5, 5),
            "use_conv_embed": True,
            "use_layerscale": True,
            "use_postln": True,
        },
        "focalnet_xlarge_fl4": {
            "embed_dim": 256,
            "depths": (2, 2, 18, 2),
            "focal_levels": (4, 4, 4, 4),
            "use_conv_embed": True,
            "use_layerscale": True,
            "use_postln": True,
        },
        "focalnet_huge_fl3": {
            "embed_dim": 352,
            "depths": (2, 2, 18, 2),
            "focal_levels": (3, 3, 3, 3),
            "use_conv_embed": True,
            "use_layerscale": True,
            "use_postln": True,
            "use_postln_in_modulation": True,
        },
        "focalnet_huge_fl4": {
            "embed_dim": 352,
            "depths": (2, 2, 18, 2),
            "focal_levels": (4, 4, 4, 4),
            "use_conv_embed": True,
            "use_layerscale": True,
            "use_postln": True,
            "use_postln_in_modulation": True,
        },
    }
    #: Tables of the paper and of the release, which print no operations of the large sizes.
    published_costs: ClassVar[dict[str, tuple[float, float, int]]] = {
        "focalnet_tiny_srf": (28.4, 4.4, 224),
        "focalnet_tiny_lrf": (28.6, 4.5, 224),
        "focalnet_small_srf": (49.9, 8.6, 224),
        "focalnet_small_lrf": (50.3, 8.7, 224),
        "focalnet_base_srf": (88.1, 15.3, 224),
        "focalnet_base_lrf": (88.7, 15.4, 224),
        "focalnet_tiny_iso": (5.9, 1.1, 224),
        "focalnet_small_iso": (22.4, 4.3, 224),
        "focalnet_base_iso": (87.2, 16.9, 224),
    }
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "FocalNet": {
            r"(.+\.focal_layers\.\d+)\.0\.weight": r"\1.weight",
            r"((?:patch_embed|layers|norm|head)\..+)": r"\1",
        },
        "timm": {
            r"(.+\.focal_layers\.\d+)\.0\.weight": r"\1.weight",
            r"stem\.(.+)": r"patch_embed.\1",
            r"(layers\.\d+\.blocks\.\d+\.norm\d)(?:_post)?\.(.+)": r"\1.\2",
            r"(layers\.\d+\.blocks\.\d+)\.ls(\d)\.gamma": r"\1.gamma_\2",
            r"(layers\.\d+\.blocks\.\d+\.modulation)\.norm\.(.+)": r"\1.ln.\2",
            r"((?:layers|norm)\..+)": r"\1",
            r"head\.fc\.(.+)": r"head.\1",
        },
        "transformers": {
            r"(?:focalnet\.)?embeddings\.patch_embeddings\.projection\.(.+)": r"patch_embed.proj.\1",
            r"(?:focalnet\.)?embeddings\.norm\.(.+)": r"patch_embed.norm.\1",
            r"(?:focalnet\.)?encoder\.stages\.(\d+)\.downsample\.projection\.(.+)": r"layers.\1.downsample.proj.\2",
            r"(?:focalnet\.)?encoder\.stages\.(\d+)\.downsample\.norm\.(.+)": r"layers.\1.downsample.norm.\2",
            r"(?:focalnet\.)?encoder\.stages\.(\d+)\.layers\.(.+\.focal_layers\.\d+)\.0\.weight": (
                r"layers.\1.blocks.\2.weight"
            ),
            r"(?:focalnet\.)?encoder\.stages\.(\d+)\.layers\.(.+)": r"layers.\1.blocks.\2",
            r"(?:focalnet\.)?layernorm\.(.+)": r"norm.\1",
            r"classifier\.(.+)": r"head.\1",
        },
    }

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        *,
        patch_size: int = 4,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        focal_levels: Sequence[int] = (2, 2, 2, 2),
        focal_windows: Sequence[int] = (3, 3, 3, 3),
        mlp_ratio: float = 4.0,
        use_conv_embed: bool = False,
        use_layerscale: bool = False,
        layerscale_value: float = 1e-4,
        use_postln: bool = False,
        use_postln_in_modulation: bool = False,
        normalize_modulator: bool = False,
        fill_up: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_stages("FocalNet", depths=depths, focal_levels=focal_levels, focal_windows=focal_windows)
        if not isinstance(patch_size, int) or patch_size < 1 or (use_conv_embed and patch_size != 4):
            raise invalid("patch_size", patch_size, "a positive whole number is needed, with use_conv_embed 4")
        dims = [embed_dim * 2**i for i in range(len(depths))]
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, dims[-1]
        if use_conv_embed:  # the smallest image of which every stage has a token
            self.minimum_size = 1 if fill_up else 3
        else:
            self.minimum_size = 1 if fill_up else patch_size * 2 ** (len(depths) - 1)
        stem = (7, 4, 2) if use_conv_embed else (patch_size, patch_size, 0)
        between = (3, 2, 1) if use_conv_embed else (2, 2, 0)
        self.patch_embed = Embedding(in_chans, embed_dim, *stem, fill_up)
        self.pos_drop = nn.Dropout(drop_rate)
        self.layers = nn.ModuleList()
        for i, rates in enumerate(drop_path_rates(drop_path_rate, list(depths))):
            modulation = {
                "focal_window": focal_windows[i],
                "focal_level": focal_levels[i],
                "use_postln_in_modulation": use_postln_in_modulation,
                "normalize_modulator": normalize_modulator,
            }
            scale = layerscale_value if use_layerscale else None
            blocks = [Block(dims[i], mlp_ratio, drop_rate, rate, scale, use_postln, modulation) for rate in rates]
            down = Embedding(dims[i], dims[i + 1], *between, fill_up) if i + 1 < len(dims) else None
            self.layers.append(Stage(blocks, down))
        self.feature_info = tuple(Feature(f"layers.{i}", dim, patch_size * 2**i) for i, dim in enumerate(dims))
        self.norm = nn.LayerNorm(dims[-1])
        self.head = make_classifier(dims[-1], num_classes)
        self.apply(init_transformer)

    @classmethod
    def small(cls, info: Any) -> dict[str, Any]:
        """Two stages of 32 and 64 channels, patches of 2 pixels for images below 64."""
        options: dict[str, Any] = {"patch_size": 2 if min(info.size) < 64 else 4, "embed_dim": 32, "depths": (2, 3)}
        return options | {"focal_levels": (2, 2), "focal_windows": (3, 3), "fill_up": True}

    def convert_official(self, state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """Linear maps written as filters of one pixel; timm's embeddings belong to the stage behind them."""
        given = {name: unfiltered(name, value) for name, value in state_dict.items()}
        if source == "transformers":
            return {_PORT.sub(lambda match: f"modulation.{_PORTED[match[1]]}.", name): v for name, v in given.items()}
        if source != "timm":
            return given

        def before(match: re.Match[str]) -> str:
            return f"layers.{int(match[1]) - 1}.downsample."

        return {re.sub(r"^layers\.(\d+)\.downsample\.", before, name): value for name, value in given.items()}

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Maps of all stages, ``(B, channels, h, w)``, in channels-last memory; the last one is not normed yet."""
        x, maps = self.pos_drop(self.patch_embed(x)), []
        for stage in self.layers:
            x = stage.blocks(x)  # type: ignore[operator]
            maps.append(to_channels_first(x))
            if stage.downsample is not None:
                x = stage.downsample(maps[-1])  # type: ignore[operator]
        return maps

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """``(B, num_features, h, w)``, normed and averaged, to logits ``(B, num_classes)``; see :class:`Backbone`."""
        x = self.norm(to_channels_last(features)).flatten(1, 2).mean(1)
        return x if pre_logits else self.head(x)
