"""Swin UNETR: a Swin transformer over volumes whose maps feed a convolutional decoder.

Hatamizadeh et al., "Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors in MRI Images" (BrainLes
2021, arXiv 2201.01266). With ``F`` channels, maps ``x_0`` to ``x_4`` of the encoder have 1/2 to 1/32 of the sides and
``F`` to ``16 F`` channels::

    d_5 = up(res(x_4), x_3),  d_4 = up(d_5, res(x_2)),  d_3 = up(d_4, res(x_1)),  d_2 = up(d_3, res(x_0))
    y   = W up(d_2, res(input))

``res`` is a residual block of convolutions, ``up`` a transposed convolution with the skip beside it in front of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from ....errors import InvalidType, InvalidValue, invalid
from ....registry import register
from ....spec import ModelSpec
from ...base import Model
from ..parts import check_stages
from .convolutions import Norm, Pointwise, ResidualBlock, UpBlock, channels_last
from .encoder import Merging, SwinEncoder
from .weights import network_keys


@register("model", "swin_unetr")
class SwinUNETR(Model):
    """Swin UNETR: a class, or a region, for every voxel of a volume, or pixel of an image.

    Sides must be multiples of ``patch_size * 2 ** stages``, 32 as published, and at least one of them twice that: of a
    lowest map with one place there is no instance norm. Larger data goes through a sliding window.

    Args:
        in_chans: channels of the volume.
        num_classes: channels of the answer: classes, or regions that may overlap (to be read by a sigmoid).
        patch_size: voxels along a token; monai knows 2 alone.
        depths: blocks by stage; monai knows four stages alone.
        num_heads: heads by stage.
        window_size: tokens along a window, one number or one for each axis.
        qkv_bias: queries, keys and values have biases.
        mlp_ratio: hidden channels of the feed-forwards, in those of their stage.
        feature_size: channels of the first map, a multiple of 12.
        norm_name: of the convolutions: "instance", "batch", or a name with options, ``("group", {"num_groups": 4})``.
        drop_rate: dropout of tokens, behind projections and in feed-forwards.
        attn_drop_rate: dropout of attention's weights.
        drop_path_rate: of the last block; it rises from 0 linearly.
        normalize: the encoder's maps are normed over their channels, without weights, on their way to the decoder.
        patch_norm: tokens pass a layer norm.
        use_checkpoint: the encoder's blocks are computed again in the backward pass instead of being kept.
        spatial_dims: 3 for volumes, 2 for images.
        downsample: order of the corners of a merging. "merging" is monai's from 1.5 on, "merging_legacy" what monai 0.9
            to 1.4 called so (two corners twice, two never; all weights of 2022), "mergingv2" the regular order.
        use_v2: Swin UNETR version 2, with a residual convolution before each stage.

    Raises:
        InvalidValue: an option that is not possible.
    """

    spec = ModelSpec(reads="image", tasks=("segment",))
    configurations: ClassVar[dict[str, dict[str, Any]]] = {
        "swin_unetr_brats21": {
            "in_chans": 4,
            "num_classes": 3,
            "feature_size": 48,
            "downsample": "merging_legacy",
        },
        "swin_unetr_btcv": {
            "in_chans": 1,
            "num_classes": 14,
            "feature_size": 48,
            "downsample": "merging_legacy",
        },
    }
    published_costs: ClassVar[dict[str, tuple[float, float, int]]] = {"swin_unetr_brats21": (61.98, 394.84, 128)}
    cost_differences: ClassVar[dict[str, str]] = {
        "swin_unetr_brats21": "parameters are those of the released code, to the last one; how the paper counted its "
        "394.84 GFLOPs is not known."
    }
    official_keys: ClassVar[dict[str, dict[str, str]]] = {"monai": network_keys()}

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 2,
        *,
        patch_size: int = 2,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int | Sequence[int] = 7,
        qkv_bias: bool = True,
        mlp_ratio: float = 4.0,
        feature_size: int = 24,
        norm_name: Norm = "instance",
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        normalize: bool = True,
        patch_norm: bool = False,
        use_checkpoint: bool = False,
        spatial_dims: int = 3,
        downsample: Merging = "merging",
        use_v2: bool = False,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise invalid("spatial_dims", spatial_dims, "it must be 2, for images, or 3, for volumes")
        check_stages("Swin UNETR", depths=depths, num_heads=num_heads)
        if min(depths) < 0:
            raise invalid("depths", tuple(depths), "a stage cannot have fewer than no blocks")
        if feature_size < 1 or feature_size % 12:
            raise invalid("feature_size", feature_size, "it must be a multiple of 12")
        for name, number, least in (
            ("in_chans", in_chans, 1),
            ("num_classes", num_classes, 1),
            ("patch_size", patch_size, 2),
        ):
            if number < least:
                raise invalid(name, number, f"it must be at least {least}")
        self.in_chans, self.num_classes, self.rank, self.normalize = in_chans, num_classes, spatial_dims, normalize
        self.encoder = SwinEncoder(
            in_chans,
            feature_size,
            patch_size=patch_size,
            depths=depths,
            num_heads=num_heads,
            window_size=window_size,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
            patch_norm=patch_norm,
            use_checkpoint=use_checkpoint,
            spatial_dims=spatial_dims,
            downsample=downsample,
            use_v2=use_v2,
        )
        #: What every side must be a multiple of.
        self.multiple = patch_size * 2 ** len(depths)
        # Of the input and of the maps, from the finest one on; the last map but one goes to the decoder as it is.
        widths = [in_chans, *(feature_size * 2**i for i in range(len(depths)))]
        out = [feature_size, *widths[1:-1]]
        self.skips = nn.ModuleList(
            ResidualBlock(self.rank, width, to, norm_name) for width, to in zip(widths[:-1], out, strict=True)
        )
        lowest = feature_size * 2 ** len(depths)
        self.bottom = ResidualBlock(self.rank, lowest, lowest, norm_name)
        steps = [lowest, *reversed(widths[1:]), feature_size]
        factors = [2] * len(depths) + [patch_size]
        self.decoders = nn.ModuleList(
            UpBlock(self.rank, width, to, factor, norm_name)
            for width, to, factor in zip(steps[:-1], steps[1:], factors, strict=True)
        )
        self.out = Pointwise(self.rank, feature_size, num_classes, bias=True)

    @classmethod
    def small(cls, info: Any) -> dict[str, Any]:
        """Fewer stages, windows of 4, 12 channels of a volume's first map or 24 of an image's.

        Two stages where sides are multiples of 8 and the lowest map has more than one place, else one.
        """
        volumes = len(info.size) == 3
        stages = 2 if all(side % 8 == 0 for side in info.size) and max(info.size) > 8 else 1
        return {
            "feature_size": 12 if volumes else 24,
            "depths": (2,) * stages,
            "num_heads": (3, 6)[:stages],
            "window_size": 4,
        }

    @classmethod
    def for_task(cls, info: Any, configuration: str = "", **options: Any) -> Self:
        """For ``segment``: a small form for patches of ``info.size``, or a published size; options win.

        Args:
            configuration: one of :attr:`configurations`; "": the small form.

        Raises:
            InvalidType: another task.
            InvalidValue: patches of this size cannot be halved so often.
        """
        if info.task not in cls.spec.tasks:
            raise InvalidType(f"{cls.__name__} cannot be built for the task {info.task!r}.")
        size = cls.configurations[configuration] if configuration else cls.small(info)
        common = {"in_chans": info.channels, "num_classes": info.classes, "spatial_dims": len(info.size)}
        made = cls(**{**size, **common, **options})
        made.check_size(tuple(info.size))
        return made

    def check_size(self, size: tuple[int, ...]) -> None:
        """Refuse sides that cannot be halved as often as there are stages.

        Raises:
            InvalidValue: what they must be multiples of.
        """
        if any(side % self.multiple or not side for side in size):
            raise InvalidValue(
                f"{type(self).__name__}: sides {size} are not possible: each must be a multiple of {self.multiple}; "
                f"pad or crop, let a sliding window cut such pieces, or give fewer depths and num_heads."
            )
        if math.prod(size) == self.multiple ** len(size):
            raise InvalidValue(
                f"{type(self).__name__}: sides {size} are too small: the lowest map has one place, which cannot be "
                f"normed; one side must be at least {2 * self.multiple}, or give fewer depths and num_heads."
            )

    def check_input(self, x: Tensor) -> None:
        """Refuse anything but float ``(batch, in_chans, *size)`` with sides that can be halved.

        Raises:
            InvalidValue: another shape.
            InvalidType: whole numbers.
        """
        name = type(self).__name__
        if x.ndim != 2 + self.rank or x.shape[1] != self.in_chans:
            sides = "height, width" if self.rank == 2 else "depth, height, width"
            raise InvalidValue(f"{name}: x has shape {tuple(x.shape)}; it must be (batch, {self.in_chans}, {sides}).")
        if not x.is_floating_point():
            raise InvalidType(f"{name}: x must be floating point, not {x.dtype}.")
        self.check_size(tuple(x.shape[2:]))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_chans, *size)`` to logits ``(B, num_classes, *size)``.

        Raises:
            InvalidValue: another shape, or sides that cannot be halved as often as there are stages.
            InvalidType: whole numbers.
        """
        self.check_input(x)
        x = channels_last(x)
        *maps, lowest = self.encoder(x, self.normalize)
        skips = [*(block(m) for block, m in zip(self.skips, [x, *maps], strict=False)), maps[-1]]
        y = self.bottom(lowest)
        for decoder, skip in zip(self.decoders, reversed(skips), strict=True):
            y = decoder(y, skip)
        return self.out(y)
