"""Instance norm in channels-last memory, against PyTorch's."""

from __future__ import annotations

import pytest
import torch

from foveate.ops import backend
from foveate.ops.instance_norm import instance_norm, takes


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


@pytest.mark.parametrize("shape", [(1, 24, 64, 64, 40), (2, 3, 5, 7), (3, 5, 9)])
def test_values_are_those_of_the_definition(shape):
    x = channels_last(3 + torch.randn(shape) * torch.arange(1, shape[1] + 1).view(-1, *[1] * (len(shape) - 2)))
    expected = torch.nn.functional.instance_norm(x.double(), eps=1e-5)
    y = instance_norm(x, 1e-5)
    assert y.movedim(1, -1).is_contiguous()
    assert (y - expected).abs().max() < 4e-6  # a thousandth is lost where all places are added up one by one


def test_gradients():
    x = channels_last(torch.randn(2, 3, 4, 5, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: instance_norm(x, 1e-3), x)
    assert torch.autograd.gradgradcheck(lambda x: instance_norm(x, 1e-3), x)


def test_only_what_lies_channels_last_is_taken():
    x = torch.randn(2, 3, 4, 5)
    assert not takes(x)
    assert takes(channels_last(x))
    assert not takes(channels_last(x).bfloat16())
    with backend("reference"):
        assert not takes(channels_last(x))
