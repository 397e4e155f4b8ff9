"""The kernel of the causal depthwise convolution against its definition."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.ops import backend
from foveate.ops.causal_conv1d import causal_conv1d
from tests.agreement import Maker, agree, dtypes, examples, needs_kernels

pytestmark = needs_kernels


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[dict[str, Any], torch.dtype]:
    dtype, flag = draw(dtypes), st.booleans()
    batch, channels, length = draw(st.integers(1, 3)), draw(st.integers(1, 70)), draw(st.integers(1, 60))
    taps, make = draw(st.integers(1, 16)), Maker(draw(st.integers(0, 2**31)), dtype)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "x": make.tensor(batch, channels, length),
        "weight": make.tensor(channels, taps, dtype=real),
        "bias": make.tensor(channels, dtype=real) if draw(flag) else None,
        "activation": "silu" if draw(flag) else None,
        "initial_state": make.tensor(batch, channels, taps) if draw(flag) else None,
        "seq_idx": make.documents(batch, length) if draw(flag) else None,
    }, dtype


@given(convolutions())
@examples(80)
def test_equals_the_loop(case: tuple[dict[str, Any], torch.dtype]):
    agree(lambda **arguments: causal_conv1d(**arguments, return_state=True), *case)


def test_gradients_by_differences():
    make = Maker(0, torch.float64)
    inputs = [make.tensor(*shape).requires_grad_() for shape in ((2, 3, 7), (3, 4), (3,), (2, 3, 4))]

    def convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        return causal_conv1d(x, weight, bias, "silu", initial_state=state)

    with backend("native"):
        assert torch.autograd.gradcheck(convolve, inputs)
        assert torch.autograd.gradgradcheck(convolve, inputs)
