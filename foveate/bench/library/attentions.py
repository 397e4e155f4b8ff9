"""Attention cores: softmax, sigmoid, neighborhood."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...measure.op_costs import op_cost
from ...ops.neighborhood_attention import neighborhood_attention
from ...ops.sigmoid_attention import sigmoid_attention
from ...ops.softmax_attention import softmax_attention
from ..cases import Problem, case

LENGTHS = (256, 1024, 4096)


def _dense(op: Any, name: str, length: int, causal: bool) -> Problem:
    q, k, v = torch.randn(3, 1, 8, length, 64)
    sizes = {"length": length, "causal": causal}
    cost = op_cost(name, length=length, heads=8, d=64, causal=causal)

    def ours(**given: Tensor) -> Tensor:
        return op(**given, causal=causal)

    return Problem(inputs={"q": q, "k": k, "v": v}, ours=ours, sizes=sizes, cost=cost)


@case("softmax_core", kind="op", about="8 heads of 64", sizes=LENGTHS)
def softmax(length: int) -> Problem:
    return _dense(softmax_attention, "softmax_attention", length, causal=False)


@case("softmax_causal_core", kind="op", about="causal, 8 heads of 64", sizes=LENGTHS)
def softmax_causal(length: int) -> Problem:
    return _dense(softmax_attention, "softmax_attention", length, causal=True)


@case("sigmoid_core", kind="op", about="causal, 8 heads of 64", sizes=LENGTHS)
def sigmoid(length: int) -> Problem:
    return _dense(sigmoid_attention, "sigmoid_attention", length, causal=True)


def _neighborhood(grid: tuple[int, ...], window: tuple[int, ...], **options: Any) -> Problem:
    """4 heads of 32 over a grid; ``options`` are those of the op."""
    q, k, v = torch.randn(3, 1, 4, *grid, 32)

    def ours(**given: Tensor) -> Tensor:
        return neighborhood_attention(**given, window=window, **options)  # type: ignore[return-value]

    known = {k: v for k, v in options.items() if k != "stride"}  # which changes who is seen, not how many
    cost = op_cost("neighborhood_attention", grid=grid, window=window, heads=4, d=32, **known)
    sizes = {"grid": grid, "window": window, **options}
    return Problem(inputs={"q": q, "k": k, "v": v}, ours=ours, sizes=sizes, cost=cost)


@case(
    "neighborhood_attention_2d",
    kind="op",
    about="window 7 x 7, 4 heads of 32",
    sizes=(14, 28, 56),
    unit="edge",
    order=2,
)
def image(edge: int) -> Problem:
    return _neighborhood((edge, edge), (7, 7))


@case(
    "neighborhood_attention_2d_even",
    kind="op",
    about="window 8 x 8, 4 heads of 32",
    sizes=(28, 56),
    unit="edge",
    order=2,
)
def image_even(edge: int) -> Problem:
    return _neighborhood((edge, edge), (8, 8))


@case(
    "neighborhood_attention_2d_dilated",
    kind="op",
    about="window 7 x 7, dilation 2, 4 heads of 32",
    sizes=(28, 56),
    unit="edge",
    order=2,
)
def image_dilated(edge: int) -> Problem:
    return _neighborhood((edge, edge), (7, 7), dilation=(2, 2))


@case(
    "neighborhood_attention_2d_strided",
    kind="op",
    about="window 7 x 7, stride 2, 4 heads of 32",
    sizes=(28, 56),
    unit="edge",
    order=2,
)
def image_strided(edge: int) -> Problem:
    return _neighborhood((edge, edge), (7, 7), stride=(2, 2))


@case(
    "neighborhood_attention_2d_causal",
    kind="op",
    about="window 7 x 7, causal along both axes, 4 heads of 32",
    sizes=(28, 56),
    unit="edge",
    order=2,
)
def image_causal(edge: int) -> Problem:
    return _neighborhood((edge, edge), (7, 7), causal=(True, True))


@case(
    "neighborhood_attention_3d",
    kind="op",
    about="frames of 28 x 28, window 5 x 7 x 7, 4 heads of 32",
    sizes=(8, 16),
    unit="frames",
    reference_up_to=8,
)
def video(frames: int) -> Problem:
    return _neighborhood((frames, 28, 28), (5, 7, 7))
