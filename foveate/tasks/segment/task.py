"""The task: patches, loss and scores over images or volumes with a class for every pixel or voxel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import InvalidType, InvalidValue, invalid, unknown_name
from ...registry import register
from ...spec import TaskSpec
from ..base import Batch, Evaluation
from ..classify_series.protocol import SPLITS
from ..prepared import PreparedTask, scoring
from .cases import Cases, Store
from .examples import colours_of, example, picked
from .package import ImageSegmenter
from .predict import predict, write_predictions
from .protocol import Prepared, SegmentInfo, pixel_statistics, prepare_cases
from .read import read_cases
from .scenes import scenes
from .scores import IGNORED, dice_and_cross_entropy, hausdorff95, overlaps
from .windows import BLENDINGS, check_overlap, origins

#: Default contestants of volumes.
_OF_VOLUMES = ("swin_unetr", "softmax_attention", "faster_neighborhood_attention")
_TENSORS = ("shapes", "origins", "mean", "scale", *SPLITS)
NORMALISE = ("training", "each")
#: Classes above which the Dice of each is no column of its own.
_MOST_COLUMNS = 6


@register("task", "segment")
class SegmentTask(PreparedTask):
    """A class for every pixel of images, or voxel of volumes.

    Make it with :meth:`prepare`. Training batches are patches: ``x`` float32 ``(B, channels, *size)``, standardised;
    ``y`` int64 ``(B, *size)``, 255 where nothing counts. Whole images are scored with a sliding window.

    Metrics: ``dice``, averaged over images and all classes but the background, 1 where a class is in neither truth nor
    answer; ``iou``, likewise; with few classes ``dice(NAME)`` for each; ``hd95`` if asked for, in millimetres or
    pixels.
    """

    # Of images; a task of volumes, or with more metrics, has its own.
    spec: TaskSpec = TaskSpec(
        reads="image",
        rank=2,
        metrics=("dice", "iou"),
        higher_is_better=True,
        baselines=("background", "voxel_bayes"),
        shortlist=("convnext", "swin", "dinat", "mambaout", "psa_hrnet"),
        heads_on="classify-images",
    )
    info: SegmentInfo
    info_type = SegmentInfo
    stem = "segment"
    store: Store

    @classmethod
    def of(
        cls, info: SegmentInfo, tensors: dict[str, Tensor], layout: dict[str, Any], facts: dict[str, Any], store: Store
    ) -> Self:
        """The task of prepared tensors, images and masks."""
        made = cls(info, tensors, layout, facts)
        made.store = store
        made.sample_tokens = math.prod(info.size)
        classes = info.class_names[1:] if 2 < info.classes <= _MOST_COLUMNS + 1 else ()
        metrics = ("dice", "iou", *(f"dice({name})" for name in classes), *(["hd95"] if layout["hd95"] else []))
        rank = len(info.size)
        made.spec = replace(cls.spec, rank=rank, metrics=metrics)
        if rank == 3:  # image backbones cannot
            made.spec = replace(made.spec, heads_on="", shortlist=_OF_VOLUMES)
        return made

    @classmethod
    def prepare(
        cls,
        source: str | Path | None = None,
        *,
        volumes: bool = False,
        split: str | None = None,
        split_seed: int = 0,
        patch: int | str | None = None,
        spacing: str | None = None,
        normalise: str = "training",
        ignore: int | None = None,
        overlap: float = 0.5,
        blending: str = "gaussian",
        hd95: bool = False,
    ) -> Self:
        """Read images with masks, or volumes with labels, and prepare them.

        Args:
            source: a folder with folders called images and masks (or labels), perhaps inside of folders called train,
                val and test; an ``.npz`` file with images and masks; or None for scenes of embedded digits.
            volumes: without a source: volumes of digits instead of scenes.
            split: shares "0.7/0.1/0.2" of training, validation and test.
            split_seed: draws parts, patches and scenes; the same for every trial.
            patch: size that models are given, 64 or "32x64x64"; None: see :func:`~.protocol.choose_patch`.
            spacing: what volumes are resampled to: "median", or "1x1x2" in millimetres; "keep": nothing is done; None:
                differing ones are refused.
            normalise: by the statistics of the training images ("training"), or of each image by its own ("each").
            ignore: value in masks that does not count, such as 255.
            overlap, blending: of the sliding window, see :func:`~.windows.sliding_window`.
            hd95: score the 95th percentile of distances between borders too.

        Raises:
            UnknownName, InvalidType, InvalidValue, MissingExtra: the source or an option is not possible; the message
                names it and says what to do.
        """
        if isinstance(split_seed, bool) or not isinstance(split_seed, int) or split_seed < 0:
            raise InvalidType(f"split_seed={split_seed!r} is not possible: a whole number of at least 0 is needed.")
        if normalise not in NORMALISE:
            raise invalid("normalise", normalise, f"it must be {' or '.join(map(repr, NORMALISE))}")
        if blending not in BLENDINGS:
            raise invalid("blending", blending, f"it must be {' or '.join(map(repr, BLENDINGS))}")
        check_overlap(overlap)
        if source is not None and volumes:
            raise InvalidType("volumes is not possible with data of your own: what it holds is seen from its files.")
        if ignore is not None and (isinstance(ignore, bool) or not isinstance(ignore, int)):
            raise InvalidType(f"ignore={ignore!r} is not possible: a whole number is needed.")
        found = scenes(volumes, split_seed) if source is None else read_cases(source)
        made = prepare_cases(found, split=split, seed=split_seed, patch=patch, spacing=spacing, ignore=ignore)
        info = SegmentInfo(made.size, made.store.channels, len(made.classes), made.classes)
        unit = 255.0 if made.store.images.dtype == torch.uint8 else 1.0
        mean, scale = pixel_statistics(made.store, made.parts["train"], unit)
        parts = {name: torch.from_numpy(index) for name, index in made.parts.items()}
        tensors = {**parts, "shapes": made.store.shapes, "origins": torch.from_numpy(made.origins)}
        tensors |= {"mean": mean, "scale": scale}
        layout = {"unit": unit, "normalise": normalise, "overlap": overlap, "blending": blending, "hd95": hd95}
        layout["spacing"] = None if made.spacing is None else list(made.spacing)
        return cls.of(info, tensors, layout, _facts(found, made, layout, split_seed), made.store)

    def size(self, split: str) -> int:
        """Training patches, or images of "val" and "test"."""
        return len(self._part(split)) * (self._tensors["origins"].shape[1] if split == "train" else 1)

    def scoring_size(self, split: str) -> int:
        """Windows that scoring a split takes."""
        return sum(len(self._windows(i)) for i in self._part(split).tolist())

    def batch(self, split: str, index: Tensor) -> Batch:
        """Patches: of "train" those that were chosen, of "val" and "test" the middle of each image."""
        part, per = self._part(split), self._tensors["origins"].shape[1]
        if split == "train":
            chosen = [(int(part[n // per]), self._tensors["origins"][part[n // per], n % per]) for n in index.tolist()]
        else:
            cases, size = part[index], torch.tensor(self.info.size)
            chosen = [(i, ((self._tensors["shapes"][i] - size) // 2).clamp_min(0)) for i in cases.tolist()]
        pairs = [self._patch(i, origin.tolist()) for i, origin in chosen]
        return {"x": torch.stack([x for x, _ in pairs]), "y": torch.stack([y for _, y in pairs])}

    def apply(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's logits ``(B, classes, *size)``.

        Raises:
            InvalidValue: the model returned another shape.
        """
        return self._answers(model, batch["x"])

    def _answers(self, model: nn.Module, x: Tensor) -> Tensor:
        logits = model(x)
        expected = (len(x), self.info.classes, *x.shape[2:])
        if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
            came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InvalidValue(
                f"{type(model).__name__} returned {came}: logits are a tensor (batch, classes, ...) = {expected}."
            )
        return logits

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Soft Dice loss plus cross-entropy, see :func:`~.scores.dice_and_cross_entropy`."""
        return dice_and_cross_entropy(self.apply(model, batch), batch["y"])

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str, batch_size: int = 256) -> Evaluation:
        """Score all images of a split in order, as a whole. ``per_sample`` is each image's mean Dice.

        ``examples``: ``{"classes": names, "dice": of each but the background}``; of "test" also ``"colours"`` of the
        classes and ``"images"``, some pictures: see :func:`~.examples.example`.
        """
        dices, ious, distances = [], [], []
        shown = picked(self._part(split)) if split == "test" else []
        images: list[dict[str, Any]] = []
        with scoring(model) as device:
            for chosen in self._alike(split, batch_size):
                x = torch.stack([self._standardised(i) for i in chosen]).to(device)
                logits = self._package(model).answer(x, lambda part: self._answers(model, part), batch_size)
                for i, answer in zip(chosen, logits.argmax(1).cpu(), strict=True):
                    truth = self.store.mask(i).long()
                    dice, iou = overlaps(answer, truth, self.info.classes)
                    dices.append(dice)
                    ious.append(iou)
                    if i in shown:
                        images.append(example(self, i, answer, float(dice.mean())))
                    if self.layout["hd95"]:
                        steps = self.layout["spacing"] or [1.0] * truth.ndim
                        distances.append(hausdorff95(answer, truth, self.info.classes, steps))
        dice, iou = torch.stack(dices), torch.stack(ious)
        per_case, of_class = dice.mean(1), dice.mean(0).tolist()
        values = {"dice": float(per_case.mean()), "iou": float(iou.mean())}
        values |= {f"dice({name})": d for name, d in zip(self.info.class_names[1:], of_class, strict=True)}
        if distances:
            values["hd95"] = float(torch.stack(distances).mean())
        metrics = {name: values[name] for name in self.spec.metrics}
        examples: dict[str, Any] = {"classes": list(self.info.class_names[1:]), "dice": of_class}
        if images:
            examples |= {"colours": colours_of(self.info.classes), "images": images}
        return Evaluation(metrics, per_case, examples)

    def whole(self) -> Self:
        """All images as training images, standardised by all: see :meth:`foveate.tasks.base.Task.whole`."""
        train = torch.cat([self._tensors[split] for split in SPLITS])
        mean, scale = pixel_statistics(self.store, train.numpy(), self.layout["unit"])
        tensors = {**self._tensors, "train": train, "mean": mean, "scale": scale}
        return self.of(self.info, tensors, self.layout, self._facts, self.store)

    def save(self, folder: Path) -> None:
        """Write images, masks and all else, each file whole or not at all."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.store.write(Path(folder))
        super().save(folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what :meth:`save` wrote; images and masks are mapped into memory.

        Raises:
            InvalidValue: the folder holds no whole prepared data of this format.
        """
        made = super().load(folder)
        dtype = "uint8" if made.layout["unit"] == 255 else "float32"
        store = Store.read(Path(folder), dtype, made._tensors["shapes"], made.info.channels)
        return cls.of(made.info, made._tensors, made.layout, made._facts, store)

    @classmethod
    def stored(cls, info: Mapping[str, Any]) -> set[str]:
        """Names of the tensors in the file."""
        return set(_TENSORS)

    def package(self, model: nn.Module) -> ImageSegmenter:
        """The model behind the statistics of the training images, with its sliding window."""
        return self._package(model, mean=self._tensors["mean"].clone(), scale=self._tensors["scale"].clone())

    def _package(self, model: nn.Module, mean: Tensor | None = None, scale: Tensor | None = None) -> ImageSegmenter:
        layout = {k: v for k, v in self.layout.items() if k != "hd95"}
        return ImageSegmenter(model, self.info, **layout, mean=mean, scale=scale)

    @classmethod
    def unpack(cls, config: dict[str, Any], build: Callable[[SegmentInfo], nn.Module]) -> ImageSegmenter:
        """The wrapper around a model built anew, without its weights and statistics."""
        return ImageSegmenter.from_config(build(SegmentInfo.from_plain(config["info"])), config)

    #: What ``foveate predict`` calls: for a table, and for a folder of masks.
    predict = staticmethod(predict)
    write_predictions = staticmethod(write_predictions)

    def _part(self, split: str) -> Tensor:
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        return self._tensors[split]

    def _windows(self, i: int) -> list[tuple[int, ...]]:
        shape = [max(n, size) for n, size in zip(self._tensors["shapes"][i].tolist(), self.info.size, strict=True)]
        return origins(shape, self.info.size, self.layout["overlap"])

    def _alike(self, split: str, batch_size: int) -> Iterator[list[int]]:
        """The images of a split in order, neighbours of one shape together while they fit into a batch."""
        chosen: list[int] = []
        for i in self._part(split).tolist():
            same = chosen and bool((self._tensors["shapes"][i] == self._tensors["shapes"][chosen[0]]).all())
            if chosen and not (same and (len(chosen) + 1) * len(self._windows(i)) <= batch_size):
                yield chosen
                chosen = []
            chosen.append(i)
        yield chosen

    def _standardised(self, i: int) -> Tensor:
        """float32 ``(channels, *shape)`` of a whole image."""
        x = self.store.image(i).float() / self.layout["unit"]
        return standardised(x, self.layout["normalise"], self._tensors["mean"], self._tensors["scale"])

    def _patch(self, i: int, origin: list[int]) -> tuple[Tensor, Tensor]:
        """A patch of an image and its mask; what an image lacks is padded as the sliding window does."""
        x, y = self.store.image(i), self.store.mask(i)
        if self.layout["normalise"] == "each":
            x = self._standardised(i)
        for axis, (begin, size) in enumerate(zip(origin, self.info.size, strict=True)):
            length = min(size, y.shape[axis])
            x, y = x.narrow(1 + axis, begin, length), y.narrow(axis, begin, length)
        if self.layout["normalise"] != "each":
            x = x.float() / self.layout["unit"]
            x = standardised(x, "training", self._tensors["mean"], self._tensors["scale"])
        lacking = [size - n for size, n in zip(self.info.size, y.shape, strict=True)]
        padding = [n for more in lacking[::-1] for n in (more // 2, more - more // 2)]
        return F.pad(x, padding), F.pad(y, padding, value=IGNORED).long()


def standardised(x: Tensor, normalise: str, mean: Tensor, scale: Tensor) -> Tensor:
    """``(channels, *shape)`` by the given statistics, or by its own."""
    axes = [1] * (x.ndim - 1)
    if normalise == "each":
        flat = x.flatten(1)
        mean, scale = flat.mean(1), flat.std(1, unbiased=False).clamp_min(1e-6)
    return (x - mean.to(x.dtype).view(-1, *axes)) / scale.to(x.dtype).view(-1, *axes)


def _facts(found: Cases, made: Prepared, layout: dict[str, Any], seed: int) -> dict[str, Any]:
    shapes = made.store.shapes
    return {
        "source": found.label,
        "sha256": found.sha256,
        "images": len(shapes),
        "smallest": shapes.amin(0).tolist(),
        "largest": shapes.amax(0).tolist(),
        "channels": made.store.channels,
        "patch": list(made.size),
        "patches": made.origins.shape[1],
        "classes": list(made.classes),
        "shares": made.shares,
        **layout,
        "split_seed": seed,
        "parts": {name: {"samples": len(index)} for name, index in made.parts.items()},
        "notes": made.notes,
    }
