"""Rebuild ``digits.csv.gz`` from ``digits.csv.gz`` of the Python package scikit-learn 1.9.1.

    python -m foveate.tasks.classify_images.embedded.make path/to/sklearn/datasets/data/digits.csv.gz

Numbers are copied, as whole numbers where the source writes ``5.0``. The file carries no name and no date, so that the
same zlib writes the same bytes every time.
"""

from __future__ import annotations

import gzip
import hashlib
import sys
from pathlib import Path


def make(source: Path) -> bytes:
    """The embedded file's bytes."""
    lines = gzip.decompress(source.read_bytes()).decode("ascii").splitlines()
    rows = [",".join(str(int(float(cell))) for cell in line.split(",")) for line in lines]
    return gzip.compress(("\n".join(rows) + "\n").encode(), compresslevel=9, mtime=0)


if __name__ == "__main__":
    made = make(Path(sys.argv[1]))
    target = Path(__file__).with_name("digits.csv.gz")
    target.write_bytes(made)
    text = gzip.decompress(made)
    rows = text.count(b"\n")
    print(f"{target.name}: {rows} rows, {len(made)} bytes, sha256 {hashlib.sha256(made).hexdigest()}")
    print(f"unpacked: {len(text)} bytes, sha256 {hashlib.sha256(text).hexdigest()}")
