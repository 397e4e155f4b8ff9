"""The kernel for products of few rows against PyTorch's, and who is given to it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from foveate.measure.flops import count_flops
from foveate.mixers.parts import Linear
from foveate.ops import backend
from foveate.ops.linear import linear
from foveate.ops.native import linear_few_rows
from tests.agreement import examples, needs_kernels

pytestmark = needs_kernels


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    grid = draw(st.lists(st.integers(1, 5), min_size=0, max_size=3))
    inner, columns = 16 * draw(st.integers(1, 9)), draw(st.integers(1, 40))
    x = torch.randn(*grid, inner + draw(st.integers(0, 3)), generator=generator)[..., :inner]
    if len(grid) > 1 and draw(st.booleans()):
        x = x.transpose(0, 1)
    bias = torch.randn(columns, generator=generator) if draw(st.booleans()) else None
    return x, torch.randn(columns, inner, generator=generator), bias


@given(cases())
@examples(200)
def test_equals_torchs(case: tuple[Tensor, Tensor, Tensor | None]):
    expected = F.linear(*(None if m is None else m.double() for m in case))  # type: ignore[arg-type]
    mine = linear_few_rows.multiply(*case)
    assert mine.is_contiguous()
    torch.testing.assert_close(mine.double(), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("rows", range(1, 20))
def test_a_row_does_not_depend_on_its_neighbours(rows: int):
    x, weight = torch.randn(rows, 208), torch.randn(23, 208)
    whole = linear_few_rows.multiply(x, weight, None)
    alone = torch.cat([linear_few_rows.multiply(row, weight, None) for row in x.split(1)])
    torch.testing.assert_close(whole, alone, rtol=0, atol=0)


def test_results_do_not_depend_on_the_threads():
    x, weight, bias, threads = torch.randn(50, 256), torch.randn(700, 256), torch.randn(700), torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(linear_few_rows.multiply(x, weight, bias))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As where the kernel pays; the list gets the rows of each of its products."""
    calls: list[int] = []
    multiply = linear_few_rows.multiply

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        calls.append(x.numel() // x.shape[-1])
        return multiply(x, weight, bias)

    monkeypatch.setattr(linear_few_rows, "PAYS", True)
    monkeypatch.setattr(linear_few_rows, "multiply", counted)
    return calls


def test_who_is_given_to_it(taken: list[int]):
    layer, x = Linear(384, 1024), torch.randn(7, 7, 384)
    theirs = F.linear(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), theirs), "what is differentiated is torch's"
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), theirs, rtol=1e-5, atol=1e-5)
        assert taken == [49]
        for other in (x[0, :3], x.repeat(2, 1, 1), x.double()):
            linear(other, layer.weight.to(other.dtype), layer.bias.to(other.dtype))
        linear(x, layer.weight.T.contiguous().T, layer.bias)
        linear(x[..., :200], layer.weight[:, :200].contiguous(), layer.bias)
        with backend("torch"):
            layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layer(x)
        with pytest.raises(RuntimeError):
            linear(x, layer.weight[:, :128].contiguous(), layer.bias)
        with pytest.raises(RuntimeError):
            linear(x, layer.weight, layer.bias[:5])
    assert count_flops(lambda: layer(x)) == 2 * 49 * 384 * 1024, "a counter of operators sees the product"
    assert taken == [49]
