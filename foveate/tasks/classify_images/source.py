"""From what the user names to :class:`Pictures`: folders, tables, arrays, or the embedded digits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InvalidType, InvalidValue
from .arrays import embedded, idx_pairs, is_idx, read_idx, read_npz
from .decode import looks_like_image
from .folders import read_folder, single_image
from .pictures import Pictures
from .table import read_table


def read_pictures(
    source: Any,
    test: Any,
    *,
    columns: Mapping[str, str | None],
    labelled: bool = True,
    skip_bad: bool = False,
) -> Pictures:
    """Find the images of a source, and of its test part.

    Args:
        source: path of a folder, a CSV file, IDX images, an ``.npz`` file or (unlabelled) one image; None: embedded.
        test: the same, of the test part.
        columns: what columns of a CSV file are called: ``label``, ``path``, ``group``.
        labelled: refuse a source without labels; False: labels are not looked at.
        skip_bad: leave out files that are no whole images.

    Raises:
        UnknownName, InvalidType, InvalidValue, MissingExtra: not possible; the message names file, and row or column.
    """
    given = [name for name, value in columns.items() if value is not None]
    if source is None:
        if given or test is not None:
            what = " and ".join([*given, *(["test"] if test is not None else [])])
            raise InvalidType(f"{what} cannot be given without data: the embedded digits need none.")
        return embedded()
    found = _one(source, given, columns, labelled, skip_bad)
    if test is None:
        return found
    held = _one(test, given, columns, labelled, skip_bad)
    for part in (found, held):
        if (part.parts == 2).any():
            raise InvalidValue(f"{part.label!r} holds a test part of its own: leave out test={str(test)!r}.")
    held.parts[:] = 2
    return _joined(found, held)


def _one(source: Any, given: list[str], columns: Mapping[str, str | None], labelled: bool, skip_bad: bool) -> Pictures:
    if not isinstance(source, str | Path):
        raise InvalidType(
            f"images are read from a path, not from a {type(source).__name__}: name a folder, a CSV file, IDX "
            f"images or an .npz file."
        )
    path = Path(source)
    if not path.exists():
        raise InvalidValue(f"{str(source)!r} does not exist: name a folder, a CSV file, IDX images or an .npz file.")
    head = b""
    if path.is_file():
        try:
            with path.open("rb") as file:
                head = file.read(64)
        except OSError as error:
            raise InvalidValue(f"{str(path)!r} cannot be read ({error.strerror}): check its permissions.") from error
        if not head:
            raise InvalidValue(f"{str(path)!r} is empty.")
    table = path.is_file() and not (looks_like_image(head) or is_idx(head) or head[:4] == b"PK\x03\x04")
    if given and not table:
        raise InvalidType(f"{' and '.join(given)} name columns of a CSV file: {str(source)!r} is none.")
    if table:
        return read_table(path, columns, labelled, skip_bad)
    if path.is_dir():
        pairs = idx_pairs(path)
        return read_idx(pairs, str(source), labelled) if pairs else read_folder(path, labelled, skip_bad)
    if head[:4] == b"PK\x03\x04":
        return read_npz(path, labelled)
    if is_idx(head):
        return read_idx([path], str(source), labelled)
    if labelled:
        raise InvalidValue(f"{str(source)!r} is one image: name a folder with a sub-folder of images for each class.")
    return single_image(path)


def _joined(first: Pictures, second: Pictures) -> Pictures:
    """Two sources as one; images of the second one are called "test/..."."""

    def load(number: int) -> tuple[np.ndarray, str]:
        return first.load(number) if number < len(first) else second.load(number - len(first))

    groups = None
    if first.groups is not None or second.groups is not None:
        groups = [*(first.groups or first.names), *(f"test {name}" for name in (second.groups or second.names))]
    both = first.classes is not None and second.classes is not None
    return Pictures(
        label=first.label,
        names=[*first.names, *(f"test/{name}" for name in second.names)],
        classes=[*(first.classes or ()), *(second.classes or ())] if both else None,
        parts=np.concatenate([first.parts, second.parts]),
        sizes=[*first.sizes, *second.sizes],
        grey=[*first.grey, *second.grey],
        load=load,
        sha256=first.sha256,
        groups=groups,
        facts={**first.facts, **second.facts, "test_source": second.label, "test_sha256": second.sha256},
        notes=[*first.notes, *second.notes],
        files=first.files and second.files,
    )
