"""Parts that image backbones share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from foveate.models.vision import parts


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size", "laid_out"),
    [
        (3, 2, 1, (7, 6), True),
        (2, 2, 0, (5, 8), True),
        ((1, 3), (1, 2), (0, 1), (3, 4), True),
        (3, 2, 1, (20, 20), False),
    ],
)
@torch.no_grad()
def test_a_convolution_at_few_places_is_one_product(kernel, stride, padding, size, laid_out, monkeypatch):
    conv, x = nn.Conv2d(5, 48, kernel, stride, padding), torch.randn(2, *size, 5)
    wanted = conv(x.movedim(-1, 1)).movedim(1, -1)
    products = []
    plain = parts.linear
    monkeypatch.setattr(parts, "linear", lambda *given: products.append(given) or plain(*given))
    torch.testing.assert_close(parts.convolve(conv, x), wanted, rtol=1e-4, atol=1e-5)
    assert bool(products) == laid_out
