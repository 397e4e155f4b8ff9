"""The task: batches, masks, loss and scores over prepared series."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import InvalidType, InvalidValue, invalid, unknown_name
from ...registry import register
from ...spec import TaskSpec
from ..base import Batch, Evaluation
from ..forecast.features import feature_names, time_features
from ..forecast.frequency import horizon_of
from ..forecast.protocol import SPLITS, Prepared, SplitRule, check_count, prepare_windows, split_rule
from ..forecast.read import SeriesTable, clean
from ..forecast.source import read_source
from ..forecast.whole import whole_series
from ..prepared import PreparedTask, scoring
from .package import Imputer
from .predict import predict
from .protocol import ImputeInfo, fixed_masks, seen

if TYPE_CHECKING:
    import pandas as pd

_TENSORS = ("values", "observed", "marks", "times", "offsets", "mean", "scale", *SPLITS)


@register("task", "impute")
class ImputeTask(PreparedTask):
    """Imputation of values that are missing at random from windows of one or more series.

    Make it with :meth:`prepare`. Batches are dictionaries: ``x`` ``(B, lookback, channels)`` standardised truth, gaps
    filled from the past; ``x_marks`` ``(B, lookback, marks)`` calendar features; ``observed`` and ``hidden`` bool like
    ``x``: measured, and hidden from the model. Models never see ``x`` where it is hidden: :meth:`apply` zeroes it.

    Metrics: ``mse`` and ``mae`` over the hidden measured target values, standardised.
    """

    spec: ClassVar[TaskSpec] = TaskSpec(
        reads="series",
        rank=1,
        metrics=("mse", "mae"),
        baselines=("linear_interpolation", "carry_forward"),
        shortlist=("timesnet", "softmax_attention", "lightning_attention", "mamba"),
    )
    info: ImputeInfo
    info_type = ImputeInfo
    stem = "impute"

    def __init__(
        self, info: ImputeInfo, tensors: dict[str, Tensor], layout: dict[str, Any], facts: dict[str, Any]
    ) -> None:
        """Use :meth:`prepare` or :meth:`load`.

        Args:
            tensors: what :class:`~foveate.tasks.forecast.protocol.Prepared` holds (times as int64 microseconds),
                ``marks`` float32 ``(R, marks)``, and the window starts as ``train``, ``val`` and ``test``.
            layout: names of the user's table: the options of :class:`Imputer`.
            facts: what :meth:`describe` returns.
        """
        super().__init__(info, tensors, layout, facts)
        self._targets = torch.zeros(info.channels, dtype=torch.bool)
        self._targets[list(info.targets)] = True
        self._steps = torch.arange(info.lookback)
        self.sample_tokens = info.lookback
        self.overlap = -(-info.lookback // facts["stride"])

    @classmethod
    def prepare(
        cls,
        source: str | Path | pd.DataFrame | None = None,
        *,
        lookback: int | None = None,
        mask_rate: float = 0.25,
        mask_seed: int = 0,
        target: str | Sequence[str] | None = None,
        time: str | None = None,
        id: str | None = None,
        freq: str | None = None,
        split: str | None = None,
        stride: int | None = None,
    ) -> Self:
        """Read a table of series, as the forecast task reads it, and prepare it.

        Args:
            source: path of a CSV or Parquet file, a DataFrame, or None for the embedded weather series.
            lookback: rows of a window; default by frequency, 96 below a day (see the forecast task).
            mask_rate: share of the values that is hidden, in (0, 1).
            mask_seed: draws what is hidden in validation and test.
            target: names of the columns that are scored (several separated by commas); the others are hidden as well,
                but neither trained on nor scored. Default: all.
            time, id, freq: as in the forecast task.
            split: "0.7/0.1/0.2" (the default) or row counts such as "8640/2880/2880".
            stride: rows between validation and test windows; default 1.

        Raises:
            UnknownName, InvalidType, InvalidValue, MissingExtra: the source or an option is not possible; the message
                names it and says what to do.
        """
        if isinstance(mask_rate, bool) or not isinstance(mask_rate, int | float):
            raise InvalidType(f"mask_rate={mask_rate!r} is not possible: a number is needed.")
        if not 0 < mask_rate < 1:
            raise invalid("mask_rate", mask_rate, "a share between 0 and 1, such as 0.25, is needed")
        if isinstance(mask_seed, bool) or not isinstance(mask_seed, int) or mask_seed < 0:
            raise InvalidType(f"mask_seed={mask_seed!r} is not possible: a whole number of at least 0 is needed.")
        raw = read_source(source)
        targets = None if target is None else _names(target)
        for name in targets or ():
            if name not in raw.frame:
                raise unknown_name("target", name, raw.frame.columns, f"The file is {raw.label!r}.")
        table = clean(raw, time=time, id=id, freq=freq, required=targets or ())
        window = check_count("lookback", lookback, 4 * horizon_of(table.freq))
        if window < 2:
            raise invalid("lookback", window, "a gap needs something beside it: at least 2 rows")
        rule = split_rule(split, None, stride, window)
        _check_length(table, rule, window)
        made = prepare_windows(table, targets, rule, 0, window, 1)
        marks = time_features(made.times, table.freq)
        info = ImputeInfo(window, len(made.columns), made.targets, table.freq, marks.shape[1], float(mask_rate))
        arrays = {
            "values": made.values,
            "observed": made.observed,
            "marks": marks,
            "times": made.times.astype(np.int64),
            "offsets": made.offsets,
            "mean": made.mean,
            "scale": made.scale,
            **made.starts,
        }
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        layout = {
            "columns": list(made.columns),
            "series": list(made.names),
            "time": table.time,
            "id": table.id,
            "regular": table.regular,
            "resampled": table.resampled,
        }
        return cls(info, tensors, layout, _facts(table, made, rule, info, mask_seed))

    def size(self, split: str) -> int:
        """Number of windows of "train", "val" or "test"."""
        return len(self._starts(split))

    def sample_groups(self, split: str) -> Tensor | None:
        """int64 ``(windows,)``: windows of several series that begin at the same time have the same number."""
        if len(self.layout["series"]) == 1:
            return None
        first = self._tensors["times"][self._starts(split)]
        return torch.unique(first, sorted=True, return_inverse=True)[1]

    def batch(self, split: str, index: Tensor) -> Batch:
        """Windows ``index`` (int64 ``(B,)``) of a split; what is hidden is fixed by each window."""
        starts = self._starts(split)[index]
        rows = starts[:, None] + self._steps
        shape = (self.info.lookback, self.info.channels)
        return {
            "x": self._tensors["values"][rows],
            "x_marks": self._tensors["marks"][rows],
            "observed": self._tensors["observed"][rows],
            "hidden": fixed_masks(starts, shape, self.info.mask_rate, self._facts["mask_seed"]),
        }

    def apply(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's standardised series ``(B, lookback, channels)``, from what is measured and not hidden.

        Raises:
            InvalidValue: the model returned another shape.
        """
        mask = seen(batch["observed"], batch["hidden"])
        filled = model(batch["x"].masked_fill(~mask, 0), marks=batch["x_marks"], mask=mask)
        expected = batch["x"].shape
        if not isinstance(filled, Tensor) or filled.shape != expected:
            came = tuple(filled.shape) if isinstance(filled, Tensor) else type(filled).__name__
            raise InvalidValue(
                f"{type(model).__name__} returned {came}: an imputed series is a tensor (batch, lookback, channels) = "
                f"{tuple(expected)}."
            )
        return filled

    def scored(self, batch: Batch) -> Tensor:
        """Bool like ``x``: measured target values that the model does not see."""
        return batch["observed"] & ~seen(batch["observed"], batch["hidden"]) & self._targets.to(batch["x"].device)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean squared error over the hidden measured target values; what is hidden is drawn anew, by torch's own
        generator, at every call."""
        drawn = torch.rand(batch["x"].shape, device=batch["x"].device) < self.info.mask_rate
        batch = {**batch, "hidden": drawn}
        scored = self.scored(batch)
        error = torch.where(scored, self.apply(model, batch) - batch["x"], 0)
        return error.square().sum() / scored.sum().clamp_min(1)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str, batch_size: int = 256) -> Evaluation:
        """Score all windows of a split in order.

        ``mse`` weighs every scored value alike; ``per_sample`` holds each window's share of it: the mean is ``mse``.
        """
        check_count("batch_size", batch_size)
        squared, absolute, count = [], 0.0, 0
        with scoring(model) as device:
            for index in torch.arange(self.size(split)).split(batch_size):
                batch = {name: value.to(device) for name, value in self.batch(split, index).items()}
                scored = self.scored(batch)
                error = torch.where(scored, self.apply(model, batch).double() - batch["x"].double(), 0)
                squared.append(error.square().sum(dim=(1, 2)).cpu())
                absolute += float(error.abs().sum())
                count += int(scored.sum())
        sums = torch.cat(squared)
        metrics = {"mse": float(sums.sum()) / count, "mae": absolute / count}
        return Evaluation(metrics, sums * (len(sums) / count))

    def whole(self) -> Self:
        """All rows as training rows: see :meth:`foveate.tasks.base.Task.whole`."""
        tensors = whole_series(self._tensors, 0, self.info.lookback, self.info.targets)
        return type(self)(self.info, tensors, self.layout, self._facts)

    @classmethod
    def stored(cls, info: Mapping[str, Any]) -> set[str]:
        """Names of the tensors in the file."""
        return set(_TENSORS)

    def package(self, model: nn.Module) -> Imputer:
        """The model between the scaler of the training rows and its inverse."""
        mean, scale = self._tensors["mean"].clone(), self._tensors["scale"].clone()
        return Imputer(model, self.info, **self.layout, mean=mean, scale=scale)

    @classmethod
    def unpack(cls, config: dict[str, Any], build: Callable[[ImputeInfo], nn.Module]) -> Imputer:
        """The wrapper around a model built anew, without its weights and statistics."""
        return Imputer.from_config(build(ImputeInfo.from_plain(config["info"])), config)

    #: What ``foveate predict`` calls.
    predict = staticmethod(predict)

    def _starts(self, split: str) -> Tensor:
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        return self._tensors[split]


def _names(target: str | Sequence[str]) -> list[str]:
    parts = [target] if isinstance(target, str) else list(target)
    return list(dict.fromkeys(name.strip() for part in parts for name in part.split(",")))


def _check_length(table: SeriesTable, rule: SplitRule, window: int) -> None:
    longest = max(len(s.times) for s in table.series)
    if rule.fits(longest, 0, window):
        return
    needed = rule.rows_needed(0, window, above=longest)
    tail = f"need {needed}" if needed else f"leave a part without {window} rows"
    raise InvalidValue(
        f"{table.label!r} is too short: its longest series has {longest} rows, but windows of lookback={window} rows "
        f"with the split {rule} {tail}: give more rows, a smaller lookback, or another split."
    )


def _facts(table: SeriesTable, made: Prepared, rule: SplitRule, info: ImputeInfo, seed: int) -> dict[str, Any]:
    missing = (~made.observed).sum(axis=0).tolist()
    return {
        "source": table.label,
        "sha256": table.sha256,
        "rows": table.rows,
        "series": len(made.names),
        "columns": list(made.columns),
        "targets": [made.columns[i] for i in info.targets],
        "time": table.time,
        "id": table.id,
        "freq": table.freq,
        "regular": table.regular,
        "resampled": table.resampled,
        "lookback": info.lookback,
        "mask_rate": info.mask_rate,
        "mask_seed": seed,
        "calendar_features": list(feature_names(table.freq)),
        "rows_used": len(made.times),
        "missing_rows": table.inserted,
        "missing_values": dict(zip(made.columns, missing, strict=True)),
        "split": str(rule),
        "stride": rule.stride,
        "windows": {split: len(starts) for split, starts in made.starts.items()},
        "notes": [*table.notes, *made.notes],
    }
