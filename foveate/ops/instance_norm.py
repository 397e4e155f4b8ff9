"""Instance norm of maps that lie channels last in memory: each channel of each sample by its own mean and variance.

Ulyanov et al. 2016 (arXiv 1607.08022)::

    y = (x - mean(x)) / sqrt(var(x) + eps)        over the places of one channel

PyTorch's form copies such maps into the other order, and back. Its batch norm does not, but adds up millions of places
one by one: a thousandth is lost of a map of 96 x 96 x 96. Here statistics are made of pieces that stay in the cache,
and put together in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backend import current_backend
from .handwritten import Results, handwritten
from .linear import transformed
from .native import through_autograd

#: Numbers of a piece.
PIECE = 2**16


def takes(x: Tensor) -> bool:
    """Whether :func:`instance_norm` is the form to take: real numbers on the CPU, channels last, eager."""
    if torch.compiler.is_compiling() or current_backend() == "reference" or transformed():
        return False
    last = x.movedim(1, -1).is_contiguous()
    return last and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.numel() > 0


def instance_norm(x: Tensor, eps: float) -> Tensor:
    """Each channel of each sample by its own mean and (biased) variance; no weights.

    Args:
        x: ``(B, C, *grid)`` in channels-last memory; see :func:`takes`.
        eps: added to the variance.

    Returns:
        The same shape and memory; gradients any number of times.
    """
    rows = x.movedim(1, -1)
    return _norm(rows.flatten(1, -2), eps)[0].view(rows.shape).movedim(-1, 1)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the columns of ``(S, C)``, float64."""
    pieces = x.split(max(1, PIECE // x.shape[1]))
    found = [torch.batch_norm_update_stats(piece, None, None, 0.0) for piece in pieces]
    mean, var = (torch.stack(each).double() for each in zip(*found, strict=True))
    share = torch.tensor([len(piece) / len(x) for piece in pieces], dtype=torch.float64)[:, None]
    whole = (share * mean).sum(0)
    return whole, (share * (var + (mean - whole).square())).sum(0)


def _forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    statistics = [_statistics(sample) for sample in x]
    means, variances = (torch.stack(each).to(x.dtype) for each in zip(*statistics, strict=True))
    each = [
        torch.batch_norm(sample, None, None, mean, var, False, 0.0, eps, False)
        for sample, mean, var in zip(x, means, variances, strict=True)
    ]
    y = each[0][None] if len(each) == 1 else torch.stack(each)
    return y, means, (variances + eps).rsqrt()


def _backward(grad: Tensor, x: Tensor, eps: float, mean: Tensor, scale: Tensor) -> Results:
    if torch.is_grad_enabled():  # to be differentiated once more: by what autograd sees through
        return through_autograd(lambda x: (_definition(x, eps),), (x,), (grad,))
    y = (x - mean[:, None]).mul_(scale[:, None])
    along = (grad * y).mean(1, keepdim=True)
    return (y.mul_(-along).add_(grad).sub_(grad.mean(1, keepdim=True)).mul_(scale[:, None]),)


def _definition(x: Tensor, eps: float) -> Tensor:
    x = x - x.mean(1, keepdim=True)
    return x * (x.square().mean(1, keepdim=True) + eps).rsqrt()


def _shapes(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    each = x.new_empty(x.shape[0], x.shape[2])
    return torch.empty_like(x), each, torch.empty_like(each)


_norm = handwritten(
    "instance_norm",
    "Tensor x, float eps",
    outputs=1,
    extras=2,
    forward=_forward,
    backward=_backward,
    shapes=_shapes,
)
