"""Parts that several systems share: linear layers, norms without weights, feed-forwards without activations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import InvalidValue
from ..ops.activated import Activation, conv2d_activated
from ..ops.handwritten import sum_dtype
from ..ops.linear import linear


def overwrites() -> bool:
    """Whether intermediate results may be written over: nothing is differentiated, and no compiler plans memory."""
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def add(x: Tensor, branch: Tensor) -> Tensor:
    """``x + branch``, written over ``branch``, which must be the caller's own, where :func:`overwrites`."""
    if overwrites() and x.shape == branch.shape and x.dtype == branch.dtype:
        return branch.add_(x)
    return x + branch


def watched(*modules: nn.Module) -> bool:
    """Whether hooks look at any of these, which then have to be called."""
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in modules)


class Linear(nn.Linear):
    """:class:`torch.nn.Linear`, computed by :func:`foveate.ops.linear.linear`: the same names, weights and results."""

    def forward(self, input: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        return linear(input, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    """:class:`torch.nn.Conv2d` without dilation, computed by :func:`foveate.ops.activated.conv2d_activated`."""

    def forward(self, input: Tensor, activation: Activation = "none") -> Tensor:
        """``activation(conv(x))``: ``(B, C, H, W)``, best in channels-last memory, to ``(B, out, h, w)``."""
        (down, across), (top, left) = self.stride, map(int, self.padding)
        return conv2d_activated(
            input, self.weight, self.bias, activation, stride=(down, across), padding=(top, left), groups=self.groups
        )


class SRMSNorm(nn.Module):
    """Simple RMS norm: ``x / sqrt(mean(x^2) + eps)`` over the channels, no parameters.

    TransNormerLLM (arXiv 2307.14995, section 3.2). ``eps`` is that of the released code; the paper has none. Computed
    in float32 (float64 for float64 input) and cast back.

    Args:
        eps: added to the mean square.

    Raises:
        InvalidValue: eps is negative or not a number.
    """

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        if not eps >= 0:
            raise InvalidValue(f"eps={eps!r} is not possible: it must not be negative.")
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(..., dim)``; same shape and dtype."""
        wide = x.to(sum_dtype(x.dtype))
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class SGLU(nn.Module):
    """Simple gated linear unit: ``W3 (W1 x * W2 x)``, the feed-forward of TransNormerLLM; no activation function.

    Args:
        dim: channels of a token.
        glu_dim: inner width.
        bias: all three layers have biases.
    """

    def __init__(self, dim: int, glu_dim: int, bias: bool = False) -> None:
        super().__init__()
        if not isinstance(glu_dim, int) or glu_dim < 1:
            raise InvalidValue(f"glu_dim={glu_dim!r} is not possible: a positive whole number is needed.")
        self.l1 = Linear(dim, glu_dim, bias=bias)
        self.l2 = Linear(dim, glu_dim, bias=bias)
        self.l3 = Linear(glu_dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dim)`` in and out."""
        return self.l3(self.l1(x) * self.l2(x))
