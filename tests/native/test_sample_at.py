"""The kernel of sampling at points against its definition."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from foveate.ops import backend
from foveate.ops.sample_at import sample_at
from tests.agreement import Maker, agree, dtypes, examples, needs_kernels

pytestmark = needs_kernels


@st.composite
def samplings(draw: st.DrawFn) -> tuple[dict[str, Tensor], torch.dtype]:
    dtype = draw(dtypes)
    batch, heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    height, width, channels = (draw(st.integers(1, n)) for n in (12, 12, 80))
    places = [draw(st.integers(1, 9)) for _ in range(draw(st.integers(1, 3)))]
    make = Maker(draw(st.integers(0, 2**31)), dtype)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    middle = torch.tensor([width, height], dtype=real) / 2
    points = make.tensor(batch, heads, *places, 2, dtype=real) * (middle + 1) + middle
    if draw(st.booleans()):  # on pixels, where a slope changes
        points = points.round()
    return {"x": make.tensor(batch, heads, height, width, channels), "points": points}, dtype


@given(samplings())
@examples(80)
def test_equals_the_definition(case: tuple[dict[str, Tensor], torch.dtype]):
    agree(lambda **arguments: (sample_at(**arguments),), *case)


def test_gradients_by_differences():
    make = Maker(0, torch.float64)
    x, points = make.tensor(1, 2, 4, 5, 3).requires_grad_(), (make.tensor(1, 2, 7, 2) * 2 + 1.5).requires_grad_()
    with backend("native"):
        assert torch.autograd.gradcheck(sample_at, (x, points))
        assert torch.autograd.gradgradcheck(sample_at, (x, points), fast_mode=True)


@pytest.mark.parametrize("far", [1e38, float("inf"), float("nan")])
def test_points_far_away_read_nothing(far: float):
    x = torch.randn(1, 4, 5, 3, requires_grad=True)
    points = torch.tensor([[[far, 1.0], [1.0, -far], [1.0, 1.0]]], requires_grad=True)
    with backend("native"):
        y = sample_at(x, points)
        gradients = torch.autograd.grad(y.sum(), (x, points))
    assert torch.equal(y, torch.cat([torch.zeros(1, 2, 3), x[:, 1, 1][:, None]], 1))
    assert (gradients[1][0, :2] == 0).all()
    assert gradients[0].sum() == 3


def test_what_is_not_read_may_be_anything():
    x = torch.randn(1, 4, 5, 3)
    points = torch.tensor([[[0.5, 0.5], [4.5, 3.5], [4.0, 3.0]]])
    with backend("native"):
        expected = sample_at(x, points)
        x[:, 2] = float("nan")
        assert torch.equal(sample_at(x, points), expected)


def test_the_compiled_op_is_sound():
    make = Maker(3, torch.float64)
    given = make.tensor(2, 2, 4, 5, 3).requires_grad_(), make.tensor(2, 2, 7, 2).requires_grad_()
    opcheck(torch.ops.foveate.sample_at_native.default, given)


CODE = """
import hashlib, sys, torch
from foveate.ops.sample_at import sample_at
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
x = torch.randn(1, 3, 30, 30, 96, requires_grad=True)
points = (torch.rand(1, 3, 40, 40, 2) * 31).requires_grad_()
y = sample_at(x, points)
for m in (y, *torch.autograd.grad(y, (x, points), y.detach())):
    print(hashlib.sha256(m.detach().contiguous().numpy().tobytes()).hexdigest())
"""


def test_bits_do_not_depend_on_threads():
    one, two = (
        subprocess.run([sys.executable, "-c", CODE, n], capture_output=True, text=True, check=True).stdout
        for n in ("1", "2")
    )
    assert len(one.splitlines()) == 3
    assert one == two
