"""Segmenting without shapes: every pixel or voxel by its own intensities alone.

Naive Bayes with a normal distribution for each class and channel (Duda and Hart 1973), from training pixels::

    logits_c(x) = log p_c - sum_k [ (x_k - m_ck)^2 / (2 v_ck) + log(v_ck) / 2 ]

With one channel and two classes this is a threshold on the intensity (two, if the variances differ).
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

_MOST_NUMBERS = 1 << 27
#: Least variance of a class, as a share of the variance of all pixels.
_LEAST = 1e-3


class _OfVoxels(Model):
    """What both have in common: sizes and checks."""

    recipe: ClassVar[str] = "foveate.tasks.fit.FitOnce"

    def __init__(self, size: tuple[int, ...], in_chans: int, num_classes: int) -> None:
        super().__init__()
        if len(size) not in (2, 3):
            raise invalid("size", size, "(height, width) or (depth, height, width) is needed")
        for option, number, least in (
            ("size", min(size), 1),
            ("in_chans", in_chans, 1),
            ("num_classes", num_classes, 2),
        ):
            if number < least:
                raise invalid(option, number, f"it must be at least {least}")
        self.size, self.in_chans, self.num_classes = tuple(size), in_chans, num_classes

    @property
    def fit_samples(self) -> int:
        """Training patches that a fit takes, so that they fit into memory."""
        return max(4, _MOST_NUMBERS // (self.in_chans * torch.Size(self.size).numel()))

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        """The baseline for ``info`` (size, channels, classes)."""
        settings = {**options, "size": info.size, "in_chans": info.channels, "num_classes": info.classes}
        check_options(cls.__name__, cls, settings)
        return cls(**settings)

    def check(self, x: Tensor) -> None:
        """Refuse anything but float ``(batch, in_chans, ...)`` of the rank of ``size``."""
        name = type(self).__name__
        if x.ndim != 2 + len(self.size) or x.shape[1] != self.in_chans:
            sizes = ", ".join(map(str, (self.in_chans, *self.size)))
            raise InvalidValue(f"{name}: x has shape {tuple(x.shape)}; it must be (batch, {sizes}) or larger.")
        if not x.is_floating_point():
            raise InvalidType(f"{name}: x must be floating point, not {x.dtype}.")


@register("model", "voxel_bayes")
class VoxelBayes(_OfVoxels):
    """Naive Bayes on the intensities of single pixels or voxels.

    Args:
        size: (height, width) or (depth, height, width) of the patches; others are taken too.
        in_chans: channels.
        num_classes: classes.

    Raises:
        InvalidValue: a size below 1, fewer than two classes.
    """

    spec = ModelSpec(reads="image", tasks=("segment",), trains=False, baseline=True, onnx=True)
    log_share: Tensor
    means: Tensor
    variances: Tensor

    def __init__(self, size: tuple[int, ...], in_chans: int, num_classes: int) -> None:
        super().__init__(size, in_chans, num_classes)
        self.register_buffer("log_share", torch.zeros(num_classes))
        self.register_buffer("means", torch.zeros(num_classes, in_chans))
        self.register_buffer("variances", torch.ones(num_classes, in_chans))

    def fit(self, batch: Mapping[str, Tensor]) -> None:
        """Take shares, means and variances of ``x`` ``(N, in_chans, *size)`` by ``y`` int64 ``(N, *size)``.

        Pixels whose ``y`` is no class, such as padding, do not count.
        """
        pixels = batch["x"].movedim(1, -1).reshape(-1, self.in_chans).double()
        y = batch["y"].reshape(-1)
        counting = y < self.num_classes
        pixels, y = pixels[counting], y[counting]
        counts = torch.bincount(y, minlength=self.num_classes).double()
        per = counts.clamp_min(1)[:, None]
        nothing = torch.zeros(self.num_classes, self.in_chans, dtype=torch.float64)
        means = nothing.index_add(0, y, pixels) / per
        variances = nothing.index_add(0, y, (pixels - means[y]).square()) / per
        least = _LEAST * pixels.var(0, unbiased=False).clamp_min(1e-12)
        self.means.copy_(means)
        self.variances.copy_(torch.maximum(variances, least))
        self.log_share.copy_(((counts + 1) / (counts + 1).sum()).log())

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_chans, *size)`` to logits ``(B, num_classes, *size)``.

        Raises:
            InvalidValue: ``x`` has another shape.
            InvalidType: ``x`` is not floating point.
        """
        self.check(x)
        precision = 1 / self.variances.to(x.dtype)
        means = self.means.to(x.dtype)
        pixels = x.movedim(1, -1)
        constant = self.log_share.to(x.dtype) - (precision * means.square() - precision.log()).sum(1) / 2
        y = pixels @ (precision * means).T - pixels.square() @ (precision / 2).T + constant
        return y.movedim(-1, 1)


@register("model", "background", system="voxel_bayes")
class Background(_OfVoxels):
    """Background everywhere.

    Args:
        size: (height, width) or (depth, height, width) of the patches; others are taken too.
        in_chans: channels.
        num_classes: classes, of which the first is the background.

    Raises:
        InvalidValue: a size below 1, fewer than two classes.
    """

    spec = ModelSpec(reads="image", tasks=("segment",), trains=False, baseline=True, onnx=True)
    first: Tensor

    def __init__(self, size: tuple[int, ...], in_chans: int, num_classes: int) -> None:
        super().__init__(size, in_chans, num_classes)
        first = (torch.arange(num_classes) == 0).float().view(-1, *[1] * len(size))
        self.register_buffer("first", first, persistent=False)

    def fit(self, batch: Mapping[str, Tensor]) -> None:
        """Nothing to learn."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, num_classes, *size)``, 1 for the first class and 0 for all others.

        Raises:
            InvalidValue: ``x`` has another shape.
            InvalidType: ``x`` is not floating point.
        """
        self.check(x)
        return 0 * x[:, :1] + self.first.to(x.dtype)
