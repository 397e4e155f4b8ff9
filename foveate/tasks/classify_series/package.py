"""The trained classifier as a plain module in the user's units: what ``best/`` ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Self

import torch
from torch import Tensor, nn

from ...errors import InvalidValue
from ..packaged import Packaged, channel_list
from .protocol import ClassifySeriesInfo


class SeriesClassifier(Packaged):
    """A model of whole series behind the scaler of the training samples.

    Args:
        model: standardised ``(B, lookback, channels)`` to logits ``(B, classes)``, called as ``model(x, mask=mask)``.
        info: sizes.
        columns: names of the channels.
        classes: names of the classes.
        mean, scale: ``(channels,)`` statistics of the training samples; None: 0 and 1, to be loaded by
            ``load_state_dict`` (they are float32 buffers).
        roles: id, label, time and group column of the training table, if it was one.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        model: nn.Module,
        info: ClassifySeriesInfo,
        *,
        columns: Sequence[str],
        classes: Sequence[str],
        mean: Tensor | None = None,
        scale: Tensor | None = None,
        roles: Mapping[str, str | None] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.info = info
        self.columns, self.classes = tuple(columns), tuple(classes)
        self.roles = None if roles is None else dict(roles)
        self.register_buffer("mean", torch.zeros(info.channels) if mean is None else mean.float())
        self.register_buffer("scale", torch.ones(info.channels) if scale is None else scale.float())

    @property
    def config(self) -> dict[str, Any]:
        """All constructor options except the model and its statistics, as JSON values."""
        return {
            "info": asdict(self.info),
            "columns": list(self.columns),
            "classes": list(self.classes),
            "roles": self.roles,
        }

    def interface(self) -> dict[str, Any]:
        """See :meth:`Packaged.interface`."""
        info, classes = self.info, len(self.classes)
        inputs = {
            "x": f"float `(batch, {info.lookback}, {info.channels})`, a whole series in the units of the training "
            f"data, without missing values. {channel_list(self.columns)}"
        }
        if info.padded:
            inputs["mask"] = (
                f"bool `(batch, {info.lookback})`, True = a real step; shorter series are padded at the end"
            )
        return {
            "inputs": inputs,
            "output": f"float `(batch, {classes})`, logits. {channel_list(self.classes, 'Classes')}",
            "example": f"torch.zeros(1, {info.lookback}, {info.channels})",
            "shape": f"(1, {classes})",
        }

    @classmethod
    def from_config(cls, model: nn.Module, config: Mapping[str, Any]) -> Self:
        """The wrapper that :attr:`config` describes, around ``model``; load its state dict to get the statistics."""
        info = ClassifySeriesInfo.from_plain(config["info"])
        return cls(model, info, **{k: v for k, v in config.items() if k != "info"})

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        """Random arguments of :meth:`forward`, as ``predict`` gives them; of padded ones some are shorter."""
        generator, info = torch.Generator().manual_seed(seed), self.info
        x = torch.randn(batch, info.lookback, info.channels, generator=generator).to(self.mean)
        inputs = {"x": self.mean + self.scale * x}
        if info.padded:
            steps = torch.arange(info.lookback, device=x.device)
            lengths = torch.randint(1, info.lookback + 1, (batch, 1), generator=generator).to(x.device)
            inputs["mask"] = steps < lengths
        return inputs

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Class logits.

        Args:
            x: floating point ``(B, lookback, channels)`` in the user's units, without missing values among the real
                steps; shorter samples are padded at the end (with anything finite).
            mask: bool ``(B, lookback)``, True = a real step; None: all are. Needed only where samples are shorter
                than ``lookback``.

        Returns:
            ``(B, classes)``.

        Raises:
            InvalidValue: wrong shape, or a missing value.
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
        if not self.info.padded:
            return self.model(x)
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        return self.model(x.masked_fill(~mask[..., None], 0), mask=mask)
