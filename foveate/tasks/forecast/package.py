"""The trained forecaster as a plain module in the user's units: what ``best/`` ships."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Self

import torch
from torch import Tensor, nn

from ...errors import InvalidValue
from .protocol import ForecastInfo


class Forecaster(nn.Module):
    """A forecast model between a scaler and its inverse.

    Args:
        model: ``(B, lookback, channels)`` standardised to ``(B, horizon, channels)`` standardised, called as
            ``model(x, marks=marks)``.
        info: lookback, horizon, channels and step.
        columns: names of the channels.
        series: names of the series whose statistics are kept, ``("",)`` for one nameless series.
        mean, scale: ``(series, channels)`` statistics of the training rows; None: 0 and 1, to be loaded by
            ``load_state_dict`` (they are float32 buffers).
        time, id: names of the time and id columns in the training data.
        zone: offset of its times from UTC in minutes.
        regular, resampled: whether the training rows lay on the grid of ``info.freq``, and whether as means.

    Raises:
        InvalidValue: ``mean`` or ``scale`` has another shape, or a scale is not positive.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        model: nn.Module,
        info: ForecastInfo,
        *,
        columns: Sequence[str],
        series: Sequence[str] = ("",),
        mean: Tensor | None = None,
        scale: Tensor | None = None,
        time: str = "time",
        id: str | None = None,
        zone: int | None = None,
        regular: bool = True,
        resampled: bool = False,
    ) -> None:
        super().__init__()
        shape = (len(series), info.channels)
        if len(columns) != info.channels:
            raise InvalidValue(f"columns={tuple(columns)!r} is not possible: {info.channels} names are needed.")
        for name, given in (("mean", mean), ("scale", scale)):
            if given is not None and tuple(given.shape) != shape:
                raise InvalidValue(f"{name} has shape {tuple(given.shape)}: (series, channels) = {shape} is needed.")
        if scale is not None and not bool((scale > 0).all()):
            raise InvalidValue("scale has an entry that is not positive: it is a standard deviation.")
        self.model = model
        self.info = info
        self.columns = tuple(columns)
        self.series = tuple(series)
        self.time = time
        self.id = id
        self.zone = zone
        self.regular = regular
        self.resampled = resampled
        self.register_buffer("mean", torch.zeros(shape) if mean is None else mean.float())
        self.register_buffer("scale", torch.ones(shape, dtype=torch.float32) if scale is None else scale.float())

    @property
    def config(self) -> dict[str, Any]:
        """All constructor options except the model and its statistics, as JSON values."""
        info = asdict(self.info) | {"targets": list(self.info.targets)}
        return {
            "info": info,
            "columns": list(self.columns),
            "series": list(self.series),
            "time": self.time,
            "id": self.id,
            "zone": self.zone,
            "regular": self.regular,
            "resampled": self.resampled,
        }

    @classmethod
    def from_config(cls, model: nn.Module, config: dict[str, Any]) -> Self:
        """The wrapper that :attr:`config` describes, around ``model``; load its state dict to get the statistics."""
        info = ForecastInfo.from_plain(config["info"])
        return cls(model, info, **{k: v for k, v in config.items() if k != "info"})

    def forward(self, x: Tensor, marks: Tensor | None = None, series: Tensor | None = None) -> Tensor:
        """Forecast in the user's units.

        Args:
            x: floating point ``(B, lookback, channels)`` in the user's units, without missing values (fill them from
                the past, see :func:`~foveate.tasks.forecast.protocol.fill_from_past`). Give float64 where values vary
                by less than a thousandth of their size; the model itself computes in its own dtype.
            marks: ``(B, lookback, info.marks)`` calendar features, see
                :func:`~foveate.tasks.forecast.features.time_features`; models that use none may be given None.
            series: int64 ``(B,)``, which series each sample belongs to; None if there is one.

        Returns:
            ``(B, horizon, channels)`` in the user's units, dtype of ``x``.

        Raises:
            InvalidValue: wrong shape, a missing value, or ``series`` is needed and absent. Under ``torch.compile``
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
                f"x has shape {tuple(x.shape)} and dtype {x.dtype}: floating point (batch, lookback, channels) = "
                f"(batch, {expected[0]}, {expected[1]}) is needed."
            )
        if not torch.compiler.is_compiling() and not bool(torch.isfinite(x).all()):
            missing = ~torch.isfinite(x).flatten(0, 1).all(dim=0)
            names = ", ".join(repr(name) for name, bad in zip(self.columns, missing.tolist(), strict=True) if bad)
            raise InvalidValue(f"x has missing or infinite values in {names}: fill them with the last value before.")
        mean, scale = mean.unsqueeze(1), scale.unsqueeze(1)
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), x.dtype)
        forecast = self.model(((x - mean) / scale).to(dtype), marks=None if marks is None else marks.to(dtype))
        return (forecast.to(torch.promote_types(x.dtype, scale.dtype)) * scale + mean).to(x.dtype)
