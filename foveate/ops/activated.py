"""Linear maps and convolutions with an activation behind them, in one pass over memory where nothing needs a gradient.

PyTorch computes the map and then the activation; its tanh form of GELU alone takes several times as long as the map
itself on CPUs. oneDNN, which PyTorch carries, applies the function to results while they are still in a register. What
is computed is the same, to float32 rounding. Where MKL is the faster (:mod:`foveate.ops.linear`), it multiplies, and
one pass of our kernel adds the bias, applies the function, and multiplies with or adds what else stands there.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import invalid
from .linear import SLOW_MKL, WORTH_IT, linear, takes_onednn, undisturbed
from .native import depthwise_conv, epilogue, takes_float32

Activation = Literal["gelu", "gelu_tanh", "silu", "none"]
#: Of the argument of the hyperbolic tangent, at 0.
_SLOPE = math.sqrt(2 / math.pi)
#: oneDNN's names: function and algorithm.
_NAMES = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "silu": ("swish", ""), "none": ("none", "")}


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The function alone; same shape and dtype.

    Args:
        x: any shape.
        activation: "gelu" (exact), "gelu_tanh" (its approximation by tanh), "silu" or "none".

    Raises:
        InvalidValue: another function.
    """
    check_activation(activation)
    if activation == "none":
        return x
    if activation == "silu":
        return F.silu(x)
    if activation == "gelu_tanh" and not torch.is_grad_enabled() and _plain_cpu(x):
        # (1 + tanh(z)) / 2 is the logistic function of 2 z, which is several times as fast.
        gate = (x * x).mul_(2 * _SLOPE * 0.044715).add_(2 * _SLOPE).mul_(x).sigmoid_()
        return gate.mul_(x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def check_activation(activation: str) -> None:
    """Refuse what is none of the functions."""
    if activation not in _NAMES:
        raise invalid("activation", activation, f"it must be one of {', '.join(get_args(Activation))}")


def linear_activated(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation = "none",
    *,
    times: Tensor | tuple[Tensor, ...] = (),
    plus: Tensor | None = None,
) -> Tensor:
    """``activation(x W^T + b) * times + plus``.

    Args:
        x: ``(..., in)``.
        weight: ``(out, in)``.
        bias: ``(out,)``.
        activation: see :func:`activate`.
        times: a factor such as a gate, of the result's shape, or ``(out,)``; or such factors of neighbouring channels,
            which together have all of them.
        plus: what is added at last such as a residual, of the result's shape.

    Returns:
        ``(..., out)``.

    Raises:
        InvalidValue: another function.
    """
    check_activation(activation)
    factors = (times,) if isinstance(times, Tensor) else times
    if torch.is_grad_enabled():
        return _scaled_and_added(activate(linear(x, weight, bias), activation), factors, plus)
    more = bool(factors) or plus is not None
    kernel = (more or activation != "none") and _takes_epilogue(x, weight, bias, *factors, plus)
    if takes_onednn(x, weight, bias) and (SLOW_MKL or not (more and kernel)):
        function, algorithm = _NAMES[activation]
        y = torch.ops.mkldnn._linear_pointwise(x, weight, bias, function, [], algorithm)
        bias, activation, kernel = None, "none", kernel and more
    elif kernel:
        y = linear(x, weight)
    else:
        y = activate(linear(x, weight, bias), activation)
    if kernel:
        return epilogue.finish(y, bias, activation, factors, plus)
    return _scaled_and_added(y, factors, plus)


def _scaled_and_added(y: Tensor, factors: tuple[Tensor, ...], plus: Tensor | None) -> Tensor:
    if factors:
        y = y * (factors[0] if len(factors) == 1 else torch.cat(factors, -1))
    return y if plus is None else plus + y


def _takes_epilogue(x: Tensor, weight: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernel takes what a product of these gives, and the product is long enough to be worth a call."""
    if torch.compiler.is_compiling() or x.numel() * weight.shape[0] < WORTH_IT or not undisturbed():
        return False
    return takes_float32(x, weight, *others)


def conv2d_activated(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
) -> Tensor:
    """``activation(conv(x) + b)``.

    Args:
        x: ``(B, C, H, W)``, best in channels-last memory.
        weight: ``(out, C / groups, kh, kw)``.
        bias: ``(out,)``.
        activation: see :func:`activate`.
        stride, padding: along height and width.
        groups: of channels.

    Returns:
        ``(B, out, h, w)``.

    Raises:
        InvalidValue: another function.
    """
    check_activation(activation)
    fused = not torch.is_grad_enabled() and _plain_cpu(x, weight, bias)
    if fused and depthwise_conv.fits(x, weight, bias, stride, padding, groups):
        return depthwise_conv.depthwise_conv2d(x, weight, bias, activation, stride[0], padding)
    if fused and activation != "none" and _has_fused_convolution():
        function, algorithm = _NAMES[activation]
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, padding, stride, (1, 1), groups, function, [], algorithm
        )
    return activate(F.conv2d(x, weight, bias, stride, padding, 1, groups), activation)


def _has_fused_convolution() -> bool:
    """Whether oneDNN computes convolutions, as it does PyTorch's own on CPUs."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )


def _plain_cpu(*tensors: Tensor | None) -> bool:
    """Whether these are float32 on CPUs, and nothing looks into what is computed with them."""
    if torch.compiler.is_compiling() or not undisturbed():
        return False
    return all(m is None or (m.dtype == torch.float32 and m.device.type == "cpu") for m in tensors)
