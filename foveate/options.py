"""Options of registered classes: which there are, of what type, and what is refused before a class is called."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any

from .errors import InvalidType


def _signature_options(cls: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(cls).parameters
    return {n: p for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def check_options(name: str, target: Callable[..., Any], options: dict[str, Any], *, partial: bool = False) -> None:
    """Refuse options that ``target`` does not have, or lacks (unless ``partial``), before it is called.

    Raises:
        InvalidType: an unknown option (legal ones are listed), a required one missing.
    """
    legal = _signature_options(target)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(target).parameters.values())
    for option in options:
        if option not in legal and not takes_any:
            raise InvalidType(f"{name!r} has no option {option!r}: its options are {', '.join(legal)}.")
    required = [n for n, p in legal.items() if p.default is p.empty and n not in options]
    if required and not partial:
        raise InvalidType(f"{name!r} needs {', '.join(required)}: give {'it' if len(required) == 1 else 'them'}.")


def option_types(cls: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Option name to (annotation, default) of a registered class, for documentation and configuration files."""
    hints = typing.get_type_hints(getattr(cls, "__init__", cls))
    return {n: (hints.get(n, p.annotation), p.default) for n, p in _signature_options(cls).items()}
