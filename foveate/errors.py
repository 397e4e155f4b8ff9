"""The errors a user can cause.

Every one is also the built-in error a Python caller expects (``ValueError``, ``TypeError``, ``LookupError``,
``ImportError``), and all share :class:`FoveateError`, so that the command line can tell "you asked for something
impossible" (one sentence, exit status 2) from a defect of ours (a traceback) without catching everything.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FoveateError(Exception):
    """Base of every error caused by what the caller gave, never raised itself."""


class InvalidValue(FoveateError, ValueError):
    """A value is illegal: the message names it, what came and what is legal."""


class InvalidType(FoveateError, TypeError):
    """A value is of the wrong type, or an option does not exist."""


class UnknownName(FoveateError, LookupError):
    """A name is not registered: the message gives the nearest ones."""


class MissingExtra(FoveateError, ImportError):
    """An optional dependency is absent: the message gives the install command."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The registered names most like ``name``, best first."""
    known = list(known)
    lowered = {k.lower(): k for k in known}
    hits = difflib.get_close_matches(name.lower(), lowered, n=count, cutoff=0.5)
    contained = [k for k in known if name.lower() in k.lower() and k.lower() not in hits]
    return ([lowered[h] for h in hits] + contained)[:count]


def unknown_name(what: str, name: str, known: Iterable[str], hint: str = "") -> UnknownName:
    """Build the error for an unknown ``name``; ``what`` is its kind in words ("mixer", "task", "column")."""
    known = sorted(known)
    close = nearest(name, known)
    if close:
        tail = f"did you mean {' or '.join(repr(c) for c in close)}?"
    elif known:
        shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
        tail = f"known: {shown}."
    else:
        tail = "none is known."
    return UnknownName(f"unknown {what} {name!r}: {tail}{' ' + hint if hint else ''}")


def invalid(option: str, value: object, legal: str) -> InvalidValue:
    """Build the error for an illegal value: option, value and what is legal, in that order."""
    return InvalidValue(f"{option}={value!r} is not possible: {legal}.")


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtra:
    """Build the error for an absent optional dependency."""
    return MissingExtra(f"{purpose} needs {package}: install it with pip install 'foveate[{extra}]'.")
