"""Aaren and its scan: every form against the recurrence, values and gradients, and what is refused."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from foveate.errors import InvalidType, InvalidValue
from foveate.mixers.aaren import Aaren
from foveate.ops import backend
from foveate.ops.prefix_attention import (
    PrefixState,
    empty_state,
    leaf,
    merge,
    prefix_attention,
    prefix_attention_step,
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def inputs(n: int, dtype: torch.dtype = torch.float64, masked: bool = False) -> tuple[Tensor, Tensor, PrefixState]:
    scores, values = torch.randn(2, 3, n, dtype=dtype) * 3, torch.randn(2, 3, n, 5, dtype=dtype)
    if masked:  # a masked beginning, and a head that sees nothing at all
        scores[0, :, : max(1, n // 2)] = -torch.inf
        scores[1, 0] = -torch.inf
    state = PrefixState(
        torch.randn(2, 3, dtype=dtype), 1 + torch.rand(2, 3, dtype=dtype), torch.randn(2, 3, 5, dtype=dtype)
    )
    return scores, values, state


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 63, 300])
def test_blocks_equal_the_recurrence(n: int, masked: bool, with_state: bool) -> None:
    scores, values, state = inputs(n, masked=masked)
    answers = []
    for form in ("reference", "torch"):
        s, v, u, w = (t.clone().requires_grad_() for t in (scores, values, state.u, state.w))
        with backend(form):
            before = PrefixState(state.m, u, w) if with_state else None
            out, after = prefix_attention(s, v, state=before, return_state=True)
        loss = (out * torch.arange(out.numel()).view_as(out).sin()).sum() + after.output.cos().sum()
        answers.append(
            (out, after.m, after.u, after.w, *torch.autograd.grad(loss, [s, v, u, w][: 4 if with_state else 2]))
        )
    for expected, found in zip(*answers, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_worked_numbers() -> None:
    # The numbers of the specification; the last score is below the maximum, the third above all before it.
    scores, values = torch.tensor([[[0.0, 1.0, 3.0, -2.0]]]), torch.tensor([[[[1.0], [2.0], [4.0], [10.0]]]])
    out, state = prefix_attention(scores, values, return_state=True)
    torch.testing.assert_close(out.flatten(), torch.tensor([1, 1.731059, 3.645579, 3.681503]), rtol=1e-6, atol=0)
    found = torch.cat([t.flatten() for t in state])
    torch.testing.assert_close(found, torch.tensor([3, 1.191860, 4.387837]), rtol=1e-6, atol=0)


def test_gradients_are_those_of_finite_differences() -> None:
    scores, values, state = inputs(21)
    given = [t.requires_grad_() for t in (scores, values, state.u, state.w)]

    def call(s: Tensor, v: Tensor, u: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        out, after = prefix_attention(s, v, state=PrefixState(state.m, u, w), return_state=True)
        return out, after.output

    assert torch.autograd.gradcheck(call, given, fast_mode=True)


def test_gradients_pass_through_the_state() -> None:
    scores, values, _ = inputs(50)
    s, v = scores.requires_grad_(), values.requires_grad_()
    whole = torch.autograd.grad(prefix_attention(s, v).sin().sum(), [s, v])
    first, state = prefix_attention(s[..., :23], v[..., :23, :], return_state=True)
    second, state = prefix_attention(s[..., 23:49], v[..., 23:49, :], state=state, return_state=True)
    last, _ = prefix_attention_step(s[..., 49], v[..., 49, :], state)
    pieces = torch.autograd.grad(torch.cat([first, second, last[:, :, None]], 2).sin().sum(), [s, v])
    torch.testing.assert_close(pieces, whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(dtype: torch.dtype) -> None:
    scores, values, _ = inputs(5000, torch.float32)
    out, state = prefix_attention(scores.to(dtype), values.to(dtype), return_state=True)
    expected = prefix_attention(scores.to(dtype).float(), values.to(dtype).float())
    assert out.dtype == dtype
    assert {t.dtype for t in state} == {torch.float32}
    torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=1e-3)


def test_nothing_overflows_at_64k_tokens() -> None:
    n = 65_536
    scores = torch.stack([torch.linspace(-1e4, 1e4, n), torch.linspace(1e4, -1e4, n), torch.zeros(n)])[None]
    s, v = scores.requires_grad_(), torch.randn(1, 3, n, 2).requires_grad_()
    out = prefix_attention(s, v)
    out.square().sum().backward()
    assert out.isfinite().all()
    assert s.grad is not None
    assert s.grad.isfinite().all()
    means = v.detach().double()[0, 2].cumsum(0) / torch.arange(1, n + 1)[:, None]
    torch.testing.assert_close(out[0, 2].double(), means, rtol=1e-4, atol=1e-5)


def test_later_tokens_have_no_influence_even_if_they_are_not_finite() -> None:
    scores, values, _ = inputs(40)
    out = prefix_attention(scores, values)
    scores[..., 20:] = 1e30
    values[..., 20:, :] *= 1e3
    assert torch.equal(prefix_attention(scores, values)[:, :, :20], out[:, :, :20])


def test_empty_sets_give_zeros() -> None:
    empty = empty_state(2, 3, 4)
    assert merge(empty, empty).output.eq(0).all()
    one = leaf(torch.randn(2, 3), torch.randn(2, 3, 4))
    for found in (merge(empty, one), merge(one, empty)):
        assert all(torch.equal(a, b) for a, b in zip(found, one, strict=True))


def test_masked_content_may_be_anything() -> None:
    mixer, x = Aaren(16, num_heads=2), torch.randn(2, 9, 16)
    mask = torch.arange(9).expand(2, -1) % 3 != 0
    y = mixer(x, mask=mask)
    x[~mask] = torch.nan
    assert torch.equal(mixer(x, mask=mask), y)


def test_many_steps_equal_forward() -> None:
    mixer, x = Aaren(16, num_heads=2), torch.randn(1, 3000, 16)
    with torch.no_grad():
        expected, state, outputs = mixer(x), mixer.init_state(1), []
        for token in x.unbind(1):
            y, state = mixer.step(token, state)
            outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), expected, rtol=1e-4, atol=1e-5)


def test_without_biases() -> None:
    mixer = Aaren(16, num_heads=2, bias=False)
    assert mixer.cost((5,)).parameters == sum(p.numel() for p in mixer.parameters()) == 4 * 16 * 16 + 16
    assert mixer(torch.randn(1, 5, 16)).isfinite().all()


def test_state_in_double_for_double() -> None:
    assert Aaren(8, num_heads=2).init_state(1, dtype=torch.float64).w.dtype == torch.float64
    assert Aaren(8, num_heads=2).init_state(1, dtype=torch.bfloat16).w.dtype == torch.float32
    assert Aaren(8, num_heads=2).double().init_state(1).w.dtype == torch.float64


def test_a_step_takes_one_token() -> None:
    mixer = Aaren(8, num_heads=2)
    with pytest.raises(InvalidValue, match="step takes one token"):
        mixer.step(torch.zeros(2, 1, 8), mixer.init_state(2))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"scores": torch.zeros(2, 3, 6)}, InvalidValue, "scores have shape (2, 3, 6) and values (2, 3, 7, 5)"),
        ({"values": torch.zeros(2, 3, 7)}, InvalidValue, "(batch, heads, n, width) are needed"),
        ({"scores": torch.zeros(2, 3, 0), "values": torch.zeros(2, 3, 0, 5)}, InvalidValue, "the sequence is empty"),
        (
            {"values": torch.zeros(2, 3, 7, 5).long()},
            InvalidType,
            "must be floating, not torch.float32 and torch.int64",
        ),
        ({"block": 1}, InvalidValue, "block=1 is not possible: a whole number of at least 2"),
        ({"block": 8.0}, InvalidValue, "block=8.0 is not possible"),
        ({"state": empty_state(1, 3, 5)}, InvalidValue, "state.m has shape (1, 3): it must be (2, 3)"),
        ({"state": empty_state(2, 3, 4)}, InvalidValue, "state.w has shape (2, 3, 4): it must be (2, 3, 5)"),
    ],
)
def test_refuses(change: dict, error: type[Exception], says: str) -> None:
    given = {"scores": torch.zeros(2, 3, 7), "values": torch.zeros(2, 3, 7, 5), **change}
    with pytest.raises(error, match=re.escape(says)):
        prefix_attention(**given)
