"""FaViT: four stages of factorized attention and convolutional feed-forwards.

Qin et al., "Factorization Vision Transformer" (arXiv 2312.08614), figure 2 and table I, as released. A stage
begins with a convolution that overlaps (7x7 of stride 4 on the image, then 3x3 of stride 2) and a norm; its blocks are

    x <- x + FaSA(norm(x));    x <- x + fc2(gelu(depthwise 3x3(fc1(norm(x)))))

and it ends with a norm. The last stage's places are averaged and classified.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ...errors import invalid
from ...mixers.favit import FaSA, Fusion
from ...mixers.parts import Conv2d, Linear
from ...registry import register
from ...spec import ModelSpec
from .backbone import Backbone, Feature, make_classifier
from .parts import DropPath, check_stages, drop_path_rates, init_transformer, to_channels_first, to_channels_last


class _PatchEmbed(nn.Module):
    """A convolution of odd edge and a norm: ``(B, C, H, W)`` to ``(B, H / stride, W / stride, dim)``."""

    def __init__(self, channels: int, dim: int, edge: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, edge, stride, edge // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(to_channels_last(self.proj(x)))


class _Mlp(nn.Module):
    """Linear, depthwise 3x3 on the map, GELU, linear."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.dwconv = Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = to_channels_last(self.dwconv(to_channels_first(self.fc1(x))))
        return self.drop(self.fc2(self.drop(self.act(x))))


class _Block(nn.Module):
    def __init__(self, dim: int, hidden: int, drop_path: float, dropout: float, options: dict[str, Any]) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = FaSA(dim, proj_drop=dropout, **options)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = _Mlp(dim, hidden, dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


@register("model", "favit")
class FaViT(Backbone):
    """FaViT, by default B1.

    Of any size of image for which every stage's map can be filled by reflection (see
    :class:`~foveate.mixers.favit.FaSA`); a side that a stride does not divide is rounded up.

    Args:
        in_chans: channels of the image.
        num_classes: 0: no classifier.
        embed_dims: channels by stage, multiples of 8, of 16 where the reduction is above 1.
        depths: blocks by stage.
        num_heads: of the local groups, by stage.
        mlp_ratios: inner width of the feed-forwards, in channels, by stage.
        sr_ratios: reduction of the global group by stage.
        qkv_bias: queries, keys and values have biases.
        window_size: M of the folded windows.
        fusion: "code", as the released weights need, or "mean"; see :class:`~foveate.mixers.favit.FaSA`.
        stem_stride: of the first convolution.
        drop_rate: dropout of projections and feed-forwards.
        drop_path_rate: of the last block; earlier ones have less.

    Raises:
        InvalidValue: lists of stages that differ in length, or an option that is not legal.
    """

    spec = ModelSpec(reads="image", tasks=("classify-images",))
    configurations: ClassVar[dict[str, dict[str, Any]]] = {
        "favit_b0": {"embed_dims": (32, 64, 128, 256), "depths": (2, 2, 6, 2)},
        "favit_b1": {"embed_dims": (64, 128, 256, 512), "depths": (2, 2, 6, 2)},
        "favit_b2": {"embed_dims": (64, 128, 256, 512), "depths": (2, 3, 18, 3)},
        "favit_b3": {"embed_dims": (96, 192, 384, 768), "depths": (2, 3, 14, 3)},
    }
    published_costs: ClassVar[dict[str, tuple[float, float, int]]] = {
        "favit_b0": (3.4, 0.6, 224),
        "favit_b1": (13, 2.4, 224),
        "favit_b2": (24, 4.5, 224),
        "favit_b3": (48, 8.5, 224),
    }
    cost_differences: ClassVar[dict[str, str]] = {
        "favit_b1": "the released code has 2.34 billion; here channels of spaced windows are mixed only where they are "
        "read, which saves 0.02.",
        "favit_b2": "the paper leaves out what is behind the point of 24.9 million; channels of spaced windows are "
        "mixed only where they are read, which saves 0.02 billion.",
        "favit_b3": "the paper leaves out what is behind the point of 48.7 million.",
    }
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "favit": {
            r"(patch_embed|block|norm)(\d)\.(.+)": r"stages.\2.\1.\3",
            r"head\.(.+)": r"head.\1",
        }
    }

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        mlp_ratios: Sequence[float] = (8, 6, 4, 4),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        qkv_bias: bool = True,
        window_size: int = 7,
        fusion: Fusion = "code",
        stem_stride: int = 4,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        lists = {"depths": depths, "num_heads": num_heads, "mlp_ratios": mlp_ratios, "sr_ratios": sr_ratios}
        check_stages("FaViT", embed_dims=embed_dims, **lists)
        if not isinstance(stem_stride, int) or not 1 <= stem_stride < 7:
            raise invalid("stem_stride", stem_stride, "a whole number from 1 to 6 is needed")
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, embed_dims[-1]
        self.stem_stride = stem_stride
        rates = drop_path_rates(drop_path_rate, list(depths))
        self.stages = nn.ModuleDict()
        features, reduction, width = [], 1, in_chans
        for i, (dim, depth) in enumerate(zip(embed_dims, depths, strict=True)):
            stride = 2 if i else stem_stride
            options = {"num_heads": num_heads[i], "sr_ratio": sr_ratios[i], "qkv_bias": qkv_bias}
            options |= {"window_size": window_size, "fusion": fusion}
            hidden = int(dim * mlp_ratios[i])
            blocks = [_Block(dim, hidden, rates[i][j], drop_rate, options) for j in range(depth)]
            reduction *= stride
            self.stages[str(i + 1)] = nn.ModuleDict(
                {
                    "patch_embed": _PatchEmbed(width, dim, 3 if i else 7, stride),
                    "block": nn.Sequential(*blocks),
                    "norm": nn.LayerNorm(dim, eps=1e-6),
                }
            )
            features.append(Feature(f"stages.{i + 1}", dim, reduction))
            width = dim
        self.feature_info = tuple(features)
        self.minimum_size = self._minimum_size()
        self.head = make_classifier(width, num_classes)
        self.apply(init_transformer)
        self.apply(_init_convolution)

    @classmethod
    def small(cls, info: Any) -> dict[str, Any]:
        """Up to three stages of 32, 64 and 128 channels, about 0.4 M parameters; the stem takes every second pixel."""
        stem = 2 if min(info.size) < 64 else 4
        options: dict[str, Any] = {"stem_stride": stem}
        side, ratios = -(-min(info.size) // stem), []
        while len(ratios) < 3 and side >= 4:
            ratios.append(min((4, 2, 1)[len(ratios)], (side - 1) // 3))  # a map needs 3 R + 1 places
            side = -(-side // 2)
        stages = max(1, len(ratios))
        options |= {"embed_dims": (32, 64, 128)[:stages], "depths": (1, 2, 1)[:stages], "num_heads": (1, 2, 4)[:stages]}
        return options | {"mlp_ratios": (3, 3, 2)[:stages], "sr_ratios": tuple(ratios) or (1,)}

    def convert_official(self, state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """The release mixes channels by 1x1 convolutions, and has a module around the depthwise one."""
        return {
            key.replace(".dwconv.dwconv.", ".dwconv."): value.flatten(1) if key.endswith("point_conv.weight") else value
            for key, value in state_dict.items()
        }

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Maps of all stages after their norms; see :class:`Backbone`."""
        maps = []
        for stage in self.stages.values():
            x = stage["patch_embed"](x)  # type: ignore[index]
            x = to_channels_first(stage["norm"](stage["block"](x)))  # type: ignore[index]
            maps.append(x)
        return maps

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """The mean over places, classified; see :class:`Backbone`."""
        pooled = features.mean((2, 3))
        return pooled if pre_logits else self.head(pooled)

    def _minimum_size(self) -> int:
        """Pixels of a side for which every stage's map is large enough."""
        needed = 1
        for i, stage in enumerate(self.stages.values()):
            places = max(block.attn.spec.grid.minimum for block in stage["block"])  # type: ignore[union-attr, index]
            stride = self.stem_stride * 2**i
            needed = max(needed, (places - 1) * stride + 1)
        return needed


def _init_convolution(module: nn.Module) -> None:
    """Convolutions from a normal of variance 2 / fan out, zero biases, as released."""
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0, math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
