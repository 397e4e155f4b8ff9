"""The kernel of linear attention, given SSD's arguments, against SSD's definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.ops import backend
from foveate.ops.ssd import ssd, ssd_discrete
from tests.agreement import Maker, agree, answers, dtypes, examples, needs_kernels

pytestmark = needs_kernels


@st.composite
def recurrences(draw: st.DrawFn) -> tuple[dict[str, Any], torch.dtype]:
    dtype, flag = draw(dtypes), st.booleans()
    batch, groups, each = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    length, heads = draw(st.integers(1, 150)), groups * each
    width, states = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    make = Maker(draw(st.integers(0, 2**31)), dtype)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    strength = draw(st.sampled_from([0.0, 1e-3, 1.0, 100.0]))
    skip = draw(st.sampled_from([(), (heads,), (heads, width)]))
    return {
        "x": make.tensor(batch, length, heads, width),
        "dt": make.tensor(batch, length, heads, dtype=real).abs(),
        "A": -strength * make.tensor(heads, dtype=real).abs(),
        "B": make.tensor(batch, length, groups, states) / states,
        "C": make.tensor(batch, length, groups, states),
        "D": make.tensor(*skip, dtype=real) if skip else None,
        "z": make.tensor(batch, length, heads, width) if draw(flag) else None,
        "dt_softplus": draw(flag),
        "initial_states": make.tensor(batch, heads, width, states, dtype=real) if draw(flag) else None,
        "seq_idx": make.documents(batch, length) if draw(flag) else None,
    }, dtype


def run(**arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    # The gradients of A and D are sums over time in which nearly everything may cancel, in the reference as well: their
    # size says how near is equal only where a few heads have one each. Those of dt are the terms of A's.
    for name in ("A", "D"):
        if arguments.get(name) is not None and arguments[name].numel() < 3:
            arguments[name] = arguments[name].detach()
    return ssd(**arguments, return_final_states=True)  # type: ignore[return-value]


@given(recurrences())
@examples(60)
def test_equals_the_loop(case: tuple[dict[str, Any], torch.dtype]):
    agree(run, *case)


def test_gradients_by_differences():
    make = Maker(0, torch.float64)
    inputs = [make.tensor(2, 5, 4, 2), make.tensor(2, 5, 4), -make.tensor(4).abs()]
    inputs += [make.tensor(2, 5, 2, 3), make.tensor(2, 5, 2, 3), make.tensor(4), make.tensor(2, 4, 2, 3)]

    def recur(*given: torch.Tensor) -> Any:
        x, dt, A, B, C, D, initial = given
        return ssd(x, dt, A, B, C, D=D, dt_softplus=True, initial_states=initial, return_final_states=True)

    with backend("native"):
        assert torch.autograd.gradcheck(recur, [m.requires_grad_() for m in inputs])


# Heads of a group are divided first, then columns.
@pytest.mark.parametrize(("groups", "heads"), [(1, 9), (2, 6), (1, 1)])
def test_the_number_of_threads_changes_no_bit(groups: int, heads: int):
    make = Maker(1, torch.float32)
    given = {"x": make.tensor(1, 1000, heads, 70), "dt": make.tensor(1, 1000, heads), "A": -make.tensor(heads).abs()}
    given |= {"B": make.tensor(1, 1000, groups, 20), "C": make.tensor(1, 1000, groups, 20), "dt_softplus": True}
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results, gradients = answers(run, given, "native")
            found.append(results + gradients)
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert torch.equal(one, two)


def test_gradients_of_strong_decays_are_no_noise():
    # Decays per step from none to e^-30 side by side, and nothing negative: the gradient of each logarithm is a sum of
    # positive numbers, right to its last digits however small it is. A difference of running sums would not be.
    make = Maker(2, torch.float32)
    x, B, C = make.tensor(1, 300, 2, 4).abs(), make.tensor(1, 300, 1, 4).abs(), make.tensor(1, 300, 1, 4).abs()
    log_decay = -30 * make.tensor(1, 300, 2).sigmoid() ** 4

    def gradient(form: str, dtype: torch.dtype) -> torch.Tensor:
        logarithms = log_decay.to(dtype).requires_grad_()
        with backend(form):
            y, last = ssd_discrete(x.to(dtype), logarithms, B.to(dtype), C.to(dtype))
        return torch.autograd.grad(y.sum() + last.sum(), logarithms)[0]

    exact = gradient("reference", torch.float64)[:, 1:]  # before the first position there is nothing to decay
    error = (gradient("native", torch.float32)[:, 1:] / exact - 1).abs().max()
    assert exact.min() < 1e-6 * exact.max()
    assert error < 1e-4
