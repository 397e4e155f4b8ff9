"""Feature maps of separable attention: ``weight(q, k) = phi(q) . psi(k) / eta``."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import InvalidValue, invalid

#: Most features of one Taylor map: their number grows as the power of the width.
MOST_FEATURES = 100_000


def elu_plus_one(x: Tensor) -> Tensor:
    """``elu(x) + 1``, positive: the features of linear attention."""
    return F.elu(x) + 1


def taylor_width(width: int, order: int) -> int:
    """Features of :func:`taylor_exp` for vectors of this width: the sum of ``width**p`` up to the order.

    Raises:
        InvalidValue: a negative order, or more than :data:`MOST_FEATURES`.
    """
    if not isinstance(order, int) or order < 0:
        raise invalid("order", order, "a whole number from 0 on is needed")
    count = sum(width**p for p in range(order + 1))
    if count > MOST_FEATURES:
        raise InvalidValue(
            f"order={order} is not possible for heads of width {width}: {count:,} features, {MOST_FEATURES:,} at most."
        )
    return count


def taylor_exp(x: Tensor, order: int) -> Tensor:
    """Features whose products are the Taylor polynomial of exp: ``f(q) . f(k) = sum_p (q . k)^p / p!`` up to the order.

    Args:
        x: ``(..., width)``.
        order: degree of the polynomial.

    Returns:
        ``(..., taylor_width(width, order))``: all tensor powers ``x (x) ... (x) x / sqrt(p!)``.

    Raises:
        InvalidValue: a negative order, or too many features.
    """
    taylor_width(x.shape[-1], order)
    power, parts = torch.ones_like(x[..., :1]), []
    for p in range(order + 1):
        parts.append(power / math.sqrt(math.factorial(p)))
        if p < order:
            power = (power[..., :, None] * x[..., None, :]).flatten(-2)
    return torch.cat(parts, -1)
