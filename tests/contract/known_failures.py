"""Promises that are known not to hold, each with the reason and what would end it.

A declared failure that passes fails the suite, and so does one that names nothing that exists: this list only shrinks.
"""

from __future__ import annotations

#: (kind, registered name, check): reason.
KNOWN_FAILURES: dict[tuple[str, str, str], str] = {}
