"""Segmenter: a pyramid head that makes every image backbone into a segmenter.

The semantic form of the feature pyramid network (Kirillov, Girshick, He, Dollár, 2019, arXiv 1901.02446), with one
width and sums, over the maps ``C_1`` (finest) to ``C_n`` of a backbone::

    P_n = L_n(C_n),    P_i = L_i(C_i) + up(P_{i+1})            top-down, L_i a 1 x 1 convolution
    y   = up(conv 1x1(relu(norm(conv 3x3(P_1)))))              to the size of the image

``up`` is bilinear to the size of the finer map.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar, Self

from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import InvalidType, invalid
from ...registry import check_options, find
from ...spec import ModelSpec
from ..base import Model
from .backbone import Backbone


class Segmenter(Model):
    """A backbone with a pyramid head: a class for every pixel.

    Args:
        backbone: registered name (or, for a backbone of your own, its class).
        in_chans: channels of the image.
        num_classes: classes, the background among them.
        width: channels of the head, a multiple of 8.
        backbone_options: options of its constructor.

    Raises:
        UnknownName: no such model.
        InvalidType: it is no backbone, or has no such option.
        InvalidValue: an illegal width or number of classes.
    """

    spec = ModelSpec(reads="image", tasks=("segment",), onnx=True)
    made_of: ClassVar[str] = "backbone"

    def __init__(
        self,
        backbone: str | type[Backbone],
        *,
        in_chans: int = 3,
        num_classes: int = 2,
        width: int = 32,
        backbone_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        cls = _backbone_class(backbone)
        if width < 8 or width % 8:
            raise invalid("width", width, "a multiple of 8 is needed")
        if num_classes < 2:
            raise invalid("num_classes", num_classes, "at least two are needed, background and another")
        options = {**(backbone_options or {}), "in_chans": in_chans, "num_classes": 0}
        check_options(backbone if isinstance(backbone, str) else cls.__name__, cls, options)
        self.backbone = cls(**options)
        self.laterals = nn.ModuleList(nn.Conv2d(f.channels, width, 1) for f in self.backbone.feature_info)
        self.mix = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(width // 8, width), nn.ReLU()
        )
        self.classify = nn.Conv2d(width, num_classes, 1)

    @classmethod
    def for_task(cls, info: Any, configuration: str = "", **options: Any) -> Self:
        """A backbone with a head for ``info`` (size, channels, classes); options win.

        Args:
            configuration: published size of the backbone; "": its small form.

        Raises:
            InvalidType: another task, or volumes.
        """
        if info.task not in cls.spec.tasks:
            raise InvalidType(f"Segmenter cannot be built for the task {info.task!r}.")
        if len(info.size) != 2:
            raise InvalidType("image backbones segment images; of volumes they can read no more than slices.")
        inside = _backbone_class(options["backbone"])
        size = inside.configurations[configuration] if configuration else inside.small(_as_classes(info))
        size = {k: v for k, v in size.items() if k not in ("in_chans", "num_classes")}
        settings = {**options, "backbone_options": {**size, **(options.get("backbone_options") or {})}}
        return cls(**{"in_chans": info.channels, "num_classes": info.classes, **settings})

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_chans, H, W)`` to logits ``(B, num_classes, H, W)``.

        Raises:
            InvalidValue: another shape, or an image that is too small for the backbone.
            InvalidType: whole numbers.
        """
        self.backbone.check_images(x)
        maps = [lateral(c) for lateral, c in zip(self.laterals, self.backbone.pyramid(x), strict=True)]
        top = maps[-1]
        for finer in maps[-2::-1]:
            top = finer + _resized(top, finer.shape[-2:])
        return _resized(self.classify(self.mix(top)), x.shape[-2:])


def _as_classes(info: Any) -> SimpleNamespace:
    """What the backbone is told: images of this size to classify."""
    return SimpleNamespace(task="classify-images", size=info.size, channels=info.channels, classes=info.classes)


def _resized(x: Tensor, size: Any) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def _backbone_class(backbone: str | type[Backbone]) -> type[Backbone]:
    cls = find(backbone, "model").load() if isinstance(backbone, str) else backbone
    if not issubclass(cls, Backbone):
        raise InvalidType(f"{backbone!r} is no image backbone: a segmenter needs one with a pyramid of features.")
    return cls
