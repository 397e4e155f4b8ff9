"""MixerNet: a standard pre-norm backbone that makes any registered mixer of a fitting rank into a model.

The plainest network a mixer can stand in, so that a comparison of two mixers compares the mixers::

    x = reader(input) + positions
    repeat depth times:   x = x + mixer(norm(x));   x = x + mlp(norm(x))
    y = head(norm(x))

The blocks are those of :mod:`foveate.models.mixer_stack`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..errors import InvalidType, InvalidValue
from ..mixers.base import Mixer
from ..mixers.parts import Linear
from ..spec import ModelSpec
from .base import Model, check_series
from .mixer_stack import MixerStack
from .outlook import levels_of
from .quantiles import QuantileOrder
from .readers import (
    ClassHead,
    ForecastHead,
    GapReader,
    MapHead,
    PatchHead,
    PatchReader,
    SeriesReader,
    StepsReader,
    learned_positions,
)


class MixerNet(Model):
    """A mixer as a complete model.

    Args:
        mixer: registered name (or, for a mixer of your own, its class).
        reads: "series" (B, T, C), "image" (B, C, H, W) or "video" (B, C, T, H, W), which is what volumes are read as
            too; text and other token numbers are :class:`~foveate.models.language.language_model.LanguageModel`'s.
        answers: "forecast" (B, horizon, C), "gaps" (B, T, C) and "reconstruct" (B, T, C), for series; "classes"
            (B, outputs), for series, image and video; "map" (B, outputs, *size), for image and video. All but classes
            treat every channel of a series as a sample of its own, with its own scale; classes are read from patches of
            all channels together, as they come.
        size: lookback T, or (H, W), or (T, H, W).
        channels: input channels.
        outputs: horizon or number of classes; not used for gaps and reconstructions.
        dim, depth, num_heads, causal, mlp_ratio, dropout, mixer_options: see
            :class:`~foveate.models.mixer_stack.MixerStack`.
        patch: steps per token of a series, or patch edge.
        quantiles: levels of a forecast, rising, 0.5 among them: the head then answers each; none: one number.

    Raises:
        UnknownName: no such mixer.
        InvalidValue: the mixer's rank does not fit, ``patch`` does not divide, ``reads`` and ``answers`` do not meet,
            illegal levels or levels of something else than a forecast.
    """

    spec = ModelSpec(
        reads="series",
        tasks=("forecast", "classify-series", "impute", "detect-anomalies", "classify-images", "segment"),
        quantiles=True,
        onnx=True,
    )
    named_by_mixer: ClassVar[bool] = True
    _ANSWERS = {
        "series": ("forecast", "classes", "gaps", "reconstruct"),
        "image": ("classes", "map"),
        "video": ("classes", "map"),
    }

    def __init__(
        self,
        mixer: str | type[Mixer],
        *,
        reads: str = "series",
        answers: str = "forecast",
        size: int | tuple[int, ...] = 96,
        channels: int = 1,
        outputs: int = 24,
        dim: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        causal: bool | None = None,
        mlp_ratio: float = 2.0,
        dropout: float = 0.1,
        patch: int = 8,
        mixer_options: dict[str, Any] | None = None,
        quantiles: Sequence[float] = (),
    ) -> None:
        super().__init__()
        if reads not in self._ANSWERS:
            raise InvalidValue(f"reads={reads!r} is not possible: legal are {', '.join(self._ANSWERS)}.")
        if answers not in self._ANSWERS[reads]:
            legal = " or ".join(self._ANSWERS[reads])
            raise InvalidValue(f"answers={answers!r} is not possible for {reads}: legal is {legal}.")
        if quantiles and answers != "forecast":
            raise InvalidValue(f"quantiles={tuple(quantiles)!r} is not possible with answers={answers!r}.")
        self.mixer, self.reads, self.answers, self.channels = mixer, reads, answers, channels
        self.order = QuantileOrder(quantiles) if quantiles else None
        shape = (size,) if isinstance(size, int) else tuple(size)
        if reads == "series" and answers == "classes":
            self.reader: nn.Module = StepsReader(shape[0], patch, channels, dim)
        elif answers == "gaps":
            self.reader = GapReader(shape[0], patch, dim)
        elif reads == "series":
            self.reader = SeriesReader(shape[0], patch, dim)
        else:
            self.reader = PatchReader(shape, patch, channels, dim)
        grid: tuple[int, ...] = self.reader.grid  # type: ignore[assignment]
        self.positions = learned_positions(grid, dim)
        self.size = shape
        self.stack = MixerStack(
            mixer,
            dim,
            depth,
            rank=len(grid),
            num_heads=num_heads,
            causal=causal,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            mixer_options=mixer_options,
            grid=grid,
        )
        if answers == "forecast":
            self.head: nn.Module = ForecastHead(grid[0], dim, outputs * max(1, len(quantiles)), dropout)
        elif answers == "gaps":
            self.head = Linear(dim, patch)
        elif answers == "reconstruct":
            self.head = PatchHead(dim, patch, shape[0])
        elif answers == "map":
            self.head = MapHead(dim, patch, outputs, shape)
        else:
            self.head = ClassHead(dim, outputs)

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        """The network for a task; see :class:`Model`.

        A forecaster of ``info.horizon`` steps from ``info.lookback`` of ``info.channels``, an imputer or reconstructor
        of such windows, a classifier of series of up to ``info.lookback`` steps into ``info.classes``, or one of images
        or of pixels or voxels, of ``info.size``.

        Raises:
            InvalidType: another task, or series of several lengths (``info.padded``) and a mixer that takes no mask.
        """
        if info.task not in cls.spec.tasks:
            raise InvalidType(f"MixerNet cannot be built for the task {info.task!r} yet.")
        if info.task in _TOKENS:
            shape, reads = tuple(info.size), "image" if len(info.size) == 2 else "video"
            seen = {"reads": reads, "size": shape, "channels": info.channels, "outputs": info.classes}
            answers, most = _TOKENS[info.task]
            return cls(**{**seen, "answers": answers, "patch": _patch_edge(shape, most), **options})
        common: dict[str, Any] = {"patch": min(8, info.lookback), "size": info.lookback, "channels": info.channels}
        if info.task == "forecast":
            return cls(**{**common, "outputs": info.horizon, **options, "quantiles": levels_of(info)})
        if info.task == "impute":
            return cls(**{**common, "patch": min(4, info.lookback), "answers": "gaps", **options})
        if info.task == "detect-anomalies":
            return cls(**{**common, "answers": "reconstruct", **options})
        common |= {"patch": _short_patch(info.lookback), "outputs": info.classes, "answers": "classes"}
        model = cls(**{**common, **options})
        if info.padded and not model.stack.masks:
            raise InvalidType("the series differ in length, which takes a mask, and this mixer takes none.")
        return model

    def forward_features(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Tokens after the last norm: ``(B, *grid, dim)``, of series ``(B * C, tokens, dim)`` unless classes are asked.

        ``mask`` is over the token grid, for gaps over the input.
        """
        if self.answers == "gaps":
            return self._mix(self.reader(x, torch.ones_like(x, dtype=torch.bool) if mask is None else mask)[0])
        tokens = self.reader(x)
        return self._mix(tokens[0] if isinstance(self.reader, SeriesReader) else tokens, mask)

    def _mix(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.stack(tokens + self.positions, mask)

    def forward(self, x: Tensor, marks: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Answer for an input as ``reads`` says.

        Args:
            x: the input.
            marks: time features of a series; not used by this backbone, accepted so that all forecasters are called
                alike.
            mask: bool, True = real: over the token grid, for classes of series over the steps ``(B, T)``, for gaps over
                all values ``(B, T, C)``. What ``x`` holds elsewhere has no influence. Not for forecasts and
                reconstructions.

        Returns:
            Shapes as ``answers`` says; a forecast with quantiles is ``(B, horizon, C, levels)``, in order.
        """
        if self.reads == "series":
            check_series("MixerNet", x, self.size[0], self.channels)
        if self.answers in ("forecast", "reconstruct"):
            if mask is not None:
                raise InvalidValue(f"MixerNet takes no mask for answers={self.answers!r}: fill missing values before.")
            tokens, statistics = self.reader(x)
            y = self.head(self._mix(tokens))
            if self.order is None:
                return self.reader.restore(y, statistics)  # type: ignore[operator]
            levels = (-1, len(self.order.levels))
            y = self.order(y.unflatten(1, levels)).flatten(1)
            return self.reader.restore(y, statistics).unflatten(1, levels).movedim(2, -1)  # type: ignore[operator]
        if self.reads == "series" and mask is not None:
            expected = x.shape if self.answers == "gaps" else x.shape[:2]
            if mask.dtype != torch.bool or mask.shape != expected:
                raise InvalidValue(
                    f"MixerNet: mask has shape {tuple(mask.shape)} and type {mask.dtype}; it must be bool "
                    f"{tuple(expected)}."
                )
        if self.reads != "series":
            self._check_pixels(x)
        if self.answers == "map":
            return self.head(self.forward_features(x, mask=mask))
        if self.answers == "gaps":
            mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
            tokens, statistics = self.reader(x, mask)
            return self.reader.restore(self.head(self._mix(tokens)), statistics)  # type: ignore[operator]
        if self.reads == "series" and mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
            mask = self.reader.token_mask(mask)  # type: ignore[operator]
        features = self.forward_features(x, mask=mask)
        return self.head(features, mask)

    def _check_pixels(self, x: Tensor) -> None:
        expected = (self.channels, *self.size)
        if tuple(x.shape[1:]) != expected:
            sizes = ", ".join(map(str, expected))
            raise InvalidValue(f"MixerNet: x has shape {tuple(x.shape)}; it must be (batch, {sizes}).")
        if not x.is_floating_point():
            raise InvalidType(f"MixerNet: x must be floating point, not {x.dtype}.")


#: Of a task of images or volumes: what is answered, and the most tokens that patches are chosen for.
_TOKENS = {"classify-images": ("classes", 100), "segment": ("map", 512)}


def _patch_edge(size: tuple[int, ...], most: int) -> int:
    """Edge of a patch: the smallest power of two, up to 16, that makes at most so many tokens."""
    edges = (1, 2, 4, 8)
    return next((e for e in edges if math.prod(-(-side // e) for side in size) <= most), 16)


def _short_patch(steps: int) -> int:
    """Steps per token for whole series: about 32 tokens, at most 8 steps in one."""
    return min(8, max(1, steps // 32))
