"""The trained imputer as a plain module in the user's units: what ``best/`` ships."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Self

import torch
from torch import Tensor, nn

from ...errors import InvalidValue
from ..packaged import Packaged, channel_list
from .protocol import ImputeInfo, seen


class Imputer(Packaged):
    """An imputation model between a scaler and its inverse; what was measured comes back unchanged.

    Args:
        model: standardised ``(B, lookback, channels)`` to the same shape, called as ``model(x, marks=..., mask=...)``.
        info: window, channels and step.
        columns: names of the channels.
        series: names of the series whose statistics are kept, ``("",)`` for one nameless series.
        mean, scale: ``(series, channels)`` statistics of the training rows; None: 0 and 1, to be loaded by
            ``load_state_dict`` (they are float32 buffers).
        time, id: names of the time and id columns in the training data.
        regular, resampled: whether the training rows lay on the grid of ``info.freq``, and whether as means.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        model: nn.Module,
        info: ImputeInfo,
        *,
        columns: Sequence[str],
        series: Sequence[str] = ("",),
        mean: Tensor | None = None,
        scale: Tensor | None = None,
        time: str = "time",
        id: str | None = None,
        regular: bool = True,
        resampled: bool = False,
    ) -> None:
        super().__init__()
        shape = (len(series), info.channels)
        self.model = model
        self.info = info
        self.columns, self.series = tuple(columns), tuple(series)
        self.time, self.id = time, id
        self.regular, self.resampled = regular, resampled
        self.register_buffer("mean", torch.zeros(shape) if mean is None else mean.float())
        self.register_buffer("scale", torch.ones(shape) if scale is None else scale.float())

    @property
    def config(self) -> dict[str, Any]:
        """All constructor options except the model and its statistics, as JSON values."""
        return {
            "info": asdict(self.info) | {"targets": list(self.info.targets)},
            "columns": list(self.columns),
            "series": list(self.series),
            "time": self.time,
            "id": self.id,
            "regular": self.regular,
            "resampled": self.resampled,
        }

    def interface(self) -> dict[str, Any]:
        """See :meth:`Packaged.interface`."""
        info = self.info
        shape = f"{info.lookback}, {info.channels}"
        inputs = {
            "x": f"float `(batch, {shape})`, rows one every `{info.freq}` in the units of the training data, NaN where "
            f"nothing was measured. {channel_list(self.columns)}"
        }
        if info.marks:
            inputs["marks"] = f"float `(batch, {info.lookback}, {info.marks})`, calendar features; may be left out"
        example = f"torch.full((1, {shape}), torch.nan)"
        if len(self.series) > 1:
            inputs["series"] = f"int64 `(batch,)`, which of the {len(self.series):,} series each sample belongs to"
            example += ", series=torch.tensor([0])"
        return {
            "inputs": inputs,
            "output": f"float `(batch, {shape})`, the same rows without NaN, in the same units",
            "example": example,
            "shape": f"(1, {shape})",
            "scores": "MSE and MAE are of standardised values, over what was hidden.",
        }

    @classmethod
    def from_config(cls, model: nn.Module, config: dict[str, Any]) -> Self:
        """The wrapper that :attr:`config` describes, around ``model``; load its state dict to get the statistics."""
        info = ImputeInfo.from_plain(config["info"])
        return cls(model, info, **{k: v for k, v in config.items() if k != "info"})

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        """Random arguments of :meth:`forward`, as ``predict`` gives them, with gaps."""
        generator, info = torch.Generator().manual_seed(seed), self.info
        index = torch.arange(batch) % len(self.series)
        mean, scale = self.mean[index].double().unsqueeze(1), self.scale[index].double().unsqueeze(1)
        x = torch.randn(batch, info.lookback, info.channels, generator=generator, dtype=torch.float64)
        gaps = torch.rand(x.shape, generator=generator) < info.mask_rate
        inputs = {"x": (mean + scale * x.to(mean)).masked_fill(gaps.to(mean.device), torch.nan)}
        if info.marks:
            inputs["marks"] = torch.rand(batch, info.lookback, info.marks, generator=generator).to(self.mean) - 0.5
        if len(self.series) > 1:
            inputs["series"] = index.to(self.mean.device)
        return inputs

    def forward(self, x: Tensor, marks: Tensor | None = None, series: Tensor | None = None) -> Tensor:
        """Fill what is missing.

        Args:
            x: floating point ``(B, lookback, channels)`` in the user's units, NaN where nothing was measured. A channel
                without any value in a window is filled with the training mean.
            marks: ``(B, lookback, info.marks)`` calendar features; models that use none may be given None.
            series: int64 ``(B,)``, which series each window belongs to; None if there is one.

        Returns:
            ``(B, lookback, channels)`` in the user's units, dtype of ``x``, without NaN.

        Raises:
            InvalidValue: wrong shape, an infinite value, or ``series`` is needed and absent. Under ``torch.compile``
                and ``torch.export``, values are not looked at.
        """
        if series is None and len(self.series) > 1:
            raise InvalidValue(f"series is needed: {len(self.series)} series have their own scales; give (B,) indices.")
        index = torch.zeros(1, dtype=torch.int64, device=x.device) if series is None else series
        return self.rescaled(x, self.mean[index], self.scale[index], marks)

    def rescaled(self, x: Tensor, mean: Tensor, scale: Tensor, marks: Tensor | None = None) -> Tensor:
        """:meth:`forward` with statistics given by the caller, ``(B or 1, channels)``: for series not trained on."""
        expected = (self.info.lookback, self.info.channels)
        if x.ndim != 3 or tuple(x.shape[1:]) != expected or not x.is_floating_point():
            raise InvalidValue(
                f"x has shape {tuple(x.shape)} and dtype {x.dtype}: floating point (batch, {expected[0]}, "
                f"{expected[1]}) is needed."
            )
        if not torch.compiler.is_compiling() and bool(x.isinf().any()):
            raise InvalidValue("x has infinite values: write NaN where nothing was measured.")
        observed = ~x.isnan()
        mean, scale = mean.unsqueeze(1), scale.unsqueeze(1)
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        mask = seen(observed, torch.zeros_like(observed))
        scaled = torch.where(observed, (x - mean) / scale, 0).to(dtype)
        filled = self.model(scaled, marks=None if marks is None else marks.to(dtype), mask=mask)
        filled = (filled.to(torch.promote_types(x.dtype, scale.dtype)) * scale + mean).to(x.dtype)
        return torch.where(observed, x, torch.where(mask, mean.to(x.dtype), filled))
