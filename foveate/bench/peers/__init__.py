"""Peers: one small adapter for each other way of doing what a case does.

An adapter is a function from a problem to a contender, registered by :func:`peer`. It imports its library inside, by
:func:`library`: what is absent, or does not import, is told and left out.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from torch import Tensor

from ..cases import Case, Problem


class Unfit(Exception):
    """The peer cannot do this problem; the message says why and goes on record."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Something that is timed.

    Attributes:
        call: called as ``call(**inputs)``.
        parameters: differentiated besides the inputs.
        no_backward: why it is timed forward only; "": it is not.
    """

    call: Callable[..., Tensor]
    parameters: Sequence[Tensor] = ()
    no_backward: str = ""


@dataclass(frozen=True, slots=True)
class Peer:
    """An adapter.

    Attributes:
        name: shown beside ours.
        of: patterns of the cases' names that it serves.
        package: the module it imports; "": torch itself.
        same: it computes the same numbers, which is tested; False: another function for the same job.
        make: from a problem to a contender; raises :class:`Unfit`.
    """

    name: str
    of: tuple[str, ...]
    package: str
    same: bool
    make: Callable[[Problem], Contender]

    def serves(self, case: Case) -> bool:
        """Whether it has something for this case."""
        return any(fnmatch(case.name, pattern) for pattern in self.of)

    def absent(self) -> str:
        """Why its library cannot be used here; "" if it can."""
        if not self.package:
            return ""
        if importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        try:
            importlib.import_module(self.package)
        except Exception as error:  # whatever a foreign library does while it is imported, the others go on
            return f"{self.package} does not import here: {type(error).__name__}: {str(error).splitlines()[0]}"
        return ""


def library(module: str) -> Any:
    """A module of a peer's library: none of them is needed to install, check or test foveate."""
    return importlib.import_module(module)


_peers: list[Peer] = []


def peer(
    name: str, *, of: Sequence[str], package: str = "", same: bool = True
) -> Callable[[Callable[[Problem], Contender]], Callable[[Problem], Contender]]:
    """Register the decorated adapter; the arguments are those of :class:`Peer`."""

    def mark(make: Callable[[Problem], Contender]) -> Callable[[Problem], Contender]:
        _peers.append(Peer(name, tuple(of), package, same, make))
        return make

    return mark


def all_peers() -> list[Peer]:
    """Every adapter of this folder, by name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return sorted(_peers, key=lambda p: p.name)
