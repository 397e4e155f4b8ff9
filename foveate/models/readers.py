"""Readers: from what a model is given to tokens on a grid, channels last; and heads: from tokens to an answer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InvalidValue
from ..mixers.parts import Linear


class SeriesReader(nn.Module):
    """Patches of one channel as tokens, every channel a sample of its own (channel independence, PatchTST).

    ``(B, T, C)`` to ``(B * C, tokens, dim)``. Where ``patch`` does not divide T, the first value is repeated in front.
    Each window is standardised by its own mean and deviation; :meth:`restore` takes that back.

    Args:
        length: T.
        patch: steps per token.
        dim: token width.
        eps: added to the variance, in squared units of the input.
    """

    def __init__(self, length: int, patch: int, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        if not 1 <= patch <= length:
            raise InvalidValue(f"patch={patch} is not possible: it must be between 1 and the lookback {length}.")
        self.patch, self.eps = patch, eps
        self.grid = (math.ceil(length / patch),)
        self.project = Linear(patch, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        mean = x.mean(1, keepdim=True)
        deviation = (x.var(1, keepdim=True, unbiased=False) + self.eps).sqrt()
        x = ((x - mean) / deviation).transpose(1, 2).flatten(0, 1)
        x = F.pad(x[:, None], (self.grid[0] * self.patch - x.shape[1], 0), mode="replicate")[:, 0]
        return self.project(x.unflatten(1, (self.grid[0], self.patch))), (mean, deviation)

    def restore(self, y: Tensor, statistics: tuple[Tensor, Tensor]) -> Tensor:
        """``(B * C, horizon)`` in window units to ``(B, horizon, C)`` in the units of the input."""
        mean, deviation = statistics
        return y.unflatten(0, (mean.shape[0], mean.shape[2])).transpose(1, 2) * deviation + mean


class GapReader(nn.Module):
    """Patches of one channel and of where it is observed as tokens, every channel a sample of its own.

    ``(B, T, C)`` and a mask to ``(B * C, tokens, dim)``. Where ``patch`` does not divide T, unobserved zeros are added
    at the end. Each window is standardised by mean and deviation of what is observed; :meth:`restore` takes that back.

    Args:
        length: T.
        patch: steps per token.
        dim: token width.
        eps: added to the variance, in squared units of the input.
    """

    def __init__(self, length: int, patch: int, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        if not 1 <= patch <= length:
            raise InvalidValue(f"patch={patch} is not possible: it must be between 1 and the lookback {length}.")
        self.patch, self.eps, self.length = patch, eps, length
        self.grid = (math.ceil(length / patch),)
        self.project = Linear(2 * patch, dim)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        count = mask.sum(1, keepdim=True).clamp_min(1)
        mean = x.masked_fill(~mask, 0).sum(1, keepdim=True) / count
        x = (x - mean).masked_fill(~mask, 0)
        deviation = (x.square().sum(1, keepdim=True) / count + self.eps).sqrt()
        parts = []
        for part in (x / deviation, mask.to(x.dtype)):
            part = F.pad(part.transpose(1, 2).flatten(0, 1), (0, self.grid[0] * self.patch - self.length))
            parts.append(part.unflatten(1, (self.grid[0], self.patch)))
        return self.project(torch.cat(parts, -1)), (mean, deviation)

    def restore(self, y: Tensor, statistics: tuple[Tensor, Tensor]) -> Tensor:
        """``(B * C, tokens, patch)`` in window units to ``(B, T, C)`` in the units of the input."""
        mean, deviation = statistics
        y = y.flatten(1)[:, : self.length].unflatten(0, (mean.shape[0], mean.shape[2]))
        return y.transpose(1, 2) * deviation + mean


class StepsReader(nn.Module):
    """Patches of all channels together as tokens: ``(B, T, C)`` to ``(B, tokens, dim)``.

    Where ``patch`` does not divide T, zeros are added at the end.

    Args:
        length: T.
        patch: steps per token.
        channels: C.
        dim: token width.
    """

    def __init__(self, length: int, patch: int, channels: int, dim: int) -> None:
        super().__init__()
        if not 1 <= patch <= length:
            raise InvalidValue(f"patch={patch} is not possible: it must be between 1 and the lookback {length}.")
        self.patch = patch
        self.grid = (math.ceil(length / patch),)
        self.project = Linear(patch * channels, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, self.grid[0] * self.patch - x.shape[1]))
        return self.project(x.unflatten(1, (self.grid[0], self.patch)).flatten(2))

    def token_mask(self, mask: Tensor) -> Tensor:
        """Bool ``(B, T)`` over steps to ``(B, tokens)``: a token is real if one of its steps is."""
        mask = F.pad(mask, (0, self.grid[0] * self.patch - mask.shape[1]))
        return mask.unflatten(1, (self.grid[0], self.patch)).any(2)


class PatchReader(nn.Module):
    """Non-overlapping patches of ``(B, C, H, W)`` images or ``(B, C, T, H, W)`` videos as tokens ``(B, *grid, dim)``.

    Args:
        size: (H, W) or (T, H, W) of the input; what a patch does not divide ends in zeros.
        patch: patch edge, one number or one per axis.
        channels: C.
        dim: token width.
    """

    def __init__(self, size: Sequence[int], patch: int | Sequence[int], channels: int, dim: int) -> None:
        super().__init__()
        edges = tuple(patch) if isinstance(patch, Sequence) else (patch,) * len(size)
        if len(edges) != len(size) or min(edges) < 1:
            raise InvalidValue(f"patch={patch!r} is not possible: it must be positive along the axes of {tuple(size)}.")
        self.grid = tuple(-(-s // e) for s, e in zip(size, edges, strict=True))
        self.padding = [n for s, e in zip(size[::-1], edges[::-1], strict=True) for n in (0, -s % e)]
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[len(size)]
        self.project = convolution(channels, dim, edges, stride=edges)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.pad(x, self.padding) if any(self.padding) else x).movedim(1, -1)


class ForecastHead(nn.Module):
    """All tokens of a channel, flattened, to its future: ``(N, tokens, dim)`` to ``(N, horizon)``."""

    def __init__(self, tokens: int, dim: int, horizon: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.project = Linear(tokens * dim, horizon)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.dropout(x.flatten(1)))


class PatchHead(nn.Module):
    """Every token of a channel to its own steps: ``(N, tokens, dim)`` to ``(N, length)``, what was padded in front cut.

    Args:
        dim: token width.
        patch: steps per token.
        length: steps of the answer, at most ``tokens * patch``.
    """

    def __init__(self, dim: int, patch: int, length: int) -> None:
        super().__init__()
        self.length = length
        self.project = Linear(dim, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x).flatten(1)[:, -self.length :]


class MapHead(nn.Module):
    """Every token to the class logits of the pixels of its patch: ``(B, *grid, dim)`` to ``(B, classes, *size)``.

    Args:
        dim: token width.
        patch: patch edge.
        classes: of a pixel or voxel.
        size: of the answer, at most ``grid * patch``; the rest is cut off.
    """

    def __init__(self, dim: int, patch: int, classes: int, size: Sequence[int]) -> None:
        super().__init__()
        self.edges, self.classes, self.size = (patch,) * len(size), classes, tuple(size)
        self.project = Linear(dim, classes * math.prod(self.edges))

    def forward(self, x: Tensor) -> Tensor:
        rank = len(self.size)
        y = self.project(x).unflatten(-1, (self.classes, *self.edges))
        order = [n for i in range(rank) for n in (1 + i, rank + 2 + i)]
        y = y.permute(0, rank + 1, *order)
        y = y.reshape(*y.shape[:2], *(y.shape[2 + 2 * i] * self.edges[i] for i in range(rank)))
        for axis, side in enumerate(self.size):
            y = y.narrow(2 + axis, 0, side)
        return y


class ClassHead(nn.Module):
    """Mean of the real tokens to class logits: ``(B, *grid, dim)`` to ``(B, classes)``."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.project = Linear(dim, classes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x.flatten(1, -2)
        if mask is None:
            return self.project(x.mean(1))
        weight = mask.flatten(1)[..., None].to(x.dtype)
        return self.project((x * weight).sum(1) / weight.sum(1).clamp_min(1))


def learned_positions(grid: tuple[int, ...], dim: int) -> nn.Parameter:
    """One learned vector per grid place, ``(*grid, dim)``, N(0, 0.02)."""
    return nn.Parameter(torch.randn(*grid, dim) * 0.02)
