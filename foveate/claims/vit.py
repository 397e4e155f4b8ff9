"""Claims of "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale" (arXiv 2010.11929)."""

from __future__ import annotations

import math

import torch

from ..models.vision.table import count, worst_difference
from ..models.vision.vit import ViT
from . import Measurement, claim


@claim(
    "vit",
    kind="exact",
    says="What it knows of an image's geometry are its learned positions: without them, shuffled patches are the same.",
)
def blind_without_positions() -> Measurement:
    """Seen failing (0.015) with positions of 0.02."""
    torch.manual_seed(0)
    model, x = ViT(num_classes=5, size=32, patch_size=8, dim=24, depth=2, num_heads=3).eval(), torch.randn(1, 3, 32, 32)
    patches = x.unflatten(3, (4, 8)).unflatten(2, (4, 8)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    shuffled = patches[:, torch.randperm(16)].unflatten(1, (4, 4)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    with torch.no_grad():
        model.pos_embed.zero_()
        y = model(x)
        return Measurement.at_most(float((model(shuffled) - y).abs().max() / y.abs().max()), 1e-5, "deviation; at most")


@claim("vit", kind="exact", says="Positions are interpolated in two dimensions for images of other sizes.")
def positions_follow_the_picture() -> Measurement:
    """Positions that are linear in row and column stay so inside of a finer grid. Seen failing (3.6) with rows and
    columns exchanged."""
    model = ViT(size=64, patch_size=8, dim=2, depth=1, num_heads=1)
    rows, columns = torch.meshgrid(torch.arange(8.0) + 0.5, torch.arange(8.0) + 0.5, indexing="ij")
    with torch.no_grad():
        model.pos_embed[0, 1:] = torch.stack([rows, columns], -1).flatten(0, 1)
        found = model.positions((16, 24))[0, 1:].unflatten(0, (16, 24))
    finer = torch.meshgrid((torch.arange(16) + 0.5) / 2, (torch.arange(24) + 0.5) / 3, indexing="ij")
    inside = (slice(4, -4), slice(6, -6))
    worst = float((found - torch.stack(finer, -1))[inside].abs().max())
    return Measurement.at_most(worst, 1e-3, "deviation in patches, two patches away from the edges; at most")


@claim(
    "vit", kind="exact", says="Parameters and multiply-adds of its sizes are those in the tables of DeiT, PVT and Swin."
)
def sizes_are_the_published_ones() -> Measurement:
    """Seen failing (0.083) with eleven blocks for twelve in the small size."""
    worst, what = worst_difference("vit")
    return Measurement.at_most(worst, 0.01, f"largest relative difference ({what}); at most")


@claim(
    "vit", kind="scaling", says="Every patch attends to every other from the first layer: quadratic cost in patches."
)
def quadratic_in_patches() -> Measurement:
    """Multiply-adds of 1, 2 and 4 times the rows: the second difference is that of the products alone. Seen failing
    (0.917) with eleven blocks."""
    macs = [count("vit_base", (224 * n, 224)).macs for n in (1, 2, 4)]
    tokens = [196 * n + 1 for n in (1, 2, 4)]
    curve = (macs[2] - macs[1]) / (tokens[2] - tokens[1]) - (macs[1] - macs[0]) / (tokens[1] - tokens[0])
    expected = 2 * 12 * 768 * (tokens[2] - tokens[0])  # two products, 12 blocks of 768 channels
    ratio = curve / expected
    return Measurement(
        ratio, 1.0, abs(ratio - 1) < 1e-3, "curvature of counted against attention's own; within 0.001 of"
    )


@claim(
    "vit",
    kind="needs-pretrained",
    says="Pretrained on JFT-300M it reaches 88.55 % top-1 on ImageNet and 94.55 % on CIFAR-100.",
)
def published_scores() -> Measurement:
    """Cannot be checked here."""
    return Measurement(math.nan, 88.55, False, "not measured: it needs JFT-300M, ImageNet and the released weights.")
