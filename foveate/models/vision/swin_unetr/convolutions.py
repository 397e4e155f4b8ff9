"""The convolutional half of Swin UNETR: residual blocks, steps up, and convolutions of single places.

Everything lies channels last in memory, where convolutions need no reordering and an instance's statistics are those
of columns. Results are those of PyTorch's modules, to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ....errors import invalid
from ....ops.instance_norm import instance_norm, takes
from ....ops.linear import linear

#: A norm's name, or its name and options.
Norm = str | tuple[str, dict[str, Any]]

_NORMS = {
    "instance": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d},
    "batch": {2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
    "group": {2: nn.GroupNorm, 3: nn.GroupNorm},
}
_CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
#: Slope of the leaky rectifier below 0.
SLOPE = 0.01


def channels_last(x: Tensor) -> Tensor:
    """``(B, C, *grid)`` with its channels last in memory; a copy only where they are not.

    A single channel lies either way; its stride says which, and convolutions answer in the way that their input says.
    """
    if x.shape[1] == 1:
        return x.contiguous()[:, 0].unsqueeze(-1).movedim(-1, 1)
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def convolution(rank: int, channels: int, out: int, size: int) -> nn.Module:
    """A convolution without bias that keeps the grid."""
    return _CONVOLUTIONS[rank](channels, out, size, padding=size // 2, bias=False)


def make_norm(norm: Norm, rank: int, channels: int) -> nn.Module:
    """A norm over the channels of ``(B, channels, *grid)``.

    Args:
        norm: "instance" (without weights unless ``("instance", {"affine": True})``), "batch", or
            ``("group", {"num_groups": ...})``.

    Raises:
        InvalidValue: another name, options that the norm does not have.
    """
    name, options = (norm, {}) if isinstance(norm, str) else (norm[0], dict(norm[1]))
    if name not in _NORMS:
        raise invalid("norm_name", norm, f"it must be one of {', '.join(_NORMS)}, or that and its options")
    where = {"num_channels": channels} if name == "group" else {"num_features": channels}
    try:
        return _NORMS[name][rank](**where, **options)
    except (TypeError, ValueError) as error:
        raise invalid("norm_name", norm, f"{name} norm of {channels} channels: {error}") from error


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(x)``; instance norms that do not remember by :func:`~foveate.ops.instance_norm.instance_norm`."""
    instance = isinstance(norm, nn.InstanceNorm2d | nn.InstanceNorm3d)
    if not instance or norm.track_running_stats or not takes(x):
        return norm(x)
    y = instance_norm(x, norm.eps)
    if norm.weight is None:
        return y
    axes = (-1, *[1] * (x.ndim - 2))
    return y * norm.weight.view(axes) + norm.bias.view(axes)


def _rectified(x: Tensor) -> Tensor:
    """In place where nothing needs a gradient; for what was just made."""
    return nn.functional.leaky_relu(x, SLOPE, inplace=not torch.is_grad_enabled())


class Pointwise(nn.Module):
    """A convolution of single places, computed as a linear map of the channels; weights as a convolution's.

    Args:
        rank: axes of the grid.
        channels, out: of the map in and out.
        bias: there is one.
    """

    def __init__(self, rank: int, channels: int, out: int, bias: bool = False) -> None:
        super().__init__()
        made = _CONVOLUTIONS[rank](channels, out, 1, bias=bias)
        self.weight, self.bias = made.weight, made.bias

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels, *grid)`` to ``(B, out, *grid)``."""
        return linear(x.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


class ResidualBlock(nn.Module):
    """Two convolutions around a shortcut: nnU-Net's block, with ``act`` a leaky rectifier::

        y = act(norm(conv(act(norm(conv(x))))) + shortcut)

    The shortcut is ``x``, or ``norm(W x)`` where the number of channels changes.

    Args:
        rank: axes of the grid.
        channels, out: of the map in and out.
        norm: see :func:`make_norm`.
    """

    def __init__(self, rank: int, channels: int, out: int, norm: Norm = "instance") -> None:
        super().__init__()
        self.conv1, self.conv2 = convolution(rank, channels, out, 3), convolution(rank, out, out, 3)
        self.norm1, self.norm2 = make_norm(norm, rank, out), make_norm(norm, rank, out)
        self.conv3 = self.norm3 = None
        if channels != out:
            self.conv3, self.norm3 = Pointwise(rank, channels, out), make_norm(norm, rank, out)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels, *grid)`` to ``(B, out, *grid)``."""
        y = _rectified(normed(self.norm1, self.conv1(x)))
        y = normed(self.norm2, self.conv2(y))
        if self.conv3 is not None and self.norm3 is not None:
            x = normed(self.norm3, self.conv3(x))
        return _rectified(y + x if torch.is_grad_enabled() else y.add_(x))


class UpBlock(nn.Module):
    """A step up: a transposed convolution whose patches do not overlap, the skip beside it, a residual block.

    Args:
        rank: axes of the grid.
        channels: of the coarse map.
        out: of the fine map and of the skip.
        factor: places of the fine map per coarse place, along each axis.
        norm: see :func:`make_norm`.
    """

    def __init__(self, rank: int, channels: int, out: int, factor: int = 2, norm: Norm = "instance") -> None:
        super().__init__()
        self.up = _TRANSPOSED[rank](channels, out, factor, factor, bias=False)
        self.block = ResidualBlock(rank, 2 * out, out, norm)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """``(B, channels, *grid)`` and a skip ``(B, out, *fine)`` to ``(B, out, *fine)``."""
        both = torch.cat([self.up(x).movedim(1, -1), skip.movedim(1, -1)], -1)
        return self.block(both.movedim(-1, 1))
