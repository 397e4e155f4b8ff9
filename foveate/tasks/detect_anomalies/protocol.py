"""Dividing a series into what is learned from, what chooses and what is tested; scaling, filling, and cutting windows.

The protocol of the Time-Series-Library (windows of 100 rows, training windows begin at every row, validation is the end
of the training rows), with what it leaves open or leaks made strict: windows lie in one part as a whole; windows of
training and validation that touch a marked anomaly are left out; a test part that begins with the training rows, as
those of the UCR anomaly archive do, is tested on what follows them; marks of test reach nothing but the test scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from ...errors import InvalidType, InvalidValue, invalid
from ..forecast.protocol import SPLITS, fill_from_past, standardise, statistics
from .read import Recording
from .scores import window_starts


@dataclass(frozen=True, slots=True)
class DetectAnomaliesInfo:
    """What a model needs to know to be built for anomaly detection.

    Attributes:
        lookback: rows of a window.
        channels: columns in and out.
        marks: 0: there are no calendar features.
    """

    lookback: int
    channels: int
    marks: int = 0
    task: ClassVar[str] = "detect-anomalies"

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """From the plain values that ``dataclasses.asdict`` and JSON make of it."""
        return cls(**values)


@dataclass(slots=True)
class Prepared:
    """One series, its parts one behind another.

    Attributes:
        columns: names of the channels.
        values: float32 ``(rows, channels)``, standardised, gaps filled from the past.
        observed: bool like ``values``: measured.
        anomalous: bool ``(rows,)``, False where nothing is marked.
        times: of the test rows, uint8 ``(test rows, width)``: texts in UTF-8, zeros behind; width 0: there are none.
        borders: ends of the training, validation and test rows.
        starts: first row of every window, int64: ``train`` (every row), ``val`` and ``test`` (every ``stride`` rows)
            and ``fit``, those of training every ``stride`` rows, for its scores.
        mean, scale: float64 ``(channels,)``, of the training rows, rounded to float32; scale 1 where they are constant.
        scored: some test row is marked and another is not.
        notes: sentences about what was left out or is doubtful.
    """

    columns: tuple[str, ...]
    values: np.ndarray
    observed: np.ndarray
    anomalous: np.ndarray
    times: np.ndarray
    borders: tuple[int, int, int]
    starts: dict[str, np.ndarray]
    mean: np.ndarray
    scale: np.ndarray
    scored: bool
    notes: list[str]


def read_split(split: str | None, parts: int) -> tuple[float, ...]:
    """Shares (they sum to 1) or row counts of ``parts`` parts from text such as "0.7/0.1/0.2"; None: the default.

    Raises:
        InvalidType, InvalidValue: not such a text.
    """
    default = {2: (0.8, 0.2), 3: (0.7, 0.1, 0.2)}[parts]
    if split is None:
        return default
    what = "train/val, because the test part is given" if parts == 2 else "train/val/test"
    legal = f"shares or rows {what} are needed, such as {'/'.join(f'{s:g}' for s in default)}"
    if not isinstance(split, str):
        raise InvalidType(f"split={split!r} is not possible: {legal}.")
    texts = split.split("/")
    try:
        shares = tuple(float(text) for text in texts)
    except ValueError as error:
        raise invalid("split", split, legal) from error
    if len(shares) != parts or not all(share > 0 and math.isfinite(share) for share in shares):
        raise invalid("split", split, legal)
    if not all(text.strip().isdecimal() for text in texts) and abs(sum(shares) - 1) > 1e-9:
        raise invalid("split", split, "the shares must sum to 1")
    return shares


def prepare_series(recording: Recording, split: str | None, window: int, stride: int) -> Prepared:
    """Divide, scale, fill and cut.

    Raises:
        InvalidValue: too few rows, nothing to learn, or marks that mark nothing or everything; the message names the
            file.
    """
    test = recording.test
    shares = read_split(split, 2 if test is not None else 3)
    notes = list(recording.notes)
    if test is not None:
        _check_pair(recording, test)
        test = _without_training_rows(recording, test, notes)
        notes += [note for note in test.notes if note not in notes]
    rows = len(recording.values)
    if sum(shares) <= 1 + 1e-9:
        train = int(rows * shares[0])
        val = rows if test is not None else rows - int(rows * shares[2])
    else:
        train, val = int(shares[0]), int(shares[0] + shares[1])
        rows = min(rows, int(sum(shares))) if test is None else rows
        val = min(val, rows)
    held = test if test is not None else _rows(recording, slice(val, rows))
    _check_length(recording, held, (train, val - train, len(held.values)), window)

    raw = np.concatenate([recording.values[:val], held.values])
    marks = [r.anomalous if r.anomalous is not None else np.zeros(len(r.values), bool) for r in (recording, held)]
    anomalous = np.concatenate([marks[0][:val], marks[1]])
    borders = (train, val, len(raw))
    usable, mean, scale = _scaler(recording, raw[:train][~anomalous[:train]], notes)
    columns = tuple(recording.columns[i] for i in usable)
    scaled = standardise(raw[:, usable], mean, scale)
    if np.isinf(scaled).any():
        row, column = np.argwhere(np.isinf(scaled))[0]
        raise InvalidValue(
            f"{recording.label!r}, column {columns[column]!r}: {raw[row, usable[column]]:g} is too far from the "
            f"training rows to be scaled: correct it, or leave the cell empty."
        )
    observed = ~np.isnan(scaled)
    return Prepared(
        columns=columns,
        values=np.concatenate([fill_from_past(scaled[:val]), fill_from_past(scaled[val:])]),
        observed=observed,
        anomalous=anomalous,
        times=_texts(held),
        borders=borders,
        starts=_starts(recording.label, anomalous, borders, window, stride, notes),
        mean=mean,
        scale=scale,
        scored=_can_be_scored(held, np.any(observed[val:], axis=1), notes),
        notes=notes,
    )


def _rows(recording: Recording, rows: slice) -> Recording:
    cut = {name: getattr(recording, name) for name in ("values", "times", "anomalous")}
    return replace(recording, **{name: None if value is None else value[rows] for name, value in cut.items()})


def _texts(recording: Recording) -> np.ndarray:
    if recording.times is None:
        return np.zeros((len(recording.values), 0), np.uint8)
    texts = np.array([str(time).encode() for time in recording.times])
    return texts.view(np.uint8).reshape(len(texts), -1)


def _check_pair(train: Recording, test: Recording) -> None:
    if test.columns != train.columns:
        raise InvalidValue(
            f"{test.label!r} has the channels {', '.join(test.columns):.80}, {train.label!r} has "
            f"{', '.join(train.columns):.80}: they must be the same, in the same order."
        )
    if train.anomalous is not None and test.anomalous is None:
        raise InvalidValue(
            f"{train.label!r} marks anomalies (column {train.marks!r}), but the test part {test.label!r} does not: "
            f"mark them there, or remove the column."
        )


def _without_training_rows(train: Recording, test: Recording, notes: list[str]) -> Recording:
    """The test part from where it goes beyond the training rows, if it begins with all of them."""
    count = len(train.values)
    if not np.array_equal(test.values[:count], train.values, equal_nan=True):
        return test
    notes.append(f"The test part begins with the {count} rows of the training part; what follows them is tested.")
    return _rows(test, slice(count, None))


def _check_length(recording: Recording, held: Recording, parts: tuple[int, ...], window: int) -> None:
    for split, rows, label in zip(SPLITS, parts, (recording.label, recording.label, held.label), strict=True):
        if rows < window:
            raise InvalidValue(
                f"{label!r} is too short: its {split} part has {max(rows, 0)} rows, but a window has "
                f"lookback={window}: give more rows, a smaller lookback, or another split."
            )


def _scaler(recording: Recording, usual: np.ndarray, notes: list[str]) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Indices of the columns with values in the (unmarked) training rows, their mean and deviation."""
    if not len(usual):
        raise InvalidValue(f"every training row of {recording.label!r} is marked: usual rows are needed to learn from.")
    mean, scale = statistics(usual)
    usable = [i for i in range(len(mean)) if np.isfinite(mean[i])]
    for i, name in enumerate(recording.columns):
        if np.isinf(mean[i]) or np.isinf(scale[i]):
            raise InvalidValue(
                f"{recording.label!r}, column {name!r}: its values are too large to be scaled; rescale it."
            )
        if np.isnan(mean[i]):
            notes.append(f"Column {name!r} has no value in the training rows and is left out.")
        elif np.isnan(scale[i]):
            notes.append(f"Column {name!r} is constant in the training rows: only its mean is taken off.")
    if not np.isfinite(scale[usable]).any():
        raise InvalidValue(f"no column of {recording.label!r} varies in the training rows: there is nothing to learn.")
    return usable, mean[usable], np.nan_to_num(scale[usable], nan=1.0)


def _starts(
    label: str, anomalous: np.ndarray, borders: tuple[int, int, int], window: int, stride: int, notes: list[str]
) -> dict[str, np.ndarray]:
    """First rows of the windows of every part; those of training and validation touch no marked row."""
    train, val, end = borders
    starts = {
        "train": window_starts(train, window, 1),
        "fit": window_starts(train, window, stride),
        "val": train + window_starts(val - train, window, stride),
        "test": val + window_starts(end - val, window, stride),
    }
    marked = np.concatenate([[0], np.cumsum(anomalous)])
    for split in ("train", "fit", "val"):
        clean = marked[starts[split] + window] == marked[starts[split]]
        starts[split] = starts[split][clean]
        if not clean.any():
            raise InvalidValue(
                f"every {'val' if split == 'val' else 'train'} window of {label!r} touches a marked anomaly: usual "
                f"rows are needed to learn from; choose another split or a smaller lookback."
            )
    if marked[val]:
        notes.append(
            f"{marked[val]} rows are marked in the training and validation parts; windows that touch them are left out."
        )
    return starts


def _can_be_scored(held: Recording, measured: np.ndarray, notes: list[str]) -> bool:
    """Whether the test part says what its anomalies are; ``measured`` bool ``(rows,)``: something was."""
    if held.anomalous is None:
        notes.append("The test part has no marks of anomalies: systems are ranked by validation error, nothing more.")
        return False
    marks = held.anomalous[measured]
    if marks.all() or not marks.any():
        what = "every row" if len(marks) and marks.all() else "no row with a value"
        raise InvalidValue(
            f"the column {held.marks!r} of {held.label!r} marks {what} of the test part: nothing can be scored; choose "
            f"another split, or remove the column to rank by validation error."
        )
    return True
