"""S4D: chunks against the recurrence, kernel and FFT, states of samples of several lengths, and what is refused."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from foveate.errors import InvalidType, InvalidValue
from foveate.measure.flops import count_flops
from foveate.mixers.s4d import S4D
from foveate.ops import backend
from foveate.ops.s4d import (
    Rule,
    convolve_both_ways,
    discretise,
    kernel_flops,
    s4d,
    s4d_flops,
    s4d_kernel,
    s4d_step,
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def given(length: int, channels: int = 3, n: int = 4, batch: int = 2) -> tuple[Tensor, ...]:
    """u, A, C, dt and a state, in double precision."""
    A = torch.complex(-torch.rand(channels, n).double() - 0.1, torch.randn(channels, n).double() * 5)
    C, state = (torch.randn(k, n, dtype=torch.complex128) for k in (channels, batch * channels))
    dt = torch.rand(channels).double() * 0.3 + 0.01
    return torch.randn(batch, channels, length).double(), A, C, dt, state.view(batch, channels, n)


@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 50])
def test_chunks_equal_the_recurrence(length: int, with_state: bool, rule: Rule) -> None:
    answers = []
    for form in ("reference", "torch"):
        torch.manual_seed(1)
        u, A, C, dt, state = (t.requires_grad_() for t in given(length))
        with backend(form):
            before = state if with_state else None
            y, after = s4d(u, A, C, dt, rule=rule, initial_state=before, return_state=True, block=8)
            alone = s4d(u, A, C, dt, rule=rule, initial_state=before, block=8)
        assert isinstance(alone, Tensor)
        torch.testing.assert_close(alone, y)
        leaves = [u, A, C, dt, *([state] if with_state else [])]
        answers.append((y, after, *torch.autograd.grad(y.sin().sum() + after.abs().sum(), leaves)))
    for expected, found in zip(*answers, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_gradients_of_the_kernel_are_those_of_its_definition() -> None:
    _, A, C, dt, _ = given(1)
    leaves = [t.requires_grad_() for t in (A, C, dt)]
    for length in (1, 8, 45):
        answers = []
        for form in ("reference", "torch"):
            with backend(form):
                kernel = s4d_kernel(A, C, dt, length, block=8)
            answers.append((kernel, *torch.autograd.grad(kernel.sin().sum(), leaves)))
        for expected, found in zip(*answers, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_both_ways_is_the_sum_over_both_sides() -> None:
    u, A, C, dt, _ = given(11)
    ahead, back = s4d_kernel(A, C, dt, 11), s4d_kernel(A, C.conj() * 2, dt, 11)
    y = convolve_both_ways(u, ahead, back)
    for t in range(11):
        expected = sum(ahead[:, t - s] * u[..., s] for s in range(t + 1))
        expected = expected + sum(back[:, s - t - 1] * u[..., s] for s in range(t + 1, 11))
        torch.testing.assert_close(y[..., t], expected)


def test_small_steps_do_not_cancel() -> None:
    A, dt = torch.tensor([[-0.5 + 0.1j]]), torch.tensor([1e-6])
    exact = discretise(A.to(torch.complex128), dt.double()).weight
    torch.testing.assert_close(discretise(A, dt).weight.to(torch.complex128), exact, rtol=1e-6, atol=0)


def test_states_after_different_lengths() -> None:
    u, A, C, dt, state = given(30, batch=4)
    lengths = torch.tensor([0, 1, 17, 30])
    u = u.masked_fill((torch.arange(30) >= lengths[:, None])[:, None], 0.0)
    _, after = s4d(u, A, C, dt, initial_state=state, return_state=True, lengths=lengths, block=8)
    torch.testing.assert_close(after[0], state[0])
    for i in (1, 2, 3):
        part = u[i : i + 1, :, : lengths[i]]
        _, expected = s4d(part, A, C, dt, initial_state=state[i : i + 1], return_state=True)
        torch.testing.assert_close(after[i : i + 1], expected)


def test_steps_equal_the_sequence() -> None:
    u, A, C, dt, state = given(20)
    expected, final = s4d(u, A, C, dt, initial_state=state, return_state=True)
    for t in range(20):
        y, state = s4d_step(u[..., t], A, C, dt, state)
        torch.testing.assert_close(y, expected[..., t])
    torch.testing.assert_close(state, final)


def test_nothing_overflows_at_64k_tokens() -> None:
    mixer, x = S4D(4, causal=True, d_state=8), torch.randn(1, 65_536, 4).requires_grad_()
    y = mixer(x)
    y.square().mean().backward()
    assert y.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())


def test_half_precision_keeps_its_sums_in_float32() -> None:
    mixer = S4D(8, causal=True, d_state=8).bfloat16()
    y, state = mixer.prefill(torch.randn(1, 20, 8).bfloat16(), mixer.init_state(1))
    assert (y.dtype, state.ssm.dtype) == (torch.bfloat16, torch.float32)
    assert S4D(8, causal=True).double().init_state(1).ssm.dtype == torch.float64


@pytest.mark.parametrize("causal", [True, False])
def test_gaps_are_closed(causal: bool) -> None:
    mixer, x = S4D(4, causal=causal, d_state=8), torch.randn(1, 12, 4)
    mask = torch.tensor([0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0]).bool()[None]
    y = mixer(x.masked_fill(~mask[..., None], torch.nan), mask=mask)
    torch.testing.assert_close(y[mask], mixer(x[mask][None])[0])
    assert y[~mask].eq(0).all()


def test_flops_are_those_counted() -> None:
    for length in (1, 7, 8, 16, 21):
        with torch.device("meta"), backend("torch"):
            u, A, C, dt, _ = (torch.empty_like(t) for t in given(length))
            assert count_flops(lambda x=(u, A, C, dt): s4d(*x, block=8)) == s4d_flops(length, 3, 4, 2, block=8)
            assert count_flops(lambda x=(A, C, dt, length): s4d_kernel(*x, block=8)) == kernel_flops(length, 3, 4, 8)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"d_state": 5}, "d_state=5 is not possible: each rate stands for itself and its conjugate"),
        ({"d_state": 0}, "d_state=0 is not possible: a positive whole number"),
        ({"rule": "euler"}, "rule='euler' is not possible: it must be 'zoh' or 'bilinear'"),
        ({"init": "legs"}, "init='legs' is not possible: it must be one of lin, inv, real"),
        ({"dt_min": 0.2}, "dt_min, dt_max=(0.2, 0.1) is not possible"),
        ({"dt_max": float("inf")}, "0 < dt_min <= dt_max is needed, both finite"),
    ],
)
def test_the_layer_refuses(options: dict, says: str) -> None:
    with pytest.raises(InvalidValue, match=re.escape(says)):
        S4D(4, **options)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"u": torch.zeros(2, 3)}, InvalidValue, "u has shape (2, 3) and type torch.float32"),
        ({"u": torch.zeros(2, 3, 0)}, InvalidValue, "(batch, channels, L >= 1) fits"),
        ({"A": torch.zeros(4, 4) * 1j}, InvalidValue, "A has shape (4, 4) and C (3, 4): both must be (3, N)"),
        ({"C": torch.zeros(3, 4)}, InvalidType, "C must be complex, not torch.float32"),
        ({"dt": torch.ones(4)}, InvalidValue, "A (3, 4) and dt (4,) must be (channels, N) and (channels,)"),
        ({"rule": "euler"}, InvalidValue, "rule='euler' is not possible"),
        ({"block": 0}, InvalidValue, "block=0 is not possible: a positive whole number"),
        ({"initial_state": torch.zeros(1, 3, 4) * 1j}, InvalidValue, "initial_state has shape (1, 3, 4): it must be"),
        ({"lengths": torch.zeros(3)}, InvalidValue, "lengths has shape (3,): it must be (2,)"),
    ],
)
def test_the_op_refuses(change: dict, error: type[Exception], says: str) -> None:
    options = {"u": torch.zeros(2, 3, 5), "A": torch.ones(3, 4) * 1j, "C": torch.ones(3, 4) * 1j, "dt": torch.ones(3)}
    with pytest.raises(error, match=re.escape(says)):
        s4d(**{**options, **change})


def test_rates_must_be_complex() -> None:
    with pytest.raises(InvalidType, match=re.escape("A must be complex, not torch.float32")):
        discretise(torch.zeros(3, 4), torch.ones(3))
