"""The control of benchmarks/series.py: the network of Aaren and of the Transformer without any attention.

A file of its own, because a comparison goes on only as long as its contestants' files stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveate.mixers import Mixer, MixerSpec
from foveate.models.series.step_encoder import StepEncoder
from foveate.spec import ModelSpec


class Silence(Mixer):
    """A mixer that says nothing: every token stays by itself."""

    spec = MixerSpec(causal="strict")

    def __init__(self, dim: int, *, num_heads: int = 8, causal: bool = True) -> None:
        super().__init__(dim, causal=causal)

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        """Zeros like ``x``."""
        return torch.zeros_like(x)


class NoAttention(StepEncoder):
    """Embedding, feed-forwards and head as in the two others; steps meet in the mean of a classifier only."""

    spec = ModelSpec(reads="series", tasks=("forecast", "classify-series"))
    mixer = Silence
