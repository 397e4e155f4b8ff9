"""Claims: what a paper says it does, as checks that can fail.

One file per system, named by its slug::

    @claim("timesnet", kind="exact", says="The periods are those of the spectrum's k largest peaks.")
    def periods_are_spectral_peaks() -> Measurement: ...
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import InvalidValue

Kind = Literal["exact", "scaling", "learned", "needs-pretrained"]
KINDS: tuple[Kind, ...] = ("exact", "scaling", "learned", "needs-pretrained")


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a claim's check found.

    Attributes:
        value: the measured number.
        threshold: what it is held against.
        passed: whether the claim holds here.
        detail: one sentence: what was measured, in which units, and the direction of the comparison.
    """

    value: float
    threshold: float
    passed: bool
    detail: str = ""

    @classmethod
    def at_most(cls, value: float, threshold: float, detail: str = "") -> Measurement:
        """Passes when ``value <= threshold`` (NaN fails)."""
        return cls(float(value), float(threshold), bool(value <= threshold), detail)

    @classmethod
    def at_least(cls, value: float, threshold: float, detail: str = "") -> Measurement:
        """Passes when ``value >= threshold`` (NaN fails)."""
        return cls(float(value), float(threshold), bool(value >= threshold), detail)


@dataclass(frozen=True, slots=True)
class Claim:
    """A registered claim: the system's slug, its kind, our words for it, and the function that checks it.

    ``timed`` says that the check compares times: on a busy machine it may fail by chance, so no ordinary test runs it.
    """

    slug: str
    kind: Kind
    says: str
    check: Callable[[], Measurement]
    timed: bool = False

    @property
    def name(self) -> str:
        """The check's function name."""
        return self.check.__name__


_claims: dict[tuple[str, str], Claim] = {}


def claim(
    slug: str, *, kind: Kind, says: str, timed: bool = False
) -> Callable[[Callable[[], Measurement]], Callable[[], Measurement]]:
    """Register the decorated function as the check of a claim of the system ``slug``.

    Args:
        kind: "exact" (holds to float tolerance), "scaling" (growth of time or memory), "learned" (a small training),
            "needs-pretrained" (cannot be checked here; the function says what would be needed).
        says: the claim in our words, with its number.
        timed: the check compares times.
    """
    if kind not in KINDS:
        raise InvalidValue(f"kind={kind!r} is not a kind of claim: legal are {', '.join(KINDS)}.")

    def mark(check: Callable[[], Measurement]) -> Callable[[], Measurement]:
        other = _claims.setdefault((slug, check.__name__), Claim(slug, kind, says, check, timed)).check
        if _place(other) != _place(check):  # the same place again is a module that is imported anew
            raise InvalidValue(
                f"the claim {check.__name__!r} of {slug!r} is registered twice: give one of the checks another name."
            )
        return check

    return mark


def _place(check: Callable[[], Measurement]) -> tuple[str, int]:
    code: Any = check.__code__  # type: ignore[attr-defined]
    return code.co_filename, code.co_firstlineno


def claims_of(slug: str | None = None, kind: str | None = None) -> list[Claim]:
    """All claims, or those of one system or kind, in the order of their files."""
    for module in pkgutil.iter_modules(__path__):
        if slug is None or module.name == slug:
            importlib.import_module(f"{__name__}.{module.name}")
    hits: list[Any] = [c for c in _claims.values() if slug in (None, c.slug) and kind in (None, c.kind)]
    return hits
