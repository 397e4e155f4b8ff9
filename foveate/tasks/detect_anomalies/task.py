"""The task: batches, loss, scores and alarms over a prepared series."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn

from ...errors import InvalidType, InvalidValue, invalid, unknown_name
from ...registry import register
from ...spec import TaskSpec
from ..base import Batch, Evaluation, asked_at_once
from ..forecast.protocol import SPLITS, check_count
from ..prepared import PreparedTask, scoring
from .facts import facts_of
from .package import AnomalyDetector
from .predict import predict
from .protocol import DetectAnomaliesInfo, prepare_series
from .scores import (
    alarm_threshold,
    area_under_roc,
    point_adjusted,
    precision_at_marks,
    precision_recall_f1,
    share_found,
    step_scores,
    top_places,
)
from .source import find_recording

if TYPE_CHECKING:
    import pandas as pd

_STARTS = ("train", "fit", "val", "test")
_TENSORS = ("values", "observed", "anomalous", "times", "mean", "scale", *_STARTS)
#: Highest places that are told of every system's test scores.
_PLACES = 10

Threshold = Literal["validation", "published"]


@register("task", "detect-anomalies")
class DetectAnomaliesTask(PreparedTask):
    """Detection of unusual steps in one series by how badly a model of its usual part reconstructs them.

    Make it with :meth:`prepare`. Batches are dictionaries: ``x`` float32 ``(B, lookback, channels)`` standardised by
    the training rows, gaps filled from the past; ``observed`` bool like ``x``: measured.

    Metrics: on validation ``mse``, the mean score of its steps, which needs no marks. On test ``auc_pr``, the area
    under the precision-recall curve, which ranks and knows no threshold; ``f1``, ``precision`` and ``recall`` of the
    alarms, step by step; ``f1_adjusted``, the same after point adjustment; ``f1_published``, adjusted, with the
    published threshold; ``auc_roc``; ``found``, the share of the marked stretches near the highest scores. Without
    marks on test there are no test metrics.
    """

    spec: TaskSpec = TaskSpec(
        reads="series",
        rank=1,
        metrics=("mse",),
        test_metrics=("auc_pr", "f1", "precision", "recall", "f1_adjusted", "f1_published", "auc_roc", "found"),
        test_higher_is_better=True,
        baselines=("training_mean", "previous_value", "nearest_window"),
        shortlist=("timesnet", "softmax_attention", "lightning_attention", "mamba"),
    )
    info: DetectAnomaliesInfo
    info_type = DetectAnomaliesInfo
    stem = "detect_anomalies"

    def __init__(
        self, info: DetectAnomaliesInfo, tensors: dict[str, Tensor], layout: dict[str, Any], facts: dict[str, Any]
    ) -> None:
        """Use :meth:`prepare` or :meth:`load`.

        Args:
            tensors: what :class:`~foveate.tasks.detect_anomalies.protocol.Prepared` holds.
            layout: ``columns`` and ``time`` column of the user's table, and whether test can be ``scored``.
            facts: what :meth:`describe` returns.
        """
        super().__init__(info, tensors, layout, facts)
        self._steps = torch.arange(info.lookback)
        self.sample_tokens = info.lookback
        self.overlap = info.lookback  # the samples of a score are steps here, and neighbours share windows
        self._kept = {part: self._covered(part) for part in ("fit", "val", "test")}
        if not layout["scored"]:
            self.spec = replace(type(self).spec, test_metrics=())

    @classmethod
    def prepare(
        cls,
        source: str | Path | pd.DataFrame | None = None,
        *,
        test: str | Path | pd.DataFrame | None = None,
        label: str | None = None,
        time: str | None = None,
        columns: str | Sequence[str] | None = None,
        lookback: int = 100,
        split: str | None = None,
        stride: int | None = None,
        threshold: Threshold = "validation",
        anomaly_ratio: float = 0.005,
        tolerance: int = 100,
    ) -> Self:
        """Read a series and prepare it.

        Args:
            source: path of a CSV, Parquet or ``.npz`` file, a DataFrame, or None for the embedded taxi series. Of
                ``NAME_TRAIN.csv`` the neighbour ``NAME_TEST.csv`` is the test part.
            test: the test part, of the same kind.
            label: column of zeros and ones that marks anomalies; default: one that is called so. Only test needs it.
            time: name of the time column; default: one that is called so, if any.
            columns: names of the channels (several separated by commas); default: all columns of numbers.
            lookback: rows of a window.
            split: shares "0.7/0.1/0.2" or rows of training, validation and test; with a test part "0.8/0.2".
            stride: rows between scored windows; default a quarter of ``lookback``, so that four windows cover a step.
            threshold: which scores it is taken from: "validation", or "published": those of training, validation and
                test together.
            anomaly_ratio: share of these scores that lies above it, in (0, 1).
            tolerance: rows that a place may lie beside a marked stretch and still have found it.

        Raises:
            UnknownName, InvalidType, InvalidValue, MissingExtra: the source or an option is not possible; the message
                names it and says what to do.
        """
        window = check_count("lookback", lookback)
        if window < 2:
            raise invalid("lookback", window, "a window needs at least 2 rows")
        step = check_count("stride", stride, max(1, window // 4))
        if step > window:
            raise invalid("stride", step, f"steps between windows of lookback={window} rows would not be scored")
        if threshold not in ("validation", "published"):
            raise invalid("threshold", threshold, "it must be 'validation' or 'published'")
        if isinstance(anomaly_ratio, bool) or not isinstance(anomaly_ratio, int | float):
            raise InvalidType(f"anomaly_ratio={anomaly_ratio!r} is not possible: a number is needed.")
        if not 0 < anomaly_ratio < 1:
            raise invalid("anomaly_ratio", anomaly_ratio, "a share between 0 and 1, such as 0.005, is needed")
        options = {
            "stride": step,
            "threshold": threshold,
            "anomaly_ratio": float(anomaly_ratio),
            "tolerance": check_count("tolerance", tolerance),
        }
        recording = find_recording(source, test, label=label, time=time, columns=columns)
        made = prepare_series(recording, split, window, step)
        info = DetectAnomaliesInfo(window, len(made.columns))
        arrays = {name: getattr(made, name) for name in _TENSORS if name not in _STARTS} | made.starts
        layout = {"columns": list(made.columns), "time": recording.time, "scored": made.scored}
        facts = facts_of(recording, made, window, options)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return cls(info, tensors, layout, facts)

    def size(self, split: str) -> int:
        """Number of windows of "train", "val" or "test"."""
        return len(self._starts(split))

    def scoring_size(self, split: str) -> int:
        """Windows that scoring a split reads: for test those of all parts, for the published threshold."""
        return sum(len(self._tensors[part]) for part in (("fit", "val", "test") if split == "test" else (split,)))

    def batch(self, split: str, index: Tensor) -> Batch:
        """Windows ``index`` (int64 ``(B,)``) of a split."""
        rows = self._starts(split)[index][:, None] + self._steps
        return {"x": self._tensors["values"][rows], "observed": self._tensors["observed"][rows]}

    def apply(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's reconstruction ``(B, lookback, channels)``, standardised.

        Raises:
            InvalidValue: the model returned another shape.
        """
        return _reconstructed(model, batch["x"])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean squared error over what was measured."""
        error = torch.where(batch["observed"], self.apply(model, batch) - batch["x"], 0)
        return error.square().sum() / batch["observed"].sum().clamp_min(1)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str, batch_size: int = 256) -> Evaluation:
        """Score all steps of a split that a window covers.

        ``per_sample``: of training and validation the score of every step; of test what every step adds to ``auc_pr``.
        ``examples`` of test: ``{"threshold", "threshold_published", "places": [{"row", "time", "score"}, ...]}``: the
        highest scores, more than ``tolerance`` rows apart, highest first.
        """
        check_count("batch_size", batch_size)
        self._starts(split)
        if split != "test":
            scores = self._scores(model, "fit" if split == "train" else split, batch_size)
            return Evaluation({"mse": float(scores.mean())}, scores)
        fit, val, scores = (self._scores(model, part, batch_size) for part in ("fit", "val", "test"))
        published = self._threshold(fit, val, scores)
        chosen = published if self._facts["threshold"] == "published" else self._threshold(val)
        kept, tolerance = self._kept["test"], self._facts["tolerance"]
        by_row = torch.full((len(kept),), torch.nan, dtype=torch.float64).masked_scatter(kept, scores)
        places = [self._place(row, by_row) for row in top_places(by_row, _PLACES, tolerance)]
        examples = {"threshold": chosen, "threshold_published": published, "places": places}
        if not self.layout["scored"]:
            return Evaluation({}, scores, examples)
        if not bool(scores.isfinite().all()):  # counted as failed, with this reason
            return Evaluation(dict.fromkeys(self.spec.ranking_metrics, float("nan")), scores, examples)
        marks = self._tensors["anomalous"][slice(*self._rows("test"))]
        marked = marks[kept]
        parts = precision_at_marks(scores, marked)
        precision, recall, f1 = precision_recall_f1(scores > chosen, marked)
        adjusted, other = (
            precision_recall_f1(point_adjusted(scores > t, marked), marked)[2] for t in (chosen, published)
        )
        metrics = {
            "auc_pr": float(parts.mean()),
            "f1": f1,
            "precision": precision,
            "recall": recall,
            "f1_adjusted": adjusted,
            "f1_published": other,
            "auc_roc": area_under_roc(scores, marked),
            "found": share_found(by_row, marks, tolerance),
        }
        return Evaluation(metrics, parts, examples)

    @classmethod
    def stored(cls, info: Mapping[str, Any]) -> set[str]:
        """Names of the tensors in the file."""
        return set(_TENSORS)

    @torch.no_grad()
    def package(self, model: nn.Module) -> AnomalyDetector:
        """The model behind the scaler of the training rows, with the threshold that the task was told to take, from
        scores that ``predict`` would give."""
        parts = ("fit", "val", "test") if self._facts["threshold"] == "published" else ("val",)
        at_once = asked_at_once(model, 256)
        threshold = self._threshold(*(self._scores(model, part, at_once) for part in parts))
        return AnomalyDetector(
            model,
            self.info,
            columns=self.layout["columns"],
            mean=self._tensors["mean"],
            scale=self._tensors["scale"],
            threshold=threshold,
            stride=self._facts["stride"],
            time=self.layout["time"],
        )

    @classmethod
    def unpack(cls, config: dict[str, Any], build: Callable[[DetectAnomaliesInfo], nn.Module]) -> AnomalyDetector:
        """The wrapper around a model built anew, without its weights, statistics and threshold."""
        return AnomalyDetector.from_config(build(DetectAnomaliesInfo.from_plain(config["info"])), config)

    #: What ``foveate predict`` calls.
    predict = staticmethod(predict)

    def _starts(self, split: str) -> Tensor:
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        return self._tensors[split]

    def _rows(self, part: str) -> tuple[int, int]:
        """First row of a part, and the one behind its last."""
        train, val, test = self._facts["borders"]
        return {"fit": (0, train), "val": (train, val), "test": (val, test)}[part]

    def _scores(self, model: nn.Module, part: str, batch_size: int) -> Tensor:
        """The scores of the kept rows of "fit", "val" or "test", float64."""
        first, end = self._rows(part)
        with scoring(model) as device:
            scores = step_scores(
                lambda x: _reconstructed(model, x),
                self._tensors["values"][first:end],
                self._tensors["observed"][first:end],
                self._tensors[part] - first,
                self.info.lookback,
                batch_size,
                device,
            )
        return scores[self._kept[part]]

    def _covered(self, part: str) -> Tensor:
        """Which rows of a part have a score, bool ``(rows,)``: those in a window, in which something was measured."""
        first, end = self._rows(part)
        edges = torch.zeros(end - first + 1, dtype=torch.int64)
        starts = self._tensors[part] - first
        edges.index_add_(0, starts, torch.ones_like(starts))
        edges.index_add_(0, starts + self.info.lookback, -torch.ones_like(starts))
        return (edges.cumsum(0)[:-1] > 0) & self._tensors["observed"][first:end].any(-1)

    def _threshold(self, *scores: Tensor) -> float:
        return alarm_threshold(torch.cat(scores), self._facts["anomaly_ratio"])

    def _place(self, row: int, by_row: Tensor) -> dict[str, Any]:
        time = bytes(self._tensors["times"][row].tolist()).rstrip(b"\0").decode()
        return {"row": row, "time": time or None, "score": float(by_row[row])}


def _reconstructed(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x)
    if not isinstance(y, Tensor) or y.shape != x.shape:
        came = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise InvalidValue(
            f"{type(model).__name__} returned {came}: a reconstruction is a tensor (batch, lookback, channels) = "
            f"{tuple(x.shape)}."
        )
    return y
