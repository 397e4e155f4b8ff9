"""The loss of segmenters and the scores of masks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

#: Label of pixels that count neither in training nor in scores.
IGNORED = 255
_SMOOTH = 1e-5


def dice_and_cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    """Soft Dice loss of all classes but the background, plus cross-entropy.

    ``1 - (2 sum p g + s) / (sum p + sum g + s)`` with ``s = 1e-5``, averaged over samples and classes (Milletari et
    al., 2016, arXiv 1606.04797, with sums of probabilities in the denominator).

    Args:
        logits: ``(B, classes, *size)``.
        truth: int64 ``(B, *size)``; :data:`IGNORED` does not count.
    """
    valid = truth != IGNORED
    entropy = F.cross_entropy(logits, truth.where(valid, -100), ignore_index=-100)
    if not bool(valid.any()):
        entropy = logits.sum() * 0
    chances = logits.softmax(1)[:, 1:] * valid[:, None]
    classes = torch.arange(1, logits.shape[1], device=truth.device).view(1, -1, *[1] * (truth.ndim - 1))
    hits = (truth[:, None] == classes).to(logits.dtype)
    both, sums = (chances * hits).flatten(2).sum(2), (chances + hits).flatten(2).sum(2)
    return (1 - (2 * both + _SMOOTH) / (sums + _SMOOTH)).mean() + entropy


def overlaps(answer: Tensor, truth: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Dice and intersection over union of every class but the background.

    Args:
        answer, truth: int64, of one shape; where the truth is :data:`IGNORED` nothing counts.
        classes: their number, the background among them.

    Returns:
        Two float64 ``(classes - 1,)``; 1 where a class is in neither.
    """
    valid = truth != IGNORED
    confusion = torch.bincount(truth[valid] * classes + answer[valid], minlength=classes * classes)
    confusion = confusion.view(classes, classes).double()
    both, left, right = confusion.diagonal()[1:], confusion.sum(1)[1:], confusion.sum(0)[1:]
    union = left + right - both
    dice = torch.where(union > 0, 2 * both / (left + right).clamp_min(1), 1.0)
    return dice, torch.where(union > 0, both / union.clamp_min(1), 1.0)


def hausdorff95(answer: Tensor, truth: Tensor, classes: int, spacing: Sequence[float]) -> Tensor:
    """95th percentile of the distances from one mask's border to the other's, the larger of both ways, for every class.

    Args:
        answer, truth: int64, of one shape.
        spacing: of pixels along each axis; distances are in its unit.

    Returns:
        float64 ``(classes - 1,)``: 0 where a class is in neither, the diagonal of the image where it is in one alone.
    """
    unit = torch.tensor(spacing, dtype=torch.float64)
    diagonal = math.sqrt(sum((side * step) ** 2 for side, step in zip(truth.shape, spacing, strict=True)))
    found = []
    for c in range(1, classes):
        one, other = ((m == c) & (truth != IGNORED) for m in (answer, truth))
        if not bool(one.any()) or not bool(other.any()):
            found.append(diagonal if bool(one.any() | other.any()) else 0.0)
            continue
        a, b = (_border(m).nonzero().double() * unit for m in (one, other))
        found.append(max(float(torch.quantile(_nearest(*pair), 0.95)) for pair in ((a, b), (b, a))))
    return torch.tensor(found, dtype=torch.float64)


def _border(mask: Tensor) -> Tensor:
    """Pixels of a mask with a neighbour along an axis outside of it."""
    padded = F.pad(mask[None, None].float(), [1] * (2 * mask.ndim))[0, 0]
    inside = mask
    for axis in range(mask.ndim):
        for step in (-1, 1):
            moved = padded.roll(step, axis)
            inside = inside & moved[tuple(slice(1, -1) for _ in range(mask.ndim))].bool()
    return mask & ~inside


def _nearest(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([torch.cdist(part, b).amin(1) for part in a.split(max(1, (1 << 24) // max(1, len(b))))])
