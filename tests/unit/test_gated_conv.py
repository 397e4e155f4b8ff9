"""Gated convolution: the equation in both directions, gaps, streams, and what is refused."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F

from foveate.errors import InvalidValue
from foveate.mixers.gated_conv import GatedConv


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("causal", "width", "bias"), [(True, 1, True), (True, 4, False), (False, 1, True), (False, 5, True)]
)
def test_it_is_the_equation(causal: bool, width: int, bias: bool) -> None:
    mixer, x = GatedConv(4, causal=causal, width=width, bias=bias), torch.randn(2, 9, 4)
    before = width - 1 if causal else (width - 1) // 2
    y = mixer(x)
    for t in range(9):
        window = torch.stack(
            [x[:, s] if 0 <= s < 9 else torch.zeros(2, 4) for s in range(t - before, t - before + width)], 2
        )
        linear, gate = F.linear(window.flatten(1), mixer.conv.weight.flatten(1), mixer.conv.bias).chunk(2, -1)
        torch.testing.assert_close(y[:, t], linear * torch.sigmoid(gate))


@pytest.mark.parametrize("causal", [True, False])
def test_gaps_are_closed(causal: bool) -> None:
    mixer, x = GatedConv(4, causal=causal), torch.randn(1, 12, 4)
    mask = torch.tensor([0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0]).bool()[None]
    y = mixer(x.masked_fill(~mask[..., None], torch.nan), mask=mask)
    torch.testing.assert_close(y[mask], mixer(x[mask][None])[0])
    assert y[~mask].eq(0).all()


@pytest.mark.parametrize("width", [1, 2, 7])
def test_streams_with_gaps_equal_forward(width: int) -> None:
    mixer, x, mask = GatedConv(4, causal=True, width=width), torch.randn(3, 20, 4), torch.rand(3, 20) < 0.5
    mask[0, :9] = False  # a piece without a real token
    mask[:, 18:] = True
    outputs, state = [], mixer.init_state(3)
    for start, stop in ((0, 2), (2, 9), (9, 18)):
        y, state = mixer.prefill(x[:, start:stop], state, mask[:, start:stop])
        outputs.append(y)
    for t in (18, 19):
        y, state = mixer.step(x[:, t], state)
        outputs.append(y[:, None])
    assert state.inputs.shape == (3, width - 1, 4)
    torch.testing.assert_close(torch.cat(outputs, 1), mixer(x, mask=mask))


def test_the_state_takes_the_dtype_of_the_weights() -> None:
    assert GatedConv(4, causal=True).bfloat16().init_state(1).inputs.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"width": 0}, "width=0 is not possible: a positive whole number is needed"),
        ({"width": 4}, "width=4 is not possible: without causality the token is in the middle, so it must be odd"),
    ],
)
def test_refuses(options: dict, says: str) -> None:
    with pytest.raises(InvalidValue, match=re.escape(says)):
        GatedConv(4, **options)


def test_a_step_takes_one_token() -> None:
    mixer = GatedConv(4, causal=True)
    with pytest.raises(InvalidValue, match="step takes one token"):
        mixer.step(torch.zeros(2, 1, 4), mixer.init_state(2))
