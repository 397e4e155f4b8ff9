"""The Triton form of neighborhood attention against its definition, in Triton's interpreter."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are first imported

from foveate.ops.neighborhood_attention import neighborhood_attention
from tests.agreement import Maker, agree

kernels = pytest.importorskip("foveate.ops.triton.neighborhood_attention", reason="triton is not installed")

CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "line": ((37,), {"window": 7}),
    "even": ((41,), {"window": 8, "stride": 5}),
    "strided line": ((41,), {"window": 8, "stride": 4}),
    "causal line": ((50,), {"window": 9, "causal": True, "stride": 4}),
    "dilated line": ((53,), {"window": 5, "dilation": 3, "group": 2}),
    "whole axis": ((21,), {"window": 21}),
    "plane": ((9, 10), {"window": (3, 4), "group": 2}),
    "strided plane": ((9, 11), {"window": (5, 4), "stride": (3, 4), "causal": (True, False)}),
    "dilated plane": ((7, 12), {"window": 3, "dilation": (2, 3), "stride": (1, 2)}),
    "volume": ((4, 5, 6), {"window": (2, 3, 5), "causal": (True, False, False), "stride": (2, 1, 3), "batch": 1}),
    "biased line": ((35,), {"window": 5, "dilation": 2, "stride": 2, "bias": True}),
    "biased plane": ((6, 7), {"window": (3, 5), "bias": True, "group": 2, "batch": 1, "stride": (2, 1)}),
    "biased volume": ((5, 3, 3), {"window": 3, "bias": True, "stride": (2, 1, 1), "batch": 1, "heads": 1}),
    "extra keys": ((19,), {"window": 3, "extra": 2, "group": 2, "scale": 0.4}),
    "double": ((5, 6), {"window": 3, "bias": True, "batch": 1, "dtype": torch.float64}),
    "bfloat16": ((5, 6), {"window": 3, "bias": True, "batch": 1, "dtype": torch.bfloat16}),
}


def make(
    grid: tuple[int, ...],
    *,
    window: int | tuple[int, ...],
    batch: int = 2,
    heads: int = 2,
    group: int = 1,
    bias: bool = False,
    extra: int = 0,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> dict[str, Any]:
    make = Maker(sum(grid), dtype)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    windows = (window,) * len(grid) if isinstance(window, int) else window
    return {
        "q": make.tensor(batch, heads, *grid, 5),
        "k": make.tensor(batch, heads // group, *grid, 5),
        "v": make.tensor(batch, heads // group, *grid, 18),
        "window": window,
        "bias": make.tensor(heads, *(2 * w - 1 for w in windows), dtype=real) if bias else None,
        "extra_k": make.tensor(batch, heads // group, extra, 5) if extra else None,
        "extra_v": make.tensor(batch, heads // group, extra, 18) if extra else None,
        **options,
    }


@pytest.mark.parametrize("case", CASES)
def test_equals_dense_attention_under_the_mask(case: str, monkeypatch: pytest.MonkeyPatch):
    taken, form = [], kernels.neighborhood_attention_triton
    monkeypatch.setattr(kernels, "neighborhood_attention_triton", lambda *values: taken.append(1) or form(*values))
    monkeypatch.setattr(kernels, "TILE", 16)  # several programs, the last one not full
    grid, options = CASES[case]
    given = make(grid, **options)
    agree(lambda **inputs: neighborhood_attention(**inputs, return_lse=True), given, given["q"].dtype, "triton")
    assert taken


def test_float16():
    given = make((9, 10), window=(3, 4), batch=1, heads=1, dtype=torch.float16)
    agree(lambda **inputs: neighborhood_attention(**inputs, return_lse=True), given, torch.bfloat16, "triton")


@pytest.mark.parametrize(
    ("lengths", "tile", "edges"),
    [
        ([1, 1, 90], 32, [1, 1, 32]),
        ([1, 56, 56], 32, [1, 4, 8]),
        ([8, 8, 8], 32, [2, 4, 4]),
        ([3, 1, 9], 16, [2, 1, 8]),
    ],
)
def test_edges_of_a_tile(lengths: list[int], tile: int, edges: list[int]):
    assert kernels.edges_of(lengths, tile) == edges


def test_wide_heads_are_left_to_torch():
    q = torch.zeros(1, 1, 3, 257)
    assert kernels.fits(q[..., :256], q[..., :256], q[..., :256], None)
    assert not kernels.fits(q, q, q[..., :1], None)
    assert not kernels.fits(q[..., :1], q[..., :1], q, None)
