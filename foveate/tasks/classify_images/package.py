"""The trained classifier as a plain module: what ``best/`` ships."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Self

import torch
from torch import Tensor, nn

from ...errors import InvalidValue
from ..packaged import Packaged, channel_list
from .protocol import ClassifyImagesInfo


class ImageClassifier(Packaged):
    """A model of images behind the statistics of the training images.

    Args:
        model: standardised ``(B, channels, height, width)`` to logits ``(B, classes)``.
        info: sizes and the names of the classes.
        fit: how ``predict`` brings images to size, see :func:`~foveate.tasks.classify_images.pictures.fitted`.
        mean, scale: ``(channels,)`` statistics of the training pixels, which lie between 0 and 1; None: 0 and 1, to be
            loaded by ``load_state_dict`` (they are float32 buffers).
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        model: nn.Module,
        info: ClassifyImagesInfo,
        *,
        fit: str = "crop",
        mean: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.info = info
        self.fit = fit
        self.classes = info.class_names
        self.register_buffer("mean", torch.zeros(info.channels) if mean is None else mean.float())
        self.register_buffer("scale", torch.ones(info.channels) if scale is None else scale.float())

    @property
    def config(self) -> dict[str, Any]:
        """All constructor options except the model and its statistics, as JSON values."""
        return {"info": asdict(self.info), "fit": self.fit}

    def interface(self) -> dict[str, Any]:
        """See :meth:`Packaged.interface`."""
        height, width = self.info.size
        colours = "grey" if self.info.channels == 1 else "red, green, blue"
        return {
            "inputs": {
                "x": f"float `(batch, {self.info.channels}, {height}, {width})`, pixels between 0 and 1 ({colours})"
            },
            "output": f"float `(batch, {self.info.classes})`, logits. {channel_list(self.classes, 'Classes')}",
            "example": f"torch.zeros(1, {self.info.channels}, {height}, {width})",
            "shape": f"(1, {self.info.classes})",
        }

    @classmethod
    def from_config(cls, model: nn.Module, config: Mapping[str, Any]) -> Self:
        """The wrapper that :attr:`config` describes, around ``model``; load its state dict to get the statistics."""
        return cls(model, ClassifyImagesInfo.from_plain(config["info"]), fit=config["fit"])

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        """Random arguments of :meth:`forward`, as ``predict`` gives them."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(batch, self.info.channels, *self.info.size, generator=generator)
        return {"x": x.to(self.mean)}

    def forward(self, x: Tensor) -> Tensor:
        """Class logits ``(B, classes)``.

        Args:
            x: floating point ``(B, channels, height, width)`` of the training size, pixels between 0 and 1 (bytes
                divided by 255).

        Raises:
            InvalidValue: another shape or type, or a missing value.
        """
        expected = (self.info.channels, *self.info.size)
        if x.ndim != 4 or tuple(x.shape[1:]) != expected or not x.is_floating_point():
            raise InvalidValue(
                f"x has shape {tuple(x.shape)} and dtype {x.dtype}: floating point (batch, "
                f"{', '.join(map(str, expected))}) between 0 and 1 is needed."
            )
        if not torch.compiler.is_compiling() and not bool(torch.isfinite(x).all()):
            raise InvalidValue("x has missing or infinite values: pixels between 0 and 1 are needed.")
        return self.model((x - self.mean[:, None, None]) / self.scale[:, None, None])
