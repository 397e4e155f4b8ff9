"""Images that lie in arrays: IDX (the files of MNIST and its kin), ``.npz``, and the embedded digits."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InvalidValue
from .embedded import digits
from .pictures import OPEN, Pictures

#: Bytes of arrays above which a file is refused: it would fill the memory.
MOST_BYTES = 1 << 33
#: Side that the embedded digits are shown at where no other is asked for.
EMBEDDED_SIZE = 32
_IDX_UINT8 = 0x08
#: Pairs of names in ``.npz`` files: of images and labels, for each part.
_PAIRS = (("images", "labels"), ("x", "y"))
_PARTS = ("train", "val", "test")


def embedded() -> Pictures:
    """The embedded digits, 8 x 8 pixels each."""
    images, labels, sha256 = digits()
    return of_arrays("embedded digits", sha256, [(OPEN, images[..., None], list(map(str, labels)))])


def of_arrays(label: str, sha256: str, parts: Sequence[tuple[int, np.ndarray, list[str] | None]]) -> Pictures:
    """Images of arrays: for each part its number, uint8 ``(samples, height, width, 1 or 3)`` and labels."""
    places = [(images, i) for _, images, _ in parts for i in range(len(images))]

    def load(number: int) -> tuple[np.ndarray, str]:
        images, i = places[number]
        return images[i], hashlib.sha256(images[i].tobytes()).hexdigest()

    labels = [labels for _, _, labels in parts]
    return Pictures(
        label=label,
        names=list(map(str, range(len(places)))),
        classes=None if None in labels else [name for part in labels for name in part or ()],
        parts=np.concatenate([np.full(len(images), part) for part, images, _ in parts]),
        sizes=[images.shape[1:3] for images, _ in places],
        grey=[images.shape[3] == 1 for images, _ in places],
        load=load,
        sha256=sha256,
    )


# ----- IDX


def is_idx(head: bytes) -> bool:
    """Whether a file begins as IDX does (0, 0, type, rank), or as a gzip file, which may hold one."""
    return (head[:2] == b"\x00\x00" and len(head) > 3 and 1 <= head[3] <= 4) or head[:2] == b"\x1f\x8b"


def idx_pairs(folder: Path) -> list[Path]:
    """The files of IDX images in a folder, by name."""
    return sorted(p for p in folder.iterdir() if re.search(r"images[-.]idx3-ubyte(\.gz)?$", p.name))


def read_idx(images: Sequence[Path], label: str, labelled: bool) -> Pictures:
    """Read ``NAME-images-idx3-ubyte`` with ``NAME-labels-idx1-ubyte`` beside it, each perhaps ``.gz``.

    Of two pairs the one called ``t10k...`` or ``test...`` is the test part, the other one is still to be divided.

    Raises:
        InvalidValue: a file that is not whole, no labels, or another number of them.
    """
    if len(images) > 2:
        raise InvalidValue(f"{label!r} holds {len(images)} files of IDX images: name one of them.")
    held = [re.match(r"t10k|test", p.name) is not None for p in images]
    if len(images) == 2 and sum(held) != 1:
        raise InvalidValue(
            f"{label!r} holds {images[0].name} and {images[1].name}, of which one should be called t10k... or test...: "
            f"name the file to read."
        )
    parts, digest = [], hashlib.sha256()
    for path, test in sorted(zip(images, held, strict=True), key=lambda pair: pair[1]):
        pixels = _idx(path, digest, rank=3)
        labels = _idx_labels(path, len(pixels), digest, labelled)
        parts.append((2 if test and len(images) == 2 else OPEN, pixels[..., None], labels))
    return of_arrays(label, digest.hexdigest(), parts)


def _idx_labels(images: Path, count: int, digest: Any, labelled: bool) -> list[str] | None:
    name = re.sub(r"images([-.])idx3", r"labels\1idx1", images.name)
    plain = name.removesuffix(".gz")
    found = next((p for p in (images.with_name(n) for n in (name, plain, plain + ".gz")) if p.is_file()), None)
    if found is None or found == images:
        if labelled:
            raise InvalidValue(f"{str(images)!r} has no file of labels beside it, such as {name}: put it there.")
        return None
    labels = _idx(found, digest, rank=1)
    if len(labels) != count:
        raise InvalidValue(f"{str(found)!r} has {len(labels)} labels for the {count} images of {images.name}.")
    return list(map(str, labels.tolist()))


def _idx(path: Path, digest: Any, rank: int) -> np.ndarray:
    """The uint8 array of one file; its bytes as they are on the disk go into ``digest``."""
    raw = _read(path)
    digest.update(raw)
    file: Any = io.BytesIO(raw)
    if raw[:2] == b"\x1f\x8b":
        file = gzip.open(file)  # noqa: SIM115 (reads memory)
    try:
        head = file.read(4 + 4 * rank)
        if len(head) < 4 or head[:2] != b"\x00\x00" or head[2] != _IDX_UINT8 or head[3] != rank:
            raise InvalidValue(f"{str(path)!r} is not an IDX file of unsigned bytes of rank {rank}.")
        shape = tuple(int.from_bytes(head[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank))
        need = math.prod(shape)
        if not need or need > MOST_BYTES or len(head) < 4 + 4 * rank:
            raise InvalidValue(f"{str(path)!r} says that it holds an array of shape {shape}, which is not possible.")
        body = file.read(need + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidValue(f"{str(path)!r} is a damaged gzip file ({error}): get it again.") from error
    if len(body) != need:
        more = "more than" if len(body) > need else f"{len(body)} of"
        raise InvalidValue(f"{str(path)!r} holds {more} the {need} bytes that its head tells: get it again.")
    return np.frombuffer(body, np.uint8).reshape(shape)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidValue(f"{str(path)!r} cannot be read ({error.strerror}): check its permissions.") from error


# ----- NPZ


def read_npz(path: Path, labelled: bool) -> Pictures:
    """Read images and labels of an ``.npz`` file.

    Its arrays are called ``images`` and ``labels`` or ``x`` and ``y``, in parts ``x_train``, ``train_images`` and so on
    with train, val and test.

    Raises:
        InvalidValue: not such a file; the message says what is wrong.
    """
    label = str(path)
    raw = _read(path)
    arrays = npz_arrays(path)
    parts = []
    for number, suffix in ((OPEN, ""), *enumerate(_PARTS)):
        for images, labels in _PAIRS:
            names = [(images, labels)]
            if suffix:
                names = [(f"{suffix}_{images}", f"{suffix}_{labels}"), (f"{images}_{suffix}", f"{labels}_{suffix}")]
            for image_name, label_name in names:
                if image_name in arrays:
                    told = arrays.pop(label_name, None)
                    pixels = image_array(arrays.pop(image_name), f"{label!r}: {image_name}")
                    parts.append((number, pixels, _labels(told, label_name, len(pixels), label, labelled)))
    if not parts or arrays:
        raise InvalidValue(
            f"{label!r} holds {'the arrays ' + ', '.join(arrays) if arrays else 'nothing'} that cannot be told: images "
            f"and labels (or x and y), or x_train, y_train, x_test, y_test (or train_images, ...), are needed."
        )
    numbers = [number for number, _, _ in parts]
    if len(set(numbers)) < len(numbers) or (OPEN in numbers and len(parts) > 1):
        raise InvalidValue(f"{label!r} holds images under several names of one part: leave one pair for each part.")
    if labelled and 0 not in numbers and OPEN not in numbers:
        raise InvalidValue(f"{label!r} has no training images (x_train or train_images).")
    # Training images are still to be divided where a part is missing.
    parts = [(OPEN if number == 0 else number, pixels, labels) for number, pixels, labels in parts]
    return of_arrays(label, hashlib.sha256(raw).hexdigest(), parts)


def npz_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file, after a look at how large they will be."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MOST_BYTES:
            raise InvalidValue(f"{str(path)!r} unpacks to {size >> 20:,} MiB, which is refused: take fewer images.")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, InvalidValue):
            raise
        raise InvalidValue(
            f"{str(path)!r} is not a whole .npz file of plain arrays ({error}): write it again."
        ) from error


def image_array(array: np.ndarray, what: str) -> np.ndarray:
    """uint8 ``(samples, height, width, 1 or 3)`` of what may have its channels first, last or not at all."""
    array = np.asarray(array)
    shape = array.shape
    if array.ndim == 3:
        array = array[..., None]
    elif array.ndim == 4 and shape[3] not in (1, 3, 4) and shape[1] in (1, 3):
        array = np.moveaxis(array, 1, -1)
    if array.ndim != 4 or array.shape[3] not in (1, 3, 4) or 0 in shape or array.dtype.kind not in "uifb":
        raise InvalidValue(
            f"{what} has shape {shape} and type {array.dtype}: numbers of shape (samples, height, width), (samples, "
            f"height, width, 1 or 3) or (samples, 1 or 3, height, width) are needed."
        )
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise InvalidValue(f"{what} holds missing or infinite values: pixels must be numbers.")
        low, high = float(array.min()), float(array.max())
        if low < 0 or high > 255:
            raise InvalidValue(f"{what} holds values from {low:g} to {high:g}: 0 to 1, or 0 to 255, are needed.")
        array = np.round(array * (255 if high <= 1 else 1)).astype(np.uint8)
    elif array.dtype != np.uint8:
        low, high = int(array.min()), int(array.max())
        deep = array.dtype == np.uint16 and high > 255
        if low < 0 or (high > 255 and not deep):
            raise InvalidValue(f"{what} holds values from {low} to {high}: 0 to 255 are needed (or 16-bit unsigned).")
        array = (np.round(array / 257) if deep else array).astype(np.uint8)
    if array.shape[3] == 4:
        alpha = array[..., 3:].astype(np.float32) / 255
        array = np.round(array[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return array


def _labels(array: np.ndarray | None, name: str, count: int, label: str, labelled: bool) -> list[str] | None:
    if array is None:
        if labelled:
            raise InvalidValue(f"{label!r} has no array {name!r}: every image needs a label.")
        return None
    shape = array.shape
    array = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if array.shape != (count,) or array.dtype.kind not in "uifbUS":
        raise InvalidValue(f"{label!r}: {name} has shape {shape} and type {array.dtype}: {count} labels are needed.")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            at = int((~np.isfinite(array)).argmax())
            raise InvalidValue(f"{label!r}: {name} of image {at} is {array[at]}: give it a class.")
        array = array.astype(np.int64) if bool((array == array.round()).all()) else array
    return [v.decode("utf-8", "backslashreplace") if isinstance(v, bytes) else str(v) for v in array.tolist()]
