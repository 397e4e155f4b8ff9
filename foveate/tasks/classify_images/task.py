"""The task: batches, loss and scores over labelled images."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import InvalidType, InvalidValue, invalid, unknown_name
from ...files import replace
from ...registry import register
from ...spec import TaskSpec
from ..base import Batch, Evaluation
from ..classify_series.protocol import SPLITS
from ..prepared import PreparedTask, scoring
from .arrays import EMBEDDED_SIZE
from .augment import augmented, read_kinds
from .package import ImageClassifier
from .pictures import FITS, Pictures
from .predict import predict
from .protocol import ClassifyImagesInfo, Prepared, prepare_pictures, statistics
from .scores import class_scores
from .source import read_pictures

_TENSORS = ("labels", "groups", "mean", "scale", *SPLITS)
#: The file that holds the pixels, and how much of it is written at once.
IMAGES = "images.bin"
_AT_ONCE = 1 << 24


@register("task", "classify-images")
class ClassifyImagesTask(PreparedTask):
    """Classification of images.

    Make it with :meth:`prepare`. Batches are dictionaries: ``x`` float32 ``(B, channels, height, width)``, pixels
    divided by 255 and standardised by the training images; ``y`` int64 ``(B,)``. The pixels themselves stay bytes in a
    file that is mapped into memory.

    Metrics: ``accuracy``; ``balanced_accuracy``; ``macro_f1``; ``log_loss`` in nats, see :func:`class_scores`.
    """

    spec: ClassVar[TaskSpec] = TaskSpec(
        reads="image",
        rank=2,
        metrics=("accuracy", "balanced_accuracy", "macro_f1", "log_loss"),
        higher_is_better=True,
        baselines=("frequent_class", "nearest_centroid", "pixel_ridge"),
        shortlist=("convnext", "swin", "dinat", "davit", "mambaout", "focalnet"),
    )
    info: ClassifyImagesInfo
    info_type = ClassifyImagesInfo
    stem = "classify_images"
    #: uint8 ``(samples, channels, height, width)``.
    images: Tensor

    @classmethod
    def of(
        cls,
        info: ClassifyImagesInfo,
        tensors: dict[str, Tensor],
        layout: dict[str, Any],
        facts: dict[str, Any],
        images: Tensor,
    ) -> Self:
        """The task of prepared tensors and images."""
        made = cls(info, tensors, layout, facts)
        made.images = images
        made.sample_tokens = info.size[0] * info.size[1]
        return made

    @classmethod
    def prepare(
        cls,
        source: str | Path | None = None,
        *,
        test: str | Path | None = None,
        label: str | None = None,
        path: str | None = None,
        group: str | None = None,
        split: str | None = None,
        split_seed: int = 0,
        image_size: int | str | None = None,
        fit: str = "crop",
        channels: int | None = None,
        augment: str = "shift",
        skip_bad: bool = False,
    ) -> Self:
        """Read labelled images and prepare them.

        Args:
            source: a folder with a sub-folder of images for each class, perhaps inside of folders called train, val and
                test; a CSV file of paths and classes; IDX images with their labels beside them, or their folder; an
                ``.npz`` file; or None for the embedded digits.
            test: the test part, of any of these kinds. It is scored once; validation is carved out of ``source``.
            label, path, group: columns of a CSV file: class, image file, and what must stay in one part.
            split: shares "0.7/0.1/0.2" of training, validation and test; with a part given, of the others.
            split_seed: draws the parts, stratified by class; the same for every trial.
            image_size: 32, or "24x32" for height x width; None: see :func:`~.pictures.choose_size`, the embedded digits
                at 32.
            fit: "crop" or "stretch", see :func:`~.pictures.fitted`.
            channels: 1 or 3; None: 1 if all images are grey.
            augment: what is done to training images: kinds of :mod:`~.augment` by commas, or "none".
            skip_bad: leave out what cannot be read, or is the same file in two classes, and count it; False: refuse.

        Raises:
            UnknownName, InvalidType, InvalidValue, MissingExtra: the source or an option is not possible; the message
                names it and says what to do.
        """
        if isinstance(split_seed, bool) or not isinstance(split_seed, int) or split_seed < 0:
            raise InvalidType(f"split_seed={split_seed!r} is not possible: a whole number of at least 0 is needed.")
        if fit not in FITS:
            raise invalid("fit", fit, f"it must be {' or '.join(map(repr, FITS))}")
        if channels not in (None, 1, 3):
            raise invalid("channels", channels, "1 (grey) or 3 (colour) is needed")
        read_kinds(augment)
        columns = {"label": label, "path": path, "group": group}
        found = read_pictures(source, test, columns=columns, skip_bad=skip_bad)
        if source is None and image_size is None:
            image_size = EMBEDDED_SIZE
        made = prepare_pictures(
            found,
            split=split,
            seed=split_seed,
            image_size=image_size,
            fit=fit,
            channels=channels,
            skip_bad=skip_bad,
        )
        size = (made.images.shape[2], made.images.shape[3])
        info = ClassifyImagesInfo(size, made.images.shape[1], len(made.classes), made.classes)
        arrays = {n: torch.from_numpy(getattr(made, n)) for n in ("labels", "groups")}
        parts = {name: torch.from_numpy(index) for name, index in made.parts.items()}
        tensors = {**arrays, **parts, "mean": made.mean, "scale": made.scale}
        layout = {"fit": fit, "augment": augment}
        return cls.of(info, tensors, layout, _facts(found, made, layout, split_seed), made.images)

    def size(self, split: str) -> int:
        """Number of samples of "train", "val" or "test"."""
        return len(self._part(split))

    def sample_groups(self, split: str) -> Tensor | None:
        """int64 ``(samples,)``: the group of every sample, None if no samples belong together."""
        return self._tensors["groups"][self._part(split)] if self._facts["grouped"] else None

    def batch(self, split: str, index: Tensor) -> Batch:
        """Samples ``index`` (int64 ``(B,)``) of a split, unchanged."""
        chosen = self._part(split)[index]
        mean, scale = (self._tensors[name].float()[:, None, None] for name in ("mean", "scale"))
        return {"x": (self.images[chosen].float() / 255 - mean) / scale, "y": self._tensors["labels"][chosen]}

    def augmented(self, batch: Batch) -> Batch:
        """A batch of training images, each changed as ``augment`` says: what :meth:`loss` shows to a model."""
        return {**batch, "x": augmented(batch["x"], read_kinds(self.layout["augment"]))}

    def apply(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's logits ``(B, classes)``.

        Raises:
            InvalidValue: the model returned another shape.
        """
        logits = model(batch["x"])
        expected = (len(batch["x"]), self.info.classes)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
            came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InvalidValue(
                f"{type(model).__name__} returned {came}: logits are a tensor (batch, classes) = {expected}."
            )
        return logits

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy, averaged over the batch; a model in training mode sees augmented images."""
        return F.cross_entropy(self.apply(model, self.augmented(batch) if model.training else batch), batch["y"])

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str, batch_size: int = 256) -> Evaluation:
        """Score all samples of a split in order. ``per_sample`` is 1 where the answer is right, else 0.

        ``examples``: ``{"classes": names, "confusion": rows of counts, truth down, answers across}``.
        """
        answers, truths = [], []
        with scoring(model) as device:
            for index in torch.arange(self.size(split)).split(batch_size):
                batch = {name: value.to(device) for name, value in self.batch(split, index).items()}
                answers.append(self.apply(model, batch).cpu())
                truths.append(batch["y"].cpu())
        metrics, right, confusion = class_scores(torch.cat(answers), torch.cat(truths))
        return Evaluation(metrics, right, {"classes": list(self.info.class_names), "confusion": confusion.tolist()})

    def whole(self) -> Self:
        """All samples as training samples, standardised by all: see :meth:`foveate.tasks.base.Task.whole`."""
        train = torch.cat([self._tensors[split] for split in SPLITS])
        mean, scale = statistics(self.images, train)
        scale = torch.where(scale == 0, 1.0, scale)
        tensors = {**self._tensors, "train": train, "mean": mean, "scale": scale}
        return self.of(self.info, tensors, self.layout, self._facts, self.images)

    def save(self, folder: Path) -> None:
        """Write the pixels and all else, each file whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = self.images.numpy().reshape(-1)

        def write(path: Path) -> None:
            with path.open("wb") as file:
                for begin in range(0, len(pixels), _AT_ONCE):
                    file.write(np.ascontiguousarray(pixels[begin : begin + _AT_ONCE]).data)

        replace(folder / IMAGES, write)
        super().save(folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what :meth:`save` wrote; the pixels are mapped into memory.

        Raises:
            InvalidValue: the folder holds no whole prepared data of this format.
        """
        made = super().load(folder)
        info, path = made.info, Path(folder) / IMAGES
        shape = (len(made._tensors["labels"]), info.channels, *info.size)
        need, size = int(np.prod(shape)), os.path.getsize(path) if path.is_file() else -1
        if size != need:
            state = "is missing" if size < 0 else f"has {size} bytes instead of {need}"
            raise InvalidValue(f"{path} {state}: the prepared data is damaged; prepare it again in another folder.")
        images = torch.from_file(str(path), shared=False, size=need, dtype=torch.uint8).view(shape)
        return cls.of(info, made._tensors, made.layout, made._facts, images)

    @classmethod
    def stored(cls, info: Mapping[str, Any]) -> set[str]:
        """Names of the tensors in the file."""
        return set(_TENSORS)

    def package(self, model: nn.Module) -> ImageClassifier:
        """The model behind the statistics of the training images."""
        mean, scale = self._tensors["mean"].clone(), self._tensors["scale"].clone()
        return ImageClassifier(model, self.info, fit=self.layout["fit"], mean=mean, scale=scale)

    @classmethod
    def unpack(cls, config: dict[str, Any], build: Callable[[ClassifyImagesInfo], nn.Module]) -> ImageClassifier:
        """The wrapper around a model built anew, without its weights and statistics."""
        return ImageClassifier.from_config(build(ClassifyImagesInfo.from_plain(config["info"])), config)

    #: What ``foveate predict`` calls.
    predict = staticmethod(predict)

    def _part(self, split: str) -> Tensor:
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        return self._tensors[split]


def _facts(found: Pictures, made: Prepared, layout: dict[str, Any], seed: int) -> dict[str, Any]:
    parts = {}
    for name, index in made.parts.items():
        counts = np.bincount(made.labels[index], minlength=len(made.classes)).tolist()
        parts[name] = {"samples": len(index), **dict(zip(made.classes, counts, strict=True))}
    return {
        "source": found.label,
        "sha256": found.sha256,
        "samples": len(made.images),
        "size": list(made.images.shape[2:]),
        "channels": made.images.shape[1],
        "native_sizes": len(set(found.sizes)),
        "classes": list(made.classes),
        **layout,
        **found.facts,
        "grouped": made.grouped,
        "split_seed": seed,
        "parts": parts,
        "notes": made.notes,
    }
