"""Quantile forecasts that cannot cross: levels, heads, and the spread of residuals.

A head gives one number r per level; the one at the level 0.5 is the median, each of the others is a step away from
the level beside it, and a step is never negative::

    q[m] = r[m]    q[m + i] = q[m + i - 1] + softplus(r[m + i] + s)    q[m - i] = q[m - i + 1] - softplus(r[m - i] + s)

where s, one constant per step, makes it that of a normal distribution with deviation :data:`START` at r = 0.

Adding and subtracting what is not negative, scaling by what is positive and rounding are all monotone, so that the
levels are in order to the last bit, in every unit. Source: incremental quantile functions (Park et al., AISTATS 2022,
arXiv 2111.06581), started at the median.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InvalidType, InvalidValue

MEDIAN = 0.5
#: Deviation that a head begins with, in the units in which it answers.
START = 0.7


def check_levels(levels: Sequence[float]) -> tuple[float, ...]:
    """Levels as a tuple, empty for none.

    Raises:
        InvalidType: a level is not a number.
        InvalidValue: a level outside (0, 1), or levels that do not rise.
    """
    shown = ",".join(f"{level:g}" if isinstance(level, float) else str(level) for level in levels)
    for level in levels:
        if isinstance(level, bool) or not isinstance(level, int | float):
            raise InvalidType(f"quantiles={shown!r} is not possible: {level!r} is not a number.")
        if not 0 < level < 1:
            raise InvalidValue(f"quantiles={shown!r} is not possible: {level:g} is not between 0 and 1.")
    for before, level in itertools.pairwise(levels):
        if level == before:
            raise InvalidValue(f"quantiles={shown!r} is not possible: {level:g} stands there twice.")
        if level < before:
            raise InvalidValue(
                f"quantiles={shown!r} is not possible: they must rise, and {level:g} follows {before:g}."
            )
    return tuple(float(level) for level in levels)


def median_of(levels: Sequence[float]) -> int:
    """The place of 0.5 among legal levels.

    Raises:
        InvalidType, InvalidValue: illegal levels, or 0.5 is not among them.
    """
    checked = check_levels(levels)
    if MEDIAN not in checked:
        shown = ",".join(f"{level:g}" for level in checked)
        raise InvalidValue(f"quantiles={shown!r} is not possible for a model: the median 0.5 must be among them.")
    return checked.index(MEDIAN)


class QuantileOrder:
    """Quantiles from the numbers of a head, in order; see the module's docstring.

    Args:
        levels: rising, 0.5 among them.

    Raises:
        InvalidType, InvalidValue: they are not.
    """

    def __init__(self, levels: Sequence[float]) -> None:
        self.levels, self.median = check_levels(levels), median_of(levels)
        normal = NormalDist(sigma=START)
        gaps = [normal.inv_cdf(b) - normal.inv_cdf(a) for a, b in itertools.pairwise(self.levels)]
        #: By gap: the inverse of softplus, so that a head that says 0 says a normal distribution.
        self.start = [math.log(math.expm1(gap)) for gap in gaps]

    def __call__(self, raw: Tensor) -> Tensor:
        """``(..., levels)`` to the same shape."""
        parts, m = raw.unbind(-1), self.median
        steps = [F.softplus(r + s) for r, s in zip((*parts[:m], *parts[m + 1 :]), self.start, strict=True)]
        below = itertools.accumulate(steps[:m][::-1], torch.sub, initial=parts[m])
        above = itertools.accumulate(steps[m:], torch.add, initial=parts[m])
        return torch.stack([*list(below)[:0:-1], *above], -1)


class QuantileSpread(nn.Module):
    """Quantiles around any point forecast: the forecast is the median, the steps follow from the window's restlessness.

    ::

        r[h, c, i] = a[h, i] + b[c, i] + w_i . (log deviation, log change)

    with the deviation of channel c in the window and its root mean squared change from step to step; a, b and w start
    at 0.

    Args:
        horizon, channels: of the forecast.
        levels: rising, 0.5 among them.
        eps: added to deviation and change, in units of the input.
    """

    def __init__(self, horizon: int, channels: int, levels: Sequence[float], eps: float = 1e-3) -> None:
        super().__init__()
        self.order, self.eps = QuantileOrder(levels), eps
        gaps = len(levels) - 1
        self.by_step = nn.Parameter(torch.zeros(horizon, gaps))
        self.by_channel = nn.Parameter(torch.zeros(channels, gaps))
        self.by_window = nn.Parameter(torch.zeros(2, gaps))

    def forward(self, forecast: Tensor, x: Tensor) -> Tensor:
        """``(B, horizon, C)`` and the window ``(B, T, C)`` to ``(B, horizon, C, levels)``."""
        deviation = x.var(1, unbiased=False).clamp_min(0).add(self.eps**2).sqrt()
        change = x.diff(dim=1, prepend=x[:, :1]).square().mean(1).add(self.eps**2).sqrt()
        window = torch.stack([deviation, change], -1).log() @ self.by_window
        steps = self.by_step[:, None] + self.by_channel + window[:, None]
        m = self.order.median
        return self.order(torch.cat([steps[..., :m], forecast[..., None], steps[..., m:]], -1))


class ResidualQuantiles(nn.Module):
    """Quantiles around a forecaster that does not learn: those of its residuals in training, by step and channel.

    Until :meth:`fit` was called they are all the forecast itself.

    Args:
        horizon, channels: of the forecast.
        levels: rising.
    """

    offsets: Tensor

    def __init__(self, horizon: int, channels: int, levels: Sequence[float]) -> None:
        super().__init__()
        self.levels = check_levels(levels)
        self.register_buffer("offsets", torch.zeros(horizon, channels, len(levels)))

    def forward(self, forecast: Tensor, x: Tensor) -> Tensor:
        """``(B, horizon, C)`` to ``(B, horizon, C, levels)``; the window is not looked at."""
        return forecast[..., None] + self.offsets

    @torch.no_grad()
    def fit(self, residuals: Tensor) -> None:
        """Take the empirical quantiles (linear between order statistics) of ``(windows, horizon, C)`` residuals.

        NaN marks what is not known; where nothing is, the offsets stay 0.
        """
        levels = torch.tensor(self.levels, dtype=residuals.dtype)
        for step in range(residuals.shape[1]):
            found = torch.nanquantile(residuals[:, step], levels, 0)
            self.offsets[step] = found.T.nan_to_num(0.0).cummax(-1).values.to(self.offsets)
