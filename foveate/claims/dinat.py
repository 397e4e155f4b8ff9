"""Claims of "Dilated Neighborhood Attention Transformer" (arXiv 2209.15001)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..mixers.dinat import NeighborhoodAttention
from ..models.vision.table import count, worst_difference
from ..ops.shifted_window_attention import shifted_window_attention
from . import Measurement, claim
from ._marked_pixels import share_told


def _noisy(module: nn.Module) -> None:
    """Move every parameter from where it starts, so that no zero hides a fault."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


def _reach(dilations: list[int], length: int) -> int:
    """Inputs that the middle output of layers with windows of 3 has a gradient of."""
    layers = [NeighborhoodAttention(8, num_heads=2, rank=1, window=3, dilation=d).double() for d in dilations]
    x = torch.randn(1, length, 8, dtype=torch.float64, requires_grad=True)
    y: Tensor = x
    for layer in layers:
        _noisy(layer)
        y = layer(y)
    (gradient,) = torch.autograd.grad(y[:, length // 2].square().sum(), x)
    return int((gradient.abs().sum(-1) > 0).sum())


@claim(
    "dinat",
    kind="exact",
    says="With dilations that grow by K the receptive field is K to the power of the layers, without them it grows by "
    "K - 1 a layer.",
)
def receptive_field_is_exponential() -> Measurement:
    """Windows of 3, 1 to 4 layers. Seen failing (3) with windows that ignore the dilation."""
    torch.manual_seed(0)
    wrong = 0
    for layers in (1, 2, 3, 4):
        length = 3**layers + 41
        wrong += _reach([3**i for i in range(layers)], length) != 3**layers
        wrong += _reach([1] * layers, length) != 2 * layers + 1
    return Measurement.at_most(wrong, 0, "stacks that reach another number of tokens; none allowed")


@claim("dinat", kind="exact", says="Dilation costs nothing: the same operations, whatever the distance of the keys.")
def dilation_is_free() -> Measurement:
    """The published sizes at 224 pixels. Seen failing (2.1e8) with the boxes of the op's form in place of its pairs."""
    apart = max(
        abs(count(f"dinat_{size}").macs - count(f"dinat_{size}", dilations=None).macs) for size in ("mini", "small")
    )
    return Measurement.at_most(apart, 0, "multiply-adds of DiNAT less those with all dilations 1; none allowed")


@claim(
    "dinat",
    kind="exact",
    says="Dilation d is neighborhood attention on each of the d x d sub-grids, where d does not divide the grid too.",
)
def dilation_is_attention_on_subgrids() -> Measurement:
    """Seen failing (1.3) with a dilation one smaller in the layer."""
    torch.manual_seed(0)
    worst = 0.0
    for grid, d in (((12, 12), 2), ((13, 17), 4), ((10, 11), 3)):
        dilated = NeighborhoodAttention(16, num_heads=2, window=3, dilation=d).double()
        plain = NeighborhoodAttention(16, num_heads=2, window=3).double()
        _noisy(dilated)
        plain.load_state_dict(dilated.state_dict())
        x = torch.randn(2, *grid, 16, dtype=torch.float64)
        expected = torch.empty_like(x)
        with torch.no_grad():
            for a in range(d):
                for b in range(d):
                    expected[:, a::d, b::d] = plain(x[:, a::d, b::d])
            worst = max(worst, float((dilated(x) - expected).abs().max()))
    return Measurement.at_most(worst, 1e-12, "largest deviation, three grids")


@claim("dinat", kind="exact", says="A window as long as the grid is self attention.")
def whole_window_is_self_attention() -> Measurement:
    """Seen failing (0.5) with a window two shorter."""
    torch.manual_seed(0)
    worst = 0.0
    for grid in ((9,), (7, 7), (3, 5, 3)):
        layer = NeighborhoodAttention(16, num_heads=2, rank=len(grid), window=grid, rel_pos_bias=False).double()
        _noisy(layer)
        x = torch.randn(2, *grid, 16, dtype=torch.float64)
        with torch.no_grad():
            q, k, v = (m.unflatten(-1, (2, 8)).transpose(1, 2) for m in layer.qkv(x).flatten(1, -2).chunk(3, -1))
            dense = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            worst = max(worst, float((layer(x).flatten(1, -2) - layer.proj(dense)).abs().max()))
    return Measurement.at_most(worst, 1e-12, "largest deviation from dense attention, grids of 1 to 3 axes")


@claim("dinat", kind="scaling", says="Cost is linear in pixels: twice the side takes four times the FLOPs.")
def cost_is_linear() -> Measurement:
    """The layer's visible pairs. Seen failing (4) with a window that grows with the grid."""
    layer = NeighborhoodAttention(64, num_heads=2, window=7, dilation=2)
    flops = [layer.visible_flops((side, side)) for side in (56, 112)]
    return Measurement.at_most(abs(flops[1] / flops[0] - 4), 0.0, f"4 apart from {flops[1] / flops[0]:.4f}")


@claim(
    "dinat",
    kind="exact",
    says="Away from the edges it is equivariant to shifts of any length, which blocked windows are not.",
)
def interior_is_equivariant() -> Measurement:
    """Seen failing (0.7) with blocked windows, whose deviation is part of the check."""
    torch.manual_seed(0)
    layer = NeighborhoodAttention(16, num_heads=2, window=5, dilation=2).double()
    _noisy(layer)
    x, shift, edge = torch.randn(1, 40, 40, 16, dtype=torch.float64), 3, 10
    moved = x.roll((shift, shift), (1, 2))

    def blocked(x: Tensor) -> Tensor:
        q, k, v = layer.heads_of(x)
        return layer.proj(shifted_window_attention(q, k, v, 5).movedim(1, -2).flatten(-2))

    def deviation(run: Callable[[Tensor], Tensor]) -> float:
        with torch.no_grad():
            here, there = run(x), run(moved)
        inner = slice(edge, 40 - edge)
        back = there.roll((-shift, -shift), (1, 2))
        return float((back - here)[:, inner, inner].abs().max())

    ours, windows = deviation(layer), deviation(blocked)
    found = ours if windows > 1e-2 else math.inf
    return Measurement.at_most(found, 1e-12, f"largest deviation after a shift by 3; blocked windows: {windows:.2f}")


@claim(
    "dinat",
    kind="exact",
    says="NAT and DiNAT have 20, 28, 51 and 90 million parameters and 2.7, 4.3, 7.8 and 13.7 billion multiply-adds, "
    "Mini to Base, and DiNAT-Large 200 million; DiNAT_s and the isotropic sizes as their tables say.",
)
def published_sizes() -> Measurement:
    """All 20 sizes. Seen failing (0.09) with the boxes of the op's form in place of its pairs."""
    found, where = worst_difference("dinat")
    return Measurement.at_most(found, 0.01, f"largest relative difference to the printed tables ({where})")


@claim(
    "dinat",
    kind="learned",
    says="Nearest and spaced keys in turn read further than nearest ones alone: 15 points more colours of a pixel far "
    "away are right.",
)
def dilation_reads_far_pixels() -> Measurement:
    """Four layers with windows of 5 must tell at four marked pixels the colour of another, more than 8 pixels away.
    One in four is right by chance. Seen failing (0.0) with the dilation not handed on."""
    shares: list[list[float]] = []
    for dilations in ((1, 4, 1, 4), (1, 1, 1, 1)):
        shares.append([])
        for seed in range(3):
            torch.manual_seed(seed)
            layers = [NeighborhoodAttention(16, num_heads=2, window=5, dilation=d) for d in dilations]
            shares[-1].append(share_told(16, [*layers], seed))
    gain = min(a - b for a, b in zip(*shares, strict=True))
    said = ", ".join(f"{a:.2f} against {b:.2f}" for a, b in zip(*shares, strict=True))
    return Measurement.at_least(gain, 0.15, f"share of right colours more, least of 3 seeds ({said}); at least")


@claim(
    "dinat",
    kind="needs-pretrained",
    says="DiNAT-Large is ahead of Swin-Large by 1.6 box AP and 1.4 mask AP on COCO and 1.4 mIoU on ADE20K, and reaches "
    "58.5 PQ on COCO, 49.4 PQ and 58.1 mIoU on ADE20K and 84.5 mIoU on Cityscapes.",
)
def detection_and_segmentation() -> Measurement:
    """Cannot be checked here."""
    return Measurement(math.nan, 1.0, False, "not measured: it needs the released weights, COCO, ADE20K, Cityscapes.")
