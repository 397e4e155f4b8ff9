"""The kernel of neighborhood attention against its definition."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.measure.isolated import peak_bytes_of
from foveate.ops import backend
from foveate.ops.neighborhood_attention import neighborhood_attention
from tests.agreement import Maker, agree, dtypes, examples, needs_kernels

pytestmark = needs_kernels

#: The largest window, and what an axis may be longer than it, by rank.
LARGEST = {1: (90, 60), 2: (9, 16), 3: (5, 5)}


@st.composite
def neighborhoods(draw: st.DrawFn) -> tuple[dict[str, Any], torch.dtype]:
    dtype, flag, rank = draw(dtypes), st.booleans(), draw(st.integers(1, 3))
    real = torch.float64 if dtype == torch.float64 else torch.float32
    biased, (most, more) = draw(flag), LARGEST[rank]
    window = [draw(st.integers(2, most)) | int(biased) for _ in range(rank)]
    dilation = [draw(st.sampled_from((1, 1, 2, 3))) for _ in range(rank)]
    stride = [draw(st.integers(1, w)) if draw(flag) else 1 for w in window]
    causal = [not biased and draw(flag) and draw(flag) for _ in range(rank)]
    grid = [w * d + draw(st.integers(0, more)) for w, d in zip(window, dilation, strict=True)]
    batch, key_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    width, value_width = draw(st.integers(1, 40)), draw(st.integers(1, 20))
    make = Maker(draw(st.integers(0, 2**31)), dtype)
    extra = draw(st.integers(1, 3)) if draw(flag) and draw(flag) else 0
    return {
        "q": make.tensor(batch, key_heads * group, *grid, width),
        "k": make.tensor(batch, key_heads, *grid, width),
        "v": make.tensor(batch, key_heads, *grid, value_width),
        "window": tuple(window),
        "dilation": tuple(dilation),
        "stride": tuple(stride),
        "causal": tuple(causal),
        "bias": make.tensor(key_heads * group, *(2 * w - 1 for w in window), dtype=real) if biased else None,
        "scale": 0.4 if draw(flag) else None,
        "extra_k": make.tensor(batch, key_heads, extra, width) if extra else None,
        "extra_v": make.tensor(batch, key_heads, extra, value_width) if extra else None,
    }, dtype


@given(neighborhoods())
@examples(60)
def test_equals_dense_attention_under_the_mask(case: tuple[dict[str, Any], torch.dtype]):
    agree(lambda **arguments: neighborhood_attention(**arguments, return_lse=True), *case)


def test_gradients_by_differences():
    make = Maker(0, torch.float64)
    inputs = [make.tensor(1, heads, 5, 7, 3).requires_grad_() for heads in (2, 1, 1)]
    inputs.append(make.tensor(2, 5, 9).requires_grad_())

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return neighborhood_attention(q, k, v, (3, 5), bias=bias, return_lse=True)  # type: ignore[return-value]

    with backend("native"):
        assert torch.autograd.gradcheck(attend, inputs)
        assert torch.autograd.gradgradcheck(attend, inputs, fast_mode=True)


@pytest.mark.parametrize("grid", [(300,), (17, 40), (4, 9, 12)])
def test_what_is_not_seen_may_be_anything(grid: tuple[int, ...]):
    # A weight of zero times NaN would be NaN: nothing that is not seen may be multiplied at all.
    make, rank = Maker(1, torch.float32), len(grid)
    q, k, v = (make.tensor(1, 2, *grid, 8) for _ in range(3))
    options: dict[str, Any] = {"causal": (True, *[False] * (rank - 1)), "stride": 2}
    last = grid[0] - 3
    with backend("native"):
        expected = neighborhood_attention(q, k, v, 3, **options)
        for m in (q, k, v):
            m[:, :, last:] = float("nan")
        q, k, v = (m.requires_grad_() for m in (q, k, v))
        found = neighborhood_attention(q, k, v, 3, **options)
        assert isinstance(found, torch.Tensor)
        gradients = torch.autograd.grad(found[:, :, :last].sum(), (q, k, v))
    assert torch.equal(found[:, :, :last], expected[:, :, :last])  # type: ignore[index]
    for gradient in gradients:
        assert gradient[:, :, : last - 6].isfinite().all()


def test_memory_does_not_grow_with_the_window():
    setup = """
from foveate.ops.neighborhood_attention import neighborhood_attention
given = [torch.randn(1, 2, 96, 96, 16, requires_grad=True) for _ in range(3)]
def run(window):
    torch.autograd.grad(neighborhood_attention(*given, window).sum(), given)
run(3)
"""
    small, large = (peak_bytes_of(f"run({window})", setup) for window in (9, 33))
    weights = 2 * 96**2 * (33**2 - 9**2) * 4
    assert large - small < weights / 10


CODE = """
import hashlib, sys, torch
from foveate.ops.neighborhood_attention import neighborhood_attention
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
q, k, v = (torch.randn(2, 3, 8, 21, 30, 16, requires_grad=True) for _ in range(3))
bias = torch.randn(3, 5, 9, 13, requires_grad=True)
y = neighborhood_attention(q, k, v, (3, 5, 7), dilation=(2, 1, 1), bias=bias)
for m in (y, *torch.autograd.grad(y, (q, k, v, bias), y.detach())):
    print(hashlib.sha256(m.detach().contiguous().numpy().tobytes()).hexdigest())
"""


def test_bits_do_not_depend_on_threads():
    one, two = (
        subprocess.run([sys.executable, "-c", CODE, n], capture_output=True, text=True, check=True).stdout
        for n in ("1", "2")
    )
    assert len(one.splitlines()) == 5
    assert one == two
