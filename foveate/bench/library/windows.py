"""Window attention as image backbones have it, and sampling at points."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ...measure.op_costs import op_cost
from ...mixers.swin import ShiftedWindows
from ...ops.sample_at import sample_at
from ...ops.shifted_window_attention import Biases, shifted_window_attention, takes_layer, window_attention
from ...ops.shifted_windows import axes_of
from ..cases import Problem, case

#: Edges of Swin-T's maps of an image of 224 px, and of Swin UNETR's of a volume of 96 voxels.
IMAGE, VOLUME = (7, 14, 28, 56), (6, 12, 24, 48)
#: Channels and heads of the largest map; both double where the edge is halved.
SWIN, UNETR_24, UNETR_48 = (96, 3), (24, 3), (48, 3)
#: The definition's copies of volumes are large.
VOLUME_UP_TO = 12


def _layer(edges: tuple[int, ...], rank: int, batch: int, first: tuple[int, int], edge: int) -> Problem:
    """From the queries' projection to the output's, shifted where the map is larger than a window."""
    (dim, heads), factor = first, max(1, edges[-1] // edge)
    dim, heads, window = dim * factor, heads * factor, (min(7, edge),) * rank
    mixer = ShiftedWindows.for_layer(1, 2, dim, num_heads=heads, window=window).eval()
    torch.nn.init.normal_(mixer.relative_position_bias_table)
    return Problem(
        inputs={"x": torch.randn(batch, *(edge,) * rank, dim)},
        ours=mixer,
        module=mixer,
        sizes={"grid": (edge,) * rank, "heads": heads, "window": window},
        cost=mixer.cost((edge,) * rank, batch),
    )


def _between(batch: int, edge: int) -> Problem:
    """The same without the two products, which run on the same library everywhere: from their results on."""
    layer = _layer(IMAGE, 2, batch, SWIN, edge)
    mixer: Any = layer.module
    grid, window, heads = (layer.sizes[name] for name in ("grid", "window", "heads"))
    axes = axes_of(grid, window, 0 if grid == window else mixer.shift, "blocks")

    def ours(x: Tensor, qkv: Tensor) -> Tensor:
        biases = Biases(mixer.relative_position_bias_table, mixer.index_on(window))
        if not takes_layer(qkv, axes, biases.table):
            return reference(x, qkv)
        return window_attention(qkv, None, biases, axes, heads)

    def reference(x: Tensor, qkv: Tensor) -> Tensor:
        q, k, v = qkv.unflatten(-1, (3, heads, -1)).movedim(-2, 1).unbind(-2)
        shift = tuple(axis.shift for axis in axes)
        y = shifted_window_attention(q, k, v, window, shift=shift, bias=mixer.bias_on(window))
        return y.movedim(1, -2).flatten(-2)

    return Problem(
        inputs={"x": layer.inputs["x"], "qkv": torch.randn(batch, *grid, 3 * mixer.dim)},
        ours=ours,
        reference=reference,
        module=mixer,
        sizes=layer.sizes,
    )


for _batch in (1, 8):
    # Tokens grow with the square of the edge, but channels fall with it.
    _images = functools.partial(case, sizes=IMAGE, unit="edge", order=1)
    _images(
        f"shifted_windows_batch{_batch}",
        kind="mixer",
        about=f"Swin-T's layers, windows of 7 x 7, {_batch} images; edge 56: width 96, 3 heads",
    )(functools.partial(_layer, IMAGE, 2, _batch, SWIN))
    _images(
        f"shifted_windows_between_batch{_batch}",
        kind="op",
        about=f"Swin-T's layers without their products, windows of 7 x 7, {_batch} images; edge 56: 3 heads of 32",
        passes=("forward",),
    )(functools.partial(_between, _batch))

for _first in (UNETR_24, UNETR_48):
    case(
        f"shifted_windows_3d_width{_first[0]}",
        kind="mixer",
        about=f"Swin UNETR's layers, windows of 7 x 7 x 7; edge 48: width {_first[0]}, 3 heads",
        sizes=VOLUME,
        unit="edge",
        order=2,
        reference_up_to=VOLUME_UP_TO,
    )(functools.partial(_layer, VOLUME, 3, 1, _first))


def _core(rank: int, window: int, heads: int, d: int, edge: int) -> Problem:
    """The op alone, on the projection's views."""
    grid, n = (edge,) * rank, window**rank
    q, k, v = torch.randn(1, *grid, 3, heads, d).movedim(-2, 1).unbind(-2)
    shift = window // 2

    def ours(**given: Any) -> Tensor:
        return shifted_window_attention(**given, window=window, shift=shift)

    return Problem(
        inputs={"q": q, "k": k, "v": v, "bias": torch.randn(heads, n, n)},
        ours=ours,
        sizes={"grid": grid, "window": (window,) * rank, "shift": shift},
        cost=op_cost("shifted_window_attention", grid=grid, window=(window,) * rank, d=d, heads=heads),
    )


case(
    "shifted_window_core",
    kind="op",
    about="windows of 7 x 7, shifted, biased, 3 heads of 32",
    sizes=(14, 28, 56),
    unit="edge",
    order=2,
    forms=("torch",),
)(functools.partial(_core, 2, 7, 3, 32))

case(
    "shifted_window_3d_core",
    kind="op",
    about="windows of 7 x 7 x 7, shifted, biased, 3 heads of 8",
    sizes=(14, 28),
    unit="edge",
    order=3,
    forms=("torch",),
    reference_up_to=14,
)(functools.partial(_core, 3, 7, 3, 8))


@case(
    "sample_at_core",
    kind="op",
    about="a point for each pixel, near it, 3 heads of 32",
    sizes=(14, 28, 56),
    unit="edge",
    order=2,
    forms=("torch",),
)
def sampling(edge: int) -> Problem:
    """Each head reads its own places, as learned windows do."""
    x = torch.randn(1, edge, edge, 3, 32).movedim(-2, 1)
    rows, columns = torch.meshgrid(torch.arange(edge), torch.arange(edge), indexing="ij")
    points = torch.stack((columns, rows), -1) + 2 * torch.randn(1, 3, edge, edge, 2)
    cost = op_cost("sample_at", points=edge**2, d=32, height=edge, width=edge, heads=3)
    return Problem(inputs={"x": x, "points": points}, ours=sample_at, sizes={"edge": edge}, cost=cost)
