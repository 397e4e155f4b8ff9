"""Cases: what is timed, at which sizes. A case is one decorated function of a size."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from ..errors import unknown_name
from ..measure.cost import Cost

Kind = Literal["op", "mixer", "model"]
KINDS: tuple[Kind, ...] = ("op", "mixer", "model")
PASSES = ("forward", "forward+backward")
#: The name of our own form, as "auto" chooses it.
OURS = "foveate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One size of a case.

    Attributes:
        inputs: tensors by name; with gradients, those that are floating are differentiated.
        ours: called as ``ours(**inputs)``; one tensor.
        reference: the definition, called alike; None: ``ours`` under ``backend("reference")``.
        module: whose parameters are differentiated too, and whose weights peers may copy.
        sizes: what peers need to know besides the inputs.
        cost: of one forward call.
    """

    inputs: Mapping[str, Tensor]
    ours: Callable[..., Tensor]
    reference: Callable[..., Tensor] | None = None
    module: nn.Module | None = None
    sizes: Mapping[str, Any] = field(default_factory=dict)
    cost: Cost | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Something that is timed over sizes.

    Attributes:
        name: how users ask for it.
        kind: "op", "mixer" or "model".
        make: from a size to the problem; seeds are set before it is called.
        about: what it is, with its fixed sizes.
        sizes: of growing problems.
        unit: what a size counts.
        order: the power of a size that a problem's tokens grow with (2 for the edge of an image).
        passes: those of :data:`PASSES` that make sense.
        forms: further forms of ours that are timed: "reference", "torch".
        reference_up_to: largest size at which the definition is run.
    """

    name: str
    kind: Kind
    make: Callable[[int], Problem]
    about: str
    sizes: tuple[int, ...]
    unit: str = "tokens"
    order: int = 1
    passes: tuple[str, ...] = PASSES
    forms: tuple[str, ...] = ()
    reference_up_to: float = math.inf

    def check_size(self, sizes: Sequence[int]) -> int:
        """The size at which agreement is tested: the largest timed one that the definition can do."""
        within = [s for s in sizes if s <= self.reference_up_to]
        return max(within) if within else int(min(self.reference_up_to, min(sizes)))


_cases: dict[str, Case] = {}


def case(
    name: str, *, kind: Kind, about: str, sizes: Sequence[int], **more: Any
) -> Callable[[Callable[[int], Problem]], Callable[[int], Problem]]:
    """Register the decorated function as a case; the arguments are those of :class:`Case`."""

    def mark(make: Callable[[int], Problem]) -> Callable[[int], Problem]:
        if name in _cases:
            raise ValueError(f"the benchmark {name!r} is registered twice: give one of them another name")
        _cases[name] = Case(name=name, kind=kind, make=make, about=about, sizes=tuple(sizes), **more)
        return make

    return mark


def all_cases() -> list[Case]:
    """Every case: those of :mod:`foveate.bench.library`, by kind and name."""
    from . import library

    for module in pkgutil.iter_modules(library.__path__):
        importlib.import_module(f"{library.__name__}.{module.name}")
    return sorted(_cases.values(), key=lambda c: (KINDS.index(c.kind), c.name))


def choose_cases(names: Iterable[str] = (), kind: str | None = None, known: Sequence[Case] | None = None) -> list[Case]:
    """The cases of these names, or all of them.

    Args:
        names: as registered; empty: all.
        kind: only these; one of :data:`KINDS`.
        known: None: :func:`all_cases`.

    Raises:
        UnknownName: no case has a name, or there is no such kind.
    """
    known = all_cases() if known is None else known
    if kind is not None and kind not in KINDS:
        raise unknown_name("kind", kind, KINDS)
    by_name = {c.name: c for c in known}
    for name in names:
        if name not in by_name:
            raise unknown_name("benchmark", name, by_name)
    wanted = set(names)
    return [c for c in known if (not wanted or c.name in wanted) and kind in (None, c.kind)]
