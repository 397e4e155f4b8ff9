"""Quantile forecasts that cannot cross: levels, heads, and the spread of residuals.

A head gives one number per level; the one at the level 0.5 is the median, each of the others a step away from the
level beside it, and a step is never negative::

    q[m] = r[m]        q[m + i] = q[m + i - 1] + softplus(r[m + i])        q[m - i] = q[m - i + 1] - softplus(r[m - i])

Adding and subtracting what is not negative, scaling by what is positive and rounding are all monotone, so that the
levels are in order to the last bit, in every unit. Source: incremental quantile functions (Park et al., AISTATS 2022,
arXiv 2111.06581), started at the median.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InvalidType, InvalidValue

MEDIAN = 0.5


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


def in_order(raw: Tensor, median: int) -> Tensor:
    """Quantiles ``(..., levels)`` from the numbers of a head; ``median`` is the place of 0.5 among the levels."""
    parts = raw.unbind(-1)
    above = itertools.accumulate((F.softplus(r) for r in parts[median + 1 :]), torch.add, initial=parts[median])
    below = itertools.accumulate((F.softplus(r) for r in parts[:median][::-1]), torch.sub, initial=parts[median])
    return torch.stack([*list(below)[:0:-1], *above], -1)


class QuantileSpread(nn.Module):
    """Quantiles around any point forecast: the forecast is the median, the steps follow from the window's restlessness.

    ::

        step[h, c, i] = softplus(a[h, i] + b[c, i] + w_i . (log deviation, log change))

    with the deviation of channel c in the window and its root mean squared change from step to step. At the start the
    steps are those of a normal distribution with deviation 0.5.

    Args:
        horizon, channels: of the forecast.
        levels: rising, 0.5 among them.
        eps: added to deviation and change, in units of the input.
    """

    def __init__(self, horizon: int, channels: int, levels: Sequence[float], eps: float = 1e-3) -> None:
        super().__init__()
        self.median, self.eps = median_of(levels), eps
        normal = torch.special.ndtri(torch.tensor(list(levels), dtype=torch.float64)).diff() * 0.5
        start = normal.expm1().log().to(torch.get_default_dtype())  # the inverse of softplus
        self.by_step = nn.Parameter(start.repeat(horizon, 1))
        self.by_channel = nn.Parameter(torch.zeros(channels, len(start)))
        self.by_window = nn.Parameter(torch.zeros(2, len(start)))

    def forward(self, forecast: Tensor, x: Tensor) -> Tensor:
        """``(B, horizon, C)`` and the window ``(B, T, C)`` to ``(B, horizon, C, levels)``."""
        deviation = x.var(1, unbiased=False).clamp_min(0).add(self.eps**2).sqrt()
        change = x.diff(dim=1, prepend=x[:, :1]).square().mean(1).add(self.eps**2).sqrt()
        window = torch.stack([deviation, change], -1).log() @ self.by_window
        steps = self.by_step[:, None] + self.by_channel + window[:, None]
        raw = torch.cat([steps[..., : self.median], forecast[..., None], steps[..., self.median :]], -1)
        return in_order(raw, self.median)


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
