"""Rebuild ``alice.txt.gz`` from ``alice29.txt`` of the Canterbury corpus, as compression libraries ship it for tests.

    python -m foveate.tasks.language.embedded.make path/to/alice29.txt

Line ends become line feeds, the blank lines before the title and the control character at the end go; every other
character is copied. The file carries no name and no date, so that the same zlib writes the same bytes every time.
"""

from __future__ import annotations

import gzip
import hashlib
import sys
from pathlib import Path


def make(source: Path) -> bytes:
    """The embedded file's bytes."""
    text = source.read_bytes().decode("ascii").replace("\r\n", "\n").removesuffix("\x1a").strip("\n") + "\n"
    return gzip.compress(text.encode(), compresslevel=9, mtime=0)


if __name__ == "__main__":
    made = make(Path(sys.argv[1]))
    target = Path(__file__).with_name("alice.txt.gz")
    target.write_bytes(made)
    text = gzip.decompress(made)
    lines = text.count(b"\n")
    print(f"{target.name}: {len(made)} bytes, sha256 {hashlib.sha256(made).hexdigest()}")
    print(f"unpacked: {len(text)} bytes, {lines} lines, sha256 {hashlib.sha256(text).hexdigest()}")
