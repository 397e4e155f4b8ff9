"""Folders of image files: a sub-folder for each class, perhaps inside of folders for the parts."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InvalidValue
from .decode import SUFFIXES, Header, decode, read_header
from .pictures import OPEN, Pictures, Unreadable, or_skip

#: What the folders of parts may be called.
PARTS = {
    "train": OPEN,
    "training": OPEN,
    "val": 1,
    "valid": 1,
    "validation": 1,
    "test": 2,
    "testing": 2,
}


def read_folder(folder: Path, labelled: bool, skip_bad: bool) -> Pictures:
    """The images of a folder; without labels those of all its sub-folders.

    Raises:
        InvalidValue: no classes, one without images, images beside them, a link that leads back, an unreadable file.
    """
    label = str(folder)
    if not labelled:
        files, others = images_below(folder)
        if not files:
            raise InvalidValue(f"{label!r} holds no image files ({', '.join(SUFFIXES)}).")
        return of_files(label, folder, files, None, [OPEN] * len(files), skip_bad, others)
    parts = _parts(folder)
    files: list[Path] = []
    classes: list[str] = []
    numbers: list[int] = []
    others = 0
    for part, number in parts:
        beside = [p for p in _listed(part) if p.is_file() and p.suffix.lower() in SUFFIXES]
        named = [p for p in _listed(part) if p.is_dir()]
        if beside and named:
            raise InvalidValue(
                f"{str(beside[0])!r} lies beside the folders of the classes: move it into the folder of its class."
            )
        if not named:
            raise InvalidValue(
                f"{str(part)!r} holds no sub-folders: a folder of images for each class is needed (or a CSV file of "
                f"paths and classes)."
            )
        for child in named:
            own, more = images_below(child, part, folder)
            others += more
            if not own:
                raise InvalidValue(f"the class folder {str(child)!r} holds no image: fill it, or remove it.")
            files += own
            classes += [_name(child)] * len(own)
            numbers += [number] * len(own)
    return of_files(label, folder, files, classes, numbers, skip_bad, others)


def single_image(path: Path) -> Pictures:
    """One image file."""
    return of_files(str(path), path.parent, [path], None, [OPEN], False, 0)


def images_below(folder: Path, *inside: Path) -> tuple[list[Path], int]:
    """The image files of a folder (which lies ``inside`` of others) and its sub-folders, by name, and how many other
    files there are.

    Links are followed; what begins with a dot is not looked at.

    Raises:
        InvalidValue: a link leads back to a folder that it lies in, or a folder cannot be read.
    """
    files: list[Path] = []
    others = 0
    waiting = [(folder, frozenset(_identity(f) for f in (folder, *inside)))]
    while waiting:
        here, above = waiting.pop()
        for entry in _listed(here):
            if entry.is_dir():
                identity = _identity(entry)
                if identity in above:
                    raise InvalidValue(f"{str(entry)!r} is a link that leads back to a folder it lies in: remove it.")
                waiting.append((entry, above | {identity}))
            elif entry.suffix.lower() in SUFFIXES:
                files.append(entry)
            else:
                others += 1
    return sorted(files), others


def of_files(
    label: str,
    root: Path,
    files: Sequence[Path],
    classes: Sequence[str] | None,
    parts: Sequence[int],
    skip_bad: bool,
    others: int,
    groups: Sequence[str] | None = None,
) -> Pictures:
    """Images of files, after a look at each one's header.

    Args:
        root: what names are told from.
        others: files that are no images.
    """
    headers: dict[int, Header] = {}
    bad: list[str] = []
    for i, path in enumerate(files):
        try:
            headers[i] = read_header(path)
        except Unreadable as error:
            if not skip_bad:
                raise or_skip(error) from error
            bad.append(told(path, root))
    if not headers:
        raise InvalidValue(f"{label!r}: no image can be read, the first is {bad[0] if bad else label!r}.")
    kept = list(headers)
    digests: dict[int, bytes] = {}

    def load(number: int) -> tuple[np.ndarray, str]:
        path = files[kept[number]]
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise Unreadable(f"{str(path)!r} cannot be read ({error.strerror}).") from error
        digests[number] = hashlib.sha256(raw).digest()
        pixels = decode(raw, path)
        if number == len(kept) - 1:
            made.sha256 = hashlib.sha256(b"".join(digests[n] for n in sorted(digests))).hexdigest()
        return pixels, digests[number].hex()

    modes = Counter(headers[i].mode for i in kept)
    animated = sum(headers[i].frames > 1 for i in kept)
    facts: dict[str, Any] = {"modes": dict(sorted(modes.items())), "other_files": others, "skipped": len(bad)}
    notes = []
    if bad:
        told_of = _files(len(bad), "is no whole image and was", "are no whole images and were")
        notes.append(f"{told_of} left out, the first is {bad[0]!r}.")
    if animated:
        notes.append(f"{_files(animated, 'has', 'have')} several frames, of which the first is read.")
    if others:
        told_of = _files(others, "is no image by its ending and was", "are no images by their endings and were")
        notes.append(f"{told_of} not looked at.")
    made = Pictures(
        label=label,
        names=[told(files[i], root) for i in kept],
        classes=None if classes is None else [classes[i] for i in kept],
        parts=np.array([parts[i] for i in kept]),
        sizes=[headers[i].size for i in kept],
        grey=[headers[i].grey for i in kept],
        load=load,
        groups=None if groups is None else [groups[i] for i in kept],
        facts=facts,
        notes=notes,
        files=True,
    )
    return made


def _files(count: int, one: str, several: str) -> str:
    return f"1 file {one}" if count == 1 else f"{count} files {several}"


def told(path: Path, root: Path) -> str:
    """A path as seen from ``root``, in characters that every file and terminal can hold."""
    name = os.path.relpath(path, root).replace(os.sep, "/")
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _parts(folder: Path) -> list[tuple[Path, int]]:
    """The folders in which classes are looked for, and the part of each."""
    named = [p for p in _listed(folder) if p.is_dir()]
    lowered = [p.name.lower() for p in named]
    if not named or not set(lowered) <= set(PARTS) or not {"train", "training"} & set(lowered):
        return [(folder, OPEN)]
    numbers = [PARTS[name] for name in lowered]
    if len(set(numbers)) < len(numbers):
        raise InvalidValue(f"{str(folder)!r} holds two folders of one part ({', '.join(p.name for p in named)}).")
    return list(zip(named, numbers, strict=True))


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise InvalidValue(f"{str(folder)!r} cannot be read ({error.strerror}): check it.") from error


def _identity(folder: Path) -> tuple[int, int]:
    state = folder.stat()
    return state.st_dev, state.st_ino


def _name(folder: Path) -> str:
    try:
        folder.name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidValue(f"the name of the class folder {str(folder)!r} is not UTF-8: rename it.") from error
    return folder.name
