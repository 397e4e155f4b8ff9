"""The trained detector as a plain module in the user's units: what ``best/`` ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Self

import torch
from torch import Tensor, nn

from ...errors import InvalidValue
from ..packaged import Packaged, channel_list
from .protocol import DetectAnomaliesInfo


class AnomalyDetector(Packaged):
    """A reconstructing model behind the scaler of the training rows, with the score above which a step is an anomaly.

    Args:
        model: standardised ``(B, lookback, channels)`` to the same shape.
        info: window and channels.
        columns: names of the channels.
        mean, scale: ``(channels,)`` statistics of the training rows; None: 0 and 1, to be loaded by
            ``load_state_dict`` (they are float32 buffers).
        threshold: a step with a higher score is an anomaly; a float64 buffer.
        stride: rows between the windows whose scores are averaged.
        time: name of the time column in the training data, if it had one.
    """

    mean: Tensor
    scale: Tensor
    threshold: Tensor

    def __init__(
        self,
        model: nn.Module,
        info: DetectAnomaliesInfo,
        *,
        columns: Sequence[str],
        mean: Tensor | None = None,
        scale: Tensor | None = None,
        threshold: float = 0.0,
        stride: int = 1,
        time: str | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.info = info
        self.columns = tuple(columns)
        self.stride, self.time = stride, time
        self.register_buffer("mean", torch.zeros(info.channels) if mean is None else mean.float())
        self.register_buffer("scale", torch.ones(info.channels) if scale is None else scale.float())
        self.register_buffer("threshold", torch.tensor(threshold, dtype=torch.float64))

    @property
    def config(self) -> dict[str, Any]:
        """All constructor options except the model, its statistics and the threshold, as JSON values."""
        return {"info": asdict(self.info), "columns": list(self.columns), "stride": self.stride, "time": self.time}

    def interface(self) -> dict[str, Any]:
        """See :meth:`Packaged.interface`."""
        length, channels = self.info.lookback, self.info.channels
        return {
            "inputs": {
                "x": f"float `(batch, {length}, {channels})`, a window in the units of the training data, without "
                f"missing values. {channel_list(self.columns)}"
            },
            "output": f"float `(batch, {length})`, the score of every step, without unit; more than the model's "
            f"`threshold` is unusual",
            "example": f"torch.zeros(1, {length}, {channels})",
            "shape": f"(1, {length})",
        }

    @classmethod
    def from_config(cls, model: nn.Module, config: Mapping[str, Any]) -> Self:
        """The wrapper that :attr:`config` describes, around ``model``; load its state dict to get the buffers."""
        info = DetectAnomaliesInfo.from_plain(config["info"])
        return cls(model, info, **{k: v for k, v in config.items() if k != "info"})

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        """Random arguments of :meth:`forward`, as ``predict`` gives them."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(batch, self.info.lookback, self.info.channels, generator=generator).to(self.mean)
        return {"x": self.mean + self.scale * x}

    def forward(self, x: Tensor) -> Tensor:
        """Score of every step by its window alone.

        Args:
            x: floating point ``(B, lookback, channels)`` in the user's units, without missing values.

        Returns:
            ``(B, lookback)``: squared errors of the reconstruction in standardised units, averaged over channels; more
            than :attr:`threshold` is unusual. (``predict`` averages over windows that overlap.)

        Raises:
            InvalidValue: wrong shape, or a missing or infinite value.
        """
        expected = (self.info.lookback, self.info.channels)
        if x.ndim != 3 or tuple(x.shape[1:]) != expected or not x.is_floating_point():
            raise InvalidValue(
                f"x has shape {tuple(x.shape)} and dtype {x.dtype}: floating point (batch, {expected[0]}, "
                f"{expected[1]}) is needed."
            )
        if not torch.compiler.is_compiling() and not bool(torch.isfinite(x).all()):
            raise InvalidValue("x has missing or infinite values: fill them with the last value before.")
        x = (x - self.mean) / self.scale
        return (self.model(x) - x).square().mean(-1)
