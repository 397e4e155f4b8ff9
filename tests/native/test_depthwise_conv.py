"""The depthwise convolution's kernel against PyTorch's convolution in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from foveate.ops import backend
from foveate.ops.activated import conv2d_activated
from foveate.ops.native.depthwise_conv import depthwise_conv2d, fits
from tests.agreement import examples, needs_kernels

pytestmark = needs_kernels

STEPS = {"none": lambda x: x, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu}


def channels_last(*shape: int, gap: int = 0, generator: torch.Generator | None = None) -> Tensor:
    """``(B, C, H, W)`` of ``(B, H, W, C)``, as a slice of a projection where there is a gap."""
    batch, channels, height, width = shape
    return torch.randn(batch, height, width, channels + gap, generator=generator)[..., :channels].movedim(-1, 1)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor | None, str, int, tuple[int, int]]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    height, width, channels = draw(st.integers(1, 12)), draw(st.integers(1, 40)), draw(st.integers(1, 70))
    padding = draw(st.integers(0, 4)), draw(st.integers(0, 4))
    tall = draw(st.integers(1, min(9, height + 2 * padding[0])))
    wide = draw(st.integers(1, min(9, width + 2 * padding[1])))
    batch, gap = draw(st.integers(1, 2)), draw(st.integers(0, 3))
    x = channels_last(batch, channels, height, width, gap=gap, generator=generator)
    weight = torch.randn(channels, 1, tall, wide, generator=generator)
    bias = torch.randn(channels, generator=generator) if draw(st.booleans()) else None
    return x, weight, bias, draw(st.sampled_from(sorted(STEPS))), draw(st.integers(1, 2)), padding


@given(cases())
@examples(200)
def test_equals_the_convolution(case: tuple[Tensor, Tensor, Tensor | None, str, int, tuple[int, int]]):
    x, weight, bias, activation, stride, padding = case
    channels = x.shape[1]
    assert x.shape[2:].numel() == 1 or fits(x, weight, bias, (stride, stride), padding, channels)
    wide = None if bias is None else bias.double()
    expected = STEPS[activation](F.conv2d(x.double(), weight.double(), wide, stride, padding, 1, channels))
    mine = depthwise_conv2d(x, weight, bias, activation, stride, padding)
    assert mine.shape == expected.shape
    assert mine.movedim(1, -1).is_contiguous()
    torch.testing.assert_close(mine.double(), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("side", [7, 8, 14, 15, 28, 56])
@pytest.mark.parametrize("kernel", [3, 5, 7, 9])
def test_sizes_of_published_networks(kernel: int, side: int):
    x, weight, bias = channels_last(2, 96, side, side + 1), torch.randn(96, 1, kernel, kernel), torch.randn(96)
    with torch.no_grad():
        y = conv2d_activated(x, weight, bias, "none", padding=(kernel // 2,) * 2, groups=96)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=kernel // 2, groups=96)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=2e-5)


def test_results_do_not_depend_on_the_threads():
    x, weight, threads = channels_last(1, 40, 30, 33), torch.randn(40, 1, 5, 5), torch.get_num_threads()
    try:
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(depthwise_conv2d(x, weight, None, "gelu", 1, (2, 2)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_what_lies_outside_is_not_read():
    x = torch.full((1, 9, 9, 20), torch.nan)
    x[:, 1:-1, 1:-1, :16] = 1
    y = depthwise_conv2d(x[:, 1:-1, 1:-1, :16].movedim(-1, 1), torch.ones(16, 1, 3, 3), None, "none", 1, (1, 1))
    torch.testing.assert_close(y[0, 0], F.avg_pool2d(torch.ones(1, 1, 7, 7), 3, 1, 1)[0, 0] * 9)


def test_what_it_does_not_take_goes_the_other_way():
    x, weight = channels_last(1, 8, 6, 6), torch.randn(8, 1, 3, 3)
    ours = (1, 1), (1, 1), 8
    assert fits(x, weight, None, *ours)
    assert not fits(x.contiguous(), weight, None, *ours)
    assert not fits(x.double(), weight.double(), None, *ours)
    assert not fits(x, weight, None, (1, 2), (1, 1), 8)
    assert not fits(x, weight, None, (3, 3), (1, 1), 8)
    assert not fits(x, torch.randn(8, 2, 3, 3), None, (1, 1), (1, 1), 4)
    assert not fits(x, torch.randn(8, 1, 9, 9), None, *ours)
    assert not fits(x, torch.randn(8, 1, 16, 15), None, (1, 1), (9, 9), 8)
    with torch.no_grad(), backend("torch"):
        plain = conv2d_activated(x, weight, None, "gelu", padding=(1, 1), groups=8)
    assert torch.equal(plain, F.gelu(F.conv2d(x, weight, padding=1, groups=8)))
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"[Kk]ernel size"):
        conv2d_activated(x, torch.randn(8, 1, 9, 9), None, "none", groups=8)
