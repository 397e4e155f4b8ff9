"""Segmenting new images: a row for each with the share of every class, and masks as files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from ...errors import InvalidType, InvalidValue
from .cases import Case, resampled
from .nifti import write_nifti
from .package import ImageSegmenter
from .read import read_cases
from .scenes import scenes

if TYPE_CHECKING:
    import pandas as pd


def predict(
    segmenter: ImageSegmenter, source: str | Path | None = None, *, time: str | None = None, id: str | None = None
) -> pd.DataFrame:
    """Segment every image of a source; masks in it are not needed and not looked at.

    Args:
        source: an image or volume, a folder of them (or with a folder called images), an ``.npz`` file, or None for the
            embedded digits.
        time, id: images have none.

    Returns:
        One row per image: ``image`` and the share ``p(NAME)`` of pixels of every class.

    Raises:
        InvalidType: ``time`` or ``id`` is given.
        InvalidValue: the source or an image cannot be read, or is of another kind than the model was trained on.
    """
    import pandas as pd

    if time is not None or id is not None:
        raise InvalidType("time and id are not possible here: images have no columns.")
    rows = []
    for case, mask in _masks(segmenter, source):
        shares = np.bincount(mask.reshape(-1), minlength=len(segmenter.classes)) / mask.size
        shown = {f"p({name})": share for name, share in zip(segmenter.classes, shares, strict=True)}
        rows.append({"image": case.name, **shown})
    return pd.DataFrame(rows)


def write_predictions(segmenter: ImageSegmenter, source: str | Path | None, folder: Path) -> int:
    """Write the mask of every image into a folder: PNG with the number of the class, or NIfTI where the volume lies.

    Returns:
        How many were written.

    Raises:
        InvalidValue: see :func:`predict`; or two images would be written into one file.
        MissingExtra: no pillow for PNG.
    """
    written: set[Path] = set()
    for case, mask in _masks(segmenter, source):
        volume = mask.ndim == 3
        stem = (
            case.name.removesuffix(".gz").rsplit(".", 1)[0]
            if case.origin is not None or "." in case.name
            else case.name
        )
        target = folder / (stem + (".nii.gz" if volume and case.origin is not None else ".npz" if volume else ".png"))
        if target in written:
            raise InvalidValue(f"{case.name!r} and another image would both be written to {str(target)!r}: rename one.")
        written.add(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        if volume and case.origin is not None:
            write_nifti(mask, case.origin, target)
        elif volume:
            np.savez_compressed(target, mask=mask)
        else:
            _write_png(mask, target)
    return len(written)


def _write_png(mask: np.ndarray, target: Path) -> None:
    from ...errors import missing_extra

    try:
        from PIL import Image
    except ImportError as error:
        raise missing_extra("pillow", "vision", "writing masks") from error
    Image.fromarray(mask).save(target)


def _masks(segmenter: ImageSegmenter, source: str | Path | None) -> Iterator[tuple[Case, np.ndarray]]:
    """Every image, and the class of its pixels, uint8 of its shape."""
    info, rank = segmenter.info, len(segmenter.info.size)
    found = scenes(rank == 3) if source is None else read_cases(source, labelled=False)
    if found.rank != rank:
        kinds = {2: "images", 3: "volumes"}
        raise InvalidValue(f"{found.label!r} holds {kinds[found.rank]}; the model was trained on {kinds[rank]}.")
    segmenter.eval()
    for i in range(len(found)):
        case = found.load(i)
        image = case.image
        if rank == 2 and image.shape[0] == 1 and info.channels == 3:
            image = image.repeat(3, axis=0)
        if rank == 2 and image.shape[0] == 3 and info.channels == 1:
            raise InvalidValue(f"{case.name!r} is coloured; the model was trained on grey images.")
        if image.shape[0] != info.channels:
            raise InvalidValue(f"{case.name!r} has {image.shape[0]} channels; the model reads {info.channels}.")
        shape = image.shape[1:]
        moved = case
        if segmenter.spacing is not None and case.spacing is not None:
            moved = resampled(case, segmenter.spacing)
            image = moved.image
        with torch.no_grad():
            x = torch.from_numpy(image.astype(np.float32))[None].to(segmenter.mean)
            logits = segmenter(x / 255 if image.dtype == np.uint8 else x)
        if tuple(logits.shape[2:]) != tuple(shape):
            logits = F.interpolate(logits, shape, mode="trilinear", align_corners=False)
        yield case, logits[0].argmax(0).to(torch.uint8).cpu().numpy()
