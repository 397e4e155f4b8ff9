"""The table of formulas: one for each op, by its registered name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...errors import InvalidType, unknown_name
from ..cost import Cost

Formula = Callable[..., Cost]
_FORMULAS: dict[str, Formula] = {}


def formula(name: str) -> Callable[[Formula], Formula]:
    """Register the decorated function as the cost of the op ``name``; its parameters are the op's sizes."""

    def mark(function: Formula) -> Formula:
        _FORMULAS[name] = function
        return function

    return mark


def known_ops() -> list[str]:
    """Names of the ops that have a formula, sorted."""
    return sorted(_FORMULAS)


def op_cost(name: str, **sizes: int | bool | Sequence[int] | Sequence[bool]) -> Cost:
    """The cost of one forward call of an op.

    Args:
        name: as registered.
        sizes: what the op's formula here asks for, by name.

    Raises:
        UnknownName: no formula has this name.
        InvalidType: a size is missing, or is not one of the formula's.
    """
    if name not in _FORMULAS:
        raise unknown_name("op", name, _FORMULAS)
    try:
        return _FORMULAS[name](**sizes)
    except TypeError as error:
        said = str(error).replace(f"{_FORMULAS[name].__name__}()", f"the cost of {name!r}")
        raise InvalidType(f"{said}.") from None
