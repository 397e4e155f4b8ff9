"""Claims of "A ConvNet for the 2020s" (arXiv 2201.03545)."""

from __future__ import annotations

import math

import torch

from ..models.vision.convnext import ConvNeXt, ConvNeXtBlock
from ..models.vision.table import count, worst_difference
from . import Measurement, claim


@claim("convnext", kind="exact", says="A block sees 7 x 7 places, and no more.")
def a_block_sees_seven_by_seven() -> Measurement:
    """Places whose output changes with one input place. Seen failing (25) with a kernel of 5 x 5."""
    torch.manual_seed(0)
    block, x = ConvNeXtBlock(6, 1.0, 0.0), torch.randn(1, 15, 15, 6)
    changed = x.clone()
    changed[:, 7, 7] += 1
    with torch.no_grad():
        moved = (block(x) != block(changed)).any(-1)[0]
    inside = int(moved[4:11, 4:11].sum())
    return Measurement(
        inside, 49, inside == 49 == int(moved.sum()), "places that change, all within 3 rows and columns"
    )


@claim(
    "convnext",
    kind="exact",
    says="It is a convolutional network: an image moved by its stride gives a map moved by one.",
)
def a_moved_image_gives_a_moved_map() -> Measurement:
    """Away from the edges. Seen failing (1.2) with an image moved by one pixel less."""
    torch.manual_seed(0)
    model = ConvNeXt(dims=(8, 12), depths=(1, 1), layer_scale=1.0).eval()
    x = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        y, moved = (model.pyramid(image)[-1] for image in (x, x.roll((8, 16), (2, 3))))
    there = y.roll((1, 2), (2, 3))[..., 8:-8, 8:-8]
    worst = float((moved[..., 8:-8, 8:-8] - there).abs().max() / there.abs().max())
    return Measurement.at_most(worst, 1e-5, "relative deviation; at most")


@claim(
    "convnext",
    kind="exact",
    says="Parameters and multiply-adds of all published sizes are those of the paper's table 1.",
)
def sizes_are_the_published_ones() -> Measurement:
    """Seen failing (0.42) with a kernel of 31 x 31."""
    worst, what = worst_difference("convnext")
    return Measurement.at_most(worst, 0.01, f"largest relative difference ({what}); at most")


@claim("convnext", kind="exact", says="At every size it costs what a Swin Transformer of the same name costs.")
def costs_what_swin_costs() -> Measurement:
    """Multiply-adds of tiny, small, base and large at 224 pixels. Seen failing (6.7) with swin_tiny for every size."""
    names = ("tiny", "small", "base", "large")
    apart = [abs(count(f"convnext_{n}").macs / count(f"swin_{n}").macs - 1) for n in names]
    return Measurement.at_most(max(apart), 0.02, "largest relative difference; at most")


@claim(
    "convnext",
    kind="scaling",
    says="The cost is linear in pixels: four times the pixels, four times the multiply-adds.",
)
def linear_in_pixels() -> Measurement:
    """Seen failing (4.5) at 120 against 240 pixels, of which the strides cut some off."""
    ratio = count("convnext_tiny", 448).macs / count("convnext_tiny", 224).macs
    return Measurement(ratio, 4.0, abs(ratio - 4) < 0.01, "multiply-adds at 448 against 224 pixels; within 0.01 of")


@claim(
    "convnext",
    kind="needs-pretrained",
    says="ConvNeXt-XL reaches 87.8 % top-1 on ImageNet and is better than Swin on COCO and ADE20K.",
)
def published_scores() -> Measurement:
    """Cannot be checked here."""
    return Measurement(math.nan, 87.8, False, "not measured: it needs ImageNet, COCO, ADE20K and the released weights.")
