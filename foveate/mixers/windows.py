"""What mixers share that attend in windows between two linear maps."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..ops.shifted_window_attention import takes_layer, window_layer
from ..ops.shifted_windows import Axis
from .parts import Linear, watched


def in_one_pass(
    x: Tensor,
    qkv: Linear,
    proj: Linear,
    axes: tuple[Axis, ...],
    num_heads: int,
    bias: Callable[[], Tensor] | None = None,
) -> Tensor | None:
    """Projections and attention in blocks by one kernel, where nothing is differentiated.

    Args:
        x: ``(batch, *grid, dim)``.
        qkv: to queries, keys and values.
        proj: of the heads' outputs.
        axes: size, window and shift along each axis.
        num_heads: of ``dim // num_heads`` channels.
        bias: gives float32 ``(heads, n, n)``, added to scores.

    Returns:
        ``(batch, *grid, dim)``; None where the kernel does not take this, or hooks look at the maps.
    """
    weights = qkv.weight, qkv.bias, proj.weight, proj.bias
    if not takes_layer(x, axes, *weights) or type(qkv) is not Linear or type(proj) is not Linear or watched(qkv, proj):
        return None
    return window_layer(x, *weights, None if bias is None else bias(), axes, num_heads)
