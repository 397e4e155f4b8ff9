"""HRNetV2 with polarized self-attention in its basic blocks, for segmentation.

Wang et al., "High-Resolution Representation Learning" (arXiv 1908.07919), section 3: branches of falling resolution
run side by side, one more in each stage; every module ends by adding all branches to each, enlarged or reduced. V2 puts
all branches side by side at the finest resolution, mixes channels and classifies every place. Liu et al., "Polarized
Self-Attention" (arXiv 2107.00782), section 4, gate every basic block (their release: in the sequential layout).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....errors import InvalidType, invalid
from ....registry import register
from ....spec import ModelSpec
from ..backbone import Backbone, Feature, make_classifier
from ..parts import to_channels_first, to_channels_last
from .blocks import BasicBlock, Bottleneck, Gates, check_stem_stride, convolution, init_convolutions

Enlarge = Literal["bilinear", "nearest"]


def enlarged(x: Tensor, like: Tensor, mode: str) -> Tensor:
    """``x`` at the size of ``like``."""
    return x if x.shape[2:] == like.shape[2:] else F.interpolate(x, like.shape[2:], mode=mode)


class _Module(nn.Module):
    """Some blocks on every branch, then all branches added to each."""

    def __init__(self, widths: list[int], blocks: int, gates: Gates, enlarge: Enlarge) -> None:
        super().__init__()
        self.enlarge = enlarge
        self.branches = nn.ModuleList(
            nn.Sequential(*[BasicBlock(width, width, 1, gates) for _ in range(blocks)]) for width in widths
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_route(widths, source, target) for source in range(len(widths)))
            for target in range(len(widths))
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        answers = []
        for target, routes in enumerate(self.fuse_layers):
            total = maps[target]
            for source, route in enumerate(routes):  # type: ignore[arg-type]
                if source != target:
                    total = total + enlarged(route(maps[source]), maps[target], self.enlarge)
            answers.append(torch.relu(total))
        return answers


def _route(widths: list[int], source: int, target: int) -> nn.Module:
    """What brings one branch to the channels, and if it is finer to the resolution, of another."""
    if source == target:
        return nn.Identity()
    if source > target:
        return convolution(widths[source], widths[target], 1, 1, active=False)
    steps = target - source
    through = [widths[source]] * steps + [widths[target]]
    return nn.Sequential(*[convolution(through[i], through[i + 1], 3, 2, active=i + 1 < steps) for i in range(steps)])


@register("model", "psa_hrnet", system="polarized_self_attention")
class PolarizedHRNet(Backbone):
    """HRNetV2 for segmentation, by default W48 with the sequential layout.

    Images of any size: a side that a stride does not divide is rounded up, and maps are enlarged to each other's sizes.
    :meth:`forward` answers ``(B, num_classes, H, W)``.

    Args:
        in_chans: channels of the image.
        num_classes: 0: no classifier; the answer is then the features of every pixel.
        width: channels of the finest branch, doubled from branch to branch.
        modules: of each stage from the second on; every stage adds a branch.
        blocks: of each branch of a module.
        stem_width: channels of the stem, and of the bottlenecks' inside.
        stem_blocks: bottlenecks of the first stage.
        gates: layout of polarized self-attention, "sequential" or "parallel"; "none": a plain HRNet.
        enlarge: how coarser branches are enlarged inside: "bilinear", or "nearest" as in HRNet's classifiers.
        stem_stride: of the two convolutions at the beginning together.

    Raises:
        InvalidValue: an option that is not legal.
    """

    spec = ModelSpec(reads="image", tasks=("segment",))
    configurations: ClassVar[dict[str, dict[str, Any]]] = {
        "psa_hrnet_w18": {"width": 18},
        "psa_hrnet_w32": {"width": 32},
        "psa_hrnet_w48": {"width": 48},
    }
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "hrnet": {r"last_layer\.3\.(.+)": r"head.\1", r"(.+)": r"\1"},
        "timm": {r"(incre_modules|downsamp_modules|final_layer|classifier)\..+": "", r"(.+)": r"\1"},
    }

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 19,
        width: int = 48,
        modules: Sequence[int] = (1, 4, 3),
        blocks: int = 4,
        stem_width: int = 64,
        stem_blocks: int = 4,
        gates: Gates = "sequential",
        enlarge: Enlarge = "bilinear",
        stem_stride: int = 4,
    ) -> None:
        super().__init__()
        if enlarge not in get_args(Enlarge):
            raise invalid("enlarge", enlarge, f"it must be one of {', '.join(get_args(Enlarge))}")
        if not modules or min(modules) < 1:
            raise invalid("modules", tuple(modules), "every stage needs a module")
        check_stem_stride(stem_stride)
        self.in_chans, self.num_classes = in_chans, num_classes
        self.conv1 = nn.Conv2d(in_chans, stem_width, 3, min(stem_stride, 2), 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_width)
        self.conv2 = nn.Conv2d(stem_width, stem_width, 3, 2 if stem_stride == 4 else 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(stem_width)
        if not isinstance(stem_blocks, int) or stem_blocks < 1:
            raise invalid("stem_blocks", stem_blocks, "a positive whole number is needed")
        into = [stem_width, *[4 * stem_width] * (stem_blocks - 1)]
        self.layer1 = nn.Sequential(*[Bottleneck(channels, stem_width, 1, "none") for channels in into])
        before, self.depth = [4 * stem_width], len(modules)
        for stage, count in enumerate(modules):
            widths = [width * 2**i for i in range(stage + 2)]
            self.add_module(f"transition{stage + 1}", _transition(before, widths))
            parts = [_Module(widths, blocks, gates, enlarge) for _ in range(count)]
            self.add_module(f"stage{stage + 2}", nn.Sequential(*parts))
            before = widths
        self.feature_info = tuple(
            Feature(f"stage{self.depth + 1}", channels, stem_stride * 2**i) for i, channels in enumerate(before)
        )
        self.num_features = sum(before)
        self.last_layer = nn.Identity() if num_classes == 0 else _mix(self.num_features)
        self.head = make_classifier(self.num_features, num_classes)
        self.apply(init_convolutions)

    @classmethod
    def small(cls, info: Any) -> dict[str, Any]:
        """Three branches of 16 to 64 channels, 0.2 M parameters; the finest has every second pixel of small images."""
        stem = 2 if min(info.size) < 64 else 4
        return {"width": 16, "modules": (1, 1), "blocks": 1, "stem_width": 16, "stem_blocks": 1, "stem_stride": stem}

    @classmethod
    def for_task(cls, info: Any, configuration: str = "", **options: Any) -> Self:
        """For ``segment`` of images: a small form, or a published size; options win.

        Args:
            configuration: one of :attr:`configurations`; "": the small form.

        Raises:
            InvalidType: another task, or volumes.
        """
        if len(info.size) != 2:
            raise InvalidType(f"{cls.__name__} segments images, not volumes of {len(info.size)} axes.")
        return super().for_task(info, configuration, **options)

    def convert_official(self, state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """The release classifies by a 1x1 convolution."""
        return {k: v.flatten(1) if k == "last_layer.3.weight" else v for k, v in state_dict.items()}

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """All branches behind the last stage, the finest first; see :class:`Backbone`."""
        x = torch.relu(self.bn1(self.conv1(x.contiguous(memory_format=torch.channels_last))))
        maps = [self.layer1(torch.relu(self.bn2(self.conv2(x))))]
        for stage in range(self.depth):
            transition = self.get_submodule(f"transition{stage + 1}")
            maps = [layer(maps[min(i, len(maps) - 1)]) for i, layer in enumerate(transition)]  # type: ignore[arg-type]
            maps = self.get_submodule(f"stage{stage + 2}")(maps)
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """All branches side by side at the finest resolution, ``(B, num_features, h, w)``."""
        maps = self.pyramid(x)
        return torch.cat([enlarged(y, maps[0], "bilinear") for y in maps], 1)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of every place, ``(B, num_classes, h, w)``; see :class:`Backbone`."""
        mixed = self.last_layer(features)
        return mixed if pre_logits else to_channels_first(self.head(to_channels_last(mixed)))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_chans, H, W)`` to logits of every pixel, ``(B, num_classes, H, W)``.

        Raises:
            InvalidValue: another shape.
            InvalidType: whole numbers.
        """
        self.check_images(x)
        return enlarged(self.forward_head(self.forward_features(x)), x, "bilinear")

    def reset_classifier(self, num_classes: int) -> None:
        """A fresh classifier, and where there was none a fresh mix of channels in front; 0 classes: neither."""
        super().reset_classifier(num_classes)
        if num_classes == 0:
            self.last_layer = nn.Identity()
        elif isinstance(self.last_layer, nn.Identity):
            reference = next(self.parameters())
            self.last_layer = _mix(self.num_features).to(reference.device, reference.dtype)


def _mix(channels: int) -> nn.Sequential:
    """1x1 convolution with a bias, norm, ReLU."""
    return nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU())


def _transition(before: list[int], widths: list[int]) -> nn.ModuleList:
    """To the branches of the next stage: those that were, with new channels where they change, and reduced ones."""
    layers: list[nn.Module] = []
    for i, width in enumerate(widths):
        if i < len(before):
            layers.append(nn.Identity() if before[i] == width else convolution(before[i], width, 3, 1))
        else:
            layers.append(nn.Sequential(convolution(before[-1], width, 3, 2)))
    return nn.ModuleList(layers)
