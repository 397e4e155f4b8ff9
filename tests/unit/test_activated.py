"""Maps and filters with activations in one pass against the two steps that they are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from foveate.errors import InvalidValue
from foveate.ops import backend
from foveate.ops.activated import activate, conv2d_activated, linear_activated

EXPECTED = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "none": lambda x: x,
}


@pytest.mark.parametrize("activation", EXPECTED)
def test_the_functions(activation: str) -> None:
    x = torch.cat([torch.linspace(-12, 12, 1001), torch.tensor([-1e4, 0.0, 1e4])])
    with torch.no_grad():
        torch.testing.assert_close(activate(x, activation), EXPECTED[activation](x), rtol=1e-5, atol=1e-6)
    assert torch.equal(activate(x.double(), activation), EXPECTED[activation](x.double()))


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("activation", EXPECTED)
def test_linear_maps(activation: str, gradient: bool) -> None:
    x, weight, bias = torch.randn(1, 300, 96), torch.randn(128, 96) / 8, torch.randn(128)
    with torch.set_grad_enabled(gradient):
        for given in (bias, None):
            y = linear_activated(x, weight, given, activation)
            torch.testing.assert_close(y, EXPECTED[activation](F.linear(x, weight, given)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("activation", EXPECTED)
def test_convolutions(activation: str, gradient: bool) -> None:
    x = torch.randn(2, 24, 13, 10).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(24, 1, 3, 3), torch.randn(24)
    with torch.set_grad_enabled(gradient):
        y = conv2d_activated(x, weight, bias, activation, stride=(2, 1), padding=(1, 2), groups=24)
    expected = EXPECTED[activation](F.conv2d(x, weight, bias, (2, 1), (1, 2), 1, 24))
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_two_steps() -> None:
    x, weight = torch.randn(5, 8, dtype=torch.float64, requires_grad=True), torch.randn(6, 8, dtype=torch.float64)
    torch.autograd.gradcheck(lambda x: linear_activated(x, weight, None, "gelu_tanh"), (x,))


def test_other_backends_take_the_two_steps() -> None:
    x, weight = torch.randn(1, 300, 96), torch.randn(128, 96)
    with torch.no_grad(), backend("torch"):
        assert torch.equal(linear_activated(x, weight, None, "gelu"), F.gelu(F.linear(x, weight)))


def test_another_function_is_refused() -> None:
    with pytest.raises(InvalidValue, match="activation='relu'"):
        activate(torch.zeros(3), "relu")  # type: ignore[arg-type]
