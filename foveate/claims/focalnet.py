"""Claims of "Focal Modulation Networks" (arXiv 2203.11926)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..measure.flops import count_flops
from ..mixers.focalnet import FocalModulation
from ..models.vision.table import count, worst_difference
from ..ops.shifted_window_attention import shifted_window_attention
from . import Measurement, claim
from ._nearest_marker import share_of_nearest

#: Million parameters with 1,000 classes of the sizes for which no operations are printed.
LARGE = {"large_fl3": 207, "large_fl4": 207, "xlarge_fl3": 366, "xlarge_fl4": 366, "huge_fl3": 687, "huge_fl4": 689}


def _without_mean(**options: int) -> FocalModulation:
    """A layer whose gate of the global level is zero."""
    mixer = FocalModulation(8, **options).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        mixer.f.weight[-1], mixer.f.bias[-1] = 0, 0
    return mixer


@claim(
    "focalnet",
    kind="exact",
    says="Self-attention is replaced at similar cost: tiny to base have 28.4 to 88.7 million parameters and 4.4 to "
    "15.4 billion multiply-adds, isotropic ones 5.9 to 87.2 million.",
)
def published_sizes() -> Measurement:
    """Seen failing (0.03) with one level more."""
    found, where = worst_difference("focalnet")
    return Measurement.at_most(found, 0.01, f"largest relative difference to the printed tables ({where})")


@claim(
    "focalnet",
    kind="exact",
    says="The large, extra large and huge sizes have 207, 366, 687 and 689 million parameters.",
)
def large_sizes() -> Measurement:
    """Seen failing (0.03) without the overlapping embeddings."""
    found = {size: count(f"focalnet_{size}", 32).parameters / 1e6 for size in LARGE}
    worst = max(abs(found[size] - printed) / printed for size, printed in LARGE.items())
    return Measurement.at_most(worst, 0.01, "largest relative difference, six sizes with 1,000 classes")


@claim("focalnet", kind="scaling", says="Cost is linear in tokens, and no tensor of token pairs is made.")
def cost_is_linear() -> Measurement:
    """Seen failing (2) with dense attention in the layer's place."""
    with torch.device("meta"):
        mixer = FocalModulation(64, focal_level=3)
        flops = [count_flops(lambda s=side: mixer(torch.empty(1, s, s, 64))) for side in (32, 128)]
    exponent = math.log(flops[1] / flops[0]) / math.log(16)
    return Measurement.at_most(exponent, 1.0 + 1e-9, "exponent of FLOPs in tokens, 32 x 32 to 128 x 128")


@claim(
    "focalnet",
    kind="exact",
    says="Without the global level a token's context is one plus the sum of the filters' widths less one, along each "
    "axis.",
)
def receptive_field_is_that_of_the_filters() -> Measurement:
    """Windows of 3 and 5, 1 to 3 levels. Seen failing (6) with the gate of the mean left as it is."""
    torch.manual_seed(0)
    wrong = 0
    for window in (3, 5):
        for level in (1, 2, 3):
            mixer = _without_mean(focal_window=window, focal_level=level)
            side = mixer.reach + 6
            x = torch.randn(1, side, side, 8, dtype=torch.float64, requires_grad=True)
            (gradient,) = torch.autograd.grad(mixer(x)[:, side // 2, side // 2].square().sum(), x)
            seen = gradient.abs().sum(-1)[0] > 0
            expected = 1 + sum(window + 2 * i - 1 for i in range(level))
            wrong += (int(seen.any(0).sum()), int(seen.any(1).sum())) != (expected, expected)
    return Measurement.at_most(wrong, 0, "layers with another receptive field; none allowed")


@claim(
    "focalnet",
    kind="exact",
    says="Without the global level the layer is equivariant to shifts away from the border, which blocked windows are "
    "not.",
)
def interior_is_equivariant() -> Measurement:
    """Seen failing (1.4) with blocked windows, whose deviation is part of the check."""
    torch.manual_seed(0)
    mixer = _without_mean(focal_window=3, focal_level=3)
    x, edge, shift = torch.randn(1, 32, 32, 8, dtype=torch.float64), 10, 3

    def blocked(x: Tensor) -> Tensor:
        q = x.unflatten(-1, (2, 4)).movedim(-2, 1)
        return shifted_window_attention(q, q, q, 5).movedim(1, -2).flatten(-2)

    def deviation(run: Callable[[Tensor], Tensor]) -> float:
        with torch.no_grad():
            here, there = run(x), run(x.roll((shift, shift), (1, 2)))
        inner = slice(edge, 32 - edge)
        return float((there.roll((-shift, -shift), (1, 2)) - here)[:, inner, inner].abs().max())

    ours, windows = deviation(mixer), deviation(blocked)
    found = ours if windows > 1e-2 else math.inf
    return Measurement.at_most(found, 1e-12, f"largest deviation after a shift by 3; blocked windows: {windows:.2f}")


def _reading(*gates: int, levels: int = 3) -> FocalModulation:
    """A layer of which only these gates are open, and stay so in training; the mean's is the last."""
    mixer = FocalModulation(16, focal_level=levels)
    closed = [2 * 16 + gate for gate in range(levels + 1) if gate not in gates]
    for parameter in (mixer.f.weight, mixer.f.bias):
        with torch.no_grad():
            parameter[closed] = 0
        parameter.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor(closed, dtype=torch.long), 0))
    return mixer


@claim(
    "focalnet",
    kind="learned",
    says="Several levels and the mean together tell the nearest marker's colour where the mean alone and the first "
    "level alone do not: 5 points more places are right.",
)
def levels_and_mean_find_the_nearest_marker() -> Measurement:
    """Two layers, 4 markers on 16 x 16 places, every place is asked. One in four is right by chance. Seen failing
    (0.0) with all gates open and three levels in all forms."""
    forms = {"all": ((0, 1, 2, 3), 3), "mean": ((3,), 3), "first level": ((0,), 1)}
    shares: dict[str, list[float]] = {}
    for name, (gates, levels) in forms.items():
        shares[name] = []
        for seed in range(3):
            torch.manual_seed(seed)
            mixers = [_reading(*gates, levels=levels) for _ in range(2)]
            shares[name].append(share_of_nearest(16, [*mixers], seed))
    gain = min(a - max(others) for a, *others in zip(*shares.values(), strict=True))
    said = "; ".join(f"{name} {', '.join(f'{s:.2f}' for s in each)}" for name, each in shares.items())
    return Measurement.at_least(
        gain, 0.05, f"share of right places more than the better one, 3 seeds ({said}); at least"
    )


@claim(
    "focalnet",
    kind="needs-pretrained",
    says="On ImageNet-1K the tiny network reaches 82.3 % and the base one 83.9 %, large fields beat small ones, and "
    "detectors and segmenters on it are ahead of those on Swin (49.0 against 48.5 box AP, 50.5 against 49.7 mIoU).",
)
def accuracy_on_imagenet() -> Measurement:
    """Cannot be checked here."""
    return Measurement(math.nan, 1.0, False, "not measured: it needs the released weights and ImageNet, COCO, ADE20K.")
