"""The ``.ts`` text format of the UEA and UCR archives (timeseriesclassification.com).

A header of ``@key value`` lines ends with ``@data``; then every line is one sample: dimensions separated by ``:``,
values of a dimension by ``,``, ``?`` where nothing was measured, the class label last.
"""

from __future__ import annotations

import numpy as np

from ...errors import InvalidValue

_FLAGS = {"true": True, "false": False}


def read_ts(text: str, label: str) -> tuple[list[np.ndarray], list[str] | None]:
    """Samples and class labels of a ``.ts`` file.

    Args:
        text: its content.
        label: its name, for messages.

    Returns:
        One float64 array ``(steps, dimensions)`` per sample, NaN where nothing was measured (a dimension that is
        shorter than the others of its sample ends in NaN too), and the labels; None if ``@classLabel`` is false.

    Raises:
        InvalidValue: the header or a line is broken; the message names file and line.
    """
    lines = text.splitlines()
    header, first = _header(lines, label)
    if _flag(header, "timestamps", label):
        raise InvalidValue(f"{label!r} has @timeStamps true, which is not read: write evenly spaced values only.")
    if _flag(header, "targetlabel", label):
        raise InvalidValue(f"{label!r} has @targetLabel true: its targets are numbers, which are not classes.")
    classes = header["classlabel"][1:] if _flag(header, "classlabel", label) else None
    if classes == []:
        raise InvalidValue(f"{label!r} has a broken header: @classLabel true is followed by no class.")
    dimensions = _count(header, "dimensions", label)
    samples: list[np.ndarray] = []
    labels: list[str] = []
    for number, line in enumerate(lines[first:], start=first + 1):
        if not line.strip() or line.startswith("#"):
            continue
        where = f"{label!r}, line {number}"
        parts = line.strip().split(":")
        if classes is not None:
            labels.append(parts.pop().strip())
            if labels[-1] not in classes:
                raise InvalidValue(f"{where}: the label {labels[-1]!r} is none of @classLabel ({', '.join(classes)}).")
        dimensions = dimensions or len(parts)
        if len(parts) != dimensions:
            raise InvalidValue(f"{where} has {len(parts)} dimensions, {dimensions} are expected.")
        samples.append(_columns([_numbers(part, where) for part in parts]))
    if not samples:
        raise InvalidValue(f"{label!r} has no samples: nothing follows @data.")
    return samples, None if classes is None else labels


def _header(lines: list[str], label: str) -> tuple[dict[str, list[str]], int]:
    """Keys in lower case with their words, and the number of lines up to ``@data``."""
    header: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if not words[0].startswith("@"):
            raise InvalidValue(f"{label!r} has a broken header: line {number} comes before @data and is no @ line.")
        if words[0].lower() == "@data":
            return header, number
        header[words[0][1:].lower()] = words[1:]
    raise InvalidValue(f"{label!r} has a broken header: the line @data is missing.")


def _flag(header: dict[str, list[str]], key: str, label: str) -> bool:
    words = header.get(key, ["false"])
    value = _FLAGS.get(words[0].lower()) if words else None
    if value is None:
        raise InvalidValue(f"{label!r} has a broken header: @{key} must be true or false, not {' '.join(words)!r:.40}.")
    return value


def _count(header: dict[str, list[str]], key: str, label: str) -> int:
    """The number that a key gives; 0: it is absent."""
    words = header.get(key, ["0"])
    if len(words) != 1 or not words[0].isdecimal() or (key in header and int(words[0]) < 1):
        raise InvalidValue(f"{label!r} has a broken header: @{key} must be a number, not {' '.join(words)!r:.40}.")
    return int(words[0])


def _numbers(part: str, where: str) -> np.ndarray:
    words = [word.strip() for word in part.split(",")]
    values = np.empty(len(words))
    for i, word in enumerate(words):
        try:
            values[i] = np.nan if word == "?" else float(word)
        except ValueError:
            raise InvalidValue(f"{where}: {word!r:.40} is not a number; write ? where nothing was measured.") from None
    if np.isinf(values).any():
        raise InvalidValue(f"{where} holds an infinite value: correct it, or write ? if nothing was measured.")
    return values


def _columns(dimensions: list[np.ndarray]) -> np.ndarray:
    table = np.full((max(map(len, dimensions)), len(dimensions)), np.nan)
    for i, values in enumerate(dimensions):
        table[: len(values), i] = values
    return table
