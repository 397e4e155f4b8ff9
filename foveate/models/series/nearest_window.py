"""The nearest training window: a series is unusual where it resembles nothing seen before.

A window is reconstructed by the training window nearest to it, all channels and steps together::

    y = w_i,   i = argmin over training windows of |x - w_i|^2

so the sum of its squared errors is the squared distance to the nearest neighbour: the discord of Keogh, Lin and Fu
(ICDM 2005), searched in a training part that is taken to be usual (what matrix profiles call an AB-join). Windows are
not normalised one by one: a change of level is unusual, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ...errors import invalid
from ...registry import check_options, register
from ...spec import ModelSpec
from ..base import Model, check_series


@register("model", "nearest_window")
class NearestWindow(Model):
    """Nearest window: keeps training windows, and answers with the one that resembles its input most.

    Args:
        seq_len: steps T of the window.
        enc_in: variables C.
        keep: training windows to keep, spread evenly if there are more. Time and memory are proportional to it.

    Raises:
        InvalidValue: a size below 1.
    """

    spec = ModelSpec(reads="series", tasks=("detect-anomalies",), trains=False, baseline=True, onnx=True)
    recipe: ClassVar[str] = "foveate.tasks.fit.FitOnce"
    bank: Tensor
    count: Tensor

    def __init__(self, seq_len: int, enc_in: int, keep: int = 4096) -> None:
        super().__init__()
        for option, size in {"seq_len": seq_len, "enc_in": enc_in, "keep": keep}.items():
            if size < 1:
                raise invalid(option, size, "it must be at least 1")
        self.seq_len, self.enc_in, self.keep = seq_len, enc_in, keep
        self.register_buffer("bank", torch.zeros(keep, seq_len * enc_in))
        self.register_buffer("count", torch.tensor(0))

    @property
    def fit_samples(self) -> int:
        """How many training windows :meth:`fit` wants."""
        return self.keep

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        """The baseline for ``info`` (lookback, channels)."""
        settings = {**options, "seq_len": info.lookback, "enc_in": info.channels}
        check_options("nearest_window", cls, settings)
        return cls(**settings)

    def fit(self, batch: Mapping[str, Tensor]) -> None:
        """Keep the windows ``x`` ``(N, T, C)`` of a batch, the first ``keep``."""
        windows = batch["x"][: self.keep].flatten(1)
        self.bank[: len(windows)] = windows
        self.count.fill_(len(windows))

    def forward(self, x: Tensor) -> Tensor:
        """The kept window nearest to each of float ``(B, seq_len, enc_in)``, of the same shape; zeros before a fit.

        Raises:
            InvalidValue: ``x`` has another shape.
            InvalidType: ``x`` is not floating point.
        """
        check_series("NearestWindow", x, self.seq_len, self.enc_in)
        bank = self.bank.to(x.dtype)
        # |x|^2 is the same for every window: half the rest of the squared distance orders them.
        distance = bank.square().sum(1) / 2 - x.flatten(1) @ bank.T
        distance = distance.masked_fill(torch.arange(self.keep, device=x.device) >= self.count, torch.inf)
        return bank[distance.argmin(1)].unflatten(1, (self.seq_len, self.enc_in))
