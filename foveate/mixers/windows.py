"""What mixers share that attend in windows between two linear maps."""

from __future__ import annotations

from torch import Tensor

from ..ops.shifted_window_attention import MOST_CHANNELS, Biases, takes_layer, window_attention, window_layer
from ..ops.shifted_windows import Axis
from .parts import Linear, watched


def by_kernels(
    x: Tensor, qkv: Linear, proj: Linear, axes: tuple[Axis, ...], num_heads: int, biases: Biases | None = None
) -> Tensor | None:
    """Projections and attention in blocks by kernels, where nothing is differentiated: of few channels all by one.

    Args:
        x: ``(batch, *grid, dim)``.
        qkv: to queries, keys and values.
        proj: of the heads' outputs.
        axes: size, window and shift along each axis.
        num_heads: of ``dim // num_heads`` channels.
        biases: added to scores.

    Returns:
        ``(batch, *grid, dim)``; None where the kernels do not take this, or hooks look at the maps.
    """
    weights = qkv.weight, qkv.bias, proj.weight, proj.bias
    if not takes_layer(x, axes, *weights, None if biases is None else biases.table):
        return None
    if type(qkv) is not Linear or type(proj) is not Linear or watched(qkv, proj):
        return None
    if x.shape[-1] <= MOST_CHANNELS:
        return window_layer(x, *weights, biases, axes, num_heads)
    return proj(window_attention(qkv(x), qkv.bias, biases, axes, num_heads))
