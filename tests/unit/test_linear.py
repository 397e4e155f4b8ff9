"""The linear map by oneDNN, where that is the faster of PyTorch's two libraries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from foveate.measure.flops import count_flops
from foveate.mixers.parts import Linear
from foveate.models.vision.parts import Mlp
from foveate.ops import activated
from foveate.ops import linear as module
from foveate.ops.backend import backend
from foveate.ops.linear import linear

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this PyTorch has no oneDNN",
)


@pytest.fixture(autouse=True)
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As on a processor where oneDNN is faster; the list gets an entry for each of its products."""
    calls: list[int] = []
    multiply = module._multiply

    def counted(*given: Tensor | None) -> Tensor:
        calls.append(1)
        return multiply(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "SLOW_MKL", True)
    monkeypatch.setattr(activated, "SLOW_MKL", True)
    monkeypatch.setattr(module, "_has_onednn", lambda: True)
    monkeypatch.setattr(module, "_multiply", counted)
    return calls


def made(*shape: int, bias: bool = True) -> list[Tensor]:
    """x, weight and bias that are large enough."""
    generator = torch.Generator().manual_seed(0)
    sizes = [shape, (192, shape[-1]), *([(192,)] if bias else [])]
    return [torch.randn(size, generator=generator).requires_grad_() for size in sizes]


@pytest.mark.parametrize("shape", [(200, 64), (4, 50, 64), (2, 5, 20, 64)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [False, True])
def test_values_and_gradients_are_those_of_torch(shape, bias, transposed, by_onednn):
    given = made(*shape, bias=bias)
    if transposed:
        given[0] = given[0].detach().transpose(0, -2).requires_grad_()
    grad = torch.randn(*given[0].shape[:-1], 192)
    mine, theirs = linear(*given), F.linear(*given)
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-5)
    found, expected = (torch.autograd.grad(y, given, grad) for y in (mine, theirs))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
    assert len(by_onednn) == 3
    with torch.no_grad():
        torch.testing.assert_close(linear(*given), theirs, atol=1e-4, rtol=1e-5)


def test_second_derivatives(by_onednn):
    given, results = made(200, 64), []
    for run in (linear, F.linear):
        first = torch.autograd.grad(run(*given).square().mean(), given, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), given))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)
    assert by_onednn


def test_a_feed_forward_is_the_same_in_one_step_and_in_two(by_onednn):
    torch.manual_seed(0)
    mlp, x = Mlp(64, 192), torch.randn(200, 64)
    heard: list[Any] = []
    trained = mlp(x)
    with torch.no_grad():
        evaluated = mlp(x)
        handle = mlp.act.register_forward_hook(lambda module, args, y: heard.append(y))
        watched = mlp(x)
        handle.remove()
        mlp.act = torch.nn.GELU("tanh")
        approximated = mlp(x)
    for y in (evaluated, watched):
        torch.testing.assert_close(y, trained.detach(), atol=1e-5, rtol=1e-5)
    assert len(by_onednn) == 2 + 1 + 2 + 2, "evaluated, the first layer is one step, which is not counted here"
    assert heard[0].shape == (200, 192)
    assert not torch.allclose(approximated, evaluated, atol=1e-6)


def test_what_it_leaves_to_torch(by_onednn):
    x, weight, bias = (m.detach() for m in made(200, 64))
    few = linear(x[:3], weight, bias)
    assert torch.equal(few, F.linear(x[:3], weight, bias))
    assert linear(x.double(), weight.double(), bias.double()).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16
    with backend("torch"):
        linear(x, weight, bias)
    rows = torch.vmap(lambda row: linear(row, weight, bias))(x.expand(3, *x.shape))
    torch.testing.assert_close(rows[0], F.linear(x, weight, bias))
    _, tangent = torch.func.jvp(lambda x: linear(x, weight, bias), (x,), (x,))
    torch.testing.assert_close(tangent, F.linear(x, weight), atol=1e-4, rtol=1e-4)
    assert not by_onednn


def test_a_layer_is_torch_s_but_for_the_library(by_onednn, monkeypatch):
    torch.manual_seed(0)
    layer, theirs = Linear(64, 192), torch.nn.Linear(64, 192)
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(200, 64)
    torch.testing.assert_close(layer(x), theirs(x), atol=1e-4, rtol=1e-5)
    assert by_onednn
    assert count_flops(lambda: layer(x)) == count_flops(lambda: theirs(x)) == 2 * 200 * 64 * 192
    # What asks for the processor cannot be compiled.
    monkeypatch.setattr(module, "_has_onednn", lambda: bool(torch.backends.cpu.get_cpu_capability()))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), theirs(x), atol=1e-4, rtol=1e-5)


class SecondFactors(TorchDispatchMode):
    """Whether the second factor of each of oneDNN's products had its numbers side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.dense: list[bool] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.mkldnn._linear_pointwise.default:
            self.dense.append(args[1].is_contiguous() or args[1].T.is_contiguous())
        return func(*args, **(kwargs or {}))


def test_a_second_factor_with_gaps_never_reaches_onednn():
    # There it is multiplied by a loop that takes hundreds of times as long.
    x, weight, bias = (m.detach() for m in made(200, 64))
    part, narrow = torch.randn(200, 100)[:, :64].requires_grad_(), torch.randn(192, 80)[:, :64].requires_grad_()
    with SecondFactors() as seen:
        for given in ((part, weight, bias), (x, narrow, bias)):
            linear(*given).sum().backward()
    assert seen.dense == [True] * 6
