"""Sampling at points: the definition by hand, its forms, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.errors import InvalidType, InvalidValue
from foveate.measure.op_costs import op_cost
from foveate.ops import backend, native
from foveate.ops.sample_at import sample_at

FORMS = [
    "torch",
    pytest.param("native", marks=pytest.mark.skipif(not native.AVAILABLE, reason="no kernels are built here")),
]
each_form = pytest.mark.parametrize("form", FORMS)


def make(height: int = 5, width: int = 7, dtype: torch.dtype = torch.float64, d: int = 3) -> tuple[Tensor, Tensor]:
    """Two samples with two heads, read at 4 x 6 points, some of them outside."""
    generator = torch.Generator().manual_seed(height * width)
    x = torch.randn(2, height, width, 2, d, generator=generator, dtype=dtype).movedim(3, 1)
    points = torch.rand(2, 2, 4, 6, 2, generator=generator, dtype=dtype)
    return x.requires_grad_(), (points * torch.tensor([width + 4, height + 4]) - 2.5).requires_grad_()


@pytest.mark.parametrize("form", ["reference", *FORMS])
def test_pixels_and_what_lies_between(form: str):
    x = torch.arange(12.0).view(1, 3, 4, 1)
    points = torch.tensor([[[0, 0], [3, 2], [1.25, 0], [0, 0.5], [2.5, 1.5], [-0.5, 0], [3.75, 2], [-1, 1], [9, 1]]])
    with backend(form):
        y = sample_at(x, points)
    expected = [0, 11, 1.25, 2, 8.5, 0, 0.25 * 11, 0, 0]
    torch.testing.assert_close(y[0, :, 0], torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_is_grid_sample_with_aligned_corners():
    x, points = make()
    grid = points / torch.tensor([3.0, 2.0]) - 1
    expected = F.grid_sample(
        x.flatten(0, 1).movedim(-1, 1), grid.flatten(0, 1), mode="bilinear", padding_mode="zeros", align_corners=True
    )
    torch.testing.assert_close(sample_at(x, points), expected.movedim(1, -1).unflatten(0, (2, 2)))


@each_form
@pytest.mark.parametrize("size", [(5, 7), (1, 6), (4, 1), (1, 1)])
def test_forms_equal_the_definition(size: tuple[int, int], form: str):
    x, points = make(*size)
    answers = []
    for one in ("reference", form):
        with backend(one):
            y = sample_at(x, points)
        loss = (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum()
        answers.append((y, *torch.autograd.grad(loss, (x, points))))
    for expected, found in zip(*answers, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", ["reference", *FORMS])
def test_a_point_on_a_pixel_has_the_slope_to_its_right_and_below(form: str):
    x = torch.arange(12.0, dtype=torch.float64).view(1, 3, 4, 1) ** 2
    points = torch.tensor([[[1.0, 1.0], [3.0, 2.0]]], dtype=torch.float64, requires_grad=True)
    with backend(form):
        (slope,) = torch.autograd.grad(sample_at(x, points).sum(), points)
    assert slope[0].tolist() == [[6**2 - 5**2, 9**2 - 5**2], [-(11**2), -(11**2)]]


@each_form
def test_gradcheck(form: str):
    x, points = make()
    with backend(form):
        assert torch.autograd.gradcheck(sample_at, (x, points), fast_mode=True)


@pytest.mark.parametrize("form", ["reference", *FORMS])
def test_one_map_is_read_without_heads(form: str):
    x, points = make()
    with backend(form):
        y = sample_at(x, points)
        alone = sample_at(x[:, 1], points[:, 1])
        line = sample_at(x[:, 1], points[:, 1, 2])
    assert alone.shape == (2, 4, 6, 3)
    torch.testing.assert_close(alone, y[:, 1])
    torch.testing.assert_close(line, y[:, 1, 2])


@pytest.mark.parametrize("form", ["reference", *FORMS])
def test_points_that_are_no_numbers_read_nothing_else(form: str):
    x, points = make(dtype=torch.float32)
    x, points = x.detach(), points.detach()
    bad = points.clone()
    bad[0, 0, 0, 0] = math.inf
    bad[0, 0, 0, 1] = 3e38
    with backend(form):
        y, other = sample_at(x, points), sample_at(x, bad)
    assert (other[0, 0, 0, 1] == 0).all()
    assert torch.equal(y[:, :, 1:], other[:, :, 1:])


@each_form
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps_are_read_at_full_precision(dtype: torch.dtype, form: str):
    x, points = make(64, 300, dtype=torch.float32)
    x = x.detach().to(dtype)
    with backend("reference"):
        full = sample_at(x.float(), points)
    with backend(form):
        y = sample_at(x, points)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), full, rtol=1e-2, atol=1e-2)


def test_compiles_as_one_graph():
    x, points = make(dtype=torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(sample_at, backend="aot_eager", fullgraph=True)
    one, two = compiled(x, points), sample_at(x, points)
    torch.testing.assert_close(one, two)
    for found, want in zip(*(torch.autograd.grad(y.sin().sum(), (x, points)) for y in (one, two)), strict=True):
        torch.testing.assert_close(found, want)
    torch.compiler.reset()


def test_shapes_on_meta():
    x, points = (m.detach().to("meta") for m in make())
    y = sample_at(x, points)
    assert y.is_meta
    assert y.shape == (2, 2, 4, 6, 3)


def test_cost_counts_four_pixels_for_each_point():
    assert op_cost("sample_at", points=10, d=4, height=5, width=6).elementwise == 10 * (8 * 4 + 12)


@pytest.mark.parametrize(
    ("x", "points", "error", "says"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2, 1, 2), InvalidValue, r"x must be \(batch, heads, height, width, d\)"),
        (torch.zeros(2, 3, 0, 4), torch.zeros(2, 1, 2), InvalidValue, "no axis empty"),
        (torch.zeros(2, 3, 4, 1), torch.zeros(1, 5, 2), InvalidValue, r"points must be \(batch, \*places, 2\)"),
        (torch.zeros(2, 3, 4, 1), torch.zeros(2, 2), InvalidValue, r"points must be \(batch, \*places, 2\)"),
        (torch.zeros(2, 3, 4, 5, 1), torch.zeros(2, 1, 5, 2), InvalidValue, r"\(batch, heads, \*places, 2\)"),
        (torch.zeros(2, 3, 4, 1), torch.zeros(2, 5, 3), InvalidValue, "points must be"),
        (torch.zeros(2, 3, 4, 1), torch.zeros(2, 5, 2).long(), InvalidType, r"must be floating, not .*int64"),
    ],
)
def test_refuses_what_does_not_fit(x: Tensor, points: Tensor, error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        sample_at(x, points)
