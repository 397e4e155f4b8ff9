"""From what the user names to cases: folders of images and masks, ``.npz`` files, or the embedded digits."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InvalidType, InvalidValue
from ..classify_images.arrays import image_array, npz_arrays
from ..classify_images.decode import SUFFIXES, check_file, decode, decode_mask, read_header
from ..classify_images.folders import PARTS, images_below, told
from ..classify_images.pictures import OPEN, Unreadable, fitted
from .cases import Case, Cases
from .nifti import ENDINGS, is_nifti, read_nifti, spacing_of

#: What the folders of images and of masks may be called.
IMAGES = ("images", "image", "imagestr", "img", "imgs")
MASKS = ("masks", "mask", "labels", "label", "labelstr", "annotations", "segmentations")
_TAILS = ("", "_mask", "_masks", "_label", "_labels", "_seg", "_segmentation")


def read_cases(source: Any, *, labelled: bool = True) -> Cases:
    """Find the images of a source and their masks.

    Args:
        source: path of a folder or an ``.npz`` file; unlabelled also of one image or volume.
        labelled: refuse images without masks; False: masks are not looked at.

    Raises:
        InvalidType, InvalidValue, MissingExtra: not possible; the message names the file.
    """
    if not isinstance(source, str | Path):
        raise InvalidType(
            f"images are read from a path, not from a {type(source).__name__}: name a folder with images and masks, or "
            f"an .npz file."
        )
    path = Path(source)
    if not path.exists():
        raise InvalidValue(f"{str(source)!r} does not exist: name a folder with images and masks, or an .npz file.")
    if path.is_file():
        if path.read_bytes()[:4] == b"PK\x03\x04":
            return _from_npz(path, labelled)
        if labelled:
            raise InvalidValue(f"{str(source)!r} is one file: name a folder with images and masks, or an .npz file.")
        return _of_files(str(path), [path], None, [OPEN], path.parent)
    files: list[Path] = []
    masks: list[Path] = []
    numbers: list[int] = []
    for part, number in _parts(path) if labelled else [(path, OPEN)]:
        images_folder = _called(part, IMAGES)
        if images_folder is None:
            if labelled:
                raise InvalidValue(
                    f"{str(part)!r} holds no folder called images with one called masks (or labels) beside it."
                )
            images_folder = part
        own = _files(images_folder)
        if not own:
            raise InvalidValue(f"{str(images_folder)!r} holds no images ({', '.join((*SUFFIXES, *ENDINGS))}).")
        if labelled:
            masks += _matched(part, own)
        files += own
        numbers += [number] * len(own)
    return _of_files(str(path), files, masks if labelled else None, numbers, path)


def _parts(folder: Path) -> list[tuple[Path, int]]:
    found = sorted(p for p in folder.iterdir() if p.is_dir() and p.name.lower() in PARTS)
    if _called(folder, IMAGES) is not None or not found:
        return [(folder, OPEN)]
    return [(p, PARTS[p.name.lower()]) for p in found]


def _called(folder: Path, names: tuple[str, ...]) -> Path | None:
    found = {p.name.lower(): p for p in sorted(folder.iterdir()) if p.is_dir()}
    return next((found[name] for name in names if name in found), None)


def _files(folder: Path) -> list[Path]:
    volumes = sorted(p for p in folder.rglob("*") if is_nifti(p) and not p.name.startswith("."))
    images, _ = images_below(folder)
    if volumes and images:
        raise InvalidValue(f"{str(folder)!r} holds both images and volumes: keep them apart.")
    return volumes or images


def _stem(path: Path) -> str:
    return path.name[: -len(".nii.gz")] if path.name.lower().endswith(".nii.gz") else path.stem


def _matched(part: Path, files: list[Path]) -> list[Path]:
    """The mask of every image, by its name."""
    folder = _called(part, MASKS)
    if folder is None:
        raise InvalidValue(f"{str(part)!r} holds images and no folder called masks (or labels) beside them.")
    known = {_stem(p): p for p in _files(folder)}
    found = []
    for path in files:
        mask = next((known.pop(_stem(path) + tail) for tail in _TAILS if _stem(path) + tail in known), None)
        if mask is None:
            raise InvalidValue(f"{str(path)!r} has no mask of its name in {str(folder)!r}.")
        found.append(mask)
    if known:
        first = next(iter(known.values()))
        raise InvalidValue(f"{str(first)!r} is the mask of no image: remove it, or bring its image.")
    return found


def _of_files(label: str, files: list[Path], masks: list[Path] | None, parts: list[int], root: Path) -> Cases:
    for path in (*files, *(masks or ())):
        check_file(path)
    volumes = is_nifti(files[0])
    spacings = [spacing_of(path) for path in files] if volumes else None
    channels = 1 if volumes or all(read_header(path).grey for path in files) else 3

    def load(i: int) -> Case:
        mask, name = None if masks is None else masks[i], told(files[i], root)
        return read_nifti(files[i], mask, name) if volumes else _image(files[i], mask, name, channels)

    digest = hashlib.sha256()
    for path in (*files, *(masks or ())):
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise Unreadable(f"{str(path)!r} cannot be read ({error.strerror}).") from error
    return Cases(
        label=label,
        names=[told(path, root) for path in files],
        rank=3 if volumes else 2,
        load=load,
        parts=np.array(parts),
        sha256=digest.hexdigest(),
        spacings=spacings,
    )


def _image(path: Path, mask: Path | None, name: str, channels: int) -> Case:
    pixels = decode(path.read_bytes(), path)
    image = fitted(pixels, (pixels.shape[0], pixels.shape[1]), channels, "stretch").numpy()
    if mask is None:
        return Case(name, image, None)
    label, colours = decode_mask(mask.read_bytes(), mask)
    if label.shape != image.shape[1:]:
        raise InvalidValue(
            f"{str(mask)!r} has {label.shape[0]} x {label.shape[1]} pixels, its image {path.name} has "
            f"{image.shape[1]} x {image.shape[2]}: they must be alike."
        )
    return Case(name, image, label, colours)


def _from_npz(path: Path, labelled: bool) -> Cases:
    """``images`` ``(N, H, W)``, with channels behind, or ``(N, D, H, W)``; ``masks`` ``(N, ...)`` whole numbers."""
    label = str(path)
    arrays = npz_arrays(path)
    images = arrays.get("images", arrays.get("x"))
    masks = arrays.get("masks", arrays.get("y", arrays.get("labels")))
    if images is None or (labelled and masks is None):
        raise InvalidValue(
            f"{label!r} holds the arrays {', '.join(arrays) or 'none'}: images (samples, height, width) and masks of "
            f"the same shape are needed."
        )
    if masks is None:
        volumes = images.ndim == 4 and images.shape[3] not in (1, 3, 4)
    else:
        volumes = masks.ndim == 4
        if masks.dtype.kind not in "uib" or masks.ndim not in (3, 4):
            raise InvalidValue(
                f"{label!r}: masks have shape {masks.shape} and type {masks.dtype}: whole numbers of shape "
                f"(samples, height, width) or (samples, depth, height, width) are needed."
            )
        if images.shape[: masks.ndim] != masks.shape:
            raise InvalidValue(f"{label!r}: images have shape {images.shape}, masks {masks.shape}: they must be alike.")
        if masks.size and (int(masks.min()) < -(2**31) or int(masks.max()) >= 2**31):
            raise InvalidValue(f"{label!r}: masks hold values beyond 32 bits: number the classes from 0.")
    if volumes:
        if images.ndim != 4 or images.dtype.kind not in "uifb" or not np.isfinite(images).all():
            raise InvalidValue(
                f"{label!r}: images have shape {images.shape} and type {images.dtype}: finite numbers of "
                f"shape (samples, depth, height, width) are needed."
            )
        if images.size and max(abs(float(images.min())), abs(float(images.max()))) > float(np.finfo(np.float32).max):
            raise InvalidValue(f"{label!r}: images hold values that are too large for 32-bit numbers: scale them.")
        ready = images.astype(np.float32)[:, None]
    else:
        ready = np.moveaxis(image_array(images, f"{label!r}: images"), -1, 1)

    def load(i: int) -> Case:
        return Case(str(i), ready[i], None if masks is None or not labelled else masks[i].astype(np.int32))

    return Cases(
        label=label,
        names=list(map(str, range(len(images)))),
        rank=3 if volumes else 2,
        load=load,
        parts=np.full(len(images), OPEN),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
