"""What a MaxViT is made of besides its bottlenecks: stem, attentions with feed-forwards, block and head."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ....errors import invalid
from ....mixers.maxvit import LogPositionMlp, MultiAxisAttention, Partition
from ....mixers.parts import Linear
from ....ops.activated import Activation, activate, linear_activated
from ..backbone import make_classifier
from ..parts import DropPath
from .mbconv import Details, MBConv, affine, batch_norm, details_of, strided

Position = Literal["table", "mlp"]


class Stem(nn.Module):
    """Two convolutions 3 x 3 with a batch norm and an activation between them.

    Args:
        in_chans: of the image.
        widths: channels of both.
        stride: of the first one.
        details: of the release.
    """

    def __init__(self, in_chans: int, widths: tuple[int, int], stride: int, details: Details) -> None:
        super().__init__()
        self.details = details
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, stride, 1, bias=details.stem_bias)
        self.norm1 = nn.BatchNorm2d(widths[0], eps=details.bn_eps, momentum=details.bn_momentum)
        self.conv2 = nn.Conv2d(widths[0], widths[1], 3, 1, 1, bias=details.stem_bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, h, w, widths[1])``."""
        x, activation = x.contiguous(memory_format=torch.channels_last).movedim(1, -1), self.details.conv_activation
        if self.training:
            y = activate(batch_norm(self.norm1, strided(self.conv1, x, self.details.same_padding)), activation)
        else:
            scale, shift = affine(self.norm1)
            bias = shift if self.conv1.bias is None else shift + self.conv1.bias * scale
            weight = (self.conv1.weight * scale[:, None, None, None]).to(x.dtype)
            y = strided(self.conv1, x, self.details.same_padding, (weight, bias.to(x.dtype), activation))
        return strided(self.conv2, y, self.details.same_padding)


class FeedForward(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, dim: int, hidden: int, details: Details) -> None:
        super().__init__()
        self.activation: Activation = details.activation
        self.fc1, self.fc2 = Linear(dim, hidden), Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dim)`` in and out."""
        return self.fc2(linear_activated(x, self.fc1.weight, self.fc1.bias, self.activation))


class PartitionAttention(nn.Module):
    """Attention inside blocks or over grids and a feed-forward, each behind a norm and with a residual.

    Args:
        dim: channels.
        partition: "block" or "grid".
        window: places along both sides.
        head_dim: channels of a head; must divide ``dim``.
        expansion: inner channels of the feed-forward over ``dim``.
        position: biases from a "table" or a small network, "mlp".
        pad: see :class:`~foveate.mixers.maxvit.MultiAxisAttention`.
        layer_scale: what factors of both branches start at; None: there are none.
        release: "tf" or "rw".
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        dim: int,
        partition: Partition,
        window: tuple[int, int],
        *,
        head_dim: int = 32,
        expansion: float = 4.0,
        position: Position = "table",
        pad: bool = False,
        layer_scale: float | None = None,
        release: str = "tf",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        details = details_of(release)
        if dim % head_dim:
            raise invalid("head_dim", head_dim, f"it must divide the {dim} channels of every stage")
        heads = dim // head_dim
        self.norm1 = nn.LayerNorm(dim, eps=details.ln_eps)
        self.attn = MultiAxisAttention(dim, num_heads=heads, window=window, partition=partition, pad=pad)
        if position == "mlp":
            self.attn.bias = LogPositionMlp(window, heads)
        self.norm2 = nn.LayerNorm(dim, eps=details.ln_eps)
        self.mlp = FeedForward(dim, int(dim * expansion), details)
        scales = [None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale)) for _ in range(2)]
        self.gamma1, self.gamma2 = scales
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, dim)`` in and out."""
        for norm, branch, gamma in ((self.norm1, self.attn, self.gamma1), (self.norm2, self.mlp, self.gamma2)):
            y = branch(norm(x))
            x = x + self.drop_path(y if gamma is None else y * gamma)
        return x


class MaxViTBlock(nn.Module):
    """The bottleneck, then blocks, then grids.

    Args:
        dim, out, stride: of the bottleneck, see :class:`~foveate.models.vision.maxvit.MBConv`.
        window, grid: places of a block and of a grid along both sides.
        conv: further options of the bottleneck.
        attention: further options of :class:`PartitionAttention`.
    """

    def __init__(
        self,
        dim: int,
        out: int,
        stride: int,
        window: tuple[int, int],
        grid: tuple[int, int],
        conv: dict[str, Any],
        attention: dict[str, Any],
    ) -> None:
        super().__init__()
        self.conv = MBConv(dim, out, stride=stride, **conv)
        self.attn_block = PartitionAttention(out, "block", window, **attention)
        self.attn_grid = PartitionAttention(out, "grid", grid, **attention)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, dim)`` to ``(B, h, w, out)``."""
        return self.attn_grid(self.attn_block(self.conv(x)))


class Head(nn.Module):
    """Norm, a layer with tanh if it has a width, and the classifier; read by :meth:`MaxViT.forward_head`."""

    def __init__(self, dim: int, hidden: int, num_classes: int, eps: float, drop_rate: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.fc1 = Linear(dim, hidden) if hidden else None
        self.drop = nn.Dropout(drop_rate)
        self.fc = make_classifier(hidden or dim, num_classes)
