"""MixerStack: pre-norm residual blocks of one mixer, whatever reads and answers around them.

Source: the pre-norm residual block of Xiong et al., 2020 (arXiv 2002.04745), with the GELU feed-forward of ViT.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import InvalidValue
from ..mixers.base import Mixer
from ..mixers.layout import TokenLayout
from ..mixers.parts import Linear
from ..mixers.state import State, state
from ..registry import check_options, find
from .readers import learned_positions


@state
class StackState(State):
    """Streaming state of a :class:`MixerStack`.

    Attributes:
        layers: one state per layer.
        read: tokens read; counted only where special tokens stand between them.
    """

    layers: tuple[Any, ...]
    read: int = 0


class MixerBlock(nn.Module):
    """One pre-norm residual block around a built mixer.

    Args:
        mixer: the token mixer.
        mlp_ratio: hidden width of the feed-forward over the token width; 0 leaves the feed-forward out.
        dropout: after the mixer and inside the feed-forward.
    """

    def __init__(self, mixer: Mixer, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        dim, hidden = mixer.dim, int(mixer.dim * mlp_ratio)
        self.mixer = mixer
        self.mixer_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.mlp_norm = nn.LayerNorm(dim) if hidden else nn.Identity()
        layers = [Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), Linear(hidden, dim), nn.Dropout(dropout)]
        self.mlp = nn.Sequential(*layers) if hidden else None

    def _feed_forward(self, x: Tensor) -> Tensor:
        return x if self.mlp is None else x + self.mlp(self.mlp_norm(x))

    def forward(self, x: Tensor, mask: Tensor | None = None, layout: TokenLayout | None = None) -> Tensor:
        return self._feed_forward(x + self.dropout(self.mixer(self.mixer_norm(x), mask=mask, layout=layout)))

    def prefill(self, x: Tensor, layer_state: Any, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        y, layer_state = self.mixer.prefill(self.mixer_norm(x), layer_state, mask)
        return self._feed_forward(x + self.dropout(y)), layer_state

    def step(self, x_t: Tensor, layer_state: Any) -> tuple[Tensor, Any]:
        y, layer_state = self.mixer.step(self.mixer_norm(x_t), layer_state)
        return self._feed_forward(x_t + self.dropout(y)), layer_state


class MixerStack(nn.Module):
    """``depth`` blocks of one mixer on tokens ``(batch, *grid, dim)``, with its special tokens and a final norm.

    A grid of higher rank than the mixer takes is read as one sequence.

    Args:
        mixer: registered name or :class:`~foveate.mixers.Mixer` subclass.
        dim: token width.
        depth: number of blocks.
        rank: rank of the grids to come.
        num_heads: given to mixers that have heads.
        causal: given to the mixer; None: not causal where it can look both ways.
        mlp_ratio, dropout: of :class:`MixerBlock`.
        mixer_options: further options of the mixer.
        grid: the grid to come, if it is known: the mixer's :meth:`~foveate.mixers.Mixer.options_for` it are taken.

    Raises:
        InvalidValue: the mixer takes no grid of this rank, nor sequences.
    """

    def __init__(
        self,
        mixer: str | type[Mixer],
        dim: int,
        depth: int,
        *,
        rank: int = 1,
        num_heads: int = 4,
        causal: bool | None = None,
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
        mixer_options: dict[str, Any] | None = None,
        grid: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        cls: type[Mixer] = find(mixer, "mixer").load() if isinstance(mixer, str) else mixer
        name = mixer if isinstance(mixer, str) else cls.__name__
        if rank not in cls.spec.ranks and 1 not in cls.spec.ranks:
            legal = " or ".join(map(str, cls.spec.ranks))
            raise InvalidValue(f"mixer={name!r} is not possible here: it mixes grids of rank {legal}, not {rank}.")
        if depth < 1:
            raise InvalidValue(f"depth={depth} is not possible: at least one block is needed.")
        options: dict[str, Any] = {"causal": not cls.spec.bidirectional if causal is None else causal}
        if "num_heads" in inspect.signature(cls).parameters:
            options["num_heads"] = num_heads
        if grid is not None:
            options.update(cls.options_for(grid if rank in cls.spec.ranks else (math.prod(grid),)))
        options.update(mixer_options or {})
        check_options(name, cls, {"dim": dim, **options})
        mixers = [cls.for_layer(i, depth, dim, **options) for i in range(depth)]
        self.flatten = rank not in cls.spec.ranks
        self.blocks = nn.ModuleList(MixerBlock(m, mlp_ratio, dropout) for m in mixers)
        self.norm = nn.LayerNorm(dim)
        plan = mixers[0].plan_tokens((64,) * (1 if self.flatten else rank))
        self.special = nn.ParameterDict(
            {role: learned_positions((n,), dim) for role, n in zip(plan.roles, plan.role_sizes, strict=True)}
        )

    @property
    def masks(self) -> bool:
        """Whether the stack takes a mask."""
        return self.layers[0].mixer.spec.masks

    @property
    def layers(self) -> list[MixerBlock]:
        """The blocks, first to last."""
        return [cast(MixerBlock, block) for block in self.blocks]

    def forward(self, x: Tensor, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Features ``(batch, *grid, dim)`` of tokens ``(batch, *grid, dim)``.

        Args:
            x: the tokens.
            mask: bool ``(batch, *grid)``, True = a real token. Special tokens stand where the whole grid has them, and
                are real: for them masked tokens take places, though they have no influence.
            segments: int64 ``(batch, *grid)``: packed documents, which do not see each other.

        Raises:
            InvalidValue: the mixer takes no mask, or cannot keep segments apart.
        """
        grid = tuple(x.shape[1:-1])
        if self.flatten:
            x, mask = x.flatten(1, -2), None if mask is None else mask.flatten(1)
        layout = self.layers[0].mixer.plan_tokens(tuple(x.shape[1:-1]))
        if segments is not None:
            layout = layout.with_segments(segments)
        x, mask = layout.insert(x, dict(self.special.items())), layout.widen_mask(mask)
        for block in self.layers:
            x = block(x, mask, layout)
        return layout.extract(self.norm(x)).unflatten(1, grid) if self.flatten else layout.extract(self.norm(x))

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> StackState:
        """The state before the first token of a sequence."""
        return StackState(tuple(b.mixer.init_state(batch_size, device, dtype) for b in self.layers))

    def prefill(self, x: Tensor, state: StackState, mask: Tensor | None = None) -> tuple[Tensor, StackState]:
        """Read ``(batch, length, dim)`` after ``state``; special tokens that are due are fed in between.

        Of a mask see :meth:`forward`.
        """
        plan, read = None, state.read
        if self.special:
            plan = self.layers[0].mixer.plan_next(read, x.shape[1])
            read, mask = read + x.shape[1], plan.widen_mask(mask)
            x = plan.insert(x, dict(self.special.items()))
        layers = []
        for block, layer in zip(self.layers, state.layers, strict=True):
            x, layer = block.prefill(x, layer, mask)
            layers.append(layer)
        x = self.norm(x)
        return x if plan is None else plan.extract(x), StackState(tuple(layers), read)

    def step(self, x_t: Tensor, state: StackState) -> tuple[Tensor, StackState]:
        """Read one token ``(batch, dim)``."""
        read = state.read
        if self.special:
            if self.layers[0].mixer.plan_next(read, 1).length > 1:
                y, state = self.prefill(x_t[:, None], state)
                return y[:, 0], state
            read += 1
        layers = []
        for block, layer in zip(self.layers, state.layers, strict=True):
            x_t, layer = block.step(x_t, layer)
            layers.append(layer)
        return self.norm(x_t), StackState(tuple(layers), read)
