"""Cases: how a small instance and an example input are built from a spec and a signature alone."""

from __future__ import annotations

import inspect
import re
import types
import typing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from foveate.mixers import Mixer, MixerSpec, TokenLayout

# Options with these words in their names set the length of an inner block; faults hide at its borders.
_BLOCK_WORDS = re.compile(r"(^|_)(block|chunk|window|segment|bucket|tile)(_|$|s)")


@dataclass(frozen=True)
class MixerCase:
    """A mixer under test.

    Attributes:
        name: registered name.
        cls: the class.
        options: constructor options on top of those every case sets.
    """

    name: str
    cls: type[Mixer]
    options: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def spec(self) -> MixerSpec:
        """What these options promise: those of the class, unless the options make the instance say otherwise."""
        if not self.options:
            return self.cls.spec
        heads = {"num_heads": 2} if "num_heads" in self.signature else {}
        return self.cls(16, causal=not self.cls.spec.bidirectional, **heads, **self.options).spec

    @cached_property
    def signature(self) -> dict[str, inspect.Parameter]:
        """Constructor options by name, ``dim`` included."""
        return dict(inspect.signature(self.cls).parameters)

    @property
    def causal(self) -> bool:
        """The direction that the plain checks use: causal where it is all there is."""
        return not self.spec.bidirectional

    @property
    def directions(self) -> list[bool]:
        """Legal values of ``causal``."""
        return [False] * self.spec.bidirectional + [True] * (self.spec.causal != "never")

    def build(
        self,
        *,
        causal: bool | None = None,
        dim: int = 16,
        num_heads: int = 2,
        grid: tuple[int, ...] | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> Mixer:
        """A small instance in eval mode. Parameters that start at zero would hide faults: noise is added to all.

        Args:
            grid: the grid it is for, see :meth:`Mixer.options_for`.
        """
        torch.manual_seed(seed)
        given = {**self.cls.options_for(grid or self.grid()), **self.options, **options}
        if "num_heads" in self.signature:
            given.setdefault("num_heads", num_heads)
        mixer = self.cls(dim, causal=self.causal if causal is None else causal, **given)
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        return mixer.to(dtype).eval()

    # Grids ----------------------------------------------------------------------------------------------------------

    def grids(self, rank: int) -> list[tuple[int, ...]]:
        """Legal grids of this rank: the smallest, odd ones, uneven ones."""
        rule = self.spec.grid
        if rule.fixed is not None:
            return [rule.fixed] if len(rule.fixed) == rank else []
        wanted = {1: [(1,), (7,), (16,), (29,)], 2: [(1, 1), (5, 7), (9, 2)], 3: [(1, 1, 1), (2, 3, 5), (4, 3, 2)]}
        legal = [tuple(self._legal(size) for size in grid) for grid in wanted[rank]]
        return list(dict.fromkeys(legal))

    def _legal(self, size: int) -> int:
        step = self.spec.grid.multiple_of
        return max(-(-max(size, self.spec.grid.minimum) // step) * step, step)

    def grid(self, rank: int | None = None, tokens: int = 12) -> tuple[int, ...]:
        """A legal grid of about this many tokens; of the lowest legal rank if none is given."""
        if self.spec.grid.fixed is not None:
            return self.spec.grid.fixed
        rank = min(self.spec.ranks) if rank is None else rank
        edge = round(tokens ** (1 / rank))
        return tuple(self._legal(edge + (i == 0 and rank > 1)) for i in range(rank))

    @property
    def block(self) -> int:
        """The largest inner block that the options name by default; 64 where none is named."""
        sizes = [
            int(default)
            for name, default in ((n, self.options.get(n, p.default)) for n, p in self.signature.items())
            if _BLOCK_WORDS.search(name) and isinstance(default, int) and not isinstance(default, bool)
        ]
        return max(sizes, default=64)

    @property
    def length(self) -> int:
        """A sequence length that no inner block divides and that holds at least two of them."""
        return self._legal(min(2 * max(self.block, 32) + 9, 521))

    # Inputs ---------------------------------------------------------------------------------------------------------

    def input(
        self, grid: tuple[int, ...] | None = None, batch: int = 2, *, dim: int = 16, seed: int = 1, scale: float = 1.0
    ) -> Tensor:
        """Random tokens ``(batch, *grid, dim)``; the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, *(grid or self.grid()), dim, generator=generator) * scale

    def mask(self, grid: tuple[int, ...] | None = None, batch: int = 2, *, seed: int = 2) -> Tensor:
        """A random mask ``(batch, *grid)``, at least one token of every sample real and one masked."""
        generator = torch.Generator().manual_seed(seed)
        mask = torch.rand(batch, *(grid or self.grid()), generator=generator) < 0.6
        mask.flatten(1)[:, 0], mask.flatten(1)[:, -1] = False, True
        return mask if mask[0].numel() > 1 else torch.ones_like(mask)

    def widen(self, mixer: Mixer, x: Tensor) -> tuple[Tensor, TokenLayout | None]:
        """What the network would hand to this mixer: ``x`` with the special tokens of its plan, and the layout."""
        with torch.device("cpu"):
            layout = mixer.plan_tokens(tuple(x.shape[1:-1]))
        if layout.source is None:
            return x, None if layout.is_plain else layout
        generator = torch.Generator().manual_seed(3)
        special = {
            role: torch.randn(size, x.shape[-1], generator=generator, device="cpu").to(x)
            for role, size in zip(layout.roles, layout.role_sizes, strict=True)
        }
        return layout.insert(x, special), layout

    def run(self, mixer: Mixer, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Call the mixer as a network does, special tokens and all; ``(batch, *grid, dim)`` in and out."""
        wide, layout = self.widen(mixer, x)
        if layout is None:
            return mixer(wide, mask=mask)
        if mask is not None and layout.source is not None:
            ones = {role: torch.ones(n, 1) for role, n in zip(layout.roles, layout.role_sizes, strict=True)}
            mask = layout.insert(mask[..., None].float(), ones)[..., 0].bool()
        return layout.extract(mixer(wide, mask=mask, layout=layout))


def choices(annotation: Any, default: Any) -> tuple[Any, ...]:
    """Legal values that an option's type lists, the default left out: those of a ``Literal``, and both of a bool."""
    parts = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    listed = [v for part in parts if typing.get_origin(part) is Literal for v in typing.get_args(part)]
    if isinstance(default, bool):
        listed = [not default]
    return tuple(v for v in listed if v != default)


def variants(case: MixerCase) -> list[MixerCase]:
    """One case for every other choice of every option: a spec promises for all of them."""
    hints = typing.get_type_hints(case.cls.__init__)
    return [
        MixerCase(f"{case.name}({name}={value!r})", case.cls, {name: value})
        for name, parameter in case.signature.items()
        if name != "causal"
        for value in choices(hints.get(name), parameter.default)
    ]
