"""What a module promises about export, and the sentences that refuse what it does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import InvalidType
from ..models.base import Model
from ..registry import entries, find
from ..spec import MixerSpec, ModelSpec

#: Where a spec gives no reason.
UNTRIED = "its spec does not promise it"


@dataclass(frozen=True, slots=True)
class Promises:
    """What a module and everything in it promise.

    Attributes:
        known: whether there is any spec; a module of the user's own without one is tried.
        missing: promise to (name of the part that does not make it, its reason).
    """

    known: bool
    missing: dict[str, tuple[str, str]]

    def refuse(self, name: str, promise: str, instead: str) -> None:
        """Raise if a promise is not made.

        Raises:
            InvalidType: what cannot be done, why, and what can be done instead.
        """
        if promise not in self.missing:
            return
        part, reason = self.missing[promise]
        inside = "" if part == name else f"{part} inside it: "
        what = {
            "export": "cannot be exported",
            "onnx": "has no ONNX form",
            "dynamic_length": "cannot be exported for any length",
        }[promise]
        raise InvalidType(f"{name} {what} ({inside}{reason}): {instead}.")


def promises_of(model: nn.Module) -> Promises:
    """The promises that a module and all its parts make together."""
    missing: dict[str, tuple[str, str]] = {}
    known = False
    for module, spec in specs_in(model):
        known = True
        for promise in ("export", "onnx", "dynamic_length"):
            if not getattr(spec, promise):
                missing.setdefault(promise, (name_of(module), spec.export_note or UNTRIED))
    return Promises(known, missing)


def specs_in(model: nn.Module) -> Iterator[tuple[nn.Module, MixerSpec | ModelSpec]]:
    """Every part with a spec of its own, the outermost first."""
    for module in model.modules():
        spec = getattr(module, "spec", None)
        if isinstance(spec, MixerSpec | ModelSpec) and not _borrows(module, spec):
            yield module, spec


def _borrows(module: nn.Module, spec: Any) -> bool:
    """Whether a module hands on the spec of what it holds."""
    inner = getattr(module, "model", None)
    return isinstance(inner, nn.Module) and getattr(inner, "spec", None) is spec


def name_of(module: nn.Module) -> str:
    """The registered name, or that of the class."""
    registered = vars(type(module)).get("registered_as")
    return type(module).__name__ if registered is None else registered[1]


def alternatives(task: str | None) -> str:
    """What can be exported instead, in words."""
    if task is None:
        return "`foveate list` names others"
    spec = find(task, "task").spec
    known = {e.name: e.spec for e in (*entries("mixer"), *entries("model"))}
    names = [n for n in spec.shortlist if n in known and known[n].export and getattr(known[n], "trains", True)]
    return f"of the systems for {task}, {', '.join(names[:4])} and others can"


def calibrated(model: nn.Module) -> nn.Module | None:
    """The part whose data-dependent form can be frozen by data (it has ``freeze_periods``), if there is one."""
    return next((m for m in model.modules() if hasattr(m, "freeze_periods")), None)


def is_model(module: nn.Module) -> bool:
    """Whether it is one of foveate's models, which serve windows of a fixed length unless they read tokens."""
    return isinstance(module, Model)
