"""Which form of an op runs.

An op has a ``reference`` form (the readable definition) and one or more fast forms: ``torch`` (aten operations only),
``native`` (our CPU kernels), ``triton``. A form states what it can take; asking and running are separate.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import InvalidValue
from . import native
from . import triton as gpu

BACKENDS = ("auto", "reference", "torch", "native", "triton")
ENVIRONMENT_VARIABLE = "FOVEATE_BACKEND"


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise InvalidValue(f"{source}={name!r} is not a backend: legal are {', '.join(BACKENDS)}.")
    return name


# A plain module global, not a context variable: torch.compile guards on it and recompiles when it changes.
_active = _checked(os.environ.get(ENVIRONMENT_VARIABLE, "auto"), ENVIRONMENT_VARIABLE)


def current_backend() -> str:
    """The backend in force: "auto", "reference", "torch", "native" or "triton"."""
    return _active


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Choose the form of every op inside the block, in the whole process.

    Args:
        name: "auto" (default; the fastest form that fits the tensors and answers as the reference does to float
            tolerance), "reference", "torch" (aten operations only: what export needs), or "native" or "triton"
            (these kernels where an op has them, "torch" elsewhere).

    Raises:
        InvalidValue: no such backend, or its kernels are not built here.
    """
    global _active
    _checked(name, "backend")
    if name == "triton" and not gpu.available():
        missing = "there is no GPU" if gpu.INSTALLED else "triton is not installed"
        raise InvalidValue(f"backend='triton' is not available: {missing}; use 'auto' or 'torch'.")
    if name == "native" and not native.AVAILABLE:
        raise InvalidValue(
            "backend='native' is not available: no kernels are built here ('foveate doctor' says why); use 'auto'."
        )
    previous, _active = _active, name
    try:
        yield
    finally:
        _active = previous


def choose(
    reference: Callable[..., Any],
    torch: Callable[..., Any],
    native: Callable[..., Any] | None = None,
    triton: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """The form of an op that the current backend asks for.

    Args:
        native, triton: these forms if they take this call's tensors, else None. "auto" takes the native one, but not
            Triton's, which nobody has timed.
    """
    if _active == "reference":
        return reference
    if _active == "triton":
        return triton or torch
    return torch if native is None or _active == "torch" else native
