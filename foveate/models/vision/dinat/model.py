"""NAT and DiNAT: image classifiers and backbones of neighborhood attention.

Hassani et al., "Neighborhood Attention Transformer" (CVPR 2023, arXiv 2204.07143) and Hassani and Shi, "Dilated
Neighborhood Attention Transformer" (2022, arXiv 2209.15001). Overlapping strided convolutions make tokens and halve the
maps between stages; a block is ``x + attention(norm(x))`` and ``x + mlp(norm(x))``. In DiNAT every second layer of a
stage has its keys spaced as far as the map has room. DiNAT_s is Swin with these layers in place of its windows; the
isotropic sizes have one stage.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ....errors import invalid
from ....registry import register
from ....spec import ModelSpec
from ..backbone import Backbone, Feature, make_classifier
from ..parts import check_stages, drop_path_rates, init_transformer, to_channels_first, to_channels_last
from .blocks import Block, ConvDownsampler, ConvTokenizer, Level, PatchMerging, PatchTokenizer

Tokens = Literal["convolutions", "patches"]


@register("model", "dinat")
class DiNAT(Backbone):
    """The image classifiers and backbones NAT, DiNAT and DiNAT_s.

    Images may have any size. Where a map is smaller than a window times its dilation, it is filled up with zeros as
    released (:class:`~foveate.mixers.dinat.NeighborhoodAttention`).

    Args:
        in_chans: channels of the image.
        num_classes: 0: no classifier.
        embed_dim: channels of the first level; each has twice those of the one before.
        depths: blocks of each level.
        num_heads: of each level.
        kernel_size: the window's sides, odd.
        dilations: of each level: of every block, or one number d for blocks that take turns with 1 and d; None: 1.
        mlp_ratio: hidden channels of the feed-forward over those of the level.
        qkv_bias: queries, keys and values have biases.
        qk_scale: factor on the products; None: ``1 / sqrt(width of a head)``.
        rel_pos_bias: attention has a learned bias by relative position.
        layer_scale: what the factors of every branch start at; None: there are none.
        tokens: "convolutions", as in NAT and DiNAT, or "patches" and their merging, as in DiNAT_s.
        patch_size: pixels of a token's side: with convolutions 4 or, an addition for small images, 2.
        drop_rate: dropout on tokens, projections and feed-forwards.
        attn_drop_rate: dropout on attention weights.
        drop_path_rate: of the last block; earlier blocks have less.

    Raises:
        InvalidValue: an illegal option, or lists that differ in length.
    """

    spec = ModelSpec(reads="image", tasks=("classify-images",))
    configurations: ClassVar[dict[str, dict[str, Any]]] = {
        "nat_mini": {"embed_dim": 64, "depths": (3, 4, 6, 5), "num_heads": (2, 4, 8, 16), "mlp_ratio": 3.0},
        "nat_tiny": {"embed_dim": 64, "depths": (3, 4, 18, 5), "num_heads": (2, 4, 8, 16), "mlp_ratio": 3.0},
        "nat_small": {
            "embed_dim": 96,
            "depths": (3, 4, 18, 5),
            "num_heads": (3, 6, 12, 24),
            "mlp_ratio": 2.0,
            "layer_scale": 1e-5,
        },
        "nat_base": {
            "embed_dim": 128,
            "depths": (3, 4, 18, 5),
            "num_heads": (4, 8, 16, 32),
            "mlp_ratio": 2.0,
            "layer_scale": 1e-5,
        },
        "dinat_mini": {
            "embed_dim": 64,
            "depths": (3, 4, 6, 5),
            "num_heads": (2, 4, 8, 16),
            "mlp_ratio": 3.0,
            "dilations": (8, 4, 2, 1),
        },
        "dinat_tiny": {
            "embed_dim": 64,
            "depths": (3, 4, 18, 5),
            "num_heads": (2, 4, 8, 16),
            "mlp_ratio": 3.0,
            "dilations": (8, 4, 2, 1),
        },
        "dinat_small": {
            "embed_dim": 96,
            "depths": (3, 4, 18, 5),
            "num_heads": (3, 6, 12, 24),
            "mlp_ratio": 2.0,
            "dilations": (8, 4, 2, 1),
        },
        "dinat_base": {
            "embed_dim": 128,
            "depths": (3, 4, 18, 5),
            "num_heads": (4, 8, 16, 32),
            "mlp_ratio": 2.0,
            "dilations": (8, 4, 2, 1),
            "layer_scale": 1e-5,
        },
        "dinat_large": {
            "embed_dim": 192,
            "depths": (3, 4, 18, 5),
            "num_heads": (6, 12, 24, 48),
            "mlp_ratio": 2.0,
            "dilations": (8, 4, 2, 1),
        },
        "dinat_large_384": {
            "embed_dim": 192,
            "depths": (3, 4, 18, 5),
            "num_heads": (6, 12, 24, 48),
            "mlp_ratio": 2.0,
            "dilations": (13, 6, 3, 1),
        },
        "dinat_large_384_11x11": {
            "embed_dim": 192,
            "depths": (3, 4, 18, 5),
            "num_heads": (6, 12, 24, 48),
            "mlp_ratio": 2.0,
            "kernel_size": 11,
            "dilations": (8, 4, 2, 1),
        },
        "dinat_s_tiny": {"tokens": "patches", "dilations": (8, 4, 2, 1)},
        "dinat_s_small": {"tokens": "patches", "depths": (2, 2, 18, 2), "dilations": (8, 4, 2, 1)},
        "dinat_s_base": {
            "tokens": "patches",
            "embed_dim": 128,
            "depths": (2, 2, 18, 2),
            "num_heads": (4, 8, 16, 32),
            "dilations": (8, 4, 2, 1),
        },
        "dinat_s_large": {
            "tokens": "patches",
            "embed_dim": 192,
            "depths": (2, 2, 18, 2),
            "num_heads": (4, 8, 16, 32),
            "dilations": (8, 4, 2, 1),
        },
        "dinat_s_large_384": {
            "tokens": "patches",
            "embed_dim": 192,
            "depths": (2, 2, 18, 2),
            "num_heads": (4, 8, 16, 32),
            "dilations": (13, 6, 3, 1),
        },
        "nat_isotropic_small": {
            "tokens": "patches",
            "patch_size": 16,
            "embed_dim": 384,
            "depths": (12,),
            "num_heads": (12,),
        },
        "nat_isotropic_base": {
            "tokens": "patches",
            "patch_size": 16,
            "embed_dim": 768,
            "depths": (12,),
            "num_heads": (24,),
        },
        "dinat_isotropic_small": {
            "tokens": "patches",
            "patch_size": 16,
            "embed_dim": 384,
            "depths": (12,),
            "num_heads": (12,),
            "dilations": (2,),
        },
        "dinat_isotropic_base": {
            "tokens": "patches",
            "patch_size": 16,
            "embed_dim": 768,
            "depths": (12,),
            "num_heads": (24,),
            "dilations": (2,),
        },
    }
    #: Tables of the papers and of the release.
    published_costs: ClassVar[dict[str, tuple[float, float, int]]] = {
        "nat_mini": (20, 2.7, 224),
        "nat_tiny": (28, 4.3, 224),
        "nat_small": (51, 7.8, 224),
        "nat_base": (90, 13.7, 224),
        "dinat_mini": (20, 2.7, 224),
        "dinat_tiny": (28, 4.3, 224),
        "dinat_small": (51, 7.8, 224),
        "dinat_base": (90, 13.7, 224),
        "dinat_large": (200, 30.6, 224),
        "dinat_large_384": (200, 89.7, 384),
        "dinat_large_384_11x11": (200, 92.4, 384),
        "dinat_s_tiny": (28, 4.5, 224),
        "dinat_s_small": (50, 8.7, 224),
        "dinat_s_base": (88, 15.4, 224),
        "dinat_s_large": (197, 34.5, 224),
        "dinat_s_large_384": (197, 101.5, 384),
        "nat_isotropic_small": (22, 4.3, 224),
        "nat_isotropic_base": (86, 16.9, 224),
        "dinat_isotropic_small": (22, 4.3, 224),
        "dinat_isotropic_base": (86, 16.9, 224),
    }
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "DiNAT": {
            r"((?:patch_embed|norm|head)\..+)": r"\1",
            r"(?:levels|layers)\.(\d+\.(?:blocks|downsample)\..+)": r"levels.\1",
            r"layers\.(\d+\.(?:norm1|norm2|attn|mlp)\..+)": r"levels.0.blocks.\1",
        },
        "transformers": {
            r"(?:dinat\.|nat\.)?embeddings\.patch_embeddings\.projection\.(.+)": r"patch_embed.proj.\1",
            r"(?:dinat\.|nat\.)?embeddings\.norm\.(.+)": r"patch_embed.norm.\1",
            r"(?:dinat\.|nat\.)?encoder\.(levels\.\d+\.downsample\..+)": r"\1",
            r"(?:dinat\.|nat\.)?encoder\.(levels\.\d+)\.layers\.(\d+)\.(attn\.qkv\..+|gamma[12])": r"\1.blocks.\2.\3",
            r"(?:dinat\.|nat\.)?encoder\.(levels\.\d+)\.layers\.(\d+)\.layernorm_before\.(.+)": (
                r"\1.blocks.\2.norm1.\3"
            ),
            r"(?:dinat\.|nat\.)?encoder\.(levels\.\d+)\.layers\.(\d+)\.layernorm_after\.(.+)": r"\1.blocks.\2.norm2.\3",
            r"(?:dinat\.|nat\.)?encoder\.(levels\.\d+)\.layers\.(\d+)\.attention\.self\.rpb": r"\1.blocks.\2.attn.rpb",
            r"(?:dinat\.|nat\.)?encoder\.(levels\.\d+)\.layers\.(\d+)\.attention\.output\.dense\.(.+)": (
                r"\1.blocks.\2.attn.proj.\3"
            ),
            r"(?:dinat\.|nat\.)?encoder\.(levels\.\d+)\.layers\.(\d+)\.intermediate\.dense\.(.+)": (
                r"\1.blocks.\2.mlp.fc1.\3"
            ),
            r"(?:dinat\.|nat\.)?encoder\.(levels\.\d+)\.layers\.(\d+)\.output\.dense\.(.+)": r"\1.blocks.\2.mlp.fc2.\3",
            r"(?:dinat\.|nat\.)?layernorm\.(.+)": r"norm.\1",
            r"classifier\.(.+)": r"head.\1",
        },
    }

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        *,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        kernel_size: int = 7,
        dilations: Sequence[int | Sequence[int]] | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        rel_pos_bias: bool = True,
        layer_scale: float | None = None,
        tokens: Tokens = "convolutions",
        patch_size: int = 4,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if tokens not in get_args(Tokens):
            raise invalid("tokens", tokens, f"it must be one of {', '.join(get_args(Tokens))}")
        if tokens == "convolutions" and patch_size not in (2, 4):
            raise invalid("patch_size", patch_size, "convolutions make tokens of 4 pixels, as published, or 2")
        told = {} if dilations is None else {"dilations": dilations}
        check_stages("DiNAT", depths=depths, num_heads=num_heads, **told)
        spaced = _dilations(dilations, depths)
        rates = drop_path_rates(drop_path_rate, list(depths))
        dims = [embed_dim * 2**i for i in range(len(depths))]
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, dims[-1]
        convolutions = tokens == "convolutions"
        self.patch_embed = (ConvTokenizer if convolutions else PatchTokenizer)(in_chans, embed_dim, patch_size)
        self.pos_drop = nn.Dropout(drop_rate)
        attention = {"window": kernel_size, "rel_pos_bias": rel_pos_bias, "qkv_bias": qkv_bias, "scale": qk_scale}
        attention["attn_drop"] = attn_drop_rate
        self.levels = nn.ModuleList()
        for i, dim in enumerate(dims):
            blocks = [
                Block(
                    dim,
                    mlp_ratio,
                    drop_rate,
                    rate,
                    layer_scale,
                    {**attention, "num_heads": num_heads[i], "dilation": dilation},
                )
                for rate, dilation in zip(rates[i], spaced[i], strict=True)
            ]
            last = i + 1 == len(dims)
            self.levels.append(
                Level(blocks, None if last else (ConvDownsampler if convolutions else PatchMerging)(dim))
            )
        self.feature_info = tuple(Feature(f"levels.{i}", dim, patch_size * 2**i) for i, dim in enumerate(dims))
        self.norm = nn.LayerNorm(dims[-1])
        self.head = make_classifier(dims[-1], num_classes)
        self.apply(init_transformer)

    @classmethod
    def small(cls, info: Any) -> dict[str, Any]:
        """Levels of 32 and 64 channels, windows of 5 as far apart as the maps have room for."""
        patch = 2 if min(info.size) < 64 else 4
        sides = [-(-min(info.size) // (patch * 2**i)) for i in range(2)]
        options: dict[str, Any] = {"embed_dim": 32, "depths": (2, 4), "num_heads": (2, 4), "mlp_ratio": 2.0}
        return options | {"kernel_size": 5, "patch_size": patch, "dilations": tuple(max(1, s // 5) for s in sides)}

    def convert_official(self, state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """transformers has queries, keys and values apart, and both factors of a layer in one tensor."""
        if source != "transformers":
            return dict(state_dict)
        given, parts = {}, {}
        for key, value in state_dict.items():
            match = re.fullmatch(r"(.+)\.attention\.self\.(query|key|value)\.(weight|bias)", key)
            if match:
                parts.setdefault((match[1], match[3]), {})[match[2]] = value
            elif key.endswith(".layer_scale_parameters"):
                before = key.removesuffix("layer_scale_parameters")
                given |= {f"{before}gamma{row + 1}": factors for row, factors in enumerate(value)}
            else:
                given[key] = value
        for (before, kind), three in parts.items():
            if len(three) == 3:
                given[f"{before}.attn.qkv.{kind}"] = torch.cat([three[name] for name in ("query", "key", "value")])
            else:
                given |= {f"{before}.attention.self.{name}.{kind}": value for name, value in three.items()}
        return given

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Maps of all levels, ``(B, channels, h, w)``, in channels-last memory; the last one is not normed yet."""
        x, maps = self.pos_drop(self.patch_embed(x)), []
        for level in self.levels:
            x = level.blocks(x)  # type: ignore[operator]
            maps.append(to_channels_first(x))
            if level.downsample is not None:
                x = level.downsample(x)  # type: ignore[operator]
        return maps

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """``(B, num_features, h, w)``, normed and averaged, to logits ``(B, num_classes)``; see :class:`Backbone`."""
        x = self.norm(to_channels_last(features)).flatten(1, 2).mean(1)
        return x if pre_logits else self.head(x)


def _dilations(given: Sequence[int | Sequence[int]] | None, depths: Sequence[int]) -> list[list[int]]:
    """The dilation of every block, by level."""
    if given is None:
        return [[1] * depth for depth in depths]
    spaced = []
    for each, depth in zip(given, depths, strict=True):
        listed = [each if i % 2 else 1 for i in range(depth)] if isinstance(each, int) else list(each)
        if len(listed) != depth:
            raise invalid("dilations", given, f"a level of {depth} blocks needs as many, or one number")
        spaced.append(listed)
    return spaced
