"""An attachment: one control in force on one model, and the way back.

Every change a control makes goes through its attachment, which remembers how to undo it and who touched what. Two
controls compose when they only listen, or when they change different parts; where one would change what another has
changed or listens inside of, it is refused, since removing one of them would then disturb the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..errors import InvalidType, InvalidValue, unknown_name

if TYPE_CHECKING:
    from .base import Control

# Who holds a module (put it there, or put it aside) and who touches it (hook, attribute, weight). By module, not by
# path: the same part has another path when a control is attached to a sub-network.
_held: WeakKeyDictionary[nn.Module, Attachment] = WeakKeyDictionary()
_touched: WeakKeyDictionary[nn.Module, list[tuple[Attachment, str]]] = WeakKeyDictionary()
_attached: WeakKeyDictionary[nn.Module, list[Attachment]] = WeakKeyDictionary()


def attachments(model: nn.Module) -> list[Attachment]:
    """What is attached to this network now, the oldest first."""
    return list(_attached.get(model, []))


class Attachment:
    """One control in force on one model; also a context manager that removes it at the end.

    Made by :meth:`Control.attach`, never by hand. While :meth:`Control.install` runs it is the tool for changing the
    model; afterwards it carries the counters that the changed parts read.

    Attributes:
        control: the control.
        model: the network it is attached to.
        changes: what was changed, one sentence each.
        calls: forward calls of the model since attaching.
        calls_per_step: how many of them make one step of the caller's loop (of a sampler, of a decoder).
        counters: counts within the current call, see :meth:`count`; emptied when a call begins.
        store: anything the parts hand to each other within the current call; emptied likewise.
        active: False once removed.
    """

    def __init__(self, control: Control, model: nn.Module) -> None:
        if any(other.control is control for other in attachments(model)):
            raise InvalidValue(f"this {type(control).__name__} is already attached to this {type(model).__name__}.")
        self.control = control
        self.model = model
        self.changes: list[str] = []
        self.calls = 0
        self.calls_per_step = 1
        self.counters: dict[str, int] = {}
        self.store: dict[str, Any] = {}
        self.active = True
        self._step: int | None = None
        self._undo: list[Callable[[], None]] = []
        self._undo.append(model.register_forward_pre_hook(self._begin_call).remove)
        _attached.setdefault(model, []).append(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        state = "; ".join(self.changes) if self.active else "removed"
        return f"<{type(self.control).__name__} on {type(self.model).__name__}: {state}>"

    # Counters -------------------------------------------------------------------------------------------------------

    def _begin_call(self, module: nn.Module, inputs: Any) -> None:
        self.calls += 1
        self.counters.clear()
        self.store.clear()

    @property
    def step(self) -> int:
        """Step of the caller's loop, from 0: counted from calls, unless an editor that owns the loop sets it."""
        return max(0, self.calls - 1) // self.calls_per_step if self._step is None else self._step

    @step.setter
    def step(self, value: int) -> None:
        self._step = value

    def count(self, what: str) -> int:
        """How often ``what`` was counted before in this call (0 the first time): which layer is running."""
        before = self.counters.get(what, 0)
        self.counters[what] = before + 1
        return before

    def reset(self) -> None:
        """Start over, as if just attached: counters at zero, nothing stored."""
        self.calls, self._step = 0, None
        self.counters.clear()
        self.store.clear()

    # Changes --------------------------------------------------------------------------------------------------------

    def part(self, path: str) -> nn.Module:
        """The module at a dotted path ("" is the model itself).

        Raises:
            UnknownName: there is none; the nearest paths are given.
        """
        try:
            return self.model.get_submodule(path)
        except AttributeError:
            known = [name for name, _ in self.model.named_modules()]
            raise unknown_name(f"part of {type(self.model).__name__}", path, known) from None

    def replace(self, path: str, new: nn.Module) -> nn.Module:
        """Put ``new`` where the module at ``path`` is (``new`` may contain it); returns the old one."""
        self._must_be_active()
        owner_path, _, name = path.rpartition(".")
        if not path:
            raise InvalidValue("path='' is not possible: the model itself cannot be replaced, only parts of it.")
        owner, old = self.part(owner_path), self.part(path)
        self._refuse_held(owner, path)
        for inner in old.modules():
            self._refuse_held(inner, path)
            self._refuse_touched(inner, path)
        setattr(owner, name, new)
        for inner in {*old.modules(), *new.modules()}:
            _held[inner] = self
        self._undo.append(lambda: setattr(owner, name, old))
        self.changes.append(f"{path}: {type(old).__name__} replaced by {type(new).__name__}")
        return old

    def set(self, path: str, attribute: str, value: Any) -> Any:
        """Set a plain attribute (an attention processor, a flag) of the module at ``path``; returns the old value."""
        self._must_be_active()
        owner = self.part(path)
        if attribute in owner._modules or attribute in owner._parameters or attribute in owner._buffers:
            raise InvalidType(f"{path}.{attribute} is a part or a weight: use replace or overwrite for it.")
        self._refuse_held(owner, path)
        self._refuse_touched(owner, path, attribute)
        own = attribute in owner.__dict__
        old = getattr(owner, attribute)
        setattr(owner, attribute, value)
        # An attribute that the class provides must not stay behind on the instance.
        self._undo.append(lambda: setattr(owner, attribute, old) if own else delattr(owner, attribute))
        self._touch(owner, attribute)
        self.changes.append(f"{path}.{attribute} set to {type(value).__name__}")
        return old

    def overwrite(self, path: str, value: Tensor) -> None:
        """Write ``value`` into the parameter or buffer at ``path``; the old bits are kept and come back."""
        self._must_be_active()
        owner_path, _, name = path.rpartition(".")
        owner = self.part(owner_path)
        tensor = {**owner._parameters, **owner._buffers}.get(name)
        if tensor is None:
            raise unknown_name(f"weight of {type(owner).__name__}", name, {**owner._parameters, **owner._buffers})
        if tensor.shape != value.shape:
            raise InvalidValue(f"{path} has shape {tuple(tensor.shape)}; it cannot hold {tuple(value.shape)}.")
        self._refuse_held(owner, path)
        self._refuse_touched(owner, path, name)
        kept = tensor.detach().clone()

        def write(source: Tensor) -> None:
            with torch.no_grad():
                tensor.copy_(source)

        write(value)
        self._undo.append(lambda: write(kept))
        self._touch(owner, name)
        self.changes.append(f"{path} overwritten")

    def hook(self, path: str, function: Callable[..., Any], *, before: bool = False) -> None:
        """Call ``function`` around the module at ``path``, as torch's forward hooks with keyword arguments do.

        Args:
            function: ``(module, args, kwargs, output) -> output or None``; with ``before``
                ``(module, args, kwargs) -> (args, kwargs) or None``.
            before: run ahead of the module instead of after it.
        """
        self._must_be_active()
        module = self.part(path)
        self._refuse_held(module, path)
        if before:
            handle = module.register_forward_pre_hook(function, with_kwargs=True)
        else:
            handle = module.register_forward_hook(function, with_kwargs=True)
        self._undo.append(handle.remove)
        self._touch(module, "")
        self.changes.append(f"{path or type(module).__name__}: {'input' if before else 'output'} passes through a hook")

    def claim(self, path: str, what: Iterable[str]) -> None:
        """Keep ``what`` of the module at ``path`` (some of its heads) for this attachment: whoever else claims it is
        refused. For changes that several controls make to one module, each to its own share.
        """
        self._must_be_active()
        owner = self.part(path)
        self._refuse_held(owner, path)
        for name in what:
            self._refuse_touched(owner, f"{name} of {path}", name)
            self._touch(owner, name)

    def freeze(self) -> None:
        """Stop gradients into the model's own parameters, as adapters want it while they train."""
        self._must_be_active()
        learning = [p for p in self.model.parameters() if p.requires_grad]

        def switch(on: bool) -> None:
            for parameter in learning:
                parameter.requires_grad_(on)

        switch(False)
        self._undo.append(lambda: switch(True))
        self.changes.append(f"{len(learning)} parameters frozen")

    def on_remove(self, undo: Callable[[], None]) -> None:
        """Call ``undo`` when the attachment is removed: for a change that none of the other methods can make."""
        self._must_be_active()
        self._undo.append(undo)

    def remove(self) -> None:
        """Undo every change, the last one first; the model is bit for bit what it was. A second call does nothing."""
        if not self.active:
            return
        self.active = False
        while self._undo:
            self._undo.pop()()
        for module in [m for m, holder in _held.items() if holder is self]:
            del _held[module]
        for module, claims in list(_touched.items()):
            claims[:] = [c for c in claims if c[0] is not self]
            if not claims:
                del _touched[module]
        _attached[self.model].remove(self)
        self.counters.clear()
        self.store.clear()

    # Who touches what -----------------------------------------------------------------------------------------------

    def _must_be_active(self) -> None:
        if not self.active:
            raise InvalidType(f"{type(self.control).__name__} was removed: attach it again to change the model.")

    def _touch(self, module: nn.Module, attribute: str) -> None:
        _touched.setdefault(module, []).append((self, attribute))

    def _refuse_held(self, module: nn.Module, path: str) -> None:
        other = _held.get(module)
        if other is not None and other is not self:
            raise self._conflict(other, path)

    def _refuse_touched(self, module: nn.Module, path: str, attribute: str | None = None) -> None:
        for other, touched in _touched.get(module, []):
            if other is not self and attribute in (None, touched):
                raise self._conflict(other, path)

    def _conflict(self, other: Attachment, path: str) -> InvalidValue:
        return InvalidValue(
            f"{type(self.control).__name__} cannot change {path}: {type(other.control).__name__} already does; "
            f"remove that first."
        )
