"""What a forecaster is told besides the window, and answers besides one number: covariates and quantiles.

Every contestant gets the same through :class:`Outlook`. Covariates that are known ahead enter as in regression with
errors of another model (Hyndman and Athanasopoulos, FPP3, section 10.1): a small network ``g`` of the covariates of a
step is taken off the window, the forecaster sees the rest, and ``g`` is put back on the horizon; what does not change
within a series (``s``) adds a term of its own for each step of the horizon::

    y[h] = forecaster(x - g(k[window], s))[h] + g(k[horizon], s)[h] + o(s)[h]

``g`` and ``o`` start at zero: at first every forecaster answers as if there were no covariates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidValue
from ..mixers.parts import Linear
from ..spec import ModelSpec
from .quantiles import QuantileSpread, ResidualQuantiles, check_levels

#: Width of the hidden layer of ``g`` and ``o``.
HIDDEN = 32


def levels_of(info: Any) -> tuple[float, ...]:
    """The quantile levels that a forecast is asked for; none: one number per value."""
    return tuple(getattr(info, "quantiles", ()))


def with_outlook(model: nn.Module, info: Any) -> nn.Module:
    """``model`` inside an :class:`Outlook` where ``info`` (``Task.info``) has covariates or quantiles, else itself."""
    known, static, levels = getattr(info, "known", 0), getattr(info, "static", 0), levels_of(info)
    if not (known or static or levels):
        return model
    return Outlook(model, info.lookback, info.horizon, info.channels, known=known, static=static, quantiles=levels)


class CovariateEffect(nn.Module):
    """What the covariates of a step add to every channel at that step: a linear map and a small network.

    Args:
        known, static: covariates of a step and of its series.
        channels: of the series.
    """

    def __init__(self, known: int, static: int, channels: int) -> None:
        super().__init__()
        self.linear = Linear(known, channels, bias=False)
        self.network = _from_zero(known + static, channels)
        nn.init.zeros_(self.linear.weight)

    def forward(self, known: Tensor, static: Tensor | None) -> Tensor:
        """``(B, T, known)`` and ``(B, static)`` to ``(B, T, channels)``."""
        joint = known
        if static is not None:
            joint = torch.cat([known, static[:, None].expand(-1, known.shape[1], -1)], -1)
        return self.linear(known) + self.network(joint)


def _from_zero(inputs: int, outputs: int) -> nn.Sequential:
    """A network with one hidden layer whose answer is zero at first."""
    layers = nn.Sequential(Linear(inputs, HIDDEN), nn.GELU(), Linear(HIDDEN, outputs, bias=False))
    nn.init.zeros_(layers[2].weight)  # type: ignore[arg-type]
    return layers


class Outlook(nn.Module):
    """A forecaster between covariates and quantiles.

    A model whose spec says ``covariates`` or ``quantiles`` does that itself and is left to it. A system that does not
    learn (a baseline) is not told the covariates, and its quantiles are those of its residuals in training.

    Args:
        model: called as ``model(x, marks=marks)``, with ``known`` and ``static`` too if its spec says ``covariates``;
            returns ``(B, horizon, channels)``, with a last axis of levels if its spec says ``quantiles``.
        lookback, horizon, channels: of the forecast.
        known, static: number of covariates.
        quantiles: levels, rising, 0.5 among them; none: point forecasts.

    Raises:
        InvalidType, InvalidValue: illegal levels.
    """

    def __init__(
        self,
        model: nn.Module,
        lookback: int,
        horizon: int,
        channels: int,
        *,
        known: int = 0,
        static: int = 0,
        quantiles: tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.lookback, self.horizon, self.channels = lookback, horizon, channels
        self.known, self.static, self.quantiles = known, static, check_levels(quantiles)
        spec = self.spec
        learns = spec is None or spec.trains
        self.tells_model = spec is not None and spec.covariates
        told = learns and not self.tells_model
        self.effect = CovariateEffect(known, static, channels) if told and known else None
        self.offset = _from_zero(static, horizon * channels) if told and static else None
        self.spread: QuantileSpread | ResidualQuantiles | None = None
        self.model_spreads = bool(quantiles) and spec is not None and spec.quantiles
        if quantiles and not self.model_spreads:
            self.spread = (QuantileSpread if learns else ResidualQuantiles)(horizon, channels, self.quantiles)

    @property
    def spec(self) -> ModelSpec | None:
        """The forecaster's promises; None if it makes none."""
        return getattr(self.model, "spec", None)

    def forward(
        self, x: Tensor, marks: Tensor | None = None, known: Tensor | None = None, static: Tensor | None = None
    ) -> Tensor:
        """Forecast.

        Args:
            x: float ``(B, lookback, channels)``.
            marks: ``(B, lookback, marks)`` time features.
            known: ``(B, lookback + horizon, known)`` covariates of the window and of the horizon.
            static: ``(B, static)`` covariates of each sample's series.

        Returns:
            ``(B, horizon, channels)``, with quantiles ``(B, horizon, channels, levels)`` in the order of the levels.

        Raises:
            InvalidValue: covariates are missing or of another shape, or the forecaster's answer is.
        """
        self._check("known", known, (x.shape[0], self.lookback + self.horizon, self.known), self.known)
        self._check("static", static, (x.shape[0], self.static), self.static)
        own: dict[str, Tensor | None] = {"known": known, "static": static} if self.tells_model else {}
        effect = None
        if self.effect is not None and known is not None:
            effect = self.effect(known, static)
            x = x - effect[:, : self.lookback]
        y = self.model(x, marks=marks, **own)
        shape = (x.shape[0], self.horizon, self.channels)
        check_forecast(type(self.model).__name__, y, shape, len(self.quantiles) if self.model_spreads else 0)
        if self.spread is not None:
            y = self.spread(y, x)
        later = None if effect is None else effect[:, self.lookback :]
        if self.offset is not None:
            constant = self.offset(static).unflatten(1, shape[1:])
            later = constant if later is None else later + constant
        if later is None:
            return y
        return y + (later[..., None] if self.quantiles else later)

    def fit(self, batch: Any) -> None:
        """Hand the training samples to a forecaster that is fitted in one go."""
        self.model.fit(batch)  # type: ignore[operator]

    def _check(self, name: str, given: Tensor | None, shape: tuple[int, ...], count: int) -> None:
        came = None if given is None else tuple(given.shape)
        if came != (shape if count else None):
            wanted = f"it must be {shape}" if count else "there are none"
            raise InvalidValue(f"{name} has shape {came}: {wanted}.")


def check_forecast(name: str, answer: Any, shape: tuple[int, ...], levels: int = 0) -> None:
    """Refuse anything but a tensor ``(batch, horizon, channels)``, with ``levels`` a last axis of them.

    Raises:
        InvalidValue: it is something else; the message names the model.
    """
    wanted, axes = ((*shape, levels), ", levels") if levels else (shape, "")
    if not isinstance(answer, Tensor) or answer.shape != wanted:
        came = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise InvalidValue(
            f"{name} returned {came}: a forecast is a tensor (batch, horizon, channels{axes}) = {tuple(wanted)}."
        )
