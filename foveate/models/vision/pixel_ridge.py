"""Linear classifiers of pixels: how far images go without anything being learned about shapes.

An image, brought to at most ``side x side`` places by averages, is one vector; standardised, it is regressed on -1/+1
class indicators with a ridge (Hoerl and Kennard 1970), or compared to the mean vector of each class::

    ridge:     W = (F'F + r n I)^-1 F'Y,   logits = f W + b
    centroid:  logits = -|f - m_c|^2 / (2 v)        v: mean squared distance of training vectors to their own mean
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ...errors import InvalidType, InvalidValue, invalid
from ...registry import check_options, register
from ...spec import ModelSpec
from ..base import Model
from ..ridge import fit_ridge

#: Numbers that training images may hold for a fit, all together.
_MOST_NUMBERS = 1 << 27


class _OnPixels(Model):
    """What the three have in common: sizes, checks, and the vector of an image."""

    recipe: ClassVar[str] = "foveate.tasks.fit.FitOnce"
    rows: Tensor
    columns: Tensor

    def __init__(self, size: tuple[int, int], in_chans: int, num_classes: int, side: int) -> None:
        super().__init__()
        sizes = [("size", min(size), 1), ("in_chans", in_chans, 1), ("num_classes", num_classes, 2), ("side", side, 1)]
        for option, number, least in sizes:
            if number < least:
                raise invalid(option, number, f"it must be at least {least}")
        self.size, self.in_chans, self.num_classes = tuple(size), in_chans, num_classes
        self.register_buffer("rows", averages(size[0], min(side, size[0])), persistent=False)
        self.register_buffer("columns", averages(size[1], min(side, size[1])), persistent=False)
        self.features = in_chans * len(self.rows) * len(self.columns)

    @property
    def fit_samples(self) -> int:
        """Training images that a fit takes, so that they fit into memory."""
        return max(64, _MOST_NUMBERS // (self.in_chans * self.size[0] * self.size[1]))

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        """The baseline for ``info`` (size, channels, classes)."""
        settings = {**options, "size": info.size, "in_chans": info.channels, "num_classes": info.classes}
        check_options(cls.__name__, cls, settings)
        return cls(**settings)

    def vectors(self, x: Tensor) -> Tensor:
        """``(B, in_chans, *size)`` to ``(B, features)``.

        Raises:
            InvalidValue: another shape.
            InvalidType: whole numbers.
        """
        name, expected = type(self).__name__, (self.in_chans, *self.size)
        if tuple(x.shape[1:]) != expected:
            sizes = ", ".join(map(str, expected))
            raise InvalidValue(f"{name}: x has shape {tuple(x.shape)}; it must be (batch, {sizes}).")
        if not x.is_floating_point():
            raise InvalidType(f"{name}: x must be floating point, not {x.dtype}.")
        return (self.rows.to(x.dtype) @ x @ self.columns.to(x.dtype).T).flatten(1)


def averages(length: int, places: int) -> Tensor:
    """``(places, length)``: the mean of each of so many neighbouring stretches, where a border may divide a pixel."""
    edges = torch.arange(places + 1, dtype=torch.float64) * length / places
    pixel = torch.arange(length, dtype=torch.float64)
    covered = torch.minimum(edges[1:, None], pixel + 1) - torch.maximum(edges[:-1, None], pixel)
    return (covered.clamp_min(0) * places / length).float()


@register("model", "pixel_ridge")
class PixelRidge(_OnPixels):
    """Pixels and a ridge classifier: a linear model, fitted in one solve.

    Args:
        size: (height, width) of the images.
        in_chans: channels.
        num_classes: classes.
        ridge: penalty r per sample.
        side: places along each axis at most.

    Raises:
        InvalidValue: a size below 1, fewer than two classes, ``ridge`` not positive.
    """

    spec = ModelSpec(reads="image", tasks=("classify-images",), trains=False, baseline=True, onnx=True)
    center: Tensor
    spread: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(
        self, size: tuple[int, int], in_chans: int, num_classes: int, ridge: float = 0.1, side: int = 32
    ) -> None:
        super().__init__(size, in_chans, num_classes, side)
        if not ridge > 0:
            raise invalid("ridge", ridge, "it must be positive")
        self.ridge = ridge
        self.register_buffer("center", torch.zeros(self.features))
        self.register_buffer("spread", torch.ones(self.features))
        self.register_buffer("weight", torch.zeros(self.features, num_classes))
        self.register_buffer("bias", torch.zeros(num_classes))

    def fit(self, batch: Mapping[str, Tensor]) -> None:
        """Solve for the weights from ``x`` ``(N, in_chans, *size)`` and ``y`` int64 ``(N,)``."""
        vectors = self.vectors(batch["x"]).double()
        found = fit_ridge(vectors, batch["y"], self.num_classes, self.ridge)
        for buffer, value in zip((self.center, self.spread, self.weight, self.bias), found, strict=True):
            buffer.copy_(value)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_chans, *size)`` to logits ``(B, num_classes)``.

        Raises:
            InvalidValue: ``x`` has another shape.
            InvalidType: ``x`` is not floating point.
        """
        f = (self.vectors(x) - self.center.to(x.dtype)) / self.spread.to(x.dtype)
        return f @ self.weight.to(x.dtype) + self.bias.to(x.dtype)


@register("model", "nearest_centroid", system="pixel_ridge")
class NearestCentroid(_OnPixels):
    """The class whose mean image is nearest.

    Args:
        size: (height, width) of the images.
        in_chans: channels.
        num_classes: classes.
        side: places along each axis at most.

    Raises:
        InvalidValue: a size below 1, fewer than two classes.
    """

    spec = ModelSpec(reads="image", tasks=("classify-images",), trains=False, baseline=True, onnx=True)
    means: Tensor
    variance: Tensor

    def __init__(self, size: tuple[int, int], in_chans: int, num_classes: int, side: int = 32) -> None:
        super().__init__(size, in_chans, num_classes, side)
        self.register_buffer("means", torch.zeros(num_classes, self.features))
        self.register_buffer("variance", torch.ones(()))

    def fit(self, batch: Mapping[str, Tensor]) -> None:
        """Take means of ``x`` ``(N, in_chans, *size)`` by ``y`` int64 ``(N,)``; a class without samples is far away."""
        vectors, y = self.vectors(batch["x"]).double(), batch["y"]
        counts = torch.bincount(y, minlength=self.num_classes).double()
        means = torch.zeros_like(self.means, dtype=torch.float64).index_add_(0, y, vectors)
        means = means / counts.clamp_min(1)[:, None]
        variance = (vectors - means[y]).square().sum(1).mean().clamp_min(1e-12)
        means[counts == 0] = vectors.abs().max() * 1e3 + 1e3
        self.means.copy_(means)
        self.variance.copy_(variance)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_chans, *size)`` to logits ``(B, num_classes)``, of which a common part is left out.

        Raises:
            InvalidValue: ``x`` has another shape.
            InvalidType: ``x`` is not floating point.
        """
        means = self.means.to(x.dtype)
        return (self.vectors(x) @ means.T - means.square().sum(1) / 2) / self.variance.to(x.dtype)


@register("model", "frequent_class", system="pixel_ridge")
class FrequentClass(_OnPixels):
    """The most frequent class: logarithms of the training shares of the classes, whatever the image.

    What a ridge classifier answers as its penalty grows beyond all bounds; the least that a classifier must beat.

    Args:
        size: (height, width) of the images.
        in_chans: channels.
        num_classes: classes.

    Raises:
        InvalidValue: a size below 1, fewer than two classes.
    """

    spec = ModelSpec(reads="image", tasks=("classify-images",), trains=False, baseline=True, onnx=True)
    log_share: Tensor

    def __init__(self, size: tuple[int, int], in_chans: int, num_classes: int) -> None:
        super().__init__(size, in_chans, num_classes, 1)
        self.register_buffer("log_share", torch.zeros(num_classes))

    def fit(self, batch: Mapping[str, Tensor]) -> None:
        """Count the labels ``y`` of the training samples, int64 ``(N,)``; one is added to every count."""
        counts = torch.bincount(batch["y"], minlength=self.num_classes) + 1
        self.log_share.copy_((counts / counts.sum()).log())

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, num_classes)`` of ``(B, in_chans, *size)``.

        Raises:
            InvalidValue: ``x`` has another shape.
            InvalidType: ``x`` is not floating point.
        """
        return self.log_share.to(x.dtype) + 0 * self.vectors(x)[:, :1]
