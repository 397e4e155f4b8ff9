"""Claims of "Polarized Self-Attention: Towards High-quality Pixel-wise Regression" (arXiv 2107.00782)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..measure.flops import count_flops
from ..mixers.polarized_self_attention import PolarizedSelfAttention
from ..ops import backend
from . import Measurement, claim


class _Largest(TorchDispatchMode):
    """The largest number of numbers that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return made


@claim(
    "polarized_self_attention",
    kind="exact",
    says="Each branch collapses one dimension fully and keeps the other: a gate for each channel over C/2 features "
    "that is constant over pixels, and a gate for each pixel that is constant over channels.",
)
def gates_are_polarized() -> Measurement:
    """Read off input and output: gates g_c + g_p, or g_c g_p, have no interaction of channel and pixel, whose largest
    part is measured; and nothing made is larger than the map. Seen failing (0.002) with a hundredth of a gate of
    both."""
    worst, largest = 0.0, 0
    for layout in ("parallel", "sequential"):
        torch.manual_seed(0)
        mixer = PolarizedSelfAttention(32, layout=layout).double()  # type: ignore[arg-type]
        x = torch.rand(2, 20, 17, 32, dtype=torch.float64) + 0.5
        with torch.no_grad(), _Largest() as seen:
            gates = mixer(x) / x
        gates = (gates if layout == "parallel" else gates.log()).flatten(1, 2)
        interaction = gates - gates.mean(1, keepdim=True) - gates.mean(2, keepdim=True) + gates.mean((1, 2), True)
        worst = max(worst, float(interaction.abs().max()))
        largest = max(largest, seen.numbers)
    half = mixer.v_right.out_features == mixer.q_left.out_features == 16
    detail = f"interaction of channels and pixels; at most. The largest tensor is {largest / x.numel():g} maps"
    return Measurement(worst, 1e-12, worst <= 1e-12 and half and largest <= x.numel(), detail)


@claim(
    "polarized_self_attention",
    kind="scaling",
    says="It is cheap: the parallel form has 4,656 weights at 48 channels, and its cost grows linearly with pixels.",
)
def cheap() -> Measurement:
    """The exponent of FLOPs from 32 x 32 to 256 x 256, of both layouts. Seen failing (2.0) with attention of pixels in
    place of the branches, and with a bias (4,657 weights)."""
    exponents = []
    for layout in ("parallel", "sequential"):
        counts = []
        for side in (32, 256):
            with torch.device("meta"), backend("torch"):
                mixer = PolarizedSelfAttention(48, layout=layout)  # type: ignore[arg-type]
                x = torch.empty(1, side, side, 48)
                counts.append(count_flops(lambda m=mixer, x=x: m(x)))
        exponents.append(math.log(counts[1] / counts[0]) / math.log(64))
    weights = sum(p.numel() for p in PolarizedSelfAttention(48).parameters())
    passed = max(exponents) <= 1.001 and min(exponents) >= 0.9 and weights == 4656
    return Measurement(
        max(exponents), 1.001, passed, f"largest exponent of FLOPs in pixels, at most; {weights:,} weights"
    )


@claim(
    "polarized_self_attention",
    kind="needs-pretrained",
    says="It lifts standard baselines by 2 to 4 points and the state of the art by 1 to 2 points in pose estimation "
    "and semantic segmentation.",
)
def lifts_baselines() -> Measurement:
    """Would need COCO and Cityscapes, and weeks of training: the authors' weights for poses were not released."""
    return Measurement(math.nan, 2.0, False, "needs COCO and Cityscapes, and the authors' weights")
