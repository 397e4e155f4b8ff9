"""The convolutional half of a MaxViT block: an inverted bottleneck with squeeze and excitation, channels last.

Tu et al., arXiv 2204.01697, appendix A; Sandler et al., arXiv 1801.04381, and Hu et al., arXiv 1709.01507::

    x = shortcut(x) + W3 excite(act(BN(depthwise(act(BN(W1 BN(x)))))))

Where the batch statistics are fixed, each norm is an affine map per channel, and goes into the map or filter beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....errors import InvalidValue, unknown_name
from ....ops.activated import Activation, activate, conv2d_activated, linear_activated
from ....ops.handwritten import sum_dtype
from ....ops.linear import linear
from ..parts import DropPath


@dataclass(frozen=True, slots=True)
class Details:
    """What tells the releases of MaxViT apart.

    Attributes:
        same_padding: strided convolutions and pooling pad as TensorFlow does ("SAME": less at the beginning);
            otherwise alike on both sides, and pooling not at all.
        bn_eps, bn_momentum: of the batch norms (PyTorch's momentum).
        ln_eps: of the layer norms.
        conv_activation, activation: of stem and bottleneck, and of the feed-forwards.
        expand_output: the bottleneck is four times as wide as the output, not the input.
        output_bias: the bottleneck's last map and the shortcut's have biases.
        stem_bias: the stem's convolutions have biases.
        se_ratio: channels inside the squeeze and excitation over those of the output, or over the inner ones where
            these are taken from the input.
    """

    same_padding: bool
    bn_eps: float
    bn_momentum: float
    ln_eps: float
    conv_activation: Activation
    activation: Activation
    expand_output: bool
    output_bias: bool
    stem_bias: bool
    se_ratio: float


#: "tf": the authors' models; "rw": timm's own, trained before the authors' code was public.
RELEASES = {
    "tf": Details(True, 1e-3, 0.01, 1e-5, "gelu_tanh", "gelu_tanh", True, True, True, 1 / 4),
    "rw": Details(False, 1e-5, 0.1, 1e-6, "silu", "gelu", False, False, False, 1 / 16),
}


def details_of(release: str) -> Details:
    """The details of a release.

    Raises:
        UnknownName: there is none of this name.
    """
    if release not in RELEASES:
        raise unknown_name("release", release, RELEASES)
    return RELEASES[release]


def divisible(channels: float, by: int = 8) -> int:
    """The multiple of 8 next to a number of channels, at least 8 and not below nine tenths of it."""
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded


def affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Factor and summand per channel of a batch norm with fixed statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    real = sum_dtype(norm.weight.dtype)
    scale = norm.weight.to(real) * torch.rsqrt(norm.running_var.to(real) + norm.eps)
    return scale, norm.bias.to(real) - norm.running_mean.to(real) * scale


def batch_norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """A batch norm over ``(B, H, W, C)``."""
    return norm(x.movedim(-1, 1)).movedim(1, -1)


def strided(conv: nn.Conv2d, x: Tensor, same: bool, folded: tuple[Tensor, Tensor, Activation] | None = None) -> Tensor:
    """A convolution 3 x 3 over ``(B, H, W, C)``, of stride 1 or 2, padded alike on both sides or as TensorFlow does.

    TensorFlow pads an even side by one place at its end alone. So that no map is copied, it is padded by two on both
    sides, and the first place of the result, which no one asked for, is left out.

    Args:
        conv: its padding is not read.
        x: the map.
        same: as TensorFlow does.
        folded: weight, bias and activation to use instead.
    """
    late = [same and conv.stride[0] == 2 and size % 2 == 0 for size in x.shape[1:3]]
    weight, bias, activation = folded or (conv.weight, conv.bias, "none")
    y = conv2d_activated(
        x.movedim(-1, 1),
        weight,
        bias,
        activation,
        stride=(conv.stride[0], conv.stride[1]),
        padding=(1 + late[0], 1 + late[1]),
        groups=conv.groups,
    ).movedim(1, -1)
    return y[:, int(late[0]) :, int(late[1]) :]


class SqueezeExcite(nn.Module):
    """A factor per channel in (0, 1) from the mean of the map: linear, SiLU, linear, sigmoid."""

    def __init__(self, dim: int, reduced: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, reduced, 1)
        self.fc2 = nn.Conv2d(reduced, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The factors ``(B, C)`` for ``(B, H, W, C)``."""
        inner = F.silu(linear(x.mean((1, 2)), self.fc1.weight.flatten(1), self.fc1.bias))
        return torch.sigmoid(linear(inner, self.fc2.weight.flatten(1), self.fc2.bias))


class Shortcut(nn.Module):
    """Mean of 2 x 2 places where the block strides, and a linear map where the width changes."""

    def __init__(self, dim: int, out: int, same: bool, bias: bool) -> None:
        super().__init__()
        self.same = same
        self.expand = nn.Conv2d(dim, out, 1, bias=bias) if dim != out else None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, dim)`` to ``(B, h, w, out)``; what lies behind an odd side counts as zeros."""
        x = F.avg_pool2d(x.movedim(-1, 1), 2, 2, ceil_mode=self.same, divisor_override=4).movedim(1, -1)
        return x if self.expand is None else linear(x, self.expand.weight.flatten(1), self.expand.bias)


class MBConv(nn.Module):
    """The inverted bottleneck, ``(B, H, W, C)`` to ``(B, h, w, out)``.

    Args:
        dim: channels in.
        out: channels out; only a stride of 2 may change them.
        stride: 1 or 2, of the depthwise convolution.
        expansion: inner channels over those of the output (input for ``release="rw"``), rounded to a multiple of 8.
        se_ratio: channels inside the squeeze and excitation over those of the output ("rw": over the inner ones); None:
            the release's.
        release: "tf" or "rw".
        drop_path: rate of stochastic depth.

    Raises:
        InvalidValue: other channels without a stride.
        UnknownName: another release.
    """

    def __init__(
        self,
        dim: int,
        out: int,
        *,
        stride: int = 1,
        expansion: float = 4.0,
        se_ratio: float | None = None,
        release: str = "tf",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if stride == 1 and dim != out:
            raise InvalidValue(f"MBConv: {dim} channels become {out} only with stride=2.")
        self.details = details = details_of(release)
        inner = divisible((out if details.expand_output else dim) * expansion)
        reduced = max(
            1, int((details.se_ratio if se_ratio is None else se_ratio) * (out if details.expand_output else inner))
        )

        def norm(channels: int) -> nn.BatchNorm2d:
            return nn.BatchNorm2d(channels, eps=details.bn_eps, momentum=details.bn_momentum)

        self.shortcut = Shortcut(dim, out, details.same_padding, details.output_bias) if stride == 2 else None
        self.pre_norm = norm(dim)
        self.conv1_1x1 = nn.Conv2d(dim, inner, 1, bias=False)
        self.norm1 = norm(inner)
        self.conv2_kxk = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.norm2 = norm(inner)
        self.se = SqueezeExcite(inner, reduced)
        self.conv3_1x1 = nn.Conv2d(inner, out, 1, bias=details.output_bias)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, dim)`` to ``(B, h, w, out)``."""
        y = self._by_batch(x) if self.training else self._by_statistics(x)
        gate, weight = self.se(y), self.conv3_1x1.weight.flatten(1)
        places = y.shape[1] * y.shape[2]
        if not torch.compiler.is_compiling() and len(y) == 1 and places > len(weight):  # a factor per weight is cheaper
            y = linear(y, weight * gate, self.conv3_1x1.bias)
        else:
            y = linear(y * gate[:, None, None], weight, self.conv3_1x1.bias)
        return self.drop_path(y) + (x if self.shortcut is None else self.shortcut(x))

    def _by_batch(self, x: Tensor) -> Tensor:
        """The expanded map behind the depthwise convolution, with the batch's own statistics."""
        activation = self.details.conv_activation
        y = linear(batch_norm(self.pre_norm, x), self.conv1_1x1.weight.flatten(1))
        y = activate(batch_norm(self.norm1, y), activation)
        y = strided(self.conv2_kxk, y, self.details.same_padding)
        return activate(batch_norm(self.norm2, y), activation)

    def _by_statistics(self, x: Tensor) -> Tensor:
        """The same with fixed statistics."""
        activation, weight = self.details.conv_activation, self.conv1_1x1.weight.flatten(1)
        (before, shift), (scale, after), (last, behind) = map(affine, (self.pre_norm, self.norm1, self.norm2))
        if x.shape[1] * x.shape[2] > 2 * weight.shape[1]:  # a map larger than the weights
            rows = weight * scale[:, None]
            bias = after + (rows * shift).sum(1)
            y = linear_activated(x, (rows * before).to(x.dtype), bias.to(x.dtype), activation)
        else:
            y = linear(torch.addcmul(shift, x, before).to(x.dtype), weight)
            y = activate(torch.addcmul(after, y, scale).to(x.dtype), activation)
        kernel = (self.conv2_kxk.weight * last[:, None, None, None]).to(x.dtype)
        return strided(self.conv2_kxk, y, self.details.same_padding, (kernel, behind.to(x.dtype), activation))
