"""The task: batches, loss, scores and examples over prepared series."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import InvalidType, InvalidValue, invalid, unknown_name
from ...registry import register
from ...spec import TaskSpec
from ..base import Batch, Evaluation, Task
from ..io import load_tensors, save_tensors
from .examples import Examples
from .facts import facts_on_record
from .features import time_features
from .frequency import horizon_of
from .package import Forecaster
from .predict import predict
from .protocol import SPLITS, ForecastInfo, check_count, prepare_windows, split_rule
from .read import clean
from .season import season_doubt, season_steps
from .source import RawTable, read_source
from .whole import whole_series

if TYPE_CHECKING:
    import pandas as pd

_FORMAT = 1
_FILE = "forecast.safetensors"
_TENSORS = ("values", "observed", "marks", "times", "offsets", "mean", "scale", "naive_error", *SPLITS)


@register("task", "forecast")
class ForecastTask(Task):
    """Forecasting several steps of one or more series, measured as the Time-Series-Library measures it.

    Make it with :meth:`prepare`. Batches are dictionaries: ``x`` ``(B, lookback, channels)`` standardised, ``x_marks``
    ``(B, lookback, marks)`` calendar features, ``y`` ``(B, horizon, channels)`` standardised truth, ``y_mask`` bool of
    the same shape, False where the truth is missing.

    Metrics: ``mse`` and ``mae`` over all observed target values, standardised; ``mase``, the mean absolute error in the
    user's units divided by that of repeating the value one season before on the training rows (Hyndman and Koehler
    2006), averaged over series and targets; pairs whose divisor is zero are left out (NaN if all are).
    """

    spec: ClassVar[TaskSpec] = TaskSpec(
        reads="series",
        rank=1,
        metrics=("mse", "mae", "mase"),
        baselines=("seasonal_naive",),
        shortlist=("dlinear", "timesnet", "softmax_attention", "lightning_attention", "mamba"),
    )
    info: ForecastInfo

    def __init__(
        self, info: ForecastInfo, tensors: dict[str, Tensor], layout: dict[str, Any], facts: dict[str, Any]
    ) -> None:
        """Use :meth:`prepare` or :meth:`load`.

        Args:
            tensors: what :class:`~foveate.tasks.forecast.protocol.Prepared` holds (times as int64 microseconds),
                ``marks`` float32 ``(R, marks)``, and the window starts as ``train``, ``val`` and ``test``.
            layout: names and time stamps of the user's table: the options of :class:`Forecaster`.
            facts: what :meth:`describe` returns.
        """
        self.info = info
        self.layout = layout
        self._tensors = tensors
        self._facts = facts
        self._targets = torch.tensor(info.targets)
        self._all_targets = info.targets == tuple(range(info.channels))
        self.sample_tokens = info.lookback
        self.overlap = self._most_overlapping("test")
        # Every window is one run of memory: a view of all of them makes a batch one copy per tensor.
        self._x = _runs(tensors["values"], info.lookback)
        self._marks = _runs(tensors["marks"], info.lookback)
        self._y = _runs(tensors["values"], info.horizon)
        self._y_mask = _runs(tensors["observed"], info.horizon)

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

        Raises:
            UnknownName, InvalidType, InvalidValue, MissingExtra: the source or an option is not possible; the message
                names it and says what to do.
        """
        if horizon is not None:
            check_count("horizon", horizon)
        if lookback is not None:
            check_count("lookback", lookback)
        raw = read_source(source)
        targets = None if target is None else _target_names(target, raw)
        table = clean(raw, time=time, id=id, freq=freq, required=targets or ())
        usual = horizon_of(table.freq)
        steps, past = check_count("horizon", horizon, usual), check_count("lookback", lookback, 4 * usual)
        rule = split_rule(split, windows, stride, steps)
        period, season_notes = season_steps(season, table, rule, past, steps)
        made = prepare_windows(table, targets, rule, past, steps, period)
        marks = time_features(made.times, table.freq)
        info = ForecastInfo(past, steps, len(made.columns), made.targets, period, table.freq, marks.shape[1])
        arrays = {
            "values": made.values,
            "observed": made.observed,
            "marks": marks,
            "times": made.times.astype(np.int64),
            "offsets": made.offsets,
            "mean": made.mean,
            "scale": made.scale,
            "naive_error": made.naive_error,
            **made.starts,
        }
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        layout = {
            "columns": list(made.columns),
            "series": list(made.names),
            "time": table.time,
            "id": table.id,
            "zone": table.zone,
            "regular": table.regular,
            "resampled": table.resampled,
        }
        if season is None:
            season_notes += season_doubt(made, info)
        facts = facts_on_record(table, made, rule, info) | {"notes": [*table.notes, *made.notes, *season_notes]}
        return cls(info, tensors, layout, facts)

    def describe(self) -> dict[str, Any]:
        """Facts of the data on record; see ``docs/tasks/forecast.md`` for every entry."""
        return json.loads(json.dumps(self._facts))

    def size(self, split: str) -> int:
        """Number of windows of "train", "val" or "test"."""
        return len(self._starts(split))

    def batch(self, split: str, index: Tensor) -> Batch:
        """Windows ``index`` (int64 ``(B,)``) of a split, as contiguous tensors on the CPU."""
        start = self._starts(split)[index]
        origin = start + self.info.lookback
        return {
            "x": _take(self._x, start, self.info.lookback),
            "x_marks": _take(self._marks, start, self.info.lookback),
            "y": _take(self._y, origin, self.info.horizon),
            "y_mask": _take(self._y_mask, origin, self.info.horizon),
        }

    def apply(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's standardised forecast ``(B, horizon, channels)``.

        Raises:
            InvalidValue: the model returned another shape.
        """
        predicted = model(batch["x"], marks=batch["x_marks"])
        expected = batch["y"].shape
        if not isinstance(predicted, Tensor) or predicted.shape != expected:
            came = tuple(predicted.shape) if isinstance(predicted, Tensor) else type(predicted).__name__
            raise InvalidValue(
                f"{type(model).__name__} returned {came}: a forecast is a tensor (batch, horizon, channels) = "
                f"{tuple(expected)}."
            )
        return predicted

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean squared error over the observed target values of the batch, standardised."""
        error = self._on_targets(self.apply(model, batch) - batch["y"])
        mask = self._on_targets(batch["y_mask"])
        return torch.where(mask, error, 0).square().sum() / mask.sum()

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str, batch_size: int = 256) -> Evaluation:
        """Score all windows of a split in order, in one pass.

        ``mse`` weighs every observed target value alike. ``per_sample`` holds each window's share of it, so that their
        mean is ``mse``: the window's own mean squared error where nothing is missing, else that times its number of
        observed values over the mean number. ``examples`` are for pictures: see
        :mod:`foveate.tasks.forecast.examples`.
        """
        check_count("batch_size", batch_size)
        examples = Examples(self.size(split))
        offsets, starts = self._tensors["offsets"], self._starts(split)
        pairs = (len(offsets) - 1, len(self.info.targets))
        absolute, counts = torch.zeros(pairs, dtype=torch.float64), torch.zeros(pairs, dtype=torch.float64)
        squared: list[Tensor] = []
        device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            for index in torch.arange(len(starts)).split(batch_size):
                batch = {name: value.to(device) for name, value in self.batch(split, index).items()}
                predicted = self.apply(model, batch)
                mask = self._on_targets(batch["y_mask"])
                error = torch.where(mask, self._on_targets(predicted.double() - batch["y"].double()), 0)
                squared.append(error.square().sum(dim=(1, 2)).cpu())
                series = torch.bucketize(starts[index], offsets, right=True) - 1
                absolute.index_add_(0, series, error.abs().sum(dim=1).cpu())
                counts.index_add_(0, series, mask.sum(dim=1).double().cpu())
                examples.keep(index, predicted)
        finally:
            for module, mode in modes:
                module.training = mode
        sums, total = torch.cat(squared), counts.sum()
        metrics = {
            "mse": float(sums.sum() / total),
            "mae": float(absolute.sum() / total),
            "mase": self._mase(absolute, counts),
        }
        return Evaluation(metrics, sums * (len(sums) / total), examples.finish(self, split))

    def _mase(self, absolute: Tensor, counts: Tensor) -> float:
        """From sums of standardised absolute errors and numbers of values, ``(series, targets)``."""
        divisor = self._on_targets(self._tensors["naive_error"] / self._tensors["scale"])
        defined = (counts > 0) & ~divisor.isnan()
        if not bool(defined.any()):
            return float("nan")
        return float((absolute[defined] / counts[defined] / divisor[defined]).mean())

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

    def save(self, folder: Path) -> None:
        """Write ``forecast.safetensors``, whole or not at all; an existing one is replaced."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        record = {"format": _FORMAT, "info": asdict(self.info), "layout": self.layout, "facts": self._facts}
        save_tensors(folder / _FILE, self._tensors, record)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what :meth:`save` wrote, bit for bit; the user's file is not needed.

        Raises:
            InvalidValue: the folder holds no whole prepared data of this format.
        """
        tensors, record = load_tensors(Path(folder) / _FILE)
        if record.get("format") != _FORMAT or set(tensors) != set(_TENSORS):
            raise InvalidValue(
                f"{str(folder)!r} holds no forecast data that this version of foveate wrote: prepare it again."
            )
        return cls(ForecastInfo.from_plain(record["info"]), tensors, record["layout"], record["facts"])

    def package(self, model: nn.Module) -> Forecaster:
        """The model between the scaler of the training rows and its inverse."""
        return Forecaster(
            model, self.info, **self.layout, mean=self._tensors["mean"].clone(), scale=self._tensors["scale"].clone()
        )

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

    def _on_targets(self, values: Tensor) -> Tensor:
        """The target channels (the last axis) of ``values``."""
        return values if self._all_targets else values.index_select(-1, self._targets.to(values.device))


@dataclass(frozen=True, slots=True)
class WindowRows:
    """One window as rows.

    Attributes:
        series: its name.
        times: datetime64[us] ``(lookback + horizon,)``.
        values, observed: standardised float32 and bool, ``(lookback + horizon, channels)``.
        mean, scale: float64 ``(channels,)``.
    """

    series: str
    times: np.ndarray
    values: Tensor
    observed: Tensor
    mean: Tensor
    scale: Tensor


def _runs(rows: Tensor, length: int) -> Tensor:
    """A view ``(R - length + 1, length * width)`` of contiguous ``(R, width)``: row i is rows i to i + length - 1."""
    width = rows.shape[1]
    return rows.as_strided((rows.shape[0] - length + 1, length * width), (width, 1))


def _take(runs: Tensor, start: Tensor, length: int) -> Tensor:
    return runs.index_select(0, start).view(len(start), length, runs.shape[1] // length)


def _target_names(target: str | Sequence[str], raw: RawTable) -> list[str]:
    """Column names from the option: a name that is no column may be several, separated by commas."""
    names: list[str] = []
    for name in [target] if isinstance(target, str) else target:
        if not isinstance(name, str):
            raise InvalidType(f"target={name!r} is not possible: the name of a column is needed.")
        names += [name] if name in raw.frame else [part.strip() for part in name.split(",")]
    for name in names:
        if name not in raw.frame:
            raise unknown_name("target", name, raw.frame.columns, f"The file is {raw.label!r}.")
    if not names:
        raise invalid("target", target, "at least one column is needed")
    return list(dict.fromkeys(names))
