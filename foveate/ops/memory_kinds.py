"""The networks whose weights may be a neural memory, as titans-pytorch has them, with gradients written by hand.

lucidrains/titans-pytorch (MIT), ``memory_models.py``; matrices without biases, x of width d::

    mlp              gelu(x W_1) W_2 ...
    factorized       gelu(x A_1 B_1) A_2 B_2 ...                              of a small rank
    gated_residual   b = gelu(x U) V,  x <- x + sigmoid([b | x] G) (b - x),   ...,   x F
    swiglu           [a | g] = x U,  x <- x + (a gelu(g)) V,   ...,   LN(x) (1 + gain)
    attention        softmax(8 normed(x Q) normed(x K)^T) x V + gelu(x U) W   causal, within the tokens given together

What a network was given at each matrix, and the gradient by what the matrix gave, stand for the gradient of its weight
(their outer product, summed over tokens): a chunk's is one product of matrices. All of it is plain PyTorch, so autograd
differentiates through it a second time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .memory_networks import NORM_EPS, gelu_slope

Kind = Literal["mlp", "factorized", "gated_residual", "swiglu", "attention"]
KINDS = get_args(Kind)

#: For each weight what its matrix was given (None for a gain) and the gradient by what it gave, ``(N, length, width)``.
Pairs = list[tuple[Tensor | None, Tensor]]
Back = Callable[[Tensor], Pairs]


class Network(Protocol):
    """A small network.

    Attributes:
        shapes: of its weights, in titans-pytorch's order; gains have one axis.
        first: for each matrix, whether it reads the input itself, whose gradient nobody wants.
        names: titans-pytorch's of the weights.
        mixes: a token's answer depends on others.
    """

    @property
    def shapes(self) -> list[tuple[int, ...]]: ...

    @property
    def names(self) -> list[str]: ...

    @property
    def first(self) -> list[bool]: ...

    @property
    def mixes(self) -> bool: ...

    def run(self, weights: Sequence[Tensor], x: Tensor, group: int) -> tuple[Tensor, Back]:
        """Answer, and what makes of the gradient by the answers those of the weights.

        Args:
            weights: ``(N, ...)`` each.
            x: ``(N, length, dim)``.
            group: tokens that are given together; it divides the length.
        """
        ...

    def saved(self) -> tuple[int, int]:
        """Numbers that a token keeps for a backward pass, written and read."""
        ...


@dataclass(frozen=True)
class Chain:
    """Matrices one after the other.

    Attributes:
        widths: before, between and behind them.
        pair: every two matrices are one of low rank, with nothing between them.
    """

    widths: tuple[int, ...]
    pair: bool = False
    mixes: bool = False

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return list(itertools.pairwise(self.widths))

    @property
    def names(self) -> list[str]:
        count = len(self.widths) - 1
        return [f"weights.{i // 2}.{i % 2}" if self.pair else f"weights.{i}" for i in range(count)]

    @property
    def first(self) -> list[bool]:
        return [i == 0 for i in range(len(self.widths) - 1)]

    def run(self, weights: Sequence[Tensor], x: Tensor, group: int) -> tuple[Tensor, Back]:
        inputs: list[Tensor] = []
        sums: list[Tensor] = []
        h = x
        for i, weight in enumerate(weights):
            h = F.gelu(h) if self._bends(i) else h
            inputs.append(h)
            h = h @ weight
            sums.append(h)

        def back(delta: Tensor) -> Pairs:
            found: Pairs = []
            for i in reversed(range(len(weights))):
                found.append((inputs[i], delta))
                if i:
                    delta = delta @ weights[i].mT
                    delta = delta * gelu_slope(sums[i - 1]) if self._bends(i) else delta
            return found[::-1]

        return h, back

    def _bends(self, i: int) -> bool:
        return i > 0 and not (self.pair and i % 2)

    def saved(self) -> tuple[int, int]:
        write = read = 0
        for i, (before, after) in enumerate(itertools.pairwise(self.widths)):
            write += after
            if self._bends(i):  # sums and activations, GELU's slope and its parts, the error sent back
                write, read = write + 7 * before, read + 2 * before
            elif i:
                write, read = write + before, read + before
        return write, read


@dataclass(frozen=True)
class GatedResidual:
    """Layers that are blended with their input.

    Attributes:
        dim, hidden: width of the input and between the two matrices.
        depth: number of layers.
    """

    dim: int
    hidden: int
    depth: int
    mixes: bool = False

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        layer = [(self.dim, self.hidden), (self.hidden, self.dim), (2 * self.dim, self.dim)]
        return [(self.dim, self.dim), *layer * self.depth]

    @property
    def names(self) -> list[str]:
        return ["final_proj", *(f"weights.{i}.{j}" for i in range(self.depth) for j in range(3))]

    @property
    def first(self) -> list[bool]:
        return [False, True, *[False] * (3 * self.depth - 1)]

    def run(self, weights: Sequence[Tensor], x: Tensor, group: int) -> tuple[Tensor, Back]:
        layers = [weights[1 + 3 * i : 4 + 3 * i] for i in range(self.depth)]
        kept = []
        for up, down, gates in layers:
            s = x @ up
            h = F.gelu(s)
            branch = h @ down
            both = torch.cat([branch, x], -1)
            p = torch.sigmoid(both @ gates)
            step = branch - x
            kept.append((x, s, h, both, p, step))
            x = x + p * step
        last = x

        def back(delta: Tensor) -> Pairs:
            found: Pairs = []
            final, delta = (last, delta), delta @ weights[0].mT
            for i in reversed(range(self.depth)):
                up, down, gates = layers[i]
                x, s, h, both, p, step = kept[i]
                by_gates = delta * step * p * (1 - p)
                to_branch, to_x = (by_gates @ gates.mT).chunk(2, -1)
                by_branch = delta * p + to_branch
                by_sum = (by_branch @ down.mT) * gelu_slope(s)
                found += [(both, by_gates), (h, by_branch), (x, by_sum)]
                if i:
                    delta = delta * (1 - p) + to_x + by_sum @ up.mT
            return [final, *found[::-1]]

        return last @ weights[0], back

    def saved(self) -> tuple[int, int]:
        layer = 12 * self.dim + 8 * self.hidden
        return self.depth * layer + 2 * self.dim, self.depth * (6 * self.dim + 2 * self.hidden) + self.dim


@dataclass(frozen=True)
class SwiGLU:
    """Gated feed-forwards with residuals, then a norm with a gain.

    Attributes:
        dim, hidden: width of the input and between the two matrices.
        depth: number of layers.
    """

    dim: int
    hidden: int
    depth: int
    mixes: bool = False

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [*[(self.dim, 2 * self.hidden), (self.hidden, self.dim)] * self.depth, (self.dim,)]

    @property
    def names(self) -> list[str]:
        return [*(f"weights.{i}.{j}" for i in range(self.depth) for j in range(2)), "norm.gamma"]

    @property
    def first(self) -> list[bool]:
        return [True, *[False] * (2 * self.depth - 1)]

    def run(self, weights: Sequence[Tensor], x: Tensor, group: int) -> tuple[Tensor, Back]:
        kept = []
        for up, down in zip(weights[:-1:2], weights[1::2], strict=True):
            a, g = (x @ up).chunk(2, -1)
            bent = F.gelu(g)
            kept.append((x, a, g, bent, a * bent))
            x = kept[-1][4] @ down + x
        y, by_norm = normalised(x, weights[-1])

        def back(delta: Tensor) -> Pairs:
            delta, by_gain = by_norm(delta)
            found: Pairs = [(None, by_gain)]
            for i in reversed(range(self.depth)):
                x, a, g, bent, m = kept[i]
                by_m = delta @ weights[2 * i + 1].mT
                by_both = torch.cat([by_m * bent, by_m * a * gelu_slope(g)], -1)
                found += [(m, delta), (x, by_both)]
                if i:
                    delta = delta + by_both @ weights[2 * i].mT
            return found[::-1]

        return y, back

    def saved(self) -> tuple[int, int]:
        write = self.depth * (2 * self.dim + 14 * self.hidden) + 7 * self.dim
        return write, self.depth * (self.dim + 4 * self.hidden) + 3 * self.dim


@dataclass(frozen=True)
class Attention:
    """Causal attention of tokens that are given together, beside a feed-forward.

    Attributes:
        dim, hidden: width of the input and of the feed-forward.
        scale: of the products of normalised queries and keys.
    """

    dim: int
    hidden: int
    scale: float = 8.0
    mixes: bool = True

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [*[(self.dim, self.dim)] * 3, (self.dim, self.hidden), (self.hidden, self.dim)]

    @property
    def names(self) -> list[str]:
        return [f"weights.{i}" for i in range(5)]

    @property
    def first(self) -> list[bool]:
        return [True] * 4 + [False]

    def run(self, weights: Sequence[Tensor], x: Tensor, group: int) -> tuple[Tensor, Back]:
        to_q, to_k, to_v, up, down = weights
        q, by_q = unit(x @ to_q)
        k, by_k = unit(x @ to_k)
        q, k, v = (t.unflatten(1, (-1, group)) for t in (q, k, x @ to_v))
        later = torch.ones(group, group, dtype=torch.bool, device=x.device).triu(1)
        a = (self.scale * (q @ k.mT)).masked_fill(later, -torch.inf).softmax(-1)
        s = x @ up
        h = F.gelu(s)

        def back(delta: Tensor) -> Pairs:
            d = delta.unflatten(1, (-1, group))
            by_a = d @ v.mT
            by_scores = self.scale * a * (by_a - (by_a * a).sum(-1, keepdim=True))
            return [
                (x, by_q((by_scores @ k).flatten(1, 2))),
                (x, by_k((by_scores.mT @ q).flatten(1, 2))),
                (x, (a.mT @ d).flatten(1, 2)),
                (x, (delta @ down.mT) * gelu_slope(s)),
                (h, delta),
            ]

        return (a @ v).flatten(1, 2) + h @ down, back

    def saved(self) -> tuple[int, int]:
        return 20 * self.dim + 8 * self.hidden, 7 * self.dim + 2 * self.hidden


@dataclass(frozen=True)
class Normed:
    """A network whose output is normalised, with a gain as the last of its weights, and to which its input is added."""

    inner: Network

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        dim = self.inner.shapes[0][0]
        return [*self.inner.shapes, (dim,)]

    @property
    def names(self) -> list[str]:
        return [*(f"model.{name}" for name in self.inner.names), "norm.gamma"]

    @property
    def first(self) -> list[bool]:
        return self.inner.first

    @property
    def mixes(self) -> bool:
        return self.inner.mixes

    def run(self, weights: Sequence[Tensor], x: Tensor, group: int) -> tuple[Tensor, Back]:
        y, before = self.inner.run(weights[:-1], x, group)
        y, by_norm = normalised(y, weights[-1])

        def back(delta: Tensor) -> Pairs:
            delta, by_gain = by_norm(delta)
            return [*before(delta), (None, by_gain)]

        return y + x, back

    def saved(self) -> tuple[int, int]:
        write, read = self.inner.saved()
        dim = self.inner.shapes[0][0]
        return write + 7 * dim, read + 3 * dim


def network(kind: Kind, dim: int, depth: int, expansion: float, rank: int, scale: float, norm: bool) -> Network:
    """A network by its name.

    Args:
        kind: see the module's docstring.
        dim: width of what it reads and gives.
        depth: matrices ("mlp"), pairs of them ("factorized") or layers; attention has one.
        expansion: width between matrices, over ``dim``; for "swiglu" times 2/3. Not of "factorized".
        rank: of "factorized".
        scale: of "attention".
        norm: wrapped in a norm, its input added.
    """
    hidden = int(dim * expansion)
    found: Network
    if kind == "mlp":
        found = Chain((dim, *(hidden,) * (depth - 1), dim))
    elif kind == "factorized":
        found = Chain((dim, *(rank, dim) * depth), pair=True)
    elif kind == "gated_residual":
        found = GatedResidual(dim, hidden, depth)
    elif kind == "swiglu":
        found = SwiGLU(dim, int(dim * expansion * 2 / 3), depth)
    else:
        found = Attention(dim, hidden, scale)
    return Normed(found) if norm else found


def matrices(net: Network) -> list[tuple[int, int, bool]]:
    """Rows and columns of every matrix, and whether it reads the network's input."""
    sizes = [shape for shape in net.shapes if len(shape) == 2]
    return [(rows, columns, first) for (rows, columns), first in zip(sizes, net.first, strict=True)]


def normalised(x: Tensor, gain: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """Layer norm times ``1 + gain``, ``(N, dim)``; its backward gives the gradients by the input and by the gain."""
    centred = x - x.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + NORM_EPS)
    normed, factor = centred * scale, 1 + gain.unsqueeze(1)

    def back(delta: Tensor) -> tuple[Tensor, Tensor]:
        inner = delta * factor
        along = (inner * normed).mean(-1, keepdim=True)
        return scale * (inner - inner.mean(-1, keepdim=True) - normed * along), delta * normed

    return normed * factor, back


def unit(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Vectors of length one, and what makes of the gradient by them the one by ``x``; a zero stays zero."""
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-12)
    y = x / size
    return y, lambda delta: (delta - y * (y * delta).sum(-1, keepdim=True)) / size
