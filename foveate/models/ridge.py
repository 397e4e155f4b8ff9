"""The ridge classifier that baselines are: a linear model of standardised features, fitted in one solve.

Each class is told from all others by least squares on targets of 1 and -1, with a penalty on the weights (Hoerl and
Kennard, 1970)::

    f = (features - center) / spread        W = argmin sum |f W + bias - target|^2 + ridge N |W|^2
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fit_ridge(features: Tensor, labels: Tensor, classes: int, ridge: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Solve for a classifier.

    Args:
        features: float64 ``(N, F)``.
        labels: int64 ``(N,)``.
        classes: number of classes C.
        ridge: penalty per sample, positive.

    Returns:
        ``center (F,)``, ``spread (F,)`` (infinite for features that do not vary), ``weight (F, C)``, ``bias (C,)``.
    """
    center = features.mean(0)
    spread = features.std(0, unbiased=False)
    spread = torch.where(spread > 1e-6 * features.abs().amax(0).clamp_min(1e-6), spread, torch.inf)
    f = (features - center) / spread
    target = 2 * F.one_hot(labels, classes).double() - 1
    bias = target.mean(0)
    # Features may outnumber samples by far: the smaller of the two equal forms is solved.
    penalty = ridge * len(f)
    if f.shape[1] <= len(f):
        gram = f.T @ f
        weight = torch.linalg.solve(gram + penalty * torch.eye(len(gram)).to(gram), f.T @ (target - bias))
    else:
        gram = f @ f.T
        weight = f.T @ torch.linalg.solve(gram + penalty * torch.eye(len(gram)).to(gram), target - bias)
    return center, spread, weight, bias
