"""The small networks whose weights are a neural memory, and their gradients, written by hand.

A memory is an MLP without biases, GELU between its matrices, ``M(x) = gelu(x W_1) W_2 ...``; in the form of TTT layers
(arXiv 2407.04620) and titans-pytorch its output is normalised and the input added, ``LN(M(x)) (1 + gain) + x``, and the
gain is one of the weights. The gradient for one token is of rank one in every matrix, what it was given times the error
behind it: that is what :class:`Trace` keeps, so that chunks of tokens are written and read by products of matrices. All
of it is plain PyTorch, so autograd differentiates through it a second time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-5


@dataclass(frozen=True)
class Trace:
    """What the tokens of a chunk leave for the weights.

    Attributes:
        inputs: ``(N, length, width)``, what each matrix was given.
        deltas: ``(N, length, width)``, gradient of the weighted loss by what each matrix gave.
        gain: ``(N, length, dim)``, gradient by the gain, token by token; None without a norm.
    """

    inputs: tuple[Tensor, ...]
    deltas: tuple[Tensor, ...]
    gain: Tensor | None


def run(
    x: Tensor, depth: int, product: Callable[[int, Tensor], Tensor], gain: Callable[[], Tensor] | None
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor | None, Tensor | None]:
    """The network with whatever stands for its matrices.

    Args:
        x: ``(N, length, dim)``.
        product: ``(number of the matrix, input) -> input @ matrix``.
        gain: gives the gain; None: no norm and no residual.

    Returns:
        The output, the inputs of all matrices, what all matrices gave, and the norm's output and reciprocal deviation.
    """
    inputs, sums, h = [], [], x
    for i in range(depth):
        h = F.gelu(h) if i else h
        inputs.append(h)
        h = product(i, h)
        sums.append(h)
    if gain is None:
        return h, inputs, sums, None, None
    centred = h - h.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + NORM_EPS)
    normed = centred * scale
    return normed * (1 + gain()) + x, inputs, sums, normed, scale


def split(weights: Sequence[Tensor], norm: bool) -> tuple[Sequence[Tensor], Tensor | None]:
    """Matrices and gain."""
    return (weights[:-1], weights[-1]) if norm else (weights, None)


def recall(weights: Sequence[Tensor], x: Tensor, norm: bool) -> Tensor:
    """``M(x)``.

    Args:
        weights: matrices ``(N, in, out)``, and with a norm the gain ``(N, dim)``.
        x: ``(N, length, dim)``.
    """
    matrices, gain = split(weights, norm)
    add = None if gain is None else lambda: gain.unsqueeze(1)
    return run(x, len(matrices), lambda i, h: h @ matrices[i], add)[0]


def surprise(
    weights: Sequence[Tensor],
    k: Tensor,
    v: Tensor,
    step: Tensor,
    norm: bool,
    scale: float = 1.0,
    largest: float | None = None,
) -> Trace:
    """Gradients of ``scale |M(k_t) - v_t|^2``, token by token, times ``step_t``.

    Args:
        weights: as for :func:`recall`.
        k, v: ``(N, length, dim)``.
        step: ``(N, length)``.
        largest: what the norm of a token's gradient in one weight, before its step size, comes near to and never
            reaches; None: gradients as they are.
    """
    matrices, gain = split(weights, norm)
    add = None if gain is None else lambda: gain.unsqueeze(1)
    predicted, inputs, sums, normed, deviation = run(k, len(matrices), lambda i, h: h @ matrices[i], add)
    by, by_gain = step.unsqueeze(-1), None
    delta = 2 * scale * (predicted - v) if largest is not None else 2 * scale * by * (predicted - v)
    if gain is not None:
        assert normed is not None
        assert deviation is not None
        by_gain = delta * normed
        inner = delta * (1 + gain.unsqueeze(1))
        along = (inner * normed).mean(-1, keepdim=True)
        delta = deviation * (inner - inner.mean(-1, keepdim=True) - normed * along)
    deltas = [delta]
    for i in reversed(range(1, len(matrices))):
        delta = (delta @ matrices[i].mT) * gelu_slope(sums[i - 1])
        deltas.append(delta)
    deltas.reverse()
    if largest is not None:
        squares = [x.square().sum(-1, keepdim=True) for x in inputs]
        deltas = [by * bounded(d, s, largest) for d, s in zip(deltas, squares, strict=True)]
        by_gain = None if by_gain is None else by * bounded(by_gain, torch.ones_like(by), largest)
    return Trace(tuple(inputs), tuple(deltas), by_gain)


def bounded(delta: Tensor, square: Tensor, largest: float) -> Tensor:
    """``delta / sqrt(1 + n^2 / largest^2)`` where n is the norm of its outer product with a vector of this square."""
    return delta * torch.rsqrt(1 + delta.square().sum(-1, keepdim=True) * square / largest**2)


def gelu_slope(x: Tensor) -> Tensor:
    """Derivative of GELU."""
    return 0.5 * (1 + torch.erf(x * math.sqrt(0.5))) + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
