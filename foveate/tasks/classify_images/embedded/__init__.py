"""The embedded images: 1,797 handwritten digits of 8 x 8 pixels; see the README here."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("digits.csv.gz")
#: Largest value in the file: pixels of a block of 4 x 4 that are ink.
_DARKEST = 16


def digits() -> tuple[np.ndarray, np.ndarray, str]:
    """The digits.

    Returns:
        uint8 ``(1797, 8, 8)``, 0 to 255; the digit of each, int64 ``(1797,)``; the SHA-256 of the file.
    """
    raw = FILE.read_bytes()
    rows = [line.split(",") for line in gzip.decompress(raw).decode("ascii").splitlines()]
    table = np.array(rows, dtype=np.int64)
    ink = np.round(table[:, :64] * (255 / _DARKEST)).astype(np.uint8)
    return ink.reshape(-1, 8, 8), table[:, 64], hashlib.sha256(raw).hexdigest()
