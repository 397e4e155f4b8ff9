"""What measuring the claims of the catalogue's systems gave: ``claims.json``, written by ``foveate verify``.

The file holds, for each system, what every check found and a digest of the source files it was found on, and beside
them the runs (date, machine, versions) that did the measuring.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class _HasFiles(Protocol):
    @property
    def files(self) -> Sequence[Path]: ...


def sources_digest(system: _HasFiles) -> str:
    """SHA-256 of a system's own source files (:attr:`foveate.registry.System.files` without its record).

    Line endings and the place of the installation do not count; names, order and contents of the files do.
    """
    digest = hashlib.sha256()
    for file in sorted((f for f in system.files if f.suffix != ".toml"), key=lambda f: (f.parent.name, f.name)):
        text = file.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{file.parent.name}/{file.name} {len(text)}\n".encode() + text)
    return digest.hexdigest()
