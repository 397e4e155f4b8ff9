"""Peak memory that a piece of work adds to a process."""

from __future__ import annotations

from pathlib import Path

from .memory import peak_resident_bytes, resident_bytes

_STATUS = Path("/proc/self/status")


class MemoryMeter:
    """Measures from its making on, by the system's own high-water mark: no sampling, nothing is missed.

    Resident memory also grows when code of a library is used for the first time, tens of megabytes with torch, and that
    is nobody's working memory. Linux tells such file-backed pages apart; since they only become more, the high-water
    mark less those of now is the peak of the rest, short by at most the pages touched after the peak. Elsewhere they
    are counted in.
    """

    def __init__(self) -> None:
        anonymous, _ = _kinds()
        self._idle = anonymous

    def peak_bytes(self) -> int:
        """Largest working memory since, above that at the making."""
        _, files = _kinds()
        return max(0, peak_resident_bytes() - files - self._idle)


def _kinds() -> tuple[int, int]:
    """Resident bytes now: working memory, and pages of files (0 where the system does not tell)."""
    found = {}
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name in ("RssAnon", "RssFile", "RssShmem"):
                found[name] = int(value.split()[0]) * 1024
    if "RssAnon" not in found:
        return resident_bytes(), 0
    return found["RssAnon"] + found["RssShmem"], found["RssFile"]
