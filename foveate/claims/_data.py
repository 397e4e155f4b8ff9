"""Where the files lie that learned claims are measured on; no claims in here.

Files are looked for in ``$FOVEATE_DATA``, by default ``../shared/data`` beside the repository. They are not part of the
project.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from . import Measurement

VARIABLE = "FOVEATE_DATA"


def data_file(name: str) -> Path | None:
    """The file ``name`` (a path inside the data folder), or None where it is absent."""
    folder = os.environ.get(VARIABLE)
    root = Path(folder) if folder else Path(__file__).resolve().parents[2].parent / "shared" / "data"
    file = root / name
    return file if file.is_file() else None


def not_measured(threshold: float, name: str, what: str) -> Measurement:
    """What a claim answers where its data is absent: not passed, and what would be needed."""
    need = f"not measured: it needs {what} as {name} in the folder named by {VARIABLE}."
    return Measurement(math.nan, threshold, False, need)
