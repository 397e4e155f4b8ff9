"""Window attention and sampling as other libraries write them.

timm does not import without torchvision, MONAI's block wants its masks made outside: both stand here as the sequence of
PyTorch's operations that they run, with our weights.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cases import Problem
from . import Contender, peer


def _cut(x: Tensor, window: tuple[int, ...]) -> Tensor:
    """``(batch, *grid, channels)`` to ``(batch * windows, tokens, channels)``."""
    for i, w in enumerate(window):
        x = x.unflatten(1 + 2 * i, (-1, w))
    rank = len(window)
    order = [*range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2)]
    return x.permute(0, *order, -1).contiguous().flatten(0, rank).flatten(1, rank)


def _join(x: Tensor, window: tuple[int, ...], grid: tuple[int, ...]) -> Tensor:
    counts = [size // w for size, w in zip(grid, window, strict=True)]
    x = x.unflatten(1, window).unflatten(0, (-1, *counts))
    rank = len(window)
    pairs = itertools.chain(*((1 + i, 1 + rank + i) for i in range(rank)))
    return x.permute(0, *pairs, -1).contiguous().view(x.shape[0], *grid, x.shape[-1])


def _padded(x: Tensor, window: tuple[int, ...]) -> Tensor:
    spare = [-size % w for size, w in zip(x.shape[1:-1], window, strict=True)]
    return F.pad(x, [0, 0, *(n for each in reversed(spare) for n in (0, each))]) if any(spare) else x


def _mask(grid: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]) -> Tensor:
    """-100 between regions, ``(windows, tokens, tokens)``; both libraries make it once."""
    numbers = torch.zeros(1, *grid, 1)
    slices = [(slice(-w), slice(-w, -s), slice(-s, None)) for w, s in zip(window, shift, strict=True)]
    for number, place in enumerate(itertools.product(*slices)):
        numbers[(0, *place)] = number
    regions = _cut(numbers, window)[..., 0]
    return (regions[:, None] != regions[:, :, None]).float() * -100


def _layer(problem: Problem, attend: Any) -> Contender:
    """Pad, roll, cut, project, ``attend``, project, and back; without both projections where the first is given."""
    ours: Any = problem.module
    grid, window = problem.sizes["grid"], problem.sizes["window"]
    shift = tuple(0 if min(grid) <= window[0] else w // 2 for w in window)
    whole = tuple(-(-size // w) * w for size, w in zip(grid, window, strict=True))
    axes, mask = list(range(1, len(grid) + 1)), _mask(whole, window, shift) if any(shift) else None
    n, heads, index = math.prod(window), problem.sizes["heads"], ours.relative_position_index

    def windows(x: Tensor) -> Tensor:
        x = _padded(x, window)
        return _cut(x if mask is None else x.roll([-s for s in shift], axes), window)

    known = windows(problem.inputs["qkv"]) if "qkv" in problem.inputs else None

    def call(x: Tensor, qkv: Tensor | None = None) -> Tensor:
        x = windows(x)
        parts = F.linear(x, ours.qkv.weight, ours.qkv.bias) if known is None else known
        q, k, v = parts.view(-1, n, 3, heads, x.shape[-1] // heads).permute(2, 0, 3, 1, 4)
        bias = ours.relative_position_bias_table[index].view(n, n, -1).permute(2, 0, 1).contiguous()
        o = attend(q, k, v, bias, mask).transpose(1, 2).reshape(x.shape)
        x = _join(F.linear(o, ours.proj.weight, ours.proj.bias) if known is None else o, window, whole)
        if mask is not None:
            x = x.roll(list(shift), axes)
        return x[(slice(None), *(slice(size) for size in grid))].contiguous()

    return Contender(call, tuple(ours.parameters()))


def _timm(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    given = bias[None]
    if mask is not None:
        repeated = mask[None, :, None].expand(q.shape[0] // mask.shape[0], -1, q.shape[1], -1, -1)
        given = given + repeated.reshape(-1, q.shape[1], *mask.shape[1:])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=given)


def _monai(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias[None]
    if mask is not None:
        by_window = scores.view(-1, mask.shape[0], *scores.shape[1:])
        scores = (by_window + mask[None, :, None]).view(scores.shape)
    return scores.softmax(-1) @ v


@peer("timm's steps", of=("shifted_windows_batch*", "shifted_windows_between_*"))
def timm(problem: Problem) -> Contender:
    return _layer(problem, _timm)


@peer("MONAI's steps", of=("shifted_windows_3d_*",))
def monai(problem: Problem) -> Contender:
    return _layer(problem, _monai)


@peer("F.grid_sample", of=("sample_at_core",))
def grid_sample(problem: Problem) -> Contender:
    edge = problem.sizes["edge"]

    def call(x: Tensor, points: Tensor) -> Tensor:
        grid = points.flatten(0, 1) * (2 / (edge - 1)) - 1
        maps = x.flatten(0, 1).movedim(-1, 1)
        y = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
        return y.movedim(1, -1).unflatten(0, x.shape[:2])

    return Contender(call)
