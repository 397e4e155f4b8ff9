"""Rebuild ``taxi.csv.gz`` from ``data/realKnownCause/nyc_taxi.csv`` of the Numenta Anomaly Benchmark (MIT).

    python -m foveate.tasks.detect_anomalies.embedded.make path/to/nyc_taxi.csv

Times and counts are copied as the source writes them; the days of the events are marked. The file carries no name and
no date, so that the same zlib writes the same bytes every time.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import sys
from pathlib import Path

#: Day to the event that the benchmark names as the cause of something unusual.
EVENTS = {
    "2014-11-02": "New York marathon; clocks are put back, so that the hour from 1 to 2 is counted twice",
    "2014-11-27": "Thanksgiving",
    "2014-12-25": "Christmas",
    "2015-01-01": "New Year's day",
    "2015-01-26": "snow storm, first day",
    "2015-01-27": "snow storm, second day: driving was forbidden until the morning",
}


def make(source: Path) -> bytes:
    """The embedded file's bytes, from the benchmark's ``nyc_taxi.csv``."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("time", "passengers", "is_anomaly"))
    with source.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            writer.writerow((row["timestamp"], row["value"], int(row["timestamp"][:10] in EVENTS)))
    return gzip.compress(out.getvalue().encode(), compresslevel=9, mtime=0)


if __name__ == "__main__":
    made = make(Path(sys.argv[1]))
    target = Path(__file__).with_name("taxi.csv.gz")
    target.write_bytes(made)
    text = gzip.decompress(made)
    rows = text.count(b"\n") - 1
    print(f"{target.name}: {rows} rows, {len(made)} bytes, sha256 {hashlib.sha256(made).hexdigest()}")
    print(f"unpacked: {len(text)} bytes, sha256 {hashlib.sha256(text).hexdigest()}")
