"""MixerNet: a standard pre-norm backbone that makes any registered mixer of a fitting rank into a model.

The plainest network a mixer can stand in, so that a comparison of two mixers compares the mixers::

    x = reader(input) + positions
    repeat depth times:   x = x + mixer(norm(x));   x = x + mlp(norm(x))
    y = head(norm(x))

Source: the pre-norm residual block of Xiong et al., 2020 (arXiv 2002.04745), with the GELU feed-forward of ViT.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from ..errors import InvalidType, InvalidValue
from ..mixers.base import Mixer
from ..mixers.layout import TokenLayout
from ..mixers.parts import Linear
from ..mixers.state import State, state
from ..registry import check_options, find
from ..spec import ModelSpec
from .base import Model, check_series
from .outlook import levels_of
from .quantiles import QuantileOrder
from .readers import (
    ClassHead,
    ForecastHead,
    GapReader,
    PatchHead,
    PatchReader,
    SeriesReader,
    StepsReader,
    TokenReader,
    learned_positions,
)


@state
class StackState(State):
    """Streaming state of a :class:`MixerStack`: one state per layer."""

    layers: tuple[Any, ...]


class MixerBlock(nn.Module):
    """One pre-norm residual block around a built mixer.

    Args:
        mixer: the token mixer.
        mlp_ratio: hidden width of the feed-forward over the token width; 0 leaves the feed-forward out.
        dropout: after the mixer and inside the feed-forward.
    """

    def __init__(self, mixer: Mixer, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        dim, hidden = mixer.dim, int(mixer.dim * mlp_ratio)
        self.mixer = mixer
        self.mixer_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.mlp_norm = nn.LayerNorm(dim) if hidden else nn.Identity()
        layers = [Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), Linear(hidden, dim), nn.Dropout(dropout)]
        self.mlp = nn.Sequential(*layers) if hidden else None

    def _feed_forward(self, x: Tensor) -> Tensor:
        return x if self.mlp is None else x + self.mlp(self.mlp_norm(x))

    def forward(self, x: Tensor, mask: Tensor | None = None, layout: TokenLayout | None = None) -> Tensor:
        return self._feed_forward(x + self.dropout(self.mixer(self.mixer_norm(x), mask=mask, layout=layout)))

    def prefill(self, x: Tensor, layer_state: Any, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        y, layer_state = self.mixer.prefill(self.mixer_norm(x), layer_state, mask)
        return self._feed_forward(x + self.dropout(y)), layer_state

    def step(self, x_t: Tensor, layer_state: Any) -> tuple[Tensor, Any]:
        y, layer_state = self.mixer.step(self.mixer_norm(x_t), layer_state)
        return self._feed_forward(x_t + self.dropout(y)), layer_state


class MixerStack(nn.Module):
    """``depth`` blocks of one mixer on tokens ``(batch, *grid, dim)``, with its special tokens and a final norm.

    A grid of higher rank than the mixer takes is read as one sequence.

    Args:
        mixer: registered name or :class:`~foveate.mixers.Mixer` subclass.
        dim: token width.
        depth: number of blocks.
        rank: rank of the grids to come.
        num_heads: given to mixers that have heads.
        causal: given to the mixer; None: not causal where it can look both ways.
        mlp_ratio, dropout: of :class:`MixerBlock`.
        mixer_options: further options of the mixer.
        grid: the grid to come, if it is known: the mixer's :meth:`~foveate.mixers.Mixer.options_for` it are taken.

    Raises:
        InvalidValue: the mixer takes no grid of this rank, nor sequences.
    """

    def __init__(
        self,
        mixer: str | type[Mixer],
        dim: int,
        depth: int,
        *,
        rank: int = 1,
        num_heads: int = 4,
        causal: bool | None = None,
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
        mixer_options: dict[str, Any] | None = None,
        grid: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        cls: type[Mixer] = find(mixer, "mixer").load() if isinstance(mixer, str) else mixer
        name = mixer if isinstance(mixer, str) else cls.__name__
        if rank not in cls.spec.ranks and 1 not in cls.spec.ranks:
            legal = " or ".join(map(str, cls.spec.ranks))
            raise InvalidValue(f"mixer={name!r} is not possible here: it mixes grids of rank {legal}, not {rank}.")
        if depth < 1:
            raise InvalidValue(f"depth={depth} is not possible: at least one block is needed.")
        options: dict[str, Any] = {"causal": not cls.spec.bidirectional if causal is None else causal}
        if "num_heads" in inspect.signature(cls).parameters:
            options["num_heads"] = num_heads
        if grid is not None:
            options.update(cls.options_for(grid if rank in cls.spec.ranks else (math.prod(grid),)))
        options.update(mixer_options or {})
        check_options(name, cls, {"dim": dim, **options})
        mixers = [cls.for_layer(i, depth, dim, **options) for i in range(depth)]
        self.flatten = rank not in cls.spec.ranks
        self.blocks = nn.ModuleList(MixerBlock(m, mlp_ratio, dropout) for m in mixers)
        self.norm = nn.LayerNorm(dim)
        plan = mixers[0].plan_tokens((64,) * (1 if self.flatten else rank))
        self.special = nn.ParameterDict(
            {role: learned_positions((n,), dim) for role, n in zip(plan.roles, plan.role_sizes, strict=True)}
        )

    @property
    def masks(self) -> bool:
        """Whether the stack takes a mask."""
        return not self.special and self.layers[0].mixer.spec.masks

    @property
    def layers(self) -> list[MixerBlock]:
        """The blocks, first to last."""
        return [cast(MixerBlock, block) for block in self.blocks]

    def forward(self, x: Tensor, mask: Tensor | None = None, layout: TokenLayout | None = None) -> Tensor:
        """Features ``(batch, *grid, dim)`` of tokens ``(batch, *grid, dim)``; ``mask`` bool ``(batch, *grid)``."""
        grid = tuple(x.shape[1:-1])
        if self.flatten:
            x, mask = x.flatten(1, -2), None if mask is None else mask.flatten(1)
        layout = layout or self.layers[0].mixer.plan_tokens(tuple(x.shape[1:-1]))
        if self.special and mask is not None:
            raise InvalidType("a mask cannot be combined with a mixer that places special tokens between the others.")
        x = layout.insert(x, dict(self.special.items()))
        for block in self.layers:
            x = block(x, mask, layout)
        return layout.extract(self.norm(x)).unflatten(1, grid) if self.flatten else layout.extract(self.norm(x))

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> StackState:
        return StackState(tuple(b.mixer.init_state(batch_size, device, dtype) for b in self.layers))

    def prefill(self, x: Tensor, state: StackState, mask: Tensor | None = None) -> tuple[Tensor, StackState]:
        layers = []
        for block, layer in zip(self.layers, state.layers, strict=True):
            x, layer = block.prefill(x, layer, mask)
            layers.append(layer)
        return self.norm(x), StackState(tuple(layers))

    def step(self, x_t: Tensor, state: StackState) -> tuple[Tensor, StackState]:
        layers = []
        for block, layer in zip(self.layers, state.layers, strict=True):
            x_t, layer = block.step(x_t, layer)
            layers.append(layer)
        return self.norm(x_t), StackState(tuple(layers))


class MixerNet(Model):
    """A mixer as a complete model.

    Args:
        mixer: registered name (or, for a mixer of your own, its class).
        reads: "series" (B, T, C), "tokens" (B, L), "image" (B, C, H, W) or "video" (B, C, T, H, W).
        answers: "forecast" (B, horizon, C), "gaps" (B, T, C) and "reconstruct" (B, T, C), for series; "classes"
            (B, outputs), for series, image and video; "tokens" (B, L, outputs), for tokens. All but classes treat every
            channel of a series as a sample of its own, with its own scale; classes are read from patches of all
            channels together, as they come.
        size: lookback T, or (H, W), or (T, H, W); not needed for tokens.
        channels: input channels, or the vocabulary for tokens.
        outputs: horizon, number of classes, or vocabulary; not used for gaps and reconstructions.
        dim, depth, num_heads, causal, mlp_ratio, dropout, mixer_options: see :class:`MixerStack`.
        patch: steps per token of a series, or patch edge.
        quantiles: levels of a forecast, rising, 0.5 among them: the head then answers each; none: one number.

    Raises:
        UnknownName: no such mixer.
        InvalidValue: the mixer's rank does not fit, ``patch`` does not divide, ``reads`` and ``answers`` do not meet,
            illegal levels or levels of something else than a forecast.
    """

    spec = ModelSpec(
        reads="series",
        tasks=("forecast", "classify-series", "impute", "detect-anomalies"),
        quantiles=True,
        onnx=True,
    )
    _ANSWERS = {
        "series": ("forecast", "classes", "gaps", "reconstruct"),
        "tokens": ("tokens",),
        "image": ("classes",),
        "video": ("classes",),
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
        elif reads == "tokens":
            self.reader = TokenReader(channels, dim)
        else:
            self.reader = PatchReader(shape, patch, channels, dim)
        grid: tuple[int, ...] | None = self.reader.grid  # type: ignore[assignment]
        self.positions = None if grid is None else learned_positions(grid, dim)
        self.size = shape
        if reads == "tokens":  # as free in their number as the mixer is
            self.spec = replace(self.spec, dynamic_length=True)
        self.stack = MixerStack(
            mixer,
            dim,
            depth,
            rank=1 if grid is None else len(grid),
            num_heads=num_heads,
            causal=True if reads == "tokens" and causal is None else causal,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            mixer_options=mixer_options,
            grid=grid,
        )
        if answers == "forecast" and grid is not None:
            self.head: nn.Module = ForecastHead(grid[0], dim, outputs * max(1, len(quantiles)), dropout)
        elif answers == "gaps":
            self.head = Linear(dim, patch)
        elif answers == "reconstruct":
            self.head = PatchHead(dim, patch, shape[0])
        else:
            self.head = Linear(dim, outputs) if reads == "tokens" else ClassHead(dim, outputs)

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        """The network for a task; see :class:`Model`.

        A forecaster of ``info.horizon`` steps from ``info.lookback`` of ``info.channels``, an imputer or reconstructor
        of such windows, or a classifier of series of up to ``info.lookback`` steps into ``info.classes``.

        Raises:
            InvalidType: another task, or series of several lengths (``info.padded``) and a mixer that takes no mask.
        """
        if info.task not in cls.spec.tasks:
            raise InvalidType(f"MixerNet cannot be built for the task {info.task!r} yet.")
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
        return self.stack(tokens if self.positions is None else tokens + self.positions, mask)

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
        if self.answers == "gaps":
            mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
            tokens, statistics = self.reader(x, mask)
            return self.reader.restore(self.head(self._mix(tokens)), statistics)  # type: ignore[operator]
        if self.reads == "series" and mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
            mask = self.reader.token_mask(mask)  # type: ignore[operator]
        features = self.forward_features(x, mask=mask)
        return self.head(features, mask) if isinstance(self.head, ClassHead) else self.head(features)

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> StackState:
        """A fresh state; only for ``reads="tokens"`` and causal mixers that stream."""
        if self.reads != "tokens":
            raise InvalidType(f"MixerNet has no streaming form for {self.reads}: only for tokens.")
        return self.stack.init_state(batch_size, device, dtype)

    def prefill(self, x: Tensor, state: StackState, mask: Tensor | None = None) -> tuple[Tensor, StackState]:
        """Read token numbers ``(B, L)``; returns logits ``(B, L, outputs)`` and the new state."""
        features, state = self.stack.prefill(self.reader(x), state, mask)
        return self.head(features), state

    def step(self, x_t: Tensor, state: StackState) -> tuple[Tensor, StackState]:
        """Read one token number per sample ``(B,)``; returns logits ``(B, outputs)`` and the new state."""
        features, state = self.stack.step(self.reader(x_t), state)
        return self.head(features), state


def _short_patch(steps: int) -> int:
    """Steps per token for whole series: about 32 tokens, at most 8 steps in one."""
    return min(8, max(1, steps // 32))
