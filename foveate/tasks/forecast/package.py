"""The trained forecaster as a plain module in the user's units: what ``best/`` ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Self

import torch
from torch import Tensor, nn

from ...errors import InvalidValue
from ..packaged import Packaged, channel_list
from .protocol import ForecastInfo


class Forecaster(Packaged):
    """A forecast model between a scaler and its inverse.

    Args:
        model: ``(B, lookback, channels)`` standardised to ``(B, horizon, channels)`` standardised, called as
            ``model(x, marks=marks)``; with covariates or quantiles as
            :class:`~foveate.models.outlook.Outlook` is.
        info: lookback, horizon, channels and step, covariates and quantiles.
        columns: names of the channels.
        series: names of the series whose statistics are kept, ``("",)`` for one nameless series.
        mean, scale: ``(series, channels)`` statistics of the training rows; None: 0 and 1, to be loaded by
            ``load_state_dict`` (they are float32 buffers).
        time, id: names of the time and id columns in the training data.
        zone: offset of its times from UTC in minutes.
        regular, resampled: whether the training rows lay on the grid of ``info.freq``, and whether as means.
        known: names of the columns that are known over the horizon.
        known_mean, known_scale: ``(known,)`` statistics of their training rows, as ``mean`` and ``scale``.
        static: how static columns become features, see :mod:`foveate.tasks.forecast.covariates`.

    Raises:
        InvalidValue: statistics or names have another shape, or a scale is not positive.
    """

    mean: Tensor
    scale: Tensor
    known_mean: Tensor
    known_scale: Tensor

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
        known: Sequence[str] = (),
        known_mean: Tensor | None = None,
        known_scale: Tensor | None = None,
        static: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__()
        shape = (len(series), info.channels)
        for name, names, count in (("columns", columns, info.channels), ("known", known, info.known)):
            if len(names) != count:
                raise InvalidValue(f"{name}={tuple(names)!r} is not possible: {count} names are needed.")
        for name, given in (("mean", mean), ("scale", scale)):
            if given is not None and tuple(given.shape) != shape:
                raise InvalidValue(f"{name} has shape {tuple(given.shape)}: (series, channels) = {shape} is needed.")
        for name, given in (("known_mean", known_mean), ("known_scale", known_scale)):
            if given is not None and tuple(given.shape) != (info.known,):
                raise InvalidValue(f"{name} has shape {tuple(given.shape)}: (known,) = {(info.known,)} is needed.")
        for name, given in (("scale", scale), ("known_scale", known_scale)):
            if given is not None and not bool((given > 0).all()):
                raise InvalidValue(f"{name} has an entry that is not positive: it is a standard deviation.")
        self.model = model
        self.info = info
        self.columns = tuple(columns)
        self.series = tuple(series)
        self.time = time
        self.id = id
        self.zone = zone
        self.regular = regular
        self.resampled = resampled
        self.known = tuple(known)
        self.static = tuple(static)
        self.register_buffer("mean", torch.zeros(shape) if mean is None else mean.float())
        self.register_buffer("scale", torch.ones(shape, dtype=torch.float32) if scale is None else scale.float())
        if known:
            none, one = torch.zeros(len(known)), torch.ones(len(known))
            self.register_buffer("known_mean", none if known_mean is None else known_mean.float())
            self.register_buffer("known_scale", one if known_scale is None else known_scale.float())

    @property
    def config(self) -> dict[str, Any]:
        """All constructor options except the model and its statistics, as JSON values."""
        info = asdict(self.info) | {"targets": list(self.info.targets), "quantiles": list(self.info.quantiles)}
        return {
            "info": info,
            "columns": list(self.columns),
            "series": list(self.series),
            "time": self.time,
            "id": self.id,
            "zone": self.zone,
            "regular": self.regular,
            "resampled": self.resampled,
            "known": list(self.known),
            "static": [dict(code) for code in self.static],
        }

    def interface(self) -> dict[str, Any]:
        """See :meth:`Packaged.interface`."""
        info = self.info
        steps, told = info.lookback + info.horizon, {"x": f"torch.zeros(1, {info.lookback}, {info.channels})"}
        inputs = {
            "x": f"float `(batch, {info.lookback}, {info.channels})`, the last {info.lookback} rows, one every "
            f"`{info.freq}`, in the units of the training data, without missing values. {channel_list(self.columns)}",
        }
        if info.marks:
            inputs["marks"] = f"float `(batch, {info.lookback}, {info.marks})`, calendar features; may be left out"
        if len(self.series) > 1:
            inputs["series"] = f"int64 `(batch,)`, which of the {len(self.series):,} series each sample belongs to"
            told["series"] = "torch.tensor([0])"
        if info.known:
            names = channel_list(self.known)
            inputs["known"] = f"float `(batch, {steps}, {info.known})`, covariates of past and horizon. {names}"
            told["known"] = f"torch.zeros(1, {steps}, {info.known})"
        if info.static:
            inputs["static"] = f"float `(batch, {info.static})`, features of the series, as `encode_static` makes them"
            told["static"] = f"torch.zeros(1, {info.static})"
        levels = f", {len(info.quantiles)}" if info.quantiles else ""
        which = f", last axis the quantiles {', '.join(map(str, info.quantiles))}" if info.quantiles else ""
        shape = f"{info.horizon}, {info.channels}{levels}"
        return {
            "inputs": inputs,
            "output": f"float `(batch, {shape})`, the next {info.horizon} rows in the same units and order{which}",
            "example": ", ".join([told.pop("x"), *(f"{name}={value}" for name, value in told.items())]),
            "shape": f"(1, {shape})",
            "scores": "MSE and MAE are of standardised values, over all windows and targets.",
        }

    @classmethod
    def from_config(cls, model: nn.Module, config: dict[str, Any]) -> Self:
        """The wrapper that :attr:`config` describes, around ``model``; load its state dict to get the statistics."""
        info = ForecastInfo.from_plain(config["info"])
        return cls(model, info, **{k: v for k, v in config.items() if k != "info"})

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        """Random arguments of :meth:`forward`, all that this forecaster may be told, as ``predict`` gives them."""
        generator, info = torch.Generator().manual_seed(seed), self.info
        index = torch.arange(batch) % len(self.series)
        mean, scale = self.mean[index].double().unsqueeze(1), self.scale[index].double().unsqueeze(1)
        x = torch.randn(batch, info.lookback, info.channels, generator=generator, dtype=torch.float64)
        inputs = {"x": mean + scale * x.to(mean)}
        if info.marks:
            inputs["marks"] = torch.rand(batch, info.lookback, info.marks, generator=generator).to(self.mean) - 0.5
        if len(self.series) > 1:
            inputs["series"] = index.to(self.mean.device)
        if self.known:
            k = torch.randn(batch, info.lookback + info.horizon, info.known, generator=generator, dtype=torch.float64)
            inputs["known"] = self.known_mean.double() + self.known_scale.double() * k.to(mean)
        if self.static:
            inputs["static"] = torch.rand(batch, info.static, generator=generator).to(self.mean)
        return inputs

    def forward(
        self,
        x: Tensor,
        marks: Tensor | None = None,
        series: Tensor | None = None,
        known: Tensor | None = None,
        static: Tensor | None = None,
    ) -> Tensor:
        """Forecast in the user's units.

        Args:
            x: floating point ``(B, lookback, channels)`` in the user's units, without missing values (fill them from
                the past, see :func:`~foveate.tasks.forecast.protocol.fill_from_past`). Give float64 where values vary
                by less than a thousandth of their size; the model itself computes in its own dtype.
            marks: ``(B, lookback, info.marks)`` calendar features, see
                :func:`~foveate.tasks.forecast.features.time_features`; models that use none may be given None.
            series: int64 ``(B,)``, which series each sample belongs to; None if there is one.
            known: ``(B, lookback + horizon, known)`` covariates of window and horizon, in the user's units.
            static: ``(B, info.static)`` features of each sample's series, see
                :func:`~foveate.tasks.forecast.covariates.encode_static`.

        Returns:
            ``(B, horizon, channels)`` in the user's units, dtype of ``x``; with quantiles ``(B, horizon, channels,
            levels)`` in the order of ``info.quantiles``.

        Raises:
            InvalidValue: wrong shape, a missing value, or ``series`` is needed and absent. Under ``torch.compile``
                and ``torch.export``, values are not looked at.
        """
        if series is None and len(self.series) > 1:
            raise InvalidValue(f"series is needed: {len(self.series)} series have their own scales; give (B,) indices.")
        index = torch.zeros(1, dtype=torch.int64, device=x.device) if series is None else series
        return self.rescaled(x, self.mean[index], self.scale[index], marks, known, static)

    def rescaled(
        self,
        x: Tensor,
        mean: Tensor,
        scale: Tensor,
        marks: Tensor | None = None,
        known: Tensor | None = None,
        static: Tensor | None = None,
    ) -> Tensor:
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
        told: dict[str, Tensor] = {}
        if self.known and known is not None:
            told["known"] = ((known - self.known_mean) / self.known_scale).to(dtype)
        if self.static and static is not None:
            told["static"] = static.to(dtype)
        forecast = self.model(((x - mean) / scale).to(dtype), marks=None if marks is None else marks.to(dtype), **told)
        if self.info.quantiles:
            mean, scale = mean.unsqueeze(-1), scale.unsqueeze(-1)
        return (forecast.to(torch.promote_types(x.dtype, scale.dtype)) * scale + mean).to(x.dtype)
