"""ResNet with polarized self-attention in every residual block, as an image classifier.

He et al., "Deep Residual Learning" (arXiv 1512.03385), table 1, and Liu et al., "Polarized Self-Attention" (arXiv
2107.00782), table 2, whose encoders ResNet-50 and ResNet-152 these are. Strides stand on 3x3 convolutions, as in
torchvision, whose names the layers have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ....errors import invalid
from ....registry import register
from ....spec import ModelSpec
from ..backbone import Backbone, Feature, make_classifier
from .blocks import BasicBlock, Bottleneck, Gates, check_stem_stride, init_convolutions

Block = Literal["bottleneck", "basic"]


@register("model", "polarized_self_attention")
class PolarizedResNet(Backbone):
    """ResNet with polarized self-attention, by default ResNet-50 with the parallel layout.

    Images of any size; a side that a stride does not divide is rounded up.

    Args:
        in_chans: channels of the image.
        num_classes: 0: no classifier.
        depths: blocks by stage.
        width: channels inside the blocks of the first stage, doubled from stage to stage.
        block: "bottleneck" or "basic".
        gates: layout of polarized self-attention, "parallel" or "sequential"; "none": a plain ResNet.
        stem_stride: 4: a 7x7 convolution of stride 2 and a max pool; 2: without the pool; 1: also without the stride.

    Raises:
        InvalidValue: an option that is not legal.
    """

    spec = ModelSpec(reads="image", tasks=("classify-images",))
    configurations: ClassVar[dict[str, dict[str, Any]]] = {
        "psa_p_resnet50": {"depths": (3, 4, 6, 3), "gates": "parallel"},
        "psa_s_resnet50": {"depths": (3, 4, 6, 3), "gates": "sequential"},
        "psa_p_resnet152": {"depths": (3, 8, 36, 3), "gates": "parallel"},
        "psa_s_resnet152": {"depths": (3, 8, 36, 3), "gates": "sequential"},
    }
    official_keys: ClassVar[dict[str, dict[str, str]]] = {"timm": {r"(.+)": r"\1"}}
    classifier: ClassVar[str] = "fc"

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        block: Block = "bottleneck",
        gates: Gates = "parallel",
        stem_stride: int = 4,
    ) -> None:
        super().__init__()
        if block not in get_args(Block):
            raise invalid("block", block, f"it must be one of {', '.join(get_args(Block))}")
        if not depths or min(depths) < 1:
            raise invalid("depths", tuple(depths), "every stage needs a block")
        check_stem_stride(stem_stride)
        self.in_chans, self.num_classes = in_chans, num_classes
        kind = Bottleneck if block == "bottleneck" else BasicBlock
        self.conv1 = nn.Conv2d(in_chans, width, 7, min(stem_stride, 2), 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1) if stem_stride == 4 else nn.Identity()
        features, channels, self.stages = [], width, len(depths)
        for stage, depth in enumerate(depths):
            planes, blocks = width * 2**stage, []
            for index in range(depth):
                blocks.append(kind(channels, planes, 2 if stage and not index else 1, gates))
                channels = planes * kind.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            features.append(Feature(f"layer{stage + 1}", channels, stem_stride * 2**stage))
        self.feature_info, self.num_features = tuple(features), channels
        self.fc = make_classifier(channels, num_classes)
        self.apply(init_convolutions)

    @classmethod
    def small(cls, info: Any) -> dict[str, Any]:
        """Three stages of one basic block, 24 to 96 channels, 0.2 M parameters."""
        stem = 2 if min(info.size) < 64 else 4
        return {"depths": (1, 1, 1), "width": 24, "block": "basic", "stem_stride": stem}

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Maps of all stages; see :class:`Backbone`."""
        x = self.conv1(x.contiguous(memory_format=torch.channels_last))
        x, maps = self.pool(torch.relu(self.bn1(x))), []
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
            maps.append(x)
        return maps

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """The mean over places, classified; see :class:`Backbone`."""
        pooled = features.mean((2, 3))
        return pooled if pre_logits else self.fc(pooled)
