"""The trained segmenter as a plain module: what ``best/`` ships."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Self

import torch
from torch import Tensor, nn

from ...errors import InvalidValue
from ..packaged import Packaged, channel_list
from .protocol import SegmentInfo
from .windows import sliding_window


class ImageSegmenter(Packaged):
    """A model of patches behind the statistics of the training images, with a sliding window for larger images.

    Args:
        model: standardised ``(B, channels, *size)`` to logits ``(B, classes, *size)``.
        info: sizes and the names of the classes.
        unit: what intensities are divided by: 255 for images of bytes, 1 for volumes.
        normalise: "training" or "each".
        spacing: of training voxels in millimetres, which ``predict`` brings volumes to; None: none.
        overlap, blending: of the sliding window.
        mean, scale: ``(channels,)`` statistics of the training images divided by ``unit``; None: 0 and 1, to be loaded
            by ``load_state_dict`` (they are float32 buffers).
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        model: nn.Module,
        info: SegmentInfo,
        *,
        unit: float = 1.0,
        normalise: str = "training",
        spacing: Sequence[float] | None = None,
        overlap: float = 0.5,
        blending: str = "gaussian",
        mean: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.info = info
        self.unit, self.normalise, self.overlap, self.blending = unit, normalise, overlap, blending
        self.spacing = None if spacing is None else list(spacing)
        self.classes = info.class_names
        self.register_buffer("mean", torch.zeros(info.channels) if mean is None else mean.float())
        self.register_buffer("scale", torch.ones(info.channels) if scale is None else scale.float())

    @property
    def config(self) -> dict[str, Any]:
        """All constructor options except the model and its statistics, as JSON values."""
        names = ("unit", "normalise", "spacing", "overlap", "blending")
        return {"info": asdict(self.info), **{name: getattr(self, name) for name in names}}

    def interface(self) -> dict[str, Any]:
        """See :meth:`Packaged.interface`."""
        size = ", ".join(map(str, self.info.size))
        kind = "pixels between 0 and 1" if self.unit == 255 else "intensities as in the training volumes"
        return {
            "inputs": {
                "x": f"float `(batch, {self.info.channels}, {size})` or larger, which a sliding window reads: {kind}"
            },
            "output": f"float `(batch, {self.info.classes}, ...)`, logits. {channel_list(self.classes, 'Classes')}",
            "example": f"torch.zeros(1, {self.info.channels}, {size})",
            "shape": f"(1, {self.info.classes}, {size})",
        }

    @classmethod
    def from_config(cls, model: nn.Module, config: Mapping[str, Any]) -> Self:
        """The wrapper that :attr:`config` describes, around ``model``; load its state dict to get the statistics."""
        info = SegmentInfo.from_plain(config["info"])
        return cls(model, info, **{k: v for k, v in config.items() if k != "info"})

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        """Random arguments of :meth:`forward`, one window large."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(batch, self.info.channels, *self.info.size, generator=generator).to(self.mean)
        if self.unit == 255:
            return {"x": x}
        shape = (-1, *[1] * len(self.info.size))
        return {"x": self.mean.view(shape) + self.scale.view(shape) * (4 * x - 2)}

    def answer(self, x: Tensor, model: Callable[[Tensor], Tensor] | None = None, batch_size: int = 8) -> Tensor:
        """Logits ``(B, classes, *shape)`` of standardised images ``(B, channels, *shape)``."""
        window = {"overlap": self.overlap, "blending": self.blending, "at_once": batch_size}
        return sliding_window(model or self.model, x, self.info.size, **window)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, classes, *shape)``.

        Args:
            x: floating point ``(B, channels, *shape)`` of any shape: pixels between 0 and 1 (bytes divided by 255), or
                intensities of volumes as they are in the files.

        Raises:
            InvalidValue: another rank, number of channels or type, or a missing value.
        """
        rank = len(self.info.size)
        if x.ndim != 2 + rank or x.shape[1] != self.info.channels or not x.is_floating_point():
            axes = ", ".join(("depth", "height", "width")[-rank:])
            raise InvalidValue(
                f"x has shape {tuple(x.shape)} and dtype {x.dtype}: floating point (batch, {self.info.channels}, "
                f"{axes}) is needed."
            )
        if not torch.compiler.is_compiling() and not bool(torch.isfinite(x).all()):
            raise InvalidValue("x has missing or infinite values: replace them.")
        shape = (1, -1, *[1] * rank)
        mean, scale = self.mean.view(shape), self.scale.view(shape)
        if self.normalise == "each":
            axes = tuple(range(2, x.ndim))
            mean = x.mean(axes, keepdim=True)
            scale = (x - mean).square().mean(axes, keepdim=True).sqrt().clamp_min(1e-6)
        x = (x - mean) / scale
        return self.model(x) if tuple(x.shape[2:]) == self.info.size else self.answer(x)
