"""Maps and filters with activations in one pass against the two steps that they are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import foveate
from foveate.errors import InvalidValue
from foveate.models.vision.parts import DropPath, Mlp, feed
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


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning")
@pytest.mark.parametrize("name", ["vit_tiny", "swin_tiny", "mambaout_femto"])
def test_traced_networks_answer_other_images(name: str) -> None:
    network = foveate.create(name, kind="model", num_classes=5).eval()
    with torch.no_grad():
        traced = torch.jit.trace(network, torch.randn(1, 3, 224, 224), check_trace=False)
        x = torch.randn(1, 3, 224, 224)
        torch.testing.assert_close(traced(x), network(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("form", ["channels", "each", "parts"])
def test_factors_and_residuals(form: str, gradient: bool) -> None:
    x, weight, bias = torch.randn(2, 150, 96), torch.randn(128, 96) / 8, torch.randn(128)
    full, plus = torch.randn(2, 150, 128), torch.randn(2, 150, 128)
    times = {"channels": full[0, 0], "each": full, "parts": full.split((100, 28), -1)}[form]
    expected = F.gelu(F.linear(x, weight, bias)) * (full[0, 0] if form == "channels" else full) + plus
    with torch.set_grad_enabled(gradient):
        y = linear_activated(x, weight, bias, "gelu", times=times, plus=plus)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_feed_forwards_add_their_residual() -> None:
    mlp, norm, scale = Mlp(64, 256), nn.LayerNorm(64), torch.randn(64)
    x = torch.randn(2, 100, 64)
    seen: list[torch.Tensor] = []
    for given in (None, scale):
        expected = mlp(norm(x)) * (1 if given is None else given) + x
        with torch.no_grad():
            plain = feed(x, norm, mlp, DropPath(0.5).eval(), given)
            handle = mlp.fc2.register_forward_hook(lambda module, args, output: seen.append(output))
            watched = feed(x, norm, mlp, DropPath(0.0), given)
            handle.remove()
        torch.testing.assert_close(plain, expected.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(watched, expected.detach(), rtol=1e-5, atol=1e-5)
    assert len(seen) == 2
    mlp.drop.p = 0.9  # in training: no two draws agree
    assert not torch.allclose(*(feed(x, norm, mlp, DropPath(0.0)) for _ in range(2)))
