"""The trained forecaster as a plain module in the user's units: what ``best/`` ships."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Self

import torch
from torch import Tensor, nn

from ...errors import InvalidValue
from ..forecast.protocol import ForecastInfo
from ..packaged import Packaged
from .protocol import window_scale


class M4Forecaster(Packaged):
    """A forecast model in the scale of each window; it knows no series by name.

    Args:
        model: ``(B, lookback, 1)`` in the window's scale to ``(B, horizon, 1)``, called as ``model(x, marks=marks)``
            with marks ``(B, lookback, 0)``: there are no time stamps.
        info: lookback, horizon and season.
        id: name of the id column in the training data.
    """

    def __init__(self, model: nn.Module, info: ForecastInfo, *, id: str = "id") -> None:
        super().__init__()
        self.model = model
        self.info = info
        self.id = id

    @property
    def config(self) -> dict[str, Any]:
        """All constructor options except the model, as JSON values."""
        return {"info": asdict(self.info) | {"targets": list(self.info.targets)}, "id": self.id}

    def interface(self) -> dict[str, Any]:
        """See :meth:`Packaged.interface`."""
        info = self.info
        return {
            "inputs": {
                "x": f"float `(batch, {info.lookback}, 1)`, the last {info.lookback} values of a series in its own "
                f"units; of a shorter one, NaN in front"
            },
            "output": f"float `(batch, {info.horizon}, 1)`, the next {info.horizon} values in the same units",
            "example": f"torch.ones(1, {info.lookback}, 1)",
            "shape": f"(1, {info.horizon}, 1)",
        }

    @classmethod
    def from_config(cls, model: nn.Module, config: Mapping[str, Any]) -> Self:
        """The wrapper that :attr:`config` describes, around ``model``."""
        return cls(model, ForecastInfo.from_plain(config["info"]), id=config["id"])

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        """Random arguments of :meth:`forward`, as ``predict`` gives them: one of three windows is a shorter series."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(batch, self.info.lookback, 1, generator=generator, dtype=torch.float64)
        x = 1000 + 100 * x
        x[2::3, : self.info.lookback // 2] = torch.nan
        return {"x": x}

    def forward(self, x: Tensor) -> Tensor:
        """Forecast in the user's units.

        Args:
            x: floating point ``(B, lookback, 1)`` in the user's units; of a series that is shorter, NaN in front. Give
                float64 where values vary by less than a thousandth of their size; the model itself computes in its own
                dtype.

        Returns:
            ``(B, horizon, 1)`` in the user's units, dtype of ``x``.

        Raises:
            InvalidValue: wrong shape, a missing value behind the first one, an infinite one. Under ``torch.compile``
                and ``torch.export``, values are not looked at.
        """
        if x.ndim != 3 or tuple(x.shape[1:]) != (self.info.lookback, 1) or not x.is_floating_point():
            raise InvalidValue(
                f"x has shape {tuple(x.shape)} and dtype {x.dtype}: floating point (batch, lookback, 1) = "
                f"(batch, {self.info.lookback}, 1) is needed."
            )
        real = ~x.isnan()
        if not torch.compiler.is_compiling():
            whole = bool(x[:, -1].isfinite().all()) and not bool(x.isinf().any())
            if not whole or not torch.equal(real, real.cummax(1).values):
                raise InvalidValue("x has missing or infinite values: only a shorter series may have NaN in front.")
        first = x.gather(1, real.long().argmax(1, keepdim=True))
        x = torch.where(real, x, first)
        mean, scale = window_scale(x, real)
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), x.dtype)
        scaled = ((x - mean) / scale).to(dtype)
        return (self.model(scaled, marks=scaled[..., :0]).to(x.dtype) * scale + mean).to(x.dtype)
