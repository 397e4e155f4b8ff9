"""The affine map ``y = x W^T + b`` of float32 on CPUs, by the fastest of two libraries and a kernel.

PyTorch multiplies float32 matrices with MKL, which runs AVX2 code on other makers' processors; oneDNN, which it also
carries and uses for convolutions and bfloat16, has AVX-512 code for all of them. Where the processor has AVX-512 and is
not Intel's, oneDNN takes less than half the time. On Intel's MKL is ahead, but for few channels and large results:
oneDNN does not write the bias into the result first. Both pack the weights at every call, which takes as long as the
product of few rows: those, without gradients, have a kernel of ours that does not. The choice depends on the machine
and on sizes alone, never on a measurement, so that results can be repeated.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from .backend import choose, current_backend
from .handwritten import Results, handwritten
from .native import linear_few_rows, through_autograd

#: Multiplications from which oneDNN's larger cost per call is paid back.
WORTH_IT = 2**21
#: Channels in, up to which writing a result of at least so many numbers once more shows beside the product.
FEW_CHANNELS, MANY_RESULTS = 96, 2**18


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Map the last axis: what :func:`torch.nn.functional.linear` computes, to float32 rounding.

    Args:
        x: ``(..., in)``.
        weight: ``(out, in)``.
        bias: ``(out,)``.

    Returns:
        ``(..., out)``, in the dtype of ``x``; gradients of all three, any number of times.
    """
    if not torch.is_grad_enabled() and _takes_few_rows(x, weight, bias):
        return linear_few_rows.multiply(x, weight, bias)
    # Asked first, and once per process: beside a product in a warm cache every further question is a cold one.
    if not SLOW_MKL and weight.shape[1] > FEW_CHANNELS:
        return F.linear(x, weight, bias)
    onednn = _onednn_linear if takes_onednn(x, weight, bias) else None
    return choose(F.linear, F.linear, onednn)(x, weight, bias)


def takes_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN takes these and is faster."""
    if torch.compiler.is_compiling():  # compilers choose for themselves, and cannot look at what comes here
        return False
    if not SLOW_MKL and (torch.is_grad_enabled() or not _shows_bias(x, weight)):
        return False
    if x.numel() * weight.shape[0] < WORTH_IT or not undisturbed():
        return False
    if not _has_onednn() or not torch.backends.mkldnn.enabled:
        return False
    return all(m is None or (m.dtype == torch.float32 and m.device.type == "cpu") for m in (x, weight, bias))


def _takes_few_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernel for few rows takes these and is faster than either library."""
    if torch.compiler.is_compiling() or x.numel() > linear_few_rows.MOST_ROWS * weight.shape[1]:
        return False
    return x.numel() * weight.shape[0] >= WORTH_IT and undisturbed() and linear_few_rows.fits(x, weight, bias)


def _shows_bias(x: Tensor, weight: Tensor) -> bool:
    """Whether writing the bias first, as MKL wants it, takes long beside the product."""
    outputs, inputs = weight.shape
    return inputs <= FEW_CHANNELS and x.numel() * outputs >= MANY_RESULTS * inputs


def transformed() -> bool:
    """Whether a function transform (vmap, jvp) or a tracer is at work: they look into what is computed."""
    inside = torch._C._functorch.peek_interpreter_stack() is not None  # type: ignore[attr-defined]
    return inside or forward_ad._current_level >= 0 or torch.jit.is_tracing()


def undisturbed() -> bool:
    """Whether "auto" or "native" may choose, and neither autocast nor a function transform is at work."""
    chosen = current_backend() in ("auto", "native")
    return chosen and not torch.is_autocast_enabled("cpu") and not transformed()


def _slow_mkl() -> bool:
    return (
        platform.machine() in ("x86_64", "AMD64")
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()
        and "Intel" not in _maker()
    )


@functools.cache
def _has_onednn() -> bool:
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _maker() -> str:
    """Who made the processor; "Intel", for whose processors nothing changes, where the system does not tell."""
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return platform.processor() or "Intel"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in lines if line.startswith("vendor_id")), "Intel")


#: Whether PyTorch's float32 products run MKL's AVX2 code on a processor that has AVX-512.
SLOW_MKL = _slow_mkl()


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # A second factor with gaps between its rows or columns ends in oneDNN's reference loop, hundreds of times as slow.
    if not (weight.is_contiguous() or weight.T.is_contiguous()):
        weight = weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor]:
    return (_multiply(x, weight, bias),)


def _backward(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Results:
    if torch.is_grad_enabled():  # to be differentiated once more: by what autograd sees through
        return through_autograd(lambda *given: (F.linear(*given),), (x, weight, bias), (grad,))
    rows, inputs = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
    grad_x, grad_weight = _multiply(grad, weight.T), _multiply(rows.T, inputs.T)
    return grad_x, grad_weight, None if bias is None else rows.sum(0)


def _shapes(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor]:
    return (torch.empty(*x.shape[:-1], weight.shape[0], dtype=x.dtype, device=x.device),)


_onednn = handwritten(
    "onednn_linear",
    "Tensor x, Tensor weight, Tensor? bias",
    outputs=1,
    extras=0,
    forward=_forward,
    backward=_backward,
    shapes=_shapes,
)


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _onednn(x, weight, bias)[0]
