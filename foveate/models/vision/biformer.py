"""BiFormer: a pyramid whose attention is routed by content (Zhu et al., CVPR 2023, arXiv 2303.08810, section 3.4).

A stem of two strided convolutions and four stages of blocks::

    x = x + depthwise 3x3(x);    x = x + attention(LayerNorm(x));    x = x + MLP(LayerNorm(x))

Attention is routed (:mod:`foveate.mixers.biformer`) with more routes from stage to stage, and dense in the last one.
The Swin-T layout of the ablations has patches instead of overlapping convolutions and no convolution in front.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ...errors import InvalidValue, invalid
from ...mixers.biformer import BiLevelRoutingAttention, LePEAttention, RegionalRoutingAttention
from ...mixers.biformer.regions import Convolution
from ...mixers.biformer.routing import Down, Projections, Route
from ...mixers.parts import Linear
from ...registry import register
from ...spec import ModelSpec
from .backbone import Backbone, Feature, make_classifier
from .parts import DropPath, check_stages, drop_path_rates, init_transformer, to_channels_first, to_channels_last

Layout = Literal["biformer", "stl", "stl_nchw"]
Norm = Literal["batch", "layer"]
EPS = 1e-6


class _LayerNorm2d(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return to_channels_first(super().forward(to_channels_last(input)))


def _norm(kind: Norm, dim: int) -> nn.Module:
    """Of a map ``(B, C, H, W)``."""
    return nn.BatchNorm2d(dim) if kind == "batch" else _LayerNorm2d(dim, eps=EPS)


class _ConvolutionalMixing(nn.Module):
    """What stands for attention with ``topk=0``: linear, depthwise 5x5, linear."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv, self.lepe, self.wo = Linear(dim, dim), Convolution(dim, 5, 2), Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(self.lepe(self.qkv(x)))


class _Block(nn.Module):
    """Convolution, attention and MLP, each added to what it reads; ``(B, H, W, dim)`` in and out."""

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        hidden: int,
        *,
        drop_path: float,
        position: bool,
        mlp_dwconv: bool,
        layer_scale: float,
        pre_norm: bool,
    ) -> None:
        super().__init__()
        self.pos_embed = Convolution(dim, 3, 2) if position else None
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(dim, eps=EPS), attn, nn.LayerNorm(dim, eps=EPS)
        self.fc1, self.fc2 = Linear(dim, hidden), Linear(hidden, dim)
        self.dwconv = Convolution(hidden, 3, 2) if mlp_dwconv else None
        self.gamma1 = nn.Parameter(torch.full((dim,), layer_scale)) if layer_scale > 0 else None
        self.gamma2 = nn.Parameter(torch.full((dim,), layer_scale)) if layer_scale > 0 else None
        self.act, self.drop_path, self.pre_norm = nn.GELU(), DropPath(drop_path), pre_norm

    def forward(self, x: Tensor) -> Tensor:
        if self.pos_embed is not None:
            x = x + self.pos_embed(x)
        if self.pre_norm:
            x = x + self._scaled(self.attn(self.norm1(x)), self.gamma1)
            return x + self._scaled(self._mlp(self.norm2(x)), self.gamma2)
        x = self.norm1(x + self._scaled(self.attn(x), self.gamma1))
        return self.norm2(x + self._scaled(self._mlp(x), self.gamma2))

    def _mlp(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(self.act(x if self.dwconv is None else self.dwconv(x)))

    def _scaled(self, y: Tensor, gamma: Tensor | None) -> Tensor:
        return self.drop_path(y if gamma is None else gamma * y)


@register("model", "biformer")
class BiFormer(Backbone):
    """The image classifier and backbone of BiFormer.

    Maps of any size are padded to multiples of ``n_win`` inside the attention, as the release does with ``auto_pad``.

    Args:
        in_chans: channels of the image.
        num_classes: 0: no classifier.
        depth: blocks of each stage.
        embed_dim: channels of each stage.
        mlp_ratios: width of each stage's MLPs by its channels.
        n_win: regions along each axis, one number or one for each stage.
        topks: of each stage: regions that each region reads; 0: convolutions instead of attention; -1: dense attention;
            -2: dense attention with a local convolution. Dense attention has 8 heads.
        head_dim: channels of a query of routed attention, which says how many heads there are.
        qk_dims: width of the queries of each stage; None: ``embed_dim``.
        qk_scale, kv_downsample_mode, param_attention, routing: of the routed attention, see
            :class:`~foveate.mixers.biformer.BiLevelRoutingAttention`.
        kv_downsample_ratios, kv_per_wins: of each stage, see there; -1: not used.
        side_dwconv: edge of the attentions' local convolution; 0: none.
        before_attn_dwconv: 3, or 0 for no convolution in front.
        mlp_dwconv: a depthwise convolution inside the MLPs.
        layer_scale_init_value: what factors of the branches start at; not positive: there are none.
        pre_norm: norms come before attention and MLP; False: behind them.
        auto_pad: False: maps that ``n_win`` does not divide are refused, as the release does for classification.
        layout: "biformer"; "stl", that of Swin-T; "stl_nchw", that with the later form of the attention.
        norm: of the stem, between stages and of the head, for the Swin-T layouts: "batch" or "layer".
        stem_stride: 4, or 2 for small images, an addition.
        drop_path_rate: of the last block; earlier blocks have less.

    Raises:
        InvalidValue: an illegal option, or lists of different lengths.
    """

    spec = ModelSpec(reads="image", tasks=("classify-images",))
    configurations: ClassVar[dict[str, dict[str, Any]]] = {
        "biformer_tiny": {"depth": (2, 2, 8, 2), "embed_dim": (64, 128, 256, 512)},
        "biformer_small": {"depth": (4, 4, 18, 4), "embed_dim": (64, 128, 256, 512)},
        "biformer_base": {"depth": (4, 4, 18, 4), "embed_dim": (96, 192, 384, 768)},
        "biformer_stl": {
            "depth": (2, 2, 6, 2),
            "embed_dim": (96, 192, 384, 768),
            "mlp_ratios": (4, 4, 4, 4),
            "before_attn_dwconv": 0,
            "layout": "stl",
        },
    }
    published_costs: ClassVar[dict[str, tuple[float, float, int]]] = {
        "biformer_tiny": (13.1, 2.2, 224),
        "biformer_small": (25.5, 4.5, 224),
        "biformer_base": (56.8, 9.8, 224),
        "biformer_stl": (28.4, 4.6, 224),
    }
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "biformer": {
            r"(stages\.\d+\.\d+\.attn)\.qkv\.qkv\.(.+)": r"\1.qkv.\2",
            r"(stages\.\d+\.\d+\.attn)\.router\.emb\.(.+)": r"\1.router.\2",
            r"(stages\.\d+\.\d+\.attn)\.1\.(.+)": r"\1.qkv.\2",
            r"(stages\.\d+\.\d+\.attn)\.2\.(.+)": r"\1.lepe.\2",
            r"(stages\.\d+\.\d+\.attn)\.3\.(.+)": r"\1.wo.\2",
            r"(stages\.\d+\.\d+)\.mlp\.0\.(.+)": r"\1.fc1.\2",
            r"(stages\.\d+\.\d+)\.mlp\.1\.(dwconv\..+)": r"\1.\2",
            r"(stages\.\d+\.\d+)\.mlp\.3\.(.+)": r"\1.fc2.\2",
            r"((?:stages|downsample_layers)\..+|norm\..+|head\..+)": r"\1",
        },
        "stl": {
            r"(stages\.\d+)\.blocks(\.\d+\.attn)\.qkv\.qkv\.(.+)": r"\1\2.qkv.\3",
            r"(stages\.\d+)\.blocks(\.\d+\.attn)\.qkv_linear\.(.+)": r"\1\2.qkv.\3",
            r"(stages\.\d+)\.blocks(\.\d+\.attn)\.output_linear\.(.+)": r"\1\2.wo.\3",
            r"(stages\.\d+)\.blocks(\.\d+\.attn)\.1\.(.+)": r"\1\2.qkv.\3",
            r"(stages\.\d+)\.blocks(\.\d+\.attn)\.2\.(.+)": r"\1\2.lepe.\3",
            r"(stages\.\d+)\.blocks(\.\d+\.attn)\.3\.(.+)": r"\1\2.wo.\3",
            r"(stages\.\d+)\.blocks(\.\d+)\.mlp\.0\.(.+)": r"\1\2.fc1.\3",
            r"(stages\.\d+)\.blocks(\.\d+)\.mlp\.2\.(.+)": r"\1\2.fc2.\3",
            r"(stages\.\d+)\.blocks(\..+)": r"\1\2",
            r"(downsample_layers\..+|norm\..+|head\..+)": r"\1",
        },
    }

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        *,
        depth: Sequence[int] = (2, 2, 8, 2),
        embed_dim: Sequence[int] = (64, 128, 256, 512),
        mlp_ratios: Sequence[float] = (3, 3, 3, 3),
        n_win: int | Sequence[int] = 7,
        topks: Sequence[int] = (1, 4, 16, -2),
        head_dim: int = 32,
        qk_dims: Sequence[int] | None = None,
        qk_scale: float | None = None,
        kv_downsample_mode: Down = "identity",
        kv_downsample_ratios: Sequence[int] = (4, 2, 1, 1),
        kv_per_wins: Sequence[int] = (2, 2, -1, -1),
        param_attention: Projections = "qkvo",
        routing: Route = "hard",
        side_dwconv: int = 5,
        before_attn_dwconv: int = 3,
        mlp_dwconv: bool = False,
        layer_scale_init_value: float = -1.0,
        pre_norm: bool = True,
        auto_pad: bool = True,
        layout: Layout = "biformer",
        norm: Norm = "batch",
        stem_stride: int = 4,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        count = len(embed_dim)
        widths = tuple(qk_dims or embed_dim)
        wins = [n_win] * count if isinstance(n_win, int) else list(n_win)
        check_stages("BiFormer", embed_dim=embed_dim, depth=depth, n_win=wins, qk_dims=widths)
        for option, given in (
            ("mlp_ratios", mlp_ratios),
            ("topks", topks),
            ("kv_downsample_ratios", kv_downsample_ratios),
            ("kv_per_wins", kv_per_wins),
        ):
            if len(given) < count:
                raise invalid(option, tuple(given), f"there are {count} stages, and one is needed for each")
        for option, value, legal in (("layout", layout, get_args(Layout)), ("norm", norm, get_args(Norm))):
            if value not in legal:
                raise invalid(option, value, f"it must be one of {', '.join(legal)}")
        if stem_stride not in (2, 4):
            raise invalid("stem_stride", stem_stride, "it must be 4, as published, or 2")
        if before_attn_dwconv not in (0, 3):
            raise invalid("before_attn_dwconv", before_attn_dwconv, "it must be 3, or 0 for none")
        if any(width % head_dim for width, topk in zip(widths, topks, strict=False) if topk > 0):
            raise invalid("head_dim", head_dim, f"it must divide the widths of queries, {widths}")
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, embed_dim[-1]
        self.layout, self.auto_pad, self.stem_stride, self.wins, self.topks = layout, auto_pad, stem_stride, wins, topks
        self.minimum_size = 1 if layout == "biformer" else stem_stride * 2 ** (count - 1)
        self.downsample_layers = nn.ModuleList([self._stem(embed_dim[0], norm)])
        for before, after in itertools.pairwise(embed_dim):
            self.downsample_layers.append(self._between(before, after, norm))
        options: dict[str, Any] = {"qk_scale": qk_scale, "side_dwconv": side_dwconv}
        whole = {"kv_downsample_mode": kv_downsample_mode, "param_attention": param_attention, "routing": routing}
        self.stages = nn.ModuleList()
        for i, (dim, rates) in enumerate(zip(embed_dim, drop_path_rates(drop_path_rate, list(depth)), strict=True)):
            wanted = {"kv_downsample_ratio": kv_downsample_ratios[i], "kv_per_win": kv_per_wins[i]}
            pooling: dict[str, Any] = {option: value for option, value in wanted.items() if value > 0}
            routed = {**options, "num_heads": widths[i] // head_dim, "n_win": wins[i], "topk": topks[i]}
            blocks = []
            for rate in rates:
                if topks[i] > 0 and layout == "stl_nchw":
                    attn: nn.Module = RegionalRoutingAttention(dim, **routed)
                elif topks[i] > 0:
                    attn = BiLevelRoutingAttention(dim, **routed, **whole, **pooling, qk_dim=widths[i])
                else:
                    attn = self._unrouted(dim, topks[i], side_dwconv)
                blocks.append(
                    _Block(
                        dim,
                        attn,
                        int(mlp_ratios[i] * dim),
                        drop_path=rate,
                        position=before_attn_dwconv > 0,
                        mlp_dwconv=mlp_dwconv,
                        layer_scale=layer_scale_init_value,
                        pre_norm=pre_norm,
                    )
                )
            self.stages.append(nn.Sequential(*blocks))
        self.feature_info = tuple(Feature(f"stages.{i}", dim, stem_stride * 2**i) for i, dim in enumerate(embed_dim))
        self.norm = _norm(norm if layout != "biformer" else "batch", embed_dim[-1])
        self.head = make_classifier(embed_dim[-1], num_classes)
        self.apply(init_transformer)

    def _stem(self, dim: int, norm: Norm) -> nn.Sequential:
        if self.layout != "biformer":
            return nn.Sequential(nn.Conv2d(self.in_chans, dim, self.stem_stride, self.stem_stride), _norm(norm, dim))
        first = nn.Conv2d(self.in_chans, dim // 2, 3, 2, 1)
        second = nn.Conv2d(dim // 2, dim, 3, self.stem_stride // 2, 1)
        return nn.Sequential(first, nn.BatchNorm2d(dim // 2), nn.GELU(), second, nn.BatchNorm2d(dim))

    def _between(self, before: int, after: int, norm: Norm) -> nn.Sequential:
        if self.layout != "biformer":
            return nn.Sequential(_norm(norm, before), nn.Conv2d(before, after, 2, 2))
        return nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after))

    def _unrouted(self, dim: int, topk: int, side_dwconv: int) -> nn.Module:
        if topk == 0:
            return _ConvolutionalMixing(dim)
        if topk not in (-1, -2):
            raise invalid("topks", topk, "below 1 there are 0, -1 and -2")
        if self.layout == "stl_nchw":
            return LePEAttention(dim, lepe_reads="values", side_dwconv=side_dwconv)
        return LePEAttention(dim, side_dwconv=side_dwconv if topk == -2 else 0)

    @classmethod
    def small(cls, info: Any) -> dict[str, Any]:
        """Two stages of width 32 and 64, routed and dense, and a stem of stride 2 for images below 64 pixels."""
        stride = 2 if min(info.size) < 64 else 4
        sides = [-(-length // stride) for length in info.size]

        def padded(count: int) -> int:
            return (-(-sides[0] // count) * count) * (-(-sides[1] // count) * count)

        count = min((7, 8, 6, 5, 4), key=padded)
        return {
            "depth": (2, 2),
            "embed_dim": (32, 64),
            "n_win": count,
            "topks": (4, -2),
            "head_dim": 16,
            "stem_stride": stride,
        }

    def convert_official(self, state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """Convolutions of one place inside blocks are linear layers."""
        inside = {key: m for key, m in state_dict.items() if key.startswith("stages") and m.ndim == 4}
        pointwise = {key for key, m in inside.items() if m.shape[1] > 1 and m.shape[2:] == (1, 1)}
        return {key: m.flatten(1) if key in pointwise else m for key, m in state_dict.items()}

    def check_images(self, x: Tensor) -> None:
        """Refuse what cannot be read; see :class:`~foveate.models.vision.backbone.Backbone`."""
        super().check_images(x)
        sides = list(x.shape[2:])
        for i, (count, topk) in enumerate(zip(self.wins, self.topks, strict=False)):
            times = 2 if i else self.stem_stride
            sides = [length // times if self.layout != "biformer" else -(-length // times) for length in sides]
            if topk > 0 and not self.auto_pad and any(length % count for length in sides):
                raise InvalidValue(
                    f"{type(self).__name__}: an image of {x.shape[2]} x {x.shape[3]} pixels makes a map of {sides[0]} "
                    f"x {sides[1]} in stage {i}, which n_win={count} does not divide; resize it, or use auto_pad=True."
                )

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Maps of all stages, ``(B, channels, h, w)``, in channels-last memory."""
        maps = []
        x = x.contiguous(memory_format=torch.channels_last)
        for down, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = to_channels_first(stage(to_channels_last(down(x))))
            maps.append(x)
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """``(B, in_chans, H, W)`` to the last map behind the last norm, ``(B, num_features, h, w)``."""
        return self.norm(self.pyramid(x)[-1])

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """The mean of ``(B, num_features, h, w)`` over the map, classified: ``(B, num_classes)``."""
        x = features.mean((2, 3))
        return x if pre_logits else self.head(x)
