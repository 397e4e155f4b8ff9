"""A linear classifier on summary statistics: how far a series goes without its order in time being learned.

Every channel becomes nine numbers (mean, deviation, least, greatest, first, last, mean absolute step, mean square of
the first half and of the second); standardised, they are regressed on -1/+1 class indicators with a ridge
(Hoerl and Kennard 1970)::

    W = (F'F + r n I)^-1 F'Y,   logits = f W + b
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ...errors import InvalidType, InvalidValue, invalid
from ...registry import check_options, register
from ...spec import ModelSpec
from ..base import Model, check_series
from ..ridge import fit_ridge

STATISTICS = 9


def summary_statistics(x: Tensor, mask: Tensor) -> Tensor:
    """``(B, T, C)`` with real steps ``mask`` bool ``(B, T)``, first ones first, to ``(B, 9 * C)`` numbers."""
    real = mask[..., None]
    count = mask.sum(1).clamp_min(1)[:, None]
    x = x.masked_fill(~real, 0)
    mean = x.sum(1) / count
    deviation = ((x - mean[:, None]).masked_fill(~real, 0).square().sum(1) / count).sqrt()
    low = x.masked_fill(~real, torch.inf).amin(1)
    high = x.masked_fill(~real, -torch.inf).amax(1)
    last = x.gather(1, (count - 1)[..., None].expand(-1, 1, x.shape[2]))[:, 0]
    steps = (x[:, 1:] - x[:, :-1]).masked_fill(~real[:, 1:], 0)
    step = steps.abs().sum(1) / (count - 1).clamp_min(1)
    early = torch.arange(x.shape[1], device=x.device) < (count + 1) // 2
    halves = [x.masked_fill(~part[..., None], 0).square().sum(1) / count for part in (early & mask, ~early & mask)]
    return torch.cat([mean, deviation, low, high, x[:, 0], last, step, *halves], -1)


@register("model", "summary_ridge")
class SummaryRidge(Model):
    """Summary statistics and a ridge classifier: a linear model that sees no order, fitted in one solve.

    Args:
        seq_len: steps T of the input.
        enc_in: variables C.
        num_class: classes.
        ridge: penalty r per sample.

    Raises:
        InvalidValue: a size below 1, fewer than two classes, ``ridge`` not positive.
    """

    spec = ModelSpec(reads="series", tasks=("classify-series",), trains=False, baseline=True, onnx=True)
    recipe: ClassVar[str] = "foveate.tasks.fit.FitOnce"
    center: Tensor
    spread: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, seq_len: int, enc_in: int, num_class: int, ridge: float = 0.01) -> None:
        super().__init__()
        for option, size, least in (("seq_len", seq_len, 1), ("enc_in", enc_in, 1), ("num_class", num_class, 2)):
            if size < least:
                raise invalid(option, size, f"it must be at least {least}")
        if not ridge > 0:
            raise invalid("ridge", ridge, "it must be positive")
        self.seq_len, self.enc_in, self.num_class, self.ridge = seq_len, enc_in, num_class, ridge
        features = STATISTICS * enc_in
        self.register_buffer("center", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))
        self.register_buffer("weight", torch.zeros(features, num_class))
        self.register_buffer("bias", torch.zeros(num_class))

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        """The baseline for ``info`` (lookback, channels, classes)."""
        settings = {**options, "seq_len": info.lookback, "enc_in": info.channels, "num_class": info.classes}
        check_options("summary_ridge", cls, settings)
        return cls(**settings)

    def fit(self, batch: Mapping[str, Tensor]) -> None:
        """Solve for the weights from ``x`` ``(N, T, C)``, ``mask`` bool ``(N, T)`` and ``y`` int64 ``(N,)``."""
        features = summary_statistics(batch["x"].double(), batch["mask"])
        found = fit_ridge(features, batch["y"], self.num_class, self.ridge)
        for buffer, value in zip((self.center, self.spread, self.weight, self.bias), found, strict=True):
            buffer.copy_(value)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits.

        Args:
            x: float ``(B, seq_len, enc_in)``.
            mask: bool ``(B, seq_len)``, True = a real step; None: all are.

        Returns:
            ``(B, num_class)``.

        Raises:
            InvalidValue: ``x`` or ``mask`` has another shape.
            InvalidType: ``x`` is not floating point, ``mask`` is not bool.
        """
        check_series("SummaryRidge", x, self.seq_len, self.enc_in)
        if mask is None:
            mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if mask.dtype != torch.bool:
            raise InvalidType(f"SummaryRidge: mask must be bool (True = a real step), not {mask.dtype}.")
        if mask.shape != x.shape[:2]:
            raise InvalidValue(f"SummaryRidge: mask has shape {tuple(mask.shape)}; it must be {tuple(x.shape[:2])}.")
        features = (summary_statistics(x, mask) - self.center.to(x.dtype)) / self.spread.to(x.dtype)
        return features @ self.weight.to(x.dtype) + self.bias.to(x.dtype)


@register("model", "majority_class", system="summary_ridge")
class MajorityClass(Model):
    """Majority class: logarithms of the training shares of the classes, whatever the series.

    What a ridge classifier answers as its penalty grows beyond all bounds; the least that a classifier must beat.

    Args:
        seq_len: steps T of the input.
        enc_in: variables C.
        num_class: classes.

    Raises:
        InvalidValue: a size below 1, fewer than two classes.
    """

    spec = ModelSpec(reads="series", tasks=("classify-series",), trains=False, baseline=True, onnx=True)
    recipe: ClassVar[str] = "foveate.tasks.fit.FitOnce"
    log_share: Tensor

    def __init__(self, seq_len: int, enc_in: int, num_class: int) -> None:
        super().__init__()
        for option, size, least in (("seq_len", seq_len, 1), ("enc_in", enc_in, 1), ("num_class", num_class, 2)):
            if size < least:
                raise invalid(option, size, f"it must be at least {least}")
        self.seq_len, self.enc_in, self.num_class = seq_len, enc_in, num_class
        self.register_buffer("log_share", torch.zeros(num_class))

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        """The baseline for ``info`` (lookback, channels, classes)."""
        settings = {**options, "seq_len": info.lookback, "enc_in": info.channels, "num_class": info.classes}
        check_options("majority_class", cls, settings)
        return cls(**settings)

    def fit(self, batch: Mapping[str, Tensor]) -> None:
        """Count the labels ``y`` of the training samples, int64 ``(N,)``; one is added to every count."""
        counts = torch.bincount(batch["y"], minlength=self.num_class) + 1
        self.log_share.copy_((counts / counts.sum()).log())

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits ``(B, num_class)`` of float ``(B, seq_len, enc_in)``; ``mask`` changes nothing.

        Raises:
            InvalidValue: ``x`` has another shape.
            InvalidType: ``x`` is not floating point.
        """
        check_series("MajorityClass", x, self.seq_len, self.enc_in)
        return self.log_share.to(x.dtype).expand(x.shape[0], -1)
