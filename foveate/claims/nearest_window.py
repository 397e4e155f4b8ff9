"""What the nearest training window is exact for."""

from __future__ import annotations

import torch

from ..models.series.nearest_window import NearestWindow
from . import Measurement, claim


def _fitted(windows: torch.Tensor) -> NearestWindow:
    model = NearestWindow(windows.shape[1], windows.shape[2], keep=len(windows))
    model.fit({"x": windows})
    return model


@claim("nearest_window", kind="exact", says="A window that was seen before is reconstructed without error.")
def what_was_seen_is_reconstructed() -> Measurement:
    """All windows of a random walk. Seen failing with the farthest window in place of the nearest (error 51)."""
    walk = torch.randn(600, 2, generator=torch.Generator().manual_seed(0)).cumsum(0)
    windows = walk.unfold(0, 50, 1).transpose(1, 2).contiguous()
    error = (_fitted(windows)(windows) - windows).abs().max()
    return Measurement.at_most(error, 0.0, "largest error on 551 windows; none allowed")


@claim(
    "nearest_window",
    kind="exact",
    says="The sum of a window's squared errors is its squared distance to the nearest training window, by brute force.",
)
def errors_are_distances_to_the_nearest() -> Measurement:
    """300 new windows. Seen failing with half of the training windows left out (off by 0.39)."""
    generator = torch.Generator().manual_seed(0)
    train, new = torch.randn(500, 20, 3, generator=generator), torch.randn(300, 20, 3, generator=generator)
    ours = (_fitted(train)(new) - new).double().square().sum((1, 2))
    brute = torch.stack([(train - x).double().square().sum((1, 2)).min() for x in new])
    return Measurement.at_most((ours / brute - 1).abs().max(), 1e-4, "largest relative difference; at most")
