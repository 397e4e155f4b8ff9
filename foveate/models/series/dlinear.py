"""DLinear: decomposition and one linear layer (Zeng et al., AAAI 2023, arXiv:2205.13504).

The window x (B, T, C) is split by a moving average of odd width w, the ends padded by repeating the first and last
value, and each part is mapped over time, the same map for every variable or one for each (section 3)::

    trend = mean of x[t - w//2 .. t + w//2]      seasonal = x - trend
    y     = W_s seasonal + b_s + W_t trend + b_t           (W: P x T, started at 1/T: the mean of the window)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import invalid
from ...registry import check_options, register
from ...spec import ModelSpec
from ..base import Model, check_series
from ..outlook import levels_of
from ..published import Published
from ..quantiles import QuantileOrder

#: Learning rate and batch size of the authors' scripts by data set; a trailing number is a horizon of its own.
TRAINING = {
    "ETTh1": (5e-3, 32),
    "ETTh2": (5e-2, 32),
    "ETTm1": (1e-4, 8),
    "ETTm2": (1e-3, 32),
    "ETTm2-336": (1e-2, 32),
    "ETTm2-720": (1e-2, 32),
    "ECL": (1e-3, 16),
    "Exchange": (5e-4, 8),
    "Exchange-336": (5e-4, 32),
    "Exchange-720": (5e-4, 32),
    "ILI": (1e-2, 32),
    "Traffic": (5e-2, 16),
    "Weather": (1e-4, 16),
}


def moving_average(x: Tensor, width: int) -> Tensor:
    """Centred moving average along time with repeated ends: ``(B, T, C)`` to the same shape; ``width`` is odd."""
    padded = F.pad(x.transpose(1, 2), (width // 2, width // 2), mode="replicate")
    return F.avg_pool1d(padded, width, stride=1).transpose(1, 2)


class TimeLinear(nn.Module):
    """A linear map along time, shared by all variables or one for each.

    Args:
        seq_len, pred_len: steps in and out.
        channels: None: one map, weight ``(pred_len, seq_len)``; a number: that many, ``(channels, pred_len, seq_len)``.
    """

    def __init__(self, seq_len: int, pred_len: int, channels: int | None = None) -> None:
        super().__init__()
        each = () if channels is None else (channels,)
        self.weight = nn.Parameter(torch.full((*each, pred_len, seq_len), 1 / seq_len))
        bound = 1 / math.sqrt(seq_len)
        self.bias = nn.Parameter(torch.empty(*each, pred_len).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, T, C)`` to ``(B, P, C)``."""
        if self.weight.ndim == 2:
            return F.linear(x.transpose(1, 2), self.weight, self.bias).transpose(1, 2)
        return torch.einsum("btc,cpt->bpc", x, self.weight) + self.bias.T


@register("model", "dlinear")
class DLinear(Model):
    """DLinear: a moving average splits trend from season, one linear layer forecasts each.

    Args:
        seq_len: steps T of the input.
        pred_len: steps P to forecast.
        enc_in: variables C.
        individual: a map for each variable instead of one for all.
        moving_avg: odd width of the moving average.
        quantiles: levels, rising, 0.5 among them: the layers then answer each of them; none: one number, as published.

    Raises:
        InvalidValue: a size below 1, an even ``moving_avg``, illegal levels.
    """

    spec = ModelSpec(reads="series", tasks=("forecast",), quantiles=True, onnx=True)
    official_keys = {
        "LTSF-Linear": {
            r"Linear_Seasonal\.(weight|bias)": r"seasonal.\1",
            r"Linear_Trend\.(weight|bias)": r"trend.\1",
            r"Linear_Decoder\..+": "",  # made by some releases, used by none
        },
        "Time-Series-Library": {
            r"Linear_Seasonal\.(weight|bias)": r"seasonal.\1",
            r"Linear_Trend\.(weight|bias)": r"trend.\1",
        },
    }

    def __init__(
        self,
        seq_len: int,
        pred_len: int,
        enc_in: int,
        *,
        individual: bool = False,
        moving_avg: int = 25,
        quantiles: Sequence[float] = (),
    ) -> None:
        super().__init__()
        for option, size in {"seq_len": seq_len, "pred_len": pred_len, "enc_in": enc_in}.items():
            if size < 1:
                raise invalid(option, size, "it must be at least 1")
        if moving_avg < 1 or moving_avg % 2 == 0:
            raise invalid("moving_avg", moving_avg, "a centred average needs an odd width of at least 1")
        self.seq_len, self.pred_len, self.enc_in, self.moving_avg = seq_len, pred_len, enc_in, moving_avg
        self.order = QuantileOrder(quantiles) if quantiles else None
        answers = pred_len * max(1, len(quantiles))
        self.seasonal = TimeLinear(seq_len, answers, enc_in if individual else None)
        self.trend = TimeLinear(seq_len, answers, enc_in if individual else None)

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        """A forecaster for ``info`` (lookback, horizon, channels), in the published setting unless options say else."""
        settings = {**options, "seq_len": info.lookback, "pred_len": info.horizon, "enc_in": info.channels}
        settings["quantiles"] = levels_of(info)
        check_options("dlinear", cls, settings)
        return cls(**settings)

    @classmethod
    def published(cls, info: Any, dataset: str) -> Published | None:
        """The authors' scripts, which look back over 336 steps (104 for ILI); the rates serve other lookbacks too."""
        if info.task != "forecast" or dataset not in TRAINING:
            return None
        rate, batch_size = TRAINING.get(f"{dataset}-{info.horizon}", TRAINING[dataset])
        return Published(
            source="cure-lab/LTSF-Linear, scripts/EXP-LongForecasting/Linear",
            learning_rate=rate,
            batch_size=batch_size,
            epochs=10,
            patience=3,
        )

    def forward(self, x: Tensor, marks: Tensor | None = None) -> Tensor:
        """Forecast.

        Args:
            x: float ``(B, seq_len, enc_in)``.
            marks: time features; taken because every forecaster is given them, and not read.

        Returns:
            ``(B, pred_len, enc_in)``, with quantiles ``(B, pred_len, enc_in, levels)``.

        Raises:
            InvalidValue: ``x`` has another shape.
            InvalidType: ``x`` is not floating point.
        """
        check_series("DLinear", x, self.seq_len, self.enc_in)
        trend = moving_average(x, self.moving_avg)
        y = self.seasonal(x - trend) + self.trend(trend)
        return y if self.order is None else self.order(y.unflatten(1, (self.pred_len, -1)).movedim(2, -1))

    @staticmethod
    def convert_official(state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """Stack the official per-variable layers (``Linear_Trend.0.weight``, ...) into ours; see ``load_official``."""
        converted: dict[str, Tensor] = {}
        each: dict[str, dict[int, Tensor]] = {}
        for key, value in state_dict.items():
            match = re.fullmatch(r"(Linear_(?:Seasonal|Trend))\.(\d+)\.(weight|bias)", key)
            if match:
                each.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = value
            else:
                converted[key] = value
        for key, values in each.items():
            converted[key] = torch.stack([values[i] for i in sorted(values)])
        return converted
