"""Multi-axis attention: inside blocks of neighbours, and over a sparse grid that spans the whole map.

Tu et al., "MaxViT: Multi-Axis Vision Transformer" (ECCV 2022, arXiv 2204.01697, section 3.2). Both are softmax
attention among ``window`` tokens per axis with a bias for every offset between them, and both cost linear time; they
differ in which tokens those are. A block holds neighbours. A grid holds every ``size / window``-th token of each axis,
so that attention inside blocks and then over grids joins every pair of places.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from ..errors import InvalidValue, invalid
from ..measure.cost import Cost, linear_flops
from ..ops.shifted_window_attention import shifted_window_attention
from ..registry import register
from ..spec import Grid, MixerSpec
from .base import Mixer, check_heads
from .layout import TokenLayout
from .look import Look, check_query
from .parts import Linear

Partition = Literal["block", "grid"]
Position = Literal["table", "none"]


class RelativeBias(nn.Module):
    """A learned number for every head and offset of key from query, in a table: ``table[head, key - query + w - 1]``.

    The index is the official one, the opposite of Swin's.

    Args:
        window: places along every axis.
        num_heads: heads.
    """

    def __init__(self, window: tuple[int, ...], num_heads: int) -> None:
        super().__init__()
        self.window = window
        self.table = nn.Parameter(torch.empty(num_heads, *(2 * w - 1 for w in window)))
        nn.init.normal_(self.table, std=0.02)

    def forward(self) -> Tensor:
        """``(heads, n, n)`` for the ``n`` tokens of a window: queries, then keys."""
        return by_pair(self.table, self.window)

    def flops(self) -> int:
        """Of one call: nothing is multiplied."""
        return 0


class LogPositionMlp(nn.Module):
    """The same numbers from a small network that reads the offsets' logarithms (timm's ``rmlp`` models).

    Its two inputs are ``sign(d) log(1 + |d|)`` for the offset d of query from key along each axis.

    Args:
        window: places along every axis.
        num_heads: heads.
        hidden: width of the network.
    """

    def __init__(self, window: tuple[int, ...], num_heads: int, hidden: int = 512) -> None:
        super().__init__()
        self.window, self.num_heads = window, num_heads
        self.fc1 = nn.Linear(len(window), hidden)
        self.act = nn.ReLU()
        self.drop = nn.Dropout(0.125)
        self.fc2 = nn.Linear(hidden, num_heads)
        axes = [torch.arange(w - 1, -w, -1) for w in window]  # in the table's order: the key's offset rises
        distance = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2).to(self.fc1.weight.dtype)
        self.register_buffer("log_offsets", distance.sign() * distance.abs().log1p(), persistent=False)
        self.log_offsets: Tensor

    def forward(self) -> Tensor:
        """``(heads, n, n)`` for the ``n`` tokens of a window: queries, then keys."""
        table = self.fc2(self.drop(self.act(self.fc1(self.log_offsets))))
        return by_pair(table.T.unflatten(1, [2 * w - 1 for w in self.window]), self.window)

    def flops(self) -> int:
        """Of one call."""
        return sum(linear_flops(len(self.log_offsets), m.in_features, m.out_features) for m in (self.fc1, self.fc2))


def by_pair(table: Tensor, window: tuple[int, ...]) -> Tensor:
    """Entries ``table[head, key - query + w - 1]`` for all pairs of a window's tokens, ``(heads, n, n)``.

    The entries of the last query are the table's first ``w``, those of the query before begin one later: windows that
    slide over the table, in reverse.

    Args:
        table: ``(heads, 2 w - 1, ...)``, an axis for each of ``window``.
        window: places along every axis.
    """
    axes = list(range(1, 1 + len(window)))
    for axis, w in zip(axes, window, strict=True):
        table = table.unfold(axis, w, 1)
    return table.flip(axes).flatten(1, len(window)).flatten(2)


@register("mixer", "maxvit")
class MultiAxisAttention(Mixer):
    """Attention in blocks of neighbours, or over grids of places far from one another; layers take turns.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim``; the published models have one for every 32 channels.
        causal: must be False.
        window: tokens of a block or grid along every axis, or one number for each axis.
        partition: "block" or "grid"; :meth:`for_layer` gives blocks to even layers and grids to odd ones.
        position: "table", a learned bias by offset, or "none". A module like :class:`LogPositionMlp` may take the
            table's place at :attr:`bias`.
        pad: grids that the window does not divide are padded behind their ends, and nobody sees the padding; otherwise
            they are refused, as in the official code.
        rank: of the grid, 1 to 3; the official code has 2.

    Raises:
        InvalidValue: heads that do not divide, or an option that is not legal.
    """

    spec = MixerSpec(ranks=(1, 2, 3), grid=Grid(multiple_of=7), masks=False, onnx=True)

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = False,
        window: int | tuple[int, ...] = 7,
        partition: Partition = "block",
        position: Position = "table",
        pad: bool = False,
        rank: int = 2,
    ) -> None:
        super().__init__(dim, causal=causal)
        self.num_heads, self.head_dim = num_heads, check_heads(dim, num_heads)
        for name, value, legal in (("partition", partition, Partition), ("position", position, Position)):
            if value not in get_args(legal):
                raise invalid(name, value, f"it must be one of {', '.join(get_args(legal))}")
        if rank not in (1, 2, 3):
            raise invalid("rank", rank, "the grid has 1, 2 or 3 axes")
        sizes = tuple(window) if isinstance(window, tuple | list) else (window,) * rank
        if len(sizes) != rank or any(isinstance(w, bool) or not isinstance(w, int) or w < 1 for w in sizes):
            raise invalid("window", window, f"a positive whole number is needed, or {rank} of them")
        self.window, self.partition, self.pad = sizes, partition, pad
        step = 1 if pad or len(set(sizes)) > 1 else sizes[0]
        self.spec = replace(self.spec, ranks=(rank,), grid=Grid(multiple_of=step), padding="masked" if pad else "none")
        self.qkv = Linear(dim, 3 * dim)
        self.bias: RelativeBias | LogPositionMlp | None = None
        if position == "table":
            self.bias = RelativeBias(sizes, num_heads)
        self.proj = Linear(dim, dim)

    @classmethod
    def options_for(cls, grid: tuple[int, ...]) -> dict[str, Any]:
        """The grid's rank, for each axis the window of 4 to 8 that needs the least padding, and padding if one does."""
        window = tuple(_window(size) for size in grid)
        return {"rank": len(grid), "window": window, "pad": any(n % w for n, w in zip(grid, window, strict=True))}

    @classmethod
    def for_layer(cls, index: int, depth: int, dim: int, **options: Any) -> Self:
        """Blocks in even layers, grids in odd ones."""
        return cls(dim, **{"partition": "grid" if index % 2 else "block", **options})

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor:
        """Mix ``(batch, *grid, dim)``; see :class:`~foveate.mixers.Mixer`."""
        self.check_input(x, mask, context, layout)
        self._check_grid(tuple(x.shape[1:-1]))
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).movedim(-2, 1).unbind(-2)
        y = shifted_window_attention(
            q,
            k,
            v,
            self.window,
            partition="blocks" if self.partition == "block" else "grid",
            bias=None if self.bias is None else self.bias(),
            padding="masked",
        )
        return self.proj(y.movedim(1, -2).flatten(-2))

    def look(self, x: Tensor, query: tuple[int, ...] | None = None) -> list[Look]:
        """What the query reads in its block or grid; without a query: that of the grid's middle."""
        self.check_input(x)
        grid = tuple(x.shape[1:-1])
        self._check_grid(grid)
        place = check_query(type(self).__name__, query, grid) or tuple(n // 2 for n in grid)
        q, k, _ = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).movedim(-2, 1).unbind(-2)
        scores = (k * q[(slice(None), slice(None), *place)][(..., *[None] * len(grid), slice(None))]).sum(-1)
        scores = scores * self.head_dim**-0.5
        bias = None if self.bias is None else self.bias()
        row, column = 0, torch.zeros(grid, dtype=torch.int64, device=x.device)
        seen = torch.ones(grid, dtype=torch.bool, device=x.device)
        for axis, (size, w) in enumerate(zip(grid, self.window, strict=True)):
            along = torch.arange(size, device=x.device)
            step = -(-size // w)
            own, number = (
                (place[axis] // w, along // w) if self.partition == "block" else (place[axis] % step, along % step)
            )
            at, inner = (
                (place[axis] % w, along % w) if self.partition == "block" else (place[axis] // step, along // step)
            )
            shape = [-1 if i == axis else 1 for i in range(len(grid))]
            seen = seen & (number == own).view(shape)
            row, column = row * w + at, column * w + inner.view(shape)
        if bias is not None:
            scores = scores + bias[:, row][:, column]
        weights = scores.masked_fill(~seen, -math.inf).flatten(2).softmax(-1).unflatten(-1, grid)
        return [Look("weights", weights, f"attention inside the {self.partition}")]

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections, the products of all windows, and the network of the biases if there is one."""
        tokens, dim, window = batch * math.prod(grid), self.dim, math.prod(self.window)
        padded = math.prod(-(-size // w) * w for size, w in zip(grid, self.window, strict=True))
        masked, pairs = padded > math.prod(grid), self.num_heads * window * padded
        if self.bias is not None:  # its gradient needs the weights of all pairs
            kept = 4 * batch * pairs
        else:
            kept = 4 * pairs if masked else 0
        return Cost(
            flops=linear_flops(tokens, dim, 4 * dim)
            + 4 * batch * padded * window * dim
            + (0 if self.bias is None else self.bias.flops()),
            parameters=sum(p.numel() for p in self.parameters()),
            # The input, the projections cut into windows, the heads' outputs there and on the grid, a number per row;
            # the weights or the masks of the windows.
            activation_bytes=4 * (tokens * 2 * dim + batch * padded * (4 * dim + self.num_heads)) + kept,
        )

    def _check_grid(self, grid: tuple[int, ...]) -> None:
        if not self.pad and any(size % w for size, w in zip(grid, self.window, strict=True)):
            raise InvalidValue(
                f"{type(self).__name__}: grid {grid} is not possible: windows of {self.window} must divide it; resize "
                f"the input, or build it with pad=True."
            )


def _window(size: int) -> int:
    """The window of 4 to 8 places, or of the whole axis if that is less, which pads least; the largest of several."""
    if size <= 8:
        return size
    return min(range(8, 3, -1), key=lambda w: -size % w)
