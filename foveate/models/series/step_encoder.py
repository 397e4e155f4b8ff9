"""An encoder that reads a series step by step: one token per time step, a causal stack, an answer after any step.

The setting of "Attention as an RNN" (Feng et al. 2024, arXiv 2405.13956, section 4), in which Aaren and a Transformer
differ in nothing but the attention::

    tokens = W x_t + positions (sinusoids) + W_m marks_t,     h = post-norm encoder (tokens)
    forecast: W_f h_T, every window scaled by its own mean and deviation;     classes: W_c mean of h_t

The paper leaves embeddings and heads to the code bases it builds on, and no code of its own was found. What is
read into it: the value embedding is a linear map, because the usual circular convolution shows a window's end to its
beginning; a forecast is read from the last token, so that a stream has one after every step.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ...errors import InvalidType, InvalidValue, invalid
from ...mixers.base import Mixer, check_token
from ...mixers.parts import Linear
from ...mixers.state import State, state
from ...registry import check_options
from ..base import Model, check_series
from ..mixer_stack import StackState
from ..post_norm import PostNormStack
from .embedding import sinusoid

TASKS = ("forecast", "classify-series")
#: The module of the paper's efficiency study: 3.15 million parameters a layer.
PUBLISHED: dict[str, dict[str, Any]] = {"efficiency": {"dim": 512, "depth": 1, "num_heads": 8, "hidden": 2048}}


@state
class SeriesState(State):
    """Streaming state of a :class:`StepEncoder`.

    Attributes:
        encoder: that of the layers.
        steps: steps read, real or masked: the next one's position.
        mean, deviation: ``(batch, 1, enc_in)``, the scale of a forecaster, of the first stretch; None before it.
        total: ``(batch, dim)``, a classifier's sum of features of real steps; None before the first step.
        count: ``(batch, 1)``, their number.
    """

    encoder: StackState
    steps: int = 0
    mean: Tensor | None = None
    deviation: Tensor | None = None
    total: Tensor | None = None
    count: Tensor | None = None


class StepEncoder(Model):
    """The network; a subclass names its :attr:`mixer`.

    Args:
        task: "forecast" or "classify-series".
        seq_len: steps T of the input.
        enc_in: variables C of the input.
        outputs: steps to forecast, or number of classes.
        marks: columns of time features; 0: the series has none.
        dim: channels of a token.
        depth: number of layers.
        num_heads: attention heads; must divide ``dim``.
        hidden: width of the feed-forwards.
        dropout: after the embedding and inside the layers.
        causal: a step sees itself and earlier ones.

    Raises:
        InvalidValue: another task, a size below 1.
    """

    mixer: ClassVar[type[Mixer]]

    def __init__(
        self,
        *,
        task: str,
        seq_len: int,
        enc_in: int,
        outputs: int,
        marks: int = 0,
        dim: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        hidden: int = 256,
        dropout: float = 0.1,
        causal: bool = True,
    ) -> None:
        super().__init__()
        if task not in TASKS:
            raise invalid("task", task, f"it must be one of {', '.join(TASKS)}")
        for option, size in (("seq_len", seq_len), ("enc_in", enc_in), ("outputs", outputs)):
            if size < 1:
                raise invalid(option, size, "it must be at least 1")
        if marks < 0:
            raise invalid("marks", marks, "it is a number of columns")
        self.task, self.seq_len, self.enc_in, self.outputs, self.dim = task, seq_len, enc_in, outputs, dim
        self.encoder = PostNormStack(
            self.mixer, dim, depth, num_heads=num_heads, causal=causal, hidden=hidden, dropout=dropout
        )
        self.value = Linear(enc_in, dim)
        self.time = Linear(marks, dim, bias=False) if marks else None
        self.dropout = nn.Dropout(dropout)
        self.head = Linear(dim, outputs * enc_in if task == "forecast" else outputs)

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        """A forecaster of ``info.horizon`` steps, or a classifier into ``info.classes``, of ``info.channels``."""
        outputs = info.horizon if info.task == "forecast" else info.classes
        known = {"task": info.task, "seq_len": info.lookback, "enc_in": info.channels, "outputs": outputs}
        settings = {**known, "marks": info.marks, **options}
        check_options(cls.__name__, cls, settings)
        return cls(**settings)

    def embed(self, x: Tensor, marks: Tensor | None = None, start: int = 0) -> Tensor:
        """Tokens ``(B, T, dim)`` of values ``(B, T, enc_in)``, the first of which is step ``start`` of its series."""
        tokens = self.value(x) + sinusoid(x.shape[1], self.dim, start).to(x)
        if marks is not None and self.time is not None:
            tokens = tokens + self.time(marks.to(x.dtype))
        return self.dropout(tokens)

    def forward_features(self, x: Tensor, marks: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Features ``(B, T, dim)`` of values as they are, without the scaling of forecasts."""
        return self.encoder(self.embed(x, marks), mask)

    def forward(self, x: Tensor, marks: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Run the task the model was built for.

        Args:
            x: float ``(B, seq_len, enc_in)``.
            marks: ``(B, seq_len, marks)``, time features in [-0.5, 0.5]; None: the series has no time stamps.
            mask: bool ``(B, seq_len)``, True = a real step; what ``x`` holds elsewhere has no influence. Not for
                forecasts.

        Returns:
            ``(B, outputs, enc_in)`` forecast, or ``(B, outputs)`` logits.

        Raises:
            InvalidValue: wrong shapes, or a mask where none is taken.
            InvalidType: ``x`` is not floating point, ``mask`` is not bool.
        """
        name = type(self).__name__
        check_series(name, x, self.seq_len, self.enc_in)
        self._check(x, marks, mask)
        if self.task == "forecast":
            mean, deviation = _scale(x)
            last = self.forward_features((x - mean) / deviation, marks)[:, -1]
            return self._forecast(last, mean, deviation)
        x = x if mask is None else x.masked_fill(~mask[..., None], 0)
        total, count = _sum(self.forward_features(x, marks, mask), mask)
        return self.head(total / count.clamp_min(1))

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> SeriesState:
        """No steps yet.

        Raises:
            InvalidType: the network is not causal.
        """
        return SeriesState(self.encoder.init_state(batch_size, device, dtype))

    def prefill(
        self, x: Tensor, state: SeriesState, mask: Tensor | None = None, *, marks: Tensor | None = None
    ) -> tuple[Tensor, SeriesState]:
        """Read a stretch of any length after ``state``; the answer after its last step.

        A classifier's is that of the whole series so far. A forecaster takes its scale from the first stretch and
        keeps it, so read a whole window first: its answer is then that of ``forward``.

        Args:
            x: float ``(B, T, enc_in)``.
            state: from :meth:`init_state` or an earlier call.
            mask, marks: as in :meth:`forward`, for these T steps.
        """
        name = type(self).__name__
        if x.ndim != 3 or x.shape[2] != self.enc_in or x.shape[1] < 1:
            raise InvalidValue(f"{name}: x has shape {tuple(x.shape)}; it must be (batch, steps, {self.enc_in}).")
        self._check(x, marks, mask)
        scale = (state.mean, state.deviation)
        if self.task == "forecast":
            mean, deviation = _scale(x) if scale[0] is None or scale[1] is None else (scale[0], scale[1])
            tokens = self.embed((x - mean) / deviation, marks, state.steps)
            features, encoder = self.encoder.prefill(tokens, state.encoder)
            after = SeriesState(encoder, state.steps + x.shape[1], mean, deviation)
            return self._forecast(features[:, -1], mean, deviation), after
        x = x if mask is None else x.masked_fill(~mask[..., None], 0)
        features, encoder = self.encoder.prefill(self.embed(x, marks, state.steps), state.encoder, mask)
        total, count = _sum(features, mask)
        if state.total is not None and state.count is not None:
            total, count = total + state.total, count + state.count
        after = SeriesState(encoder, state.steps + x.shape[1], total=total, count=count)
        return self.head(total / count.clamp_min(1)), after

    def step(self, x_t: Tensor, state: SeriesState, *, marks: Tensor | None = None) -> tuple[Tensor, SeriesState]:
        """Read one step ``(B, enc_in)``, with marks ``(B, marks)``; see :meth:`prefill`.

        Raises:
            InvalidValue: anything but one step per sample.
        """
        check_token(type(self).__name__, x_t, self.enc_in)
        return self.prefill(x_t[:, None], state, marks=None if marks is None else marks[:, None])

    def _forecast(self, feature: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        return self.head(feature).unflatten(1, (self.outputs, self.enc_in)) * deviation + mean

    def _check(self, x: Tensor, marks: Tensor | None, mask: Tensor | None) -> None:
        name, steps = type(self).__name__, tuple(x.shape[:2])
        columns = 0 if self.time is None else self.time.in_features
        if marks is not None and marks.shape != (*steps, columns):
            raise InvalidValue(f"{name}: marks have shape {tuple(marks.shape)}; they must be {(*steps, columns)}.")
        if mask is None:
            return
        if self.task == "forecast":
            raise InvalidValue(f"{name} takes no mask for forecasts: fill missing values before.")
        if mask.dtype != torch.bool:
            raise InvalidType(f"{name}: mask must be bool (True = a real step), not {mask.dtype}.")
        if mask.shape != steps:
            raise InvalidValue(f"{name}: mask has shape {tuple(mask.shape)}; it must be {steps}.")


def _scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every variable over time, ``(B, 1, C)``."""
    return x.mean(1, keepdim=True), (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()


def _sum(features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum over real steps ``(B, dim)``, and their number ``(B, 1)``."""
    if mask is None:
        return features.sum(1), torch.full_like(features[:, 0, :1], features.shape[1])
    weight = mask[..., None].to(features.dtype)
    return (features * weight).sum(1), weight.sum(1)
