"""The task: batches, loss, scores and examples over prepared series."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from ...errors import unknown_name
from ...models.outlook import check_forecast
from ...models.quantiles import ResidualQuantiles
from ...registry import register
from ...spec import TaskSpec
from ..base import Batch, Evaluation
from ..prepared import PreparedTask, scoring
from .examples import Examples
from .package import Forecaster
from .predict import predict
from .prepare import prepare_series
from .protocol import SPLITS, ForecastInfo, check_count
from .scores import Scores, metrics_of, pinball
from .whole import whole_series
from .windows import WindowRows, runs, take

if TYPE_CHECKING:
    import pandas as pd

_TENSORS = ("values", "observed", "marks", "times", "offsets", "mean", "scale", "naive_error", *SPLITS)
_KNOWN, _STATIC = ("known", "known_mean", "known_scale"), ("static",)
#: Training windows, at most, that the residuals of a system without gradients are taken from, and their values.
MOST_WINDOWS, MOST_VALUES = 4096, 2**25


@register("task", "forecast")
class ForecastTask(PreparedTask):
    """Forecasting several steps of one or more series, measured as the Time-Series-Library measures it.

    Make it with :meth:`prepare`. Batches are dictionaries: ``x`` ``(B, lookback, channels)`` standardised, ``x_marks``
    ``(B, lookback, marks)`` calendar features, ``y`` ``(B, horizon, channels)`` standardised truth, ``y_mask`` bool of
    the same shape, False where the truth is missing; where they were asked for, ``x_known`` ``(B, lookback + horizon,
    known)`` standardised covariates of window and horizon, and ``static`` ``(B, static)`` features of the series.

    Metrics: ``mse`` and ``mae`` over all observed target values, standardised; ``mase``, the mean absolute error in the
    user's units divided by that of repeating the value one season before on the training rows (Hyndman and Koehler
    2006), averaged over series and targets; pairs whose divisor is zero are left out (NaN if all are). With quantiles
    these are the median's, and those of :mod:`foveate.tasks.forecast.scores` come before them.
    """

    spec = TaskSpec(
        reads="series",
        rank=1,
        metrics=("mse", "mae", "mase"),
        baselines=("seasonal_naive",),
        shortlist=("dlinear", "timesnet", "softmax_attention", "lightning_attention", "mamba"),
    )
    info: ForecastInfo
    info_type = ForecastInfo
    stem = "forecast"

    def __init__(
        self, info: ForecastInfo, tensors: dict[str, Tensor], layout: dict[str, Any], facts: dict[str, Any]
    ) -> None:
        """Use :meth:`prepare` or :meth:`load`.

        Args:
            tensors: what :class:`~foveate.tasks.forecast.protocol.Prepared` holds (times as int64 microseconds),
                ``marks`` float32 ``(R, marks)``, and the window starts as ``train``, ``val`` and ``test``; with known
                covariates ``known`` float32 ``(R, known)``, ``known_mean`` and ``known_scale`` float64 ``(known,)``,
                with static ones ``static`` float32 ``(S, static)``.
            layout: names and time stamps of the user's table: the options of :class:`Forecaster`.
            facts: what :meth:`describe` returns.
        """
        super().__init__(info, tensors, layout, facts)
        self.spec = replace(type(self).spec, metrics=metrics_of(info.quantiles))
        self._targets = torch.tensor(info.targets)
        self._all_targets = info.targets == tuple(range(info.channels))
        self.sample_tokens = info.lookback
        self.overlap = self._most_overlapping("test")
        # Every window is one run of memory: a view of all of them makes a batch one copy per tensor.
        self._x = runs(tensors["values"], info.lookback)
        self._marks = runs(tensors["marks"], info.lookback)
        self._y = runs(tensors["values"], info.horizon)
        self._y_mask = runs(tensors["observed"], info.horizon)
        self._known = runs(tensors["known"], info.lookback + info.horizon) if info.known else None
        self._levels = torch.tensor(info.quantiles)

    @classmethod
    def prepare(
        cls,
        source: str | Path | pd.DataFrame | None = None,
        *,
        horizon: int | None = None,
        lookback: int | None = None,
        target: str | Sequence[str] | None = None,
        time: str | None = None,
        id: str | None = None,
        freq: str | None = None,
        season: int | None = None,
        split: str | None = None,
        windows: int | None = None,
        stride: int | None = None,
        known: str | Sequence[str] | None = None,
        static: str | Sequence[str] | None = None,
        quantiles: str | Sequence[float] | None = None,
    ) -> Self:
        """Read a table of series and prepare it.

        Args:
            source: path of a CSV or Parquet file, a DataFrame, or None for the embedded weather series.
            horizon: steps to forecast; default by frequency: 24 below a day, 14 days, 10 business days, 13 weeks,
                12 months, 8 quarters, 6 years.
            lookback: steps to look at; default: four times the default horizon.
            target: names of the columns to forecast (one, several separated by commas, or a sequence); the others are
                inputs only. Default: all.
            time: name of the time column; default: the only one that holds time stamps.
            id: name of the column that tells series apart (long format).
            freq: resample to this pandas frequency, by means; default: rows as they are.
            season: steps per season; default: guessed from the frequency.
            split: "0.7/0.1/0.2" (the default) or row counts such as "8640/2880/2880".
            windows: backtest with this many test origins at the end, instead of ``split``.
            stride: steps between validation and test origins; default 1, in a backtest ``horizon``.
            known: names of columns of numbers that are known for the horizon too (named as targets are); every system
                is told them.
            static: names of columns that are constant within a series, numbers or categories; they need ``id``.
            quantiles: levels to forecast, "0.1,0.5,0.9" or numbers, rising in (0, 1); 0.5 joins where it is missing.
                Default: one number per value.

        Raises:
            UnknownName, InvalidType, InvalidValue, MissingExtra: the source or an option is not possible; the message
                names it and says what to do.
        """
        options = {"horizon": horizon, "lookback": lookback, "target": target, "time": time, "id": id, "freq": freq}
        options |= {"season": season, "split": split, "windows": windows, "stride": stride}
        return cls(*prepare_series(source, **options, known=known, static=static, quantiles=quantiles))

    def size(self, split: str) -> int:
        """Number of windows of "train", "val" or "test"."""
        return len(self._starts(split))

    def batch(self, split: str, index: Tensor) -> Batch:
        """Windows ``index`` (int64 ``(B,)``) of a split, as contiguous tensors on the CPU."""
        start = self._starts(split)[index]
        origin = start + self.info.lookback
        batch = {
            "x": take(self._x, start, self.info.lookback),
            "x_marks": take(self._marks, start, self.info.lookback),
            "y": take(self._y, origin, self.info.horizon),
            "y_mask": take(self._y_mask, origin, self.info.horizon),
        }
        if self._known is not None:
            batch["x_known"] = take(self._known, start, self.info.lookback + self.info.horizon)
        if self.info.static:
            batch["static"] = self._tensors["static"][self._series_of(start)]
        return batch

    def apply(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's standardised forecast ``(B, horizon, channels)``, with quantiles a last axis of levels.

        Raises:
            InvalidValue: the model returned another shape.
        """
        told = {name: batch[entry] for name, entry in (("known", "x_known"), ("static", "static")) if entry in batch}
        predicted = model(batch["x"], marks=batch["x_marks"], **told)
        check_forecast(type(model).__name__, predicted, tuple(batch["y"].shape), len(self.info.quantiles))
        return predicted

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean squared error over the observed target values of the batch, standardised; with quantiles the mean
        pinball loss of all levels."""
        mask, predicted = self._on_targets(batch["y_mask"]), self.apply(model, batch)
        if self.info.quantiles:
            error = self._on_targets(batch["y"])[..., None] - self._on_targets(predicted, -2)
            loss = pinball(error, self._levels.to(error)).mean(-1)
            return torch.where(mask, loss, 0).sum() / mask.sum()
        error = self._on_targets(predicted - batch["y"])
        return torch.where(mask, error, 0).square().sum() / mask.sum()

    @torch.no_grad()
    def after_fit(self, model: nn.Module) -> None:
        """Take the quantiles of a system without gradients from its residuals on training windows, evenly chosen."""
        spread = getattr(model, "spread", None)
        if not isinstance(spread, ResidualQuantiles):
            return
        values = self.info.horizon * self.info.channels
        chosen = min(self.size("train"), MOST_WINDOWS, max(64, MOST_VALUES // values))
        index = torch.linspace(0, self.size("train") - 1, chosen, dtype=torch.float64).round().long()
        spread.offsets.zero_()
        model.eval()
        residuals = []
        for part in index.split(256):
            batch = {name: value.to(spread.offsets.device) for name, value in self.batch("train", part).items()}
            residual = batch["y"] - self.apply(model, batch)[..., 0]
            residuals.append(residual.where(batch["y_mask"], torch.nan).cpu())
        spread.fit(torch.cat(residuals))

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str, batch_size: int = 256) -> Evaluation:
        """Score all windows of a split in order, in one pass.

        The deciding metric weighs every observed target value alike. ``per_sample`` holds each window's share of it, so
        that their mean is that metric: the window's own mean loss where nothing is missing, else that times its number
        of observed values over the mean number. ``examples`` are for pictures: see
        :mod:`foveate.tasks.forecast.examples`.
        """
        check_count("batch_size", batch_size)
        examples, starts = Examples(self.size(split)), self._starts(split)
        mean, scale, naive = (self._on_targets(self._tensors[name]) for name in ("mean", "scale", "naive_error"))
        scores, axis = Scores(mean, scale, self.info.quantiles), -2 if self.info.quantiles else -1
        with scoring(model) as device:
            for index in torch.arange(len(starts)).split(batch_size):
                batch = {name: value.to(device) for name, value in self.batch(split, index).items()}
                predicted = self.apply(model, batch)
                truth, mask = self._on_targets(batch["y"]), self._on_targets(batch["y_mask"])
                scores.add(self._on_targets(predicted, axis), truth, mask, self._series_of(starts[index]))
                examples.keep(index, predicted)
        metrics, per_sample = scores.finish(naive / scale)
        return Evaluation(metrics, per_sample, examples.finish(self, split))

    def rows(self, split: str, window: int) -> WindowRows:
        """The rows of one window, inputs and truth, with what is needed to show them to the user."""
        tensors = self._tensors
        start = int(self._starts(split)[window])
        rows = slice(start, start + self.info.lookback + self.info.horizon)
        series = int(torch.bucketize(start, tensors["offsets"], right=True)) - 1
        return WindowRows(
            series=self.layout["series"][series],
            times=tensors["times"][rows].numpy().view("datetime64[us]"),
            values=tensors["values"][rows],
            observed=tensors["observed"][rows],
            mean=tensors["mean"][series],
            scale=tensors["scale"][series],
        )

    def sample_groups(self, split: str) -> Tensor | None:
        """int64 ``(windows,)``: windows of several series with the same first forecast time have the same number."""
        if len(self.layout["series"]) == 1:
            return None
        first = self._tensors["times"][self._starts(split) + self.info.lookback]
        return torch.unique(first, sorted=True, return_inverse=True)[1]

    def _most_overlapping(self, split: str) -> int:
        """The most different times at which forecasts begin within the horizon of one: ``horizon / stride``."""
        origins = self._starts(split) + self.info.lookback
        first, last = (self._tensors["times"][origins + step] for step in (0, self.info.horizon - 1))
        times = torch.unique(first, sorted=True)
        return int((torch.searchsorted(times, last, right=True) - torch.searchsorted(times, first)).max())

    def whole(self) -> Self:
        """All rows as training rows: see :meth:`foveate.tasks.base.Task.whole`."""
        tensors = whole_series(self._tensors, self.info.lookback, self.info.horizon, self.info.targets)
        return type(self)(self.info, tensors, self.layout, self._facts)

    @classmethod
    def stored(cls, info: Mapping[str, Any]) -> set[str]:
        """Names of the tensors in the file."""
        known, static = _KNOWN if info.get("known") else (), _STATIC if info.get("static") else ()
        return {*_TENSORS, *known, *static}

    def package(self, model: nn.Module) -> Forecaster:
        """The model between the scaler of the training rows and its inverse."""
        names = ("mean", "scale", *(_KNOWN[1:] if self.info.known else ()))
        statistics: dict[str, Any] = {name: self._tensors[name].clone() for name in names}
        return Forecaster(model, self.info, **self.layout, **statistics)

    @classmethod
    def unpack(cls, config: dict[str, Any], build: Callable[[ForecastInfo], nn.Module]) -> Forecaster:
        """The wrapper around a model built anew, without its weights and statistics."""
        return Forecaster.from_config(build(ForecastInfo.from_plain(config["info"])), config)

    #: What ``foveate predict`` calls.
    predict = staticmethod(predict)

    def _starts(self, split: str) -> Tensor:
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        return self._tensors[split]

    def _series_of(self, start: Tensor) -> Tensor:
        """int64 ``(B,)``: the series that the windows beginning at rows ``start`` belong to."""
        return torch.bucketize(start, self._tensors["offsets"], right=True) - 1

    def _on_targets(self, values: Tensor, axis: int = -1) -> Tensor:
        """The target channels of ``values``."""
        return values if self._all_targets else values.index_select(axis, self._targets.to(values.device))
