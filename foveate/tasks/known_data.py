"""Public data sets that published recipes belong to: how their files are called and how they are divided."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidValue, unknown_name

_HOURS = "8640/2880/2880"  # 12, 4 and 4 months of 30 days
_QUARTERS = "34560/11520/11520"


@dataclass(frozen=True, slots=True)
class KnownData:
    """A public data set.

    Attributes:
        name: as recipes name it.
        words: what its files are called, in lower case.
        split: rows of its official training, validation and test part, for tasks that cut windows out of long series;
            None: the usual shares.
    """

    name: str
    words: tuple[str, ...]
    split: str | None = None


KNOWN = {
    data.name: data
    for data in (
        KnownData("ETTh1", ("etth1",), _HOURS),
        KnownData("ETTh2", ("etth2",), _HOURS),
        KnownData("ETTm1", ("ettm1",), _QUARTERS),
        KnownData("ETTm2", ("ettm2",), _QUARTERS),
        KnownData("ECL", ("electricity", "ecl")),
        KnownData("Exchange", ("exchange", "exchangerate")),
        KnownData("ILI", ("ili", "illness", "nationalillness")),
        KnownData("Traffic", ("traffic",)),
        KnownData("Weather", ("weather",)),
        *(
            KnownData(name, (name.lower().replace("-", ""),))
            for name in (
                "EthanolConcentration",
                "FaceDetection",
                "Handwriting",
                "Heartbeat",
                "JapaneseVowels",
                "PEMS-SF",
                "SelfRegulationSCP1",
                "SelfRegulationSCP2",
                "SpokenArabicDigits",
                "UWaveGestureLibrary",
            )
        ),
        *(KnownData(name, (name.lower(),)) for name in ("MSL", "PSM", "SMAP", "SMD")),
    )
}
#: Tasks whose reader has an option ``split`` that takes rows.
SPLIT_BY_ROWS = ("forecast", "impute")


def known_data(preset: str, source: Any) -> KnownData:
    """The data set of a preset: the one it names ("published:ETTh1"), or the one that the file is called after.

    Args:
        preset: "published" or "published:NAME".
        source: path of the user's file or folder; None: embedded data.

    Raises:
        UnknownName: no data set has this name.
        InvalidValue: no name is given, and the file is not called like a data set.
    """
    _, _, name = preset.partition(":")
    if name:
        found = KNOWN.get(name) or _called(name)
        if found is None:
            raise unknown_name("data set of a published recipe", name, KNOWN)
        return found
    path = Path(str(source)) if source is not None else Path()
    found = _called(path.name) or _called(path.parent.name)
    if found is None:
        file = "the embedded data" if source is None else repr(str(source))
        raise InvalidValue(
            f"preset={preset!r}: {file} is not called like a data set with published recipes ({', '.join(KNOWN)}): "
            f"name the one whose recipes to take, as in --preset published:ETTh1."
        )
    return found


def _called(name: str) -> KnownData | None:
    """The data set that a file name begins with, whatever stands behind: ``ETTh1.csv``, ``Weather_TRAIN.ts``."""
    words = [w for w in re.split(r"[^a-z0-9]+", name.lower()) if w]
    starts = {"".join(words[:count]) for count in range(1, len(words) + 1)}
    return next((data for data in KNOWN.values() if starts & set(data.words)), None)
