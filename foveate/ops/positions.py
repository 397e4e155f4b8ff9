"""Positions: rotary embedding (RoPE) and linear biases (ALiBi).

RoPE (Su et al. 2021, arXiv 2104.09864, eq. 34): channel pair i of a head at position t is turned by the angle
``t * base^(-2 i / d)``, so that the product of a query and a key depends on their distance only. Which channels form a
pair is a convention that weights must agree with: "rotate half" pairs channel i with ``i + d/2`` (GPT-NeoX, Llama in
transformers), "interleaved" pairs ``2 i`` with ``2 i + 1`` (the paper, GPT-J).

ALiBi (Press et al. 2022, arXiv 2108.12409, section 3): no embedding; ``slope_h * distance`` is subtracted from the
scores of head h. For a power of two of heads ``slope_h = 2^(-8 (h + 1) / heads)``; for other counts the slopes of the
next lower power of two P come first and every second slope of 2 P fills up, as the authors' code has it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InvalidType, InvalidValue
from .handwritten import sum_dtype


def rope_angles(positions: Tensor, head_dim: int, base: float = 10000.0) -> Tensor:
    """Angles of all channel pairs.

    Args:
        positions: int64 ``(..., length)``.
        head_dim: even width of a head.
        base: ratio of the longest to the shortest wavelength, roughly.

    Returns:
        float32 ``(..., length, head_dim / 2)``, in radians.

    Raises:
        InvalidValue: an odd width or a base that is not positive.
    """
    if head_dim < 2 or head_dim % 2:
        raise InvalidValue(f"head_dim={head_dim!r} is not possible: RoPE turns channel pairs, so it must be even.")
    if not base > 0:
        raise InvalidValue(f"base={base!r} is not possible: it must be positive.")
    pair = torch.arange(head_dim // 2, device=positions.device, dtype=torch.float32)
    return positions.float()[..., None] * base ** (-2.0 * pair / head_dim)


def apply_rope(x: Tensor, positions: Tensor, base: float = 10000.0, *, interleaved: bool = False) -> Tensor:
    """Turn queries or keys by their positions.

    Args:
        x: ``(batch, heads, length, head_dim)``.
        positions: int64 ``(length,)``, or ``(batch, length)`` where samples differ.
        base: see :func:`rope_angles`.
        interleaved: pair channels ``2 i`` and ``2 i + 1`` instead of ``i`` and ``i + head_dim / 2``.

    Returns:
        Same shape and dtype; the rotation itself is computed in float32 (float64 for float64 input).

    Raises:
        InvalidValue: shapes do not fit.
        InvalidType: positions are not whole numbers.
    """
    if positions.is_floating_point():
        raise InvalidType(f"positions must be int64, not {positions.dtype}.")
    batch, _, length, width = x.shape
    if positions.shape not in ((length,), (batch, length)):
        raise InvalidValue(
            f"positions have shape {tuple(positions.shape)}; ({length},) or ({batch}, {length}) is legal."
        )
    precise = sum_dtype(x.dtype)
    angles = rope_angles(positions, width, base).to(precise)
    if positions.ndim == 2:
        angles = angles[:, None]
    cos, sin = angles.cos(), angles.sin()
    wide = x.to(precise)
    first, second = wide.unflatten(-1, (-1, 2)).unbind(-1) if interleaved else wide.chunk(2, dim=-1)
    turned = (first * cos - second * sin, first * sin + second * cos)
    out = torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)
    return out.to(x.dtype)


def slope_values(heads: int) -> list[float]:
    """The published slopes of ALiBi, steepest first within each of the two sets.

    Raises:
        InvalidValue: no heads.
    """
    if not isinstance(heads, int) or heads < 1:
        raise InvalidValue(f"heads={heads!r} is not possible: a positive whole number is needed.")
    lower = 1 << (heads.bit_length() - 1)
    exponents = [8.0 * (h + 1) / lower for h in range(lower)]
    exponents += [8.0 * (h + 1) / (2 * lower) for h in range(0, 2 * (heads - lower), 2)]
    return [2.0**-e for e in exponents]


def alibi_slopes(heads: int) -> Tensor:
    """:func:`slope_values` as float32 ``(heads,)``."""
    return torch.tensor(slope_values(heads))


def alibi_bias(slopes: Tensor, query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """What ALiBi adds to the scores: ``-slope * |query position - key position|``.

    The absolute value makes it symmetric for attention in both directions. The result has one matrix per head, and
    one per sample only if positions differ between samples.

    Args:
        slopes: ``(heads,)``.
        query_positions: int64 ``(length,)`` or ``(batch, length)``.
        key_positions: int64 ``(key_length,)`` or ``(batch, key_length)``.

    Returns:
        ``(1 or batch, heads, length, key_length)`` in the dtype of ``slopes``.
    """
    distance = (query_positions[..., :, None] - key_positions[..., None, :]).abs().to(slopes.dtype)
    if distance.ndim == 2:
        distance = distance[None]
    return distance[:, None] * -slopes[:, None, None]
