"""DaViT: a pyramid whose blocks attend in windows of places, then between channels.

Ding et al., "DaViT: Dual Attention Vision Transformers" (ECCV 2022, arXiv 2204.03645). Before each attention and each
feed-forward a depthwise convolution 3 x 3 tells where a place is::

    x = x + conv(x);  x = x + attention(LayerNorm(x));  x = x + conv(x);  x = x + mlp(LayerNorm(x))

A dual block is this with window attention, then with channel attention. ``davit_base_fl`` and ``davit_huge_fl`` are the
encoders of Florence-2 (Xiao et al., arXiv 2311.06242): windows of 12, overlapping merging, the paper's channel
attention, and no classifier.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import invalid
from ...mixers.base import Mixer
from ...mixers.davit import ChannelAttention, Scores, WindowAttention
from ...ops.activated import conv2d_activated
from ...registry import register
from ...spec import ModelSpec
from .backbone import Backbone, Feature, make_classifier
from .parts import DropPath, Mlp, check_stages, convolve, drop_path_rates, feed, init_transformer

ATTENTIONS = ("spatial", "channel")


#: Florence-2's encoder under transformers' names, and under those of the repos that its own code comes with.
_FLORENCE = {
    r"convs\.0\.(?:proj|conv)\.(.+)": r"stem.conv.\1",
    r"convs\.0\.norm\.(.+)": r"stem.norm.\1",
    r"convs\.(\d+)\.(?:proj|conv)\.(.+)": r"stages.\1.downsample.conv.\2",
    r"convs\.(\d+)\.norm\.(.+)": r"stages.\1.downsample.norm.\2",
    r"blocks\.(\d+)\.(\d+)\.([01])\.conv([12])\.(?:fn\.dw\.)?(.+)": r"stages.\1.blocks.\2.\3.cpe\4.proj.\5",
    r"blocks\.(\d+)\.(\d+)\.([01])\.attn\.norm\.(.+)": r"stages.\1.blocks.\2.\3.norm1.\4",
    r"blocks\.(\d+)\.(\d+)\.([01])\.attn\.(?:fn\.)?(.+)": r"stages.\1.blocks.\2.\3.attn.\4",
    r"blocks\.(\d+)\.(\d+)\.([01])\.ffn\.norm\.(.+)": r"stages.\1.blocks.\2.\3.norm2.\4",
    r"blocks\.(\d+)\.(\d+)\.([01])\.ffn\.(?:fn\.net\.)?(.+)": r"stages.\1.blocks.\2.\3.mlp.\4",
    r"blocks\.(\d+)\.(\d+)\.([01])\.(norm[12]\..+)": r"stages.\1.blocks.\2.\3.\4",
    r"(head\.norm\..+)": r"\1",
}


class ConvPosEnc(nn.Module):
    """``x + conv(x)`` with a depthwise filter 3 x 3; the sum is the filter's centre: one pass over memory less."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, dim)`` in and out."""
        centre = F.pad(self.proj.weight.new_ones(1, 1, 1, 1), (1, 1, 1, 1))
        weight, bias = self.proj.weight + centre, self.proj.bias
        y = conv2d_activated(x.movedim(-1, 1), weight, bias, "none", padding=(1, 1), groups=x.shape[-1])
        return y.movedim(1, -1)


class Block(nn.Module):
    """One attention and a feed-forward, each behind a convolution that tells the position.

    Args:
        dim: channels.
        attn: the attention, from :mod:`foveate.mixers.davit`.
        hidden: channels inside the feed-forward; None: there is none, but its convolution stays.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, dim: int, attn: Mixer, hidden: int | None, drop_path: float = 0.0) -> None:
        super().__init__()
        self.cpe1 = ConvPosEnc(dim)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.cpe2 = ConvPosEnc(dim)
        self.norm2 = None if hidden is None else nn.LayerNorm(dim)
        self.mlp = None if hidden is None else Mlp(dim, hidden)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, dim)`` in and out."""
        x = self.cpe1(x)
        x = self.cpe2(x + self.drop_path(self.attn(self.norm1(x))))
        if self.norm2 is None or self.mlp is None:
            return x
        return feed(x, self.norm2, self.mlp, self.drop_path)


class Downsample(nn.Module):
    """A norm and a convolution of stride 2: 2 x 2 behind padding to even sides, or 3 x 3, which overlaps."""

    def __init__(self, dim: int, out: int, overlapped: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.overlapped = overlapped
        self.conv = nn.Conv2d(dim, out, 3 if overlapped else 2, 2, 1 if overlapped else 0)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, dim)`` to ``(B, ceil(H / 2), ceil(W / 2), out)``."""
        x = self.norm(x)
        height, width = x.shape[1:3]
        if not self.overlapped and (height % 2 or width % 2):
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        return convolve(self.conv, x)


class Stem(nn.Module):
    """A convolution 7 x 7 and a norm; sides that ``patch_size`` does not divide are padded with zeros at their ends.

    The convolution's own padding of 3 reaches as far as theirs, so nothing needs to be padded before.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, dim, 7, patch_size, 3)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, h, w, dim)``."""
        return self.norm(self.conv(x.contiguous(memory_format=torch.channels_last)).movedim(1, -1))


class Stage(nn.Module):
    """Dual blocks of one width, from the second stage on behind a merging of four places."""

    def __init__(self, downsample: Downsample | None, blocks: list[nn.Sequential]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` to ``(B, h, w, dim)``."""
        return self.blocks(x if self.downsample is None else self.downsample(x))


class Head(nn.Module):
    """Mean over the map, then a norm, then the classifier."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc = make_classifier(dim, num_classes)


@register("model", "davit")
class DaViT(Backbone):
    """The image classifier and backbone of DaViT.

    Images may have any size: maps are padded where the strides and windows do not divide them, as in the official code.

    Args:
        in_chans: channels of the image.
        num_classes: 0: no classifier.
        depths: dual blocks of each stage.
        embed_dims: channels of each stage.
        num_heads: heads of the windows and groups of the channels, for each stage.
        patch_size: stride of the first convolution: 4, or 2 for small images, an addition.
        window_size: places of a window along each side.
        mlp_ratio: inner channels of a feed-forward are ``int(mlp_ratio * channels)``.
        qkv_bias: the attentions' first projections have biases.
        drop_path_rate: of the last attention; earlier ones have less.
        attention_types: what a dual block is made of, in order: "spatial" and "channel", or one of them.
        ffn: there are feed-forwards.
        overlapped_patch: stages are joined by convolutions 3 x 3 instead of 2 x 2.
        scores: of the channel attention, see :class:`~foveate.mixers.davit.ChannelAttention`.

    Raises:
        InvalidValue: an illegal option, or lists of several lengths.
    """

    spec = ModelSpec(reads="image", tasks=("classify-images",), onnx=True)
    classifier: ClassVar[str] = "head.fc"
    configurations: ClassVar[dict[str, dict[str, Any]]] = {
        "davit_tiny": {"depths": (1, 1, 3, 1), "embed_dims": (96, 192, 384, 768), "num_heads": (3, 6, 12, 24)},
        "davit_small": {"depths": (1, 1, 9, 1), "embed_dims": (96, 192, 384, 768), "num_heads": (3, 6, 12, 24)},
        "davit_base": {"depths": (1, 1, 9, 1), "embed_dims": (128, 256, 512, 1024), "num_heads": (4, 8, 16, 32)},
        "davit_large": {"depths": (1, 1, 9, 1), "embed_dims": (192, 384, 768, 1536), "num_heads": (6, 12, 24, 48)},
        "davit_large_window12_384": {
            "depths": (1, 1, 9, 1),
            "embed_dims": (192, 384, 768, 1536),
            "num_heads": (6, 12, 24, 48),
            "window_size": 12,
        },
        "davit_huge": {"depths": (1, 1, 9, 1), "embed_dims": (256, 512, 1024, 2048), "num_heads": (8, 16, 32, 64)},
        "davit_huge_window12": {
            "depths": (1, 1, 9, 1),
            "embed_dims": (256, 512, 1024, 2048),
            "num_heads": (8, 16, 32, 64),
            "window_size": 12,
        },
        "davit_giant": {
            "depths": (1, 1, 12, 3),
            "embed_dims": (384, 768, 1536, 3072),
            "num_heads": (12, 24, 48, 96),
        },
        "davit_giant_window12": {
            "depths": (1, 1, 12, 3),
            "embed_dims": (384, 768, 1536, 3072),
            "num_heads": (12, 24, 48, 96),
            "window_size": 12,
        },
        "davit_base_fl": {
            "depths": (1, 1, 9, 1),
            "embed_dims": (128, 256, 512, 1024),
            "num_heads": (4, 8, 16, 32),
            "window_size": 12,
            "overlapped_patch": True,
            "scores": "qk",
            "num_classes": 0,
        },
        "davit_huge_fl": {
            "depths": (1, 1, 9, 1),
            "embed_dims": (256, 512, 1024, 2048),
            "num_heads": (8, 16, 32, 64),
            "window_size": 12,
            "overlapped_patch": True,
            "scores": "qk",
            "num_classes": 0,
        },
    }
    published_costs: ClassVar[dict[str, tuple[float, float, int]]] = {
        "davit_tiny": (28.3, 4.5, 224),
        "davit_small": (49.7, 8.8, 224),
        "davit_base": (87.9, 15.5, 224),
        "davit_large_window12_384": (196.8, 103.0, 384),
    }
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "davit": {
            r"patch_embeds\.0\.proj\.(.+)": r"stem.conv.\1",
            r"patch_embeds\.0\.norm\.(.+)": r"stem.norm.\1",
            r"patch_embeds\.(\d+)\.proj\.(.+)": r"stages.\1.downsample.conv.\2",
            r"patch_embeds\.(\d+)\.norm\.(.+)": r"stages.\1.downsample.norm.\2",
            r"main_blocks\.(\d+)\.(\d+\.\d+)\.cpe\.0\.(.+)": r"stages.\1.blocks.\2.cpe1.\3",
            r"main_blocks\.(\d+)\.(\d+\.\d+)\.cpe\.1\.(.+)": r"stages.\1.blocks.\2.cpe2.\3",
            r"main_blocks\.(\d+)\.(\d+\.\d+)\.((?:norm[12]|attn|mlp)\..+)": r"stages.\1.blocks.\2.\3",
            r"norms\.(.+)": r"head.norm.\1",
            r"head\.(weight|bias)": r"head.fc.\1",
        },
        "timm": {
            r"(stages\.\d+\.blocks\.\d+)\.spatial_block\.(.+)": r"\1.0.\2",
            r"(stages\.\d+\.blocks\.\d+)\.channel_block\.(.+)": r"\1.1.\2",
            r"((?:stem|stages|head)\..+)": r"\1",
        },
        "Florence-2": _FLORENCE,
        "transformers": _FLORENCE,
    }

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        *,
        depths: Sequence[int] = (1, 1, 3, 1),
        embed_dims: Sequence[int] = (96, 192, 384, 768),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        patch_size: int = 4,
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.1,
        attention_types: Sequence[str] = ATTENTIONS,
        ffn: bool = True,
        overlapped_patch: bool = False,
        scores: Scores = "kv",
    ) -> None:
        super().__init__()
        stages = check_stages("DaViT", depths=depths, embed_dims=embed_dims, num_heads=num_heads)
        types = tuple(attention_types)
        if not types or len(set(types)) != len(types) or set(types) - set(ATTENTIONS):
            raise invalid("attention_types", types, "it must be 'spatial' and 'channel', in any order, or one of them")
        if patch_size not in (2, 4):
            raise invalid("patch_size", patch_size, "it must be 4, as published, or 2")
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, embed_dims[-1]
        self.stem = Stem(in_chans, embed_dims[0], patch_size)
        rates = drop_path_rates(drop_path_rate, [len(types) * depth for depth in depths])
        self.stages = nn.ModuleList()
        for i in range(stages):
            dim, heads = embed_dims[i], num_heads[i]
            hidden = int(mlp_ratio * dim) if ffn else None

            def block(kind: str, rate: float, dim: int = dim, heads: int = heads, hidden: int | None = hidden) -> Block:
                common: dict[str, Any] = {"num_heads": heads, "qkv_bias": qkv_bias}
                if kind == "spatial":
                    return Block(dim, WindowAttention(dim, window=window_size, **common), hidden, rate)
                return Block(dim, ChannelAttention(dim, scores=scores, **common), hidden, rate)

            of_stage = iter(rates[i])
            duals = [nn.Sequential(*(block(kind, next(of_stage)) for kind in types)) for _ in range(depths[i])]
            down = Downsample(embed_dims[i - 1], dim, overlapped_patch) if i else None
            self.stages.append(Stage(down, duals))
        self.feature_info = tuple(Feature(f"stages.{i}", dim, patch_size * 2**i) for i, dim in enumerate(embed_dims))
        self.head = Head(embed_dims[-1], num_classes)
        self.apply(init_transformer)

    @classmethod
    def small(cls, info: Any) -> dict[str, Any]:
        """Two stages of width 32 and 64, and a stem of stride 2 for images below 64 pixels."""
        return {
            "depths": (1, 2),
            "embed_dims": (32, 64),
            "num_heads": (2, 4),
            "patch_size": 2 if min(info.size) < 64 else 4,
            "drop_path_rate": 0.0,
        }

    @staticmethod
    def convert_official(state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """Florence-2's encoder alone, of its whole state dict or without it; a norm of ones takes the head's place."""
        if source not in ("Florence-2", "transformers"):
            return dict(state_dict)
        inside = {k.split("vision_tower.", 1)[1]: v for k, v in state_dict.items() if "vision_tower." in k}
        given: dict[str, Tensor] = {}
        for key, value in (inside or state_dict).items():
            key = key.replace(".spatial_block.", ".0.").replace(".channel_block.", ".1.")
            given[key.replace(".window_attn.", ".attn.").replace(".channel_attn.", ".attn.")] = value
        last = [v for k, v in given.items() if re.fullmatch(r"convs\.\d+\.(?:proj|conv)\.bias", k)]
        if last:
            given["head.norm.weight"], given["head.norm.bias"] = torch.ones_like(last[-1]), torch.zeros_like(last[-1])
        return given

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Maps of all stages, ``(B, channels, h, w)``, in channels-last memory."""
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x.movedim(-1, 1))
        return maps

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """``(B, num_features, h, w)`` to logits ``(B, num_classes)``, or to the normed mean that they are read from."""
        x = self.head.norm(features.mean((2, 3)))
        return x if pre_logits else self.head.fc(x)
