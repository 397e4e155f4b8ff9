"""The embedded series: taxi passengers in New York, and five events that made days unusual; see the README here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..read import Recording, read_recording

FILE = Path(__file__).with_name("taxi.csv.gz")
#: Rows of July to October 2014, in which the source names no event; the rest is the test part.
USUAL_ROWS = 5904


def read_embedded() -> Recording:
    """Four months to learn from, and three months with five marked events as the test part."""
    whole = read_recording(FILE)
    assert whole.times is not None  # make.py writes both
    assert whole.anomalous is not None
    parts = []
    for rows in (slice(None, USUAL_ROWS), slice(USUAL_ROWS, None)):
        cut = {"values": whole.values[rows], "times": whole.times[rows], "anomalous": whole.anomalous[rows]}
        parts.append(replace(whole, label="embedded taxi series", **cut))
    return replace(parts[0], test=parts[1])
