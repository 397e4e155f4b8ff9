"""MambaOut: a pyramid of gated convolutions, the blocks of Mamba without its state-space model.

Yu and Wang, "MambaOut: Do We Really Need Mamba for Vision?" (CVPR 2025, arXiv 2405.07992). A stem of two strided
convolutions, four stages of blocks ``x + gated_cnn(LayerNorm(x))`` with a strided convolution between them, and a
classifier of two layers. The ``_rw`` sizes are those of timm: another order of norm and convolution, layer scales, and
the norm of the head elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ...errors import invalid
from ...mixers.mambaout import Activation, GatedCNN
from ...mixers.parts import Linear, add
from ...registry import register
from ...spec import ModelSpec
from .backbone import Backbone, Feature, make_classifier
from .parts import DropPath, check_stages, convolve, drop_path_rates

Release = Literal["official", "rw"]
_ACTIVATIONS = {"gelu": nn.GELU, "silu": nn.SiLU}
EPS = 1e-6


class Stem(nn.Module):
    """Two convolutions 3 x 3 with a norm, an activation and a norm: a quarter of the pixels along each side, or half.

    Args:
        in_chans: of the image.
        dim: channels out.
        stride: of both together: 4 (the official one), or 2, where the second one has stride 1.
        mid_norm: a norm stands between the two as well.
        activation: between them.
    """

    def __init__(self, in_chans: int, dim: int, stride: int, mid_norm: bool, activation: Activation) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, dim // 2, 3, 2, 1)
        self.norm1 = nn.LayerNorm(dim // 2, eps=EPS) if mid_norm else None
        self.act = _ACTIVATIONS[activation]()
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, stride // 2, 1)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, h, w, dim)``."""
        x = self.conv1(x.contiguous(memory_format=torch.channels_last)).movedim(1, -1)
        x = self.act(x if self.norm1 is None else self.norm1(x))
        return self.norm2(convolve(self.conv2, x))


class Downsample(nn.Module):
    """A convolution 3 x 3 of stride 2, with a norm behind it, or before it."""

    def __init__(self, dim: int, out: int, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.conv = nn.Conv2d(dim, out, 3, 2, 1)
        self.norm = nn.LayerNorm(dim if norm_first else out, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, dim)`` to ``(B, ceil(H / 2), ceil(W / 2), out)``."""
        return convolve(self.conv, self.norm(x)) if self.norm_first else self.norm(convolve(self.conv, x))


class Block(nn.Module):
    """``x + scale * gated_cnn(LayerNorm(x))``.

    Args:
        dim: channels.
        drop_path: rate of stochastic depth.
        layer_scale: what the factors of the branch start at; None: there are none.
        options: of :class:`~foveate.mixers.mambaout.GatedCNN`.
    """

    def __init__(self, dim: int, drop_path: float = 0.0, layer_scale: float | None = None, **options: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.mixer = GatedCNN(dim, **options)
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, dim)`` in and out."""
        y = self.mixer(self.norm(x))
        return add(x, self.drop_path(y if self.gamma is None else y * self.gamma))


class Stage(nn.Module):
    """Blocks of one width; from the second stage on behind a convolution of stride 2."""

    def __init__(self, downsample: nn.Module | None, blocks: list[Block]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` to ``(B, h, w, dim)``."""
        return self.blocks(x if self.downsample is None else self.downsample(x))


class Head(nn.Module):
    """Mean over the map, norm, and a classifier of two layers whose inner norm only the official release has."""

    def __init__(self, dim: int, num_classes: int, activation: Activation, inner_norm: bool, drop_rate: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.fc1 = Linear(dim, 4 * dim)
        self.act = _ACTIVATIONS[activation]()
        self.norm2 = nn.LayerNorm(4 * dim, eps=EPS) if inner_norm else None
        self.drop = nn.Dropout(drop_rate)
        self.fc = make_classifier(4 * dim, num_classes)


@register("model", "mambaout")
class MambaOut(Backbone):
    """The image classifier and backbone of MambaOut.

    Images may have any size of at least 4 pixels a side; a stage's map has half of the sides before it, rounded up.

    Args:
        in_chans: channels of the image.
        num_classes: 0: no classifier.
        depths: blocks of each stage.
        dims: channels of each stage, the first one even.
        kernel_size, conv_ratio, expansion_ratio: of the blocks, see :class:`~foveate.mixers.mambaout.GatedCNN`.
        activation: everywhere.
        stem_stride: 4, or 2 for small images, an addition.
        drop_path_rate: of the last block; earlier blocks have less.
        drop_rate: before the classifier.
        release: "official", or "rw": timm's variants, without the norms inside stem and head, and with the norm before
            the convolution between stages.
        layer_scale: what the factors of every block start at; None: there are none.

    Raises:
        InvalidValue: an illegal option, or as many depths as dims are not given.
    """

    spec = ModelSpec(reads="image", tasks=("classify-images",), onnx=True)
    classifier: ClassVar[str] = "head.fc"
    configurations: ClassVar[dict[str, dict[str, Any]]] = {
        "mambaout_femto": {"depths": (3, 3, 9, 3), "dims": (48, 96, 192, 288)},
        "mambaout_kobe": {"depths": (3, 3, 15, 3), "dims": (48, 96, 192, 288)},
        "mambaout_tiny": {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 576)},
        "mambaout_small": {"depths": (3, 4, 27, 3), "dims": (96, 192, 384, 576)},
        "mambaout_base": {"depths": (3, 4, 27, 3), "dims": (128, 256, 512, 768)},
        "mambaout_small_rw": {
            "depths": (3, 4, 27, 3),
            "dims": (96, 192, 384, 576),
            "release": "rw",
            "layer_scale": 1e-6,
        },
        "mambaout_base_short_rw": {
            "depths": (3, 3, 25, 3),
            "dims": (128, 256, 512, 768),
            "expansion_ratio": 3.0,
            "conv_ratio": 1.25,
            "release": "rw",
            "layer_scale": 1e-6,
        },
        "mambaout_base_tall_rw": {
            "depths": (3, 4, 30, 3),
            "dims": (128, 256, 512, 768),
            "expansion_ratio": 2.5,
            "conv_ratio": 1.25,
            "release": "rw",
            "layer_scale": 1e-6,
        },
        "mambaout_base_wide_rw": {
            "depths": (3, 4, 27, 3),
            "dims": (128, 256, 512, 768),
            "expansion_ratio": 3.0,
            "conv_ratio": 1.5,
            "activation": "silu",
            "release": "rw",
            "layer_scale": 1e-6,
        },
        "mambaout_base_plus_rw": {
            "depths": (3, 4, 30, 3),
            "dims": (128, 256, 512, 768),
            "expansion_ratio": 3.0,
            "conv_ratio": 1.5,
            "activation": "silu",
            "release": "rw",
            "layer_scale": 1e-6,
        },
    }
    published_costs: ClassVar[dict[str, tuple[float, float, int]]] = {
        "mambaout_femto": (7.3, 1.2, 224),
        "mambaout_kobe": (9.1, 1.5, 224),
        "mambaout_tiny": (26.5, 4.5, 224),
        "mambaout_small": (48.5, 9.0, 224),
        "mambaout_base": (84.8, 15.8, 224),
        "mambaout_small_rw": (48.5, 8.94, 224),
        "mambaout_base_short_rw": (88.8, 16.28, 224),
        "mambaout_base_tall_rw": (86.5, 16.12, 224),
        "mambaout_base_wide_rw": (94.5, 17.75, 224),
        "mambaout_base_plus_rw": (101.7, 19.16, 224),
    }
    cost_differences: ClassVar[dict[str, str]] = {
        "mambaout_femto": "The paper's 1.2 billion has one digit; matrix products and convolutions alone are 1.148.",
    }
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "MambaOut": {
            r"downsample_layers\.0\.(.+)": r"stem.\1",
            r"downsample_layers\.(\d+)\.(.+)": r"stages.\1.downsample.\2",
            r"stages\.(\d+)\.(\d+)\.(fc1|fc2|conv)\.(.+)": r"stages.\1.blocks.\2.mixer.\3.\4",
            r"stages\.(\d+)\.(\d+)\.norm\.(.+)": r"stages.\1.blocks.\2.norm.\3",
            r"norm\.(.+)": r"head.norm.\1",
            r"head\.fc1\.(.+)": r"head.fc1.\1",
            r"head\.norm\.(.+)": r"head.norm2.\1",
            r"head\.fc2\.(.+)": r"head.fc.\1",
        },
        "timm": {
            r"(stem\..+)": r"\1",
            r"(stages\.\d+\.downsample\..+)": r"\1",
            r"(stages\.\d+\.blocks\.\d+)\.(fc1|fc2|conv)\.(.+)": r"\1.mixer.\2.\3",
            r"(stages\.\d+\.blocks\.\d+\.norm\..+)": r"\1",
            r"(stages\.\d+\.blocks\.\d+)\.ls\.gamma": r"\1.gamma",
            r"(head\.(?:norm|fc)\..+)": r"\1",
            r"head\.pre_logits\.fc\.(.+)": r"head.fc1.\1",
            r"head\.pre_logits\.norm\.(.+)": r"head.norm2.\1",
        },
    }

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        *,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 576),
        kernel_size: int = 7,
        conv_ratio: float = 1.0,
        expansion_ratio: float = 8 / 3,
        activation: Activation = "gelu",
        stem_stride: int = 4,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        release: Release = "official",
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        check_stages("MambaOut", depths=depths, dims=dims)
        if dims[0] % 2:
            raise invalid("dims", tuple(dims), "the first one must be even: the stem begins with half of it")
        if stem_stride not in (2, 4):
            raise invalid("stem_stride", stem_stride, "it must be 4, as published, or 2")
        if release not in get_args(Release):
            raise invalid("release", release, f"it must be one of {', '.join(get_args(Release))}")
        if activation not in get_args(Activation):
            raise invalid("activation", activation, f"it must be one of {', '.join(get_args(Activation))}")
        official = release == "official"
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, dims[-1]
        self.minimum_size = stem_stride
        self.stem = Stem(in_chans, dims[0], stem_stride, official, activation)
        options: dict[str, Any] = {
            "kernel_size": kernel_size,
            "conv_ratio": conv_ratio,
            "expansion_ratio": expansion_ratio,
            "activation": activation,
            "layer_scale": layer_scale,
        }
        self.stages = nn.ModuleList()
        for i, rates in enumerate(drop_path_rates(drop_path_rate, list(depths))):
            down = Downsample(dims[i - 1], dims[i], not official) if i else None
            self.stages.append(Stage(down, [Block(dims[i], rate, **options) for rate in rates]))
        self.feature_info = tuple(Feature(f"stages.{i}", dim, stem_stride * 2**i) for i, dim in enumerate(dims))
        self.head = Head(dims[-1], num_classes, activation if official else "gelu", official, drop_rate)
        self.apply(_initialise)

    @classmethod
    def small(cls, info: Any) -> dict[str, Any]:
        """Two stages of width 32 and 64, and a stem of stride 2 for images below 64 pixels."""
        little = min(info.size) < 64
        return {"depths": (2, 2), "dims": (32, 64), "stem_stride": 2 if little else 4}

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Maps of all stages, ``(B, channels, h, w)``, in channels-last memory."""
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x.movedim(-1, 1))
        return maps

    def pooled(self, x: Tensor) -> Tensor:
        """What the official ``forward_features`` gives: the normed mean of the last map, ``(B, num_features)``."""
        return self.head.norm(self.forward_features(x).mean((2, 3)))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """``(B, num_features, h, w)`` to logits ``(B, num_classes)``, or to what the last layer reads."""
        head = self.head
        x = head.act(head.fc1(head.norm(features.mean((2, 3)))))
        x = head.drop(x if head.norm2 is None else head.norm2(x))
        return x if pre_logits else head.fc(x)


def _initialise(module: nn.Module) -> None:
    """Normal weights of 0.02, cut at two deviations, and zero biases, for linear maps and convolutions."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
