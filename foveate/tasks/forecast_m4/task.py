"""The task: batches, loss and scores over many short series without time stamps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import invalid, unknown_name
from ...files import plain
from ...models.outlook import check_forecast
from ...registry import register
from ...spec import TaskSpec
from ..base import Batch, Evaluation
from ..forecast.protocol import ForecastInfo, check_count
from ..prepared import PreparedTask, scoring
from .embedded import read_embedded
from .examples import examples
from .metrics import mase, owa, smape
from .package import M4Forecaster
from .predict import predict
from .protocol import SPLITS, Prepared, Rules, prepare_series, rules_for, window_scale
from .read import Ragged, neighbour_of, read_ragged

if TYPE_CHECKING:
    import pandas as pd

_TENSORS = ("values", "offsets", "naive_error")


@register("task", "forecast-m4")
class ForecastM4Task(PreparedTask):
    """Forecasting what follows each of many short series, by the rules of the M4 competition.

    Make it with :meth:`prepare`. Batches are dictionaries: ``x`` float32 ``(B, lookback, 1)`` in the scale of its own
    window, ``x_marks`` ``(B, lookback, 0)``, ``y`` float64 ``(B, horizon, 1)`` truth in the user's units, ``y_mask``
    bool of the same shape, False behind the end of what may be trained on, ``mean`` and ``scale`` float64
    ``(B, 1, 1)``.

    A training sample is a series and a place to cut it: sample ``i`` is series ``i`` modulo their number, and every
    series has the same number of samples, so that short ones weigh as much as long ones.

    Metrics: ``smape`` in percent, ``mase`` and ``owa`` against our own Naive2, see
    :mod:`foveate.tasks.forecast_m4.metrics`.
    """

    spec: ClassVar[TaskSpec] = TaskSpec(
        reads="series",
        rank=1,
        metrics=("smape", "mase", "owa"),
        baselines=("seasonal_naive", "theta"),
        shortlist=("dlinear", "timesnet", "softmax_attention", "lightning_attention", "mamba"),
        models_of="forecast",
    )
    info: ForecastInfo
    info_type = ForecastInfo
    stem = "forecast_m4"

    def __init__(
        self, info: ForecastInfo, tensors: dict[str, Tensor], layout: dict[str, Any], facts: dict[str, Any]
    ) -> None:
        """Use :meth:`prepare` or :meth:`load`.

        Args:
            tensors: ``values``, ``offsets`` and ``naive_error`` of
                :class:`~foveate.tasks.forecast_m4.protocol.Prepared`.
            layout: ``names`` of the series, name of the ``id`` column, ``cuts``: training windows of each series.
            facts: what :meth:`describe` returns.
        """
        super().__init__(info, tensors, layout, facts)
        self.sample_tokens = info.lookback
        offsets = tensors["offsets"]
        self._first = offsets[:-1]
        self._end = {"train": offsets[1:] - 2 * info.horizon, "val": offsets[1:] - info.horizon, "test": offsets[1:]}
        self._cuts = self._possible_cuts()

    @classmethod
    def prepare(
        cls,
        source: str | Path | pd.DataFrame | None = None,
        *,
        test: str | Path | pd.DataFrame | None = None,
        horizon: int | None = None,
        season: int | None = None,
        lookback: int | None = None,
        history: float | None = None,
        id: str | None = None,
    ) -> Self:
        """Read series in M4's layout and prepare them.

        Args:
            source: path of a CSV or Parquet file, a DataFrame, or None for the embedded weather months.
            test: the ``horizon`` values that follow every series, in the same layout; default: ``NAME-test.csv`` beside
                ``NAME-train.csv``, else the last ``horizon`` values of ``source``.
            horizon, season: steps to forecast, steps per season; default by the file's name: Yearly 6, 1; Quarterly
                8, 4; Monthly 18, 12; Weekly 13, 1; Daily 14, 1; Hourly 48, 24.
            lookback: steps to look at; default: twice the horizon.
            history: training windows are cut among the last ``history * horizon`` steps; default: 1.5 for yearly,
                quarterly and monthly series, else 10.
            id: name of the id column; default: the first.

        Raises:
            UnknownName, InvalidType, InvalidValue, MissingExtra: the source or an option is not possible; the message
                names it and says what to do.
        """
        known = read_embedded() if source is None else read_ragged(source, id=id)
        if source is not None and test is None and isinstance(source, str | Path):
            test = neighbour_of(source)
        follows = None if test is None else read_ragged(test, id=id, usual=known.id)
        rules = rules_for("Hourly" if source is None else known.label, horizon, season, history)
        made = prepare_series(known, follows, rules)
        past = check_count("lookback", lookback, 2 * rules.horizon)
        info = ForecastInfo(
            lookback=past,
            horizon=rules.horizon,
            channels=1,
            targets=(0,),
            season=rules.season,
            freq=rules.freq,
            marks=0,
        )
        tensors = {name: torch.from_numpy(np.ascontiguousarray(getattr(made, name))) for name in _TENSORS}
        longest = int((tensors["offsets"].diff() - 2 * rules.horizon).max()) - 1
        cuts = min(longest, max(1, int(rules.history * rules.horizon)))
        layout = {"names": list(made.names), "id": known.id, "cuts": cuts}
        return cls(info, tensors, layout, _facts(known, follows, made, rules, info, cuts))

    def _possible_cuts(self) -> Tensor:
        """Training windows of each series, int64 ``(series,)``: a cut leaves at least one step to look at."""
        return (self._end["train"] - self._first - 1).clamp_max(self.layout["cuts"])

    def whole(self) -> Self:
        """Training windows cut among the last steps of all that is known: see :meth:`foveate.tasks.base.Task.whole`."""
        made = copy.copy(self)
        made._end = {**self._end, "train": self._end["test"]}
        made._cuts = made._possible_cuts()
        return made

    def size(self, split: str) -> int:
        """Number of windows: one per series in "val" and "test", in "train" one per series and cut."""
        return len(self._first) * (self.layout["cuts"] if self._known(split) == "train" else 1)

    def batch(self, split: str, index: Tensor) -> Batch:
        """Windows ``index`` (int64 ``(B,)``) of a split."""
        info, values = self.info, self._tensors["values"]
        series = index % len(self._first)
        end, first = self._end[self._known(split)][series], self._first[series]
        back = index // len(self._first) % self._cuts[series] + 1 if split == "train" else info.horizon
        cut = (end - back)[:, None]
        rows = cut + torch.arange(-info.lookback, 0)
        # In front of a series its first value is repeated, which the scale does not count.
        real = (rows >= first[:, None])[..., None]
        x = values[rows.maximum(first[:, None])][..., None]
        mean, scale = window_scale(x, real)
        x = ((x - mean) / scale).float()
        rows = cut + torch.arange(info.horizon)
        return {
            "x": x,
            "x_marks": x[..., :0],
            "y": values[rows.minimum(end[:, None] - 1)][..., None],
            "y_mask": (rows < end[:, None])[..., None],
            "mean": mean,
            "scale": scale,
        }

    def apply(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's forecast ``(B, horizon, 1)`` in the scale of the window.

        Raises:
            InvalidValue: the model returned another shape.
        """
        predicted = model(batch["x"], marks=batch["x_marks"])
        check_forecast(type(model).__name__, predicted, tuple(batch["y"].shape))
        return predicted

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """sMAPE in percent with a denominator that takes no gradient; where both values are zero, 0.

        As in the Time-Series-Library, what lies behind the end of a series counts as a step without error.
        """
        forecast = self._in_units(model, batch)
        size = forecast.detach().abs() + batch["y"].abs()
        error = (forecast - batch["y"]).abs() / torch.where(size > 0, size, 1)
        return 200 * torch.where(batch["y_mask"], error, 0).mean()

    def _in_units(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.apply(model, batch).double() * batch["scale"] + batch["mean"]

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str, batch_size: int = 256) -> Evaluation:
        """Score the one window of every series of "val" or "test", in order.

        ``per_sample`` holds the sMAPE of every series; its mean is ``smape``. ``examples`` are for pictures: see
        :mod:`foveate.tasks.forecast_m4.examples`.

        Raises:
            InvalidValue: ``split`` is "train", whose windows may end before the horizon does.
        """
        check_count("batch_size", batch_size)
        if self._known(split) == "train":
            raise invalid("split", split, "val and test are scored")
        forecasts, truths = [], []
        with scoring(model) as device:
            for index in torch.arange(self.size(split)).split(batch_size):
                batch = {name: value.to(device) for name, value in self.batch(split, index).items()}
                forecasts.append(self._in_units(model, batch)[..., 0].cpu())
                truths.append(batch["y"][..., 0].cpu())
        forecast, truth = (torch.cat(parts).numpy() for parts in (forecasts, truths))
        each = smape(truth, forecast)
        divisor = self._tensors["naive_error"][:, ("val", "test").index(split)].numpy()
        percent, scaled = float(each.mean()), mase(truth, forecast, divisor)
        of_naive2 = self._facts["naive2"][split]
        metrics = {"smape": percent, "mase": scaled, "owa": owa(percent, scaled, of_naive2["smape"], of_naive2["mase"])}
        return Evaluation(metrics, torch.from_numpy(each), examples(self, split, forecast))

    def past(self, split: str, series: int) -> np.ndarray:
        """What is known of a series when its validation or test window is forecast, float64 ``(steps,)``, its units."""
        end = int(self._end[self._known(split)][series]) - self.info.horizon
        return self._tensors["values"][int(self._first[series]) : end].numpy()

    @classmethod
    def stored(cls, info: Mapping[str, Any]) -> set[str]:
        """Names of the tensors in the file."""
        return set(_TENSORS)

    def package(self, model: nn.Module) -> M4Forecaster:
        """The model between the scale of each window and its inverse."""
        return M4Forecaster(model, self.info, id=self.layout["id"])

    @classmethod
    def unpack(cls, config: dict[str, Any], build: Callable[[ForecastInfo], nn.Module]) -> M4Forecaster:
        """The wrapper around a model built anew, without its weights."""
        return M4Forecaster.from_config(build(ForecastInfo.from_plain(config["info"])), config)

    #: What ``foveate predict`` calls.
    predict = staticmethod(predict)

    def _known(self, split: str) -> str:
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        return split


def _facts(
    known: Ragged, follows: Ragged | None, made: Prepared, rules: Rules, info: ForecastInfo, cuts: int
) -> dict[str, Any]:
    lengths = np.diff(made.offsets) - info.horizon
    notes = list(made.notes)
    if follows is None:
        notes.append(f"There is no test file: the last {info.horizon} values of every series are its test part.")
    return plain(
        {
            "source": known.label,
            "sha256": known.sha256,
            "test_source": None if follows is None else follows.label,
            "test_sha256": None if follows is None else follows.sha256,
            "id": known.id,
            "series": len(made.names),
            "shortest": int(lengths.min()),
            "longest": int(lengths.max()),
            "freq": rules.freq,
            "season": info.season,
            "lookback": info.lookback,
            "horizon": info.horizon,
            "history": rules.history,
            "cuts": cuts,
            "naive2": {s: {"smape": m[0], "mase": m[1]} for s, m in made.naive2.items()},
            "left_out_of_mase": int(np.isnan(made.naive_error[:, 1]).sum()),
            "notes": notes,
        }
    )
