"""Volumes in NIfTI files; nibabel reads and writes them.

Axes are brought to right, front, up (RAS), in this order, as MONAI does; a mask must lie where its image lies.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InvalidValue, missing_extra
from ..classify_images.pictures import Unreadable
from .cases import MOST_VOXELS, Case

ENDINGS = (".nii", ".nii.gz")
_AT_ONCE = 1 << 20


def is_nifti(path: Path) -> bool:
    """Whether a file is called like a volume."""
    return path.name.lower().endswith(ENDINGS)


def spacing_of(path: Path) -> tuple[float, ...]:
    """Millimetres between voxels along right, front, up, from the header.

    Raises:
        Unreadable: no volume; the message names the file.
        MissingExtra: no nibabel.
    """
    return _spacing(_opened(path))


def read_nifti(path: Path, mask: Path | None, name: str) -> Case:
    """A volume, float32 ``(channels, right, front, up)``, and its mask.

    Raises:
        Unreadable: damaged; or no numbers.
        InvalidValue: the mask has another shape or place, or values that are not whole.
    """
    file = _opened(path)
    image = _values(file, path).astype(np.float32)
    if not np.isfinite(image).all():
        raise Unreadable(f"{str(path)!r} holds missing or infinite values: replace them.")
    image = np.ascontiguousarray(np.moveaxis(image, 3, 0)) if image.ndim == 4 else image[None]
    if mask is None:
        return Case(name, image, None, spacing=_spacing(file), origin=path)
    other = _opened(mask)
    label = _values(other, mask)
    label = label[..., 0] if label.ndim == 4 and label.shape[3] == 1 else label
    if label.shape != image.shape[1:]:
        raise InvalidValue(
            f"{str(mask)!r} has {_times(label.shape)} voxels, its volume {path.name} has {_times(image.shape[1:])}: "
            f"they must be alike."
        )
    if not np.allclose(file.affine, other.affine, rtol=0, atol=1e-2 * max(_spacing(file))):
        raise InvalidValue(
            f"{str(mask)!r} lies elsewhere in space than its volume {path.name} (their affines differ): resample it "
            f"onto the volume."
        )
    if not np.isfinite(label).all() or not (label == np.round(label)).all() or np.abs(label).max(initial=0) > 2**31 - 1:
        raise InvalidValue(f"{str(mask)!r} holds values that are not whole: a mask has one class for each voxel.")
    return Case(name, image, label.astype(np.int32), spacing=_spacing(file), origin=path)


def write_nifti(label: np.ndarray, like: Path, target: Path) -> None:
    """Write a mask uint8 ``(right, front, up)`` with the axes and the place of the file ``like``."""
    import nibabel

    original: Any = nibabel.load(like)
    back = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.io_orientation(original.affine)
    )
    turned = nibabel.orientations.apply_orientation(label, back)
    nibabel.save(nibabel.Nifti1Image(turned.astype(np.uint8), original.affine), target)


def _opened(path: Path) -> Any:
    try:
        import nibabel
        from nibabel.filebasedimages import ImageFileError
        from nibabel.imageglobals import LoggingOutputSuppressor
        from nibabel.spatialimages import HeaderDataError
    except ImportError as error:
        raise missing_extra("nibabel", "vision", "reading NIfTI volumes") from error
    try:
        if not path.stat().st_size:
            raise Unreadable(f"{str(path)!r} is empty: it has no bytes.")
        with LoggingOutputSuppressor():  # what it logs of a bad header it raises as well
            file: Any = nibabel.load(path)
        if len(file.shape) not in (3, 4) or min(file.shape) < 1:
            raise Unreadable(
                f"{str(path)!r} has shape {file.shape}: a volume of three axes (or channels behind) is needed."
            )
        if math.prod(file.shape) > MOST_VOXELS:
            raise Unreadable(
                f"{str(path)!r} unpacks to {_times(file.shape)} voxels, more than {MOST_VOXELS:,}, and is refused."
            )
        if file.get_data_dtype().kind not in "uif":
            raise Unreadable(
                f"{str(path)!r} holds {file.get_data_dtype()} instead of plain numbers: save one number for each voxel."
            )
        if not np.isfinite(file.affine).all() or abs(np.linalg.det(file.affine[:3, :3])) < 1e-12:
            raise Unreadable(f"{str(path)!r} does not say where its voxels lie (its affine is singular): correct it.")
        return nibabel.as_closest_canonical(file)
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        if isinstance(error, Unreadable):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Unreadable(f"{str(path)!r} is no NIfTI volume, or damaged ({first}): replace it.") from error


def _values(file: Any, path: Path) -> np.ndarray:
    try:
        values = np.asarray(file.dataobj)
        if path.name.lower().endswith(".gz"):
            _check_sum(path, values.nbytes)
        return values
    except (OSError, EOFError, ValueError, zlib.error) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Unreadable(f"{str(path)!r} is damaged or cut off ({first}): replace it.") from error


def _check_sum(path: Path, need: int) -> None:
    """Read a zipped volume to its end, where its check sum stands: nibabel stops before it.

    What follows behind a volume of ``need`` bytes may be made to go on for ever and is not read.
    """
    with gzip.open(path) as file:
        need += _AT_ONCE
        while need > 0 and (block := file.read(_AT_ONCE)):
            need -= len(block)


def _spacing(file: Any) -> tuple[float, ...]:
    return tuple(round(float(step), 4) for step in np.sqrt((file.affine[:3, :3] ** 2).sum(0)))


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
