"""The contract of token mixers and fusers."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from ..errors import InvalidType, InvalidValue, invalid
from ..measure.cost import Cost
from ..spec import MixerSpec
from .layout import TokenLayout
from .look import Look
from .state import State, misfit


class Mixer(nn.Module):
    """Mixes tokens and keeps the shape: ``(batch, *grid, dim)`` in and out, channels last.

    A subclass sets :attr:`spec` with literals (an option that changes a promise sets it again on the instance),
    takes ``(dim, *, num_heads=8, causal=..., ...)``, and implements
    :meth:`forward`, :meth:`cost` and, if ``spec.streaming`` is not "no", :meth:`init_state`, :meth:`prefill` and
    :meth:`step`. What it reports besides its output (a commitment or balance loss) goes to :attr:`aux_losses`.
    What must happen around an optimiser step (centroids that follow their tokens, masked gradients) it defines as
    ``before_step(progress)``, ``after_step(progress)`` or ``on_epoch(progress)``: the default
    :class:`~foveate.tasks.base.Recipe` calls these on every module that has them.

    Args:
        dim: channels of a token.
        causal: outputs at t may depend on tokens up to t only.
    """

    spec: MixerSpec
    #: Options that a language model gives it unless it is told otherwise: what the mechanism needs to know where in a
    #: text it is.
    for_language: ClassVar[dict[str, Any]] = {}

    def __init__(self, dim: int, *, causal: bool) -> None:
        super().__init__()
        if not isinstance(dim, int) or dim < 1:
            raise InvalidValue(f"dim={dim!r} is not possible: a positive whole number is needed.")
        if causal and self.spec.causal == "never":
            raise InvalidValue(f"causal=True is not possible: {type(self).__name__} has no causal form.")
        if not causal and not self.spec.bidirectional:
            raise InvalidValue(f"causal=False is not possible: {type(self).__name__} is causal by construction.")
        self.dim = dim
        self.causal = causal
        self.aux_losses: dict[str, Tensor] = {}
        self._fresh_state: Any = None

    def __getstate__(self) -> dict[str, Any]:
        # The last call's losses hang on its graph, which cannot be copied: a copy of the module starts without them.
        return {**self.__dict__, "aux_losses": {}, "_fresh_state": None}

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor:
        """Mix.

        Args:
            x: ``(batch, *grid, dim)``.
            mask: bool ``(batch, *grid)``, True = a real token; masked tokens influence nothing and come out as zeros.
            context: ``(batch, length, dim)``, a second sequence to read from instead of ``x`` (cross attention).
            layout: positions, segments and special tokens, from :meth:`plan_tokens`.

        Returns:
            ``(batch, *grid, dim)``, same dtype.
        """
        raise NotImplementedError

    def plan_tokens(self, grid: tuple[int, ...]) -> TokenLayout:
        """The layout that this mixer wants for a network with this token grid.

        A streaming mixer's plan for n tokens is the beginning of its plan for n + 1: the network feeds the slots that
        each new token adds, special tokens included, and the mixer counts slots in its state.
        """
        return TokenLayout(tuple(grid))

    def plan_next(self, read: int, count: int) -> TokenLayout:
        """The slots that ``count`` further tokens add to a stream of ``read`` tokens.

        The default takes the difference of two plans, which costs as much as they are long.
        """
        plan = self.plan_tokens((read + count,))
        return plan.beyond(self.plan_tokens((read,))) if read else plan

    @classmethod
    def options_for(cls, grid: tuple[int, ...]) -> dict[str, Any]:
        """Options that the paper ties to the size of the grid (sqrt(n) clusters, a position table); default: none.

        A network asks before it builds its layers; options that the caller gives win.
        """
        return {}

    @classmethod
    def for_layer(cls, index: int, depth: int, dim: int, **options: Any) -> Self:
        """The variant for layer ``index`` of ``depth`` (shifts, dilations, per-layer decays); default: all alike."""
        return cls(dim, **options)

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Analytic cost of one forward pass over this grid, with the special tokens of :meth:`plan_tokens`."""
        raise NotImplementedError

    def look(self, x: Tensor, query: tuple[int, ...] | None = None) -> list[Look]:
        """What this mixer attends to in ``x``, as :class:`~foveate.mixers.look.Look` s; default: it cannot tell.

        Args:
            x: what :meth:`forward` is given, ``(batch, *grid, dim)``.
            query: a place of the grid whose token is asked; None: the middle, or all of them.

        Raises:
            InvalidType: this mixer shows nothing.
            InvalidValue: as :meth:`check_input`, or a query outside of the grid.
        """
        raise InvalidType(f"{type(self).__name__} shows nothing of what it attends to: it defines no look().")

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Any:
        """A fresh streaming state; see :mod:`foveate.mixers.state`."""
        raise self._no_streaming()

    def prefill(self, x: Tensor, state: Any, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        """Read ``(batch, length, dim)`` after ``state``; returns outputs and the new state."""
        raise self._no_streaming()

    def step(self, x_t: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Read one token ``(batch, dim)``; returns its output and the new state."""
        raise self._no_streaming()

    def _no_streaming(self) -> InvalidType:
        why = "" if self.spec.streaming == "no" else " with causal=False"
        return InvalidType(f"{type(self).__name__} has no streaming form{why}.")

    def check_input(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> None:
        """Refuse what the spec does not promise; call it first in :meth:`forward`.

        Raises:
            InvalidValue: wrong rank, channels, grid or mask shape, or an argument that the mixer does not take.
            InvalidType: a mask that is not bool.
        """
        name, spec = type(self).__name__, self.spec
        grid = tuple(x.shape[1:-1])
        if layout is not None and layout.source is not None:
            if x.ndim != 3 or x.shape[1] != layout.length:
                raise InvalidValue(
                    f"{name}: x has shape {tuple(x.shape)}; its layout needs (batch, {layout.length}, {self.dim})."
                )
            grid = tuple(layout.grid)
            if len(grid) not in spec.ranks:
                raise InvalidValue(f"{name}: the layout's grid {grid} has rank {len(grid)}; legal are {spec.ranks}.")
        elif len(grid) not in spec.ranks:
            legal = " or ".join(str(r + 2) for r in spec.ranks)
            raise InvalidValue(f"{name}: x has {x.ndim} axes, shape {tuple(x.shape)}; (batch, *grid, dim) has {legal}.")
        if x.shape[-1] != self.dim:
            raise InvalidValue(f"{name}: x has {x.shape[-1]} channels, shape {tuple(x.shape)}; dim is {self.dim}.")
        rule = spec.grid
        if any(g < rule.minimum or g % rule.multiple_of for g in grid):
            raise InvalidValue(
                f"{name}: grid {grid} is not possible: every axis must be at least {rule.minimum} "
                f"and a multiple of {rule.multiple_of}."
            )
        if rule.fixed is not None and grid != rule.fixed:
            raise InvalidValue(f"{name}: grid {grid} is not possible: it must be {rule.fixed}.")
        if mask is not None:
            if not spec.masks:
                raise InvalidValue(f"{name} takes no mask.")
            if mask.dtype != torch.bool:
                raise InvalidType(f"{name}: mask must be bool (True = a real token), not {mask.dtype}.")
            if mask.shape != x.shape[:-1]:
                raise InvalidValue(f"{name}: mask has shape {tuple(mask.shape)}; x needs {tuple(x.shape[:-1])}.")
        if context is not None and not spec.cross:
            raise InvalidValue(f"{name} takes no context: it mixes one sequence.")
        if context is not None and (context.ndim != 3 or (context.shape[0], context.shape[2]) != (len(x), self.dim)):
            raise InvalidValue(
                f"{name}: context has shape {tuple(context.shape)}; it must be ({len(x)}, length, {self.dim})."
            )
        if layout is not None and not layout.is_plain and not spec.layout:
            raise InvalidValue(f"{name} reads no token layout: positions, segments and special tokens are not for it.")
        if layout is not None and layout.segments is not None and not spec.segments:
            raise InvalidValue(f"{name} cannot keep segments apart: use one document per sample.")

    def check_stream(self, x: Tensor, state: Any, mask: Tensor | None = None) -> None:
        """Refuse what :meth:`prefill` cannot read; call it first there.

        Raises:
            InvalidValue: as :meth:`check_input`; anything but ``(batch, length, dim)``; a state that does not fit.
            InvalidType: a mask that is not bool, or a state of another mechanism.
        """
        self.check_input(x, mask)
        if x.ndim != 3:
            raise InvalidValue(f"{type(self).__name__}: a stream is (batch, length, dim), not {tuple(x.shape)}.")
        self._check_state(state, x.shape[0])

    def check_step(self, x_t: Tensor, state: Any) -> None:
        """Refuse what :meth:`step` cannot read; call it first there.

        Raises:
            InvalidValue: anything but one token per sample, or a state that does not fit.
            InvalidType: a state of another mechanism.
        """
        check_token(type(self).__name__, x_t, self.dim)
        self._check_state(state, x_t.shape[0])

    def _check_state(self, given: Any, batch: int) -> None:
        """Hold a state against a fresh one of this mixer: its type, and sizes of tensors but for axes that grow."""
        if torch.compiler.is_compiling():
            return
        if self._fresh_state is None:
            self._fresh_state = self._sizes_of_a_state()
        if self._fresh_state == ():
            return
        if type(given) is not type(self._fresh_state):
            made = type(self._fresh_state).__name__
            raise InvalidType(f"{type(self).__name__}: its state is a {made}, not a {type(given).__name__}.")
        wrong = misfit(given, self._fresh_state, batch) if isinstance(given, State) else ""
        if wrong:
            raise InvalidValue(f"{type(self).__name__}: {wrong}.")

    def _sizes_of_a_state(self) -> Any:
        """A fresh state of one sample, without memory."""
        self._fresh_state = ()  # nothing is looked at meanwhile: a mixer may read tokens of its own to begin with
        try:
            with torch.no_grad():
                fresh = self.init_state(1)
        except BaseException:
            self._fresh_state = None
            raise
        return _pytree.tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, fresh)


class Fuser(nn.Module):
    """Lets one stream read another: guided, cross-modal and matching attention.

    Streams are channels-last like a mixer's; ``other`` may have another grid, another width or no grid at all (one
    vector per sample, ``(batch, other_dim)``). Returns the fused first stream, or both if ``returns_both``.
    Of the spec, ``ranks``, ``grid`` and ``masks`` speak of the first stream. Further inputs are keyword arguments with
    defaults.

    Args:
        dim: channels of the first stream.
        other_dim: channels of the other.
    """

    spec: ClassVar[MixerSpec]
    returns_both: ClassVar[bool] = False

    def __init__(self, dim: int, other_dim: int) -> None:
        super().__init__()
        for option, value in (("dim", dim), ("other_dim", other_dim)):
            if not isinstance(value, int) or value < 1:
                raise InvalidValue(f"{option}={value!r} is not possible: a positive whole number is needed.")
        self.dim, self.other_dim = dim, other_dim
        self.aux_losses: dict[str, Tensor] = {}

    def forward(
        self, x: Tensor, other: Tensor, *, mask: Tensor | None = None, other_mask: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Fuse ``x`` ``(batch, *grid, dim)`` with ``other`` ``(batch, *other_grid, other_dim)``."""
        raise NotImplementedError

    def cost(self, grid: tuple[int, ...], other_grid: tuple[int, ...] = (), batch: int = 1) -> Cost:
        """Analytic cost of one forward pass."""
        raise NotImplementedError

    def check_input(
        self, x: Tensor, other: Tensor, mask: Tensor | None = None, other_mask: Tensor | None = None
    ) -> None:
        """Refuse streams that do not fit; call it first in :meth:`forward`.

        Raises:
            InvalidValue: wrong rank or channels, batches that differ, a mask of the wrong shape or where none is taken.
            InvalidType: a mask that is not bool.
        """
        name = type(self).__name__
        if x.ndim - 2 not in self.spec.ranks or x.shape[-1] != self.dim:
            raise InvalidValue(
                f"{name}: x has shape {tuple(x.shape)}; it must be (batch, *grid, {self.dim}), "
                f"the grid of rank {' or '.join(map(str, self.spec.ranks))}."
            )
        if other.ndim < 2 or other.shape[0] != x.shape[0] or other.shape[-1] != self.other_dim:
            raise InvalidValue(
                f"{name}: other has shape {tuple(other.shape)}; it must be ({x.shape[0]}, *grid, {self.other_dim})."
            )
        for which, given, stream in (("mask", mask, x), ("other_mask", other_mask, other)):
            if given is None:
                continue
            if not self.spec.masks:
                raise InvalidValue(f"{name} takes no {which}.")
            if given.dtype != torch.bool:
                raise InvalidType(f"{name}: {which} must be bool (True = a real token), not {given.dtype}.")
            if given.shape != stream.shape[:-1]:
                raise InvalidValue(f"{name}: {which} has shape {tuple(given.shape)}; {tuple(stream.shape[:-1])} fits.")


def check_heads(dim: int, num_heads: int) -> int:
    """The head width; refuses head counts that do not divide ``dim``."""
    if not isinstance(num_heads, int) or num_heads < 1 or dim % num_heads:
        raise InvalidValue(f"num_heads={num_heads!r} is not possible: it must divide dim={dim}.")
    return dim // num_heads


def check_token(name: str, x_t: Tensor, dim: int) -> None:
    """Refuse anything but one token per sample, ``(batch, dim)``."""
    if x_t.ndim != 2 or x_t.shape[1] != dim:
        raise InvalidValue(
            f"{name}: step takes one token, (batch, {dim}), not {tuple(x_t.shape)}; use prefill for more."
        )


def check_key_width(qk_dim: int | None, dim: int, num_heads: int) -> int:
    """The width of all queries; refuses one that the heads do not divide."""
    width = dim if qk_dim is None else qk_dim
    if not isinstance(width, int) or width < 1 or width % num_heads:
        raise invalid("qk_dim", qk_dim, f"a positive multiple of num_heads={num_heads} is needed")
    return width


def grid_size(grid: tuple[int, ...]) -> int:
    """Number of tokens of a grid."""
    return math.prod(grid)


def aux_losses(model: nn.Module) -> dict[str, Tensor]:
    """Auxiliary losses of the last forward pass, summed by name over all layers of ``model``."""
    total: dict[str, Tensor] = {}
    for module in model.modules():
        for name, value in getattr(module, "aux_losses", {}).items():
            total[name] = total[name] + value if name in total else value
    return total
