"""Which videos probes are made of, and what each is called in the suites' files.

An id has letters, digits and ``-`` alone: underscores join ids and say what was done (``kitchen_reverse``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidValue
from .video import ENDINGS
from .words import Caption, caption_of


@dataclass(frozen=True, slots=True)
class Source:
    """A video of the user's.

    Attributes:
        id: unique among them.
        path: of its file.
        caption: what happens in it, if the user says so.
    """

    id: str
    path: Path
    caption: Caption | None = None


def find_sources(
    paths: Sequence[Path], captions: Mapping[str, Mapping[str, str]], out: Path, notes: list[str]
) -> list[Source]:
    """Videos of files and folders, each once, in the order given; what a folder holds, by name.

    Args:
        paths: files, and folders that are searched to their depths.
        captions: by file name, id or path; see :func:`~.words.read_captions`.
        out: where probes go: not searched.
        notes: is told of what is absent, of folders without videos, of equal names, of captions without a video.

    Raises:
        InvalidValue: there is no video at all.
    """
    files: dict[Path, Path] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
            inside = [p for p in inside if out.resolve() not in p.resolve().parents]
            if not inside:
                notes.append(f"{path}: has no video in it.")
            for file in inside:
                files.setdefault(file.resolve(), file)
        elif path.exists():
            files.setdefault(path.resolve(), path)
        else:
            notes.append(f"{path}: does not exist.")
    if not files:
        raise InvalidValue(f"no video to make probes of: {' '.join(notes)}")
    found: list[Source] = []
    taken: dict[str, Path] = {}
    used: set[str] = set()
    for file in files.values():
        id = base = re.sub(r"[^A-Za-z0-9-]+", "-", file.stem).strip("-") or "video"
        number = 1
        while id.lower() in taken:  # there are file systems to which A.mp4 and a.mp4 are the same
            number += 1
            id = f"{base}-{number}"
        if number > 1:
            notes.append(f"{file}: {taken[base.lower()]} has the same name, so this one is called {id}.")
        taken[id.lower()] = file
        names = [name for name in (str(file), file.name, file.stem, id) if name in captions]
        used.update(names)
        found.append(Source(id, file, caption_of(captions[names[0]]) if names else None))
    notes.extend(f"the caption of {name} has no video that it belongs to." for name in captions if name not in used)
    return found
