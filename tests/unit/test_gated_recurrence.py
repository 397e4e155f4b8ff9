"""The gated recurrence: its fast form against the definition, values and gradients, and what is refused."""

from __future__ import annotations

import pytest
import torch

from foveate.errors import InvalidType, InvalidValue
from foveate.ops import backend
from foveate.ops.gated_recurrence import gated_recurrence


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("n", [1, 2, 15, 64, 65, 300])
def test_chunks_equal_the_recurrence(n: int, documents: bool) -> None:
    x, state = torch.randn(2, n, 5).double(), torch.randn(2, 5).double()
    decay = torch.rand(2, n, 5).double()
    decay[0, :, 0], decay[1, :, 1] = 0.0, 1.0
    numbers = torch.randint(3, (2, n)).sort(1).values if documents else None
    answers = []
    for form in ("reference", "torch"):
        given = [t.clone().requires_grad_() for t in (x, decay, state)]
        with backend(form):
            y, last = gated_recurrence(*given, return_last_state=True, seq_idx=numbers)
        loss = (y * torch.arange(y.numel()).view_as(y).sin()).sum() + last.cos().sum()
        answers.append((y, last, *torch.autograd.grad(loss, given)))
    for expected, found in zip(*answers, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_documents_are_apart() -> None:
    x, decay = torch.randn(1, 20, 3), torch.rand(1, 20, 3)
    numbers = (torch.arange(20) >= 13).long()[None]
    y = gated_recurrence(x, decay, seq_idx=numbers)
    assert isinstance(y, torch.Tensor)
    torch.testing.assert_close(y[:, 13:], gated_recurrence(x[:, 13:], decay[:, 13:]))


def test_half_precision_keeps_its_state_in_float32() -> None:
    x, decay = torch.ones(1, 4000, 2, dtype=torch.bfloat16), torch.full((1, 4000, 2), 0.9999)
    y, last = gated_recurrence(x, decay, return_last_state=True)
    expected = (1 - 0.9999**4000) / (1 - 0.9999)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(last, torch.full((1, 2), expected), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("x", "decay", "more", "error", "says"),
    [
        ((2, 3), (2, 3), {}, InvalidValue, r"x has shape \(2, 3\)"),
        ((2, 0, 3), (2, 0, 3), {}, InvalidValue, "L >= 1"),
        ((2, 5, 3), (2, 5, 1), {}, InvalidValue, "decay has shape"),
        ((2, 5, 3), (2, 5, 3), {"initial_state": torch.zeros(2, 4)}, InvalidValue, "initial_state has shape"),
        ((2, 5, 3), (2, 5, 3), {"initial_state": torch.zeros(2, 3).double()}, InvalidType, "must be torch.float32"),
        ((2, 5, 3), (2, 5, 3), {"seq_idx": torch.zeros(2, 4).long()}, InvalidValue, "seq_idx has shape"),
    ],
)
def test_what_does_not_fit_is_refused(x, decay, more, error, says) -> None:
    with pytest.raises(error, match=says):
        gated_recurrence(torch.zeros(x), torch.zeros(decay), **more)
