"""Claims of "DaViT: Dual Attention Vision Transformers" (arXiv 2204.03645)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..mixers.base import Mixer
from ..mixers.davit import ChannelAttention, WindowAttention
from ..models.vision.davit import Block
from ..models.vision.table import count, worst_difference
from . import Measurement, claim
from ._far_marks import Marks, accuracy


def _read_by(mixer: Mixer, grid: tuple[int, int], place: tuple[int, int]) -> Tensor:
    """Bool ``grid``: the places whose content an output place depends on."""
    x = torch.randn(1, *grid, mixer.dim, dtype=torch.float64, requires_grad=True)
    y = mixer.double()(x)[0, place[0], place[1]]
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    return gradient[0].abs().amax(-1) > 0


@claim(
    "davit",
    kind="exact",
    says="One channel attention sees globally, every output place every input place; one window attention sees its "
    "window and nothing else.",
)
def channels_see_everything_and_windows_their_window() -> Measurement:
    """20 x 20 places. Seen failing (399) with scores of the query's own place alone."""
    grid, place = (20, 20), (3, 11)
    window = torch.zeros(grid, dtype=torch.bool)
    window[0:5, 10:15] = True
    far = _read_by(ChannelAttention(24, num_heads=3), grid, place)
    near = _read_by(WindowAttention(24, num_heads=3, window=5), grid, place)
    wrong = int((~far).sum()) + int((near != window).sum())
    return Measurement.at_most(wrong, 0, "places seen or not seen against the claim; none allowed")


@claim(
    "davit",
    kind="exact",
    says="Channels are the tokens: the attention matrix has the square of a group's width as its entries whatever the "
    "number of places, and places that change their order change only the order of the outputs.",
)
def channels_are_the_tokens() -> Measurement:
    """Grids of 9, 400 and 1,200 places. Seen failing (0.65) with scores that weigh places by their number."""
    mixer, worst = ChannelAttention(24, num_heads=3).double(), 0.0
    with torch.no_grad():
        for grid in ((3, 3), (20, 20), (30, 40)):
            x = torch.randn(1, *grid, 24, dtype=torch.float64)
            if mixer.attention(x).shape != (1, 3, 8, 8):
                worst = math.inf
            order = torch.randperm(math.prod(grid))
            moved = x.flatten(1, 2)[:, order].unflatten(1, grid)
            y, expected = mixer(moved).flatten(1, 2), mixer(x).flatten(1, 2)[:, order]
            worst = max(worst, float((y - expected).abs().max() / expected.abs().max()))
    return Measurement.at_most(worst, 1e-12, "largest relative deviation after a permutation of places; at most")


@claim(
    "davit",
    kind="scaling",
    says="The whole model is linear in pixels: twice the side takes four times the FLOPs.",
)
def linear_in_pixels() -> Measurement:
    """Tiny at 224 and 448 pixels, where windows fit. Seen failing (5.3) with windows of half the map's side."""
    ratio = count("davit_tiny", 448).macs / count("davit_tiny", 224).macs
    return Measurement(ratio, 4.0, abs(ratio - 4) <= 0.02, "multiply-adds at 448 against 224 pixels; within 0.02 of")


@claim(
    "davit",
    kind="exact",
    says="Parameters and multiply-adds of Tiny, Small, Base and Large are the published ones; at 1,000 classes the "
    "first three have 28,360,168, 49,745,896 and 87,954,408 parameters.",
)
def sizes_are_the_published_ones() -> Measurement:
    """Infinite where those three are off. Seen failing (inf) with feed-forwards of 3.5 times the width."""
    worst, what = worst_difference("davit")
    exact = {"davit_tiny": 28_360_168, "davit_small": 49_745_896, "davit_base": 87_954_408}
    if any(count(name).parameters != number for name, number in exact.items()):
        worst = math.inf
    return Measurement.at_most(worst, 0.01, f"largest relative difference ({what}); at most")


def _dual(channels: bool, seed: int) -> float:
    """Accuracy of two blocks: windows, then channels or windows again."""
    torch.manual_seed(seed)
    first, second = (WindowAttention(16, num_heads=2, window=2) for _ in range(2))
    other = ChannelAttention(16, num_heads=2, scores="qk") if channels else second
    return accuracy(Marks(16, Block(16, first, 32), Block(16, other, 32)), seed, steps=250, edge=3, lr=5e-3)


@claim(
    "davit",
    kind="learned",
    says="The two attentions complement each other: with both, far places are related better than with windows alone.",
)
def both_attentions_relate_far_places() -> Measurement:
    """Are two far squares alike? 12 x 12 places, windows of 2, so that without channels only the last convolution joins
    what comes from both squares; the paper's channel attention. The worst of three seeds with both against the best
    with windows. Seen failing (-0.32) with windows in both."""
    worst = min(_dual(True, seed) for seed in range(3))
    best = max(_dual(False, seed) for seed in range(3))
    detail = f"accuracy {worst:.2f} with both (worst of 3) less {best:.2f} with windows alone (best of 3); at least"
    return Measurement.at_least(worst - best, 0.08, detail)


@claim(
    "davit",
    kind="needs-pretrained",
    says="Tiny, Small and Base reach 82.8, 84.2 and 84.6 % top-1 on ImageNet-1K; Giant, pretrained on 1.5 billion "
    "pairs, 90.4 %.",
)
def imagenet_accuracy() -> Measurement:
    """Cannot be checked here."""
    need = "not measured: it needs ImageNet-1K and the released weights (timm/davit_tiny.msft_in1k and others); those "
    return Measurement(math.nan, 82.8, False, need + "of Giant were never released.")
