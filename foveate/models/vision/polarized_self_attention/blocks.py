"""Residual blocks with polarized self-attention behind their first convolution, where its authors put it.

Liu et al., "Polarized Self-Attention" (arXiv 2107.00782), section 4: after the first 3x3 of a basic block, or the first
1x1 of a bottleneck. Names are those of the released networks.
"""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ....errors import invalid
from ....mixers.polarized_self_attention import PolarizedSelfAttention
from ..parts import to_channels_first, to_channels_last

Gates = Literal["parallel", "sequential", "none"]


class _Gated(PolarizedSelfAttention):
    """The mixer for ``(B, C, H, W)``."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return to_channels_first(super().forward(to_channels_last(x)))


def gates_of(channels: int, gates: Gates) -> nn.Module:
    """Polarized self-attention of a block, or nothing."""
    if gates not in get_args(Gates):
        raise invalid("gates", gates, f"it must be one of {', '.join(get_args(Gates))}")
    return nn.Identity() if gates == "none" else _Gated(channels, layout=gates)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; gates between them.

    Args:
        inputs: channels that come.
        planes: channels inside and out.
        stride: of the first convolution.
        gates: the layout of polarized self-attention, or "none".
    """

    expansion: ClassVar[int] = 1

    def __init__(self, inputs: int, planes: int, stride: int, gates: Gates) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.deattn = gates_of(planes, gates)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = shortcut(inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` to ``(B, planes, H / stride, W / stride)``."""
        y = self.deattn(torch.relu(self.bn1(self.conv1(x))))
        return torch.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut; gates behind the first.

    Args:
        inputs: channels that come.
        planes: channels inside; four times as many go.
        stride: of the 3x3 convolution.
        gates: the layout of polarized self-attention, or "none".
    """

    expansion: ClassVar[int] = 4

    def __init__(self, inputs: int, planes: int, stride: int, gates: Gates) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.deattn = gates_of(planes, gates)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.downsample = shortcut(inputs, 4 * planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` to ``(B, 4 planes, H / stride, W / stride)``."""
        y = self.deattn(torch.relu(self.bn1(self.conv1(x))))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A 1x1 convolution where sizes change, else nothing."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def convolution(inputs: int, outputs: int, edge: int, stride: int, active: bool = True) -> nn.Sequential:
    """Convolution, norm and, if asked, ReLU."""
    layers = [nn.Conv2d(inputs, outputs, edge, stride, edge // 2, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, nn.ReLU()) if active else nn.Sequential(*layers)


def check_stem_stride(stem_stride: int) -> None:
    """Refuse another reduction than 1, 2 or 4."""
    if stem_stride not in (1, 2, 4):
        raise invalid("stem_stride", stem_stride, "it must be 1, 2 or 4")


def init_convolutions(module: nn.Module) -> None:
    """Convolutions by Kaiming's rule for fan out, as in ResNet; for ``model.apply``."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
