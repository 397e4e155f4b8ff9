"""Attention cores: softmax, sigmoid, block-sparse, neighborhood."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...measure.op_costs import op_cost
from ...ops.block_sparse_attention import block_sparse_attention
from ...ops.block_sparse_gather import visible_pairs
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


#: The definition's matrices of weights would not fit any more.
REFERENCE_UP_TO = 4096
LONGER = (*LENGTHS, 8192)


@case("softmax_core", kind="op", about="8 heads of 64", sizes=LONGER, reference_up_to=REFERENCE_UP_TO)
def softmax(length: int) -> Problem:
    return _dense(softmax_attention, "softmax_attention", length, causal=False)


@case("softmax_causal_core", kind="op", about="causal, 8 heads of 64", sizes=LONGER, reference_up_to=REFERENCE_UP_TO)
def softmax_causal(length: int) -> Problem:
    return _dense(softmax_attention, "softmax_attention", length, causal=True)


@case("softmax_prefill_core", kind="op", about="the last 512 queries, causal, 8 heads of 64", sizes=(1024, 8192))
def softmax_prefill(length: int) -> Problem:
    """A stretch that is read after a cache."""
    problem = _dense(softmax_attention, "softmax_attention", length, causal=True)
    inputs = {**problem.inputs, "q": problem.inputs["q"][:, :, -512:]}
    cost = op_cost("softmax_attention", length=512, key_length=length, heads=8, d=64, causal=True)
    return replace(problem, inputs=inputs, cost=cost)


@case(
    "softmax_masked_core",
    kind="op",
    about="causal, half of the keys are padding, 8 heads of 64",
    sizes=LONGER,
    reference_up_to=REFERENCE_UP_TO,
)
def softmax_masked(length: int) -> Problem:
    problem = _dense(softmax_attention, "softmax_attention", length, causal=True)
    mask = (torch.arange(length) < length // 2)[None]
    return replace(problem, inputs={**problem.inputs, "mask": mask}, cost=None)  # fewer pairs than the formula counts


#: Where sigmoid attention must be as fast as PyTorch's softmax.
SIGMOID = (256, 1024, 2048, 4096, 8192, 16384)


@case("sigmoid_core", kind="op", about="causal, 8 heads of 64", sizes=SIGMOID, reference_up_to=REFERENCE_UP_TO)
def sigmoid(length: int) -> Problem:
    return _dense(sigmoid_attention, "sigmoid_attention", length, causal=True)


@case("sigmoid_dense_core", kind="op", about="8 heads of 64", sizes=SIGMOID, reference_up_to=REFERENCE_UP_TO)
def sigmoid_dense(length: int) -> Problem:
    return _dense(sigmoid_attention, "sigmoid_attention", length, causal=False)


BLOCK, KEPT = 64, 0.1


def random_blocks(heads: int, length: int) -> Tensor:
    """A tenth of the causal blocks of 64, others for each head, the diagonal's among them: ``(1, heads, n, n)``."""
    n = -(-length // BLOCK)
    chance = torch.rand(heads, n, n).tril(-1).flatten(1)
    many = max(0, round(KEPT * n * (n + 1) / 2) - n)
    kept = torch.zeros_like(chance, dtype=torch.bool).scatter(1, chance.topk(many).indices, True).view(heads, n, n)
    return (kept | torch.eye(n, dtype=torch.bool))[None]


@case(
    "block_sparse_core",
    kind="op",
    about="causal, a tenth of the blocks of 64, 8 heads of 64",
    sizes=(2048, 4096, 8192, 16384),
    forms=("torch",),
    reference_up_to=2048,
)
def block_sparse(length: int) -> Problem:
    q, k, v = torch.randn(3, 1, 8, length, 64)
    blocks = random_blocks(8, length)

    def ours(**given: Tensor) -> Tensor:
        return block_sparse_attention(**given, block_size=BLOCK)  # type: ignore[return-value]

    pairs = visible_pairs(q, k, blocks, None, None, BLOCK, BLOCK, True, 0, 0)
    cost = op_cost("block_sparse_attention", pairs=pairs, length=length, heads=8, d=64)
    sizes = {"length": length, "block": BLOCK}
    return Problem(inputs={"q": q, "k": k, "v": v, "blocks": blocks}, ours=ours, sizes=sizes, cost=cost)


def _neighborhood(grid: tuple[int, ...], window: tuple[int, ...], **options: Any) -> Problem:
    """4 heads of 32 over a grid; ``options`` are those of the op."""
    q, k, v = torch.randn(3, 1, 4, *grid, 32)

    def ours(**given: Tensor) -> Tensor:
        return neighborhood_attention(**given, window=window, **options)  # type: ignore[return-value]

    known = {k: v for k, v in options.items() if k != "stride"}  # which changes who is seen, not how many
    cost = op_cost("neighborhood_attention", grid=grid, window=window, heads=4, d=32, **known)
    sizes = {"grid": grid, "window": window, **options}
    return Problem(inputs={"q": q, "k": k, "v": v}, ours=ours, sizes=sizes, cost=cost)


#: Ends of names, what they are, windows and options of neighborhood attention on an image.
IMAGES: tuple[tuple[str, str, int, dict[str, Any]], ...] = (
    ("", "", 7, {}),
    ("_even", "", 8, {}),
    ("_dilated", ", dilation 2", 7, {"dilation": (2, 2)}),
    ("_strided", ", stride 2", 7, {"stride": (2, 2)}),
    ("_causal", ", causal along both axes", 7, {"causal": (True, True)}),
)


def _image(window: int, options: dict[str, Any], edge: int) -> Problem:
    return _neighborhood((edge, edge), (window, window), **options)


for _end, _what, _window, _options in IMAGES:
    case(
        f"neighborhood_attention_2d{_end}",
        kind="op",
        about=f"window {_window} x {_window}{_what}, 4 heads of 32",
        sizes=(14, 28, 56) if not _end else (28, 56),
        unit="edge",
        order=2,
    )(functools.partial(_image, _window, _options))


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
