"""MaxViT: blocks of a convolution, attention inside windows, and attention over a grid, in four stages.

Tu et al., "MaxViT: Multi-Axis Vision Transformer" (ECCV 2022, arXiv 2204.01697). Each block sees the whole image, at
every resolution, for a cost that is linear in pixels. The ``_tf_`` sizes are the authors'; the ``_rw_`` ones are timm's
own (other activations, norms and paddings, biases by a small network in those called ``rmlp``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ....errors import InvalidValue, invalid
from ....registry import register
from ....spec import ModelSpec
from ..backbone import Backbone, Feature
from ..parts import check_stages, drop_path_rates
from .blocks import Head, MaxViTBlock, Position, Stem
from .mbconv import details_of
from .weights import KEYS, convert

Release = Literal["tf", "rw"]


@register("model", "maxvit")
class MaxViT(Backbone):
    """The image classifier and backbone of MaxViT.

    Windows and grids have ``img_size / 32`` places a side if not told otherwise, and every stage's map must be a
    multiple of them, as in the official code: at the published sizes an image of ``img_size``, or whole multiples of it
    along either side. With ``pad`` any size goes, and nobody sees the padding; the official code has no such form.

    Args:
        in_chans: channels of the image.
        num_classes: 0: no classifier.
        img_size: pixels of a side, or of both, that windows are taken from.
        depths: blocks of each stage.
        embed_dims: channels of each stage, multiples of ``head_dim``.
        stem_width: channels of the stem's two convolutions.
        stem_stride: 2, or 1 for small images, an addition.
        window_size, grid_size: places of a block, and of a grid, along each side; None: from ``img_size``; for the
            grid: as the window.
        head_dim: channels of an attention head.
        expansion: inner channels of feed-forwards and bottlenecks over the others.
        se_ratio: of the squeeze and excitation, see :class:`~foveate.models.vision.maxvit.MBConv`; None: the release's.
        head_hidden: width of the layer before the classifier, 0: none; None: the last stage's for "tf", else none.
        position: biases of the attention from a "table" or a small network, "mlp".
        pad: maps that windows do not divide are padded instead of refused.
        layer_scale: what factors of the attentions' and feed-forwards' branches start at; None: there are none.
        drop_path_rate: of the last block; earlier blocks have less. The authors trained tiny to large with 0.2, 0.3,
            0.4 and 0.6.
        drop_rate: before the classifier.
        release: "tf", the authors' models, or "rw", timm's own.

    Raises:
        InvalidValue: an illegal option, or depths and widths of several lengths.
        UnknownName: another release.
    """

    spec = ModelSpec(reads="image", tasks=("classify-images",), onnx=True)
    classifier: ClassVar[str] = "head.fc"
    configurations: ClassVar[dict[str, dict[str, Any]]] = {
        "maxvit_tiny_tf_224": {"img_size": 224},
        "maxvit_tiny_tf_384": {"img_size": 384},
        "maxvit_tiny_tf_512": {"img_size": 512},
        "maxvit_small_tf_224": {"img_size": 224, "embed_dims": (96, 192, 384, 768)},
        "maxvit_small_tf_384": {"img_size": 384, "embed_dims": (96, 192, 384, 768)},
        "maxvit_small_tf_512": {"img_size": 512, "embed_dims": (96, 192, 384, 768)},
        "maxvit_base_tf_224": {"img_size": 224, "depths": (2, 6, 14, 2), "embed_dims": (96, 192, 384, 768)},
        "maxvit_base_tf_384": {"img_size": 384, "depths": (2, 6, 14, 2), "embed_dims": (96, 192, 384, 768)},
        "maxvit_base_tf_512": {"img_size": 512, "depths": (2, 6, 14, 2), "embed_dims": (96, 192, 384, 768)},
        "maxvit_large_tf_224": {
            "img_size": 224,
            "depths": (2, 6, 14, 2),
            "embed_dims": (128, 256, 512, 1024),
            "stem_width": (128, 128),
        },
        "maxvit_large_tf_384": {
            "img_size": 384,
            "depths": (2, 6, 14, 2),
            "embed_dims": (128, 256, 512, 1024),
            "stem_width": (128, 128),
        },
        "maxvit_large_tf_512": {
            "img_size": 512,
            "depths": (2, 6, 14, 2),
            "embed_dims": (128, 256, 512, 1024),
            "stem_width": (128, 128),
        },
        "maxvit_xlarge_tf_224": {
            "img_size": 224,
            "depths": (2, 6, 14, 2),
            "embed_dims": (192, 384, 768, 1536),
            "stem_width": (192, 192),
        },
        "maxvit_xlarge_tf_384": {
            "img_size": 384,
            "depths": (2, 6, 14, 2),
            "embed_dims": (192, 384, 768, 1536),
            "stem_width": (192, 192),
        },
        "maxvit_xlarge_tf_512": {
            "img_size": 512,
            "depths": (2, 6, 14, 2),
            "embed_dims": (192, 384, 768, 1536),
            "stem_width": (192, 192),
        },
        "maxvit_pico_rw_256": {
            "img_size": 256,
            "embed_dims": (32, 64, 128, 256),
            "stem_width": (24, 32),
            "release": "rw",
        },
        "maxvit_nano_rw_256": {"img_size": 256, "depths": (1, 2, 3, 1), "stem_width": (32, 64), "release": "rw"},
        "maxvit_tiny_rw_224": {"stem_width": (32, 64), "release": "rw"},
        "maxvit_tiny_rw_256": {"img_size": 256, "stem_width": (32, 64), "release": "rw"},
        "maxvit_rmlp_pico_rw_256": {
            "img_size": 256,
            "embed_dims": (32, 64, 128, 256),
            "stem_width": (24, 32),
            "position": "mlp",
            "release": "rw",
        },
        "maxvit_rmlp_nano_rw_256": {
            "img_size": 256,
            "depths": (1, 2, 3, 1),
            "stem_width": (32, 64),
            "position": "mlp",
            "release": "rw",
        },
        "maxvit_rmlp_tiny_rw_256": {"img_size": 256, "stem_width": (32, 64), "position": "mlp", "release": "rw"},
        "maxvit_rmlp_small_rw_224": {
            "embed_dims": (96, 192, 384, 768),
            "stem_width": (32, 64),
            "position": "mlp",
            "layer_scale": 1e-06,
            "release": "rw",
        },
        "maxvit_rmlp_small_rw_256": {
            "img_size": 256,
            "embed_dims": (96, 192, 384, 768),
            "stem_width": (32, 64),
            "position": "mlp",
            "layer_scale": 1e-06,
            "release": "rw",
        },
        "maxvit_rmlp_base_rw_224": {
            "depths": (2, 6, 14, 2),
            "embed_dims": (96, 192, 384, 768),
            "stem_width": (32, 64),
            "head_hidden": 768,
            "position": "mlp",
            "release": "rw",
        },
        "maxvit_rmlp_base_rw_384": {
            "img_size": 384,
            "depths": (2, 6, 14, 2),
            "embed_dims": (96, 192, 384, 768),
            "stem_width": (32, 64),
            "head_hidden": 768,
            "position": "mlp",
            "release": "rw",
        },
    }
    published_costs: ClassVar[dict[str, tuple[float, float, int]]] = {
        "maxvit_tiny_tf_224": (31, 5.6, 224),
        "maxvit_tiny_tf_384": (31, 17.7, 384),
        "maxvit_tiny_tf_512": (31, 33.7, 512),
        "maxvit_small_tf_224": (69, 11.7, 224),
        "maxvit_small_tf_384": (69, 36.1, 384),
        "maxvit_small_tf_512": (69, 67.6, 512),
        "maxvit_base_tf_224": (119, 24.2, 224),
        "maxvit_base_tf_384": (119, 74.2, 384),
        "maxvit_base_tf_512": (119, 138.5, 512),
        "maxvit_large_tf_224": (212, 43.9, 224),
        "maxvit_large_tf_384": (212, 133.1, 384),
        "maxvit_large_tf_512": (212, 245.4, 512),
        "maxvit_xlarge_tf_224": (475, 97.8, 224),
        "maxvit_xlarge_tf_384": (475, 293.7, 384),
        "maxvit_xlarge_tf_512": (475, 535.2, 512),
    }
    cost_differences: ClassVar[dict[str, str]] = dict.fromkeys(
        (
            "maxvit_tiny_tf_384",
            "maxvit_tiny_tf_512",
            "maxvit_small_tf_224",
            "maxvit_small_tf_384",
            "maxvit_small_tf_512",
            "maxvit_base_tf_224",
            "maxvit_base_tf_384",
            "maxvit_base_tf_512",
            "maxvit_large_tf_384",
            "maxvit_large_tf_512",
        ),
        "The authors' code finds biases by products with one-hot tables (0.38 billion in tiny at 512 pixels), and "
        "counters differ in element-wise work; here are products, convolutions and attention alone.",
    )
    official_keys: ClassVar[dict[str, dict[str, str]]] = KEYS

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        *,
        img_size: int | Sequence[int] = 224,
        depths: Sequence[int] = (2, 2, 5, 2),
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        stem_width: Sequence[int] = (64, 64),
        stem_stride: int = 2,
        window_size: int | Sequence[int] | None = None,
        grid_size: int | Sequence[int] | None = None,
        head_dim: int = 32,
        expansion: float = 4.0,
        se_ratio: float | None = None,
        head_hidden: int | None = None,
        position: Position = "table",
        pad: bool = False,
        layer_scale: float | None = None,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        release: Release = "tf",
    ) -> None:
        super().__init__()
        details = details_of(release)
        check_stages("MaxViT", depths=depths, embed_dims=embed_dims)
        if stem_stride not in (1, 2):
            raise invalid("stem_stride", stem_stride, "it must be 2, as published, or 1")
        if position not in get_args(Position):
            raise invalid("position", position, f"it must be one of {', '.join(get_args(Position))}")
        if len(stem_width) != 2:
            raise invalid("stem_width", tuple(stem_width), "the stem has two convolutions")
        pixels = _pair("img_size", img_size)
        self.window = (
            _pair("window_size", window_size) if window_size is not None else (pixels[0] // 32, pixels[1] // 32)
        )
        self.grid = _pair("grid_size", grid_size) if grid_size is not None else self.window
        if min(self.window + self.grid) < 1:
            raise invalid("img_size", img_size, "windows have a place for every 32 pixels: it must be at least 32")
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, embed_dims[-1]
        self.head_dim, self.pad, self.stem_stride, self.same_padding = head_dim, pad, stem_stride, details.same_padding
        self.heads_first = release == "rw"
        self.stem = Stem(in_chans, (stem_width[0], stem_width[1]), stem_stride, details)
        common: dict[str, Any] = {"expansion": expansion, "release": release}
        attention = {**common, "head_dim": head_dim, "position": position, "pad": pad, "layer_scale": layer_scale}
        self.stages, dim = nn.ModuleList(), stem_width[1]
        for rates, out in zip(drop_path_rates(drop_path_rate, list(depths)), embed_dims, strict=True):
            blocks = []
            for i, rate in enumerate(rates):
                conv = {**common, "se_ratio": se_ratio, "drop_path": rate}
                own = {**attention, "drop_path": rate}
                blocks.append(MaxViTBlock(dim, out, 1 if i else 2, self.window, self.grid, conv, own))
                dim = out
            self.stages.append(nn.ModuleDict({"blocks": nn.Sequential(*blocks)}))
        self.feature_info = tuple(
            Feature(f"stages.{i}", d, stem_stride * 2 ** (i + 1)) for i, d in enumerate(embed_dims)
        )
        if head_hidden is None:
            head_hidden = dim if release == "tf" else 0
        self.head = Head(dim, head_hidden, num_classes, details.ln_eps, drop_rate)
        self.apply(_initialise)

    @classmethod
    def small(cls, info: Any) -> dict[str, Any]:
        """Two blocks of width 32 and 64 with windows of 7, padded, and a stem without stride below 64 pixels."""
        return {
            "depths": (1, 1),
            "embed_dims": (32, 64),
            "stem_width": (16, 16),
            "stem_stride": 1 if min(info.size) < 64 else 2,
            "window_size": 7,
            "head_dim": 16,
            "head_hidden": 64,
            "pad": True,
        }

    def convert_official(self, state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """timm's tensors in our order; bias tables of other windows are interpolated as timm does."""
        return convert(self, state_dict, self.head_dim, self.heads_first)

    def check_images(self, x: Tensor) -> None:
        """Refuse what :class:`~foveate.models.vision.backbone.Backbone` does, and sizes that windows do not divide.

        Raises:
            InvalidValue: another shape, or a map of some stage that the windows or grids do not divide.
            InvalidType: whole numbers.
        """
        super().check_images(x)
        height, width = x.shape[2:]
        size = (-(-height // self.stem_stride), -(-width // self.stem_stride))
        for i in range(len(self.stages)):
            odd = not self.same_padding and (size[0] % 2 or size[1] % 2)
            size = (-(-size[0] // 2), -(-size[1] // 2))
            steps = (self.window, self.grid)
            if odd or (not self.pad and any(n % w for step in steps for n, w in zip(size, step, strict=True))):
                sides = f"{self.window[0]} x {self.window[1]} and {self.grid[0]} x {self.grid[1]}"
                raise InvalidValue(
                    f"MaxViT: an image of {height} x {width} pixels is not possible: windows and grids of {sides} "
                    f"places must divide the map of stage {i}, and it would be {size[0]} x {size[1]}; resize the image."
                )

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Maps of all stages, ``(B, channels, h, w)``, in channels-last memory."""
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage["blocks"](x)  # type: ignore[index]
            maps.append(x.movedim(-1, 1))
        return maps

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """``(B, num_features, h, w)`` to logits ``(B, num_classes)``, or to what the classifier reads.

        timm's models without an inner layer norm the map before its mean; that is what happens here as well.
        """
        head, x = self.head, features.movedim(1, -1)
        x = head.norm(x.mean((1, 2))) if head.fc1 is not None else head.norm(x).mean((1, 2))
        x = head.drop(x if head.fc1 is None else torch.tanh(head.fc1(x)))
        return x if pre_logits else head.fc(x)


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Height and width from one number or two."""
    both = (value, value) if isinstance(value, int) else tuple(value)
    if len(both) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in both):
        raise invalid(name, value, "a positive whole number is needed, or two of them")
    return both[0], both[1]


def _initialise(module: nn.Module) -> None:
    """Normal weights of 0.02 and zero biases for linear maps and convolutions, as in the authors' code."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
