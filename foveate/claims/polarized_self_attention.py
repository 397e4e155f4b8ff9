"""Claims of "Polarized Self-Attention: Towards High-quality Pixel-wise Regression" (arXiv 2107.00782)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
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


class _Heatmap(nn.Module):
    """Four convolutions 3 x 3, with attention, or without, behind the second."""

    def __init__(self, layout: str | None) -> None:
        super().__init__()
        first, last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 1, 3, padding=1)
        self.before = nn.Sequential(first, nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.after = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), last)
        self.mix = None if layout is None else PolarizedSelfAttention(16, layout=layout, variant="paper")  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return self.after(x if self.mix is None else self.mix(x.movedim(1, -1)).movedim(-1, 1))


def _dots(samples: int, generator: torch.Generator, side: int = 32) -> tuple[Tensor, Tensor]:
    """Blurred dots in two channels and one in a third, light or dark, which says whose heatmap is wanted."""
    at = torch.rand(samples, 5, 2, 1, generator=generator) * (side - 8) + 4
    near = torch.exp(-((torch.arange(side) - at).square()) / 4.5)
    ink = near[:, :, 0, :, None] * near[:, :, 1, None, :]
    first = torch.randint(2, (samples, 1, 1), generator=generator).bool()
    dots, distractors = ink[:, :2].amax(1), ink[:, 2:4].amax(1)
    x = torch.stack([dots, distractors, torch.where(first, ink[:, 4], -ink[:, 4])], 1)
    return x + 0.05 * torch.randn(x.shape, generator=generator), torch.where(first, dots, distractors)[:, None]


def _error(layout: str | None, seed: int, steps: int = 400) -> float:
    torch.manual_seed(seed)
    generator, model = torch.Generator().manual_seed(seed), _Heatmap(layout)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(steps):
        x, y = _dots(16, generator)
        optimiser.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimiser.step()
    x, y = _dots(256, torch.Generator().manual_seed(12345))
    with torch.no_grad():
        return float(F.mse_loss(model(x), y))


@claim(
    "polarized_self_attention",
    kind="learned",
    says="It helps pixel-wise regression, and the parallel and the sequential layout differ marginally.",
)
def both_layouts_regress_better() -> Measurement:
    """Heatmaps of dots that a mark far away chooses, by four convolutions with attention behind the second, as in the
    paper: squared errors as shares of those without it, the worst of three seeds, both layouts. Seen failing (1.0) with
    the release's sequential form, whose bottleneck has two of 16 channels."""
    plain = [_error(None, seed) for seed in range(3)]
    shares = {
        layout: max(_error(layout, seed) / plain[seed] for seed in range(3)) for layout in ("parallel", "sequential")
    }
    worst, apart = max(shares.values()), abs(shares["parallel"] - shares["sequential"])
    detail = f"share of the squared error without attention, at most; layouts are {apart:.2f} apart, at most 0.15"
    return Measurement(worst, 0.9, worst <= 0.9 and apart <= 0.15, detail)


@claim(
    "polarized_self_attention",
    kind="needs-pretrained",
    says="It lifts standard baselines by 2 to 4 points and the state of the art by 1 to 2 points in pose estimation "
    "and semantic segmentation.",
)
def lifts_baselines() -> Measurement:
    """Would need COCO and Cityscapes, and weeks of training: the authors' weights for poses were not released."""
    return Measurement(math.nan, 2.0, False, "needs COCO and Cityscapes, and the authors' weights")
