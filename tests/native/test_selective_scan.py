"""The kernel of the selective scan against its definition."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.ops import backend
from foveate.ops.selective_scan import selective_scan
from tests.agreement import Maker, agree, answers, dtypes, examples, needs_kernels

pytestmark = needs_kernels


@st.composite
def scans(draw: st.DrawFn) -> tuple[dict[str, Any], torch.dtype]:
    dtype, flag = draw(dtypes), st.booleans()
    batch, groups, each = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 37))
    length, states = draw(st.integers(1, 150)), draw(st.integers(1, 20))
    channels, make = groups * each, Maker(draw(st.integers(0, 2**31)), dtype)
    real = torch.float64 if dtype == torch.float64 else torch.float32

    def maps(kind: str) -> torch.Tensor:
        if kind == "constant":
            return make.tensor(channels, states, dtype=real)
        return make.tensor(batch, groups, states, length) if kind == "grouped" else make.tensor(batch, states, length)

    kinds = st.sampled_from(["constant", "grouped"] if groups > 1 else ["constant", "varying", "grouped"])
    found = {
        "u": make.tensor(batch, channels, length),
        "delta": make.tensor(batch, channels, length),
        "A": -make.tensor(channels, states, dtype=real).abs(),
        "B": maps(draw(kinds)),
        "C": maps(draw(kinds)),
        "D": make.tensor(channels, dtype=real) if draw(flag) else None,
        "z": make.tensor(batch, channels, length) if draw(flag) else None,
        "delta_bias": make.tensor(channels, dtype=real) if draw(flag) else None,
        "initial_state": make.tensor(batch, channels, states, dtype=real) if draw(flag) else None,
        "seq_idx": make.documents(batch, length) if draw(flag) else None,
        "delta_softplus": draw(flag),
    }
    if not found["delta_softplus"]:  # steps are positive; without softplus the caller sees to it
        found["delta"], found["delta_bias"] = 0.1 * found["delta"].abs(), None
    return found, dtype


def run(**arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return selective_scan(**arguments, return_last_state=True)


@given(scans())
@examples(60)
def test_equals_the_loop(case: tuple[dict[str, Any], torch.dtype]):
    agree(run, *case)


def test_gradients_by_differences():
    make = Maker(0, torch.float64)
    u, delta, z = (make.tensor(2, 3, 5).requires_grad_() for _ in range(3))
    A, D = (-make.tensor(3, 2).abs()).requires_grad_(), make.tensor(3).requires_grad_()
    B, C = (make.tensor(2, 2, 5).requires_grad_() for _ in range(2))
    initial = make.tensor(2, 3, 2).requires_grad_()

    def scan(*inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        u, delta, A, B, C, D, z, initial = inputs
        options = {"delta_softplus": True, "return_last_state": True}
        return selective_scan(u, delta, A, B, C, D, z, initial_state=initial, **options)

    with backend("native"):
        assert torch.autograd.gradcheck(scan, (u, delta, A, B, C, D, z, initial))
        assert torch.autograd.gradgradcheck(scan, (u, delta, A, B, C, D, z, initial))


def test_the_number_of_threads_changes_no_bit():
    make = Maker(1, torch.float32)
    given = {"u": make.tensor(2, 200, 300), "delta": make.tensor(2, 200, 300), "A": -make.tensor(200, 16).abs()}
    given |= {"B": make.tensor(2, 16, 300), "C": make.tensor(2, 16, 300), "delta_softplus": True}
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
