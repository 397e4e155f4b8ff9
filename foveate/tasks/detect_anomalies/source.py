"""Finding the parts of what the user names: a file and its test part, or the embedded series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InvalidType, InvalidValue
from .embedded import read_embedded
from .read import Recording, read_recording

if TYPE_CHECKING:
    import pandas as pd


def find_recording(
    source: str | Path | pd.DataFrame | None,
    test: str | Path | pd.DataFrame | None = None,
    *,
    label: str | None = None,
    time: str | None = None,
    columns: str | Sequence[str] | None = None,
) -> Recording:
    """Read a series and, where there is one, its test part.

    Args:
        source: as for :func:`~foveate.tasks.detect_anomalies.read.read_recording`, or None for the embedded series. A
            file ``NAME_TRAIN.*`` with a neighbour ``NAME_TEST.*`` is read with it.
        test: the test part.
        label, time, columns: see there; ``columns`` may be one text with commas.

    Raises:
        FoveateError: see there, or the test part is named twice.
    """
    options: dict[str, Any] = {"label": label, "time": time, "columns": _names(columns)}
    if source is None:
        given = [name for name, value in ({"test": test} | options).items() if value is not None]
        if given:
            raise InvalidType(f"{' and '.join(given)} cannot be given without a file: the embedded series needs none.")
        return read_embedded()
    if test is None and isinstance(source, str | Path):
        path = Path(source)
        neighbour = path.with_name(path.name.replace("_TRAIN.", "_TEST."))
        test = neighbour if neighbour != path and neighbour.is_file() else None
    recording = read_recording(source, **options, label_may_lack=test is not None)
    if test is None:
        return recording
    if recording.test is not None:
        raise InvalidValue(f"{recording.label!r} holds a test part of its own: leave out test={str(test)!r}.")
    held = read_recording(test, **options, channels=recording.columns, usual_time=recording.time)
    return replace(recording, test=held)


def _names(columns: str | Sequence[str] | None) -> list[str] | None:
    if columns is None:
        return None
    parts = [columns] if isinstance(columns, str) else list(columns)
    return list(dict.fromkeys(name.strip() for part in parts for name in part.split(",")))
