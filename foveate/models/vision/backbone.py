"""What all image backbones have in common: features, pyramids of them, and a classifier that can be exchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from ...errors import InvalidType, InvalidValue, invalid
from ...mixers.parts import Linear
from ..base import Model


@dataclass(frozen=True, slots=True)
class Feature:
    """One map of a backbone's pyramid.

    Attributes:
        name: of the module that makes it.
        channels: of the map.
        reduction: pixels of the image per place of the map, along each side.
    """

    name: str
    channels: int
    reduction: int


class Backbone(Model):
    """An image classifier that gives its features away, with timm's names.

    A subclass sets :attr:`feature_info`, :attr:`num_features`, :attr:`in_chans` and :attr:`num_classes` in its
    constructor, which takes ``in_chans=3`` and ``num_classes=1000``, and implements :meth:`pyramid`,
    :meth:`forward_head` and :meth:`small`; :attr:`classifier` names its last linear layer.
    """

    #: Published sizes: a name (``davit_tiny``) to options of the constructor. Literals, as :attr:`spec` is: the names
    #: are known without importing torch, and ``foveate.create(name)`` builds them.
    configurations: ClassVar[dict[str, dict[str, Any]]] = {}
    #: What the publication says of them: million parameters, billion multiply-adds, pixels along a side. Literals.
    published_costs: ClassVar[dict[str, tuple[float, float, int]]] = {}
    #: Why one of them is more than 1 % off what is counted here, by name.
    cost_differences: ClassVar[dict[str, str]] = {}
    #: Dotted path of the linear layer (an identity if there are no classes) that answers.
    classifier: ClassVar[str] = "head"
    #: Pixels that a side of the image must have.
    minimum_size: int = 1

    in_chans: int
    num_classes: int
    #: Channels of :meth:`forward_features`.
    num_features: int
    feature_info: tuple[Feature, ...]

    @classmethod
    def small(cls, info: Any) -> dict[str, Any]:
        """Options of a small form for the images of ``info``: ``size`` (height, width), ``channels``, ``classes``."""
        raise NotImplementedError

    @classmethod
    def for_task(cls, info: Any, configuration: str = "", **options: Any) -> Self:
        """For ``classify-images``: a small form, or a published size; options win.

        Args:
            configuration: one of :attr:`configurations`; "": the small form.

        Raises:
            InvalidType: another task.
        """
        if info.task not in cls.spec.tasks:
            raise InvalidType(f"{cls.__name__} cannot be built for the task {info.task!r}.")
        common = {"in_chans": info.channels, "num_classes": info.classes}
        size = cls.configurations[configuration] if configuration else cls.small(info)
        return cls(**{**size, **common, **options})

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Maps of all stages, ``(B, channels, H / reduction, W / reduction)`` each, as :attr:`feature_info` says.

        What a side does not divide is rounded as the official code does.
        """
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        """``(B, in_chans, H, W)`` to the last map, ``(B, num_features, h, w)``; the input of :meth:`forward_head`."""
        return self.pyramid(x)[-1]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """From :meth:`forward_features` to logits ``(B, num_classes)``.

        Args:
            pre_logits: what the classifier would read instead, ``(B, its channels)``.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_chans, H, W)`` to logits ``(B, num_classes)``, or to what the classifier would read without classes.

        Raises:
            InvalidValue: another shape, or an image that is too small.
            InvalidType: whole numbers.
        """
        self.check_images(x)
        return self.forward_head(self.forward_features(x))

    def features_only(self, out_indices: Sequence[int] | None = None) -> FeaturePyramid:
        """This backbone (its weights are shared) as a module that answers with maps of its pyramid.

        Args:
            out_indices: which ones, rising, negative ones from the end; None: all.

        Raises:
            InvalidValue: there is no such map.
        """
        return FeaturePyramid(self, out_indices)

    def get_classifier(self) -> nn.Module:
        """The last linear layer, or an identity."""
        return self.get_submodule(self.classifier)

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh linear layer in the classifier's place; 0 classes: an identity.

        Raises:
            InvalidValue: a negative number, or one that is not whole.
        """
        check_classes(num_classes)
        parent, _, name = self.classifier.rpartition(".")
        layer = make_classifier(self._classifier_width(), num_classes)
        reference = next(self.parameters())
        setattr(self.get_submodule(parent), name, layer.to(reference.device, reference.dtype))
        self.num_classes = self._options["num_classes"] = num_classes

    def _classifier_width(self) -> int:
        """Channels that the classifier reads."""
        layer = self.get_classifier()
        return layer.in_features if isinstance(layer, nn.Linear) else self.num_features

    def check_images(self, x: Tensor) -> None:
        """Refuse anything but float images of the right channels that are large enough; call it first.

        Raises:
            InvalidValue: another shape, or an image that is too small.
            InvalidType: whole numbers.
        """
        name = type(self).__name__
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise InvalidValue(
                f"{name}: x has shape {tuple(x.shape)}; it must be (batch, {self.in_chans}, height, width)."
            )
        if not x.is_floating_point():
            raise InvalidType(f"{name}: x must be floating point, not {x.dtype}; divide bytes by 255.")
        if min(x.shape[2:]) < self.minimum_size:
            raise InvalidValue(
                f"{name}: an image of {x.shape[2]} x {x.shape[3]} pixels is too small: each side needs at least "
                f"{self.minimum_size}; resize it."
            )


class FeaturePyramid(nn.Module):
    """A backbone that answers with maps, as heads of detectors and segmenters take them.

    Args:
        backbone: whose weights are used.
        out_indices: which maps, rising, negative ones from the end; None: all.

    Attributes:
        feature_info: of the maps that are given.

    Raises:
        InvalidValue: there is no such map.
    """

    def __init__(self, backbone: Backbone, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        count = len(backbone.feature_info)
        given = range(count) if out_indices is None else out_indices
        self.out_indices = [i + count if i < 0 else i for i in given]
        if not self.out_indices or any(not 0 <= i < count for i in self.out_indices):
            raise invalid("out_indices", tuple(given), f"the pyramid has {count} maps, 0 to {count - 1}")
        if self.out_indices != sorted(set(self.out_indices)):
            raise invalid("out_indices", tuple(given), "they must rise")
        self.backbone = backbone
        self.feature_info = tuple(backbone.feature_info[i] for i in self.out_indices)

    def forward(self, x: Tensor) -> list[Tensor]:
        """``(B, in_chans, H, W)`` to maps ``(B, channels, h, w)``."""
        self.backbone.check_images(x)
        maps = self.backbone.pyramid(x)
        return [maps[i] for i in self.out_indices]


def check_classes(num_classes: int) -> None:
    """Refuse what is not a number of classes."""
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 0:
        raise invalid("num_classes", num_classes, "a whole number is needed, 0 for no classifier")


def make_classifier(width: int, num_classes: int) -> nn.Module:
    """A linear layer, or an identity for 0 classes."""
    check_classes(num_classes)
    return Linear(width, num_classes) if num_classes else nn.Identity()
