"""The kernel behind matrix products against PyTorch's functions, step by step."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from foveate.ops.native import takes_float32
from foveate.ops.native.epilogue import FUNCTIONS, finish
from tests.agreement import examples, needs_kernels

pytestmark = needs_kernels

STEPS = {"none": lambda x: x, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu}


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor | None, str, tuple[Tensor, ...], Tensor | None]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    grid = draw(st.lists(st.integers(1, 9), min_size=0, max_size=3))
    widths = draw(st.lists(st.integers(0, 40), min_size=1, max_size=3).filter(lambda each: sum(each) > 0))

    def tensor(*shape: int, gaps: int = 0) -> Tensor:
        # As slices of projections come: rows lie apart.
        return torch.randn(*shape[:-1], shape[-1] + gaps, generator=generator)[..., : shape[-1]]

    channels, gaps = sum(widths), draw(st.integers(0, 3))
    y = 3 * tensor(*grid, channels)
    bias = tensor(channels) if draw(st.booleans()) else None
    kind = draw(st.sampled_from(["none", "each", "channels", "parts"]))
    factors = {
        "none": (),
        "each": (tensor(*grid, channels, gaps=gaps),),
        "channels": (tensor(channels),),
        "parts": tuple(tensor(*grid, width, gaps=gaps) for width in widths),
    }[kind]
    plus = tensor(*grid, channels, gaps=gaps) if draw(st.booleans()) else None
    return y, bias, draw(st.sampled_from(sorted(FUNCTIONS))), factors, plus


@given(cases())
@examples(150)
def test_equals_the_steps(case: tuple[Tensor, Tensor | None, str, tuple[Tensor, ...], Tensor | None]):
    y, bias, activation, factors, plus = case
    expected = STEPS[activation]((y if bias is None else y + bias).double())
    if factors:
        expected = expected * (factors[0] if len(factors) == 1 else torch.cat(factors, -1))
    expected = expected if plus is None else expected + plus
    mine = y.clone()
    assert finish(mine, bias, activation, factors, plus) is mine
    torch.testing.assert_close(mine.double(), expected, rtol=2e-6, atol=4e-6)


@pytest.mark.parametrize("activation", [name for name in FUNCTIONS if name != "none"])
def test_the_functions_are_as_exact_as_torchs(activation: str):
    x = torch.cat([torch.linspace(-9, 9, 200_001), torch.logspace(-20, 30, 1001), -torch.logspace(-20, 1, 501)])
    exact = STEPS[activation](x.double())
    mine, theirs = finish(x.clone(), None, activation), STEPS[activation](x)
    scale = x.double().abs() + 1e-30
    worst = ((mine - exact).abs() / scale).max()
    assert worst < 4e-7
    assert worst < 2 * ((theirs - exact).abs() / scale).max()


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_at_the_ends(activation: str):
    x = torch.tensor([math.inf, math.nan, 0.0, 1e30])  # PyTorch's own gelu of infinity is not a number
    torch.testing.assert_close(finish(x.clone(), None, activation), x, rtol=0, atol=0, equal_nan=True)


def test_results_do_not_depend_on_the_threads():
    x, bias, threads = torch.randn(700, 130), torch.randn(130), torch.get_num_threads()
    try:
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(finish(x.clone(), bias, "gelu", (bias,), x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_it_takes_float32_alone():
    x = torch.randn(3, 4)
    assert takes_float32(x, None, torch.nn.Parameter(x))
    assert not takes_float32(x, x.double())
    assert not takes_float32(x.to("meta"))
