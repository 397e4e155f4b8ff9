"""Streaming: carrying a mechanism's memory from one call to the next.

A state is a small dataclass of tensors, a pytree, without behaviour of its own. The same protocol serves mixers and
complete models::

    state = mixer.init_state(batch_size)
    y, state = mixer.prefill(x, state)       # a stretch of tokens at once
    y_t, state = mixer.step(x_t, state)      # one token (batch, dim), or one frame, with named extras if it takes any
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Protocol, TypeVar, dataclass_transform, runtime_checkable

import torch
from torch import Tensor
from torch.utils import _pytree

S = TypeVar("S", bound="State")
C = TypeVar("C")


def shared(**arguments: Any) -> Any:
    """A state field without a batch axis (a node memory, a global counter): ``reorder`` leaves it alone."""
    return dataclasses.field(metadata={"batch": False}, **arguments)


class State:
    """Base of streaming states.

    Fields are tensors (batch first), nested states, tuples of them, numbers (a position), or None (what exists only
    after the first token). What has no batch axis is declared with :func:`shared`.
    """

    @property
    def nbytes(self) -> int:
        """Bytes held by all tensors of the state."""
        return sum(t.nbytes for t in _pytree.tree_leaves(self) if isinstance(t, Tensor))

    def detach(self: S) -> S:
        """The same state cut from the graph that made it: where back-propagation through a stream stops."""
        return _pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, self)

    def reorder(self: S, batch_index: Tensor) -> S:
        """The state whose sample i is this state's sample ``batch_index[i]`` (beam search, dropping finished ones).

        Args:
            batch_index: int64 ``(new_batch,)``.
        """

        def pick(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.index_select(0, batch_index)
            if isinstance(value, State):
                return value.reorder(batch_index)
            if isinstance(value, tuple):
                return tuple(pick(v) for v in value)
            return value

        chosen = {
            f.name: pick(getattr(self, f.name))
            for f in dataclasses.fields(self)  # type: ignore[arg-type]
            if f.metadata.get("batch", True)
        }
        return dataclasses.replace(self, **chosen)  # type: ignore[type-var]


@dataclass_transform(field_specifiers=(dataclasses.field, shared))
def state(cls: type[C]) -> type[C]:
    """Class decorator: make a :class:`State` subclass a dataclass and a pytree (compile, export and vmap see it)."""
    made = dataclasses.dataclass(cls)
    torch.export.register_dataclass(made)
    return made


def misfit(given: State, fresh: State, batch: int) -> str:
    """What keeps a state from having begun as ``fresh``, for this batch, in half a sentence; "" if nothing does.

    Tensors must have the sizes of the fresh ones, except along axes that are empty there, which grow, and be numbers of
    the same kind; states inside likewise. What is None in one of them is not looked at.
    """
    for name, batched in _fields(type(fresh)):
        wrong = _misfit(name, getattr(given, name), getattr(fresh, name), batch, batched)
        if wrong:
            return wrong
    return ""


def _misfit(name: str, given: Any, fresh: Any, batch: int, batched: bool) -> str:
    if isinstance(fresh, State) and given is not None:
        if type(given) is not type(fresh):
            return f"{name} of the state is a {type(given).__name__}; it must be a {type(fresh).__name__}"
        return misfit(given, fresh, batch)
    if isinstance(fresh, tuple) and isinstance(given, tuple):
        if len(given) != len(fresh):
            return f"{name} of the state has {len(given)} parts; it must have {len(fresh)}"
        return next(filter(None, (_misfit(name, g, f, batch, batched) for g, f in zip(given, fresh, strict=True))), "")
    if not (isinstance(fresh, Tensor) and isinstance(given, Tensor)):
        return ""
    if fresh.is_floating_point() != given.is_floating_point():
        return f"{name} of the state is {given.dtype}; it must be {fresh.dtype}"
    wanted = [batch if batched and not axis else size for axis, size in enumerate(fresh.shape)]
    if len(wanted) != given.ndim or any(n and n != m for n, m in zip(wanted, given.shape, strict=True)):
        legal = ", ".join(str(n) if n else "any" for n in wanted)
        return f"{name} of the state has shape {tuple(given.shape)}; it must be ({legal})"
    return ""


def is_another(given: Any, fresh: Any) -> bool:
    """Whether the states in it, and their number, are not those of a fresh one, whatever their sizes.

    For a model's state, which may have begun with tokens of its own: :func:`misfit` is for those of its layers.
    """
    if isinstance(fresh, State):
        if type(given) is not type(fresh):
            return True
        return any(is_another(getattr(given, name), getattr(fresh, name)) for name, _ in _fields(type(fresh)))
    if isinstance(fresh, tuple) and any(isinstance(part, State) for part in fresh):
        return len(given) != len(fresh) or any(is_another(g, f) for g, f in zip(given, fresh, strict=True))
    return False


def samples_of(state: Any) -> int:
    """Samples of a state: the first axis of its first tensor that has axes."""
    leaves = (leaf for leaf in _pytree.tree_leaves(state) if isinstance(leaf, Tensor))
    return next((len(leaf) for leaf in leaves if leaf.ndim), 1)


@functools.cache
def _fields(kind: type[State]) -> list[tuple[str, bool]]:
    """Names of a state's fields, and whether they have a batch axis."""
    return [(f.name, f.metadata.get("batch", True)) for f in dataclasses.fields(kind)]  # type: ignore[arg-type]


@runtime_checkable
class Streaming(Protocol):
    """What every mixer and model with ``spec.streaming != "no"`` offers."""

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Any:
        """A fresh state, before the first token."""
        ...

    def prefill(self, x: Tensor, state: Any, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        """Read a stretch of input at once; returns its outputs and the state after it."""
        ...

    def step(self, x_t: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Read one token or frame; returns its output and the state after it."""
        ...
