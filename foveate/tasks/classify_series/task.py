"""The task: batches, loss, scores and examples over labelled samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import InvalidType, InvalidValue, unknown_name
from ...registry import register
from ...spec import TaskSpec
from ..base import Batch, Evaluation
from ..prepared import PreparedTask, scoring
from .embedded import read_embedded
from .package import SeriesClassifier
from .predict import predict
from .protocol import SPLITS, ClassifySeriesInfo, Prepared, prepare_samples, rescaled
from .read import Samples, read_samples

if TYPE_CHECKING:
    import pandas as pd

_TENSORS = ("values", "lengths", "labels", "groups", "mean", "scale", *SPLITS)


@register("task", "classify-series")
class ClassifySeriesTask(PreparedTask):
    """Classification of whole series.

    Make it with :meth:`prepare`. Batches are dictionaries: ``x`` float32 ``(B, lookback, channels)`` standardised by
    the training samples, zeros behind a sample's end; ``mask`` bool ``(B, lookback)``, True = a real step; ``y`` int64
    ``(B,)``.

    Metrics: ``accuracy``; ``macro_f1``, the F1 score averaged over the classes that occur among truths or answers.
    """

    spec: ClassVar[TaskSpec] = TaskSpec(
        reads="series",
        rank=1,
        metrics=("accuracy", "macro_f1"),
        higher_is_better=True,
        baselines=("majority_class", "summary_ridge"),
        shortlist=("timesnet", "softmax_attention", "lightning_attention", "mamba"),
    )
    info: ClassifySeriesInfo
    info_type = ClassifySeriesInfo
    stem = "classify_series"

    def __init__(
        self, info: ClassifySeriesInfo, tensors: dict[str, Tensor], layout: dict[str, Any], facts: dict[str, Any]
    ) -> None:
        """Use :meth:`prepare` or :meth:`load`.

        Args:
            tensors: what :class:`~foveate.tasks.classify_series.protocol.Prepared` holds, and the samples of every
                split as ``train``, ``val`` and ``test``.
            layout: names: the options of :class:`SeriesClassifier`.
            facts: what :meth:`describe` returns.
        """
        super().__init__(info, tensors, layout, facts)
        self.sample_tokens = info.lookback

    @classmethod
    def prepare(
        cls,
        source: str | Path | pd.DataFrame | None = None,
        *,
        test: str | Path | pd.DataFrame | None = None,
        label: str | None = None,
        id: str | None = None,
        time: str | None = None,
        group: str | None = None,
        split: str | None = None,
        split_seed: int = 0,
    ) -> Self:
        """Read labelled samples and prepare them.

        Args:
            source: path of a ``.ts`` (UEA), ``.npz``, CSV or Parquet file, a DataFrame, or None for the embedded
                weather days. Of ``NAME_TRAIN.ts`` the neighbour ``NAME_TEST.ts`` is the test part; a folder with one
                such pair may be named instead.
            test: the test part, of the same kind. It is scored once; validation is carved out of ``source``.
            label, id, time, group: columns of a long table: class, sample, time, and what must stay in one part.
            split: shares "0.7/0.1/0.2" of training, validation and test; with a test part "0.8/0.2".
            split_seed: draws the parts, stratified by class; the same for every trial.

        Raises:
            UnknownName, InvalidType, InvalidValue, MissingExtra: the source or an option is not possible; the message
                names it and says what to do.
        """
        if isinstance(split_seed, bool) or not isinstance(split_seed, int) or split_seed < 0:
            raise InvalidType(f"split_seed={split_seed!r} is not possible: a whole number of at least 0 is needed.")
        samples = _read(source, test, {"label": label, "id": id, "time": time, "group": group})
        made = prepare_samples(samples, split, split_seed)
        lookback = made.values.shape[1]
        padded = bool((made.lengths < lookback).any())
        info = ClassifySeriesInfo(lookback, len(samples.columns), len(made.classes), padded)
        arrays = {n: getattr(made, n) for n in _TENSORS if n not in SPLITS} | made.parts
        layout = {"columns": list(samples.columns), "classes": list(made.classes), "roles": samples.roles}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return cls(info, tensors, layout, _facts(samples, made, split_seed))

    def size(self, split: str) -> int:
        """Number of samples of "train", "val" or "test"."""
        return len(self._part(split))

    def sample_groups(self, split: str) -> Tensor | None:
        """int64 ``(samples,)``: the group of every sample, None if no samples belong together."""
        return self._tensors["groups"][self._part(split)] if self._facts["grouped"] else None

    def batch(self, split: str, index: Tensor) -> Batch:
        """Samples ``index`` (int64 ``(B,)``) of a split."""
        chosen = self._part(split)[index]
        lengths = self._tensors["lengths"][chosen]
        return {
            "x": self._tensors["values"][chosen],
            "mask": torch.arange(self.info.lookback) < lengths[:, None],
            "y": self._tensors["labels"][chosen],
        }

    def apply(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's logits ``(B, classes)``; models are given a mask only where samples differ in length.

        Raises:
            InvalidValue: the model returned another shape.
        """
        logits = model(batch["x"], mask=batch["mask"]) if self.info.padded else model(batch["x"])
        expected = (len(batch["x"]), self.info.classes)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
            came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InvalidValue(
                f"{type(model).__name__} returned {came}: logits are a tensor (batch, classes) = {expected}."
            )
        return logits

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy, averaged over the batch."""
        return F.cross_entropy(self.apply(model, batch), batch["y"])

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str, batch_size: int = 256) -> Evaluation:
        """Score all samples of a split in order. ``per_sample`` is 1 where the answer is right, else 0.

        ``examples``: ``{"classes": names, "confusion": rows of counts, truth down, answers across}``.
        """
        answers, truths = [], []
        with scoring(model) as device:
            for index in torch.arange(self.size(split)).split(batch_size):
                batch = {name: value.to(device) for name, value in self.batch(split, index).items()}
                answers.append(self.apply(model, batch).argmax(-1).cpu())
                truths.append(batch["y"].cpu())
        answer, truth = torch.cat(answers), torch.cat(truths)
        count = self.info.classes
        confusion = torch.bincount(truth * count + answer, minlength=count * count).view(count, count)
        right = (answer == truth).double()
        metrics = {"accuracy": float(right.mean()), "macro_f1": macro_f1(confusion)}
        return Evaluation(metrics, right, {"classes": self.layout["classes"], "confusion": confusion.tolist()})

    def whole(self) -> Self:
        """All samples as training samples, filled gaps among their statistics: see
        :meth:`foveate.tasks.base.Task.whole`."""
        names = ("values", "lengths", "mean", "scale")
        values, mean, scale = map(torch.from_numpy, rescaled(*(self._tensors[name].numpy() for name in names)))
        train = torch.cat([self._tensors[split] for split in SPLITS])
        tensors = {**self._tensors, "values": values, "mean": mean, "scale": scale, "train": train}
        return type(self)(self.info, tensors, self.layout, self._facts)

    @classmethod
    def stored(cls, info: Mapping[str, Any]) -> set[str]:
        """Names of the tensors in the file."""
        return set(_TENSORS)

    def package(self, model: nn.Module) -> SeriesClassifier:
        """The model behind the scaler of the training samples."""
        mean, scale = self._tensors["mean"].clone(), self._tensors["scale"].clone()
        return SeriesClassifier(model, self.info, **self.layout, mean=mean, scale=scale)

    @classmethod
    def unpack(cls, config: dict[str, Any], build: Callable[[ClassifySeriesInfo], nn.Module]) -> SeriesClassifier:
        """The wrapper around a model built anew, without its weights and statistics."""
        return SeriesClassifier.from_config(build(ClassifySeriesInfo.from_plain(config["info"])), config)

    #: What ``foveate predict`` calls.
    predict = staticmethod(predict)

    def _part(self, split: str) -> Tensor:
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        return self._tensors[split]


def macro_f1(confusion: Tensor) -> float:
    """Mean F1 over the classes that occur, from counts ``(classes, classes)``, truth down, answers across."""
    hits, occurrences = confusion.diagonal().double(), (confusion.sum(0) + confusion.sum(1)).double()
    occurs = occurrences > 0
    return float((2 * hits[occurs] / occurrences[occurs]).mean())


def _read(source: Any, test: Any, columns: dict[str, Any]) -> Samples:
    if source is None:
        given = [name for name, value in ({"test": test} | columns).items() if value is not None]
        if given:
            raise InvalidType(f"{' and '.join(given)} cannot be given without a file: the embedded days need none.")
        return read_embedded()
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir():
            path = _training_file(path)
        neighbour = path.with_name(path.name.replace("_TRAIN.", "_TEST."))
        if test is None and path.suffix == ".ts" and neighbour != path and neighbour.is_file():
            test = neighbour
        source = str(path)
    samples = read_samples(source, **columns)
    if test is None:
        return samples
    if samples.test is not None:
        raise InvalidValue(f"{samples.label!r} holds a test part of its own: leave out test={str(test)!r}.")
    held = read_samples(test, **columns, channels=samples.columns if samples.roles else None)
    return replace(samples, test=held)


def _training_file(folder: Path) -> Path:
    found = sorted(folder.glob("*_TRAIN.ts"))
    if len(found) != 1:
        raise InvalidValue(
            f"{str(folder)!r} is a folder with {len(found)} files called ..._TRAIN.ts: name the training file itself."
        )
    return found[0]


def _facts(samples: Samples, made: Prepared, seed: int) -> dict[str, Any]:
    count = len(made.classes)
    parts = {}
    for name, index in made.parts.items():
        counts = torch.bincount(torch.from_numpy(made.labels[index]), minlength=count).tolist()
        parts[name] = {"samples": len(index), **dict(zip(made.classes, counts, strict=True))}
    return {
        "source": samples.label,
        "sha256": samples.sha256,
        "test_source": None if samples.test is None else samples.test.label,
        "test_sha256": None if samples.test is None else samples.test.sha256,
        "samples": len(made.values),
        "columns": list(samples.columns),
        "classes": list(made.classes),
        "shortest": int(made.lengths.min()),
        "longest": int(made.lengths.max()),
        "missing_values": made.missing,
        "grouped": samples.groups is not None,
        "split_seed": seed,
        "parts": parts,
        "notes": made.notes,
    }
