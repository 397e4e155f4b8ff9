"""What a check is: a plain function with a name, the specs it applies to, and a result that is data.

A check takes a case (:mod:`contract.cases`) and returns nothing, or raises :class:`Broken` with one sentence that
says which promise does not hold. Checks are collected by :func:`check`, so that the tests, and the tests of the suite
itself, run the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from foveate.errors import FoveateError

#: Largest deviation, relative to the largest expected value, of a computation in this dtype from a better one, or of
#: two orders of the same computation from each other.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class Broken(AssertionError):
    """A promise does not hold."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Attributes:
        kind: "mixer" or "model".
        name: its function's name.
        applies: whether a spec asks for it.
        run: the function.
        slow_start: it needs the compiler or the exporter: seconds, where others need milliseconds.
        once: it does not depend on the options of the instance.
        nightly: it takes seconds and finds what a faster check nearly always finds too: it runs with ``-m slow``.
        variants_nightly: so it does for all instances but the one with every option as it is.
    """

    kind: str
    name: str
    applies: Callable[[Any], bool]
    run: Callable[[Any], None]
    slow_start: bool = False
    once: bool = False
    nightly: bool = False
    variants_nightly: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one check: "passed", "failed" (a promise is broken) or "crashed" (it raised something else)."""

    check: str
    status: Literal["passed", "failed", "crashed"]
    message: str = ""


CHECKS: dict[tuple[str, str], Check] = {}


def check(
    kind: str,
    when: Callable[[Any], bool] = lambda spec: True,
    *,
    slow_start: bool = False,
    once: bool = False,
    nightly: bool = False,
    variants_nightly: bool = False,
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register the decorated function as a check of this kind, for specs that satisfy ``when``."""

    def mark(function: Callable[[Any], None]) -> Callable[[Any], None]:
        name = function.__name__
        if (kind, name) in CHECKS:
            raise ValueError(f"two checks of kind {kind} are called {name}")
        CHECKS[kind, name] = Check(kind, name, when, function, slow_start, once, nightly, variants_nightly)
        return function

    return mark


def checks_for(kind: str, spec: Any) -> list[Check]:
    """The checks that this spec asks for, in the order of their files."""
    return [c for c in CHECKS.values() if c.kind == kind and c.applies(spec)]


def run_check(one: Check, case: Any) -> Result:
    """Run a check and say what came of it."""
    try:
        one.run(case)
    except Broken as broken:
        return Result(one.name, "failed", str(broken))
    except Exception as error:
        return Result(one.name, "crashed", f"{type(error).__name__}: {_short(str(error))}")
    return Result(one.name, "passed")


def _short(message: str, longest: int = 600) -> str:
    """The beginning of a message: the compiler's run to pages."""
    return message if len(message) <= longest else message[:longest] + " ..."


def expect(condition: object, otherwise: str) -> None:
    """Raise :class:`Broken` with this sentence unless ``condition`` holds."""
    if not condition:
        raise Broken(otherwise)


@contextmanager
def refused(
    error: type[FoveateError] | tuple[type[FoveateError], ...], names: str | tuple[str, ...], what: str
) -> Iterator[None]:
    """The block must raise this kind of error (or one of these), with a message that contains all of ``names``."""
    names = (names,) if isinstance(names, str) else names
    wanted = " or ".join(e.__name__ for e in (error if isinstance(error, tuple) else (error,)))
    try:
        yield
    except error as raised:
        message = str(raised)
        missing = [n for n in names if not re.search(rf"(?<!\w){re.escape(n)}(?!\w)", message)]
        expect(not missing, f"{what} is refused, but the message does not name {' and '.join(missing)}: {message}")
    except Exception as other:
        raise Broken(f"{what} must raise {wanted}; it raised {type(other).__name__}: {_short(str(other))}") from other
    else:
        raise Broken(f"{what} must raise {wanted}; nothing was raised")


def deviation(actual: Tensor, expected: Tensor) -> float:
    """Largest deviation relative to the largest expected value; inf where only one of them is finite."""
    if actual.numel() == 0:
        return 0.0
    actual, expected = actual.detach().double(), expected.detach().double()
    if not (actual.isfinite().all() and expected.isfinite().all()):
        return float("inf")
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-3))


def close(actual: Tensor, expected: Tensor, what: str, dtype: torch.dtype | None = None, times: float = 1.0) -> None:
    """Require equality to the tolerance of ``dtype`` (default: of ``actual``).

    Args:
        times: how many computations of that accuracy lie between the two; say why where it is not 1.
    """
    expect(actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    limit = TOLERANCE[dtype or actual.dtype] * times
    found = deviation(actual, expected)
    expect(found <= limit, f"{what}: deviates by {found:.3g} of the largest value; at most {limit:.3g} is allowed")


def same_bits(actual: Tensor, expected: Tensor, what: str) -> None:
    """Require every bit to be equal."""
    expect(actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    if not torch.equal(actual, expected):
        different = int((actual != expected).sum())
        raise Broken(
            f"{what}: {different} of {actual.numel()} values differ, the largest relative deviation is "
            f"{deviation(actual, expected):.3g}"
        )
