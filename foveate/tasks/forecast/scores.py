"""Scores of forecasts: squared and absolute errors, and what quantiles are worth.

With the pinball loss of a level, ``rho_t(y, q) = max(t (y - q), (t - 1) (y - q))`` (Koenker and Bassett 1978), over
all observed target values y and levels t:

- ``pinball``: the mean of rho, standardised. Training minimises it and validation selects by it.
- ``crps``: the continuous ranked probability score (Gneiting and Raftery 2007), ``2 * integral of rho_t over t``, with
  each level standing for the levels nearest to it: ``2 * sum_i w_i rho_i``, ``w_i`` from the middle between the levels
  i - 1 and i (0 for the first) to that between i and i + 1 (1 for the last). With the median alone it is the mean
  absolute error.
- ``coverage``: the share of values between the lowest and the highest level, both included; it should be the
  difference of these two levels. Not defined for one level.
- ``wql``: the weighted quantile loss as GluonTS reports it, in the user's units:
  ``2 * sum of rho_t / sum of |y|``, averaged over levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import InvalidType, InvalidValue
from ...models.quantiles import MEDIAN, check_levels

_POINT = ("mse", "mae", "mase")


def read_levels(quantiles: str | Sequence[float] | None) -> tuple[float, ...]:
    """Levels from the option, the median put among them where it is missing; () for None.

    Args:
        quantiles: "0.1,0.5,0.9" or numbers, each in (0, 1), rising.

    Raises:
        InvalidType, InvalidValue: they are not; the message says which.
    """
    if quantiles is None:
        return ()
    if isinstance(quantiles, str):
        try:
            quantiles = [float(part) for part in quantiles.split(",")]
        except ValueError:
            raise InvalidValue(f"quantiles={quantiles!r} is not possible: write numbers such as 0.1,0.5,0.9.") from None
    if not isinstance(quantiles, Sequence):
        raise InvalidType(f"quantiles={quantiles!r} is not possible: write numbers such as 0.1,0.5,0.9.")
    levels = check_levels(quantiles)
    if not levels:
        raise InvalidValue("quantiles is empty: give at least one level, such as 0.1,0.5,0.9.")
    return tuple(sorted({*levels, MEDIAN}))


def metrics_of(levels: Sequence[float]) -> tuple[str, ...]:
    """Names of the metrics, the deciding one first."""
    if not levels:
        return _POINT
    return ("pinball", "crps", *(("coverage",) if len(levels) > 1 else ()), "wql", *_POINT)


def pinball(error: Tensor, levels: Tensor) -> Tensor:
    """The loss of each level, ``(..., levels)``, from truth minus quantile of the same shape."""
    return torch.maximum(levels * error, (levels - 1) * error)


def crps_weights(levels: Tensor) -> Tensor:
    """``w`` of the module's docstring, ``(levels,)``; they sum to 1."""
    middles = (levels[1:] + levels[:-1]) / 2
    return torch.cat([middles.new_zeros(1), middles, middles.new_ones(1)]).diff()


class Scores:
    """Collects forecasts beside the truth, batch by batch.

    Args:
        mean, scale: float64 ``(series, targets)``: what brings standardised values back into the user's units.
        levels: of the quantiles; none: point forecasts.
    """

    def __init__(self, mean: Tensor, scale: Tensor, levels: Sequence[float]) -> None:
        self.mean, self.scale = mean, scale
        self.levels = torch.tensor(list(levels), dtype=torch.float64)
        self.median = levels.index(MEDIAN) if levels else None
        self.absolute, self.counts = torch.zeros_like(mean), torch.zeros_like(mean)
        self.squared: list[Tensor] = []
        self.pinball: list[Tensor] = []
        self.by_level = mean.new_zeros(*mean.shape, len(levels))
        self.covered = self.size = 0.0

    def add(self, predicted: Tensor, truth: Tensor, mask: Tensor, series: Tensor) -> None:
        """Windows in order.

        Args:
            predicted: ``(B, horizon, targets)``, with quantiles a last axis of levels.
            truth, mask: ``(B, horizon, targets)``, standardised, and bool, True where it counts.
            series: int64 ``(B,)``, on the CPU.
        """
        predicted, truth = predicted.double(), truth.double()
        if self.median is not None:
            self._add_quantiles(predicted, truth, mask, series)
            predicted = predicted[..., self.median]
        error = torch.where(mask, predicted - truth, 0)
        self.squared.append(error.square().sum(dim=(1, 2)).cpu())
        self.absolute.index_add_(0, series, error.abs().sum(dim=1).cpu())
        self.counts.index_add_(0, series, mask.sum(dim=1).double().cpu())

    def _add_quantiles(self, predicted: Tensor, truth: Tensor, mask: Tensor, series: Tensor) -> None:
        error = truth[..., None] - predicted
        loss = torch.where(mask[..., None], pinball(error, self.levels.to(error.device)), 0).cpu()
        self.pinball.append(loss.mean(-1).sum(dim=(1, 2)))
        self.by_level.index_add_(0, series, loss.sum(dim=1))
        inside = (error[..., 0] >= 0) & (error[..., -1] <= 0)
        self.covered += float((inside & mask).sum())
        size = (truth.cpu() * self.scale[series][:, None] + self.mean[series][:, None]).abs()
        self.size += float(torch.where(mask.cpu(), size, 0).sum())

    def finish(self, naive_error: Tensor) -> tuple[dict[str, float], Tensor]:
        """The metrics, and each window's share of the deciding one: their mean is that metric.

        Args:
            naive_error: ``(series, targets)``, standardised: what MASE divides by, NaN where that is not possible.
        """
        sums, total = torch.cat(self.squared), self.counts.sum()
        metrics = {
            "mse": float(sums.sum() / total),
            "mae": float(self.absolute.sum() / total),
            "mase": self._mase(naive_error),
        }
        if self.median is None:
            return metrics, sums * (len(sums) / total)
        sums, losses = torch.cat(self.pinball), self.by_level.sum(dim=(0, 1))
        quantile = {
            "pinball": float(sums.sum() / total),
            "crps": float(2 * (crps_weights(self.levels) * losses).sum() / total),
            "coverage": self.covered / float(total),
            "wql": self._wql(),
        }
        found = quantile | metrics
        return {name: found[name] for name in metrics_of(self.levels.tolist())}, sums * (len(sums) / total)

    def _mase(self, divisor: Tensor) -> float:
        defined = (self.counts > 0) & ~divisor.isnan()
        if not bool(defined.any()):
            return float("nan")
        return float((self.absolute[defined] / self.counts[defined] / divisor[defined]).mean())

    def _wql(self) -> float:
        loss = (self.by_level * self.scale[..., None]).sum(dim=(0, 1)).mean()
        return float(2 * loss) / self.size if self.size else math.nan
