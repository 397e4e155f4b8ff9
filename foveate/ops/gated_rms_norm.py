"""RMS normalisation of a gated signal, as Mamba-2 has it before its output projection (arXiv 2405.21060, section 7.1).

    out = weight * g / sqrt(mean(g^2) + eps),        g = y * silu(z),

with the mean over each group of channels. The gate, the norm and the weight are elementwise but for one mean; done as
separate operations they would keep five activations for the backward pass, which here are made again from y and z.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidValue
from ..registry import register
from .backend import choose
from .handwritten import Results, handwritten, planning_batch, sum_dtype

#: Numbers (batch, positions, channels) in a block.
BLOCK_NUMBERS = 2**17


@register("op", "gated_rms_norm", system="mamba2")
def gated_rms_norm(y: Tensor, z: Tensor, weight: Tensor, groups: int = 1, eps: float = 1e-5) -> Tensor:
    """Normalise ``y * silu(z)`` within groups of channels.

    Args:
        y: signal ``(batch, ..., channels)``.
        z: gate, of the same shape.
        weight: ``(channels,)``.
        groups: number of groups of neighbouring channels that are normalised apart; it divides ``channels``.
        eps: added to the mean square.

    Returns:
        The shape and dtype of ``y``; computed in float32 (float64 for float64).

    Raises:
        InvalidValue: shapes that do not fit together, groups that do not divide the channels.
    """
    if y.shape != z.shape:
        raise InvalidValue(f"z has shape {tuple(z.shape)}: it must be that of y, {tuple(y.shape)}.")
    channels = y.shape[-1]
    if tuple(weight.shape) != (channels,):
        raise InvalidValue(f"weight has shape {tuple(weight.shape)}: it must be {(channels,)}.")
    if groups < 1 or channels % groups:
        raise InvalidValue(f"groups={groups!r} is not possible: it must divide the {channels} channels.")
    shape = y.shape
    flat = (y.unsqueeze(1).flatten(1, -2), z.unsqueeze(1).flatten(1, -2))  # (batch, n, channels)
    (out,) = choose(_reference, _fused)(*flat, weight, groups, eps)
    return out.reshape(shape)


def _reference(y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float) -> tuple[Tensor]:
    real = sum_dtype(y.dtype)
    g = (y.to(real) * F.silu(z.to(real))).unflatten(-1, (groups, -1))
    normal = g / torch.sqrt(g.square().mean(-1, keepdim=True) + eps)
    return ((normal.flatten(-2) * weight).to(y.dtype),)


def _spans(y: Tensor) -> list[slice]:
    block = max(16, BLOCK_NUMBERS // (planning_batch(y) * y.shape[2]))
    return [slice(start, start + block) for start in range(0, y.shape[1], block)]


def _normal(y: Tensor, z: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """The normalised signal ``(batch, n, G, channels / G)``, and what it was multiplied by."""
    g = (y * F.silu(z)).unflatten(-1, (groups, -1))
    scale = torch.rsqrt(g.square().mean(-1, keepdim=True) + eps)
    return g.mul_(scale), scale


def _forward(y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float) -> tuple[Tensor]:
    real = sum_dtype(y.dtype)
    (out,) = _shapes(y, z, weight, groups, eps)
    for span in _spans(y):
        normal, _ = _normal(y[:, span].to(real), z[:, span].to(real), groups, eps)
        out[:, span] = normal.flatten(-2) * weight
    return (out,)


def _backward(grad: Tensor, y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float) -> Results:
    real = sum_dtype(y.dtype)
    grad_y, grad_z = torch.empty_like(y), torch.empty_like(z)
    grad_weight = torch.zeros(weight.shape, dtype=real, device=y.device)
    for span in _spans(y):
        here, gate = y[:, span].to(real), z[:, span].to(real)
        normal, scale = _normal(here, gate, groups, eps)
        g = grad[:, span].to(real)
        grad_weight += (g * normal.flatten(-2)).sum((0, 1))
        g = (g * weight).unflatten(-1, (groups, -1))
        g = (g - normal * (g * normal).mean(-1, keepdim=True)).mul_(scale).flatten(-2)
        grad_y[:, span] = g * F.silu(gate)
        grad_z[:, span] = torch.ops.aten.silu_backward(g * here, gate)
    return grad_y, grad_z, grad_weight


def _shapes(y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float) -> tuple[Tensor]:
    return (torch.empty(y.shape, dtype=y.dtype, device=y.device),)


_fused = handwritten(
    "gated_rms_norm",
    "Tensor y, Tensor z, Tensor weight, int groups, float eps",
    outputs=1,
    extras=0,
    forward=_forward,
    backward=_backward,
    shapes=_shapes,
)
